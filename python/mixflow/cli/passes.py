"""Rows on their way through a model: how many at a time, on how many threads, and the bar that shows it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ..flows import Flow
from ..threads import PRODUCT, one_thread

__all__ = ["PART", "array_of", "progress_bar", "threads_for"]

# Rows that go through a model together: so few that what a network makes of them stays in the processor's cache. With
# 65,536 rows, a network of the default size takes twice as long for each.
PART = 1 << 13


def threads_for(flow: Flow) -> AbstractContextManager[None]:
    """All threads for ``flow`` if its products of matrices are long for :data:`PART` rows, otherwise one.

    ``threads.are_worthwhile`` watches the flow at work. For that, torch imports its compiler, which takes longer than
    many tables. The sizes of the matrices tell nearly as much.
    """
    operations = [2.0 * PART * parameter.numel() for parameter in flow.parameters() if parameter.ndim == 2]
    return one_thread(sum(operations) < PRODUCT * len(operations))


def progress_bar(rows: int | None) -> tqdm[NoReturn]:
    """Shown on a terminal alone, and only once the work has taken a while."""
    return tqdm(total=rows, unit="rows", unit_scale=True, disable=None, delay=1.0)


def array_of(values: Tensor) -> NDArray[Any]:
    """``values`` as an array; numpy has no bfloat16."""
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
