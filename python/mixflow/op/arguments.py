"""The arguments of the public functions: their checks, the axis of the components, numpy arrays, half precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..checks import broadcast_shapes
from .kernels import BASES, FAMILIES, PARAMETERS, Tensors
from .modes import are_plain
from .shapes import are_same, fits

__all__ = [
    "ARRAYS",
    "Array",
    "are_plain_and_right",
    "check",
    "check_mixture",
    "components_last",
    "from_numpy",
    "in_full_precision",
]

Array = TypeVar("Array", Tensor, np.ndarray[Any, Any])

_HALF = (torch.float16, torch.bfloat16)
_FULL = (torch.float32, torch.float64)
ARRAYS = (np.ndarray, np.generic)  # a scalar of numpy counts as an array


# -- numpy, the axis of the components, half precision -------------------------------------------------------


def from_numpy(name: str, array: object) -> Tensor:
    """``array`` as a tensor of the same memory, if torch supports it: native, aligned, no negative strides."""
    if not isinstance(array, ARRAYS) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a numpy array, like the others, got {type(array).__name__}")
    dtype = array.dtype.newbyteorder("=")
    if dtype not in (np.float32, np.float64, np.float16):
        raise TypeError(f"{name}: expected a float16, float32 or float64 array, got {array.dtype}")
    native = np.asarray(array, dtype)
    strides = native.strides
    if not native.flags.aligned or any(stride < 0 or stride % dtype.itemsize for stride in strides):
        native = native.copy()
    return torch.from_numpy(native if native.flags.writeable else np.asarray(_Writeable(native)))


class _Writeable:
    """The memory of a read-only array, presented as writeable: torch warns otherwise, and mixflow never writes."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
        self.array = array  # keeps the memory alive


def components_last(parameters: Sequence[Tensor], dim: int) -> Tensors:
    """Views of logits, loc and log_scale with axis ``dim`` of each moved to the end; ValueError if there is none."""
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer):
        raise TypeError(f"dim: expected an integer, an axis of the parameters, got {type(dim).__name__}")
    if dim == -1:
        return tuple(parameters)
    for name, parameter in zip(PARAMETERS, parameters, strict=True):
        if isinstance(parameter, Tensor) and not -parameter.dim() <= dim < parameter.dim():
            raise ValueError(f"dim: expected an axis of {name}, of shape {tuple(parameter.shape)}, got {dim}")
    return tuple(p.movedim(int(dim), -1) if isinstance(p, Tensor) else p for p in parameters)


def in_full_precision(compute: Callable[..., Tensors], tensors: Tensors, *options: Any) -> Tensors:
    """``compute(tensors, *options)``, in float32 if a tensor has half precision; the results have the first's dtype."""
    if not any(t.dtype in _HALF for t in tensors):
        return compute(tensors, *options)
    dtype = tensors[0].dtype
    results = compute(tuple(t.float() for t in tensors), *options)
    return tuple(r.to(dtype) for r in results) if dtype in _HALF else results


# -- checks --------------------------------------------------------------------------------------------------


def are_plain_and_right(tensors: Tensors) -> bool:
    """Whether these are dense float32 CPU tensors: elements of one shape, and parameters that broadcast against it.

    That is so in most calls, and it takes a tenth of the time in which :func:`check` finds what is wrong.
    """
    if not are_plain(tensors):
        return False
    batch, shape = tensors[0].shape, tensors[-1].shape
    for element in tensors[1:-3]:
        if not are_same(element.shape, batch):
            return False
    return (
        are_same(tensors[-2].shape, shape)
        and are_same(tensors[-3].shape, shape)
        and len(shape) > 0
        and shape[-1] > 0
        and fits(shape, batch)
    )


def check_mixture(logits: Tensor, loc: Tensor, log_scale: Tensor, family: str, base: str = BASES[0]) -> None:
    """Raise what :func:`mixflow.cdf_transform` would for these parameters, before there are elements."""
    check((), (logits, loc, log_scale), family, base)


def check(elements: tuple[str, ...], tensors: Tensors, family: str, base: str = BASES[0]) -> None:
    """Raise TypeError or ValueError for arguments that an op does not take.

    Args:
        elements: Names of the elements, which the messages use.
        tensors: The elements, and logits, loc and log_scale.
        family: One of ``FAMILIES``.
        base: One of ``BASES``.
    """
    arguments = dict(zip((*elements, *PARAMETERS), tensors, strict=True))
    first = next(iter(arguments))
    for name, tensor in arguments.items():
        _check_tensor(name, tensor, first, arguments[first])
    if family not in FAMILIES:
        raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
    if base not in BASES:
        raise ValueError(f"base: expected one of {', '.join(BASES)}, got {base!r}")
    _check_components({name: arguments[name] for name in PARAMETERS})
    _check_broadcast(elements, arguments)


def _check_tensor(name: str, tensor: object, first: str, like: Tensor) -> None:
    """Check the type, layout, dtype and device of an argument; ``like`` is the first argument, of name ``first``."""
    if not isinstance(tensor, Tensor):
        wanted = "torch tensor or a numpy array" if name == first else f"torch tensor, like {first}"
        raise TypeError(f"{name}: expected a {wanted}, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = f"a nested tensor of layout {tensor.layout}" if tensor.is_nested else tensor.layout
        raise TypeError(f"{name}: expected a dense tensor (layout torch.strided), got {kind}")
    if tensor.dtype not in _FULL and tensor.dtype not in _HALF:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}")
    if (tensor.dtype == torch.float64) != (like.dtype == torch.float64):
        raise TypeError(f"{name}: expected {like.dtype}, like {first}, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected device {like.device}, like {first}, got {tensor.device}")


def _check_components(parameters: dict[str, Tensor]) -> None:
    """Check that all parameters have the same K >= 1 components."""
    logits = parameters["logits"]
    for name, parameter in parameters.items():
        shape = tuple(parameter.shape)
        if not shape or shape[-1] == 0:
            raise ValueError(f"{name}: expected shape (..., K) with K >= 1, got {shape}")
        if shape[-1] != logits.shape[-1]:
            raise ValueError(f"{name}: expected shape (..., {logits.shape[-1]}), like logits, got {shape}")


def _check_broadcast(elements: tuple[str, ...], arguments: dict[str, Tensor]) -> None:
    """Check that the elements and the batch axes of the parameters broadcast against each other."""
    shape = tuple(arguments[elements[0]].shape) if elements else ()
    for name in elements[1:]:
        own = tuple(arguments[name].shape)
        try:
            shape = broadcast_shapes(shape, own)
        except RuntimeError:
            raise ValueError(f"{name}: expected a shape that broadcasts against {tuple(shape)}, got {own}") from None
    if all(arguments[name].dim() == 1 for name in PARAMETERS):
        return
    for name in PARAMETERS:
        own = tuple(arguments[name].shape)
        try:
            shape = broadcast_shapes(shape, own[:-1])
        except RuntimeError:
            raise ValueError(
                f"{name}: expected shape (..., K) whose batch axes broadcast against {tuple(shape)}, got {own}"
            ) from None
