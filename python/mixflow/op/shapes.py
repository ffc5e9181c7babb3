"""The shapes that elements, parameters and gradients broadcast to.

Most calls of an op take a few microseconds. So these functions first try the common case, in which all shapes fit
together as they are, and they use loops where a generator expression would take longer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import broadcast_shapes

__all__ = ["are_same", "batch_shape", "empty", "fits", "parameter_shape", "sum_to"]


def are_same(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two shapes are equal.

    For shapes of different lengths, ``a == b`` would still compare sizes, and a compiled graph would guard them.
    """
    return len(a) == len(b) and a == b


def fits(shape: Sequence[int], batch: Sequence[int]) -> bool:
    """Whether parameters of ``shape`` (..., K) broadcast against elements of shape ``batch`` without a change to it."""
    return len(shape) == 1 or are_same(shape[:-1], batch[1 - len(shape) :])


def batch_shape(elements: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[int, ...]:
    """The broadcast shape of the elements and of all axes except the last of the parameters."""
    batch, shape = elements[0].shape, parameters[0].shape
    are_alike = fits(shape, batch)
    for parameter in parameters[1:]:
        are_alike = are_alike and are_same(parameter.shape, shape)
    for element in elements[1:]:
        are_alike = are_alike and are_same(element.shape, batch)
    if are_alike:
        return batch
    return tuple(broadcast_shapes(*(e.shape for e in elements), *(p.shape[:-1] for p in parameters)))


def parameter_shape(parameters: Sequence[Tensor]) -> tuple[int, ...]:
    """The broadcast shape of the parameters, with their last axis."""
    first = parameters[0].shape
    for parameter in parameters[1:]:
        if not are_same(parameter.shape, first):
            return tuple(broadcast_shapes(*(p.shape for p in parameters)))
    return first


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An empty tensor of ``shape``, in the memory format of ``like`` if that has the same shape, else contiguous."""
    return torch.empty_like(like) if are_same(like.shape, shape) else like.new_empty(shape)


def sum_to(grad: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``grad``, summed over the axes along which a tensor of ``shape`` was broadcast."""
    return grad if are_same(grad.shape, shape) else grad.sum_to_size(shape)
