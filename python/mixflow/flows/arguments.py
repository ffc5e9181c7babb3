"""What the methods of a flow are given: numpy arrays, rows of any dtype, contexts and shapes, checked and converted."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, SupportsIndex, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import check_integer, check_seed
from ..op import from_numpy, is_known_finite
from ..transforms import Transform
from ..transforms.base import own_tensor

__all__ = [
    "check_embedding",
    "described",
    "generator_of",
    "known_context",
    "like",
    "rows_of",
    "shape_of",
    "takes_numpy",
    "to_tensor",
]

P = ParamSpec("P")
R = TypeVar("R")


def like(flow: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device that ``flow`` computes in; torch's defaults if it holds no numbers."""
    own = own_tensor(flow)
    return torch.empty(0) if own is None else own


# -- numpy arrays --------------------------------------------------------------------------------------------


def takes_numpy(method: Callable[P, R]) -> Callable[P, R]:
    """A method of a flow on tensors, which then also takes numpy arrays and returns numpy arrays for them."""
    names = list(inspect.signature(method).parameters)

    @functools.wraps(method)
    def taking(*args: P.args, **kwargs: P.kwargs) -> R:
        if not any(isinstance(value, np.ndarray) for value in (*args, *kwargs.values())):
            return method(*args, **kwargs)
        given: dict[str, Any] = dict(zip(names, args, strict=False)) | kwargs
        device = like(given["self"]).device
        tensors: dict[str, Any] = {
            name: to_tensor(name, value).to(device) if isinstance(value, np.ndarray) else value
            for name, value in given.items()
        }
        with torch.no_grad():
            found: Any = method(**tensors)  # type: ignore[call-arg]
        return tuple(map(_to_numpy, found)) if isinstance(found, tuple) else _to_numpy(found)  # type: ignore[return-value]

    return taking


def to_tensor(name: str, values: np.ndarray[Any, Any]) -> Tensor:
    """The argument ``name`` of a flow's method as a tensor. A context of integers stays one."""
    if name == "context" and values.dtype.kind in "iu" and not isinstance(values, np.ma.MaskedArray):
        return torch.from_numpy(values.astype(np.int64))  # labels, which an embedding may take
    return from_numpy(name, values)


def _to_numpy(values: Tensor) -> Any:
    return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()  # numpy has no bfloat16


# -- rows and contexts ---------------------------------------------------------------------------------------


def rows_of(transform: Transform, name: str, values: Tensor, forward: bool) -> Tensor:
    """``values`` (..., D), (N,) for one feature made (N, 1), in a dtype that ``transform`` takes in a direction."""
    event = transform.event_shape if forward else transform.output_shape
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor or a numpy array, got {type(values).__name__}")
    if not values.is_floating_point():
        raise TypeError(f"{name}: expected floating-point numbers, got {values.dtype}")
    if values.ndim == 1 and transform.features == len(event) == 1:
        values = values.unsqueeze(-1)
    if values.ndim < len(event) or values.shape[values.ndim - len(event) :] != event:
        raise ValueError(f"{name}: expected shape (..., {', '.join(map(str, event))}), got {tuple(values.shape)}")
    own = own_tensor(transform)
    if own is None or own.dtype == values.dtype or transform.takes_any_dtype(forward):
        return values
    return values.to(own.dtype)


def known_context(
    context: Tensor | None, size: int, embedding: nn.Module | None, own: Callable[[], Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """The context (*B, C) as transforms take it, 0 in the place of NaN, and which rows (*B) had any NaN.

    Args:
        context: what the caller gave.
        size: C; 0 for a flow that takes no context.
        embedding: a module that the context passes first.
        own: a tensor of the dtype that the embedding computes in.

    """
    if context is None:
        return None, None
    if not size:
        raise ValueError(f"context: expected None, as this flow takes no context, got {described(context)}")
    if not isinstance(context, Tensor):
        raise TypeError(f"context: expected a torch.Tensor or a numpy array, got {type(context).__name__}")
    # The transforms' own networks take infinity, an embedding may not.
    missing, known = None, context
    if not is_known_finite(context):
        missing = context.isnan() if embedding is None else ~context.isfinite()
        known = context.masked_fill(missing, 0)
    if embedding is not None:
        known = embedding(known.to(own().dtype) if known.is_floating_point() else known)
        if not isinstance(known, Tensor) or known.ndim == 0 or known.shape[-1] != size:
            raise ValueError(
                f"embedding: expected a module that returns (..., {size}), the flow's context, got {described(known)}"
            )
    if missing is None:
        return known, None
    batch = known.ndim - 1
    return known, missing.flatten(batch).any(-1) if missing.ndim > batch else missing


def check_embedding(embedding: nn.Module | None, context: int) -> nn.Module | None:
    """``embedding`` if it is a module, or None; an error if it is neither, or if there is no context to embed."""
    if embedding is None:
        return None
    if not isinstance(embedding, nn.Module):
        raise TypeError(f"embedding: expected a torch.nn.Module, got {type(embedding).__name__}")
    if not context:
        raise ValueError("embedding: expected None for a flow without a context, got a module")
    return embedding


# -- numbers of samples --------------------------------------------------------------------------------------


def shape_of(name: str, value: SupportsIndex | Sequence[int]) -> tuple[int, ...]:
    """A number, or a shape, as a shape; ValueError if it is neither."""
    sizes = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(check_integer(name, size, 0) for size in sizes)


def generator_of(seed: int | None, generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """The caller's ``generator``, or a new one of ``seed``; None if there is neither. ValueError if there are both."""
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
    if seed is None:
        return generator
    if generator is not None:
        raise ValueError("seed: expected a seed or a generator, got both")
    return torch.Generator(device).manual_seed(check_seed(seed))


def described(value: object) -> str:
    """A value in an error message: the shape of a tensor, the type of anything else."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
