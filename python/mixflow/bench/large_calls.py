"""The op in large calls, and in calls of 64 elements, against what people write for it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import mixflow

from . import baselines, verify
from .baselines import Formula
from .cases import RATES, Baseline, Case, Group, Unavailable, timed
from .inputs import OPS, Inputs, Settings, draw_inputs
from .timing import Call

__all__ = ["GROUPS", "in_turn", "op_call", "op_case", "plain_code", "require"]

Run = Callable[[Inputs], Sequence[Any]]
Targets = Mapping[str, float | None]  # the ratios aimed at, by name of the baseline
Baselines = Callable[[str, Settings, Sequence[Inputs]], list[Baseline]]  # of a case of that name


# -- how plain code is called --------------------------------------------------------------------------------


def _with_gradients(run: Run) -> Run:
    """``run``, followed by a backward pass where the inputs have seeds for one."""

    def call(inputs: Inputs) -> Sequence[Any]:
        results = run(inputs)
        return torch.autograd.grad(results, inputs.leaves, inputs.seeds) if inputs.seeds else results

    return call


def _eager(formula: Formula) -> Callable[[Settings], Run]:
    return lambda settings: _with_gradients(lambda i: formula(i.x, i.parameters, i.family))


def compiled(settings: Settings, function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` of ``function`` for one shape; raises :class:`Unavailable` at the first call if that fails."""
    if settings.quick:
        raise Unavailable("quick: nothing is compiled")
    from torch._dynamo.exc import TorchDynamoException  # takes seconds, and not every run compiles

    fast = torch.compile(function, dynamic=False, fullgraph=True)

    def call(*arguments: Any) -> Any:
        try:
            return fast(*arguments)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split("\n")[:2])
            raise Unavailable(f"torch.compile does not work here: {reason}") from error

    return call


def _compiled(formula: Formula) -> Callable[[Settings], Run]:
    return lambda settings: _eager(compiled(settings, formula))(settings)


def _compiled_bisections(settings: Settings) -> Run:
    step, forward = (compiled(settings, f) for f in (baselines.bisection_step, baselines.log_space_forward))
    return _eager(functools.partial(baselines.bisection_inverse, step=step, forward=forward))(settings)


def require(package: str) -> None:
    """Raise :class:`Unavailable` if ``package`` is not installed."""
    try:
        __import__(package)
    except ModuleNotFoundError:
        raise Unavailable(f"{package} is not installed: pip install mixflow[bench]") from None


def _zuko(settings: Settings) -> Run:
    require("zuko")

    def run(inputs: Inputs) -> Sequence[Tensor]:
        transform = baselines.zuko_transform(inputs.parameters)
        return (transform.inv(inputs.x),) if inputs.inverse else transform.call_and_ladj(inputs.x)

    return run


LOG, COMPILED_LOG = "eager log-space", "compiled log-space"
LINEAR, COMPILED_LINEAR = "eager linear", "compiled linear"
BISECTIONS, COMPILED_BISECTIONS = "40 eager bisections", "40 compiled bisections"
IMPLICIT = "implicit, 40 eager bisections"
PLAIN: dict[str, Callable[[Settings], Run]] = {
    LOG: _eager(baselines.log_space_forward),
    COMPILED_LOG: _compiled(baselines.log_space_forward),
    LINEAR: _eager(baselines.linear_forward),
    COMPILED_LINEAR: _compiled(baselines.linear_forward),
    BISECTIONS: _eager(baselines.bisection_inverse),
    COMPILED_BISECTIONS: _compiled_bisections,
    IMPLICIT: _eager(baselines.implicit_bisection_inverse),
    "zuko": _zuko,
}
SLOW = {BISECTIONS, COMPILED_BISECTIONS, IMPLICIT}
MOST = {"cpu": 2**14, "cuda": 2**22}  # elements that a slow one gets at most


# -- cases ---------------------------------------------------------------------------------------------------


def in_turn(run: Run, inputs: Sequence[Inputs], settings: Settings) -> Call:
    """``run`` on each of ``inputs`` in turn: one set alone might stay in a cache."""
    turns = itertools.cycle(inputs)
    return Call(lambda: run(next(turns)), inputs[0].x.numel(), settings.threads)


def op_call(
    name: str, settings: Settings, op: str, family: str, layout: str, n: int, *, equal_weights: bool = False
) -> tuple[Call, list[Inputs]]:
    """A call of mixflow on ``n`` elements, whose results are checked, and its inputs, one set or several.

    Raises:
        WrongResult: a result is wrong.

    """
    inputs = draw_inputs(settings, op, family, layout, n, equal_weights=equal_weights)
    verify.check(name, inputs[0])
    return in_turn(_with_gradients(Inputs.op), inputs, settings), inputs


