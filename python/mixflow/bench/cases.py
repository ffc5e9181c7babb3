"""What is measured: every case, its rivals and its targets, in one list."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from . import jobs, memory, practice, verify
from .baselines import BASE_OF
from .inputs import LAYOUTS, Inputs, Settings
from .rivals import RIVALS, Absent, Limit, Rival
from .timing import Contender, alone, race
from .works import FORWARD, FORWARD_BACKWARD, INVERSE, INVERSE_BACKWARD, Call, Work

__all__ = ["CASES", "LIMITS", "MIXFLOW", "Case", "MemoryRow", "RateRow", "Row", "TimeRow", "number"]

MIXFLOW = "mixflow"


@dataclass(frozen=True)
class RateRow:
    """A rate of mixflow against another rate of the same run, in million elements per second.

    ``ratio`` is the median over the rounds of the ratio of the two rates, ``ratio_range`` its extremes. What is absent
    is None, and ``note`` says why.
    """

    case: str
    rate: float
    contender: str
    contender_rate: float | None = None
    ratio: float | None = None
    ratio_range: tuple[float, float] | None = None
    target: float | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without one, and where the contender is absent."""
        return None if self.ratio is None or self.target is None else self.ratio >= self.target

    def cells(self) -> dict[str, str]:
        """What the table shows, by heading."""
        return {
            "case": self.case,
            "mixflow M/s": number(self.rate),
            "contender": self.contender,
            "contender M/s": number(self.contender_rate),
            "ratio": number(self.ratio),
            "target": "-" if self.target is None else f">= {self.target:g}",
            "reached": _yes_or_no(self.reached),
        }


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory of one call beyond its outputs, in MiB."""

    case: str
    outputs: float
    beyond: float
    target: float = 1.0
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether it is within the target."""
        return self.beyond <= self.target

    def cells(self) -> dict[str, str]:
        """What the table shows, by heading."""
        return {
            "case": self.case,
            "outputs MiB": f"{self.outputs:.1f}",
            "beyond MiB": f"{self.beyond:.2f}",
            "target": f"<= {self.target:g}",
            "reached": _yes_or_no(self.reached),
        }


