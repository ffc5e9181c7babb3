"""Checks of arguments that several modules share."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
import torch

__all__ = ["broadcast_shapes", "check_integer", "check_seed"]


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """``torch.broadcast_shapes``; RuntimeError for shapes that do not broadcast.

    At its first call in a process, torch's function imports sympy, for symbolic sizes. That takes 0.15 seconds, so
    numpy's function is called unless a size is symbolic.

    Example:
        >>> from mixflow.checks import broadcast_shapes
        >>> broadcast_shapes((4, 1), (3,))
        torch.Size([4, 3])

    """
    are_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if are_traced or not all(type(size) is int for shape in shapes for size in shape):
        return torch.Size(torch.broadcast_shapes(*shapes))
    try:
        return torch.Size(np.broadcast_shapes(*map(tuple, shapes)))
    except ValueError as error:
        raise RuntimeError(str(error)) from error


def check_integer(name: str, value: SupportsIndex, least: int, most: int = 2**63 - 1) -> int:
    """``value`` as an int; ValueError if it is not an integer (a bool is not) or lies outside ``least`` to ``most``.

    Example:
        >>> import numpy as np
        >>> from mixflow.checks import check_integer
        >>> check_integer("components", np.int64(3), 1)
        3

    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    if number > most:
        raise ValueError(f"{name}: expected an integer of at most {most}, got {value!r}")
    return number


def check_seed(value: SupportsIndex) -> int:
    """``value`` as an int; ValueError if ``torch.Generator.manual_seed`` does not take it."""
    return check_integer("seed", value, -(2**63), 2**64 - 1)
