"""Times of several calls in one run, which take turns: a machine that drifts or is shared does so for all of them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .inputs import Settings

__all__ = ["Call", "seconds_per_element"]


@dataclass(frozen=True)
class Call:
    """What is timed.

    Args:
        run: does the work once.
        elements: the number of elements that it works on.
        threads: number of CPU threads; by default that of the settings.

    """

    run: Callable[[], object]
    elements: int
    threads: int | None = None


def seconds_per_element(calls: Sequence[Call], settings: Settings) -> NDArray[np.float64]:
    """Time each of ``calls`` once a round, and return the seconds per element, shape (rounds, calls).

    A time is that of as many repetitions as fill a sample. One more before them is not timed, since it finds caches
    and threads as the call before it left them. There are as many rounds as fit into two seconds, from 5 to 15.

    Example:
        >>> import torch
        >>> from mixflow.bench.inputs import Settings
        >>> from mixflow.bench.timing import Call, seconds_per_element
        >>> x = torch.ones(10)
        >>> seconds = seconds_per_element([Call(x.exp, 10), Call(x.log, 10)], Settings(quick=True))
        >>> seconds.shape, bool((seconds > 0).all())
        ((3, 2), True)

    """
    sample, budget, fewest, most = (0.001, 0.0, 3, 3) if settings.quick else (0.02, 2.0, 5, 15)
    stopwatch = _cuda_seconds if settings.device.type == "cuda" else _cpu_seconds

    def seconds(call: Call, repetitions: int) -> float:
        torch.set_num_threads(call.threads or settings.threads)
        if repetitions > 1:
            call.run()
        return stopwatch(call.run, repetitions)

    if not settings.quick:
        gc.collect()
    gc.disable()
    try:
        for call in calls:
            seconds(call, 1)
        single = [seconds(call, 1) for call in calls]
        counts = [max(1, math.ceil(sample / s)) for s in single]
        one_round = sum(count * s for count, s in zip(counts, single, strict=True))
        rounds = min(most, max(fewest, int(budget / one_round)))
        turns = list(zip(calls, counts, strict=True))
        return np.array([[seconds(c, count) / (count * c.elements) for c, count in turns] for _ in range(rounds)])
    finally:
        gc.enable()
        torch.set_num_threads(settings.threads)


def _cpu_seconds(run: Callable[[], object], repetitions: int) -> float:
    start = time.perf_counter()
    for _ in range(repetitions):
        run()
    return time.perf_counter() - start


def _cuda_seconds(run: Callable[[], object], repetitions: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repetitions):
        run()
    end.record()
    torch.cuda.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3
