"""Mixtures of Gaussians for any rows: few rows get fewer components, and rows far out get components of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .expectation import SPIKE, Mixture, Whitened, cholesky, floored, split
from .gaussian import OUTSIDE, gaussian, rows_outside
from .robust import moments

__all__ = ["gaussian_mixture"]

_FAR = 100.0  # robust standard deviations to the rows that EM does not see


def gaussian_mixture(x: Tensor, components: int) -> Mixture:
    r"""A mixture of ``components`` Gaussians fitted to the rows of ``x`` (N, D).

    Expectation maximisation (:mod:`mixflow.start.expectation`) starts from k-means with several seeds, which are always
    the same. Each start runs a few iterations on some of the rows. The best start then runs to its end on all rows. The
    prior of a covariance is the mean covariance of all components, with the weight of w rows (Fraley and Raftery,
    "Bayesian regularization for normal mixture estimation and model-based clustering", 2007). Left-out rows choose w.
    For a component of few rows it is never less than D + 2.

    If there are few rows, fewer components may predict better, and left-out rows choose their number. The choice is one
    Gaussian (:func:`mixflow.start.gaussian.gaussian`) unless more components beat it by two standard errors. Spare
    components then share the weight and the parameters of used ones, which does not change the density.

    Rows beyond 100 robust standard deviations get components of their own, and the other components ignore them.

    Args:
        x: (N, D), finite, in any units; N >= 1.
        components: K >= 1.

    Raises:
        ValueError: ``x`` has no rows, or another number of dimensions.

    Example:
        >>> import torch
        >>> from mixflow.start.gaussian_mixture import gaussian_mixture
        >>> x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> fitted = gaussian_mixture(torch.cat([x - 10.0, x + 10.0]), 2)
        >>> fitted.loc.round().flatten().sort().values
        tensor([-10.,  10.], dtype=torch.float64)

    """
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x: expected shape (N, D) with at least one row, got {tuple(x.shape)}")
    x = x.detach().double()
    far = _far(x)
    share = far.double().mean().item()
    if components == 1:
        return _single(x[~far] if share <= OUTSIDE else x)
    outer = min(components - 1, max(1, round(components * math.sqrt(share)))) if share > 0.0 else 0
    if _few(x, components) or components - outer == 1:
        # A few components cannot also cover the rows between the bulk and those far out.
        far |= rows_outside(x)
        share = far.double().mean().item()
        outer = max(outer, 1) if share > 0.0 else 0
    if outer == 0:
        return _filled_up(_of_bulk(x, components), components)
    inside = _of_bulk(x[~far], components - outer)
    outside = gaussian_mixture(x[far], outer) if outer > 1 else _wide(x[far], inside)
    return _filled_up(_joined(inside, outside, share), components)


def _far(x: Tensor) -> Tensor:
    """Which rows (N,) have a value far out; none if half of the rows have one.

    The spread is measured on 5000 to 10,000 of the rows.
    """
    centre, spread = moments(x[:: max(1, len(x) // 5000)])
    far = ((x - centre).abs() > _FAR * spread).any(dim=-1)
    return far & (far.double().mean() < 0.5)


def _few(x: Tensor, components: int) -> bool:
    """Whether there are so few rows ``x`` (N, D) that left-out rows must choose the number of components."""
    return len(x) < 2 * max(x.shape[-1], 16) * components


def _single(x: Tensor) -> Mixture:
    """One Gaussian: the likeliest for many rows, that of :func:`mixflow.start.gaussian.gaussian` for few."""
    loc, covariance = gaussian(x)
    if len(x) >= 50 * x.shape[-1]:
        scale = covariance.diagonal().sqrt()
        z = (x - loc) / scale
        loc, z = loc + scale * z.mean(dim=0), z - z.mean(dim=0)
        covariance = floored(z.mT @ z / len(z), SPIKE) * scale * scale.unsqueeze(-1)
    return Mixture(loc.new_zeros(1), loc.unsqueeze(0), covariance.unsqueeze(0))


def _wide(x: Tensor, inside: Mixture) -> Mixture:
    """One component for the rows ``x`` (N, D), which lie far out; it is no narrower than the mixture ``inside``."""
    weight = inside.log_weight.exp()
    # Fewer than five rows do not tell on which side the next row will lie. The component is then centred on the rest.
    loc = x.mean(dim=0) if len(x) >= 5 else weight @ inside.loc
    variance = (x - loc).square().mean(dim=0) + weight @ inside.covariance.diagonal(dim1=-2, dim2=-1)
    return Mixture(loc.new_zeros(1), loc.unsqueeze(0), variance.diag().unsqueeze(0))


def _joined(inside: Mixture, outside: Mixture, share: float) -> Mixture:
    log_weight = torch.cat([inside.log_weight + math.log1p(-share), outside.log_weight + math.log(share)])
    loc, covariance = (torch.cat(pair) for pair in zip(inside[1:], outside[1:], strict=True))
    return Mixture(log_weight, loc, covariance)


def _filled_up(used: Mixture, components: int) -> Mixture:
    """The same density with ``components`` components: spare ones repeat the used ones in turn, heaviest first."""
    order = used.log_weight.argsort(descending=True)
    which = order.repeat(math.ceil(components / len(order)))[:components]
    shared = torch.bincount(which, minlength=len(order))[which].to(used.loc)
    return Mixture(used.log_weight[which] - shared.log(), used.loc[which], used.covariance[which])


def _of_bulk(x: Tensor, components: int) -> Mixture:
    """A mixture of at most ``components`` fitted to ``x`` (N, D); if rows are few, left-out rows choose the number."""
    if components == 1:
        return _single(x)
    if not _few(x, components):
        return Whitened(x).mixture(components)
    number = _best_number(x, components)
    return _single(x) if number == 1 else Whitened(x, few=True).mixture(number)


def _best_number(x: Tensor, components: int) -> int:
    """The number of components that predicts left-out rows of ``x`` (N, D) best; 1 unless more are clearly better."""
    fold = split(x)
    if fold.max().item() < 4 or len(torch.unique(x, dim=0)) < 10:
        return 1
    parts = [(x[fold != left_out], x[fold == left_out]) for left_out in range(5)]
    one = torch.cat([_log_prob(_single(rest), out) for rest, out in parts])
    best, best_gain = 1, 0.0
    number = 2
    spaces = [Whitened(rest, few=True) for rest, _ in parts]
    while number <= min(components, len(x) // 5):
        pairs = zip(spaces, parts, strict=True)
        gain = torch.cat([_log_prob(space.mixture(number), out) for space, (_, out) in pairs]) - one
        mean, error = gain.mean().item(), gain.std().item() / math.sqrt(len(gain))
        if mean > max(best_gain, 2.0 * error):
            best, best_gain = number, mean
        elif mean < best_gain - error:
            break
        number = number + 1 if number < 4 else min(2 * number, max(components, number + 1))
    return best


def _log_prob(fitted: Mixture, x: Tensor) -> Tensor:
    """Log density (N,) of the rows ``x`` (N, D)."""
    root = cholesky(fitted.covariance)
    standard = torch.linalg.solve_triangular(root, (x - fitted.loc.unsqueeze(1)).mT, upper=False)
    log_scale = root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1) + 0.5 * x.shape[-1] * math.log(2.0 * math.pi)
    log_weight = (fitted.log_weight - log_scale).unsqueeze(-1)
    return torch.logsumexp(log_weight - 0.5 * standard.square().sum(dim=1), dim=0)
