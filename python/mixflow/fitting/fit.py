"""Fitting flows by maximum likelihood."""

from __future__ import annotations

import math
import numbers
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..checks import check_integer, check_seed
from ..files.atomic import PathLike, check_writable
from ..flows import Flow, like, seeded
from ..precise import offsets_of, restore_offsets
from ..transforms import Dequantize, MixtureCDF
from .checkpoint import Contents, Run, read_file
from .checkpoint import weights as _weights
from .epochs import SCORING, Diverged, Rounding, Training, stage
from .history import History
from .parallel import Group
from .schedule import schedule_of
from .sources import Data, Loader, Subset
from .split import Split, open_split
from .steps import Parameters, optimizer_for, own_stream, trained, trained_alone
from .survey import Survey, survey
from .threads import one_thread

__all__ = ["History", "fit"]

SURVEYED = 1 << 14  # rows that are looked at for notes
FEW_ROWS = 500  # up to which starts are chosen by rows left out


def fit(
    flow: Flow,
    data: Data,
    *,
    context: Tensor | ArrayLike | PathLike | None = None,
    weights: Tensor | ArrayLike | PathLike | None = None,
    validation: float | Data | tuple[Data, ...] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    max_grad_norm: float = 1.0,
    patience: int | None = None,
    seed: int = 0,
    device: torch.device | str | int | None = None,
    progress: bool = True,
    checkpoint: PathLike | None = None,
    resume: bool = False,
    initialize: bool | None = None,
    resolution: str | float | Sequence[float] | None = None,
    steps_per_epoch: int | None = None,
) -> History:
    """Fit ``flow`` to ``data`` by maximum likelihood and leave it with the best weights seen.

    A flow that was never fitted first gets its parameters from up to 65,536 of the training rows: a plain density that
    predicts rows left out. Then AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) minimises the mean negative
    log_prob of minibatches, with gradients clipped in norm and a learning rate that rises over the first twentieth of
    the steps, then falls to zero along a half cosine (Loshchilov and Hutter, 2017, arXiv:1608.03983). After each epoch
    the held-out rows are scored. The best weights are kept; the start and one Gaussian compete with all epochs, and of
    few held-out rows an epoch must convince by more than chance. Settings that are left open follow the flow and the
    number of rows.

    ``fit`` looks at the data first. What it saw (repeated values, offsets, values far out, dependent columns) and what
    it did about it is in ``history.notes``, which ``print(history)`` shows.

    In processes that ``torchrun`` started, or where the caller has initialised ``torch.distributed``, each minibatch is
    shared out over the processes and the result is that of one process, up to the rounding of sums. Every process
    calls ``fit`` with the same arguments; the first writes the checkpoint and shows the progress bar. Ctrl-C in any of
    them ends the training in all.

    Args:
        flow: the flow to fit, in place. Parameters that require no gradient stay as they are.
        data: (N, D), or (N,) for one feature, or (N, C, H, W) for a flow of images; any real numbers. They keep their
            own precision until the flow has subtracted its offset from them. Tensors and arrays are held in memory; a
            memory map (``np.load(..., mmap_mode="r")``) and the path of a .npy file are read batch by batch, and so are
            the other tables, from a temporary copy on disk. Or batches: a ``torch.utils.data.DataLoader`` or another
            iterable that yields ``x``, ``(x, context)``, ``(x, context, weight)`` or a dict of these names, anew for
            each epoch; with several processes, each gives its own shard.
        context: (N, C), for a flow that takes a context, or (N, ...) as its embedding takes it; not with batches, which
            bring their own.
        weights: (N,), of the rows, at least 0: a row of weight 2 counts as two rows. Not with batches.
        validation: fraction of the rows held out, chosen at random, by default a tenth; or the held-out data
            themselves, of any of the kinds above, as ``(data, context)`` where the flow takes a context and as
            ``(data, context, weights)`` where they are weighted. With 0, as for batches by default, the training curve
            itself is watched.
        epochs: passes over the training rows at most.
        batch_size: rows per step, in all processes together.
        lr: the highest learning rate.
        weight_decay: the decoupled weight decay of AdamW; by default 0 without networks, and 0.03 with them, less for
            more than 10,000 rows.
        max_grad_norm: the norm that gradients are clipped to; ``inf`` for none.
        patience: epochs without improvement to wait for; by default all of them, since the last epochs, at low rates,
            are often the best.
        seed: of the split and the minibatches, and of what the flow's own modules draw from torch's generators, such as
            dropout. The global generators are as they were afterwards.
        device: where to train; the flow is moved there and stays. By default, where the flow is. With several
            processes, "cuda" is each process's own.
        progress: show a progress bar on stderr.
        checkpoint: a file that holds, after each epoch, all that is needed to go on: a run killed at any
            moment and resumed ends with the same weights, bit for bit, as one left alone (with a loader: if it yields
            the same batches in the same epoch).
        resume: go on from ``checkpoint`` if the file exists. Data and settings must be those it was written
            with.
        initialize: whether the parameters are set from the data first (True) or the training goes on from the flow's
            weights (False); by default, they are set if the flow was neither fitted nor loaded before. A new flow that
            is not set from the data learns from rows that are not standardised.
        resolution: the step that values were rounded to, a number or one for each feature, 0 where there is none;
            "auto" takes the step that repeated values of a column show. Each value then stands for an interval of
            that width around it, from which it is drawn anew each time. ``log_prob`` stays a density, in the units of
            the data: that of the values before rounding.
        steps_per_epoch: batches in an epoch, for loaders without an end.

    Returns:
        The :class:`History`. The flow is then in evaluation mode, ``flow.eval()``, in which dropout does nothing. After
        Ctrl-C the history is returned early, with ``interrupted`` set, the best weights in place, or those of the
        steps so far in the first epoch.

    Raises:
        ValueError: data that no flow can be fitted to (empty, too few rows, the wrong number of columns, a
            value that is not finite or outside the flow's support, a constant column), a setting out of range, a device
            that cannot be used, a flow without trainable parameters, or a checkpoint of another run. The flow is then
            as it was before.
        OSError: the checkpoint cannot be written; the flow is as it was before if it could not from the start.
        TypeError: data that are not real numbers.

    Warns:
        RuntimeWarning: the loss or its gradient stopped being finite. The training ends there; the best weights are in
            place, and the warning names the likely cause.

    Example:
        >>> import mixflow, torch
        >>> flow = mixflow.flows.univariate(components=2)
        >>> data = torch.randn(200, generator=torch.Generator().manual_seed(0))
        >>> history = mixflow.fit(flow, data, epochs=5, progress=False)
        >>> len(history.train_log_prob)
        5

    """
    own = torch.empty(0, dtype=like(flow).dtype, device=_check_device(device, flow))
    if resume and checkpoint is None:
        raise ValueError("resume: expected a checkpoint to go on from, got checkpoint=None")
    _check_trainable(flow)
    settings = _check_settings(epochs, batch_size, lr, weight_decay, max_grad_norm, patience, seed)
    group = Group.join(own.device)
    with seeded(settings["seed"] % 2**32, own.device):  # a support behind noise is looked at through it
        split = open_split(flow, data, context, weights, validation, settings["seed"], own, steps_per_epoch)
    settings |= _open_settings(flow, split, settings)
    set_from_data = not flow.fitted if initialize is None else bool(initialize)
    settings |= {"initialize": set_from_data, "resolution": _check_resolution(resolution, flow.features)}

    undo, history = _undo(flow), History()
    flow.to(own.device)
    with ExitStack() as at_the_end:
        try:
            with one_thread():
                prepared = _prepare(flow, split, group, settings, history, checkpoint, resume, at_the_end)
        except KeyboardInterrupt:
            undo()
            history.interrupt()
            return history
        except BaseException:
            undo()
            raise
        with trained_alone(flow, prepared.moved), own_stream(own.device):
            _train(prepared, group, split, checkpoint, progress)
    return prepared.run.history


