"""What people wait for: steps of training, whole fits, scoring and sampling. Everything runs on one thread.

A job is timed against its parts that no code can do without: its networks, as plain PyTorch modules, and its calls of
the op. Or it is timed against the same job done by others. The results of all of them are checked first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mixflow

from .. import flows
from ..op import affine_transform
from ..transforms import Affine, Autoregressive, Compose, Coupling, MixtureCDF, Transform
from .baselines import BASE_OF, log_space_forward
from .inputs import Settings
from .rivals import Absent, require
from .verify import WrongResult, check_agreement

__all__ = ["AGAINST_OTHERS", "AGAINST_PARTS", "Job", "LogProb", "check_density", "training_step", "zuko_nsf"]

HIDDEN = (64, 64)  # widths of the hidden layers of all networks
FIT_ROWS, BATCH = 246_000, 16_384
STEPS = 20  # before a step is timed, in which the loss must fall
DRAWS = 2**14  # points that a density is integrated by
NETWORKS, KERNELS, BOTH = "its networks alone", "its kernels alone", "its networks and kernels alone"

Call = Callable[[], object]
LogProb = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """A job of mixflow and what it is timed against.

    Args:
        name: Of the rows.
        build: Returns the number of elements, rows times columns, that a call works on, mixflow's call, and the others
            by name, or why one is absent. Raises :class:`mixflow.bench.verify.WrongResult` where a result is wrong.
        targets: For each of the others by name: how many times as long the job may take, or how many times as fast it
            must be; None for no target.

    """

    name: str
    build: Callable[[Settings], tuple[int, Call, dict[str, Call | Absent]]]
    targets: dict[str, float | None]


# -- checks --------------------------------------------------------------------------------------------------


def check_density(name: str, log_prob: LogProb, x: Tensor) -> None:
    """Check that a density integrates to 1, by draws from a normal that covers the rows ``x`` (N, D).

    Raises:
        WrongResult: the integral is off by more than five standard errors, or by more than a tenth.

    Example:
        >>> import torch
        >>> from mixflow.bench.jobs import check_density
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> check_density("normal", normal.log_prob, x)
        >>> check_density("twice the normal", lambda x: normal.log_prob(x) + 0.7, x)
        Traceback (most recent call last):
        mixflow.bench.verify.WrongResult: twice the normal: the density integrates to 2.0...; nothing was timed

    """
    noise = torch.randn(DRAWS, x.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loc, scale = x.double().mean(0), 1.3 * x.double().std(0)
    points = (loc + scale * noise).to(x.dtype)
    log_drawn = -(0.5 * noise.square() + 0.5 * math.log(2 * math.pi) + scale.log()).sum(-1)
    with torch.no_grad():
        found = torch.cat([log_prob(part) for part in points.split(4096)]).double()
    ratio = (found - log_drawn).exp()
    mass, error = ratio.mean().item(), ratio.std().item() / math.sqrt(DRAWS)
    if not abs(mass - 1.0) <= min(5.0 * error, 0.1):
        raise WrongResult(f"{name}: the density integrates to {mass:.4f}; nothing was timed")


def _check_samples(name: str, flow: flows.Flow, n: int) -> None:
    """Check that samples follow the flow: that their images have the mean and the variance of the normal base."""
    with torch.no_grad():
        z, _ = flow.transform(flow.sample(n, seed=0))
    z = z.double()
    off = max(abs(z.mean().item()), abs(z.square().mean().item() - 1.0) / math.sqrt(2.0)) * math.sqrt(z.numel())
    if not off <= 5.0:
        raise WrongResult(f"{name}: the samples are off by {off:.1f} standard errors; nothing was timed")


# -- steps of training ---------------------------------------------------------------------------------------


def training_step(log_prob: LogProb, optimizer: torch.optim.Optimizer) -> Callable[[Tensor], Tensor]:
    """The step of a loop that people write by hand, which returns the loss of its batch."""

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = -log_prob(x).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def zuko_nsf(features: int) -> tuple[nn.Module, LogProb]:
    """Zuko's neural spline flow, of three transforms.

    Raises:
        Absent: zuko is not installed.

    """
    require("zuko")
    import zuko

    flow = zuko.flows.NSF(features, transforms=3, hidden_features=HIDDEN)
    return flow, lambda x: flow().log_prob(x)


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 1e-4, fused=True)


def _checked_step(name: str, module: nn.Module, log_prob: LogProb, x: Tensor) -> Call:
    """The step on ``x``, once it has been seen to train a density."""
    step = training_step(log_prob, _optimizer(module.parameters()))
    losses = [step(x).item() for _ in range(STEPS)]
    if not losses[-1] < losses[0]:
        raise WrongResult(f"{name}: {STEPS} steps take the loss from {losses[0]} to {losses[-1]}; nothing was timed")
    check_density(name, log_prob, x)
    return lambda: step(x)


def _started(make: Callable[[], flows.Flow], rows: int, settings: Settings) -> tuple[flows.Flow, Tensor]:
    """A flow and the rows (N, D) that it has been set from: normal, or two humps for a single column."""
    with flows.seeded(0):
        flow = make().to(settings.dtype)
        x = torch.randn(settings.capped(rows), flow.features, dtype=settings.dtype)
        if flow.features == 1:
            x[::2] = 0.5 * x[::2] + 4.0
        flow.initialize(x)
    return flow, x


def _step(name: str, make: Callable[[], flows.Flow], rows: int, most: float) -> Job:
    """A step against its networks, and against its kernels."""
    name = f"a training step, {name}, N = {rows:,}"

    def build(settings: Settings) -> tuple[int, Call, dict[str, Call | Absent]]:
        flow, x = _started(make, rows, settings)
        kernels = _kernels(flow, x)
        parts: dict[str, Call | Absent] = {
            NETWORKS: _network_step(flow, x),
            KERNELS: lambda: [kernel.gradients() for kernel in kernels],
        }
        return x.numel(), _checked_step(name, flow, flow.log_prob, x), parts

    return Job(name, build, {NETWORKS: most, KERNELS: None})


def _step_against_zuko(rows: int, least: float) -> Job:
    name = f"a training step, autoregressive, D = 5, 3 layers, N = {rows:,}"

    def build(settings: Settings) -> tuple[int, Call, dict[str, Call | Absent]]:
        flow, x = _started(_autoregressive, rows, settings)
        own = _checked_step(name, flow, flow.log_prob, x)
        try:
            with flows.seeded(0):
                module, log_prob = zuko_nsf(flow.features)
        except Absent as reason:
            return x.numel(), own, {"zuko NSF": reason}
        return x.numel(), own, {"zuko NSF": _checked_step(f"{name}: zuko", module.to(settings.dtype), log_prob, x)}

    return Job(name, build, {"zuko NSF": least})


# -- the parts that no code can do without -------------------------------------------------------------------


def _transforms(flow: flows.Flow) -> list[Transform]:
    assert isinstance(flow.data_to_base, Compose)
    return flow.data_to_base.each()


def _networks(flow: flows.Flow, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Plain perceptrons of the sizes of the flow's networks, each with its inputs, some columns of ``x`` (N, D)."""
    networks: list[tuple[nn.Module, Tensor]] = []
    for transform in _transforms(flow):
        if not isinstance(transform, Coupling | Autoregressive):
            continue
        inputs = len(transform.passing) if isinstance(transform, Coupling) else transform.features
        outputs, (first, second) = _mapped(transform) * transform.elementwise.size, HIDDEN
        hidden = nn.Linear(inputs, first), nn.SiLU(), nn.Linear(first, second), nn.SiLU()
        networks.append((nn.Sequential(*hidden, nn.Linear(second, outputs)).to(x.dtype), x[:, :inputs].contiguous()))
    return networks


