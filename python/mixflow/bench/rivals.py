"""The rivals by name: how each does a piece of work, and what it needs to be there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _core
from . import baselines
from .baselines import Parameters
from .inputs import Inputs, Settings
from .works import Call, Formula, Work

__all__ = ["RIVALS", "Absent", "Rival", "compiled"]


class Absent(Exception):
    """This rival cannot take part here; the message says why."""


@dataclass(frozen=True)
class Rival:
    """How a rival is called.

    Args:
        build: Makes the call for a work and a family, or raises :class:`Absent`.
        elements: At most so many are given to it; the slowest are timed on fewer than mixflow.
        comparable: Whether it returns the same as mixflow.

    """

    build: Callable[[Settings, Work, str], Call]
    elements: int | None = None
    comparable: bool = True


def compiled(settings: Settings, function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` of ``function`` for one shape; raises :class:`Absent`, at the first call, where that fails."""
    if settings.quick:
        raise Absent("quick: nothing is compiled")
    from torch._dynamo.exc import TorchDynamoException  # takes seconds, and the command line imports this file

    fast = torch.compile(function, dynamic=False, fullgraph=True)

    def call(*arguments: Any) -> Any:
        try:
            return fast(*arguments)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split("\n")[:2])
            raise Absent(f"torch.compile does not work here: {reason}") from error

    return call


def _plain(formula: Formula) -> Callable[[Settings, Work, str], Call]:
    return lambda settings, work, family: work.call(formula, family)


def _compiled(formula: Formula) -> Callable[[Settings, Work, str], Call]:
    return lambda settings, work, family: work.call(compiled(settings, formula), family)


def _compiled_bisections(settings: Settings, work: Work, family: str) -> Call:
    step = compiled(settings, baselines.bisection_step)
    forward = compiled(settings, baselines.log_space_forward)
    return work.call(functools.partial(baselines.bisection_inverse, step=step, forward=forward), family)


def _scipy(settings: Settings, work: Work, family: str) -> Call:
    _require("scipy")
    if settings.device.type != "cpu":
        raise Absent("scipy runs on the CPU")

    def formula(x: Tensor, parameters: Parameters, family: str) -> Any:
        logits, loc, log_scale = (p.numpy() for p in parameters)
        return baselines.scipy_forward(x.numpy(), (logits, loc, log_scale), family)

    return work.call(formula, family)


def _zuko(settings: Settings, work: Work, family: str) -> Call:
    _require("zuko")

    def formula(x: Tensor, parameters: Parameters, family: str) -> Any:
        transform = baselines.zuko_transform(parameters)
        return (transform.inv(x),) if work.inverse else transform.call_and_ladj(x)

    return work.call(formula, family)


def _bare_loop(settings: Settings, work: Work, family: str) -> Call:
    """Only the exponentials, divisions and logarithms of the forward.

    Of either family: a Gaussian component takes a rational function besides, which is not counted.
    """
    if settings.device.type != "cpu":
        raise Absent("the bare loop is the CPU's")
    double = settings.dtype == torch.float64

    def call(inputs: Inputs) -> tuple[()]:
        _core.bare_loop(double, settings.components, inputs.x.numel(), settings.threads)
        return ()

    return call


def _read(settings: Settings, work: Work, family: str) -> Call:
    # torch's sum runs at the speed of memory; of ten reductions tried none was more than 6 % faster.
    return lambda inputs: tuple(t.sum() for t in inputs.leaves)


def _require(package: str) -> None:
    try:
        __import__(package)
    except ModuleNotFoundError:
        raise Absent(f"{package} is not installed: pip install mixflow[bench]") from None


RIVALS = {
    "eager log-space": Rival(_plain(baselines.log_space_forward)),
    "compiled log-space": Rival(_compiled(baselines.log_space_forward)),
    "eager linear": Rival(_plain(baselines.linear_forward)),
    "compiled linear": Rival(_compiled(baselines.linear_forward)),
    "scipy linear, 1 thread": Rival(_scipy, elements=2**18),
    "40 eager bisections": Rival(_plain(baselines.bisection_inverse), elements=2**14),
    "40 compiled bisections": Rival(_compiled_bisections, elements=2**14),
    "implicit, 40 eager bisections": Rival(_plain(baselines.implicit_bisection_inverse), elements=2**14),
    "zuko": Rival(_zuko),
    "bare loop, same arithmetic": Rival(_bare_loop, comparable=False),
    "plain read, same bytes": Rival(_read, comparable=False),
}
