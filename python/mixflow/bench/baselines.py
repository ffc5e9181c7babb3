"""What users write today, in plain PyTorch and scipy: the competition that the benchmarks measure against.

Every function takes ``x`` (or ``z``) of shape ``(...)``, ``parameters = (logits, loc, log_scale)``, each ``(..., K)``
and broadcast against it, and a family; the base is the one in which the formula is shortest, :data:`BASE_OF`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "BASE_OF",
    "Parameters",
    "bisection_inverse",
    "bisection_step",
    "implicit_bisection_inverse",
    "linear_forward",
    "log_space_forward",
    "scipy_forward",
    "zuko_transform",
]

Parameters = tuple[Tensor, Tensor, Tensor]

# Neither rates nor densities depend much on the base; each family's own makes the plain formula shortest.
BASE_OF = {"gaussian": "normal", "logistic": "logistic"}

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def log_space_forward(x: Tensor, parameters: Parameters, family: str) -> tuple[Tensor, Tensor]:
    """The careful formula: ``z`` and ``ladj``, both tails by logsumexp.

    Example:
        >>> import torch
        >>> from mixflow.bench.baselines import log_space_forward
        >>> z, ladj = log_space_forward(torch.tensor([0.0, 2.0]), (torch.zeros(1),) * 3, "logistic")
        >>> z.tolist(), ladj.tolist()
        ([0.0, 2.0], [0.0, 0.0])

    """
    logits, loc, log_scale = parameters
    log_weight = torch.log_softmax(logits, -1)
    a = (x[..., None] - loc) * torch.exp(-log_scale)
    if family == "gaussian":
        log_cdf, log_sf = torch.special.log_ndtr(a), torch.special.log_ndtr(-a)
        log_pdf = -0.5 * a * a - _HALF_LOG_2PI
    else:
        log_cdf, log_sf = torch.nn.functional.logsigmoid(a), torch.nn.functional.logsigmoid(-a)
        log_pdf = log_cdf + log_sf
    lower = torch.logsumexp(log_weight + log_cdf, -1)
    upper = torch.logsumexp(log_weight + log_sf, -1)
    log_density = torch.logsumexp(log_weight + log_pdf - log_scale, -1)
    if family == "gaussian":
        # One probit, of the smaller tail: a `where` between two would give NaN gradients in the tails.
        z = torch.sign(lower - upper) * -torch.special.ndtri(torch.minimum(lower, upper).exp())
        return z, log_density + 0.5 * z * z + _HALF_LOG_2PI
    return lower - upper, log_density - lower - upper


def linear_forward(x: Tensor, parameters: Parameters, family: str) -> tuple[Tensor, Tensor]:
    """The careless formula: ``z`` and ``ladj`` by linear probabilities, whose tails are inf in float32."""
    logits, loc, log_scale = parameters
    weight, inv_scale = torch.softmax(logits, -1), torch.exp(-log_scale)
    a = (x[..., None] - loc) * inv_scale
    if family == "gaussian":
        lower = (weight * torch.special.ndtr(a)).sum(-1)
        density = (weight * inv_scale * torch.exp(-0.5 * a * a)).sum(-1) / math.sqrt(2 * math.pi)
        z = torch.special.ndtri(lower)
        return z, torch.log(density) + 0.5 * z * z + _HALF_LOG_2PI
    s = torch.sigmoid(a)
    lower = (weight * s).sum(-1)
    density = (weight * inv_scale * s * (1 - s)).sum(-1)
    z = torch.logit(lower)
    return z, torch.log(density) - torch.log(lower * (1 - lower))


def scipy_forward(
    x: NDArray[Any], parameters: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], family: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The careless formula in numpy and scipy, which use one thread.

    Raises:
        ModuleNotFoundError: scipy is not installed.

    """
    from scipy import special

    logits, loc, log_scale = parameters
    weight, inv_scale = special.softmax(logits, -1), np.exp(-log_scale)
    a = (x[..., None] - loc) * inv_scale
    if family == "gaussian":
        lower = (weight * special.ndtr(a)).sum(-1)
        density = (weight * inv_scale * np.exp(-0.5 * a * a)).sum(-1) / np.float32(math.sqrt(2 * math.pi))
        z = special.ndtri(lower)
        return z, np.log(density) + 0.5 * z * z + np.float32(_HALF_LOG_2PI)
    s = special.expit(a)
    lower = (weight * s).sum(-1)
    density = (weight * inv_scale * s * (1 - s)).sum(-1)
    return special.logit(lower), np.log(density) - np.log(lower * (1 - lower))


Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, str], tuple[Tensor, Tensor]]


