"""Torch's side of the ops: their registration, and the choice of what computes a call.

Each op has four implementations.

=========== =============== ============================================================================================
eager       autograd.py     Python calls the kernels directly. An autograd Function takes part only if a gradient is
                            asked for.
compiled    registration.py The torch op ``mixflow::NAME``. Graphs, traces, modes and tensor subclasses see it.
functional  functional.py   An autograd Function of that torch op, for ``torch.func``, forward mode, double backward.
written out written_out.py  The gradient in ordinary torch operations, which torch can differentiate again.
=========== =============== ============================================================================================

Which one runs when:

====================================================== ======================== ======================================
a call                                                 the value comes from     the gradient comes from
====================================================== ======================== ======================================
eager, no gradient asked for                           eager                    -
eager                                                  eager, in its Function   eager
torch.compile, torch.export, make_fx, torch.jit.trace  compiled                 compiled: ``NAME_backward``
fake and meta tensors, modes, subclasses               compiled                 compiled: ``NAME_backward``
torch.func (vmap, grad, jvp, ...), forward mode        functional, per level    functional, of ``NAME_backward``
a gradient of a gradient (create_graph=True)           as above                 functional, of what is written out
torch.onnx.export                                      ``mixflow.export``       -
====================================================== ======================== ======================================

For the compiled implementation, torch runs the kernels under the dispatch keys CPU and CUDA. Under the key Meta, for
fake tensors, it only allocates. Nothing is registered for autocast, so it leaves the dtypes of an op's arguments alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from .. import export
from . import table
from .autograd import eager_functions
from .functional import functional_functions
from .kernels import Op, Tensors
from .modes import has_dispatch_mode, is_transformed, may_carry_tangents, needs_gradient, skips_dispatch
from .shapes import batch_shape

__all__ = ["AFFINE_TRANSFORM", "CDF_TRANSFORM", "DISCRETIZED_LOG_PROB", "Entry"]

_library = torch.library.Library("mixflow", "DEF")


class Entry:
    """An op that is registered with torch; a call of it chooses the implementation."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self._plain, self._eager = eager_functions(op)
        _register(op)

    def __call__(self, tensors: Tensors, *options: Any) -> Tensors:
        """The outputs of the op for any tensors."""
        op = self.op
        if export.in_onnx_export():
            return op.as_tuple(export.decompositions()[op.torch_op.default](*tensors, *options))
        if is_transformed():
            return op.call_torch_op(*tensors, *options)
        if needs_gradient(tensors):
            return cast(Tensors, self._eager.apply(*tensors, *options))
        return op.compute(tensors, options) if skips_dispatch(tensors) else op.call_torch_op(*tensors, *options)

    def call_plain(self, tensors: Tensors, *options: Any) -> Tensors:
        """The same for tensors that are :func:`~mixflow.op.arguments.are_plain_and_right`, with fewer checks."""
        if is_transformed() or has_dispatch_mode():
            return self(tensors, *options)
        requires_grad = False
        for tensor in tensors:
            if tensor.is_neg():
                return self(tensors, *options)
            requires_grad = requires_grad or tensor.requires_grad
        if requires_grad and torch.is_grad_enabled():
            return cast(Tensors, self._plain.apply(*tensors, *options))
        return self.op.compute_plain(tensors, options)


# -- registration --------------------------------------------------------------------------------------------


def _register(op: Op) -> None:
    """Define both torch ops of ``op``, and give them kernels, shapes for fake tensors, and derivatives."""

    def run(*args: Any) -> Any:
        return op.as_result(op.compute(*op.split(args)))

    def run_backward(*args: Any) -> Tensors:
        return _filled_in(op.gradients(op.split_backward(args)), args[0])

    def fake(*args: Any) -> Any:
        return op.as_result(op.empty_outputs(op.split(args)[0]))

    def fake_backward(*args: Any) -> Tensors:
        given = op.split_backward(args)
        batch = batch_shape(given.points, given.parameters)
        return _filled_in(op.empty_gradients(given.points, given.parameters, batch, given.wanted), args[0])

    _library.define(op.schema)
    _library.define(op.backward_schema)
    backward_name = f"{op.name}_backward"
    for key in ("CPU", "CUDA"):
        _library.impl(op.name, run, key)
        _library.impl(backward_name, run_backward, key)
    torch.library.register_fake(f"mixflow::{op.name}", fake, lib=_library)
    torch.library.register_fake(f"mixflow::{backward_name}", fake_backward, lib=_library)

    forward, backward = functional_functions(op)

    def apply_backward(*args: Any) -> Tensors:
        given = op.split_backward(args)
        return cast(Tensors, backward.apply(*given.tensors, *given.options, given.wanted))

    _make_differentiable(op.name, len(op.tensors), lambda *args: op.as_result(forward.apply(*args)))
    _make_differentiable(backward_name, len(op.outputs) + len(op.tensors), apply_backward)


def _filled_in(grads: list[Tensor | None], like: Tensor) -> Tensors:
    """The gradients as a torch op returns them: with an empty tensor in place of each that is not wanted."""
    return tuple(like.new_empty(0) if g is None else g for g in grads)


def _make_differentiable(name: str, tensors: int, apply: Callable[..., Any]) -> None:
    """Differentiate the torch op ``mixflow::name`` by the autograd Function that ``apply`` enters.

    ``torch.library.register_autograd`` would make a Function of its own, which drops the tangents of forward mode
    without an error, and which ``torch.func`` refuses (pytorch#168393). Its kernel also handles one level of
    ``torch.func``, whereas a Function handles all of them. So the key ``FuncTorchDynamicLayerFrontMode`` is registered
    too: there ``torch.func`` has not yet split the call into levels.

    Args:
        name: Of the torch op.
        tensors: How many of its arguments, the first ones, are tensors.
        apply: Takes the arguments of the torch op and returns its results.
    """
    op = getattr(torch.ops.mixflow, name).default

    def run(keyset: Any, *args: Any) -> Any:
        if needs_gradient(args[:tensors]) or may_carry_tangents():
            return apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    _library.impl(name, run, "Autograd", with_keyset=True)
    _library.impl(name, apply, "FuncTorchDynamicLayerFrontMode")


CDF_TRANSFORM = Entry(table.CDF_TRANSFORM)
AFFINE_TRANSFORM = Entry(table.AFFINE_TRANSFORM)
DISCRETIZED_LOG_PROB = Entry(table.DISCRETIZED_LOG_PROB)