@dataclass(frozen=True)
class TimeRow:
    """The time of a job of mixflow against that of a part of the job in the same run, in seconds.

    ``ratio`` says how many times as long the job takes: the median over the rounds, ``ratio_range`` its extremes.
    """

    case: str
    seconds: float
    contender: str
    contender_seconds: float
    ratio: float
    ratio_range: tuple[float, float]
    target: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the job takes no longer than the target says; None without one."""
        return None if self.target is None else self.ratio <= self.target

    def cells(self) -> dict[str, str]:
        """What the table shows, by heading."""
        return {
            "case": self.case,
            "mixflow ms": number(1e3 * self.seconds),
            "contender": self.contender,
            "contender ms": number(1e3 * self.contender_seconds),
            "times as long": f"{self.ratio:.2f}",
            "target": "-" if self.target is None else f"at most {self.target:g}",
            "reached": _yes_or_no(self.reached),
        }


Row = RateRow | MemoryRow | TimeRow


@dataclass(frozen=True)
class Case:
    """Something to measure. The results are checked before any of them is timed.

    Args:
        group: The table in which its rows stand.
        name: Unique in its group on a device. ``--only`` looks at both.
        measure: Returns the rows.
        device: The type of device that it, or its targets, are about; empty where it is any.
        pictured: Whether it is drawn: mixflow against its rivals.

    """

    group: str
    name: str
    measure: Callable[[Settings], list[Row]] = field(repr=False)
    device: str = ""
    pictured: bool = False


def rate_row(
    case: str,
    contenders: Sequence[Contender],
    seconds: NDArray[np.float64],
    ours: int,
    other: int,
    target: float | None,
    note: str = "",
) -> RateRow:
    """The row of one pair of a race, ``seconds`` per element of shape (rounds, contenders)."""
    ratios = seconds[:, other] / seconds[:, ours]
    return RateRow(
        case=case,
        rate=_rate(seconds[:, ours]),
        contender=contenders[other].name,
        contender_rate=_rate(seconds[:, other]),
        ratio=float(np.median(ratios)),
        ratio_range=(float(ratios.min()), float(ratios.max())),
        target=target,
        note=note,
    )


def time_row(
    case: str,
    contenders: Sequence[Contender],
    seconds: NDArray[np.float64],
    ours: int,
    other: int,
    target: float | None,
) -> TimeRow:
    """The row of one pair of a race as :func:`rate_row` takes it, in seconds of a call."""
    ratios = seconds[:, ours] / seconds[:, other]
    median = np.median(seconds, axis=0) * contenders[ours].elements
    return TimeRow(
        case=case,
        seconds=float(median[ours]),
        contender=contenders[other].name,
        contender_seconds=float(median[other]),
        ratio=float(np.median(ratios)),
        ratio_range=(float(ratios.min()), float(ratios.max())),
        target=target,
    )


# -- mixflow against its rivals ------------------------------------------------------------------------------


def against(
    group: str,
    work: Work,
    family: str,
    layout: str,
    targets: dict[str, float | None],
    *,
    n: int | None = None,
    equal_weights: bool = False,
    device: str = "",
) -> Case:
    """Case: mixflow against rivals, on ``n`` elements or as many as the settings say."""
    title = f"{work.name}, {family}, {layout}" + (", equal weights" if equal_weights else "")

    def measure(settings: Settings) -> list[Row]:
        torch.compiler.reset()  # compiled code of earlier shapes would count against torch's limit
        size = settings.n if n is None else settings.capped(n)
        name = title if n is None else f"{title}, N = {size:,}"
        inputs = work.inputs(settings, size, settings.components, family, layout, equal_weights=equal_weights)
        work.check(name, inputs[0], family)
        own = work.own(family)
        contenders = [Contender(MIXFLOW, own, inputs, size)]
        place, notes, limits = {}, {}, {}
        for name_of_rival in targets:
            rival = RIVALS[name_of_rival]
            try:
                if isinstance(rival, Limit):
                    limits[name_of_rival], notes[name_of_rival] = rival.seconds(settings, work)
                else:
                    contenders.append(_rival(name_of_rival, rival, settings, work, family, inputs, own, name))
                    place[name_of_rival] = len(contenders) - 1
                    notes[name_of_rival] = rival.note(work, inputs[0])
            except Absent as reason:
                notes[name_of_rival] = str(reason)
        seconds = race(contenders, settings)
        for limit, value in limits.items():
            contenders.append(replace(contenders[0], name=limit))
            place[limit] = len(contenders) - 1
            seconds = np.column_stack([seconds, np.full(len(seconds), value)])
        return [
            rate_row(name, contenders, seconds, 0, place[rival], target, notes[rival])
            if rival in place
            else RateRow(name, _rate(seconds[:, 0]), rival, target=target, note=notes[rival])
            for rival, target in targets.items()
        ]

    return Case(group, title, measure, device, pictured=True)


def _rival(
    name: str, rival: Rival, settings: Settings, work: Work, family: str, inputs: Sequence[Inputs], own: Call, case: str
) -> Contender:
    call = rival.build(settings, work, family)
    label, size, most = name, len(inputs[0].x), rival.most(settings)
    if most is not None and most < size:
        size = most
        label = f"{name}, N = {size:,}"
        inputs = [i.head(size) for i in inputs]
    if rival.comparable:
        verify.check_agreement(f"{case}: {name}", own(inputs[0]), call(inputs[0]))
    return Contender(label, call, inputs, size)


# -- mixflow against itself ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One way of calling mixflow: other settings, other work. ``calls`` one after the other make up all elements."""

    label: str
    settings: Settings
    work: Work
    family: str
    n: int
    calls: int = 1
    layout: str = "shared"

    def contender(self, case: str) -> Contender:
        settings, work = self.settings, self.work
        inputs = work.inputs(settings, self.n, settings.components, self.family, self.layout)
        work.check(f"{case}, {self.label}", inputs[0], self.family)
        own = work.own(self.family)

        def repeated(inputs: Inputs) -> None:
            for _ in range(self.calls):
                own(inputs)

        call = own if self.calls == 1 else repeated
        return Contender(self.label, call, inputs, self.n * self.calls, settings.threads)