@dataclass(frozen=True)
class _Prepared:
    """All that the steps need: the run, the rows it starts from, plain densities to compare with, what is moved."""

    run: Run
    start: _Start
    plain: dict[str, dict[str, Tensor]]
    moved: list[nn.Parameter]
    parameters: Parameters


def _prepare(
    flow: Flow,
    split: Split,
    group: Group,
    settings: dict[str, Any],
    history: History,
    checkpoint: PathLike | None,
    resume: bool,
    at_the_end: ExitStack,
) -> _Prepared:
    """What is done before the first step."""
    is_set = flow.fitted or settings["initialize"]
    start = _Start(split, group, settings, flow)
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
    run = Run(flow, optimizer, history, _weights(flow), _weights(flow), settings)
    contents = group.share(lambda: _open_checkpoint(checkpoint, resume))
    if contents is not None and checkpoint is not None:
        run.check(checkpoint, contents)
    plain = start.set(run, contents)
    names = ", ".join(parameters.left_out)
    note = f"Mixtures with parameters of others ({names}): trained without a prior on their scales."
    if names and note not in run.history.notes:
        run.history.notes.append(note)
    return _Prepared(run, start, plain, moved, parameters)


# -- the parts of a run --------------------------------------------------------------------------------------


class _Start:
    """What is known before the first step: the rows that a start is set from, and what was seen in them."""

    def __init__(self, split: Split, group: Group, settings: dict[str, Any], flow: Flow) -> None:
        self.split, self.group, self.settings, self.flow = split, group, settings, flow
        self.names = flow.notes.get("columns") or [f"x{number}" for number in range(1, flow.features + 1)]
        rows, self.x, self.context = split.first(group)
        self.seen: Survey = group.share(lambda: survey(rows[:SURVEYED]))
        widths = settings["resolution"]
        if widths == "auto":
            widths = self.seen.resolution
        if settings["initialize"] and len(flow.event_shape) == 1:  # pixels may well be black in all images
            _check_columns_vary(self.x, flow, widths)
        self.rounding = None
        if widths is not None and any(widths):
            self.rounding = Rounding(torch.tensor(widths, dtype=torch.float64), settings["seed"] % 2**32)

    def held(self, is_set: bool) -> list[bool]:
        """The columns whose marginal mixtures stay as they were set: those that repeat their values."""
        widths = [0.0] * self.flow.features if self.rounding is None else self.rounding.widths.tolist()
        ties = is_set and not _adds_noise(self.flow)
        return [ties and width == 0.0 and self.seen.is_tied(column) for column, width in enumerate(widths)]

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

    def set(self, run: Run, contents: Contents | None) -> dict[str, dict[str, Tensor]]:
        """Set the run's weights, and return those of plain densities to compare with by name."""
        if contents is not None:
            run.restore(contents)
            return {}
        plain: dict[str, dict[str, Tensor]] = {}
        flow = run.flow
        if self.settings["initialize"]:
            plain, started = self.group.share(lambda: self._initialized(flow))
            flow.load_state_dict(started)
        run.start, run.best = _weights(flow), _weights(flow)
        run.history.notes = self.group.share(lambda: self._notes(flow))
        return plain

    def _initialized(self, flow: Flow) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        flow.eval()  # as the rows that are scored
        with seeded(self.settings["seed"] % 2**32, self.x.device):
            return flow.starts(*self.inside()), _weights(flow)

    def _notes(self, flow: Flow) -> list[str]:
        train, columns = self.split.train, ", ".join(self.names[:6]) + (", ..." if len(self.names) > 6 else "")
        rows = f"{len(train):,} rows to learn from" if isinstance(train, Subset) else "batches"
        held_out = f", {len(self.split.valid):,} held out" if isinstance(self.split.valid, Subset) else ""
        widths = [0.0] * flow.features if self.rounding is None else self.rounding.widths.tolist()
        if len(flow.event_shape) > 1:  # that pixels repeat values or others depend on them is no news
            notes = [f"Data: {rows}{held_out}, each of shape ({', '.join(map(str, flow.event_shape))})."]
        else:
            notes = [f"Data: {rows}{held_out}; {flow.features} column{'s' if flow.features > 1 else ''} ({columns})."]
            notes += self.seen.notes(self.names, self.x.dtype, widths)
        if isinstance(train, Subset) and train.x.notes:
            notes.insert(1, f"File: {'; '.join(train.x.notes)}.")
        if self.split.at_ends:
            notes.append(
                f"Ends of the support: {self.split.at_ends:,} rows have a value there, where a density is zero. They "
                "are left out of the likelihood."
            )
        if not self.settings["initialize"]:
            notes.append("Start: the flow's own weights. initialize=True sets them from the data.")
        elif self.seen.rows <= FEW_ROWS:
            notes.append(_on_components(flow, self.names, self.seen.rows))
        return notes


