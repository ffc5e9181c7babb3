"""Mixtures of one column each, as starts for training: they predict rows that they were not fitted to.

A start is already a density, often a good one, and training goes on from it. Three things can spoil a start. Each has
its cure here:

- Few rows. With every further component, a mixture follows the rows at hand more closely, and not the density that they
  come from. So there are at most a tenth as many components as rows, and their number is the one that predicts left-out
  rows best.
- Values far out. Quantiles and standard deviations are those of the bulk (:mod:`mixflow.start.robust`). Columns with
  values outside their bulk also try components whose widths grow geometrically, from the bulk to the farthest value.
- Repeated values. A component could shrink onto one of them without end. A prior on each component's scale stops it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..op import cdf_transform
from .robust import bulk, clipped, in_order, moments

__all__ = ["best_counts", "normal_quantiles", "normal_start", "predictive_mixture", "start_from", "wide_normal"]

_ROWS = 2048  # quantiles of a column that candidates are compared on
_ROWS_TO_IMPROVE = 8192  # rows that expectation maximisation uses
_STEPS = 20  # of expectation maximisation
_WIDTHS = 10.0 ** (torch.arange(-5.0, 5.0, device="cpu") / 10.0)  # from 0.32 to 2.5
_SHARES = (0.3, 0.6, 0.8, 0.9)
_FEW = 500  # up to so many rows, every row is left out once; of more rows, a fifth is left out
_PLENTY = 1000  # with so many rows for each component, all components are used
_MOST_A_ROW = 20.0  # nats that a single row may count for or against a number of components
_ROWS_TO_CHOOSE = 4096  # rows that choose the number of components
_PER_COMPONENT = 10  # rows that a component needs at least
_FOLDS = 5
# In a heavy tail, the scale of the last component over the distance of the farthest value, and that of the one before.
# For comparison: among twenty times as many draws of Student's t with half a degree of freedom, the farthest is 400
# times as far.
_FAR_BEYOND = 1000.0
_BEYOND = 5.0
_SAFETY = 0.02  # nats a row by which a mixture without such components must beat those with them


def predictive_mixture(
    x: Tensor, components: int, family: str, counts: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``logits``, ``loc`` and ``log_scale``, each (D, ``components``), of a mixture for each column of ``x`` (N, D).

    Column d uses ``counts[d]`` components, by default as many as :func:`best_counts` finds. The count 1 stands for a
    normal, which all components together imitate. Spare components are copies that share the weight of a used one,
    which does not change the density.

    Example:
        >>> import torch
        >>> from mixflow.start.mixtures import predictive_mixture
        >>> x = torch.tensor([[-1.0], [0.0], [1.0], [0.5], [-0.5]])
        >>> logits, loc, log_scale = predictive_mixture(x, 4, "gaussian")  # five rows: a normal, wider than they are
        >>> bool((loc.abs() < 1.0).all())
        True

    """
    counts = best_counts(x, components, family) if counts is None else counts
    numbers = set(counts.tolist())
    shape = x.shape[1], components
    chosen = wide_normal(x, components, family) if 1 in numbers else tuple(x.new_empty(shape) for _ in range(3))
    for count in sorted(numbers - {1}):
        columns = counts == count
        fitted = _repeated(likely_mixture(x[:, columns], count, family), components)
        for parameter, value in zip(chosen, fitted, strict=True):
            parameter[columns] = value
    return chosen[0], chosen[1], chosen[2]


