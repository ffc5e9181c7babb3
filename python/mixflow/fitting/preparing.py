"""What a training does before its first step: it looks at the rows, sets the weights and opens the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files.atomic import PathLike, check_writable
from ..flows import Flow, like, seeded
from ..precise import offsets_of, restore_offsets
from ..transforms import Dequantize
from .checkpoint import Contents, Run, read_file, weights
from .epochs import SCORING, Rounding
from .history import History
from .optimizer import optimizer_for
from .parallel import Group
from .parameters import Parameters, trained
from .reports import notes_before
from .sources import Subset
from .split import Split
from .survey import Survey, survey

__all__ = ["Prepared", "Start", "prepare", "undo_of"]

SURVEYED = 1 << 14  # rows that are surveyed for notes

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Prepared:
    """All that the steps need.

    Attributes:
        run: the flow, its optimizer, and the record.
        start: the rows that the training starts from.
        plain: the weights of plain densities of the data, by name, which compete with the trained flow.
        moved: the parameters of the flow that are trained.
        parameters: the same as an optimizer takes them.

    """

    run: Run
    start: Start
    plain: dict[str, Weights]
    moved: list[nn.Parameter]
    parameters: Parameters


def prepare(
    flow: Flow,
    split: Split,
    group: Group,
    settings: dict[str, Any],
    history: History,
    checkpoint: PathLike | None,
    resume: bool,
    at_the_end: ExitStack,
) -> Prepared:
    """Do all that comes before the first step; ``at_the_end`` gets what must be undone after the last one."""
    is_set = flow.fitted or settings["initialize"]
    start = Start(split, group, settings, flow)
    if settings["initialize"]:
        start.follow_rows()
    settings |= {"base": flow.base, "flow": " ".join(repr(flow).split()), "data": split.digest}
    group.require_same(settings)
    held = start.held(is_set)
    if not trained(flow, held):
        held = [False] * flow.features  # there is nothing else to train
    moved = trained(flow, held)
    parameters = Parameters(flow, moved, held)
    at_the_end.callback(parameters.release)
    optimizer = optimizer_for(parameters.all, settings["lr"], settings["weight_decay"])
    run = Run(flow, optimizer, history, weights(flow), weights(flow), settings)
    contents = group.share(lambda: _open_checkpoint(checkpoint, resume))
    if contents is not None and checkpoint is not None:
        run.check(checkpoint, contents)
    plain = start.set(run, contents)
    names = ", ".join(parameters.left_out)
    note = f"Mixtures with parameters of others ({names}): trained without a prior on their scales."
    if names and note not in run.history.notes:
        run.history.notes.append(note)
    return Prepared(run, start, plain, moved, parameters)


def undo_of(flow: Flow) -> Callable[[], None]:
    """A function that gives ``flow`` back the weights, sizes and place that it has now."""
    values, sizes, recipe, fitted = weights(flow), flow.sizes(), flow.recipe, flow.fitted
    device, offsets = like(flow).device, offsets_of(flow)

    def undo() -> None:
        flow.to(device)
        flow.resize(sizes)
        flow.load_state_dict(values)
        restore_offsets(offsets)
        flow.recipe, flow.fitted = recipe, fitted

    return undo


def _open_checkpoint(checkpoint: PathLike | None, resume: bool) -> Contents | None:
    if checkpoint is None:
        return None
    check_writable(checkpoint)
    return read_file(checkpoint) if resume and Path(checkpoint).exists() else None


class Start:
    """The rows that the weights are set from, and what a survey found in them."""

    def __init__(self, split: Split, group: Group, settings: dict[str, Any], flow: Flow) -> None:
        self.split, self.group, self.settings, self.flow = split, group, settings, flow
        self.names = flow.notes.get("columns") or [f"x{number}" for number in range(1, flow.features + 1)]
        rows, self.x, self.context = split.first(group)
        self.seen: Survey = group.share(lambda: survey(rows[:SURVEYED]))
        widths = settings["resolution"]
        if widths == "auto":
            widths = self.seen.resolution
        if settings["initialize"] and len(flow.event_shape) == 1:  # a pixel may well be black in all images
            _check_columns_vary(self.x, flow, widths)
        self.rounding = None
        if widths is not None and any(widths):
            self.rounding = Rounding(torch.tensor(widths, dtype=torch.float64), settings["seed"] % 2**32)

    def held(self, is_set: bool) -> list[bool]:
        """The columns whose marginal mixtures stay as they were set: those that repeat their values."""
        ties = is_set and not _adds_noise(self.flow)
        return [ties and width == 0.0 and self.seen.is_tied(column) for column, width in enumerate(self._widths())]

    def follow_rows(self) -> None:
        """Let the sizes that the recipe left open follow the rows."""
        rows = len(self.split.train) if isinstance(self.split.train, Subset) else len(self.x)
        with seeded(self.settings["seed"] % 2**32, self.x.device):
            counts = self.group.share(lambda: self.flow.supported_counts(self.inside()[0], rows))
        if counts is not None:
            self.flow.use_counts(counts)

    def inside(self) -> tuple[Tensor, Tensor | None]:
        """The events inside the flow's support, rounded ones drawn from their intervals, and their context."""
        x, context, shaped = self.x, self.context, self.flow.shaped
        inside = self.flow.supports(shaped(x))
        if not inside.all():
            x, context = x[inside], None if context is None else context[inside]
        if self.rounding is not None:
            drawn = self.rounding(x, slice(None), len(x), SCORING, 0)
            x = torch.where(self.flow.supports(shaped(drawn)).unsqueeze(-1), drawn, x.double())
        return shaped(x), context

    def set(self, run: Run, contents: Contents | None) -> dict[str, Weights]:
        """Set the run's weights, and return those of plain densities to compare with by name."""
        if contents is not None:
            run.restore(contents)
            return {}
        plain: dict[str, Weights] = {}
        flow = run.flow
        if self.settings["initialize"]:
            plain, started = self.group.share(lambda: self._initialized(flow))
            flow.load_state_dict(started)
        run.start, run.best = weights(flow), weights(flow)
        run.history.notes = self.group.share(lambda: self._notes(flow))
        return plain

    def _initialized(self, flow: Flow) -> tuple[dict[str, Weights], Weights]:
        flow.eval()  # as for the rows that are scored
        with seeded(self.settings["seed"] % 2**32, self.x.device):
            return flow.starts(*self.inside()), weights(flow)

    def _widths(self) -> list[float]:
        """The resolution of each column, 0 for a column without one."""
        widths: list[float] = [0.0] * self.flow.features if self.rounding is None else self.rounding.widths.tolist()
        return widths

    def _notes(self, flow: Flow) -> list[str]:
        is_set = self.settings["initialize"]
        return notes_before(flow, self.split, self.seen, self.names, self.x.dtype, self._widths(), is_set)


def _adds_noise(flow: Flow) -> bool:
    """Whether the flow adds noise to its data: integers that repeat then become numbers that differ."""
    return any(isinstance(module, Dequantize) for module in flow.modules())


def _check_columns_vary(x: Tensor, flow: Flow, widths: Sequence[float] | None) -> None:
    # A spread of a few rounding steps has no shape to learn, and a spread of zero has no logarithm.
    resolution = 16.0 * torch.finfo(x.dtype).eps * x.abs().amax(dim=0)
    constant = x.amax(dim=0) - x.amin(dim=0) <= resolution
    if widths is not None:  # a value that stands for an interval varies
        constant = constant & (torch.tensor(widths, device=x.device) <= resolution)
    constant = constant.nonzero()
    if len(constant):
        column = int(constant[0])
        names = flow.notes.get("columns")
        named = repr(names[column]) if names else f"{column} (counted from 0)"
        raise ValueError(
            f"data: expected columns that vary, got the constant {x[0, column].item():g} in column {named} "
            f"as far as {x.dtype} can tell, in {len(x)} rows"
        )
