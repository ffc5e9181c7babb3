"""Rows on their way through a model: how many at a time, on how many threads, and the bar that shows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ..fitting.threads import PRODUCT, one_thread
from ..flows import Flow

__all__ = ["PART", "array_of", "in_parallel", "progress_bar"]

Job = TypeVar("Job")
Result = TypeVar("Result")

# Rows that go through a model together: so few that what a network makes of them stays in the processor's cache. With
# 65,536 rows, a network of the default size takes twice as long for each.
PART = 1 << 13


def in_parallel(flow: Flow, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """``work(job)`` for each of ``jobs``, in their order; each job passes about :data:`PART` rows through ``flow``.

    Each of torch's threads takes a job of its own: none waits for another, as they do where they share the work of one
    operation. Where products of matrices are long, they share it all the same, so that all of them fit the cache.
    """
    operations = [2.0 * PART * parameter.numel() for parameter in flow.parameters() if parameter.ndim == 2]
    are_long = sum(operations) >= PRODUCT * len(operations) > 0
    threads = torch.get_num_threads()
    if threads == 1 or are_long:
        yield from map(work, jobs)
        return
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    with one_thread():
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def progress_bar(rows: int | None) -> tqdm[NoReturn]:
    """Shown on a terminal alone, and only once the work has taken a while."""
    return tqdm(total=rows, unit="rows", unit_scale=True, disable=None, delay=1.0)


def array_of(values: Tensor) -> NDArray[Any]:
    """``values`` as an array; numpy has no bfloat16."""
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
