"""``mixflow fit``: from a table to a model file."""

from __future__ import annotations

import argparse
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

import mixflow

from ..files.atomic import check_writable
from ..files.model_file import load, save
from ..files.tables import Reading, listed, map_table
from ..fitting.fit import History, fit
from ..fitting.parallel import process_rank
from ..fitting.split import HELD_OUT
from ..flows import RECIPES, Flow
from ..flows.base import NO_NUMBERS
from ..flows.start import ONE_GAUSSIAN
from .baseline import one_gaussian
from .names import request
from .reading import add_table, reading_of
from .roles import Roles
from .source import Notes

__all__ = ["DETAILS", "EXAMPLE", "HELP", "USAGE", "add_options", "run"]

USAGE = "mixflow fit DATA --out MODEL [options]"
HELP = "fit a flow to a table and save it"
DETAILS = "All options except --out can be left out."
EXAMPLE = "mixflow fit weather.csv --context month --context height --out weather.safetensors"

# The recipes that did best on most tables of several columns, of fewer than FEW rows and of more: docs/your-data.md.
BEST, BEST_OF_FEW, FEW = "autoregressive", "gaussianization", 500
MOST = 1000  # columns for which a recipe is chosen
_IN_OPTIONS = {'resolution="auto"': "--resolution auto", " initialize=True sets them from the data.": ""}


# -- options -------------------------------------------------------------------------------------------------


def add_options(command: argparse.ArgumentParser) -> None:
    """Give ``command`` the options of :func:`run`. Recipes and :func:`mixflow.fit` decide what is left open."""
    _add_data(command)
    _add_flow(command.add_argument_group("flow"))
    _add_training(command.add_argument_group("training"))
    group = command.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="MODEL", help="the model file to write (.safetensors)")
    group.add_argument("--quiet", action="store_true", help="no progress bar and no summary")


def _add_data(command: argparse.ArgumentParser) -> None:
    group = add_table(command)
    group.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="a column to fit; may be repeated (default: all that are neither context nor weight)",
    )
    group.add_argument(
        "--context",
        action="append",
        metavar="NAME",
        help="a column that the density of the others depends on; may be repeated (default: none)",
    )
    group.add_argument(
        "--weight", metavar="NAME", help="a column of weights: a row of weight 2 counts as two rows (default: none)"
    )
    group.add_argument(
        "--support",
        action="append",
        metavar="NAME=S",
        help="where values of column NAME lie: positive, or LOW:HIGH with an end left out for none; may be repeated "
        "(default: all numbers)",
    )
    group.add_argument(
        "--resolution",
        metavar="W",
        help="the step that values were rounded to: a number, or auto to find it in the data (default: not rounded)",
    )


def _add_flow(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--flow",
        choices=RECIPES,
        help=f"kind of flow (default: univariate for one column, {BEST_OF_FEW} for fewer than {FEW} rows without a "
        f"context, otherwise {BEST})",
    )
    group.add_argument("--init", metavar="MODEL", help="go on from this model: its flow, weights and columns")
    group.add_argument(
        "--family", choices=mixflow.FAMILIES, help="distribution of the components (default: the flow's)"
    )
    group.add_argument(
        "--base", choices=mixflow.BASES, help="distribution that the data are mapped to (default: normal)"
    )
    group.add_argument("--components", type=int, metavar="K", help="number of mixture components (default: the flow's)")
    group.add_argument(
        "--marginal-components",
        type=int,
        metavar="K",
        help="number of components of each column's own mixture (default: as many as the rows support)",
    )
    group.add_argument("--layers", type=int, metavar="L", help="number of layers (default: the flow's)")
    group.add_argument(
        "--hidden", type=int, nargs="+", metavar="W", help="widths of a network's hidden layers (default: 64 64)"
    )
    group.add_argument(
        "--dtype", choices=("float32", "float64"), help="precision (default: float32, with --init the model's)"
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--epochs", type=int, metavar="E", help="passes over the rows at most (default: by their number)"
    )
    group.add_argument("--batch-size", type=int, metavar="B", help="rows per step (default: by their number)")
    group.add_argument("--lr", type=float, help="the highest learning rate (default: the flow's)")
    group.add_argument("--weight-decay", type=float, metavar="W", help="decoupled weight decay (default: the flow's)")
    group.add_argument(
        "--max-grad-norm", type=float, metavar="G", help="norm that gradients are clipped to (default: 1)"
    )
    group.add_argument(
        "--validation", type=float, metavar="FRACTION", help=f"part of the rows to hold out (default: {HELD_OUT})"
    )
    group.add_argument(
        "--patience", type=int, metavar="E", help="epochs without improvement before stopping (default: all)"
    )
    group.add_argument(
        "--seed", type=int, help="of the held-out rows, the minibatches and the networks' weights (default: 0)"
    )
    group.add_argument("--device", help="where to train: cpu, cuda, cuda:1, ... (default: cpu)")
    group.add_argument("--checkpoint", metavar="FILE", help="keep all that is needed to go on after a crash here")
    group.add_argument("--resume", action="store_true", help="go on from the checkpoint if there is one")


