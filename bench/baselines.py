"""What users write today, in plain PyTorch: the competition that bench/ measures against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Parameters = tuple[Tensor, Tensor, Tensor]


def log_space_forward(x: Tensor, parameters: Parameters, family: str) -> tuple[Tensor, Tensor]:
    """The careful formula: both tails by logsumexp. Base: normal for gaussian, logistic for logistic."""
    logits, loc, log_scale = parameters
    log_weight = torch.log_softmax(logits, -1)
    a = (x[..., None] - loc) * torch.exp(-log_scale)
    if family == "gaussian":
        log_cdf, log_sf = torch.special.log_ndtr(a), torch.special.log_ndtr(-a)
        log_pdf = -0.5 * a * a - 0.5 * math.log(2 * math.pi)
    else:
        log_cdf, log_sf = torch.nn.functional.logsigmoid(a), torch.nn.functional.logsigmoid(-a)
        log_pdf = log_cdf + log_sf
    lower = torch.logsumexp(log_weight + log_cdf, -1)
    upper = torch.logsumexp(log_weight + log_sf, -1)
    log_density = torch.logsumexp(log_weight + log_pdf - log_scale, -1)
    if family == "gaussian":
        # One probit, of the smaller tail: a `where` between two would give NaN gradients in the tails.
        z = torch.sign(lower - upper) * -torch.special.ndtri(torch.minimum(lower, upper).exp())
        return z, log_density + 0.5 * z * z + 0.5 * math.log(2 * math.pi)
    return lower - upper, log_density - lower - upper


def linear_forward(x: Tensor, parameters: Parameters, family: str) -> tuple[Tensor, Tensor]:
    """The careless formula: linear probabilities, whose tails are inf in float32."""
    logits, loc, log_scale = parameters
    weight, inv_scale = torch.softmax(logits, -1), torch.exp(-log_scale)
    a = (x[..., None] - loc) * inv_scale
    if family == "gaussian":
        lower = (weight * torch.special.ndtr(a)).sum(-1)
        density = (weight * inv_scale * torch.exp(-0.5 * a * a)).sum(-1) / math.sqrt(2 * math.pi)
        z = torch.special.ndtri(lower)
        return z, torch.log(density) + 0.5 * z * z + 0.5 * math.log(2 * math.pi)
    s = torch.sigmoid(a)
    lower = (weight * s).sum(-1)
    density = (weight * inv_scale * s * (1 - s)).sum(-1)
    z = torch.logit(lower)
    return z, torch.log(density) - torch.log(lower * (1 - lower))


def bisection_inverse(z: Tensor, parameters: Parameters, family: str, steps: int = 40) -> tuple[Tensor, Tensor]:
    """Bisect the careful formula's logit between fixed-width ends, as the coupling-flow codes do."""
    logits, loc, log_scale = parameters
    log_weight, inv_scale = torch.log_softmax(logits, -1), torch.exp(-log_scale)
    cdf = torch.special.log_ndtr if family == "gaussian" else torch.nn.functional.logsigmoid
    target = cdf(z) - cdf(-z) if family == "gaussian" else z
    reach = 20 * torch.exp(log_scale).sum(-1)
    low, high = (loc.amin(-1) - reach).expand_as(z), (loc.amax(-1) + reach).expand_as(z)
    for _ in range(steps):
        x = 0.5 * (low + high)
        a = (x[..., None] - loc) * inv_scale
        logit = torch.logsumexp(log_weight + cdf(a), -1) - torch.logsumexp(log_weight + cdf(-a), -1)
        above = logit > target
        low, high = torch.where(above, low, x), torch.where(above, x, high)
    x = 0.5 * (low + high)
    return x, -log_space_forward(x, parameters, family)[1]
