"""The autograd Functions behind the registered torch ops: ``torch.func``, forward mode, second derivatives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .autograd import pull_back, save
from .kernels import Op, Tensors
from .shapes import batch_shape

__all__ = ["functional_functions"]


def functional_functions(op: Op) -> tuple[Any, Any]:
    """The autograd Functions of the torch op and of its backward op, for any level of ``torch.func``."""

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Tensors:
            return op.call_torch_op(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
            ctx.save_for_forward(*save(op, ctx, inputs, output))

        backward = staticmethod(functools.partial(pull_back, op))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Tensors:
            return _push_forward_op(op, ctx, tangents)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
            return _vmap_op(op, Forward.apply, info, in_dims, args)

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Tensors:
            return cast(Tensors, op.torch_backward(*args))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
            given = op.split_backward(inputs)
            ctx.options, ctx.wanted = given.options, given.wanted
            ctx.save_for_backward(*given.tensors)
            ctx.save_for_forward(*given.tensors)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            own = tuple(g for g, w in zip(grads, ctx.wanted, strict=True) if w)
            pull_back_twice = torch.func.vjp(_wanted_gradient(op, ctx.options, ctx.wanted), *ctx.saved_tensors)[1]
            return (*pull_back_twice(own), *(None,) * (len(ctx.options) + 1))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Tensors:
            return _push_forward_gradient(op, ctx, tangents)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
            return _vmap_backward_op(op, Backward.apply, info, in_dims, args)

    return Forward, Backward


# -- forward mode --------------------------------------------------------------------------------------------


def _forward_mode_of_outer_levels() -> AbstractContextManager[Any]:
    """Forward mode for the levels of ``torch.func`` outside the one that a ``jvp`` computes.

    Torch turns forward mode off while the ``jvp`` of a Function runs, so that a jvp of a jvp would lack its second
    derivatives (pytorch#197867). While it is on again, :func:`_primals` hides the tangents of the inner level.
    """
    return forward_ad._set_fwd_grad_enabled(True)


def _primals(tensors: Tensors) -> Tensors:
    """The tensors without their tangents.

    Torch has one level of forward mode, 0. Inside a compiled graph ``unpack_dual`` does not find it by itself.
    """
    return tuple(cast(Tensor, forward_ad.unpack_dual(t, level=0).primal) for t in tensors)


def _push_forward_op(op: Op, ctx: Any, tangents: Sequence[Any]) -> Tensors:
    """Jacobian times tangents: a row of the Jacobian for each output, from a backward pass that sums nothing."""
    with _forward_mode_of_outer_levels():
        points, parameters = op.split_tensors(_primals(ctx.saved_tensors))
        batch = batch_shape(points, parameters)
        expanded = [p.expand(*batch, p.shape[-1]) for p in parameters]
        own = tangents[: len(op.tensors)]
        wanted = tuple(t is not None for t in own)
        one, zero = points[0].new_ones(()), points[0].new_zeros(())
        results = []
        for output in op.outputs:
            seeds = [one if name == output else zero for name in op.outputs]
            row = op.torch_backward(*seeds, *points, *expanded, *ctx.options, wanted)
            terms = []
            for gradient, tangent, axes in zip(row, own, op.component_axes, strict=True):
                if tangent is not None:
                    terms.append((gradient * tangent).sum(-1) if axes else gradient * tangent)
            results.append(functools.reduce(torch.add, terms))
    return tuple(results)


def _push_forward_gradient(op: Op, ctx: Any, tangents: Sequence[Any]) -> Tensors:
    """The same for the backward op, from its gradient written out."""
    with _forward_mode_of_outer_levels():
        # Seeds are often expanded, and torch cannot write a tangent to memory that several elements share.
        tensors = tuple(t.contiguous() for t in _primals(ctx.saved_tensors))
        given = tangents[: len(tensors)]
        own = tuple(torch.zeros_like(p) if t is None else t for p, t in zip(tensors, given, strict=True))
        found = iter(_push_forward(_wanted_gradient(op, ctx.options, ctx.wanted), tensors, own))
        return tuple(next(found) if w else tensors[0].new_empty(0) for w in ctx.wanted)


def _push_forward(function: Callable[..., Tensors], tensors: Tensors, tangents: Tensors) -> Tensors:
    """The Jacobian times the tangents, as the derivative of (Jacobian^T seeds) by the seeds.

    ``torch.func.jvp`` cannot be called inside a compiled graph that has entered forward mode: it has not counted that
    graph's levels.
    """
    outputs, pull = cast(Any, torch.func.vjp(function, *tensors))
    return cast(Tensors, torch.func.vjp(lambda *seeds: pull(seeds), *map(torch.zeros_like, outputs))[1](tangents))


def _wanted_gradient(op: Op, options: tuple[Any, ...], wanted: Sequence[bool]) -> Callable[..., Tensors]:
    """The gradients that are wanted, in differentiable torch operations."""
    gradient = op.written_out(*options)
    return lambda *tensors: tuple(g for g, w in zip(gradient(*tensors), wanted, strict=True) if w)


# -- vmap ----------------------------------------------------------------------------------------------------


def _vmap_op(op: Op, run: Callable[..., Tensors], info: Any, in_dims: Any, args: Sequence[Any]) -> Any:
    tensors, options = op.split(args)
    aligned = _align(info, in_dims[: len(tensors)], tensors, op.component_axes)
    return run(*aligned, *options), (0,) * len(op.outputs)


def _vmap_backward_op(op: Op, run: Callable[..., Tensors], info: Any, in_dims: Any, args: Sequence[Any]) -> Any:
    given = op.split_backward(args)
    dims = in_dims[: len(given.tensors)]
    aligned = _align(info, dims, given.tensors, (0,) * len(op.outputs) + op.component_axes)
    grads = list(run(*aligned, *given.options, given.wanted))
    parameter_dims = dims[len(dims) - len(given.parameters) :]
    ranks = (p.dim() - (d is not None) for p, d in zip(given.parameters, parameter_dims, strict=True))
    own_axes = max(ranks)
    for i, (grad, is_wanted, axes) in enumerate(zip(grads, given.wanted, op.component_axes, strict=True)):
        if not is_wanted:
            grads[i] = grad.new_empty(info.batch_size, 0)
        elif axes and not op.leaves_sums_to_torch:  # without the axes of length 1 that _align put in
            grads[i] = grad.reshape(grad.shape[:1] + grad.shape[grad.dim() - own_axes :])
    return tuple(grads), (0,) * len(op.tensors)


def _align(info: Any, in_dims: Sequence[int | None], tensors: Tensors, component_axes: tuple[int, ...]) -> Tensors:
    """Give every tensor of a vmapped call the mapped axis in front, and all of them the same number of batch axes."""
    ranks = [t.dim() - (d is not None) - c for t, d, c in zip(tensors, in_dims, component_axes, strict=True)]
    aligned = []
    for tensor, dim, rank in zip(tensors, in_dims, ranks, strict=True):
        front = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        padding = (1,) * (max(ranks) - rank)
        aligned.append(front.reshape(info.batch_size, *padding, *front.shape[1:]))
    return tuple(aligned)
