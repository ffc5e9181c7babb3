"""What people write today for a mixture CDF: formulas in plain PyTorch, and zuko's transform.

Each formula takes ``x`` (or ``z``) of shape ``(...)``, ``parameters = (logits, loc, log_scale)``, each ``(..., K)`` and
broadcast against it, and the name of a family. :mod:`mixflow.standard` has the functions of each family and base.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..standard import BASES, FAMILIES

__all__ = ["BASE_OF", "bisection_inverse", "implicit_bisection_inverse", "linear_forward", "log_space_forward"]

Parameters = tuple[Tensor, Tensor, Tensor]
Formula = Callable[[Tensor, Parameters, str], tuple[Tensor, Tensor]]

# Neither rates nor densities depend much on the base. The family's own, where there is one, makes the formula shortest.
BASE_OF = {name: family.base or "normal" for name, family in FAMILIES.items()}


def log_space_forward(x: Tensor, parameters: Parameters, family: str) -> tuple[Tensor, Tensor]:
    """The careful formula: ``z`` and ``ladj``, both tails by log-sum-exp.

    Example:
        >>> import torch
        >>> from mixflow.bench.baselines import log_space_forward
        >>> z, ladj = log_space_forward(torch.tensor([0.0, 2.0]), (torch.zeros(1),) * 3, "logistic")
        >>> torch.allclose(z, torch.tensor([0.0, 2.0])), torch.allclose(ladj, torch.zeros(2), atol=1e-6)
        (True, True)

    """
    logits, loc, log_scale = parameters
    component, base = FAMILIES[family], BASES[BASE_OF[family]]
    log_weight = torch.log_softmax(logits, -1)
    a = (x[..., None] - loc) * torch.exp(-log_scale)
    log_cdf, log_sf = component.plain_log_cdf(a), component.plain_log_cdf(-a)
    lower, upper = (torch.logsumexp(log_weight + log_tail, -1) for log_tail in (log_cdf, log_sf))
    log_density = torch.logsumexp(log_weight + component.plain_log_pdf(a, log_sf) - log_scale, -1)
    z = base.plain_z_from_logs(lower, upper)
    return z, log_density - base.log_prob(z)


def linear_forward(x: Tensor, parameters: Parameters, family: str) -> tuple[Tensor, Tensor]:
    """The careless formula: ``z`` and ``ladj`` by linear probabilities, whose tails are inf in float32."""
    logits, loc, log_scale = parameters
    component, base = FAMILIES[family], BASES[BASE_OF[family]]
    weight, inv_scale = torch.softmax(logits, -1), torch.exp(-log_scale)
    a = (x[..., None] - loc) * inv_scale
    cdf = component.plain_cdf(a)
    lower = (weight * cdf).sum(-1)
    density = (weight * inv_scale * component.plain_pdf(a, cdf)).sum(-1)
    z = base.plain_z(lower, 1 - lower)
    return z, torch.log(density) - base.log_prob(z)


def bisection_step(
    low: Tensor, high: Tensor, target: Tensor, log_weight: Tensor, loc: Tensor, inv_scale: Tensor, family: str
) -> tuple[Tensor, Tensor]:
    """Halve the bracket of the root of ``log F - log(1 - F) = target``."""
    log_cdf = FAMILIES[family].plain_log_cdf
    x = 0.5 * (low + high)
    a = (x[..., None] - loc) * inv_scale
    logit = torch.logsumexp(log_weight + log_cdf(a), -1) - torch.logsumexp(log_weight + log_cdf(-a), -1)
    above = logit > target
    return torch.where(above, low, x), torch.where(above, x, high)


def bisection_inverse(
    z: Tensor,
    parameters: Parameters,
    family: str,
    *,
    step: Callable[..., tuple[Tensor, Tensor]] = bisection_step,
    forward: Formula = log_space_forward,
) -> tuple[Tensor, Tensor]:
    """``x`` and ``ladj``: bisect the careful formula's logit between fixed-width ends, as the coupling-flow codes do.

    ``step`` and ``forward`` may be compiled: to compile the loop as a whole takes ten times as long and is no faster.
    """
    logits, loc, log_scale = parameters
    log_weight, inv_scale = torch.log_softmax(logits, -1), torch.exp(-log_scale)
    target = BASES[BASE_OF[family]].to_logit(z)
    width = 20 * torch.exp(log_scale).sum(-1)
    low, high = (end.expand_as(z).contiguous() for end in (loc.amin(-1) - width, loc.amax(-1) + width))
    for _ in range(40):
        low, high = step(low, high, target, log_weight, loc, inv_scale, family)
    x = 0.5 * (low + high)
    return x, -forward(x, parameters, family)[1]


def implicit_bisection_inverse(z: Tensor, parameters: Parameters, family: str) -> tuple[Tensor, Tensor]:
    """:func:`bisection_inverse` with gradients in every argument, by the implicit function theorem.

    One differentiable Newton step from the root has the gradients of the root.
    """
    with torch.no_grad():
        root, ladj = bisection_inverse(z, parameters, family)
    x = root - (log_space_forward(root, parameters, family)[0] - z) * ladj.exp()
    return x, -log_space_forward(x, parameters, family)[1]


def zuko_transform(parameters: Parameters) -> Any:
    """Zuko's GaussianizationTransform of the same mixture: Gaussian components of equal weight, normal base.

    Raises:
        ModuleNotFoundError: zuko is not installed.

    """
    from zuko.transforms import GaussianizationTransform

    _, loc, log_scale = parameters
    # Its shift is added after scaling: a = exp(scale) x + shift.
    return GaussianizationTransform(-loc * torch.exp(-log_scale), -log_scale)
