"""Passes of rows through a model: how many rows at a time, on how many threads, with a progress bar."""

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

# Rows that go through a model together. They are so few that the results of a network's layers stay in the processor's
# cache. With 65,536 rows, a network of the default size takes twice as long for each row.
PART = 1 << 13


def in_parallel(flow: Flow, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """``work(job)`` for each of ``jobs``, in their order; each job passes about :data:`PART` rows through ``flow``.

    Each of torch's threads takes a job of its own, so that no thread waits for another. But if products of matrices are
    long, the threads share the work of each operation instead, so that the matrices fit into the cache.
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
    """A bar that is shown only on a terminal, after a second of work."""
    return tqdm(total=rows, unit="rows", unit_scale=True, disable=None, delay=1.0)


def array_of(values: Tensor) -> NDArray[Any]:
    """``values`` as an array; numpy has no bfloat16."""
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