# -- the command ---------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> int:
    """Fit what the options ask for, save it and say how it went; returns the exit status."""
    first = process_rank() == 0  # of the processes that torchrun started
    if first:
        check_writable(arguments.out)
    reading = reading_of(arguments)
    flow, roles = _opened(arguments, reading)
    table = map_table(arguments.data, request(arguments.data, roles.all, reading), reading)
    if flow is None:
        flow = _new(arguments, roles, _name(arguments, roles, len(table.values)))
    roles.note_in(flow, table.named)
    if first:
        Notes(arguments.data).begin(table)
        if arguments.flow is None and arguments.init is None and not arguments.quiet:
            size = f"{_count(roles.columns)} and {len(table.values):,} rows"
            print(f"flow: {_name(arguments, roles, len(table.values))}, for {size}; --flow chooses another")
    data, context, weights = roles.parts(table)
    data = data.reshape(len(data), *flow.event_shape)  # images
    options = _fit_options(arguments, flow)
    history = _fitted(flow, data, context, weights, options, not arguments.quiet)
    if history.interrupted and history.kept is None and not history.lr:
        raise KeyboardInterrupt  # before the first weights worth keeping; a model at --out stays as it was
    if first:
        flow.notes["history"] = history.to_dict()
        save(flow, arguments.out)
        if not arguments.quiet and not history.interrupted:
            print(_summary(flow, history, roles, _judged(flow, history, data, context, weights, options)))
        ended = "interrupted; saved the best weights so far to" if history.interrupted else "saved"
        print(f"{ended} {arguments.out}", file=sys.stderr if history.interrupted else sys.stdout)
    return 130 if history.interrupted else 0


def _fitted(flow: Flow, data: Any, context: Any, weights: Any, options: dict[str, Any], progress: bool) -> History:
    """Fit ``flow``; warnings are told like errors, in a line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        history = fit(flow, data, context=context, weights=weights, progress=progress, **options)
    for warning in caught:
        print(f"mixflow: warning: {_in_options(str(warning.message))}", file=sys.stderr)
    return history


def _summary(flow: Flow, history: History, roles: Roles, judged: str) -> str:
    """What was learned from what, and how good it is."""
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
    """``text`` with the options of the command in place of Python's arguments."""
    for of_python, of_command in _IN_OPTIONS.items():
        text = text.replace(of_python, of_command)
    return text


def _judged(flow: Flow, history: History, data: Any, context: Any, weights: Any, options: dict[str, Any]) -> str:
    """The score of the held-out rows beside that of one Gaussian, if there are such rows."""
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


# -- flow and settings ---------------------------------------------------------------------------------------


def _opened(arguments: argparse.Namespace, reading: Reading) -> tuple[Flow | None, Roles]:
    """The flow and what each column is for; None where the number of rows decides on the flow."""
    if arguments.init is not None:
        return _from_model(arguments, reading)
    roles = Roles.of_options(arguments, reading)
    if arguments.flow is None and len(roles.columns) > MOST:
        raise ValueError(
            f"{arguments.data}: expected at most {MOST:,} columns, for a flow to be chosen; got "
            f"{len(roles.columns):,}; choose columns with --column, or a flow with --flow"
        )
    names = {_name(arguments, roles, rows) for rows in (0, FEW)}
    return _new(arguments, roles, names.pop()) if len(names) == 1 else None, roles


