"""First derivatives: the backward pass that all autograd Functions of an op share, and the Functions of eager mode.

Only inputs and outputs of an op are saved for its backward pass, so that autograd sees every dependence. Which
gradients are computed depends on which inputs require one, and, for large calls, on which the pass at hand needs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .kernels import BackwardArguments, Op, Tensors
from .modes import has_dispatch_mode, in_functorch, skips_dispatch
from .shapes import sum_to

__all__ = ["eager_functions", "pull_back", "save"]

# From so many components of all elements on, gradients take fifty times as long as to find out which are needed.
_LARGE = 2**18


def save(op: Op, ctx: Any, inputs: tuple[Any, ...], outputs: Tensors, slopes: Tensors = ()) -> Tensors:
    """Keep in ``ctx`` what :func:`pull_back` needs; return the points and parameters."""
    tensors, ctx.options = op.split(inputs)
    elements, parameters = op.split_tensors(tensors)
    saved = (*op.points(elements, outputs, ctx.options), *parameters)
    ctx.shapes = [t.shape for t in tensors]
    ctx.save_for_backward(*saved, *slopes)
    ctx.set_materialize_grads(False)
    return saved


def pull_back(op: Op, ctx: Any, *seeds: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of all arguments of the op, from those of its outputs: the ``backward`` of its Functions."""
    return (*_pull_back(op, ctx, seeds, ctx.saved_tensors), *(None,) * len(ctx.options))


def _pull_back(op: Op, ctx: Any, seeds: Sequence[Tensor | None], all_saved: Tensors) -> Sequence[Tensor | None]:
    """:func:`pull_back` to the tensors alone. Torch's checkpointing lets ``ctx.saved_tensors`` be read only once."""
    count = len(op.tensors)
    if all(seed is None for seed in seeds):
        return (None,) * count
    wanted = ctx.needs_input_grad[:count]
    saved, slopes = all_saved[:count], all_saved[count:]
    if slopes and not torch.is_grad_enabled():
        return [sum_to(_from_slopes(seeds, slopes), ctx.shapes[0]), *[None] * (count - 1)]
    seeds = _filled_in(seeds, saved[0])
    if not (torch.is_grad_enabled() or in_functorch() or has_dispatch_mode()):
        if saved[0].numel() * saved[-1].shape[-1] >= _LARGE:
            wanted = _needed(ctx, wanted)
        if skips_dispatch(saved) and _are_plain_seeds(seeds):
            found = op.gradients(_backward_arguments(op, seeds, saved, ctx.options, wanted))
            return [g if g is None else sum_to(g, s) for g, s in zip(found, ctx.shapes, strict=True)]
    results = op.torch_backward(*seeds, *saved, *ctx.options, wanted)
    return [sum_to(g, s) if w else None for g, s, w in zip(results, ctx.shapes, wanted, strict=True)]


def _backward_arguments(op: Op, seeds: Any, saved: Tensors, options: tuple[Any, ...], wanted: Any) -> BackwardArguments:
    return BackwardArguments(tuple(seeds), *op.split_tensors(saved), options, wanted)


# -- seeds: the gradients of the outputs ---------------------------------------------------------------------


def _are_plain_seeds(seeds: Sequence[Tensor | None]) -> bool:
    """Whether the memory of these seeds holds their numbers; with ``is_grads_batched`` autograd gives some without."""
    for seed in seeds:
        if type(seed) is not Tensor or seed.is_neg() or torch._C._functorch.is_legacy_batchedtensor(seed):
            return False
    return True


def _filled_in(seeds: Sequence[Tensor | None], like: Tensor) -> Sequence[Tensor | None]:
    """``seeds`` with a zero in place of each None; unchanged if none or all of them are None."""
    given = 0
    for seed in seeds:
        given += seed is not None
    if given in (0, len(seeds)):
        return seeds
    zero = like.new_zeros(())
    return [zero if seed is None else seed for seed in seeds]