def op_case(
    op: str, family: str, layout: str, others: Baselines, *, n: int | None = None, equal_weights: bool = False
) -> Case:
    """The case of a call on ``n`` elements, by default as many as the settings tell, beside ``others``."""
    name = f"{op}, {family}, {layout}" + (", equal weights" if equal_weights else "") + (f", N = {n:,}" if n else "")

    def prepare(settings: Settings) -> tuple[Call, list[Baseline]]:
        torch.compiler.reset()  # compiled code of earlier shapes would count against torch's limit
        size = settings.capped(n) if n else settings.n
        own, inputs = op_call(name, settings, op, family, layout, size, equal_weights=equal_weights)
        return own, others(name, settings, inputs)

    return timed(name, prepare)


def plain_code(targets: Targets) -> Baselines:
    """The entries of PLAIN that ``targets`` names. Their results must agree with mixflow's; slow ones do less."""

    def prepare(case: str, settings: Settings, inputs: Sequence[Inputs]) -> list[Baseline]:
        return [_plain(name, target, case, settings, inputs) for name, target in targets.items()]

    return prepare


def _plain(name: str, target: float | None, case: str, settings: Settings, inputs: Sequence[Inputs]) -> Baseline:
    label, most = name, MOST[settings.device.type]
    if name in SLOW and most < len(inputs[0].x):
        label, inputs = f"{name}, N = {most:,}", [i.select(slice(most)) for i in inputs]

    def make() -> Call:
        run = PLAIN[name](settings)
        verify.check_agreement(f"{case}: {name}", _with_gradients(Inputs.op)(inputs[0]), run(inputs[0]))
        return in_turn(run, inputs, settings)

    return Baseline.attempt(label, target, make)


# -- the tables ----------------------------------------------------------------------------------------------

FORWARD, FORWARD_BACKWARD, INVERSE, INVERSE_BACKWARD = OPS
# By type of device, group and op: the targets for each layout of the parameters.
COMPARISONS: dict[tuple[str, str, str], dict[str, Targets]] = {
    ("cpu", "Forward", FORWARD): {
        "shared": {LOG: 120, COMPILED_LOG: 40, LINEAR: None, COMPILED_LINEAR: 4},
        "per element": {LOG: 60, LINEAR: None},
    },
    ("cpu", "Forward and backward", FORWARD_BACKWARD): {
        "shared": {LOG: 80, COMPILED_LOG: 30},
        "per element": {LOG: 25},
    },
    ("cpu", "Inverse", INVERSE): {
        "shared": {BISECTIONS: 250, COMPILED_BISECTIONS: 40},
        "per element": {BISECTIONS: 300, COMPILED_BISECTIONS: 40},
    },
    ("cpu", "Inverse and backward", INVERSE_BACKWARD): {"shared": {IMPLICIT: 100}, "per element": {IMPLICIT: 100}},
    ("cuda", "Forward", FORWARD): {
        "shared": {LOG: None, COMPILED_LOG: None},
        "per element": {LOG: None, COMPILED_LOG: None},
    },
    ("cuda", "Inverse", INVERSE): {"shared": {COMPILED_BISECTIONS: 25}, "per element": {COMPILED_BISECTIONS: 25}},
    ("cuda", "Forward and backward", FORWARD_BACKWARD): {
        "shared": {LOG: None, COMPILED_LOG: 8},
        "per element": {LOG: None, COMPILED_LOG: 2},
    },
}
SMALL: dict[str, Targets] = {FORWARD: {LINEAR: 3.0, LOG: None}, FORWARD_BACKWARD: {LINEAR: 4.0, LOG: None}}
ZUKO: dict[str, Targets] = {FORWARD: {"zuko": None}, INVERSE: {"zuko": 40.0}}  # its components are Gaussian

F = mixflow.FAMILIES
_group = functools.partial(Group, columns=RATES, pictured=True)
GROUPS = [
    *(
        _group(name, [op_case(op, f, layout, plain_code(to)) for layout, to in both.items() for f in F], device=device)
        for (device, name, op), both in COMPARISONS.items()
    ),
    _group(
        "One call of 64 elements",
        [op_case(op, f, "shared", plain_code(to), n=64) for op, to in SMALL.items() for f in F],
    ),
    _group(
        "zuko's GaussianizationTransform",
        [op_case(op, "gaussian", "shared", plain_code(to), n=10**5, equal_weights=True) for op, to in ZUKO.items()],
    ),
]
