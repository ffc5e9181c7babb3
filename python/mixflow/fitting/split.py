"""The rows of a run: the rows to learn from, and the held-out rows that judge the flow."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..checks import check_integer
from ..flows import Flow
from .parallel import Group
from .sources import CHUNK, Data, Loader, Rows, Subset, check_weights, is_loader

__all__ = ["Split", "open_split"]

HELD_OUT = 0.1  # the part of the rows that is held out by default
# Fewer held-out rows cannot judge a start. The start is then set from them as well.
FEW_HELD_OUT = 10

Given = tuple[Rows, "Rows | None", "Rows | None"]


@dataclass(frozen=True)
class Split:
    """The rows of a run.

    Attributes:
        train: the rows to learn from.
        valid: the rows to score after each epoch; None for none.
        start: the rows that a start is set from.
        digest: a text that identifies all rows and how they are split.
        at_ends: the number of rows at the ends of the flow's support, where the density is zero.

    """

    train: Subset | Loader
    valid: Subset | Loader | None
    start: Subset | Loader
    digest: str
    at_ends: int

    def first(self, group: Group) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows for the survey, rows to set a start from, and the context of the latter.

        Rows to set a start from are repeated in proportion to their weights.
        """
        x, context, weight = self.start.first(CHUNK, group)
        if weight is None:
            return x, x, context
        chosen = _copies(weight)
        return x, x[chosen], None if context is None else context[chosen]


def _copies(weight: Tensor) -> Tensor:
    """Row numbers, repeated by their weights (n,): exactly for whole numbers, otherwise in proportion, n in all."""
    whole = bool((weight == weight.round()).all()) and float(weight.sum()) <= CHUNK
    if whole:
        return torch.arange(len(weight), device=weight.device).repeat_interleave(weight.long())
    reached = weight.cumsum(0) / weight.sum()
    marks = (torch.arange(len(weight), device=weight.device, dtype=weight.dtype) + 0.5) / len(weight)
    return torch.searchsorted(reached, marks).clamp_max(len(weight) - 1)


def open_split(
    flow: Flow,
    data: Data,
    context: Data | None,
    weights: Data | None,
    validation: Any,
    seed: int,
    own: Tensor,
    steps_per_epoch: int | None,
) -> Split:
    """Open ``data`` and ``validation``. Arguments and errors are those of :func:`mixflow.fit`."""
    seed %= 2**64
    given = _open("data", flow, data, context, weights, own, steps_per_epoch)
    if steps_per_epoch is not None and not isinstance(given, Loader):
        raise ValueError(f"steps_per_epoch: expected None, as data are rows, got {steps_per_epoch}")
    at_ends = 0 if isinstance(given, Loader) else _check_support(flow, given[0])
    if not isinstance(validation, (numbers.Real, type(None))):
        return _with_validation(flow, given, validation, seed, own, at_ends)
    if isinstance(given, Loader):
        if validation:
            raise ValueError(f"validation: expected 0 or held-out data, as data are batches, got {validation!r}")
        return Split(given, None, given, _digest(given), at_ends)
    fraction = HELD_OUT if validation is None else float(validation)
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"validation: expected a fraction in [0, 1), got {validation!r}")
    rows = len(given[0])
    held_out = math.ceil(fraction * rows)
    train = Subset(*given, held_out, _at_least_two(rows, held_out), seed)
    start = train if held_out >= FEW_HELD_OUT else Subset(*given, 0, rows, seed)
    held = Subset(*given, 0, held_out, seed) if held_out else None
    return Split(train, held, start, f"{_digest(given)}, {held_out} held out", at_ends)