def _train(prepared: _Prepared, group: Group, split: Split, checkpoint: PathLike | None, progress: bool) -> None:
    """Take the steps; whatever ends them, the best weights are in place then."""
    run, start = prepared.run, prepared.start
    flow, settings = run.flow, run.settings
    limited = flow.data_to_base.is_limited
    try:
        with group.hold_interrupts(), _progress_bar(run, split.train, progress and group.rank == 0) as bar:
            training = Training(run, group, split.train, split.valid, bar, start.rounding, limited, prepared.parameters)
            try:
                training.begin(prepared.plain)
                while len(run.history.lr) < settings["epochs"] and not _out_of_patience(
                    run.history, settings["patience"]
                ):
                    training.epoch()
                    if checkpoint is not None:
                        group.share(lambda: run.write(checkpoint))
            except KeyboardInterrupt:
                run.history.interrupt()
                with suppress(KeyboardInterrupt, Diverged):
                    training.keep_what_was_learned()
            except Diverged as reason:
                run.history.end(_report_divergence(run.history, reason, start.seen.suspects(start.names)))
    finally:
        flow.zero_grad()
        flow.load_state_dict(run.best)
        flow.eval()
        if start.rounding is not None:
            flow.notes["resolution"] = start.rounding.widths.tolist()


def _report_divergence(history: History, reason: Diverged, suspects: str) -> str:
    """Warn that the training ended early, with the likely cause; the same text as a note."""
    best = history.best_epoch
    if best is not None:
        kept = f"the best weights, of epoch {best + 1}, are kept"
    else:
        kept = f"the weights of {history.kept or 'the start'} are kept"
    cause = f"Likely cause: {suspects}" if suspects else "A smaller lr or float64 may help"
    message = f"{reason}: the training ends here, {kept}. {cause}."
    warnings.warn(message, RuntimeWarning, stacklevel=4)
    return message


