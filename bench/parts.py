"""Jobs against those of their parts that no code can do without. Its group runs with `make bench`, on one thread.

The parts are a flow's networks, as plain PyTorch modules of the same sizes, and its calls of the op.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import mixflow
import training
from mixflow import flows
from mixflow.bench.cases import Baseline, Case, Columns, Group, number, timed, yes_or_no
from mixflow.bench.inputs import Settings
from mixflow.bench.timing import Call
from mixflow.bench.verify import WrongResult
from mixflow.op import affine_transform
from mixflow.transforms import Autoregressive, Compose, Coupling, MixtureCDF, Transform
from training import BATCH, FIT_ROWS, HIDDEN, PASSES

NETWORKS, KERNELS, BOTH = "its networks alone", "its kernels alone", "its networks and kernels alone"


# -- the parts -----------------------------------------------------------------------------------------------


def transforms_of(flow: flows.Flow) -> list[Transform]:
    assert isinstance(flow.data_to_base, Compose)
    return flow.data_to_base.each()


def mapped(transform: Coupling | Autoregressive) -> int:
    return len(transform.mapped) if isinstance(transform, Coupling) else transform.features


def networks_of(flow: flows.Flow, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Plain perceptrons of the sizes of the flow's networks, each with its inputs, some columns of ``x`` (N, D)."""
    networks: list[tuple[nn.Module, Tensor]] = []
    for transform in transforms_of(flow):
        if not isinstance(transform, Coupling | Autoregressive):
            continue
        inputs = len(transform.passing) if isinstance(transform, Coupling) else transform.features
        outputs, (first, second) = mapped(transform) * transform.elementwise.size, HIDDEN
        hidden = nn.Linear(inputs, first), nn.SiLU(), nn.Linear(first, second), nn.SiLU()
        networks.append((nn.Sequential(*hidden, nn.Linear(second, outputs)).to(x.dtype), x[:, :inputs].contiguous()))
    return networks


def network_step(flow: flows.Flow, x: Tensor) -> Callable[[], None]:
    """A step of training of the networks."""
    with flows.seeded(0):
        networks = networks_of(flow, x)
    optimizer = training.optimizer_of([parameter for network, _ in networks for parameter in network.parameters()])
    seeds = [torch.ones_like(network(inputs)) for network, inputs in networks]

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward([network(inputs) for network, inputs in networks], seeds)
        optimizer.step()

    return step


class Kernel:
    """A call of the op as a flow makes it."""

    def __init__(self, op: Callable[..., tuple[Tensor, Tensor]], arguments: list[Tensor]) -> None:
        self.results = functools.partial(op, *arguments)
        self._leaves = [argument for argument in arguments if argument.requires_grad]
        self._seeds = [torch.ones_like(arguments[0])] * 2

    def gradients(self) -> Sequence[Tensor]:
        return torch.autograd.grad(self.results(), self._leaves, self._seeds)


def kernels_of(flow: flows.Flow, x: Tensor, *, inverse: bool = False) -> list[Kernel]:
    """The calls of the op in one pass of the flow over as many rows as ``x`` (N, D), standardised data, has."""
    kernels: list[Kernel] = []
    for transform in transforms_of(flow):
        if isinstance(transform, MixtureCDF):
            op: Any = mixflow.cdf_transform_inverse if inverse else mixflow.cdf_transform
            op = functools.partial(op, family=transform.family, base=transform.base)
            arguments = [x, *transform.parameters()]
        elif isinstance(transform, Coupling | Autoregressive):
            map_ = transform.elementwise
            op = functools.partial(affine_transform, family=map_.family, base=map_.base, inverse=inverse)
            columns = x[:, : mapped(transform)].contiguous()
            arguments = [columns, map_.start().to(x).repeat(*columns.shape, 1)]
        else:
            continue
        # Nothing before the first call has parameters, so no gradient by its x is needed.
        needed = [bool(kernels), *[True] * (len(arguments) - 1)]
        kernels.append(Kernel(op, [a.detach().requires_grad_(n) for a, n in zip(arguments, needed, strict=True)]))
    return kernels


# -- the jobs ------------------------------------------------------------------------------------------------


def step(name: str, make: Callable[[], flows.Flow], rows: int, most: float) -> Case:
    """A step of training against its networks, and against its kernels."""
    name = f"a training step, {name}, N = {rows:,}"

    def prepare(settings: Settings) -> tuple[Call, list[Baseline]]:
        flow, x = training.started(make, rows, settings)
        kernels = kernels_of(flow, x)
        parts = {
            NETWORKS: (most, network_step(flow, x)),
            KERNELS: (None, lambda: [kernel.gradients() for kernel in kernels]),
        }
        own = training.checked_step(name, flow, flow.log_prob, x)
        return own, [Baseline(part, target, Call(run, x.numel(), 1)) for part, (target, run) in parts.items()]

    return timed(name, prepare, in_time=True)


