"""The op as real training code calls it: its layouts, a documented recipe, published formulas, whole training steps.

Everything runs on one thread. Layouts are timed against the same numbers in contiguous tensors, and must give the same
bits; steps against the same code with the plain formula in the op's place.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import mixflow

from .. import flows
from ..op import affine_transform
from ..transforms import elementwise, mixture
from . import verify
from .baselines import log_space_forward
from .inputs import Settings
from .timing import Contender, alone

__all__ = ["FORMULA", "LAYOUTS", "STEPS", "Pair", "contenders"]

Call = Callable[[], Sequence[Tensor]]
Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Pair:
    """Two ways to the same results, to be timed against each other.

    Args:
        name: Of the row.
        build: Makes the two calls and the number of elements that each maps.
        target: The ratio of their rates that is aimed at.
        other: What the second is called.
        exact: Whether the results are the same in every bit; else the second is a plain formula, wrong in the tails.

    """

    name: str
    build: Callable[[Settings, Draw], tuple[Call, Call, int]]
    target: float | None
    other: str = "contiguous"
    exact: bool = True


def contenders(pair: Pair, settings: Settings) -> list[Contender]:
    """The two to time, once their results have been compared; raises :class:`mixflow.bench.verify.WrongResult`."""
    generator = torch.Generator(settings.device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=settings.device).to(settings.dtype)

    ours, other, elements = pair.build(settings, draw)
    if pair.exact:
        for mine, theirs in zip(ours(), other(), strict=False):
            if not torch.equal(mine, theirs):
                raise verify.WrongResult(f"{pair.name}: the layout changes the result; nothing was timed")
    else:
        verify.check_agreement(pair.name, ours(), other())
    return [alone(pair.name, ours, elements), alone(pair.other, other, elements)]


# -- layouts -------------------------------------------------------------------------------------------------


def _op(x: Tensor, *parameters: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    logits, loc, log_scale = parameters
    return mixflow.cdf_transform(x, logits, loc, log_scale, family="logistic", base="logistic", dim=dim)


def _affine_op(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return affine_transform(x, rows, family="logistic", base="logistic")


def _parameters(draw: Draw, *shape: int) -> list[Tensor]:
    return [draw(*shape), draw(*shape), 0.3 * draw(*shape) - 1]


def _forward(
    make: Callable[[Settings, Draw], tuple[Tensor, list[Tensor]]],
) -> Callable[[Settings, Draw], tuple[Call, Call, int]]:
    """Forward as it comes against forward of contiguous copies."""

    def build(settings: Settings, draw: Draw) -> tuple[Call, Call, int]:
        x, parameters = make(settings, draw)
        copy, copies = x.contiguous(), [p.contiguous() for p in parameters]
        return lambda: _op(x, *parameters), lambda: _op(copy, *copies), x.numel()

    return build


def _half(settings: Settings, draw: Draw) -> tuple[Tensor, list[Tensor]]:
    n = settings.n // 8
    return draw(n, 8)[:, 4:], _parameters(draw, n, 4, settings.components)


def _every_other(settings: Settings, draw: Draw) -> tuple[Tensor, list[Tensor]]:
    images = max(1, settings.n // 2**13)
    return draw(images, 8, 32, 32)[:, ::2], _parameters(draw, images, 4, 32, 32, settings.components)


def _components_in_axis_1(settings: Settings, draw: Draw) -> tuple[Tensor, list[Tensor]]:
    packed = draw(8, 3 * settings.components, 3, 32, 32)
    return draw(8, 3, 32, 32), [p.movedim(1, -1) for p in packed.chunk(3, 1)]


def _channels_last(settings: Settings, draw: Draw) -> tuple[Tensor, list[Tensor]]:
    images = max(1, settings.n // 2**14)
    x = draw(images, 8, 32, 32).to(memory_format=torch.channels_last)
    return x, _parameters(draw, images, 8, 32, 32, settings.components)


def _transposed(settings: Settings, draw: Draw) -> tuple[Tensor, list[Tensor]]:
    rows = max(1, settings.n // 2**11)
    return draw(rows, 100).T, _parameters(draw, 100, rows, settings.components)


def _per_channel(settings: Settings, draw: Draw) -> tuple[Tensor, list[Tensor]]:
    images = max(1, settings.n // (3 * 2**12))
    return draw(images, 3, 64, 64), _parameters(draw, 3, 1, 1, settings.components)


def _narrow(settings: Settings, draw: Draw) -> tuple[Tensor, list[Tensor]]:
    return draw(settings.n // 3, 6)[:, :3], _parameters(draw, settings.components)


def _against_one_set(settings: Settings, draw: Draw) -> tuple[Call, Call, int]:
    """Parameters per channel against one set for all elements, which lie contiguous: there is no such copy of them."""
    x, parameters = _per_channel(settings, draw)
    same = [p[:1].expand(3, 1, 1, -1).contiguous() for p in parameters]
    one, flat = [p[0, 0, 0] for p in parameters], x.flatten()
    return (
        lambda: [r.flatten() for r in _op(x, *same)],
        lambda: _op(flat, *one),
        x.numel(),
    )


def _gradients(leaves: Sequence[Tensor], loss: Callable[[], Tensor]) -> Call:
    return lambda: torch.autograd.grad(loss(), leaves)


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def _reduced(components: int, mean: bool) -> Callable[[Settings, Draw], tuple[Call, Call, int]]:
    """Gradients of a loss that sums the features first, as every flow does, against one sum over everything."""

    def build(settings: Settings, draw: Draw) -> tuple[Call, Call, int]:
        k = components or settings.components
        n = max(1, 2 * settings.n // (4 * k))
        leaves = _leaves([draw(n, 4), *_parameters(draw, n, 4, k)])

        def by_rows() -> Tensor:
            z, ladj = _op(*leaves)
            if mean:
                return z.mean() + ladj.sum(-1).mean()
            return z.sum() + ladj.sum(-1).sum()

        def at_once() -> Tensor:
            z, ladj = _op(*leaves)
            if mean:
                return z.sum() / z.numel() + ladj.sum() / n
            return z.sum() + ladj.sum()

        return _gradients(leaves, by_rows), _gradients(leaves, at_once), n * 4

    return build


def _packed(own: bool) -> Callable[[Settings, Draw], tuple[Call, Call, int]]:
    """Rows (N, D, 3 K + 2), as a network puts them out, against three contiguous parameters."""

    def build(settings: Settings, draw: Draw) -> tuple[Call, Call, int]:
        n, k = settings.capped(2**16), settings.components
        x, rows = _leaves([draw(n, 3), 0.3 * draw(n, 3, 3 * k + 2)])
        plain = _leaves([x, *(p.contiguous() for p in rows.detach()[..., :-2].unflatten(-1, (3, k)).unbind(-2))])
        seeds = draw(n, 3), draw(n, 3)

        def through_views() -> Sequence[Tensor]:
            logits, loc, log_scale = rows[..., :-2].unflatten(-1, (3, k)).unbind(-2)
            return _op(x, logits, loc, log_scale)

        def as_it_is() -> Sequence[Tensor]:
            return _affine_op(x, rows)

        run = as_it_is if own else through_views

        def ours() -> Sequence[Tensor]:
            grads = torch.autograd.grad(run(), [x, rows], seeds)
            return grads if own else grads[:1]

        def other() -> Sequence[Tensor]:
            grads = torch.autograd.grad(_op(*plain), plain, seeds)
            return () if own else grads[:1]  # without an affine map its results are others

        return ours, other, n * 3

    return build


def _of_x_alone(settings: Settings, draw: Draw) -> tuple[Call, Call, int]:
    n = settings.n // 4
    x, *parameters = draw(n), *_parameters(draw, n, settings.components)
    (alone,), leaves = _leaves([x]), _leaves([x, *parameters])

    def loss(x: Tensor, *parameters: Tensor) -> Tensor:
        z, ladj = _op(x, *parameters)
        return z.sum() + ladj.sum()

    return (
        lambda: [g.float().round(decimals=2) for g in torch.autograd.grad(loss(alone, *parameters), [alone])],
        lambda: [g.float().round(decimals=2) for g in torch.autograd.grad(loss(*leaves), leaves)],
        n,
    )


LAYOUTS = [
    Pair("forward, x[:, half:]", _forward(_half), 0.8),
    Pair("forward, x[:, ::2] of (B, C, H, W)", _forward(_every_other), 0.8),
    Pair("forward, components in axis 1, (8, 3K, 3, 32, 32)", _forward(_components_in_axis_1), 0.8),
    Pair("forward, x channels_last", _forward(_channels_last), 0.8),
    Pair("forward, x.T", _forward(_transposed), 0.8),
    Pair("forward, parameters per channel (3, 1, 1, K)", _against_one_set, 0.75, "one set, contiguous"),
    Pair("forward, one set, x[:, :3] of (N, 6)", _forward(_narrow), 0.8),
    Pair("forward + backward, ladj.sum(-1)", _reduced(0, False), 0.8, "ladj.sum()"),
    Pair("forward + backward, ladj.sum(-1), K = 32", _reduced(32, False), 0.8, "ladj.sum()"),
    Pair("forward + backward, means", _reduced(0, True), 0.8, "sums", exact=False),
    Pair("forward + backward, means, K = 32", _reduced(32, True), 0.8, "sums", exact=False),
    Pair("forward + backward, packed rows through torch's views", _packed(False), 0.5),
    Pair("forward + backward, packed rows through the flows' op", _packed(True), 0.85),
    Pair("forward + backward, gradient of x alone", _of_x_alone, 1.5, "all gradients", exact=False),
]


# -- against the formula that the op replaces ----------------------------------------------------------------

FORMULA = "plain formula"


def _formula(
    x: Tensor,
    logits: Tensor,
    loc: Tensor,
    log_scale: Tensor,
    dim: int = -1,
    family: str = "logistic",
    base: str = "logistic",
) -> tuple[Tensor, Tensor]:
    """A logistic mixture's CDF and a base's quantile, in log space for the mixture alone, as in published flows."""
    if (family, base) == ("gaussian", "normal"):  # the marginals that couplings begin with
        return log_space_forward(x, (logits, loc, log_scale), family)
    log_weight = torch.log_softmax(logits, dim)
    a = (x.unsqueeze(dim) - loc) * torch.exp(-log_scale)
    log_pdf = torch.logsumexp(log_weight + a - log_scale - 2 * nn.functional.softplus(a), dim)
    if base == "uniform":  # a flow's last mixture asks for its density alone, for which nobody would compute z
        return x, log_pdf
    log_cdf = torch.logsumexp(log_weight + nn.functional.logsigmoid(a), dim)
    u = log_cdf.exp()
    if base == "normal":
        z = torch.special.ndtri(u)
        return z, log_pdf + 0.5 * z.square() + 0.5 * math.log(2 * math.pi)
    log_sf = torch.log1p(-u)
    return log_cdf - log_sf, log_pdf - log_cdf - log_sf


def _affine_formula(x: Tensor, rows: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    logits, loc, log_scale = rows[..., :-2].unflatten(-1, (3, -1)).unbind(-2)
    z, ladj = _formula(x, logits, loc, log_scale)
    return z * rows[..., -1].exp() + rows[..., -2], ladj + rows[..., -1]


class _Coupling(nn.Module):
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


def _recipe(features: int) -> Callable[[Settings, Draw], tuple[Call, Call, int]]:
    def build(settings: Settings, draw: Draw) -> tuple[Call, Call, int]:
        x = draw(settings.capped(2**12), features)

        def step(transform: Callable[..., Any]) -> Call:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                layer = _Coupling(features, settings.components, transform).to(x)

            def call() -> Sequence[Tensor]:
                z, ladj = layer(x)
                return torch.autograd.grad((0.5 * z.square().sum(-1) - ladj).mean(), list(layer.parameters()))

            return call

        return step(_op), step(_formula), x.numel()

    return build


def _flow_plus_plus(settings: Settings, draw: Draw) -> tuple[Call, Call, int]:
    k = 4 if settings.quick else 32
    x, packed = _leaves([draw(8, 3, 32, 32), 0.5 * draw(8, 3 * k, 3, 32, 32)])
    seeds = draw(8, 3, 32, 32), draw(8, 3, 32, 32)

    def gradients(transform: Callable[..., Any]) -> Call:
        return lambda: torch.autograd.grad(transform(x, *packed.chunk(3, 1), dim=1), [x, packed], seeds)

    return gradients(_op), gradients(_formula), x.numel()


@contextlib.contextmanager
def _with_formula() -> Iterator[None]:
    with (
        mock.patch.object(elementwise, "affine_transform", _affine_formula),
        mock.patch.object(mixture, "cdf_transform", _formula),
    ):
        yield


def _step(make: Callable[[int], flows.Flow], rows: int) -> Callable[[Settings, Draw], tuple[Call, Call, int]]:
    """One step of training, forward, backward and AdamW, of two flows with the same weights."""

    def build(settings: Settings, draw: Draw) -> tuple[Call, Call, int]:
        n = settings.capped(rows)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = make(settings.components).to(settings.device, settings.dtype)
            torch.manual_seed(0)
            second = make(settings.components).to(settings.device, settings.dtype)
        x = 0.5 * draw(n, first.features)  # further out the plain formula is infinite
        own = [torch.optim.AdamW(flow.parameters(), 1e-4) for flow in (first, second)]

        def step(flow: flows.Flow, optimizer: torch.optim.Optimizer) -> Sequence[Tensor]:
            optimizer.zero_grad()
            log_prob = flow.log_prob(x)
            (-log_prob.mean()).backward()
            optimizer.step()
            return [log_prob.detach()]

        def with_formula() -> Sequence[Tensor]:
            with _with_formula():
                return step(second, own[1])

        return lambda: step(first, own[0]), with_formula, x.numel()

    return build


STEPS = [
    *(
        replace(Pair("", _recipe(d), 2.0, FORMULA, exact=False), name=f"the documented coupling, D = {d}, gradients")
        for d in (4, 32)
    ),
    Pair("Flow++'s mixture (8, 3K, 3, 32, 32), K = 32, forward + backward", _flow_plus_plus, 2.5, FORMULA, exact=False),
    *(
        Pair(f"a training step, {name}", _step(make, rows), None, FORMULA, exact=False)
        for name, make, rows in (
            ("univariate, N = 16,384", lambda k: flows.univariate(k, family="logistic", base="logistic"), 2**14),
            (
                "gaussianization, D = 5, N = 4096",
                lambda k: flows.gaussianization(5, components=k, family="logistic", base="logistic"),
                2**12,
            ),
            ("coupling, D = 12, N = 4096", lambda k: flows.coupling(12, components=k, base="logistic"), 2**12),
            ("coupling, D = 64, N = 512", lambda k: flows.coupling(64, components=k, base="logistic"), 2**9),
            (
                "autoregressive, D = 12, N = 4096",
                lambda k: flows.autoregressive(12, components=k, base="logistic"),
                2**12,
            ),
            (
                "autoregressive, D = 64, N = 512",
                lambda k: flows.autoregressive(64, components=k, base="logistic"),
                2**9,
            ),
        )
    ),
]