def bisection_step(
    low: Tensor, high: Tensor, target: Tensor, log_weight: Tensor, loc: Tensor, inv_scale: Tensor, family: str
) -> tuple[Tensor, Tensor]:
    """Halve the bracket of the root of ``log F - log(1 - F) = target``."""
    cdf = torch.special.log_ndtr if family == "gaussian" else torch.nn.functional.logsigmoid
    x = 0.5 * (low + high)
    a = (x[..., None] - loc) * inv_scale
    logit = torch.logsumexp(log_weight + cdf(a), -1) - torch.logsumexp(log_weight + cdf(-a), -1)
    above = logit > target
    return torch.where(above, low, x), torch.where(above, x, high)


def bisection_inverse(
    z: Tensor,
    parameters: Parameters,
    family: str,
    steps: int = 40,
    *,
    step: Step = bisection_step,
    forward: Callable[[Tensor, Parameters, str], tuple[Tensor, Tensor]] = log_space_forward,
) -> tuple[Tensor, Tensor]:
    """``x`` and ``ladj``: bisect the careful formula's logit between fixed-width ends, as the coupling-flow codes do.

    ``step`` and ``forward`` take compiled versions of the two functions: compiling the loop of 40 steps as a whole
    takes ten times as long and is no faster.
    """
    logits, loc, log_scale = parameters
    log_weight, inv_scale = torch.log_softmax(logits, -1), torch.exp(-log_scale)
    target = torch.special.log_ndtr(z) - torch.special.log_ndtr(-z) if family == "gaussian" else z
    reach = 20 * torch.exp(log_scale).sum(-1)
    low, high = (end.expand_as(z).contiguous() for end in (loc.amin(-1) - reach, loc.amax(-1) + reach))
    for _ in range(steps):
        low, high = step(low, high, target, log_weight, loc, inv_scale, family)
    x = 0.5 * (low + high)
    return x, -forward(x, parameters, family)[1]


class _ImplicitBisection(torch.autograd.Function):
    """Bisection whose backward is the implicit-function theorem at the root, with one differentiable evaluation."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: str) -> Any:
        x, ladj = bisection_inverse(z, (logits, loc, log_scale), family)
        ctx.save_for_backward(x, logits, loc, log_scale)
        ctx.family = family
        return x, ladj

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_ladj: Tensor) -> Any:
        leaves = tuple(t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            z, ladj = log_space_forward(leaves[0], leaves[1:], ctx.family)
        (slope,) = torch.autograd.grad(ladj, leaves[0], torch.ones_like(ladj), retain_graph=True)
        grad_z = (grad_x - grad_ladj * slope) * torch.exp(-ladj)
        grads = torch.autograd.grad((z, ladj), leaves[1:], (-grad_z, -grad_ladj))
        return (grad_z, *grads, None)


def implicit_bisection_inverse(z: Tensor, parameters: Parameters, family: str) -> tuple[Tensor, Tensor]:
    """:func:`bisection_inverse` with gradients in every argument, by implicit differentiation.

    Example:
        >>> import torch
        >>> from mixflow.bench.baselines import implicit_bisection_inverse
        >>> z, loc = torch.zeros(1, requires_grad=True), torch.ones(1, requires_grad=True)
        >>> x, _ = implicit_bisection_inverse(z, (torch.zeros(1), loc, torch.zeros(1)), "logistic")
        >>> torch.allclose(torch.stack(torch.autograd.grad(x, (z, loc))), torch.ones(2, 1))
        True

    """
    x, ladj = _ImplicitBisection.apply(z, *parameters, family)
    return x, ladj


def zuko_transform(parameters: Parameters) -> Any:
    """Zuko's GaussianizationTransform of the same mixture: Gaussian components of equal weight, normal base.

    Raises:
        ModuleNotFoundError: zuko is not installed.

    """
    from zuko.transforms import GaussianizationTransform

    _, loc, log_scale = parameters
    # Its shift is added after scaling: a = exp(scale) x + shift.
    return GaussianizationTransform(-loc * torch.exp(-log_scale), -log_scale)