def _from_slopes(seeds: Sequence[Tensor | None], slopes: Tensors) -> Tensor:
    """The gradient of x, from the derivatives of the outputs by x. It is exactly 0 where all seeds are."""
    total: Any = None
    for seed, slope in zip(seeds, slopes, strict=True):
        if seed is not None:
            total = seed * slope if total is None else total + seed * slope
    # 0 times a slope that is NaN or infinite would be NaN. One sum finds out whether there may be such a product, in
    # less time than a search for seeds that are zero.
    if _are_plain_seeds((total,)) and not has_dispatch_mode() and math.isfinite(total.sum().item()):
        return cast(Tensor, total)
    has_no_seed = functools.reduce(torch.logical_and, (seed == 0 for seed in seeds if seed is not None))
    return cast(Tensor, total.masked_fill(has_no_seed, 0.0))


def _needed(ctx: Any, wanted: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which of the ``wanted`` gradients the backward pass at hand needs.

    ``torch.autograd.grad(loss, x)`` needs only those on the way to x, but ``needs_input_grad`` tells which inputs
    require a gradient. The function called here is private to torch. For a leaf whose gradient is needed it raises
    RuntimeError, which takes 10 us: then all gradients that are left count as needed. The last one that is left is
    needed, since this pass needs at least one.
    """
    needed = list(wanted)
    for i in range(len(wanted) - 1, 0, -1):
        if needed[i] and any(needed[:i]):
            try:
                needed[i] = torch._C._will_engine_execute_node(ctx.next_functions[i][0])
            except (AttributeError, RuntimeError):
                break
    return tuple(needed)


# -- eager mode ----------------------------------------------------------------------------------------------


def eager_functions(op: Op) -> tuple[Any, Any]:
    """The two autograd Functions of eager mode: of plain tensors, and of any.

    They have no ``setup_context``: with one, torch binds the arguments by ``inspect`` at every call.
    """

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensors:
            tensors, options = op.split(inputs)
            if not skips_dispatch(tensors):
                outputs = op.call_torch_op(*inputs)
                save(op, ctx, inputs, outputs)
                return outputs
            if op.gives_slopes(ctx.needs_input_grad, options):
                outputs, slopes = op.compute_with_slopes(tensors, options)
                save(op, ctx, inputs, outputs, slopes)
                return outputs
            outputs = op.compute(tensors, options)
            save(op, ctx, inputs, outputs)
            return outputs

        backward = staticmethod(functools.partial(pull_back, op))

    class Plain(Eager):
        """For tensors that pass :func:`~mixflow.op.arguments.are_plain_and_right`: most calls, some of a few us."""

        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensors:
            tensors, options = op.split(inputs)
            if op.gives_slopes(ctx.needs_input_grad, options):
                outputs, slopes = op.compute_with_slopes(tensors, options)
                save(op, ctx, inputs, outputs, slopes)
                return outputs
            outputs = op.compute_plain(tensors, options)
            save(op, ctx, inputs, outputs)
            return outputs

        @staticmethod
        def backward(ctx: Any, *seeds: Tensor | None) -> tuple[Tensor | None, ...]:
            if torch.is_grad_enabled() or False in ctx.needs_input_grad[len(op.elements) : len(op.tensors)]:
                return pull_back(op, ctx, *seeds)
            saved = ctx.saved_tensors
            is_small = 0 < saved[0].numel() * saved[-1].shape[-1] < _LARGE
            given = _filled_in(seeds, saved[0])
            if not (is_small and _are_plain_seeds(given) and skips_dispatch(saved)):
                return (*_pull_back(op, ctx, seeds, saved), *(None,) * len(ctx.options))
            found = op.plain_gradients(_backward_arguments(op, given, saved, ctx.options, ctx.needs_input_grad))
            return (*found, *(None,) * len(ctx.options))

    return Plain, Eager
