"""The start of a whole flow: a plain density of the data, which training then improves.

The recipes for several features begin with three parts: a standardisation, marginal mixture CDFs and a whitening. These
parts can make three plain densities, while the layers after them stay close to the identity:

- the marginals alone, with all features independent;
- the marginals and the whitening, which is a Gaussian copula;
- normal marginals and the whitening, which is one Gaussian.

The flow starts at the one that predicts left-out rows best. One Gaussian is also kept beside the start, and competes
with the trained flow at the end. The estimators themselves are in :mod:`mixflow.start`.
"""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import Tensor

from ..standard import FAMILIES
from ..start.gaussian import gaussian
from ..start.mixtures import best_counts, predictive_mixture, wide_normal
from ..transforms import Autoregressive, Compose, Coupling, MixtureCDF, Whitening
from ..transforms.base import Transform
from ..transforms.compose import frozen_kept

__all__ = ["ONE_GAUSSIAN", "initialize", "supported_counts", "use_counts"]

ONE_GAUSSIAN = "one Gaussian"
_FEW = 500  # up to so many rows, every row is left out once
_SEEN = 8192  # rows that choose the density
_MOST, _ROWS_PER_COMPONENT = 256, 30  # for marginals whose number of components follows the rows
# Inner layers are set from data with this much noise, in standard deviations. Columns that depend on each other have
# directions without variance, and the noise gives such a direction a width.
_NOISE = 1e-3
# From many rows, networks learn dependence better without a whitening before them: by 0.05 to 0.09 nats on the power
# plant table. But they cannot learn directions whose variance is below this share of the columns' variances.
_NARROW = 1e-3


def initialize(transform: Transform, x: Tensor, context: Tensor | None) -> dict[str, dict[str, Tensor]]:
    """Set the parameters of ``transform`` from ``x`` (N, D), and return the weights of other plain starts by name."""
    parts = transform.each() if isinstance(transform, Compose) else []
    lead = next((i for i, part in enumerate(parts[1:]) if isinstance(part, Whitening)), None)
    marginals = None if lead is None else parts[lead]
    if lead is None or not isinstance(marginals, MixtureCDF):
        with frozen_kept(transform):
            transform.initialize(x, context)
        return {}
    whitening = parts[lead + 1]
    assert isinstance(whitening, Whitening)
    with torch.no_grad():
        for part in parts[:lead]:
            part.initialize(x)
            x, _ = part(x)
        plain = {}
        if all(parameter.requires_grad for parameter in marginals.parameters()):
            _set_normal(marginals, whitening, x, context)
            plain[ONE_GAUSSIAN] = {name: value.detach().clone() for name, value in transform.state_dict().items()}
            _set_best(
                marginals, whitening, x, context, any(isinstance(part, (Autoregressive, Coupling)) for part in parts)
            )
        else:
            with frozen_kept(marginals):
                marginals.initialize(x, context)
        x, _ = whitening(marginals(x, context if marginals.context else None)[0])
        generator = torch.Generator(x.device).manual_seed(0)
        x = x + _NOISE * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        for number, part in enumerate(parts[lead + 2 :], lead + 2):
            own = context if part.context else None
            with frozen_kept(part):
                part.initialize(x, own)
            if number + 1 < len(parts):  # the image of the last part is not needed
                x, _ = part(x, own)
    return plain


