"""Published flows and whole training steps against the same code with the plain formula in the op's place.

Its group runs with `make bench`. Everything runs on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import mixflow
from layouts import Build, Draw, Pair, Run, against, leaves
from mixflow import flows
from mixflow.bench.baselines import BASE_OF
from mixflow.bench.cases import RATES, Case, Group
from mixflow.bench.inputs import Settings
from mixflow.standard import BASES, FAMILIES
from mixflow.transforms import elementwise, mixture

FORMULA = "plain formula"


def formula(
    x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, dim: int = -1, family: str = "logistic", base: str = ""
) -> tuple[Tensor, Tensor]:
    """The formula of published flows: the mixture in log space, the quantile by linear probabilities.

    Takes the arguments of :func:`mixflow.cdf_transform`, whose place it takes in a flow. A flow's last mixture asks for
    the uniform base, for the sake of the density alone: ``z`` is not computed then.
    """
    component, to = FAMILIES[family], BASES[base or BASE_OF[family]]
    log_weight = torch.log_softmax(logits, dim)
    a = (x.unsqueeze(dim) - loc) * torch.exp(-log_scale)
    log_sf = component.plain_log_cdf(-a)
    log_density = torch.logsumexp(log_weight + component.plain_log_pdf(a, log_sf) - log_scale, dim)
    if base == "uniform":
        return x, log_density
    lower = torch.logsumexp(log_weight + component.plain_log_cdf(a), dim).exp()
    z = to.plain_z(lower, 1 - lower)
    return z, log_density - to.log_prob(z)


def op(x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    return mixflow.cdf_transform(x, logits, loc, log_scale, family="logistic", base="logistic", dim=dim)


def affine_formula(x: Tensor, rows: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The formula in place of the op of coupling and autoregressive flows, whose rows end with an affine map."""
    z, ladj = formula(x, *rows[..., :-2].unflatten(-1, (3, -1)).unbind(-2), **options)
    return z * rows[..., -1].exp() + rows[..., -2], ladj + rows[..., -1]


class Coupling(nn.Module):
    """The coupling of docs/recipes.md."""

    def __init__(self, features: int, components: int, transform: Callable[..., Any], hidden: int = 32) -> None:
        super().__init__()
        self.passing, self.components, self.transform = features // 2, components, transform
        self.rest = features - self.passing
        self.net = nn.Sequential(
            nn.Linear(self.passing, hidden), nn.Tanh(), nn.Linear(hidden, self.rest * (3 * components + 2))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, y, k = x[..., : self.passing], x[..., self.passing :], self.components
        p = self.net(a).unflatten(-1, (self.rest, 3 * k + 2))
        logits, loc, log_scale, log_a, b = p.split([k, k, k, 1, 1], -1)
        log_a, b = torch.tanh(log_a.squeeze(-1)), b.squeeze(-1)
        z, ladj = self.transform(y, logits, loc, log_scale)
        return torch.cat([a, z * log_a.exp() + b], -1), (ladj + log_a).sum(-1)


def documented(features: int) -> Build:
    """All gradients of the documented coupling."""

    def build(settings: Settings, draw: Draw) -> Pair:
        x = draw(settings.capped(2**12), features)

        def step(transform: Callable[..., Any]) -> Run:
            with flows.seeded(0):
                layer = Coupling(features, settings.components, transform).to(x)

            def run() -> Sequence[Tensor]:
                z, ladj = layer(x)
                return torch.autograd.grad((0.5 * z.square().sum(-1) - ladj).mean(), list(layer.parameters()))

            return run

        return step(op), step(formula), x.numel()

    return build


def flow_plus_plus(settings: Settings, draw: Draw) -> Pair:
    k = 4 if settings.quick else 32
    x, packed = leaves(draw(8, 3, 32, 32), 0.5 * draw(8, 3 * k, 3, 32, 32))
    seeds = draw(8, 3, 32, 32), draw(8, 3, 32, 32)

    def gradients(transform: Callable[..., Any]) -> Run:
        return lambda: torch.autograd.grad(transform(x, *packed.chunk(3, 1), dim=1), [x, packed], seeds)

    return gradients(op), gradients(formula), x.numel()


def training(recipe: str, features: int, rows: int, **options: str) -> Build:
    """A step of training, forward, backward and AdamW, of two flows with the same weights."""

    def build(settings: Settings, draw: Draw) -> Pair:
        x = 0.5 * draw(settings.capped(rows), features)  # further out the plain formula is infinite

        def step() -> Run:
            arguments = {"components": settings.components, "base": "logistic", "seed": 0, **options}
            if features > 1:
                arguments["features"] = features
            flow = flows.RECIPES[recipe](**arguments).to(x)
            optimizer = torch.optim.AdamW(flow.parameters(), 1e-4)

            def run() -> Sequence[Tensor]:
                optimizer.zero_grad()
                log_prob = flow.log_prob(x)
                (-log_prob.mean()).backward()
                optimizer.step()
                return [log_prob.detach()]

            return run

        plain = step()

        def with_formula() -> Sequence[Tensor]:
            affine = mock.patch.object(elementwise, "affine_transform", affine_formula)
            with affine, mock.patch.object(mixture, "cdf_transform", formula):
                return plain()

        return step(), with_formula, x.numel()

    return build


CASES: list[Case] = [
    *(
        against(f"the documented coupling, D = {d}, gradients", documented(d), 2.0, FORMULA, exact=False)
        for d in (4, 32)
    ),
    against(
        "Flow++'s mixture (8, 3K, 3, 32, 32), K = 32, forward + backward", flow_plus_plus, 2.5, FORMULA, exact=False
    ),
    *(
        against(f"a training step, {name}", build, None, FORMULA, exact=False)
        for name, build in {
            "univariate, N = 16,384": training("univariate", 1, 2**14, family="logistic"),
            "gaussianization, D = 5, N = 4096": training("gaussianization", 5, 2**12, family="logistic"),
            "coupling, D = 12, N = 4096": training("coupling", 12, 2**12),
            "coupling, D = 64, N = 512": training("coupling", 64, 2**9),
            "autoregressive, D = 12, N = 4096": training("autoregressive", 12, 2**12),
            "autoregressive, D = 64, N = 512": training("autoregressive", 64, 2**9),
        }.items()
    ),
]
GROUPS = [Group("Against the formula it replaces, one thread", CASES, RATES)]
