"""From the options of ``mixflow fit`` to a flow, the columns that it takes, and the settings of the training."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..files.model_file import load
from ..files.tables import Reading, listed
from ..fitting.fit import fit
from ..flows import RECIPES, Flow
from ..flows.register import NO_NUMBERS
from .roles import Roles

__all__ = ["BEST", "BEST_OF_FEW", "FEW", "fit_options", "new_flow", "opened", "recipe_for"]

# The recipes that did best on most tables of several columns, of fewer than FEW rows and of more: docs/your-data.md.
BEST, BEST_OF_FEW, FEW = "autoregressive", "gaussianization", 500
MOST = 1000  # with more columns, the user must choose a recipe


def opened(arguments: argparse.Namespace, reading: Reading) -> tuple[Flow | None, Roles]:
    """The flow and the role of each column. The flow is None if the number of rows decides on it."""
    if arguments.init is not None:
        return _from_model(arguments, reading)
    roles = Roles.of_options(arguments, reading)
    if arguments.flow is None and len(roles.columns) > MOST:
        raise ValueError(
            f"{arguments.data}: expected at most {MOST:,} columns, for a flow to be chosen, got "
            f"{len(roles.columns):,}; choose columns with --column, or a flow with --flow"
        )
    names = {recipe_for(arguments, roles, rows) for rows in (0, FEW)}
    return new_flow(arguments, roles, names.pop()) if len(names) == 1 else None, roles


def recipe_for(arguments: argparse.Namespace, roles: Roles, rows: int) -> str:
    """The recipe that the options name; without one, the recipe that suits a table of so many ``rows``."""
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


def new_flow(arguments: argparse.Namespace, roles: Roles, name: str) -> Flow:
    """The flow that the options describe, with the recipe ``name``."""
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
    """The parameters of a recipe that are options of ``fit``. The data decide on the others."""
    own = "features", "context", *NO_NUMBERS
    return [name for name in inspect.signature(build).parameters if name not in own]


def _all_recipe_options() -> list[str]:
    return list(dict.fromkeys(name for build in RECIPES.values() for name in _recipe_options(build)))


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options among ``names`` that the user gave. Recipes and ``fit`` have their own defaults for the others."""
    return {name: value for name in names if (value := getattr(arguments, name, None)) is not None}


def fit_options(arguments: argparse.Namespace, flow: Flow) -> dict[str, Any]:
    """The options of :func:`mixflow.fit`. With ``--init``, the resolution of the model is kept."""
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
