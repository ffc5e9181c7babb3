"""``mixflow fit``: from a table to a model file."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ..files.atomic import check_writable
from ..files.model_file import save
from ..files.tables import listed, map_table
from ..fitting.fit import History, fit
from ..fitting.parallel import process_rank
from ..fitting.split import HELD_OUT
from ..flows import Flow
from ..flows.initialize import ONE_GAUSSIAN
from .baseline import one_gaussian
from .fit_flow import fit_options, new_flow, opened, recipe_for
from .fit_options import add_options
from .names import request
from .reading import reading_of
from .roles import Roles
from .source import Notes

__all__ = ["DETAILS", "EXAMPLE", "HELP", "USAGE", "add_options", "run"]

USAGE = "mixflow fit DATA --out MODEL [options]"
HELP = "fit a flow to a table and save it"
DETAILS = "All options except --out can be left out."
EXAMPLE = "mixflow fit weather.csv --context month --context height --out weather.safetensors"

_IN_OPTIONS = {'resolution="auto"': "--resolution auto", " initialize=True sets them from the data.": ""}


def run(arguments: argparse.Namespace) -> int:
    """Fit the flow of the options, save it, print a summary, and return the exit status."""
    first = process_rank() == 0  # of the processes that torchrun started
    if first:
        check_writable(arguments.out)
    reading = reading_of(arguments)
    flow, roles = opened(arguments, reading)
    table = map_table(arguments.data, request(arguments.data, roles.all, reading), reading)
    if flow is None:
        flow = new_flow(arguments, roles, recipe_for(arguments, roles, len(table.values)))
    roles.note_in(flow, table.named)
    if first:
        Notes(arguments.data).begin(table)
        if arguments.flow is None and arguments.init is None and not arguments.quiet:
            size = f"{_count(roles.columns)} and {len(table.values):,} rows"
            print(f"flow: {recipe_for(arguments, roles, len(table.values))}, for {size}; --flow chooses another")
    data, context, weights = roles.parts(table)
    data = data.reshape(len(data), *flow.event_shape)  # images
    options = fit_options(arguments, flow)
    history = _fitted(flow, data, context, weights, options, not arguments.quiet)
    if history.interrupted and history.kept is None and not history.lr:
        raise KeyboardInterrupt  # there are no weights worth keeping yet; a model at --out stays as it was
    if first:
        flow.notes["history"] = history.to_dict()
        save(flow, arguments.out)
        if not arguments.quiet and not history.interrupted:
            print(_summary(flow, history, roles, _judged(flow, history, data, context, weights, options)))
        ended = "interrupted; saved the best weights so far to" if history.interrupted else "saved"
        print(f"{ended} {arguments.out}", file=sys.stderr if history.interrupted else sys.stdout)
    return 130 if history.interrupted else 0


def _fitted(flow: Flow, data: Any, context: Any, weights: Any, options: dict[str, Any], progress: bool) -> History:
    """Fit ``flow``. Each warning is printed in one line, like an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        history = fit(flow, data, context=context, weights=weights, progress=progress, **options)
    for warning in caught:
        print(f"mixflow: warning: {_in_options(str(warning.message))}", file=sys.stderr)
    return history


def _summary(flow: Flow, history: History, roles: Roles, judged: str) -> str:
    """The summary: the training, its notes, and the score of the flow."""
    kept = history.kept if isinstance(history.kept, str) else f"epoch {(history.best_epoch or 0) + 1}"
    notes = []
    if roles.context:
        notes.append(f"Context: {_count(roles.context)} ({listed(roles.context)}).")
    if roles.weight is not None:
        notes.append(f"Weights: {roles.weight}.")
    elif "weight" in flow.notes:
        notes.append(f"Weights: none, as the table has no column {flow.notes['weight']}.")
    notes = [*history.notes[:1], *notes, *history.notes[1:]]
    lines = [f"{len(history.lr)} epochs in {sum(history.seconds):.1f} s; kept {kept}", *(f"- {note}" for note in notes)]
    summary = "\n".join([*lines, *[judged] * bool(judged)])
    return _in_options(summary)


def _in_options(text: str) -> str:
    """``text`` with options of the command line in place of Python's arguments."""
    for of_python, of_command in _IN_OPTIONS.items():
        text = text.replace(of_python, of_command)
    return text


def _judged(flow: Flow, history: History, data: Any, context: Any, weights: Any, options: dict[str, Any]) -> str:
    """The score of the held-out rows, and that of one Gaussian; empty without held-out rows."""
    validation = options.get("validation", HELD_OUT)
    if not validation:
        return ""
    kept = history.best_epoch if history.kept is None else history.kept
    score = history.starts[kept] if isinstance(kept, str) else history.validation_log_prob[kept or 0]
    plain = history.starts.get(ONE_GAUSSIAN) if context is None else None
    if plain is None and "resolution" not in flow.notes:
        plain = one_gaussian(flow, data, context, weights, validation, options.get("seed", 0))
    name = "one Gaussian" if context is None else "one Gaussian, linear in the context"
    compared = "" if plain is None else f"; {name}: {plain:.4f}"
    return f"log_prob of {math.ceil(validation * len(data)):,} held-out rows: {score:.4f} nats{compared}"


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} column{'s' if len(names) > 1 else ''}"