def supported_counts(transform: Transform, x: Tensor, rows: int) -> Tensor | None:
    """How many marginal components ``rows`` rows support in each column: (D,); ``x`` (N, D) are the first of them.

    None if there are no marginals whose size the recipe left open, or if they are frozen.
    """
    marginals = _open_marginals(transform)
    if marginals is None or not all(parameter.requires_grad for parameter in marginals.parameters()):
        return None
    assert isinstance(transform, Compose)
    with torch.no_grad():
        for part in itertools.takewhile(lambda part: part is not marginals, transform.each()):
            part.initialize(x)
            x, _ = part(x)
        return best_counts(x, min(_MOST, max(8, rows // _ROWS_PER_COMPONENT)), marginals.family)


def use_counts(transform: Transform, counts: Tensor) -> int:
    """Give the marginals as many components as the largest of ``counts`` (D,), at least 8, and return that number."""
    marginals = _open_marginals(transform)
    assert marginals is not None
    marginals.counts = counts
    marginals.resize(max(8, int(counts.max())))
    return marginals.components


def _open_marginals(transform: Transform) -> MixtureCDF | None:
    parts = transform.each() if isinstance(transform, Compose) else []
    return next((part for part in parts if isinstance(part, MixtureCDF) and part.follows_rows), None)


def _set_normal(marginals: MixtureCDF, whitening: Whitening, x: Tensor, context: Tensor | None) -> None:
    is_normal = FAMILIES[marginals.family].base == "normal"
    marginals.set_mixtures(*wide_normal(x, marginals.components, marginals.family, exact=is_normal))
    whitening.set_gaussian(*gaussian(marginals(x, context if marginals.context else None)[0]))


def _set_best(
    marginals: MixtureCDF, whitening: Whitening, x: Tensor, context: Tensor | None, has_networks: bool
) -> None:
    """Set the plain density that predicts left-out rows of ``x`` best.

    If networks follow, they learn the dependence of many rows better themselves: the whitening then stays the identity,
    unless there are directions too narrow for networks.
    """
    independent, copula, normal = _left_out_scores(marginals, x[:_SEEN])
    if normal >= max(independent, copula) and (len(x) <= _FEW or not has_networks or _is_narrow(x)):
        marginals.used = torch.ones(x.shape[1], dtype=torch.long)
        return  # one Gaussian is set already
    with_context = context if marginals.context else None
    marginals.initialize(x, with_context)
    z, _ = marginals(x, with_context)
    identity = torch.zeros(x.shape[1], device=x.device), torch.eye(x.shape[1], device=x.device)
    whiten = copula > independent and (len(x) <= _FEW or not has_networks or _is_narrow(z))
    whitening.set_gaussian(*(gaussian(z) if whiten else identity))


def _is_narrow(z: Tensor) -> bool:
    """Whether the columns of ``z`` (N, D) have a direction with almost no variance."""
    _, covariance = gaussian(z)
    scale = covariance.diagonal().sqrt()
    least = torch.linalg.eigvalsh(covariance / scale / scale.unsqueeze(-1))[0]
    return bool(least < _NARROW)


def _left_out_scores(marginals: MixtureCDF, x: Tensor) -> tuple[float, float, float]:
    """The log density of left-out rows of ``x`` (N, D): independent marginals, whitened ones, and one Gaussian."""
    scratch, whitening = copy.deepcopy(marginals), Whitening(marginals.features).to(x)
    scratch.conditioner, scratch.context = None, 0
    few = len(x) <= _FEW
    fold = torch.randperm(len(x), generator=torch.Generator().manual_seed(len(x))).to(x.device) % 5
    scores = torch.zeros(3, dtype=torch.float64)
    for number in range(5 if few else 1):
        rest, out = x[fold != number], x[fold == number]
        if len(out) == 0 or bool((rest.amin(0) == rest.amax(0)).any()):
            continue  # without its left-out rows, a column of few values may be constant
        scratch.set_mixtures(*predictive_mixture(rest, marginals.components, marginals.family, marginals.counts))
        whitening.set_gaussian(*gaussian(scratch(rest)[0]))
        z, ladj = scratch(out)
        white, more = whitening(z)
        scores += (
            torch.stack([_standard(z) + ladj.sum(), _standard(white) + (ladj + more).sum(), _normal_score(rest, out)])
            .double()
            .cpu()
        )
    independent, copula, normal = scores.nan_to_num(nan=-math.inf).tolist()
    return independent, copula, normal


def _standard(z: Tensor) -> Tensor:
    """The summed log density of the rows of ``z`` (N, D) under the standard normal."""
    return -0.5 * (z.square() + math.log(2.0 * math.pi)).sum()


def _normal_score(rest: Tensor, out: Tensor) -> Tensor:
    """The summed log density of the rows ``out`` under one Gaussian fitted to ``rest``."""
    loc, covariance = gaussian(rest)
    normal = torch.distributions.MultivariateNormal(loc, covariance, validate_args=False)
    total: Tensor = normal.log_prob(out.double()).sum()
    return total