def _mapped(transform: Coupling | Autoregressive) -> int:
    return len(transform.mapped) if isinstance(transform, Coupling) else transform.features


def _network_step(flow: flows.Flow, x: Tensor) -> Call:
    with flows.seeded(0):
        networks = _networks(flow, x)
    optimizer = _optimizer([parameter for network, _ in networks for parameter in network.parameters()])
    seeds = [torch.ones_like(network(inputs)) for network, inputs in networks]

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward([network(inputs) for network, inputs in networks], seeds)
        optimizer.step()

    return step


class _Kernel:
    """A call of the op as a flow makes it."""

    def __init__(self, op: Callable[..., tuple[Tensor, Tensor]], arguments: list[Tensor]) -> None:
        self.results = functools.partial(op, *arguments)
        self._leaves = [argument for argument in arguments if argument.requires_grad]
        self._seeds = [torch.ones_like(arguments[0])] * 2

    def gradients(self) -> Sequence[Tensor]:
        return torch.autograd.grad(self.results(), self._leaves, self._seeds)


def _kernels(flow: flows.Flow, x: Tensor, *, inverse: bool = False) -> list[_Kernel]:
    """The calls of the op in one pass of the flow over as many rows as ``x`` (N, D), standardised data, has."""
    kernels: list[_Kernel] = []
    for transform in _transforms(flow):
        if isinstance(transform, MixtureCDF):
            op: Any = mixflow.cdf_transform_inverse if inverse else mixflow.cdf_transform
            op = functools.partial(op, family=transform.family, base=transform.base)
            arguments = [x, *transform.parameters()]
        elif isinstance(transform, Coupling | Autoregressive):
            map_ = transform.elementwise
            op = functools.partial(affine_transform, family=map_.family, base=map_.base, inverse=inverse)
            mapped = x[:, : _mapped(transform)].contiguous()
            arguments = [mapped, map_.start().to(x).repeat(*mapped.shape, 1)]
        else:
            continue
        # Nothing before the first call has parameters, so no gradient by its x is needed.
        needed = [bool(kernels), *[True] * (len(arguments) - 1)]
        leaves = [a.detach().requires_grad_(n) for a, n in zip(arguments, needed, strict=True)]
        kernels.append(_Kernel(op, leaves))
    return kernels


