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

__all__ = ["RIVALS", "Absent", "Limit", "Rival", "compiled", "require"]


class Absent(Exception):
    """This rival cannot take part here; the message says why."""


@dataclass(frozen=True)
class Rival:
    """How a rival is called.

    Args:
        build: Makes the call for a work and a family, or raises :class:`Absent`.
        elements: At most so many are given to it on a CPU; the slowest are timed on fewer than mixflow.
        elements_on_cuda: The same on a CUDA device, which so few would leave idle.
        comparable: Whether it returns the same as mixflow.
        note: What the table says of it.

    """

    build: Callable[[Settings, Work, str], Call]
    elements: int | None = None
    elements_on_cuda: int | None = None
    comparable: bool = True
    note: Callable[[Work, Inputs], str] = lambda work, inputs: ""

    def most(self, settings: Settings) -> int | None:
        """How many elements are given to it at most."""
        return self.elements_on_cuda if settings.device.type == "cuda" else self.elements


@dataclass(frozen=True)
class Limit:
    """A rate that is computed, not timed: what no implementation exceeds.

    Args:
        seconds: Of one element, and what it was computed from; or raises :class:`Absent`.

    """

    seconds: Callable[[Settings, Work], tuple[float, str]]


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
    require("scipy")
    if settings.device.type != "cpu":
        raise Absent("scipy runs on the CPU")

    def formula(x: Tensor, parameters: Parameters, family: str) -> Any:
        logits, loc, log_scale = (p.numpy() for p in parameters)
        return baselines.scipy_forward(x.numpy(), (logits, loc, log_scale), family)

    return work.call(formula, family)


def _zuko(settings: Settings, work: Work, family: str) -> Call:
    require("zuko")

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


def _copy(settings: Settings, work: Work, family: str) -> Call:
    """Copies that read and write as many bytes in all as the work has to."""

    @functools.cache
    def buffers(size: int) -> tuple[Tensor, Tensor]:
        source = torch.rand(-(-size // 8), device=settings.device)
        return source, torch.empty_like(source)

    def call(inputs: Inputs) -> tuple[()]:
        source, target = buffers(work.bytes_moved(inputs))
        target.copy_(source)
        return ()

    return call


def _bytes_an_element(work: Work, inputs: Inputs) -> str:
    return f"{work.bytes_moved(inputs) / inputs.x.numel():g} bytes an element"


_SPECIAL_PER_CLOCK = 16  # of a multiprocessor, since compute capability 3: the throughput table of the CUDA guide
_SPECIAL_PER_COMPONENT, _SPECIAL_PER_ELEMENT = 2, 5


def _special_functions(settings: Settings, work: Work) -> tuple[float, str]:
    """Of the forward with shared parameters, from the units that give 2^x, log2 x and 1 / x in float32.

    A component takes an exponential and a division, an element two logarithms, the quantile of the base and divisions.
    Multiprocessors x clock x 16 a clock is the rate of all of them together.
    """
    if settings.device.type != "cuda":
        raise Absent("CPUs have no units for special functions")
    if settings.dtype != torch.float32:
        raise Absent("the units for special functions know float32 alone")
    properties = torch.cuda.get_device_properties(settings.device)
    kilohertz = getattr(properties, "clock_rate", 0)
    if not kilohertz:
        raise Absent("this torch does not tell the clock")
    count = _SPECIAL_PER_COMPONENT * settings.components + _SPECIAL_PER_ELEMENT
    rate = properties.multi_processor_count * 1e3 * kilohertz * _SPECIAL_PER_CLOCK
    units = f"{properties.multi_processor_count} multiprocessors x {_SPECIAL_PER_CLOCK} x {kilohertz / 1e6:.2f} GHz"
    return count / rate, f"{units} / {count} special functions an element"


def require(package: str) -> None:
    """Raise :class:`Absent` where ``package`` is not installed."""
    try:
        __import__(package)
    except ModuleNotFoundError:
        raise Absent(f"{package} is not installed: pip install mixflow[bench]") from None


RIVALS: dict[str, Rival | Limit] = {
    "eager log-space": Rival(_plain(baselines.log_space_forward)),
    "compiled log-space": Rival(_compiled(baselines.log_space_forward)),
    "eager linear": Rival(_plain(baselines.linear_forward)),
    "compiled linear": Rival(_compiled(baselines.linear_forward)),
    "scipy linear, 1 thread": Rival(_scipy, elements=2**18),
    "40 eager bisections": Rival(_plain(baselines.bisection_inverse), 2**14, 2**22),
    "40 compiled bisections": Rival(_compiled_bisections, 2**14, 2**22),
    "implicit, 40 eager bisections": Rival(_plain(baselines.implicit_bisection_inverse), 2**14, 2**22),
    "zuko": Rival(_zuko),
    "bare loop, same arithmetic": Rival(_bare_loop, comparable=False),
    "plain read, same bytes": Rival(_read, comparable=False),
    "copy, same bytes": Rival(_copy, comparable=False, note=_bytes_an_element),
    "special functions alone": Limit(_special_functions),
}
