"""Checks of arguments that several modules share."""

from __future__ import annotations

import operator
from typing import SupportsIndex

__all__ = ["check_integer", "check_seed"]


def check_integer(name: str, value: SupportsIndex, least: int, most: int = 2**63 - 1) -> int:
    """``value`` as an int; ValueError if it is none (a bool is none) or outside ``least`` to ``most``.

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
    """``value`` as an int that ``torch.Generator.manual_seed`` takes; ValueError if it is none."""
    return check_integer("seed", value, -(2**63), 2**64 - 1)