# -- fits ----------------------------------------------------------------------------------------------------


class _PlainMixtureCDF(MixtureCDF):
    """The same transform as people write it in plain PyTorch."""

    _log_density = Transform._log_density

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z, ladj = log_space_forward(x, self._parameters_for(context), self.family)
        return z, ladj.sum(-1)


def _fit(flow: flows.Flow, x: Tensor, passes: int) -> flows.Flow:
    mixflow.fit(flow, x, epochs=passes, batch_size=BATCH, validation=0, progress=False)
    return flow


def _check_fit(name: str, flow: flows.Flow, x: Tensor) -> None:
    """Check that a fitted flow is a density, and that it scores ``x`` (N, 1) better than one normal does."""
    check_density(name, flow.log_prob, x)
    with torch.no_grad():
        score = flow.log_prob(x).double().mean().item()
    normal = -0.5 * math.log(2 * math.pi * math.e * x.double().var().item())
    if not score > normal:
        raise WrongResult(f"{name}: the fit scores {score:.4f}, one normal {normal:.4f}; nothing was timed")


def _fit_against_kernels(components: int | None, passes: int = 10, most: float = 2.5) -> Job:
    """A whole fit, its start included, against the calls of the op in its steps."""
    make = flows.univariate if components is None else functools.partial(flows.univariate, components)
    label = "K by default" if components is None else f"K = {components}"
    name = f"fit, univariate, {label}, {passes} passes over {FIT_ROWS:,} rows"

    def build(settings: Settings) -> tuple[int, Call, dict[str, Call | Absent]]:
        _, x = _started(make, FIT_ROWS, settings)

        def fit() -> flows.Flow:
            return _fit(make().to(settings.dtype), x, passes)

        flow = fit()
        _check_fit(name, flow, x)
        batches = ((x - x.mean()) / x.std()).split(BATCH)
        kernels = [kernel for batch in batches for kernel in _kernels(flow, batch)]
        return x.numel(), fit, {KERNELS: lambda: [k.gradients() for _ in range(passes) for k in kernels]}

    return Job(name, build, {KERNELS: most})


