"""One Gaussian, fitted to any number of rows, few or many, in float64 and without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .robust import bulk

__all__ = ["OUTSIDE", "folds", "gaussian", "generous_bulk", "rows_outside"]

FLOOR = 1e-8  # the least eigenvalue of a covariance, in units of the columns' variances
# How far correlations are shrunk: 0 keeps those of the rows, 1 makes them zero. Variances stay as they are.
_SHRINKAGE = [0.0, *(10.0**e for e in range(-7, -2)), 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0]
_FOLDS = 20
OUTSIDE = 0.1  # the largest share of rows that may be left out as outliers


def gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The Gaussian that predicts left-out rows best: ``loc`` (D,) and ``covariance`` (D, D).

    .. math:: \Sigma = c \, ((1 - a) S + a \, \mathrm{diag}(S)), \quad c = (1 + 1/N)(N - 1)/(N - 2)

    S is the covariance of the rows. The shrinkage a comes from a grid that includes 0, and is the one with the largest
    likelihood of left-out rows (Friedman, "Regularized discriminant analysis", 1989). The factor c widens the Gaussian,
    because few rows leave their mean and variance uncertain. The predictive Student distribution (Geisser, "Predictive
    inference", 1993) has N - 3 in place of N - 2: that is as good on average, and worse where the variance of the rows
    happens to be large. No eigenvalue is below 1e-8 of the columns' variances, so constant columns and columns that
    depend on each other are no error.

    Rows with a value outside the bulk of its column (:func:`mixflow.start.robust.bulk`) are left out if they are at
    most a tenth of the rows. Otherwise such values are moved to the edge of the bulk.

    Args:
        x: (N, D), finite, in any units; N >= 1.

    Returns:
        Both in float64 and in the units of ``x``.

    Raises:
        ValueError: ``x`` has no rows, or another number of dimensions.

    Example:
        >>> import torch
        >>> from mixflow.start.gaussian import gaussian
        >>> loc, covariance = gaussian(torch.tensor([[0.0, 10.0], [1.0, 30.0], [2.0, 20.0], [3.0, 40.0]]))
        >>> loc
        tensor([ 1.5000, 25.0000], dtype=torch.float64)
        >>> covariance.shape
        torch.Size([2, 2])

    """
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x: expected shape (N, D) with at least one row, got {tuple(x.shape)}")
    x = _without_outliers(x.detach().double())
    loc, scale = _mean_and_scale(x)
    z = (x - loc) / scale
    correlation = z.mT @ z / max(1, len(z) - 1)
    shrinkage = _best_shrinkage(z)
    shrunk = (1.0 - shrinkage) * correlation + shrinkage * torch.diag(correlation.diagonal())
    return loc, _floored(shrunk * _predictive(len(z))) * scale * scale.unsqueeze(-1)


def _without_outliers(x: Tensor) -> Tensor:
    """``x`` (N, D) without the rows outside the bulk. If these are many, their values move to its edges instead."""
    low, high = generous_bulk(x)
    outside = ((x < low) | (x > high)).any(dim=-1)
    if outside.sum().item() <= OUTSIDE * len(x):
        return x[~outside]
    return torch.minimum(torch.maximum(x, low), high)


def generous_bulk(x: Tensor) -> tuple[Tensor, Tensor]:
    """The edges, each (D,), of the bulk of the columns of ``x`` (N, D), with a margin for fewer than 40 rows."""
    low, high = bulk(x)
    # The measured spread of a handful of rows is often far too small, and so is their bulk.
    margin = max(0.0, 20.0 / len(x) - 0.5) * (high - low)
    return low - margin, high + margin


def rows_outside(x: Tensor) -> Tensor:
    """Which rows (N,) of ``x`` (N, D) have a value outside its column's bulk; none if more than a tenth have one."""
    low, high = generous_bulk(x)
    beyond = ((x < low) | (x > high)).any(dim=-1)
    return beyond & (beyond.double().mean() <= OUTSIDE)


def _mean_and_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (D,), of the columns of ``x``; for a constant column its value is the scale."""
    # This is a mean of differences: a sum of the values themselves would be rounded at the size of their offset.
    loc = x[0] + (x - x[0]).mean(dim=0)
    scale = (x - loc).square().sum(dim=0).div(max(1, len(x) - 1)).sqrt()
    size = loc.abs().masked_fill(loc == 0.0, 1.0)
    # A constant column has a spread of rounding errors, which counts as none.
    return loc, torch.where(scale > 1e-15 * size, scale, size)


def _predictive(rows: int) -> float:
    """The variance of the normal that predicts a further row best, over the variance of the rows."""
    return (1.0 + 1.0 / rows) * max(1, rows - 1) / max(0.5, rows - 2)


def _floored(covariance: Tensor) -> Tensor:
    """``covariance`` (..., D, D), of standardised columns, with no eigenvalue below ``FLOOR``."""
    values, vectors = torch.linalg.eigh(covariance)
    if values.min().item() > FLOOR:
        return covariance
    floored: Tensor = (vectors * values.clamp_min(FLOOR).unsqueeze(-2)) @ vectors.mT
    return floored


def folds(x: Tensor, count: int) -> Tensor:
    """A fold (N,), from 0 to ``count`` - 1, for each row of float64 ``x`` (N, D).

    Equal rows share a fold. A fold depends on the values in a row, not on the order of the rows.
    """
    key = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for column in (x + 0.0).view(torch.int64).unbind(-1):  # 0.0 and -0.0 are one value
        key = (key ^ (key >> 31) ^ column ^ (column >> 29)) * -7046029254386353131
    fold: Tensor = torch.unique(key ^ (key >> 32), return_inverse=True)[1]
    return fold % count


def _best_shrinkage(z: Tensor) -> float:
    """The shrinkage of the grid with the largest likelihood of the rows of ``z`` (N, D), each left out in turn."""
    if z.shape[-1] == 1:
        return 0.0
    fold = folds(z, min(_FOLDS, len(z)))
    distinct = int(fold.max().item()) + 1
    if distinct < 4:
        return 1.0
    shrinkage = z.new_tensor(_SHRINKAGE)
    scores = torch.zeros_like(shrinkage)
    for left_out in range(distinct):
        scores += _left_out_scores(z[fold != left_out], z[fold == left_out], shrinkage)
    return float(shrinkage[scores.argmax()].item())


def _left_out_scores(rest: Tensor, out: Tensor, shrinkage: Tensor) -> Tensor:
    """The log-likelihood (A,) of the rows ``out`` under Gaussians fitted to ``rest`` with each ``shrinkage`` (A,)."""
    loc = rest.mean(dim=0)
    centred = rest - loc
    covariance = centred.mT @ centred / max(1, len(rest) - 1)
    # A column may vary only in the rows that are left out. It keeps a hundredth of its variance.
    scale = covariance.diagonal().clamp_min(0.01).sqrt()
    values, vectors = torch.linalg.eigh(covariance / scale / scale.unsqueeze(-1))
    values = ((1.0 - shrinkage).unsqueeze(-1) * values + shrinkage.unsqueeze(-1)).clamp_min(FLOOR)
    values = values * _predictive(len(rest))
    along = ((out - loc) / scale @ vectors).square()
    scores: Tensor = -0.5 * ((along @ values.reciprocal().mT).sum(dim=0) + len(out) * values.log().sum(dim=-1))
    return scores