def _on_components(flow: Flow, names: Sequence[str], rows: int) -> str:
    """A note on how many components the marginal mixtures of ``flow`` use."""
    marginals = next((module for module in flow.modules() if isinstance(module, MixtureCDF)), None)
    if marginals is None or marginals.used is None or len(marginals.used) != len(names):
        return f"Few rows ({rows:,}): rows left out chose the start and its number of components."
    shown = ", ".join(f"{name} {count}" for name, count in list(zip(names, marginals.used.tolist(), strict=True))[:6])
    more = ", ..." if len(names) > 6 else ""
    return (
        f"Few rows ({rows:,}): rows left out chose the start. Of {marginals.components} components a column, so many "
        f"differ: {shown}{more}."
    )


def _undo(flow: Flow) -> Callable[[], None]:
    """A function that gives ``flow`` back what it was."""
    values, sizes, recipe, fitted = _weights(flow), flow.sizes(), flow.recipe, flow.fitted
    device, offsets = like(flow).device, offsets_of(flow)

    def undo() -> None:
        flow.to(device)
        flow.resize(sizes)
        flow.load_state_dict(values)
        restore_offsets(offsets)
        flow.recipe, flow.fitted = recipe, fitted

    return undo


def _progress_bar(run: Run, train: Subset | Loader, shown: bool) -> tqdm[NoReturn]:
    rows, done = len(train) if isinstance(train, Subset) else None, len(run.history.lr)
    return tqdm(
        desc=stage(run),
        total=None if rows is None else rows * run.settings["epochs"],
        initial=0 if rows is None else rows * done,
        unit="rows",
        unit_scale=True,
        disable=not shown,
    )