def _name(arguments: argparse.Namespace, roles: Roles, rows: int) -> str:
    """The recipe that the options name, or else the one that suits a table of so many ``rows``."""
    if arguments.flow:
        return str(arguments.flow)
    if len(roles.columns) == 1:
        return "univariate"
    few = rows < FEW and not roles.context and not _unknown_options(arguments, BEST_OF_FEW)
    return BEST_OF_FEW if few else BEST


def _unknown_options(arguments: argparse.Namespace, name: str) -> list[str]:
    """The options that the user gave and that the recipe ``name`` does not take."""
    known = _recipe_options(RECIPES[name])
    return [option for option in _given(arguments, _all_recipe_options()) if option not in known]


def _new(arguments: argparse.Namespace, roles: Roles, name: str) -> Flow:
    build = RECIPES[name]
    known = _recipe_options(build)
    for option in _unknown_options(arguments, name):
        takes = ", ".join(map(_option, known))
        raise ValueError(f"{_option(option)}: no option of {_kind(name)} flow, which takes {takes}")
    options = {"seed": 0} | _given(arguments, [*known, "seed"]) | {"context": len(roles.context)}
    options["support"] = _support(arguments.support, roles.columns)
    if "features" in inspect.signature(build).parameters:
        options["features"] = len(roles.columns)
    elif len(roles.columns) > 1:
        raise ValueError(
            f"{arguments.data}: expected 1 column for {_kind(name)} flow, got {listed(roles.columns)}; choose one with "
            "--column"
        )
    return build(**options).to(getattr(torch, arguments.dtype or "float32"))


def _from_model(arguments: argparse.Namespace, reading: Reading) -> tuple[Flow, Roles]:
    for name in ("flow", "column", "context", *_all_recipe_options()):
        if getattr(arguments, name) is not None:
            raise ValueError(f"{_option(name)}: no option beside --init, whose model brings it")
    model = load(arguments.init)
    if arguments.dtype:
        model.to(getattr(torch, arguments.dtype))
    return model, Roles.of_model(model, arguments.data, arguments.weight, reading)


def _kind(name: str) -> str:
    return f"an {name}" if name[0] in "aeio" else f"a {name}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _recipe_options(build: Callable[..., Flow]) -> list[str]:
    """The parameters of a recipe that are options of ``fit``: the others come from the data."""
    own = "features", "context", *NO_NUMBERS
    return [name for name in inspect.signature(build).parameters if name not in own]


def _all_recipe_options() -> list[str]:
    return list(dict.fromkeys(name for build in RECIPES.values() for name in _recipe_options(build)))


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options among ``names`` that the user gave: defaults stay where they are defined."""
    return {name: value for name in names if (value := getattr(arguments, name, None)) is not None}


def _fit_options(arguments: argparse.Namespace, flow: Flow) -> dict[str, Any]:
    """The options of :func:`mixflow.fit`; a model that goes on keeps its resolution."""
    own = "flow", "data", "context", "weights", "resolution"
    options = _given(arguments, [name for name in inspect.signature(fit).parameters if name not in own])
    before = flow.notes.pop("resolution", None)
    given = before if arguments.resolution is None else _resolution(arguments.resolution)
    return options if given is None else options | {"resolution": given}


def _support(given: Sequence[str] | None, columns: Sequence[str]) -> list[Any] | None:
    """The supports of the columns, from options NAME=positive or NAME=LOW:HIGH; None if none is given."""
    supports: dict[str, Any] = {}
    for option in given or []:
        name, _, value = option.rpartition("=")
        if name in supports:
            raise ValueError(f"--support: expected one for each column, got two for {name!r}")
        if name not in columns:
            raise ValueError(f"--support: expected NAME=positive or NAME=LOW:HIGH of a column, got {option!r}")
        ends = ["0", ""] if value == "positive" else value.split(":")
        try:
            low, high = (float(end) if end else None for end in ends)
        except ValueError as error:
            raise ValueError(f"--support: expected positive or LOW:HIGH after {name}=, got {value!r}") from error
        supports[name] = [low, high]
    return [supports.get(name) for name in columns] if supports else None


def _resolution(given: str) -> str | float:
    if given == "auto":
        return given
    try:
        return float(given)
    except ValueError as error:
        raise ValueError(f"--resolution: expected auto or a number, got {given!r}") from error
