"""Which parts of torch take part in a call: dispatch, tracing, forward mode, ``torch.func``; and what that permits."""

from __future__ import annotations

import cmath
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "PLAIN",
    "are_plain",
    "can_be_looked_at",
    "has_dispatch_mode",
    "in_functorch",
    "is_known_finite",
    "is_transformed",
    "may_carry_tangents",
    "needs_gradient",
    "skips_dispatch",
]

PLAIN = (Tensor, torch.nn.Parameter)


def in_functorch() -> bool:
    """Whether a transform of ``torch.func`` is active, such as ``vmap`` or ``grad``."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_transformed() -> bool:
    """Whether a compiler, a tracer, forward mode or ``torch.func`` is active, and must see the torch op itself."""
    return (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or in_functorch()
        or torch._C._get_tracing_state() is not None
    )


def has_dispatch_mode() -> bool:
    """Whether a ``TorchDispatchMode`` is active, such as the one that makes fake tensors."""
    return torch._C._len_torch_dispatch_stack() != 0


def skips_dispatch(tensors: Sequence[Tensor]) -> bool:
    """Whether a call on these tensors may go to the CPU kernel directly. Torch's dispatch takes 15 us.

    Dispatch is needed for modes and subclasses of Tensor, for ``torch.jit.trace``, which records only what is
    dispatched, and for a view whose memory holds the negatives of its numbers (``z.conj().imag``).
    """
    if has_dispatch_mode() or torch._C._get_tracing_state() is not None:
        return False
    for tensor in tensors:  # noqa: SIM110
        if type(tensor) not in PLAIN or not tensor.is_cpu or tensor.is_neg():
            return False
    return True


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether these are dense float32 CPU tensors, and no subclasses."""
    for tensor in tensors:
        if (
            type(tensor) not in PLAIN
            or tensor.dtype is not torch.float32
            or tensor.layout is not torch.strided
            or not tensor.is_cpu
        ):
            return False
    return True


def needs_gradient(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd must record a call on these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


def may_carry_tangents() -> bool:
    """Whether tensors may have tangents of forward mode.

    A compiled graph enters forward mode without a change to ``forward_ad._current_level``. It is traced in a mode.
    """
    is_entered = forward_ad._current_level >= 0 or has_dispatch_mode()
    return is_entered and forward_ad._is_fwd_grad_enabled()


def can_be_looked_at(tensor: Tensor) -> bool:
    """Whether a decision may depend on the numbers of ``tensor``: they exist, and nothing records the program."""
    return not torch.compiler.is_compiling() and not in_functorch() and skips_dispatch((tensor,))


def is_known_finite(tensor: Tensor) -> bool:
    """Whether every number of ``tensor`` is finite, found from one sum; False where no decision may depend on it.

    A sum of finite numbers may overflow. So a caller may use False only to take a slower way to the same result.
    """
    return can_be_looked_at(tensor) and cmath.isfinite(tensor.detach().sum().item())
