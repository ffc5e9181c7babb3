"""Mixtures of Gaussians by expectation maximisation (EM), in float64 and without gradients.

The method is that of Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm" (1977).

Both steps of an iteration are matrix products with the rows' features 1, z and z z^T. The sums of the features over the
rows of a component hold its weight, mean and covariance; the log density of a component is linear in them. Rows far
out, which would cost these products their precision, get components of their own and take no part.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .clusters import k_means
from .gaussian import OUTSIDE, folds, gaussian, generous_bulk
from .robust import moments

__all__ = ["Mixture", "cholesky", "mixture"]

_SPIKE = 1e-10  # the least eigenvalue of a covariance, in units of the columns' variances: that of rows on one value
_FAR = 100.0  # robust standard deviations to the rows that EM does not see
_WIDE = 32  # columns from which the time of an iteration allows for fewer starts
_MANY = 24  # components, likewise
_CACHE = 2**25  # numbers of features kept from one iteration to the next


# -- a mixture -----------------------------------------------------------------------------------------------


class Mixture(NamedTuple):
    """A mixture of K Gaussians in float64: log weights (K,), means (K, D) and covariances (K, D, D)."""

    log_weight: Tensor
    loc: Tensor
    covariance: Tensor


def mixture(x: Tensor, components: int) -> Mixture:
    r"""A mixture of ``components`` Gaussians fitted to the rows of ``x`` (N, D).

    EM starts from k-means of several seeds (Arthur and Vassilvitskii, "k-means++", 2007), the draws always the same.
    Each start runs a few iterations on some of the rows, and the best runs to its end on all of them. The prior of
    a covariance is the mean one of all components with the weight of w rows (Fraley and Raftery, "Bayesian
    regularization for normal mixture estimation and model-based clustering", 2007); w is chosen by rows left out, and
    is never less than D + 2 for a component of few rows.

    Of few rows, fewer components may predict more. Their number is then chosen by rows left out: one Gaussian
    (:func:`mixflow.start.gaussian.gaussian`) unless more beat it by two standard errors. The components to spare share
    the weight and the parameters of used ones, which leaves the density as it is.

    Rows beyond 100 robust standard deviations get components of their own, and no others see them.

    Args:
        x: (N, D), finite, in any units; N >= 1.
        components: K >= 1.

    Raises:
        ValueError: ``x`` has no rows, or another number of dimensions.

    Example:
        >>> import torch
        >>> from mixflow.start.expectation import mixture
        >>> x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> fitted = mixture(torch.cat([x - 10.0, x + 10.0]), 2)
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
        # One Gaussian has no room for what lies between the bulk and the rows far out.
        far |= _outside(x)
        share = far.double().mean().item()
        outer = max(outer, 1) if share > 0.0 else 0
    if outer == 0:
        return _filled_up(_of_bulk(x, components), components)
    inside = _of_bulk(x[~far], components - outer)
    outside = mixture(x[far], outer) if outer > 1 else _wide(x[far], inside)
    return _filled_up(_joined(inside, outside, share), components)


def _far(x: Tensor) -> Tensor:
    """Which rows (N,) have a value far out; none where that would be half of them.

    The spread is that of 5000 to 10,000 of the rows.
    """
    centre, spread = moments(x[:: max(1, len(x) // 5000)])
    far = ((x - centre).abs() > _FAR * spread).any(dim=-1)
    return far & (far.double().mean() < 0.5)


def _outside(x: Tensor) -> Tensor:
    """Which rows (N,) have a value outside its column's bulk; none where that would be more than a tenth."""
    low, high = generous_bulk(x)
    outside = ((x < low) | (x > high)).any(dim=-1)
    return outside & (outside.double().mean() <= OUTSIDE)


def _few(x: Tensor, components: int) -> bool:
    """Whether the number of components has to be asked of the rows."""
    return len(x) < 2 * max(x.shape[-1], 16) * components


def _single(x: Tensor) -> Mixture:
    """One Gaussian: of many rows the likeliest, of few that of :func:`mixflow.start.gaussian.gaussian`."""
    loc, covariance = gaussian(x)
    if len(x) >= 50 * x.shape[-1]:
        scale = covariance.diagonal().sqrt()
        z = (x - loc) / scale
        loc, z = loc + scale * z.mean(dim=0), z - z.mean(dim=0)
        covariance = _floored(z.mT @ z / len(z), _SPIKE) * scale * scale.unsqueeze(-1)
    return Mixture(loc.new_zeros(1), loc.unsqueeze(0), covariance.unsqueeze(0))


def _wide(x: Tensor, inside: Mixture) -> Mixture:
    """One component of all the rows ``x`` (N, D), far from those ``inside``, and no narrower than these are."""
    weight = inside.log_weight.exp()
    # Where the next row lies is not known from a few: anywhere as far as these.
    loc = x.mean(dim=0) if len(x) >= 5 else weight @ inside.loc
    variance = (x - loc).square().mean(dim=0) + weight @ inside.covariance.diagonal(dim1=-2, dim2=-1)
    return Mixture(loc.new_zeros(1), loc.unsqueeze(0), variance.diag().unsqueeze(0))


def _joined(inside: Mixture, outside: Mixture, share: float) -> Mixture:
    log_weight = torch.cat([inside.log_weight + math.log1p(-share), outside.log_weight + math.log(share)])
    loc, covariance = (torch.cat(pair) for pair in zip(inside[1:], outside[1:], strict=True))
    return Mixture(log_weight, loc, covariance)


def _filled_up(used: Mixture, components: int) -> Mixture:
    """The same density of as many ``components``: the spare ones repeat the used ones in turn, heaviest first."""
    order = used.log_weight.argsort(descending=True)
    which = order.repeat(math.ceil(components / len(order)))[:components]
    shared = torch.bincount(which, minlength=len(order))[which].to(used.loc)
    return Mixture(used.log_weight[which] - shared.log(), used.loc[which], used.covariance[which])


def _of_bulk(x: Tensor, components: int) -> Mixture:
    """A mixture of at most ``components`` of the rows ``x`` (N, D), as many as left-out rows of few allow."""
    if components == 1:
        return _single(x)
    if not _few(x, components):
        return _Whitened(x).mixture(components)
    number = _best_number(x, components)
    return _single(x) if number == 1 else _Whitened(x, few=True).mixture(number)


def _best_number(x: Tensor, components: int) -> int:
    """How many components predict rows of ``x`` (N, D) left out best; 1 unless more are better for certain."""
    fold = _split(x)
    if fold.max().item() < 4 or len(torch.unique(x, dim=0)) < 10:
        return 1
    parts = [(x[fold != left_out], x[fold == left_out]) for left_out in range(5)]
    one = torch.cat([_log_prob(_single(rest), out) for rest, out in parts])
    best, best_gain = 1, 0.0
    number = 2
    spaces = [_Whitened(rest, few=True) for rest, _ in parts]
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


def _split(x: Tensor) -> Tensor:
    """A fold (N,), of 0 to 4, for each row of ``x`` (N, D); equal rows share one, and the units do not matter."""
    which = folds(x, len(x))
    index = torch.arange(len(x), device=x.device)
    first = index.new_full((len(x),), len(x)).scatter_reduce(0, which, index, "amin")[which]
    rank: Tensor = torch.unique(first, return_inverse=True)[1]
    return rank % 5


def _log_prob(fitted: Mixture, x: Tensor) -> Tensor:
    """Log density (N,) of the rows ``x`` (N, D)."""
    root = cholesky(fitted.covariance)
    standard = torch.linalg.solve_triangular(root, (x - fitted.loc.unsqueeze(1)).mT, upper=False)
    log_scale = root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1) + 0.5 * x.shape[-1] * math.log(2.0 * math.pi)
    log_weight = (fitted.log_weight - log_scale).unsqueeze(-1)
    return torch.logsumexp(log_weight - 0.5 * standard.square().sum(dim=1), dim=0)


def _floored(covariance: Tensor, floor: float) -> Tensor:
    """``covariance`` (..., D, D), of standardised columns, with no eigenvalue below ``floor``."""
    values, vectors = torch.linalg.eigh(covariance)
    floored: Tensor = (vectors * values.clamp_min(floor).unsqueeze(-2)) @ vectors.mT
    return torch.where((values[..., :1] < floor).unsqueeze(-1), floored, covariance)


def cholesky(covariance: Tensor) -> Tensor:
    """Lower triangles (K, D, D) whose products with their transposes are ``covariance`` (K, D, D).

    Where rounding left a matrix not quite positive definite, the small eigenvalues are lifted first.
    """
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(covariance)
    if not failed.any():
        return root
    scale = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    outer = scale.unsqueeze(-1) * scale.unsqueeze(-2)
    root = torch.linalg.cholesky(_floored(covariance / outer, 1e-12) * outer)
    return root


# -- expectation maximisation --------------------------------------------------------------------------------


class _Whitened:
    """Rows ``x`` (N, D) as EM sees them: those of their single Gaussian made standard normal."""

    def __init__(self, x: Tensor, few: bool = False) -> None:
        self.loc, covariance = gaussian(x)
        self.scale = covariance.diagonal().sqrt()
        self.root = cholesky(covariance.unsqueeze(0))[0]
        self.standard = (x - self.loc) / self.scale
        self.white = torch.linalg.solve_triangular(self.root, (x - self.loc).mT, upper=False).mT.contiguous()
        axes = torch.linalg.solve_triangular(self.root, self.scale.diag(), upper=False)
        self.floor = _SPIKE * axes @ axes.mT
        prior = float(x.shape[-1] + 2)
        self.priors = [4.0 * prior, prior, 1.0] if few else [4.0 * prior, prior, 1.0, 0.03, 1e-3, 1e-5]
        if x.shape[-1] > _WIDE:
            self.priors = self.priors[1::2]

    def mixture(self, components: int) -> Mixture:
        """EM of ``components`` from the best start, in the units of the rows."""
        sums, prior = self._best_starts(components)
        weight = self.white.new_full((len(sums),), prior)
        tolerance = 1e-4 if self.white.shape[-1] <= _WIDE else 1e-3
        runs, _, score = self._iterate(_Rows(self.white), sums, weight, steps=100, tolerance=tolerance)
        best = int(score.argmax().item())
        fitted = Mixture(*(part[best] for part in runs))
        covariance = self.root @ fitted.covariance @ self.root.mT
        outer = self.scale.unsqueeze(-1) * self.scale
        return Mixture(
            fitted.log_weight,
            self.loc + fitted.loc @ self.root.mT,
            _floored(covariance / outer, _SPIKE) * outer,
        )

    def _best_starts(self, components: int) -> tuple[Tensor, float]:
        """The sums of features (R, K, F) that EM begins with, and the weight of the prior.

        A few iterations on some of the rows show which starts are likely, a few more of these with each weight which
        weight predicts rows left out.
        """
        generator = torch.Generator(self.white.device).manual_seed(0)
        features = self.white.shape[-1]
        few = max(2000, min(16 * features * components, 5000))
        tries = 1 if features > _WIDE or components > _MANY else max(6, 48 // components)
        picked = torch.randperm(len(self.white), generator=generator, device=self.white.device)[:few]
        fold = _split(self.standard[picked])
        seen = picked[fold > 0] if fold.max().item() > 0 else picked
        rows = _Rows(self.white[seen])
        starts = [rows.sums(member) for member in self._members(seen, components, tries, generator)]
        likely = []
        # Spikes, components of rows that share values, are found under a weak prior alone.
        for prior in sorted({1.0, self.priors[-1]}):
            begun = torch.stack(starts)
            weights = begun.new_full((len(starts),), prior)
            _, sums, score = self._iterate(rows, begun, weights, steps=6, tolerance=1e-3)
            likely.append(sums[score.topk(min(tries, 2)).indices])
        begun = torch.cat(likely)
        number, weights = len(begun), self.white.new_tensor(self.priors)
        begun = begun.repeat_interleave(len(weights), dim=0)
        fitted, _, score = self._iterate(rows, begun, weights.repeat(number), steps=12, tolerance=1e-3)
        score = score.view(number, -1)
        left_out = _Rows(self.white[picked[fold == 0]]).expect(_coefficients(fitted))[1].view(number, -1)
        best = left_out.gather(0, score.argmax(dim=0, keepdim=True)).argmax().item()
        # Of a small table, several starts run to their end.
        ends = min(number, max(1, 8000 // len(self.white)))
        chosen = score[:, int(best)].topk(ends).indices * len(self.priors) + int(best)
        coefficients = _coefficients(Mixture(*(part[chosen] for part in fitted)))
        return _Rows(self.white).expect(coefficients)[0], self.priors[int(best)]

    def _members(self, seen: Tensor, components: int, tries: int, generator: torch.Generator) -> list[Tensor]:
        """For each start, the share (N, K) of the rows ``seen`` in the components."""
        standard, white = self.standard[seen], self.white[seen]
        members = [k_means(rows, components, generator) for _ in range(tries) for rows in (standard, white)]
        outside = _outside(standard)
        if outside.any():
            inside = k_means(standard[~outside], components - 1, generator)
            member = torch.zeros_like(members[0])
            member[~outside, : components - 1] = inside
            member[outside, -1] = 1.0
            members.append(member)
        return members

    def _iterate(
        self, rows: _Rows, sums: Tensor, prior: Tensor, steps: int, tolerance: float
    ) -> tuple[Mixture, Tensor, Tensor]:
        """``steps`` of EM, fewer where none gains ``tolerance`` nats a row: the mixtures, their sums and scores (R,).

        Args:
            rows: the rows to learn from.
            sums: (R, K, F), the sums of features of R runs.
            prior: (R,), the weight of each run's prior, in rows.
            steps: how many iterations.
            tolerance: in nats a row.

        """
        before = None
        for _ in range(steps):
            fitted = self._maximise(sums, prior)
            sums, score = rows.expect(_coefficients(fitted))
            if before is not None and (score - before).max().item() < tolerance:
                break
            before = score
        return fitted, sums, score

    def _maximise(self, sums: Tensor, prior: Tensor) -> Mixture:
        """The mixtures that ``sums`` (R, K, F) make likely."""
        components, features = sums.shape[1], self.white.shape[-1]
        count = sums[..., 0]
        loc = sums[..., 1 : 1 + features] / count.clamp_min(1e-9).unsqueeze(-1)
        row, column = torch.triu_indices(features, features, device=sums.device)
        scatter = sums.new_zeros(*count.shape, features, features)
        scatter[..., row, column] = sums[..., 1 + features :]
        scatter[..., column, row] = sums[..., 1 + features :]
        scatter -= count[..., None, None] * loc.unsqueeze(-1) * loc.unsqueeze(-2)
        one = torch.eye(features, dtype=sums.dtype, device=sums.device)
        mean = scatter.sum(dim=1, keepdim=True) / count.sum(dim=1)[:, None, None, None]
        mean = mean + 1e-3 * components ** (-2.0 / features) * one
        # Few rows say little of a covariance, whatever the weight.
        prior = prior.unsqueeze(-1) + (features + 2.0) * torch.exp(-count / (features + 2.0))
        covariance = (scatter + prior[..., None, None] * mean) / (count + prior)[..., None, None] + self.floor
        # The scatter of rows far from the origin is a difference of large numbers.
        rounding = 1e-13 * (loc.square().sum(-1) + covariance.diagonal(dim1=-2, dim2=-1).sum(-1))
        log_weight = (count + 1.0).log()
        log_weight = log_weight - torch.logsumexp(log_weight, dim=-1, keepdim=True)
        return Mixture(log_weight, loc, covariance + rounding[..., None, None] * one)


class _Rows:
    """Rows ``white`` (N, D) and their features: 1, z and the products of two elements of z, F in all.

    Features that would fill too much memory are not kept: each component then takes two products with the rows alone,
    which is faster than to make the features again.
    """

    def __init__(self, white: Tensor) -> None:
        features = white.shape[-1]
        self.parts = white.split(4096)
        self.pair = torch.triu_indices(features, features, device=white.device)
        size = len(white) * (1 + features + self.pair.shape[-1])
        self.kept = [self._features(part) for part in self.parts] if size <= _CACHE else None

    def sums(self, member: Tensor) -> Tensor:
        """The sums (K, F) of the features of each component's rows, of which it has the share ``member`` (N, K)."""
        shares = enumerate(member.split(4096))
        return torch.stack([self._sums_of(number, share) for number, share in shares]).sum(dim=0)

    def expect(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The sums (R, K, F) of mixtures with the ``coefficients`` (R, K, F), and a row's mean log density (R,)."""
        flat = coefficients.flatten(0, 1)
        sums, score = torch.zeros_like(flat), coefficients.new_zeros(len(coefficients))
        for number, part in enumerate(self.parts):
            share = self._log_densities(number, flat).view(len(part), *coefficients.shape[:2])
            most = share.amax(dim=-1, keepdim=True)
            share = share.sub_(most).exp_()
            total = share.sum(dim=-1, keepdim=True)
            score += (most + total.log()).sum(dim=(0, 2))
            sums += self._sums_of(number, share.div_(total).flatten(1))
        return sums.view_as(coefficients), score / sum(len(part) for part in self.parts)

    def _features(self, part: Tensor) -> Tensor:
        row, column = self.pair
        return torch.cat([torch.ones_like(part[:, :1]), part, part[:, row] * part[:, column]], dim=-1)

    def _log_densities(self, number: int, flat: Tensor) -> Tensor:
        """Log densities (n, K) of a part's rows under components with the coefficients ``flat`` (K, F), weighted."""
        if self.kept is not None:
            return self.kept[number] @ flat.mT
        part, (row, column) = self.parts[number], self.pair
        features = part.shape[-1]
        square = flat.new_zeros(len(flat), features, features)
        square[:, row, column] = flat[:, 1 + features :]
        products = torch.stack([((part @ matrix) * part).sum(dim=-1) for matrix in square], dim=-1)
        densities: Tensor = products + part @ flat[:, 1 : 1 + features].mT + flat[:, 0]
        return densities

    def _sums_of(self, number: int, share: Tensor) -> Tensor:
        """The sums (K, F) of the features of a part's rows, of which each component has its ``share`` (n, K)."""
        if self.kept is not None:
            return share.mT @ self.kept[number]
        part, (row, column) = self.parts[number], self.pair
        products = [((part * one.unsqueeze(-1)).mT @ part)[row, column] for one in share.unbind(-1)]
        return torch.cat([share.sum(dim=0).unsqueeze(-1), share.mT @ part, torch.stack(products)], dim=-1)


def _coefficients(fitted: Mixture) -> Tensor:
    """What the features of a row are multiplied by for the log density (R, K, F) of the components, weighted."""
    features = fitted.loc.shape[-1]
    root = cholesky(fitted.covariance.flatten(0, 1)).view_as(fitted.covariance)
    precision = torch.cholesky_inverse(root)
    linear = (precision @ fitted.loc.unsqueeze(-1)).squeeze(-1)
    log_scale = root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1) + 0.5 * features * math.log(2.0 * math.pi)
    constant = fitted.log_weight - log_scale - 0.5 * (fitted.loc * linear).sum(dim=-1)
    row, column = torch.triu_indices(features, features, device=root.device)
    square = -precision[..., row, column] * torch.where(row == column, 0.5, 1.0).to(root)
    return torch.cat([constant.unsqueeze(-1), linear, square], dim=-1)