Pairing = Callable[[str, Sequence[Contender], NDArray[np.float64]], list[Row]]


def among_itself(
    group: str,
    name: str,
    variants: Callable[[Settings], list[Variant]],
    pairing: Pairing,
    *,
    device: str = "",
) -> Case:
    """Case: variants of mixflow against each other; ``pairing`` makes the rows."""

    def measure(settings: Settings) -> list[Row]:
        contenders = [v.contender(name) for v in variants(settings)]
        return pairing(name, contenders, race(contenders, settings))

    return Case(group, name, measure, device)


def first_against_second(target: float) -> Pairing:
    return lambda case, contenders, seconds: [rate_row(case, contenders, seconds, 0, 1, target)]


def each_against_fastest(target: float | None) -> Pairing:
    def rows(case: str, contenders: Sequence[Contender], seconds: NDArray[np.float64]) -> list[Row]:
        fastest = int(np.median(seconds, axis=0).argmin())
        return [
            rate_row(f"{case}, {c.name}", contenders, seconds, i, fastest, target) for i, c in enumerate(contenders)
        ]

    return rows


def each_against_line(target: float) -> Pairing:
    """Each against the straight line of seconds over K that fits all of them with the smallest relative errors."""

    def rows(case: str, contenders: Sequence[Contender], seconds: NDArray[np.float64]) -> list[Row]:
        components = np.array([c.inputs[0].parameters[0].shape[-1] for c in contenders], dtype=np.float64)
        design = np.stack([np.ones_like(components), components], axis=1)
        median = np.median(seconds, axis=0)
        line = design @ np.linalg.lstsq(design / median[:, None], np.ones_like(median), rcond=None)[0]
        both = [*contenders, replace(contenders[0], name="straight line")]
        return [
            rate_row(
                f"{case}, {c.name}", both, np.column_stack([seconds, np.full(len(seconds), line[i])]), i, -1, target
            )
            for i, c in enumerate(contenders)
        ]

    return rows