def _fit_against_formula(family: str, components: int, passes: int = 10, least: float = 8.0) -> Job:
    """A fit against that of the same flow in plain PyTorch, with the same rows, steps and settings."""
    name = f"fit, univariate, {family}, K = {components}, {passes} passes over {FIT_ROWS:,} rows"
    base = BASE_OF[family]

    def build(settings: Settings) -> tuple[int, Call, dict[str, Call | Absent]]:
        _, x = _started(flows.univariate, FIT_ROWS, settings)

        def own() -> flows.Flow:
            return _fit(flows.univariate(components, family, base).to(settings.dtype), x, passes)

        def plain() -> flows.Flow:
            parts = Affine(1, trainable=False), _PlainMixtureCDF(1, components, family, base)
            return _fit(flows.Flow(Compose(*parts), base).to(settings.dtype), x, passes)

        flow, other = own(), plain()
        _check_fit(name, flow, x)
        with torch.no_grad():
            check_agreement(f"{name}: plain PyTorch", [flow.log_prob(x)], [other.log_prob(x)])
        return x.numel(), own, {"plain PyTorch": plain}

    return Job(name, build, {"plain PyTorch": least})


# -- scoring and sampling ------------------------------------------------------------------------------------


def _without_gradients(
    what: str, name: str, make: Callable[[], flows.Flow], rows: int, contender: str, most: float | None
) -> Job:
    """``log_prob`` or ``sample``, named ``what``, against networks and kernels without gradients."""
    name = f"{what}, {name}, N = {rows:,}"
    samples = what == "sample"

    def build(settings: Settings) -> tuple[int, Call, dict[str, Call | Absent]]:
        flow, x = _started(make, rows, settings)
        if samples:
            _check_samples(name, flow, len(x))
        else:
            check_density(name, flow.log_prob, x)
        standard = (x - x.mean(0)) / x.std(0)
        networks, kernels = _networks(flow, standard), _kernels(flow, standard, inverse=samples)

        @torch.no_grad()
        def own() -> None:
            _ = flow.sample(len(x)) if samples else flow.log_prob(x)

        @torch.no_grad()
        def parts() -> None:
            for network, inputs in networks:
                network(inputs)
            for kernel in kernels:
                kernel.results()

        return x.numel(), own, {contender: parts}

    return Job(name, build, {contender: most})


# -- all of it -----------------------------------------------------------------------------------------------


def _coupling() -> flows.Flow:
    return flows.coupling(5, hidden=HIDDEN)


def _autoregressive() -> flows.Flow:
    return flows.autoregressive(5, layers=3, components=8, hidden=HIDDEN)


def _wide() -> flows.Flow:
    return flows.autoregressive(12, layers=3, components=32, hidden=HIDDEN)


def _univariate() -> flows.Flow:
    return flows.univariate(8)


AGAINST_PARTS = [
    *(
        _step(name, make, rows, most)
        for name, make in (("coupling, D = 5", _coupling), ("autoregressive, D = 5, 3 layers", _autoregressive))
        for rows, most in ((4096, 1.6), (256, 2.2))
    ),
    _step("autoregressive, D = 12, 3 layers, K = 32", _wide, 1024, 2.0),
    *(_fit_against_kernels(components) for components in (8, None)),
    *(_without_gradients(what, "univariate", _univariate, 2**18, KERNELS, 1.5) for what in ("log_prob", "sample")),
    *(_without_gradients(what, "coupling, D = 5", _coupling, 2**16, BOTH, None) for what in ("log_prob", "sample")),
]
AGAINST_OTHERS = [
    *(_step_against_zuko(rows, 2.2) for rows in (4096, 256)),
    *(_fit_against_formula(family, components) for family in BASE_OF for components in (8, 16)),
]
