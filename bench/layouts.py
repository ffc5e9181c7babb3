"""The layouts of real training code against the same numbers in contiguous tensors, which must give the same bits.

Its groups run with `make bench`. Everything runs on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import mixflow
from mixflow.bench.cases import RATES, Baseline, Case, Group, timed
from mixflow.bench.inputs import Settings, normal
from mixflow.bench.timing import Call
from mixflow.bench.verify import WrongResult, check_agreement
from mixflow.op import affine_transform

Run = Callable[[], Sequence[Tensor]]
Draw = Callable[..., Tensor]
Pair = tuple[Run, Run, int]  # as it comes, the baseline, and the number of elements of a call
Build = Callable[[Settings, Draw], Pair]


def against(
    name: str,
    build: Callable[[Settings, Draw], Pair],
    target: float | None,
    baseline: str = "contiguous",
    exact: bool = True,
) -> Case:
    """The case of two calls with the same results: in every bit, or where sums are taken otherwise, roughly."""

    def prepare(settings: Settings) -> tuple[Call, list[Baseline]]:
        own, other, elements = build(settings, normal(settings))
        ours, theirs = own(), other()
        if exact and not all(map(torch.equal, ours, theirs)):
            raise WrongResult(f"{name}: the layout changes the result; nothing was timed")
        check_agreement(name, ours, theirs)
        return Call(own, elements, 1), [Baseline(baseline, target, Call(other, elements, 1))]

    return timed(name, prepare)


def op(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    logits, loc, log_scale = parameters
    return mixflow.cdf_transform(x, logits, loc, log_scale, family="logistic", base="logistic")


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def parameters(draw: Draw, *shape: int) -> list[Tensor]:
    return [draw(*shape), draw(*shape), 0.3 * draw(*shape) - 1]


# -- forward -------------------------------------------------------------------------------------------------


def forward(make: Callable[[int, int, Draw], tuple[Tensor, list[Tensor]]]) -> Build:
    """Forward of x and parameters as ``make(n, K, draw)`` gives them, against forward of contiguous copies."""

    def build(settings: Settings, draw: Draw) -> Pair:
        x, given = make(settings.n, settings.components, draw)
        copy, copies = x.contiguous(), [p.contiguous() for p in given]
        return lambda: op(x, *given), lambda: op(copy, *copies), x.numel()

    return build


def components_in_axis_1(n: int, k: int, draw: Draw) -> tuple[Tensor, list[Tensor]]:
    packed = draw(8, 3 * k, 3, 32, 32)
    return draw(8, 3, 32, 32), [p.movedim(1, -1) for p in packed.chunk(3, 1)]


def channels_last(n: int, k: int, draw: Draw) -> tuple[Tensor, list[Tensor]]:
    shape = max(1, n // 2**14), 8, 32, 32
    return draw(*shape).to(memory_format=torch.channels_last), parameters(draw, *shape, k)


def per_channel(settings: Settings, draw: Draw) -> Pair:
    """Parameters per channel against one set for all elements: no copy of them is contiguous in this way."""
    x = draw(max(1, settings.n // (3 * 2**12)), 3, 64, 64)
    one = parameters(draw, settings.components)
    same, flat = [p.expand(3, 1, 1, -1).contiguous() for p in one], x.flatten()
    return lambda: [r.flatten() for r in op(x, *same)], lambda: op(flat, *one), x.numel()


# -- gradients -----------------------------------------------------------------------------------------------


def reduced(components: int | None, mean: bool) -> Build:
    """Gradients of a loss that sums the features first, as every flow does, against one sum over everything."""

    def build(settings: Settings, draw: Draw) -> Pair:
        k = components or settings.components
        n = max(1, settings.n // (2 * k))
        given = leaves(draw(n, 4), *parameters(draw, n, 4, k))

        def by_rows() -> Sequence[Tensor]:
            z, ladj = op(*given)
            rows = ladj.sum(-1)
            return torch.autograd.grad(z.mean() + rows.mean() if mean else z.sum() + rows.sum(), given)

        def at_once() -> Sequence[Tensor]:
            z, ladj = op(*given)
            return torch.autograd.grad(z.sum() / z.numel() + ladj.sum() / n if mean else z.sum() + ladj.sum(), given)

        return by_rows, at_once, n * 4

    return build


def packed_rows(settings: Settings, draw: Draw) -> tuple[Tensor, Tensor, list[Tensor], tuple[Tensor, Tensor]]:
    """x, rows (N, D, 3 K + 2) as a network returns them, contiguous copies of everything, and seeds."""
    n, k = settings.capped(2**16), settings.components
    x, rows = leaves(draw(n, 3), 0.3 * draw(n, 3, 3 * k + 2))
    apart = rows.detach()[..., :-2].unflatten(-1, (3, k)).unbind(-2)
    return x, rows, leaves(x, *(p.contiguous() for p in apart)), (draw(n, 3), draw(n, 3))


def through_views(settings: Settings, draw: Draw) -> Pair:
    x, rows, plain, seeds = packed_rows(settings, draw)

    def own() -> Sequence[Tensor]:
        results = op(x, *rows[..., :-2].unflatten(-1, (3, settings.components)).unbind(-2))
        return torch.autograd.grad(results, [x, rows], seeds)[:1]

    return own, lambda: torch.autograd.grad(op(*plain), plain, seeds)[:1], x.numel()


def through_the_flows_op(settings: Settings, draw: Draw) -> Pair:
    x, rows, plain, seeds = packed_rows(settings, draw)

    def own() -> Sequence[Tensor]:
        results = affine_transform(x, rows, family="logistic", base="logistic")
        return torch.autograd.grad(results, [x, rows], seeds)

    def other() -> Sequence[Tensor]:
        torch.autograd.grad(op(*plain), plain, seeds)
        return ()  # its results lack the affine map

    return own, other, x.numel()


def of_x_alone(settings: Settings, draw: Draw) -> Pair:
    n = settings.n // 4
    x, *given = draw(n), *parameters(draw, n, settings.components)
    [alone], everything = leaves(x), leaves(x, *given)

    def gradients(wanted: list[Tensor], *arguments: Tensor) -> Sequence[Tensor]:
        z, ladj = op(*arguments)
        return torch.autograd.grad(z.sum() + ladj.sum(), wanted)

    return lambda: gradients([alone], alone, *given), lambda: gradients(everything, *everything), n


# Of a forward op: how x and parameters come, for n elements and K components.
FORWARD: dict[str, Callable[[int, int, Draw], tuple[Tensor, list[Tensor]]]] = {
    "forward, x[:, half:]": lambda n, k, draw: (draw(n // 8, 8)[:, 4:], parameters(draw, n // 8, 4, k)),
    "forward, x[:, ::2] of (B, C, H, W)": lambda n, k, draw: (
        draw(max(1, n // 2**13), 8, 32, 32)[:, ::2],
        parameters(draw, max(1, n // 2**13), 4, 32, 32, k),
    ),
    "forward, components in axis 1, (8, 3K, 3, 32, 32)": components_in_axis_1,
    "forward, x channels_last": channels_last,
    "forward, x.T": lambda n, k, draw: (
        draw(max(1, n // 2**11), 100).T,
        parameters(draw, 100, max(1, n // 2**11), k),
    ),
    "forward, one set, x[:, :3] of (N, 6)": lambda n, k, draw: (draw(n // 3, 6)[:, :3], parameters(draw, k)),
}
CASES = [
    *(against(name, forward(make), 0.8) for name, make in FORWARD.items()),
    against("forward, parameters per channel (3, 1, 1, K)", per_channel, 0.75, "one set, contiguous"),
    against("forward + backward, ladj.sum(-1)", reduced(None, mean=False), 0.8, "ladj.sum()"),
    against("forward + backward, ladj.sum(-1), K = 32", reduced(32, mean=False), 0.8, "ladj.sum()"),
    against("forward + backward, means", reduced(None, mean=True), 0.8, "sums", exact=False),
    against("forward + backward, means, K = 32", reduced(32, mean=True), 0.8, "sums", exact=False),
    against("forward + backward, packed rows through torch's views", through_views, 0.5),
    against("forward + backward, packed rows through the flows' op", through_the_flows_op, 0.85),
    against("forward + backward, gradient of x alone", of_x_alone, 1.5, "all gradients", exact=False),
]
GROUPS = [Group("As real code calls it, one thread", CASES, RATES)]