def sizes(family: str) -> Callable[[Settings], list[Variant]]:
    def variants(settings: Settings) -> list[Variant]:
        most = _memory(settings) // (8 * settings.dtype.itemsize)  # x, z, ladj, and room for others
        one = replace(settings, threads=1)  # of which short calls take no more anyway
        result = []
        for n in (10**5, 10**6, 10**7, 10**8):
            n = n // 1000 if settings.quick else n
            calls = math.ceil(n / most)
            label = f"N = {n:,}" + (f" in {calls} calls" if calls > 1 else "")
            result.append(Variant(label, one, FORWARD, family, n // calls, calls))
        return result

    return variants


def components(family: str) -> Callable[[Settings], list[Variant]]:
    def variants(settings: Settings) -> list[Variant]:
        return [
            Variant(f"K = {k}", replace(settings, components=k), FORWARD, family, settings.n)
            for k in (2, 4, 8, 16, 32, 64, 128)
        ]

    return variants


def threads(work: Work, family: str, layout: str) -> Callable[[Settings], list[Variant]]:
    def variants(settings: Settings) -> list[Variant]:
        return [
            Variant(f"{t} thread{'s'[: t > 1]}", replace(settings, threads=t), work, family, settings.n, layout=layout)
            for t in (2, 1)
        ]

    return variants


def dtypes(work: Work, family: str) -> Callable[[Settings], list[Variant]]:
    def variants(settings: Settings) -> list[Variant]:
        return [
            Variant(str(d).removeprefix("torch."), replace(settings, dtype=d), work, family, settings.n)
            for d in (torch.float64, torch.float32)
        ]

    return variants


def families(work: Work) -> Callable[[Settings], list[Variant]]:
    def variants(settings: Settings) -> list[Variant]:
        many = replace(settings, components=64)  # so many that what is done once an element does not count
        return [Variant(f, many, work, f, max(1, settings.n // 8)) for f in ("gaussian", "logistic")]

    return variants


def peak_memory(work: Work, family: str, layout: str, n: int, k: int) -> Case:
    def measure(settings: Settings) -> list[Row]:
        size = settings.capped(n)
        outputs, beyond = memory.measure(settings, work.name, family, layout, size, k)
        shape = " x ".join(f"{length:,}" for length in LAYOUTS[layout](size)[0])
        return [MemoryRow(f"{work.name}, {layout}, x {shape}, K = {k}", outputs / 2**20, beyond / 2**20)]

    return Case("Peak memory beyond the outputs", f"{work.name}, {family}, {layout}, {n}, {k}", measure)


# -- mixflow as real code calls it ---------------------------------------------------------------------------


def in_practice(group: str, pair: practice.Pair) -> Case:
    """Case: a layout against the contiguous one, or a step against the same with the plain formula."""

    def measure(settings: Settings) -> list[Row]:
        both = practice.contenders(pair, settings)
        return [rate_row(pair.name, both, race(both, settings), 0, 1, pair.target)]

    return Case(group, pair.name, measure)


# -- whole jobs ----------------------------------------------------------------------------------------------


def whole(group: str, job: jobs.Job, row: Callable[..., Row]) -> Case:
    """Case: a job against others; ``row`` makes a row of each pair, :func:`rate_row` or :func:`time_row`."""

    def measure(settings: Settings) -> list[Row]:
        elements, own, others = job.build(settings)
        calls = {MIXFLOW: own, **others}
        there = [alone(name, call, elements) for name, call in calls.items() if not isinstance(call, Absent)]
        seconds = race(there, settings)
        absent = [
            RateRow(job.name, _rate(seconds[:, 0]), name, target=job.targets[name], note=str(reason))
            for name, reason in others.items()
            if isinstance(reason, Absent)
        ]
        return [
            *(row(job.name, there, seconds, 0, i, job.targets[there[i].name]) for i in range(1, len(there))),
            *absent,
        ]

    return Case(group, job.name, measure, device="cpu")


# -- all of it -----------------------------------------------------------------------------------------------

LOG, COMPILED_LOG = "eager log-space", "compiled log-space"
LINEAR, COMPILED_LINEAR, SCIPY = "eager linear", "compiled linear", "scipy linear, 1 thread"
BISECTIONS, COMPILED_BISECTIONS = "40 eager bisections", "40 compiled bisections"
IMPLICIT = "implicit, 40 eager bisections"
LIMIT, READ = "bare loop, same arithmetic", "plain read, same bytes"
SPECIAL, COPY = "special functions alone", "copy, same bytes"
LIMITS = (LIMIT, READ, SPECIAL, COPY)

# by device: work, parameters, rivals with the ratio that is aimed at
Comparison = tuple[str, Work, str, dict[str, float | None]]
ON_CPU: list[Comparison] = [
    (
        "Forward",
        FORWARD,
        "shared",
        {LOG: 120, COMPILED_LOG: 40, LINEAR: None, COMPILED_LINEAR: 4, SCIPY: None, LIMIT: 0.65},
    ),
    ("Forward", FORWARD, "per element", {LOG: 60, LINEAR: None, READ: 0.7}),
    ("Forward and backward", FORWARD_BACKWARD, "shared", {LOG: 80, COMPILED_LOG: 30}),
    ("Forward and backward", FORWARD_BACKWARD, "per element", {LOG: 25}),
    ("Inverse", INVERSE, "shared", {BISECTIONS: 250, COMPILED_BISECTIONS: 40}),
    ("Inverse", INVERSE, "per element", {BISECTIONS: 300, COMPILED_BISECTIONS: 40}),
    ("Inverse and backward", INVERSE_BACKWARD, "shared", {IMPLICIT: 100}),
    ("Inverse and backward", INVERSE_BACKWARD, "per element", {IMPLICIT: 100}),
]
ON_CUDA: list[Comparison] = [
    ("Forward", FORWARD, "shared", {LOG: None, COMPILED_LOG: None, SPECIAL: 0.6}),
    ("Forward", FORWARD, "per element", {LOG: None, COMPILED_LOG: None, COPY: 0.8}),
    ("Inverse", INVERSE, "shared", {COMPILED_BISECTIONS: 25}),
    ("Inverse", INVERSE, "per element", {COMPILED_BISECTIONS: 25}),
    ("Forward and backward", FORWARD_BACKWARD, "shared", {LOG: None, COMPILED_LOG: 8}),
    ("Forward and backward", FORWARD_BACKWARD, "per element", {LOG: None, COMPILED_LOG: 2, COPY: 0.65}),
]
COMPARISONS = {"cpu": ON_CPU, "cuda": ON_CUDA}
SHAPES = [
    # parameters, N, K
    ("shared", 2**18, 8),
    ("shared", 2**24, 8),
    ("shared", 2**20, 128),
    ("per feature", 2**20, 32),
    ("per element", 2**18, 8),
    ("per element", 2**18, 64),
]
ALL_WORKS = (FORWARD, FORWARD_BACKWARD, INVERSE, INVERSE_BACKWARD)
FAMILIES = tuple(BASE_OF)

CASES = [
    *(whole("Jobs against their parts, one thread", job, time_row) for job in jobs.AGAINST_PARTS),
    *(whole("Jobs against others, one thread", job, rate_row) for job in jobs.AGAINST_OTHERS),
    *(in_practice("As real code calls it, one thread", pair) for pair in practice.LAYOUTS),
    *(in_practice("Against the formula it replaces, one thread", pair) for pair in practice.STEPS),
    *(
        against(group, w, f, layout, targets, device=device)
        for device, comparisons in COMPARISONS.items()
        for group, w, layout, targets in comparisons
        for f in FAMILIES
    ),
    *(
        against("One call of 64 elements", w, f, "shared", {LINEAR: target, LOG: None}, n=64)
        for w, target in ((FORWARD, 3.0), (FORWARD_BACKWARD, 4.0))
        for f in FAMILIES
    ),
    *(
        against(
            "zuko's GaussianizationTransform", w, "gaussian", "shared", {"zuko": target}, n=10**5, equal_weights=True
        )
        for w, target in ((FORWARD, None), (INVERSE, 40.0))
    ),
    *(
        among_itself(
            "Two threads against one",
            f"{w.name}, {f}, {layout}",
            threads(w, f, layout),
            first_against_second(1.8),
            device="cpu",
        )
        for w in (FORWARD, FORWARD_BACKWARD, INVERSE)
        for f in FAMILIES
        for layout in ("shared", "per element")
    ),
    *(
        among_itself("float64 against float32", f"{w.name}, {f}, shared", dtypes(w, f), first_against_second(0.4))
        for w in (FORWARD, FORWARD_BACKWARD, INVERSE)
        for f in FAMILIES
    ),
    *(
        among_itself(
            "A Gaussian component against a logistic one",
            f"{w.name}, K = 64",
            families(w),
            first_against_second(1 / 1.6),
        )
        for w in (FORWARD, FORWARD_BACKWARD)
    ),
    *(
        among_itself(
            "Throughput by N, one thread",
            f"{FORWARD.name}, {f}, shared",
            sizes(f),
            each_against_fastest(target),
            device=device,
        )
        for f in FAMILIES
        for device, target in (("cpu", 0.85), ("cuda", None))  # it takes many elements to fill a card
    ),
    *(
        among_itself("Cost by K", f"{FORWARD.name}, {f}, shared", components(f), each_against_line(0.85))
        for f in FAMILIES
    ),
    *(peak_memory(w, "gaussian", layout, n, k) for w in ALL_WORKS for layout, n, k in SHAPES),
]


def _memory(settings: Settings) -> int:
    """Bytes of memory of the device, half of which a benchmark may take."""
    if settings.device.type == "cuda":
        return torch.cuda.mem_get_info(settings.device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _rate(seconds: NDArray[np.float64]) -> float:
    return float(1e-6 / np.median(seconds))


def number(value: float | None) -> str:
    """Three digits, or all before the point."""
    if value is None:
        return "-"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _yes_or_no(reached: bool | None) -> str:
    return "-" if reached is None else "yes" if reached else "no"
