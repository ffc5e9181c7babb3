"""What a case, a baseline and a group are, and the rows that timing a case gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inputs import Settings
from .timing import Call, seconds_per_element

__all__ = ["RATES", "Baseline", "Case", "Columns", "Group", "Row", "Unavailable", "number", "timed", "yes_or_no"]

Row = dict[str, Any]  # as in the JSON file, which calls a baseline "contender"
Seconds = NDArray[np.float64]  # of an element, in each round
Columns = Mapping[str, Callable[[Row], str]]  # what a table shows of a row, by heading


class Unavailable(Exception):
    """A baseline cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Baseline:
    """What a case is compared with.

    Args:
        name: as the table shows it.
        target: the ratio that is aimed at; None for no target.
        call: what is timed; None where it cannot run.
        limit: in place of ``call``, the computed seconds of an element that no code undercuts.
        note: for the table: why it cannot run, or what the limit was computed from.

    """

    name: str
    target: float | None = None
    call: Call | None = None
    limit: float | None = None
    note: str = ""

    @classmethod
    def attempt(cls, name: str, target: float | None, make: Callable[[], Call]) -> Baseline:
        """The baseline that times ``make()``, or the reason if that is :class:`Unavailable`."""
        try:
            return cls(name, target, make())
        except Unavailable as reason:
            return cls(name, target, note=str(reason))


@dataclass(frozen=True)
class Case:
    """A named call on given inputs.

    Args:
        name: unique in its group. ``--only`` looks at both.
        measure: returns the rows. It checks all results before anything is timed.

    """

    name: str
    measure: Callable[[Settings], list[Row]]


@dataclass(frozen=True)
class Group:
    """The cases of one table.

    Args:
        name: above the table.
        cases: in the order of the rows.
        columns: what the table shows of a row, by heading.
        device: the type of device that the group is for; empty for any.
        pictured: whether the rows are drawn as well.

    """

    name: str
    cases: Sequence[Case]
    columns: Columns
    device: str = ""
    pictured: bool = False


def timed(name: str, prepare: Callable[[Settings], tuple[Call, list[Baseline]]], *, in_time: bool = False) -> Case:
    """The case that times a call of mixflow beside its baselines.

    Args:
        name: of the case.
        prepare: makes the inputs, checks the results, and returns mixflow's call and the baselines.
        in_time: whether rows compare seconds of a call, and a target is a ratio at most; by default they compare rates
            in million elements per second, and a target is a ratio at least.

    """

    def measure(settings: Settings) -> list[Row]:
        own, baselines = prepare(settings)
        calls = [own, *(b.call for b in baselines if b.call)]
        ours, *others = seconds_per_element(calls, settings).T
        rest = iter(others)
        rows = []
        for b in baselines:
            theirs = next(rest) if b.call else None if b.limit is None else np.full_like(ours, b.limit)
            rows.append(_row(name, b, own.elements, ours, theirs, in_time))
        return rows

    return Case(name, measure)


def _row(case: str, baseline: Baseline, elements: int, ours: Seconds, theirs: Seconds | None, in_time: bool) -> Row:
    """The row of one baseline, from seconds per element in each round; what could not run is None.

    The ratio is the median over the rounds: how many times as fast mixflow is, or as long it takes.
    """
    key, target = "seconds" if in_time else "rate", baseline.target

    def figure(seconds: Seconds) -> float:
        median = float(np.median(seconds))
        return median * elements if in_time else 1e-6 / median

    row: Row = {"case": case, key: figure(ours), "contender": baseline.name, f"contender_{key}": None}
    row |= {"ratio": None, "ratio_range": None, "target": target, "note": baseline.note, "reached": None}
    if theirs is None:
        return row
    ratios = ours / theirs if in_time else theirs / ours
    ratio, ratio_range = float(np.median(ratios)), (float(ratios.min()), float(ratios.max()))
    reached = None if target is None else ratio <= target if in_time else ratio >= target
    return row | {f"contender_{key}": figure(theirs), "ratio": ratio, "ratio_range": ratio_range, "reached": reached}


def number(value: float | None) -> str:
    """Three digits, or all before the point; "-" for None."""
    if value is None:
        return "-"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def yes_or_no(row: Row) -> str:
    """Whether the target of a row is reached; "-" where there is none."""
    return {None: "-", True: "yes", False: "no"}[row["reached"]]


RATES: Columns = {
    "case": lambda row: str(row["case"]),
    "mixflow M/s": lambda row: number(row["rate"]),
    "baseline": lambda row: str(row["contender"]),
    "baseline M/s": lambda row: number(row["contender_rate"]),
    "ratio": lambda row: number(row["ratio"]),
    "target": lambda row: "-" if row["target"] is None else f">= {row['target']:g}",
    "reached": yes_or_no,
}