def best_counts(x: Tensor, components: int, family: str) -> Tensor:
    """How many components, ``components`` at most, each column of ``x`` (N, D) supports: integers (D,).

    With a thousand rows for each component, all are supported. Otherwise the number is the one that predicts left-out
    rows best, and at most a tenth of the number of rows.

    Example:
        >>> import torch
        >>> from mixflow.start.mixtures import best_counts
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> x[:, 1] = x[:, 1].sign() * (4.0 + x[:, 1].abs())
        >>> best_counts(x, 8, "gaussian") > 1
        tensor([False,  True])

    """
    most = max(1, min(components, len(x) // _PER_COMPONENT))
    if most == 1 or most * _PLENTY < len(x):
        return torch.full((x.shape[1],), most, device=x.device)
    counts = [count for count in (2, 4, 8, 16, 32, 64, 128) if count < most] + [most]
    return _best_counts(x[:_ROWS_TO_CHOOSE], counts, family, _FOLDS if len(x) <= _FEW else 1)


def _repeated(mixture: tuple[Tensor, Tensor, Tensor], components: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same density as ``mixture``, with more components: copies of a component share its weight."""
    source = torch.arange(components, device=mixture[0].device) % mixture[0].shape[-1]
    copies = source.bincount()[source].to(mixture[0])
    logits, loc, log_scale = (parameter[:, source] for parameter in mixture)
    return logits - copies.log(), loc, log_scale


def wide_normal(x: Tensor, components: int, family: str, exact: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """A normal for each column of ``x`` (N, D), as closely as ``components`` of ``family`` can imitate it.

    The rows leave the mean and the variance of the normal uncertain. Its predictive distribution therefore has a larger
    variance, (1 + 1/N)(N - 1)/(N - 3) times that of the rows (Geisser, "Predictive Inference", 1993).

    With ``exact``, all components are equal. For the Gaussian family this is a normal to the last digit. But equal
    components have equal gradients, and training would never separate them.
    """
    mean, spread = moments(x)
    rows = len(x)
    wider = ((1.0 + 1.0 / rows) * max(1, rows - 1) / max(0.5, rows - 3)) ** 0.5
    loc, log_scale = (parameter.to(x) for parameter in normal_start(components, family))
    if exact:
        loc, log_scale = torch.zeros_like(loc), torch.zeros_like(loc)
    scale = (wider * spread).unsqueeze(-1)
    loc = mean.unsqueeze(-1) + scale * loc
    return torch.zeros_like(loc), loc, log_scale + scale.log()


def _best_counts(x: Tensor, counts: list[int], family: str, folds: int) -> Tensor:
    """The number of components (D,) of each column of ``x`` (N, D) that predicts the rows of ``folds`` folds best.

    The candidates are ``counts`` and 1, which stands for a normal. Of several candidates, one is always better than the
    normal by chance. So a mixture must beat the normal by two standard errors of the difference; by more if there is a
    handful of rows, and by half a standard error if rows are not few. A column with values outside its bulk is not
    normal, and gets 8 components at least, however far out these values are.
    """
    rows, columns = x.shape
    fold = torch.randperm(rows, generator=torch.Generator().manual_seed(rows)).to(x.device) % _FOLDS
    # There is one column for each fold and feature. All have the length of the whole: a column without its fold is
    # stretched to it by taking some rows twice.
    rest = [(fold != number).nonzero().squeeze(-1) for number in range(folds)]
    learned = torch.cat([x[kept[torch.arange(rows, device=x.device) * len(kept) // rows]] for kept in rest], dim=1)
    left_out = torch.stack([fold == number for number in range(folds)], dim=1).repeat_interleave(columns, dim=1)
    scored, seen = x.repeat(1, folds), fold < folds

    def score(mixture: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        _, log_prob = cdf_transform(scored, *mixture, family=family, base="uniform")
        rows_own: Tensor = log_prob.where(left_out, 0.0).unflatten(1, (folds, columns)).sum(1)
        return rows_own[seen]

    tailed, errors = _tailed(x), 2.0 + 20.0 * (rows - 2.0) ** -1.2 if folds > 1 else 0.5
    least = min(8, max(counts))  # components of such a column
    normal = score(wide_normal(learned, max(counts), family))
    best = torch.where(tailed, least, torch.ones(columns, dtype=torch.long, device=x.device))
    gain = torch.where(tailed, -math.inf, x.new_zeros(columns))
    for count in counts:
        mixture = likely_mixture(learned, count, family, widen=count >= least)
        difference = (score(mixture) - normal).clamp(-_MOST_A_ROW, _MOST_A_ROW)
        mean, error = difference.mean(0), difference.std(0) / len(difference) ** 0.5
        better = (mean > gain) & torch.where(tailed, count >= least, mean > errors * error)
        best, gain = torch.where(better, count, best), torch.where(better, mean, gain)
    return best


def likely_mixture(x: Tensor, components: int, family: str, widen: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """``logits``, ``loc`` and ``log_scale`` (D, K) of mixtures under which the columns of ``x`` (N, D) are likely.

    Columns with values outside their bulk also try wide components, unless ``widen`` is False.
    """
    mixture = improved(x, *start_from(x, components, family), family)
    if components == 1 or not widen:
        return mixture
    tailed = _tailed(x)
    if not tailed.any():
        return mixture
    # The squares of large distances need the range of float64.
    columns, rows = x[:, tailed].double(), x[:_ROWS_TO_IMPROVE, tailed].double()
    tried = [tuple(parameter[tailed].double() for parameter in mixture), *_widened(columns, components, family)]
    scores = [cdf_transform(rows, *one, family=family, base="uniform")[1].mean(0) for one in tried]
    scores[0] = scores[0] - _SAFETY  # a later row may lie farther out than all of these, and this one is narrow
    best = torch.stack(scores).argmax(0)
    for index, parameter in enumerate(mixture):
        parameter[tailed] = torch.stack([one[index] for one in tried])[best, torch.arange(len(best))].to(x)
    return mixture


def _tailed(x: Tensor) -> Tensor:
    """Which columns (D,) of ``x`` (N, D) have values outside their bulk."""
    low, high = bulk(x)
    return ((x < low) | (x > high)).any(0)


def _widened(x: Tensor, components: int, family: str) -> list[tuple[Tensor, ...]]:
    """``logits``, ``loc`` and ``log_scale`` (D, K) of a mixture for each start of :func:`_widening`."""
    starts = _widening(x, components)
    loc, log_scale = (torch.cat(parameters) for parameters in zip(*starts, strict=True))
    # All starts are improved together, as columns: on few rows, a step takes as long for one start as for three.
    mixtures = improved(x.repeat(1, len(starts)), loc, log_scale, family, 2 * _STEPS)
    return list(zip(*(parameter.chunk(len(starts)) for parameter in mixtures), strict=True))


def _widening(x: Tensor, components: int) -> list[tuple[Tensor, Tensor]]:
    """``loc`` and ``log_scale`` (D, K) with geometric scales: around the median, from the lower and from the upper end.

    Components around one point, with scales that grow, make the tails of Student's t and of Cauchy's distribution.
    Components at growing distances from an end, with scales that grow as well, make a lognormal of many decades. The
    widest component reaches beyond the farthest value, because further rows of such a tail bring larger values. If they
    do not, the component keeps the weight of one row, which costs little.
    """
    _, spread = moments(x)
    median = in_order(x)[(len(x) - 1) // 2]
    around = _geometric(0.3 * spread, (x - median).abs().amax(0), components)
    starts = [(median.unsqueeze(-1) + torch.zeros_like(around), around)]
    for side in (1.0, -1.0):
        distance = in_order(x - x.amin(0) if side > 0.0 else x.amax(0) - x)
        nearest = torch.maximum(distance[len(x) // 50], 1e-6 * spread)
        log_scale = _geometric(nearest, distance[-1], components)
        end = x.amin(0) if side > 0.0 else x.amax(0)
        starts.append((end.unsqueeze(-1) + side * log_scale.exp(), log_scale))
    return starts


def _geometric(least: Tensor, farthest: Tensor, components: int) -> Tensor:
    """Logs of scales (D, K), evenly spaced from ``least`` (D,) to beyond the distance ``farthest`` (D,)."""
    step = torch.arange(components, device=least.device, dtype=least.dtype) / (components - 1)
    log_scale = least.log().unsqueeze(-1) + step * (_BEYOND * farthest / least).log().clamp_min(0.0).unsqueeze(-1)
    if components > 4:
        log_scale[:, -1] = torch.maximum(log_scale[:, -1], (_FAR_BEYOND * farthest).log())
    return log_scale


def start_from(x: Tensor, components: int, family: str) -> tuple[Tensor, Tensor]:
    """``loc`` and ``log_scale`` (D, K) of an equally weighted mixture that resembles each column of ``x`` (N, D).

    The sorted column is cut into K cells of equal counts. Three kinds of candidates place a component in each cell:

    - at the cell's median, as wide as the gap to the neighbours' medians;
    - at the cell's mean, as wide as the cell's standard deviation;
    - at the median, drawn towards the column's mean; all components are equally wide, so that the mixture has about the
      column's variance. This comes close to a normal column.

    Each candidate is tried with ten factors of its widths, and the likeliest one is the result. So the method is the
    same for every family, whatever the width of its standard distribution. A scale is at least a hundredth of an even
    share of the column's standard deviation, because equal values leave no gap. Training may go below it.

    Example:
        >>> import torch
        >>> from mixflow.start.mixtures import start_from
        >>> loc, log_scale = start_from(torch.tensor([[-5.1], [-4.9], [4.9], [5.1]]), 2, "gaussian")
        >>> loc
        tensor([[-5.,  5.]])

    """
    per_cell = max(1, min(_ROWS, len(x)) // components)
    count = per_cell * components
    quantiles = (torch.arange(count, device=x.device, dtype=torch.float64) + 0.5) / count
    rows = in_order(clipped(x))[(quantiles * len(x)).long()]
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


def improved(
    x: Tensor, loc: Tensor, log_scale: Tensor, family: str, steps: int = _STEPS
) -> tuple[Tensor, Tensor, Tensor]:
    r"""``logits``, ``loc`` and ``log_scale`` (D, K) of more likely mixtures of each column of ``x`` (N, D).

    The method is expectation maximisation (Dempster, Laird and Rubin, 1977), from equal weights and a given start. Its
    sums over rows follow from the gradients of the log-likelihood L. With r the shares of a component in the rows, a
    their distances from its location in scales, w its weight and s its scale,

    .. math:: \sum r = dL/dlogit + N w, \quad \sum r \, score = s \, dL/dloc,
              \quad \sum (r + r \, a \, score) = dL/dlog\_scale

    For Gaussian components the updates are exact. For other families they have the same fixed points. The prior on a
    component's scale is its scale at the start, with the weight of two rows: a few equal values cannot make it vanish.

    Example:
        >>> import torch
        >>> from mixflow.start.mixtures import improved
        >>> x = torch.tensor([[-5.0], [-4.0], [-4.5], [5.0], [4.0], [6.0]])
        >>> improved(x, torch.tensor([[-1.0, 1.0]]), torch.ones(1, 2), "gaussian")[1]
        tensor([[-4.5000,  5.0000]])

    """
    x, prior, logits = x[:_ROWS_TO_IMPROVE], log_scale, torch.zeros_like(loc)
    for _ in range(steps):
        by_logits, by_loc, by_log_scale = _by_parameters(x, (logits, loc, log_scale), family)
        count = (by_logits + len(x) * logits.softmax(-1)).clamp_min(0.0)
        spread = (count + by_log_scale).clamp_min(0.0)
        logits = (count + 1.0).log()
        loc = loc + torch.exp(2.0 * log_scale) * by_loc / (count + 2.0)
        log_scale = log_scale + 0.5 * torch.log((spread + 2.0 * torch.exp(2.0 * (prior - log_scale))) / (count + 2.0))
    return logits, loc, log_scale


def _by_parameters(x: Tensor, mixture: tuple[Tensor, Tensor, Tensor], family: str) -> list[Tensor]:
    """The gradients of the summed log density of ``x`` (N, D) by the three parameters (D, K) of ``mixture``.

    This calls the op that autograd would call. The log density itself is not needed, so it is not computed.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    given = [value.detach().to(wide) for value in (x, *mixture)]
    seeds = given[0].new_zeros(()), given[0].new_ones(())  # of the value and of the log density
    wanted = [False, True, True, True]  # no gradient by x
    found = torch.ops.mixflow.map_backward(*seeds, *given, family, "uniform", False, wanted)
    return [gradient.to(x.dtype) for gradient in found[1:]]


def normal_start(components: int, family: str) -> tuple[Tensor, Tensor]:
    """``loc`` and ``log_scale`` (K,) of a mixture that resembles the standard normal, for standardised data."""
    loc, log_scale = start_from(normal_quantiles(), components, family)
    return loc.squeeze(0), log_scale.squeeze(0)


def normal_quantiles() -> Tensor:
    """Evenly spaced quantiles (N, 1) of the standard normal."""
    quantiles: Tensor = torch.special.ndtri((torch.arange(_ROWS) + 0.5) / _ROWS)
    return quantiles.unsqueeze(-1)
