"""Where the parameters of mixtures start: at mixtures that predict rows that they have not seen.

A start is a density already, often a good one, and training goes on from it. Three things can spoil it, and each has
its cure here:

- few rows: every component that is added follows the rows at hand, not the density that they come from. There are at
  most a tenth as many components as rows, and their number is the one that predicts rows left out best;
- values far out: cells of equal counts and standard deviations are taken of the bulk (:mod:`mixflow.start.robust`).
  Columns with values outside their bulk also try components whose widths grow geometrically from the bulk to the
  farthest value;
- repeated values: a component could shrink onto one of them without end. Each component's scale is held by a prior.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..op import cdf_transform
from .robust import bulk, clipped, in_order, moments

__all__ = ["best_counts", "normal_quantiles", "normal_start", "predictive_mixture", "start_from", "wide_normal"]

_ROWS = 2048  # as many quantiles as tell two starts apart
_ROWS_TO_IMPROVE = 8192  # as many rows as tell the better weights
_STEPS = 20  # of expectation-maximisation
_WIDTHS = 10.0 ** (torch.arange(-5.0, 5.0, device="cpu") / 10.0)  # from 0.32 to 2.5
_SHARES = (0.3, 0.6, 0.8, 0.9)
_FEW = 500  # rows, up to which every row is left out once; of more, a fifth of the rows is left out
_PLENTY = 1000  # rows for each component, from which on they need no choosing
_MOST_A_ROW = 20.0  # nats that a single row may speak for or against a number of components
_ROWS_TO_CHOOSE = 4096  # rows that their number is chosen by
_PER_COMPONENT = 10  # rows that a component needs at least
_FOLDS = 5
# Scales of the widest components of a heavy tail, times the distance of the farthest value: of the last, and of the
# ones before it. Twenty times as many values of Student's t with half a degree of freedom reach 400 times as far.
_FAR_BEYOND = 1000.0
_BEYOND = 5.0
_SAFETY = 0.02  # nats a row by which a mixture without such components must be better than those with them


def predictive_mixture(
    x: Tensor, components: int, family: str, counts: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``logits``, ``loc`` and ``log_scale``, each (D, ``components``), of a mixture for each column of ``x`` (N, D).

    Column d uses ``counts[d]`` components, by default as many as :func:`best_counts` finds; one stands for a normal.
    Where
    fewer are used than there are, copies share the weight of one: the density is that of the fewer.

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
    """How many of at most ``components`` components each column of ``x`` (N, D) supports: integers (D,).

    All of them where there are a thousand rows for each. Otherwise the number that predicts rows left out best, a tenth
    of the rows at most.

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
    """The ``mixture`` of K components in the form of one of more: copies of a component share its weight."""
    source = torch.arange(components, device=mixture[0].device) % mixture[0].shape[-1]
    copies = source.bincount()[source].to(mixture[0])
    logits, loc, log_scale = (parameter[:, source] for parameter in mixture)
    return logits - copies.log(), loc, log_scale


def wide_normal(x: Tensor, components: int, family: str, exact: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """A normal for each column of ``x`` (N, D), as nearly as ``components`` of ``family`` have the shape of one.

    Its variance is that of the predictive distribution of a normal whose mean and variance the rows have to tell as
    well, (1 + 1/N)(N - 1)/(N - 3) times the rows' own (Geisser, "Predictive Inference", 1993). With ``exact``, all
    components are the same: a normal to the last digit where the family is Gaussian, but training would never tell them
    apart.
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

    Of ``counts`` and 1, which stands for a normal. More than a normal must be better by two standard errors of the
    difference, by more for a handful of rows and by half of one where rows are not few: of several candidates, one is
    always better by chance. A column with values outside its bulk is no normal, and needs a component or more for the
    values far out; how far out they are must not decide.
    """
    rows, columns = x.shape
    fold = torch.randperm(rows, generator=torch.Generator().manual_seed(rows)).to(x.device) % _FOLDS
    # One column for each fold and feature. All have as many rows, some of them twice: a column without its fold is
    # drawn out to the length of the whole.
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
    """``logits``, ``loc`` and ``log_scale`` (D, K) of mixtures that the columns of ``x`` (N, D) are likely under.

    Columns with values outside their bulk also try wide components, except where ``widen`` is False.
    """
    mixture = improved(x, *start_from(x, components, family), family)
    if components == 1 or not widen:
        return mixture
    tailed = _tailed(x)
    if not tailed.any():
        return mixture
    # Far out, squares of distances need the range of float64.
    columns, rows = x[:, tailed].double(), x[:_ROWS_TO_IMPROVE, tailed].double()
    tried = [tuple(parameter[tailed].double() for parameter in mixture), *_widened(columns, components, family)]
    scores = [cdf_transform(rows, *one, family=family, base="uniform")[1].mean(0) for one in tried]
    scores[0] = scores[0] - _SAFETY  # rows farther out than all of these would lie beyond its widest component
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
    # All at once, as columns: a step on few rows takes as long for one as for three.
    mixtures = improved(x.repeat(1, len(starts)), loc, log_scale, family, 2 * _STEPS)
    return list(zip(*(parameter.chunk(len(starts)) for parameter in mixtures), strict=True))


def _widening(x: Tensor, components: int) -> list[tuple[Tensor, Tensor]]:
    """``loc`` and ``log_scale`` (D, K) with geometric scales: around the median, from the lower and the upper end.

    Mixtures over scales around one point have the tails of Student's t and of Cauchy's distribution; those from an end,
    with the distance growing along, the shape of a lognormal of many decades. The widest component goes beyond the
    farthest value: of such a tail, further rows bring larger values yet. Where that is not so, it keeps the weight of
    one row.
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

    The sorted column is cut into K cells of equal counts. Candidates have their components at the cells' medians, as
    wide as the gaps between these; at the cells' means, as wide as the cells' standard deviations; and at the medians
    drawn towards the column's mean, all of the width that is left for the column's variance, which comes close to a
    normal column. Each is tried in ten widths, and the likelihood of the column chooses. A scale is at least a
    hundredth of an even share of the column's standard deviation, since tied values leave no gap: a start, not a limit.

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

    Steps of expectation-maximisation (Dempster, Laird and Rubin, 1977) from equal weights and the given start, written
    in the gradients of the log-likelihood L, which hold its sums over rows: with r the rows' shares in a component and
    a their distances from it in scales,

    .. math:: \sum r = dL/dlogit + N w, \quad \sum r \, score = s \, dL/dloc,
              \quad \sum (r + r \, a \, score) = dL/dlog\_scale

    For Gaussian components these are the exact updates; for any other they have the same fixed points. To each
    component's scale the start's is added with the weight of two rows, lest a few equal values make it vanish.

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

    The op that autograd would come to, called at once: the log density itself is not wanted.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    given = [value.detach().to(wide) for value in (x, *mixture)]
    seeds = given[0].new_zeros(()), given[0].new_ones(())  # of the value and of the log density
    wanted = [False, True, True, True]  # not by x
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