def _with_validation(flow: Flow, given: Loader | Given, validation: Any, seed: int, own: Tensor, at_ends: int) -> Split:
    """The split of ``given`` rows and of held-out data that the caller brings."""
    parts = validation if isinstance(validation, tuple) else (validation,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            f"validation: expected data, (data, context) or (data, context, weights), got {len(parts)} parts"
        )
    held, held_context, held_weights = (*parts, None, None)[:3]
    if flow.context and held_context is None and not is_loader(held):
        raise ValueError("validation: expected a pair (data, context), as the flow takes a context, got data alone")
    scored = _open("validation", flow, held, held_context, held_weights, own, None)
    valid = scored if isinstance(scored, Loader) else Subset(*scored, 0, len(scored[0]), None)
    train = given if isinstance(given, Loader) else Subset(*given, 0, _at_least_two(len(given[0]), 0), seed)
    return Split(train, valid, train, f"{_digest(given)}, validated on {_digest(scored)}", at_ends)


def _open(
    name: str,
    flow: Flow,
    data: Data,
    context: Data | None,
    weights: Data | None,
    own: Tensor,
    steps_per_epoch: int | None,
) -> Loader | Given:
    if is_loader(data):
        for what, value in (("context", context), ("weights", weights)):
            if value is not None:
                raise ValueError(f"{what}: expected None, as {name} are batches, which bring their own, got some")
        steps = None if steps_per_epoch is None else check_integer("steps_per_epoch", steps_per_epoch, 1)
        wanted = flow.context_shape if flow.context else 0
        return Loader(name, cast("Iterable[Any]", data), flow.event_shape, wanted, own, steps)
    if not flow.context and context is not None:
        raise ValueError("context: expected None, as this flow takes no context, got one")
    x = Rows(name, data, flow.event_shape, own, flow.notes.get("columns"))
    weight = None
    if weights is not None:
        here = torch.empty(0, device="cpu")  # sums of weights are then there without waiting for a GPU
        weight = check_weights(_as_many("weights", Rows("weights", weights, 1, here), name, x))
    if not flow.context:
        return x, None, weight
    if context is None:
        raise ValueError(f"context: expected shape ({len(x)}, {flow.context}), got None")
    return x, _as_many("context", Rows("context", context, flow.context_shape, own), name, x), weight


def _as_many(what: str, rows: Rows, name: str, x: Rows) -> Rows:
    if len(rows) != len(x):
        raise ValueError(f"{what}: expected {len(x)} rows, as many as {name}, got {len(rows)}")
    return rows


def _check_support(flow: Flow, x: Rows) -> int:
    """The number of rows of ``x`` at the ends of the flow's support; ValueError for a row beyond them."""
    transform = flow.data_to_base
    if not transform.is_limited:
        return 0
    at_ends, seen = 0, 0
    for rows in x.chunks():
        chunk = flow.shaped(rows)
        outside = transform.outside(chunk)
        assert outside is not None
        # If a number lies beyond an end, the next number towards the inside is outside, too. At an end, it is inside.
        nearer = torch.nextafter(chunk, transform.inside(chunk).to(chunk.dtype).expand_as(chunk))
        beyond = outside & cast("Tensor", transform.outside(nearer))
        if beyond.any():
            row, column = beyond.flatten(1).nonzero()[0].tolist()
            names = flow.notes.get("columns")
            named = repr(names[column]) if names else f"{column} (counted from 0)"
            raise ValueError(
                f"{x.name}: expected numbers inside the support of the flow, got {rows[row, column].item():g} in row "
                f"{seen + row}, column {named}"
            )
        at_ends += int(outside.flatten(1).any(-1).sum())
        seen += len(chunk)
    if at_ends == seen:
        raise ValueError(f"{x.name}: expected rows inside the support of the flow, got all of them at its ends")
    return at_ends


def _digest(given: Loader | Given) -> str:
    if isinstance(given, Loader):
        return "batches"
    x, context, weight = given
    named = [x.digest] + [
        f"with {name} {rows.digest}" for name, rows in (("context", context), ("weights", weight)) if rows
    ]
    return " ".join(named)


def _at_least_two(rows: int, held_out: int) -> int:
    if rows - held_out < 2:
        raise ValueError(f"data: expected at least 2 rows to learn from beside {held_out} held out, got {rows} in all")
    return rows
