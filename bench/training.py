"""What people wait for, steps of training and whole fits, against the same by others.

Its group runs with `make bench`. Everything runs on one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import mixflow
from mixflow import flows
from mixflow.bench.baselines import BASE_OF, log_space_forward
from mixflow.bench.cases import RATES, Baseline, Case, Group, timed
from mixflow.bench.inputs import Settings
from mixflow.bench.large_calls import require
from mixflow.bench.timing import Call
from mixflow.bench.verify import WrongResult, check_agreement
from mixflow.transforms import Affine, Compose, MixtureCDF, Transform

HIDDEN = (64, 64)  # widths of the hidden layers of all networks
FIT_ROWS, BATCH, PASSES = 246_000, 16_384, 10
STEPS = 20  # before a step is timed; the loss must fall in them
DRAWS = 2**14  # points that a density is integrated by

LogProb = Callable[[Tensor], Tensor]


# -- checks --------------------------------------------------------------------------------------------------


def check_density(name: str, log_prob: LogProb, x: Tensor) -> None:
    """Check that a density integrates to 1, by draws from a normal that covers the rows ``x`` (N, D).

    Raises:
        WrongResult: the integral is off by more than five standard errors, or by more than a tenth.
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


def check_fit(name: str, flow: flows.Flow, x: Tensor) -> None:
    """Check that a fitted flow is a density, and that it scores ``x`` (N, 1) better than one normal does."""
    check_density(name, flow.log_prob, x)
    with torch.no_grad():
        score = flow.log_prob(x).double().mean().item()
    normal = -0.5 * math.log(2 * math.pi * math.e * x.double().var().item())
    if not score > normal:
        raise WrongResult(f"{name}: the fit scores {score:.4f}, one normal {normal:.4f}; nothing was timed")


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


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of all steps that are timed."""
    return torch.optim.AdamW(parameters, 1e-4, fused=True)


def checked_step(name: str, module: nn.Module, log_prob: LogProb, x: Tensor) -> Call:
    """The step on ``x`` (N, D), which is first seen to train a density.

    Raises:
        WrongResult: the loss does not fall, or there is no density.

    """
    step = training_step(log_prob, optimizer_of(module.parameters()))
    losses = [step(x).item() for _ in range(STEPS)]
    if not losses[-1] < losses[0]:
        raise WrongResult(f"{name}: {STEPS} steps take the loss from {losses[0]} to {losses[-1]}; nothing was timed")
    check_density(name, log_prob, x)
    return Call(lambda: step(x), x.numel(), threads=1)


def started(make: Callable[[], flows.Flow], rows: int, settings: Settings) -> tuple[flows.Flow, Tensor]:
    """A flow and the rows (N, D) that it starts from: normal, or with two modes if there is a single column."""
    with flows.seeded(0):
        flow = make().to(settings.dtype)
        x = torch.randn(settings.capped(rows), flow.features, dtype=settings.dtype)
        if flow.features == 1:
            x[::2] = 0.5 * x[::2] + 4.0
        flow.initialize(x)
    return flow, x


def autoregressive() -> flows.Flow:
    """The flow that is compared with zuko's."""
    return flows.autoregressive(5, layers=3, components=8, hidden=HIDDEN)


def zuko_nsf(features: int) -> tuple[nn.Module, LogProb]:
    """Zuko's neural spline flow, of three transforms.

    Raises:
        Unavailable: zuko is not installed.

    """
    require("zuko")
    import zuko

    flow = zuko.flows.NSF(features, transforms=3, hidden_features=HIDDEN)
    return flow, lambda x: flow().log_prob(x)


def _step_against_zuko(rows: int) -> Case:
    name = f"a training step, autoregressive, D = 5, 3 layers, N = {rows:,}"

    def prepare(settings: Settings) -> tuple[Call, list[Baseline]]:
        flow, x = started(autoregressive, rows, settings)

        def theirs() -> Call:
            with flows.seeded(0):
                module, log_prob = zuko_nsf(flow.features)
            return checked_step(f"{name}: zuko", module.to(settings.dtype), log_prob, x)

        return checked_step(name, flow, flow.log_prob, x), [Baseline.attempt("zuko NSF", 2.2, theirs)]

    return timed(name, prepare)


# -- fits ----------------------------------------------------------------------------------------------------


class _PlainMixtureCDF(MixtureCDF):
    """The same transform as people write it in plain PyTorch."""

    _log_density = Transform._log_density

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z, ladj = log_space_forward(x, self._parameters_for(context), self.family)
        return z, ladj.sum(-1)


def fitted(flow: flows.Flow, x: Tensor) -> flows.Flow:
    """``flow`` after 10 passes over ``x`` (N, 1)."""
    mixflow.fit(flow, x, epochs=PASSES, batch_size=BATCH, validation=0, progress=False)
    return flow


def _fit_against_formula(family: str, components: int) -> Case:
    """A fit against that of the same flow in plain PyTorch, with the same rows, steps and settings."""
    name = f"fit, univariate, {family}, K = {components}, {PASSES} passes over {FIT_ROWS:,} rows"
    base = BASE_OF[family]

    def prepare(settings: Settings) -> tuple[Call, list[Baseline]]:
        _, x = started(flows.univariate, FIT_ROWS, settings)

        def own() -> flows.Flow:
            return fitted(flows.univariate(components, family, base).to(settings.dtype), x)

        def plain() -> flows.Flow:
            parts = Affine(1, trainable=False), _PlainMixtureCDF(1, components, family, base)
            return fitted(flows.Flow(Compose(*parts), base).to(settings.dtype), x)

        flow, other = own(), plain()
        check_fit(name, flow, x)
        with torch.no_grad():
            check_agreement(f"{name}: plain PyTorch", [flow.log_prob(x)], [other.log_prob(x)])
        return Call(own, x.numel(), 1), [Baseline("plain PyTorch", 8.0, Call(plain, x.numel(), 1))]

    return timed(name, prepare)


CASES = [
    *(_step_against_zuko(rows) for rows in (4096, 256)),
    *(_fit_against_formula(family, components) for family in mixflow.FAMILIES for components in (8, 16)),
]
GROUPS = [Group("Jobs against others, one thread", CASES, RATES, device="cpu")]
