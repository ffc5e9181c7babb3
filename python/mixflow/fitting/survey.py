"""A survey of a table before the training: repeated values, large offsets, values far out, dependent columns.

All of these are hard for a density. ``fit`` writes notes on what it found and on what it does about it. If a training
ends early, ``fit`` names the likely cause. The survey covers the first rows, which fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..start.robust import bulk_in_order, in_order, moments

__all__ = ["Dependence", "Survey", "survey"]

_TIED = 0.05  # a larger part of a column that repeats other values is worth a note
_FAR = 1e4  # an offset of more spreads is worth a note
_OUTLIERS = 50.0  # a farthest value of more spreads is worth a note
_SHOWN = 3  # columns that a note names; more are counted


@dataclass(frozen=True)
class Dependence:
    """A column that others determine, ``sum(weight * other) + constant``, up to a ten-thousandth of its spread."""

    column: int
    others: list[tuple[float, int]]
    constant: float

    def describe(self, names: Sequence[str]) -> str:
        """The dependence as a formula in the columns' ``names``.

        Example:
            >>> from mixflow.fitting.survey import Dependence
            >>> Dependence(1, [(2.0, 0)], 1.0).describe(["x", "y"])
            'y = 2 x + 1'

        """
        text = ""
        for weight, other in self.others:
            size = "" if f"{abs(weight):.4g}" == "1" else f"{abs(weight):.4g} "
            text += _signed(weight, f"{size}{names[other]}", first=not text)
        if abs(self.constant) > 1e-9 and f"{self.constant:.4g}" != "0":
            text += _signed(self.constant, f"{abs(self.constant):.4g}", first=not text)
        return f"{names[self.column]} = {text or '0'}"


def _signed(value: float, text: str, first: bool) -> str:
    if first:
        return f"-{text}" if value < 0.0 else text
    return f" - {text}" if value < 0.0 else f" + {text}"


@dataclass(frozen=True)
class Survey:
    """The result of :func:`survey`. Lists have an entry for each column.

    Attributes:
        rows: the number of rows of the survey.
        distinct: the number of different values.
        step: the largest step such that all values are whole numbers of steps from the first; 0 if there is none.
        largest_share: the share of the most frequent value.
        most_frequent: that value.
        offset: the median over the spread of the bulk.
        outliers: the number of values outside the bulk.
        farthest: the distance of the farthest value from the median, in spreads of the bulk.
        dependences: columns that are functions of the columns before them.

    """

    rows: int
    distinct: list[int]
    step: list[float]
    largest_share: list[float]
    most_frequent: list[float]
    offset: list[float]
    outliers: list[int]
    farthest: list[float]
    dependences: list[Dependence]

    @property
    def resolution(self) -> list[float]:
        """The step that each column seems to be rounded to; 0 for a column that repeats few of its values."""
        return [step if self.is_tied(column) else 0.0 for column, step in enumerate(self.step)]

    def is_tied(self, column: int) -> bool:
        """Whether more than a twentieth of the values of ``column`` repeat others."""
        return self.rows - self.distinct[column] > _TIED * self.rows

    def notes(self, names: Sequence[str], dtype: torch.dtype, widths: Sequence[float]) -> list[str]:
        """Sentences on what was found.

        Args:
            names: the names of the columns.
            dtype: the dtype of the rows.
            widths: the resolution of each column, 0 for a column without one.

        """
        return [
            *self._on_ties(names, widths),
            *self._on_offsets(names, dtype),
            *self._on_outliers(names),
            *self._on_dependences(names),
        ]

    def suspects(self, names: Sequence[str]) -> str:
        """The likely cause if a training stopped being finite, in words; empty if nothing was found."""
        causes = []
        if tied := [column for column in range(len(names)) if self.is_tied(column)]:
            causes.append(f'repeated values in {_listed(tied, names)} (resolution="auto" is made for them)')
        if far := [column for column, distance in enumerate(self.farthest) if distance > 1e6]:
            causes.append(f"values far out in {_listed(far, names)}")
        if self.dependences:
            causes.append(f"dependent columns ({self.dependences[0].describe(names)})")
        return "; ".join(causes)

    def _on_ties(self, names: Sequence[str], widths: Sequence[float]) -> list[str]:
        notes = []
        rounded = [c for c in range(len(names)) if widths[c] > 0.0]
        if rounded:
            steps = ", ".join(f"{names[c]} {widths[c]:.6g}" for c in rounded[:_SHOWN]) + _more(rounded)
            notes.append(
                f"Rounding: values stand for intervals of these widths: {steps}. Each time fit learns from a value, it "
                "draws one from the interval. log_prob is the density of the values before rounding."
            )
        tied = [c for c in range(len(names)) if self.is_tied(c) and widths[c] == 0.0]
        if tied:
            first = tied[0]
            share = self.largest_share[first]
            step = f", in steps of {self.step[first]:.6g}" if self.step[first] > 0.0 else ""
            often = f" ({share:.0%} are {self.most_frequent[first]:.6g})" if share > 0.1 else ""
            cure = 'If they were rounded, resolution="auto" fits the density before rounding.'
            if not any(self.step[c] > 0.0 for c in tied):
                cure = "No step was found that they could have been rounded to."
            notes.append(
                f"Repeated values: {_listed(tied, names)}. {names[first]} has {self.distinct[first]:,} different "
                f"values in {self.rows:,} rows{step}{often}. Their density has no upper limit: a prior keeps it "
                f"finite, and log_prob says little there. {cure}"
            )
        return notes

    def _on_offsets(self, names: Sequence[str], dtype: torch.dtype) -> list[str]:
        far = [c for c, offset in enumerate(self.offset) if abs(offset) > _FAR]
        if not far:
            return []
        largest = max(far, key=lambda c: abs(self.offset[c]))
        kind = str(dtype).removeprefix("torch.")
        note = (
            f"Offsets: {_listed(far, names)}. Values of {names[largest]} are {abs(self.offset[largest]):.0e} times as "
            f"large as their spread. The flow subtracts the offset in {kind}."
        )
        if abs(self.offset[largest]) * torch.finfo(dtype).eps > 1e-4:
            note += f" But {kind} has rounded the values visibly: pass them as float64."
        return [note]

    def _on_outliers(self, names: Sequence[str]) -> list[str]:
        out = [c for c, distance in enumerate(self.farthest) if distance > _OUTLIERS]
        if not out:
            return []
        worst = max(out, key=lambda c: self.farthest[c])
        return [
            f"Values far out: {_listed(out, names)}. {self.outliers[worst]:,} of {self.rows:,} values of "
            f"{names[worst]} lie outside the bulk, up to {self.farthest[worst]:.2g} spreads from the median. The start "
            "is set from the bulk; training sees all rows. If they are errors or stand for missing values, drop them "
            "first."
        ]

    def _on_dependences(self, names: Sequence[str]) -> list[str]:
        if not self.dependences:
            return []
        formulas = "; ".join(d.describe(names) for d in self.dependences[:_SHOWN]) + _more(self.dependences)
        return [
            f"Dependent columns: {formulas}. The density of such rows has no upper limit; a floor keeps it finite. "
            "Leave the dependent columns out if log_prob is to be compared."
        ]


def _listed(columns: Sequence[int], names: Sequence[str]) -> str:
    return ", ".join(names[c] for c in columns[:_SHOWN]) + _more(columns)


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""


def survey(x: Tensor) -> Survey:
    """Survey the rows of ``x`` (N, D), finite numbers.

    Example:
        >>> import torch
        >>> from mixflow.fitting.survey import survey
        >>> x = torch.arange(100.0)
        >>> found = survey(torch.stack([x, 2 * x + 1, (x / 10).floor()], dim=1))
        >>> found.distinct, found.step, found.dependences[0].describe(["a", "b", "c"])
        ([100, 100, 10], [1.0, 2.0, 1.0], 'b = 2 a + 1')

    """
    x = x.double().cpu() + 0.0  # 0.0 and -0.0 are one value
    distinct, step, share, frequent = [], [], [], []
    ordered = in_order(x)
    for column in ordered.unbind(1):
        values, counts = column.unique_consecutive(return_counts=True)
        most = int(counts.argmax())
        distinct.append(len(values))
        step.append(_step(values) if len(values) < len(x) or len(x) <= 4096 else 0.0)
        share.append(int(counts[most]) / len(x))
        frequent.append(float(values[most]))
    low, high = bulk_in_order(ordered)
    median = ordered[(len(x) - 1) // 2]
    _, spread = moments(x, (low, high))
    size = torch.where(spread > 0.0, spread, 1.0)
    return Survey(
        rows=len(x),
        distinct=distinct,
        step=step,
        largest_share=share,
        most_frequent=frequent,
        offset=(median / size).tolist(),
        outliers=((x < low) | (x > high)).sum(0).tolist(),
        farthest=(torch.maximum(median - ordered[0], ordered[-1] - median) / size).tolist(),
        dependences=_dependences(x),
    )


def _step(values: Tensor) -> float:
    """The largest step such that the sorted ``values`` are whole numbers of steps from the first; 0 if there is none.

    The candidates are the smallest difference and the powers of ten just below it. A column of 2, 5 and 9 has the step
    1.
    """
    if len(values) < 2:
        return 0.0
    step = _step_in(values, torch.float64)
    # A file or the caller may have rounded the values to float32, in which 0.1 is another number than in float64.
    return step or (_step_in(values, torch.float32) if bool((values == values.float()).all()) else 0.0)


def _step_in(values: Tensor, dtype: torch.dtype) -> float:
    """As :func:`_step`, for ``values`` that were rounded to ``dtype``."""
    from_first = values - values[0]
    # Differences of decimal numbers, such as multiples of 0.1, have rounding errors of the size of the values.
    rounding = 8.0 * torch.finfo(dtype).eps * float(values.abs().max())
    differences = values.diff()
    smallest = float(differences[differences > rounding].min()) if bool((differences > rounding).any()) else 0.0
    if smallest == 0.0:
        return 0.0
    power = math.floor(math.log10(smallest * (1.0 + 1e-9)))
    written = [float(f"{smallest:.{digits}g}") for digits in (2, 3)] if dtype == torch.float32 else []
    for step in (*written, smallest, *(10.0 ** (power - down) for down in range(3))):
        # Any values fit so many steps, or steps so small.
        if float(from_first[-1]) / step > 1e9 or (dtype == torch.float32 and rounding > 0.05 * step):
            break
        exact = from_first / step
        if float((exact - exact.round()).abs().max()) * step <= rounding + 1e-6 * step:
            # Few digits, as people write them: 0.1, and not the inexact difference of two decimal numbers.
            return float(f"{step:.6g}")
    return 0.0


def _dependences(x: Tensor, most: int = 64) -> list[Dependence]:
    """The columns of ``x`` (N, D) that are a linear function of the columns before them."""
    if len(x) <= x.shape[1] or x.shape[1] > most:
        return []
    scale = (x - x[0]).abs().amax(0)
    z = (x - x[0]) / torch.where(scale > 0.0, scale, 1.0)
    mean = z.mean(0)
    z = z - mean
    products = z.mT @ z
    independent: list[int] = []
    found = []
    for column in range(x.shape[1]):
        target = z[:, column]
        if float(target.abs().max()) == 0.0:
            continue
        if _may_depend(products, column, independent):
            before = z[:, independent]
            weights = torch.linalg.lstsq(before, target.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
            rest = target - before @ weights
            if float(rest.std()) < 1e-4 * float(target.std()):
                found.append(_dependence(x, scale, column, independent, weights))
                continue
        independent.append(column)
    return found


def _may_depend(products: Tensor, column: int, independent: list[int]) -> bool:
    """Whether a linear function of the ``independent`` columns may come within a hundredth of ``column``'s spread.

    This is computed from the ``products`` (D, D) of centred columns. They are less exact than the columns themselves,
    but do not take a pass over the rows.
    """
    if not independent:
        return False
    inner, across = products[independent][:, independent], products[independent, column]
    explained = across @ torch.linalg.solve_ex(inner, across).result
    return not float(products[column, column] - explained) > 1e-4 * float(products[column, column])  # NaN may


def _dependence(x: Tensor, scale: Tensor, column: int, independent: list[int], weights: Tensor) -> Dependence:
    in_units = weights * scale[column] / scale[independent]
    matters = weights.abs() > 1e-3
    others = [(float(w), c) for w, c, keep in zip(in_units, independent, matters.tolist(), strict=True) if keep]
    constant = float((x[:, column] - sum(w * x[:, c] for w, c in others)).mean())
    size = float(x[:, column].abs().max())
    return Dependence(column, others, constant if abs(constant) > 1e-6 * size else 0.0)
