"""Mixture CDFs, feature by feature, and where their parameters start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import check_integer
from ..conditioners import MLP
from ..ops import BASES, FAMILIES, cdf_transform, cdf_transform_inverse
from .base import Transform, check_name, spread_of

__all__ = ["MixtureCDF", "normal_start", "start_from"]


class MixtureCDF(Transform):
    r"""Each feature through its own mixture CDF and the inverse CDF of a base.

    .. math:: z = G^{-1}(F(x)), \quad F(x) = \sum_k \mathrm{softmax}(logits)_k \,
              C\left((x - loc_k) / e^{log\_scale_k}\right)

    With a base of the data's own kind this is the marginal Gaussianization of Chen and Gopinath (2000); see
    Meng et al., "Gaussianization Flows" (2020, arXiv:2003.01941). A logistic family with a logistic base is the deep
    sigmoidal layer of Huang et al., "Neural Autoregressive Flows" (2018, arXiv:1804.00779): a mixture of sigmoids, then
    a logit; several are composed by :class:`Compose`. The parameters ``logits``, ``loc`` and ``log_scale`` have shape
    (D, K). With a context, a network adds to them an offset for each element, as in Ho et al., "Flow++" (2019,
    arXiv:1902.00275).

    Args:
        features: D.
        components: K, the number of components of each feature's mixture.
        family: the components' distribution, one of ``mixflow.FAMILIES``.
        base: the distribution that the data are mapped to, one of ``mixflow.BASES``.
        context: C, the size of the context; 0 for none.

    Raises:
        ValueError: a size is out of range, or the family or base is unknown.

    Example:
        >>> import torch
        >>> from mixflow.transforms import MixtureCDF
        >>> transform = MixtureCDF(features=3, components=4, family="logistic")
        >>> x = torch.randn(10, 3)
        >>> z, ladj = transform(x)
        >>> torch.allclose(transform.inverse(z)[0], x, atol=1e-4)
        True

    """

    def __init__(
        self, features: int, components: int, family: str = "gaussian", base: str = "normal", context: int = 0
    ) -> None:
        super().__init__(features, context)
        self.components = check_integer("components", components, 1)
        self.family = check_name("family", family, FAMILIES)
        self.base = check_name("base", base, BASES)
        loc, log_scale = normal_start(self.components, family)
        shape = self.features, self.components
        self.logits = nn.Parameter(torch.zeros(shape))
        self.loc = nn.Parameter(loc.repeat(self.features, 1))
        self.log_scale = nn.Parameter(log_scale.repeat(self.features, 1))
        self.conditioner = MLP(self.context, 3 * loc.numel() * self.features) if self.context else None

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """A mixture that each column of ``x`` (N, D) is likely under: see :func:`start_from` and :func:`improved`."""
        with torch.no_grad():
            spread_of(x)
            start = start_from(x, self.components, self.family)
            logits, loc, log_scale = improved(x, *start, self.family)
            self.logits.copy_(logits)
            self.loc.copy_(loc)
            self.log_scale.copy_(log_scale)
            if self.conditioner is not None and context is not None:
                self.conditioner.initialize(context)

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return (
            f"features={self.features}, components={self.components}, family={self.family!r}, "
            f"base={self.base!r}, context={self.context}"
        )

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if self.conditioner is None or context is None:
            return self.logits, self.loc, self.log_scale
        offsets = self.conditioner(context).unflatten(-1, (3, self.features, self.components))
        logits, loc, log_scale = offsets.unbind(-3)
        return self.logits + logits, self.loc + loc, self.log_scale + log_scale

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z, ladj = cdf_transform(x, *self._parameters_for(context), family=self.family, base=self.base)
        return z, ladj.sum(-1)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, ladj = cdf_transform_inverse(z, *self._parameters_for(context), family=self.family, base=self.base)
        return x, ladj.sum(-1)


# Nothing below looks at a value, so that all of it also runs on torch's meta device, where model files are checked.

_ROWS = 2048  # as many quantiles as tell two starts apart
_ROWS_TO_IMPROVE = 8192  # as many rows as tell the better weights
_WIDTHS = 10.0 ** (torch.arange(-5.0, 5.0, device="cpu") / 10.0)  # from 0.32 to 2.5
_SHARES = (0.3, 0.6, 0.8, 0.9)


def start_from(x: Tensor, components: int, family: str) -> tuple[Tensor, Tensor]:
    """``loc`` and ``log_scale`` (D, K) of an equally weighted mixture that resembles each column of ``x`` (N, D).

    The sorted column is cut into K cells of equal counts. Candidates have their components at the cells' medians, as
    wide as the gaps between these; at the cells' means, as wide as the cells' standard deviations; and at the medians
    drawn towards the column's mean, all of the width that is left for the column's variance, which comes close to a
    normal column. Each is tried in ten widths, and the likelihood of the column chooses. A scale is at least a
    hundredth of an even share of the column's standard deviation, since tied values leave no gap: a start, not a limit.

    Example:
        >>> import torch
        >>> from mixflow.transforms.mixture import start_from
        >>> loc, log_scale = start_from(torch.tensor([[-5.1], [-4.9], [4.9], [5.1]]), 2, "gaussian")
        >>> loc
        tensor([[-5.,  5.]])

    """
    per_cell = max(1, min(_ROWS, len(x)) // components)
    count = per_cell * components
    quantiles = (torch.arange(count, device=x.device, dtype=torch.float64) + 0.5) / count
    rows = x.sort(dim=0).values[(quantiles * len(x)).long()]
    cells = rows.unflatten(0, (components, per_cell))
    median = 0.5 * (cells[:, (per_cell - 1) // 2] + cells[:, per_cell // 2])
    centre, spread = rows.mean(0), rows.std(0, correction=0)
    if components == 1:
        gap = spread.unsqueeze(0)
    else:
        between = median.diff(dim=0)
        gap = 0.5 * (torch.cat([between[:1], between]) + torch.cat([between, between[-1:]]))
    drawn = [centre + share * (median - centre) for share in _SHARES]
    left = [(spread.square() - loc.var(0, correction=0)).clamp_min(0.0).sqrt().expand_as(loc) for loc in drawn]
    loc = torch.stack([median, cells.mean(1), *drawn]).unsqueeze(1)
    scale = torch.stack([gap, cells.std(1, correction=0), *left]).unsqueeze(1) * _WIDTHS.to(x)[:, None, None]
    log_scale = torch.maximum(scale, 0.01 / components * spread).log()
    # (kinds, widths, K, D) to (candidates, D, K)
    loc, log_scale = (t.expand_as(log_scale).flatten(0, 1).transpose(1, 2) for t in (loc, log_scale))
    _, log_prob = cdf_transform(
        rows.unsqueeze(1), x.new_zeros(components), loc, log_scale, family=family, base="uniform"
    )
    best = log_prob.mean(0).argmax(0)
    chosen = best, torch.arange(x.shape[1], device=x.device)
    return loc[chosen], log_scale[chosen]


def improved(x: Tensor, loc: Tensor, log_scale: Tensor, family: str, steps: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    r"""``logits``, ``loc`` and ``log_scale`` (D, K) of more likely mixtures of each column of ``x`` (N, D).

    Steps of expectation-maximisation (Dempster, Laird and Rubin, 1977) from equal weights and the given start, written
    in the gradients of the log-likelihood L, which hold its sums over rows: with r the rows' shares in a component and
    a their distances from it in scales,

    .. math:: \sum r = dL/dlogit + N w, \quad \sum r \, score = s \, dL/dloc,
              \quad \sum (r + r \, a \, score) = dL/dlog\_scale

    For Gaussian components these are the exact updates; for any other they have the same fixed points. To each
    component's scale the start's is added with the weight of two rows, lest a few equal values make it vanish.

    Example:
        >>> import torch
        >>> from mixflow.transforms.mixture import improved
        >>> x = torch.tensor([[-5.0], [-4.0], [-4.5], [5.0], [4.0], [6.0]])
        >>> improved(x, torch.tensor([[-1.0, 1.0]]), torch.ones(1, 2), "gaussian")[1]
        tensor([[-4.5000,  5.0000]])

    """
    x, prior, logits = x[:_ROWS_TO_IMPROVE], log_scale, torch.zeros_like(loc)
    for _ in range(steps):
        parameters = [parameter.detach().requires_grad_() for parameter in (logits, loc, log_scale)]
        with torch.enable_grad():
            _, log_prob = cdf_transform(x, *parameters, family=family, base="uniform")
            by_logits, by_loc, by_log_scale = torch.autograd.grad(log_prob.sum(), parameters)
        count = (by_logits + len(x) * logits.softmax(-1)).clamp_min(0.0)
        spread = (count + by_log_scale).clamp_min(0.0)
        logits = (count + 1.0).log()
        loc = loc + torch.exp(2.0 * log_scale) * by_loc / (count + 2.0)
        log_scale = log_scale + 0.5 * torch.log((spread + 2.0 * torch.exp(2.0 * (prior - log_scale))) / (count + 2.0))
    return logits, loc, log_scale


def normal_start(components: int, family: str) -> tuple[Tensor, Tensor]:
    """``loc`` and ``log_scale`` (K,) of a mixture that resembles the standard normal, for standardised data."""
    loc, log_scale = start_from(normal_quantiles(), components, family)
    return loc.squeeze(0), log_scale.squeeze(0)


def normal_quantiles() -> Tensor:
    """Evenly spaced quantiles (N, 1) of the standard normal."""
    quantiles: Tensor = torch.special.ndtri((torch.arange(_ROWS) + 0.5) / _ROWS)
    return quantiles.unsqueeze(-1)
