"""Times of rivals in one run: round-robin, so that a machine that drifts or is shared does not decide who wins."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .inputs import Inputs, Settings

__all__ = ["Contender", "alone", "race"]


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Args:
        name: What the table calls it.
        call: Does the work once, on one of ``inputs``.
        inputs: Taken in turn; several, where one alone would stay in a cache.
        elements: How many elements one call transforms.
        threads: Where they differ from those of the settings.

    """

    name: str
    call: Callable[[Inputs], object]
    inputs: Sequence[Inputs]
    elements: int
    threads: int | None = None


def alone(name: str, call: Callable[[], object], elements: int) -> Contender:
    """A contender on one thread whose ``call`` holds its own inputs."""
    nothing = torch.empty(0)
    return Contender(name, lambda _: call(), [Inputs(nothing, (nothing, nothing, nothing))], elements, threads=1)


def race(contenders: Sequence[Contender], settings: Settings) -> NDArray[np.float64]:
    """Seconds per element of every contender in every round, shape (rounds, contenders).

    Each round times every contender once, by as many calls as fill a sample. Where there are several, one more before
    them is not timed: it finds the caches and threads as the contender before it left them. There are as many rounds
    as fit into a few seconds, within limits.

    Example:
        >>> import torch
        >>> from mixflow.bench.inputs import Inputs, Settings
        >>> from mixflow.bench.timing import Contender, race
        >>> inputs = [Inputs(torch.ones(10), (torch.zeros(1),) * 3)]
        >>> contenders = [Contender(f.__name__, lambda i, f=f: f(i.x), inputs, 10) for f in (torch.exp, torch.log)]
        >>> seconds = race(contenders, Settings(quick=True))
        >>> seconds.shape, bool((seconds > 0).all())
        ((3, 2), True)

    """
    sample, budget, fewest, most = (0.001, 0.0, 3, 3) if settings.quick else (0.02, 2.0, 5, 15)
    stopwatch = _cuda_seconds if settings.device.type == "cuda" else _cpu_seconds

    def seconds(contender: Contender, calls: int) -> float:
        torch.set_num_threads(contender.threads or settings.threads)
        call, inputs = contender.call, contender.inputs

        def run() -> None:
            for number in range(calls):
                call(inputs[number % len(inputs)])

        if calls > 1:
            call(inputs[0])
        return stopwatch(run)

    if not settings.quick:
        gc.collect()
    gc.disable()
    try:
        for contender in contenders:
            seconds(contender, 1)
        single = [seconds(c, 1) for c in contenders]
        calls = [max(1, math.ceil(sample / t)) for t in single]
        one_round = sum(n * t for n, t in zip(calls, single, strict=True))
        rounds = min(most, max(fewest, int(budget / one_round)))
        return np.array(
            [[seconds(c, n) / (n * c.elements) for c, n in zip(contenders, calls, strict=True)] for _ in range(rounds)]
        )
    finally:
        gc.enable()
        torch.set_num_threads(settings.threads)


def _cpu_seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cuda_seconds(run: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    milliseconds: Any = start.elapsed_time(end)
    return float(milliseconds) / 1e3
