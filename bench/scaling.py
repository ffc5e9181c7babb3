"""How the rate of the op depends on threads, precision, the family, N and K. Its groups run with `make bench`."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from itertools import pairwise

import torch

import mixflow
from mixflow.bench.cases import RATES, Baseline, Case, Group, timed
from mixflow.bench.inputs import Settings
from mixflow.bench.large_calls import op_call
from mixflow.bench.timing import Call

OPS = ("forward + ladj", "forward + backward", "inverse + ladj")


def threads(op: str, family: str, layout: str) -> Case:
    name = f"{op}, {family}, {layout}"

    def prepare(settings: Settings) -> tuple[Call, list[Baseline]]:
        two, one = (op_call(name, replace(settings, threads=t), op, family, layout, settings.n)[0] for t in (2, 1))
        return two, [Baseline("1 thread", 1.8, one)]

    return timed(name, prepare)


def double(op: str, family: str) -> Case:
    name = f"{op}, {family}, shared"

    def prepare(settings: Settings) -> tuple[Call, list[Baseline]]:
        double, single = (
            op_call(name, replace(settings, dtype=d), op, family, "shared", settings.n)[0]
            for d in (torch.float64, torch.float32)
        )
        return double, [Baseline("float32", 0.4, single)]

    return timed(name, prepare)


def neighbours(op: str, family: str, other: str) -> Case:
    """Two families with so many components that what is done once for an element does not count."""
    name = f"{op}, {family}, K = 64"

    def prepare(settings: Settings) -> tuple[Call, list[Baseline]]:
        many = replace(settings, components=64)
        ours, theirs = (op_call(name, many, op, f, "shared", max(1, settings.n // 8))[0] for f in (family, other))
        return ours, [Baseline(other, 1 / 1.6, theirs)]

    return timed(name, prepare)


def elements(family: str, n: int) -> Case:
    """Calls on n elements against calls on a million; more than fit into memory are mapped in several calls."""
    name = f"forward + ladj, {family}, shared, N = {n:,}"

    def prepare(settings: Settings) -> tuple[Call, list[Baseline]]:
        one = replace(settings, threads=1)  # of which short calls take no more anyway
        most = memory(settings) // (8 * settings.dtype.itemsize)  # x, z, ladj, and room for others

        def call(n: int) -> Call:
            n = n // 1000 if settings.quick else n
            calls = math.ceil(n / most)
            single, _ = op_call(name, one, "forward + ladj", family, "shared", n // calls)
            return Call(lambda: [single.run() for _ in range(calls)], single.elements * calls, threads=1)

        return call(n), [Baseline("N = 1,000,000", target(settings), call(10**6))]

    def target(settings: Settings) -> float | None:
        return None if settings.device.type == "cuda" else 0.85  # it takes many elements to fill a GPU

    return timed(name, prepare)


def components(family: str, k: int) -> Case:
    """One call with K components against two calls with half as many, which cost at least as much if cost is linear."""
    name = f"forward + ladj, {family}, shared, K = {k}"

    def prepare(settings: Settings) -> tuple[Call, list[Baseline]]:
        whole, half = (
            op_call(name, replace(settings, components=c), "forward + ladj", family, "shared", settings.n)[0]
            for c in (k, k // 2)
        )
        twice = Call(lambda: (half.run(), half.run()), half.elements, half.threads)
        return whole, [Baseline(f"two calls, K = {k // 2}", 1.0, twice)]

    return timed(name, prepare)


def memory(settings: Settings) -> int:
    """Bytes of memory of the device, half of which a benchmark may take."""
    if settings.device.type == "cuda":
        return torch.cuda.mem_get_info(settings.device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


F = mixflow.FAMILIES
GROUPS = [
    Group(
        "Two threads against one",
        [threads(op, f, layout) for op in OPS for f in F for layout in ("shared", "per element")],
        RATES,
        device="cpu",
    ),
    Group("float64 against float32", [double(op, f) for op in OPS for f in F], RATES),
    Group("Each family against the next", [neighbours(op, *pair) for op in OPS[:2] for pair in pairwise(F)], RATES),
    Group("Throughput by N, one thread", [elements(f, n) for f in F for n in (10**5, 10**7, 10**8)], RATES),
    Group("Cost by K", [components(f, k) for f in F for k in (2, 4, 8, 16, 32, 64, 128)], RATES),
]
