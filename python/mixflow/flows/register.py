"""The register of recipes, which are functions that build flows, and the record of the call that built a flow."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

from .base import Flow, Recipe
from .parts import plain
from .seeds import seeded

__all__ = ["NO_NUMBERS", "RECIPES", "recipe"]

P = ParamSpec("P")

RECIPES: dict[str, Callable[..., Flow]] = {}
_OBJECTS = "network", "embedding"  # arguments of recipes that are neither numbers nor names: on record where given
NO_NUMBERS = (*_OBJECTS, "seed")


def recipe(build: Callable[P, Flow]) -> Callable[P, Flow]:
    """Register ``build``, a function that returns a flow, and record on each flow the call that built it.

    :func:`mixflow.load` and the command line look flows up in this register. The argument ``seed`` decides on the
    weights at the start. The record leaves it out, and this function applies it for all recipes.
    """
    signature = inspect.signature(build)

    @functools.wraps(build)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> Flow:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        given = {name: plain(value) for name, value in call.arguments.items() if name not in NO_NUMBERS}
        given |= {name: value for name, value in call.arguments.items() if name in _OBJECTS and value is not None}
        with seeded(call.arguments.get("seed")):
            flow = build(*args, **kwargs)
        flow.recipe = Recipe(build.__name__, given)
        return flow

    RECIPES[build.__name__] = recorded
    return recorded