def fit(label: str, make: Callable[[], flows.Flow]) -> Case:
    """A whole fit, its start included, against the calls of the op in its steps."""
    name = f"fit, univariate, {label}, {PASSES} passes over {FIT_ROWS:,} rows"

    def prepare(settings: Settings) -> tuple[Call, list[Baseline]]:
        _, x = training.started(make, FIT_ROWS, settings)

        def own() -> flows.Flow:
            return training.fitted(make().to(settings.dtype), x)

        flow = own()
        training.check_fit(name, flow, x)
        batches = ((x - x.mean()) / x.std()).split(BATCH)
        kernels = PASSES * [kernel for batch in batches for kernel in kernels_of(flow, batch)]
        theirs = Call(lambda: [kernel.gradients() for kernel in kernels], x.numel(), 1)
        return Call(own, x.numel(), 1), [Baseline(KERNELS, 2.5, theirs)]

    return timed(name, prepare, in_time=True)


def check_samples(name: str, flow: flows.Flow, n: int) -> None:
    """Check that samples follow the flow: that their images have the mean and the variance of the normal base."""
    with torch.no_grad():
        z, _ = flow.transform(flow.sample(n, seed=0))
    z = z.double()
    off = max(abs(z.mean().item()), abs(z.square().mean().item() - 1.0) / math.sqrt(2.0)) * math.sqrt(z.numel())
    if not off <= 5.0:
        raise WrongResult(f"{name}: the samples are off by {off:.1f} standard errors; nothing was timed")


def without_gradients(
    what: str, name: str, make: Callable[[], flows.Flow], rows: int, part: str, most: float | None
) -> Case:
    """``log_prob`` or ``sample``, named by ``what``, against networks and kernels without gradients."""
    name, samples = f"{what}, {name}, N = {rows:,}", what == "sample"

    def prepare(settings: Settings) -> tuple[Call, list[Baseline]]:
        flow, x = training.started(make, rows, settings)
        if samples:
            check_samples(name, flow, len(x))
        else:
            training.check_density(name, flow.log_prob, x)
        standard = (x - x.mean(0)) / x.std(0)
        networks, kernels = networks_of(flow, standard), kernels_of(flow, standard, inverse=samples)

        @torch.no_grad()
        def own() -> None:
            _ = flow.sample(len(x)) if samples else flow.log_prob(x)

        @torch.no_grad()
        def parts() -> None:
            for network, inputs in networks:
                network(inputs)
            for kernel in kernels:
                kernel.results()

        return Call(own, x.numel(), 1), [Baseline(part, most, Call(parts, x.numel(), 1))]

    return timed(name, prepare, in_time=True)


def coupling() -> flows.Flow:
    return flows.coupling(5, hidden=HIDDEN)


def wide() -> flows.Flow:
    return flows.autoregressive(12, layers=3, components=32, hidden=HIDDEN)


def univariate() -> flows.Flow:
    return flows.univariate(8)


TIMES: Columns = {
    "case": lambda row: str(row["case"]),
    "mixflow ms": lambda row: number(1e3 * row["seconds"]),
    "baseline": lambda row: str(row["contender"]),
    "baseline ms": lambda row: number(1e3 * row["contender_seconds"]),
    "times as long": lambda row: f"{row['ratio']:.2f}",
    "target": lambda row: "-" if row["target"] is None else f"at most {row['target']:g}",
    "reached": yes_or_no,
}
CASES = [
    step("coupling, D = 5", coupling, 4096, 1.6),
    step("coupling, D = 5", coupling, 256, 2.2),
    step("autoregressive, D = 5, 3 layers", training.autoregressive, 4096, 1.6),
    step("autoregressive, D = 5, 3 layers", training.autoregressive, 256, 2.2),
    step("autoregressive, D = 12, 3 layers, K = 32", wide, 1024, 2.0),
    fit("K = 8", univariate),
    fit("K by default", flows.univariate),
    *(without_gradients(what, "univariate", univariate, 2**18, KERNELS, 1.5) for what in ("log_prob", "sample")),
    *(without_gradients(what, "coupling, D = 5", coupling, 2**16, BOTH, None) for what in ("log_prob", "sample")),
]
GROUPS = [Group("Jobs against their parts, one thread", CASES, TIMES, device="cpu")]
