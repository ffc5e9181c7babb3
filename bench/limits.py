"""The op in large calls against limits of the machine, which are not other ways to the same results.

Its groups run with `make bench`, and on a GPU with `make gpu`. Of a limit the table notes what it was computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

import mixflow
from mixflow import _core
from mixflow.bench.cases import RATES, Baseline, Case, Group
from mixflow.bench.inputs import Inputs, Settings
from mixflow.bench.large_calls import in_turn, op_case

Limit = Callable[[str, float, Settings, Sequence[Inputs]], Baseline]  # from its name and target


def bytes_moved(inputs: Inputs) -> int:
    """The least that a call reads and writes: arguments and seeds, and two results or the gradients, once each."""
    arguments = sum(t.nbytes for t in inputs.leaves)
    written = arguments if inputs.seeds else 2 * inputs.x.nbytes
    return arguments + sum(seed.nbytes for seed in inputs.seeds) + written


def bare_loop(name: str, target: float, settings: Settings, inputs: Sequence[Inputs]) -> Baseline:
    """Only the exponentials, divisions and logarithms of a logistic forward, of which each family takes more."""
    double = settings.dtype == torch.float64

    def run(inputs: Inputs) -> tuple[()]:
        _core.bare_loop(double, settings.components, inputs.x.numel(), settings.threads)
        return ()

    return Baseline(name, target, in_turn(run, inputs, settings))


def read(name: str, target: float, settings: Settings, inputs: Sequence[Inputs]) -> Baseline:
    """A sum of each tensor. It runs at the speed of memory: of ten reductions tried none was more than 6 % faster."""
    return Baseline(name, target, in_turn(lambda i: [t.sum() for t in i.leaves], inputs, settings))


def copy(name: str, target: float, settings: Settings, inputs: Sequence[Inputs]) -> Baseline:
    """A copy that reads and writes as many bytes in all as the op has to."""
    source = torch.rand(-(-bytes_moved(inputs[0]) // 8), device=settings.device)
    buffer = torch.empty_like(source)
    note = f"{bytes_moved(inputs[0]) / inputs[0].x.numel():g} bytes an element"
    return Baseline(name, target, in_turn(lambda _: [buffer.copy_(source)], inputs, settings), note=note)


SPECIAL_PER_CLOCK = 16  # of a multiprocessor, since compute capability 3: the throughput table of the CUDA guide
SPECIAL_PER_COMPONENT, SPECIAL_PER_ELEMENT = 2, 5


def special_functions(name: str, target: float, settings: Settings, inputs: Sequence[Inputs]) -> Baseline:
    """The forward with shared parameters if only its special functions took time, in float32.

    A component takes an exponential and a division, an element two logarithms, the quantile of the base and divisions.
    A multiprocessor computes 16 of them a clock.
    """
    if settings.dtype != torch.float32:
        return Baseline(name, target, note="the units for special functions compute in float32 alone")
    properties = torch.cuda.get_device_properties(settings.device)
    kilohertz = getattr(properties, "clock_rate", 0)
    if not kilohertz:
        return Baseline(name, target, note="this torch does not tell the clock")
    count = SPECIAL_PER_COMPONENT * settings.components + SPECIAL_PER_ELEMENT
    rate = properties.multi_processor_count * 1e3 * kilohertz * SPECIAL_PER_CLOCK
    units = f"{properties.multi_processor_count} multiprocessors x {SPECIAL_PER_CLOCK} x {kilohertz / 1e6:.2f} GHz"
    return Baseline(name, target, limit=count / rate, note=f"{units} / {count} special functions an element")


# By type of device: the op, the layout of the parameters, the limit, its name and the ratio aimed at.
LIMITS: dict[str, list[tuple[str, str, Limit, str, float]]] = {
    "cpu": [
        ("forward + ladj", "shared", bare_loop, "bare loop, same arithmetic", 0.65),
        ("forward + ladj", "per element", read, "plain read, same bytes", 0.7),
    ],
    "cuda": [
        ("forward + ladj", "shared", special_functions, "special functions alone", 0.6),
        ("forward + ladj", "per element", copy, "copy, same bytes", 0.8),
        ("forward + backward", "per element", copy, "copy, same bytes", 0.65),
    ],
}


def limit_case(op: str, family: str, layout: str, limit: Limit, name: str, target: float) -> Case:
    return op_case(op, family, layout, lambda _, settings, inputs: [limit(name, target, settings, inputs)])


GROUPS = [
    Group(
        "Limits of the machine",
        [limit_case(op, family, *rest) for op, *rest in lines for family in mixflow.FAMILIES],
        RATES,
        device,
        pictured=True,
    )
    for device, lines in LIMITS.items()
]
