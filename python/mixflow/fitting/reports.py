"""What a training tells the caller: the notes of its history, the warning of one that failed, and the progress bar."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NoReturn

import torch
from tqdm.auto import tqdm

from ..flows import Flow
from ..transforms import MixtureCDF
from .checkpoint import Run
from .epochs import Diverged, stage
from .history import History
from .sources import Loader, Subset
from .split import Split
from .survey import Survey

__all__ = ["notes_before", "progress_bar", "report_divergence"]

FEW_ROWS = 500  # up to which left-out rows choose the start
_SHOWN = 6  # columns that a note names


def notes_before(
    flow: Flow,
    split: Split,
    seen: Survey,
    names: Sequence[str],
    dtype: torch.dtype,
    widths: Sequence[float],
    is_set: bool,
) -> list[str]:
    """The notes on the data and on the start of the training.

    Args:
        flow: with the weights that the training starts from.
        split: the rows.
        seen: what was found in them.
        names: the names of the columns.
        dtype: that the rows came in.
        widths: the resolution of each column, 0 for a column without one.
        is_set: whether the weights were set from the data.

    """
    train = split.train
    columns = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    rows = f"{len(train):,} rows to learn from" if isinstance(train, Subset) else "batches"
    held_out = f", {len(split.valid):,} held out" if isinstance(split.valid, Subset) else ""
    if len(flow.event_shape) > 1:  # pixels always repeat values and depend on each other
        notes = [f"Data: {rows}{held_out}, each of shape ({', '.join(map(str, flow.event_shape))})."]
    else:
        notes = [f"Data: {rows}{held_out}; {flow.features} column{'s' if flow.features > 1 else ''} ({columns})."]
        notes += seen.notes(names, dtype, widths)
    if isinstance(train, Subset) and train.x.notes:
        notes.insert(1, f"File: {'; '.join(train.x.notes)}.")
    if split.at_ends:
        notes.append(
            f"Ends of the support: {split.at_ends:,} rows have a value there, where a density is zero. They "
            "are left out of the likelihood."
        )
    if not is_set:
        notes.append("Start: the flow's own weights. initialize=True sets them from the data.")
    elif seen.rows <= FEW_ROWS:
        notes.append(_on_components(flow, names, seen.rows))
    return notes


def _on_components(flow: Flow, names: Sequence[str], rows: int) -> str:
    """A note on how many components the marginal mixtures of ``flow`` use."""
    marginals = next((module for module in flow.modules() if isinstance(module, MixtureCDF)), None)
    if marginals is None or marginals.used is None or len(marginals.used) != len(names):
        return f"Few rows ({rows:,}): rows left out chose the start and its number of components."
    used = list(zip(names, marginals.used.tolist(), strict=True))[:_SHOWN]
    shown = ", ".join(f"{name} {count}" for name, count in used)
    more = ", ..." if len(names) > _SHOWN else ""
    return (
        f"Few rows ({rows:,}): rows left out chose the start. Of {marginals.components} components a column, so many "
        f"differ: {shown}{more}."
    )


def report_divergence(history: History, reason: Diverged, suspects: str) -> str:
    """Warn that the training ended early, and name the likely cause. The return value is the same text, for a note."""
    best = history.best_epoch
    if best is not None:
        kept = f"the best weights, of epoch {best + 1}, are kept"
    else:
        kept = f"the weights of {history.kept or 'the start'} are kept"
    cause = f"Likely cause: {suspects}" if suspects else "A smaller lr or float64 may help"
    message = f"{reason}: the training ends here, {kept}. {cause}."
    warnings.warn(message, RuntimeWarning, stacklevel=4)  # in the line that called mixflow.fit
    return message


def progress_bar(run: Run, train: Subset | Loader, shown: bool) -> tqdm[NoReturn]:
    """A bar that counts rows; an empty one if it is not ``shown``."""
    rows, done = len(train) if isinstance(train, Subset) else None, len(run.history.lr)
    return tqdm(
        desc=stage(run),
        total=None if rows is None else rows * run.settings["epochs"],
        initial=0 if rows is None else rows * done,
        unit="rows",
        unit_scale=True,
        disable=not shown,
    )
