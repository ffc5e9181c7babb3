"""Which values count as numbers, and the tensors that they become.

Rows keep the precision of the data, whatever the precision of the flow: float32 stays float32, and float64 stays
float64. Half precision becomes float32, which holds all its numbers. Every other kind of number becomes float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ...files.atomic import PathLike

__all__ = [
    "Array",
    "Data",
    "is_sparse",
    "require_finite",
    "require_not_negative",
    "require_numbers",
    "require_shape",
    "to_tensor",
]

Array: TypeAlias = NDArray[Any]
Data: TypeAlias = Tensor | ArrayLike | PathLike | Iterable[Any]

# The integer dtypes of torch that can be converted. Others, of a few bits, cannot.
INTEGERS = tuple(
    getattr(torch, name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)
FILL = "fill or drop the masked rows first"


def require_numbers(name: str, values: Any) -> Tensor | Array:
    """``values`` as a dense tensor or an array of real numbers, of any shape; TypeError if they are none."""
    if isinstance(values, Dataset):
        raise TypeError(
            f"{name}: expected numbers or batches of them, got a Dataset; wrap it in a torch.utils.data.DataLoader"
        )
    if isinstance(values, Tensor):
        return _require_dense(name, values)
    if is_sparse(values):
        raise TypeError(
            f"{name}: expected a dense array of real numbers, got a sparse {type(values).__name__}; call .toarray()"
        )
    array = _as_array(name, values)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected an array of real numbers, got {_describe(values, array)}")
    return array


def _require_dense(name: str, values: Tensor) -> Tensor:
    got = None
    if values.is_nested:
        got = "a nested tensor; pad it or join its parts to one tensor first"
    elif values.layout != torch.strided:
        got = f"one of layout {values.layout}; call .to_dense()"
    elif values.is_quantized:
        got = f"one of {values.dtype}; call .dequantize()"
    elif values.is_meta:
        got = "one on the meta device, which holds no numbers"
    elif isinstance(values, torch.masked.MaskedTensor):
        got = f"a MaskedTensor; {FILL}"
    if got:
        raise TypeError(f"{name}: expected a dense tensor of real numbers, got {got}")
    if not values.is_floating_point() and values.dtype not in INTEGERS:
        raise TypeError(f"{name}: expected real numbers, got {values.dtype}")
    return values.detach().resolve_neg()


def _as_array(name: str, values: Any) -> Array:
    if isinstance(values, np.ndarray) and not isinstance(values, np.ma.MaskedArray):
        return values
    try:
        # numpy drops the mask silently, and masked values would then count as data.
        masked = _holds_masked(values)
        array = None if masked else np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # torch raises RuntimeErrors, numpy the rest
        reason = str(error).partition("\n")[0]
        got = f"a {type(values).__name__} ({reason})"
        raise TypeError(f"{name}: expected an array of real numbers, got {got}") from error
    if array is None:
        raise TypeError(f"{name}: expected an array of real numbers, got a MaskedArray; {FILL}")
    return array


def _holds_masked(values: Any) -> bool:
    """Whether ``values`` is a masked array, or a list or tuple, however deep, that contains one."""
    if not isinstance(values, (list, tuple)):
        return isinstance(values, np.ma.MaskedArray)
    kinds = set(map(type, values))  # each type is checked once, because long lists hold few types
    if any(issubclass(kind, np.ma.MaskedArray) for kind in kinds):
        return True
    nested = any(issubclass(kind, (list, tuple)) for kind in kinds)
    return nested and any(_holds_masked(part) for part in values if isinstance(part, (list, tuple)))


def _describe(values: Any, array: Array) -> str:
    """The end of the TypeError for ``array``, which was made from ``values`` and does not hold numbers."""
    dtype, where = array.dtype, ""
    # A table with columns of several kinds becomes an array of objects. The column at fault is found in the table.
    if dtype.kind == "O" and hasattr(values, "columns") and hasattr(values, "dtypes"):
        columns = [pair for pair in zip(values.columns, values.dtypes, strict=True) if _kind(pair[1]) not in "iuf"]
        if columns:
            label, dtype = columns[0]
            where = f" in column {label!r}"
    if _kind(dtype) in "mM":
        unit = "timedelta64[s]" if _kind(dtype) == "m" else "datetime64[s]"
        method = "to_numpy" if hasattr(values, "to_numpy") else "astype"  # pandas makes no floats of its own dates
        return f'{dtype}{where}; convert to numbers, such as seconds by .{method}("{unit}").astype(float)'
    if where or dtype.kind != "O":
        return f"{dtype}{where}"
    if array.ndim == 0:
        return type(values).__name__
    return "object; convert to numbers, such as by .astype(float), after missing values are filled or dropped"


def _kind(dtype: Any) -> str:
    """The letter for the kind of a dtype, in numpy and in pandas."""
    return str(getattr(dtype, "kind", "O"))


def is_sparse(values: object) -> bool:
    """Whether ``values`` is a sparse matrix of scipy or cupy. Some can be iterated, but are no stream of batches."""
    return hasattr(values, "tocoo") and hasattr(values, "toarray")


def to_tensor(values: Tensor | Array, device: torch.device, keeps_integers: bool = False) -> Tensor:
    """``values`` on ``device``, as torch.float32 if that holds them all, otherwise as torch.float64.

    With ``keeps_integers``, integers become torch.int64, because an embedding may take labels.
    """
    if keeps_integers and not (values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"):
        whole = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=np.int64))
        return whole.to(device, torch.int64)
    if not isinstance(values, Tensor):
        single = values.dtype.kind == "f" and values.dtype.itemsize <= 4
        with np.errstate(over="ignore"):  # a long double may become infinite; it is refused later, with its place
            # This is a copy. Without it, torch would share memory that may be read-only, and warn about it.
            values = torch.from_numpy(np.array(values, dtype=np.float32 if single else np.float64, subok=False))
    single = values.is_floating_point() and values.dtype != torch.float64
    return values.to(device, torch.float32 if single else torch.float64)


def require_shape(name: str, values: Tensor | Array, columns: int | torch.Size | None) -> Tensor | Array:
    """``values`` in the shape (N, columns), or with rows of another shape; (N,) becomes (N, 1) if ``columns`` is 1."""
    shape = torch.Size([columns]) if isinstance(columns, int) else columns
    rows = values[:, None] if values.ndim == 1 and shape == (1,) else values
    if rows.ndim == 0 or (shape is not None and tuple(rows.shape[1:]) != tuple(shape)):
        expected = "(N,) or (N, 1)" if shape == (1,) else f"(N, {', '.join(map(str, shape or ['...']))})"
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(values.shape)}")
    return rows


def require_finite(name: str, values: Tensor, first: int = 0) -> None:
    """ValueError if a number in ``values`` (n, D) is not finite; ``first`` is the number of the first row."""
    # Numpy takes one pass on one thread. torch takes five passes, each of which waits for all threads.
    if type(values) is Tensor and values.is_cpu and np.isfinite(values.numpy()).all():
        return
    finite = values.isfinite()
    if finite.all():
        return
    row, column = (~finite).nonzero()[0].tolist()
    raise ValueError(
        f"{name}: expected finite numbers, got {values[row, column].item()} in row {first + row}, column {column} "
        f"(counted from 0, as {values.dtype})"
    )


def require_not_negative(name: str, weights: Tensor, first: int = 0) -> None:
    """ValueError if a number in ``weights`` (n, 1) is negative; ``first`` is the number of the first row."""
    negative = (weights < 0).nonzero()
    if len(negative):
        row = int(negative[0, 0])
        raise ValueError(
            f"{name}: expected weights of at least 0, got {weights[row, 0].item()} in row {first + row} "
            "(counted from 0)"
        )