def _open_checkpoint(checkpoint: PathLike | None, resume: bool) -> Contents | None:
    if checkpoint is None:
        return None
    check_writable(checkpoint)
    return read_file(checkpoint) if resume and Path(checkpoint).exists() else None


def _out_of_patience(history: History, patience: int) -> bool:
    best = history.highest_epoch
    return best is not None and len(history.lr) - 1 - best >= patience


# -- checks --------------------------------------------------------------------------------------------------


def _check_settings(
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    weight_decay: float | None,
    max_grad_norm: float,
    patience: int | None,
    seed: int,
) -> dict[str, Any]:
    """The settings as plain values that JSON holds, None where they are left open."""

    def integer(name: str, value: int | None) -> int | None:
        return None if value is None else check_integer(name, value, 1)

    return {
        "epochs": integer("epochs", epochs),
        "batch_size": integer("batch_size", batch_size),
        "lr": None if lr is None else _check_positive("lr", lr),
        "weight_decay": weight_decay if weight_decay in (None, 0) else _check_positive("weight_decay", weight_decay),
        "max_grad_norm": math.inf if max_grad_norm == math.inf else _check_positive("max_grad_norm", max_grad_norm),
        "patience": integer("patience", patience),
        "seed": check_seed(seed),
    }


def _open_settings(flow: Flow, split: Split, given: dict[str, Any]) -> dict[str, Any]:
    """The settings that were left open, by the flow and its rows."""
    schedule, train = schedule_of(flow), split.train
    decay = schedule.weight_decay
    if isinstance(train, Subset):
        rows = len(train)
        size = given["batch_size"] or schedule.batch_size_for(rows)
        epochs = given["epochs"] or schedule.epochs_for(rows, train.steps(size))
        decay = schedule.weight_decay_for(rows)
    elif given["batch_size"] is not None:
        raise ValueError(f"batch_size: expected None, as data are batches; got {given['batch_size']!r}")
    else:
        size, steps = None, train.steps(0)
        epochs = given["epochs"] or max(1, math.ceil(schedule.steps / (steps or 100)))
    return {
        "lr": given["lr"] or schedule.lr,
        "weight_decay": decay if given["weight_decay"] is None else given["weight_decay"],
        "batch_size": size,
        "epochs": epochs,
        "patience": given["patience"] or epochs,
    }


def _check_resolution(resolution: Any, features: int) -> str | list[float] | None:
    if resolution is None:
        return None
    if isinstance(resolution, str) and resolution == "auto":
        return "auto"
    try:
        widths = np.asarray(resolution, dtype=np.float64)
    except (TypeError, ValueError):
        widths = np.asarray(math.nan)
    if widths.shape not in ((), (features,)) or not (np.isfinite(widths) & (widths >= 0.0)).all():
        expected = "a number" if features == 1 else f"a number or {features} numbers"
        raise ValueError(f'resolution: expected None, "auto", or {expected} of at least 0; got {resolution!r}')
    return [float(width) for width in np.broadcast_to(widths, (features,))]


def _check_positive(name: str, value: float) -> float:
    if not (isinstance(value, numbers.Real) and 0.0 < value < math.inf):
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
    return float(value)


def _check_trainable(flow: Flow) -> None:
    kinds = {(parameter.dtype, parameter.device) for parameter in flow.parameters() if parameter.requires_grad}
    if not kinds:
        raise ValueError("flow: expected one with trainable parameters, got none that requires a gradient")
    if len(kinds) > 1:
        named = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(f"flow: expected parameters of one dtype on one device, got {named}")


def _check_device(device: torch.device | str | int | None, flow: Flow) -> torch.device:
    if device is None:
        return like(flow).device
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: expected one that torch can use here, got {str(device)!r} ({reason})") from error
    return chosen


def _adds_noise(flow: Flow) -> bool:
    """Whether the flow makes numbers that differ of integers that repeat."""
    return any(isinstance(module, Dequantize) for module in flow.modules())


def _check_columns_vary(x: Tensor, flow: Flow, widths: Sequence[float] | None) -> None:
    # A spread of a few rounding steps carries no shape to learn, and a spread of zero has no logarithm.
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
