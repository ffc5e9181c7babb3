"""Expectation maximisation (EM) of mixtures of Gaussians, in float64 and without gradients.

The method is that of Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm" (1977).

Both steps of an iteration are matrix products with the features 1, z and z z^T of the rows. The expectation step needs
the log density of each row under each component, which is linear in the features. The maximisation step needs the
weight, mean and covariance of each component, which follow from weighted sums of the features. Rows far out would make
these sums inexact, so the caller leaves them out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .clusters import k_means
from .gaussian import folds, gaussian, rows_outside

__all__ = ["SPIKE", "Mixture", "Whitened", "cholesky", "floored", "split"]

SPIKE = 1e-10  # the least eigenvalue of a covariance, in units of the columns' variances: rows on a single value get it
_WIDE, _MANY = 32, 24  # with more columns or components, an iteration takes so long that there are fewer starts
_CACHE = 2**25  # the most numbers of features that are kept from one iteration to the next


class Mixture(NamedTuple):
    """A mixture of K Gaussians in float64: log weights (K,), means (K, D) and covariances (K, D, D)."""

    log_weight: Tensor
    loc: Tensor
    covariance: Tensor


def split(x: Tensor) -> Tensor:
    """A fold (N,), from 0 to 4, for each row of ``x`` (N, D). Equal rows share a fold; units do not matter."""
    which = folds(x, len(x))
    index = torch.arange(len(x), device=x.device)
    first = index.new_full((len(x),), len(x)).scatter_reduce(0, which, index, "amin")[which]
    rank: Tensor = torch.unique(first, return_inverse=True)[1]
    return rank % 5


def floored(covariance: Tensor, floor: float) -> Tensor:
    """``covariance`` (..., D, D), of standardised columns, with no eigenvalue below ``floor``."""
    values, vectors = torch.linalg.eigh(covariance)
    floored: Tensor = (vectors * values.clamp_min(floor).unsqueeze(-2)) @ vectors.mT
    return torch.where((values[..., :1] < floor).unsqueeze(-1), floored, covariance)


def cholesky(covariance: Tensor) -> Tensor:
    """Lower triangles (K, D, D) whose products with their transposes are ``covariance`` (K, D, D).

    If rounding has left a matrix not quite positive definite, its small eigenvalues are lifted first.
    """
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(covariance)
    if not failed.any():
        return root
    scale = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    outer = scale.unsqueeze(-1) * scale.unsqueeze(-2)
    root = torch.linalg.cholesky(floored(covariance / outer, 1e-12) * outer)
    return root


class Whitened:
    """Rows ``x`` (N, D) in the coordinates in which EM works: there the single Gaussian of the rows is standard."""

    def __init__(self, x: Tensor, few: bool = False) -> None:
        self.loc, covariance = gaussian(x)
        self.scale = covariance.diagonal().sqrt()
        self.root = cholesky(covariance.unsqueeze(0))[0]
        self.standard = (x - self.loc) / self.scale
        self.white = torch.linalg.solve_triangular(self.root, (x - self.loc).mT, upper=False).mT.contiguous()
        axes = torch.linalg.solve_triangular(self.root, self.scale.diag(), upper=False)
        self.floor = SPIKE * axes @ axes.mT
        prior = float(x.shape[-1] + 2)
        self.priors = [4.0 * prior, prior, 1.0] if few else [4.0 * prior, prior, 1.0, 0.03, 1e-3, 1e-5]
        if x.shape[-1] > _WIDE:
            self.priors = self.priors[1::2]

    def mixture(self, components: int) -> Mixture:
        """The mixture of ``components`` that EM finds from the best start, in the units of the rows."""
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
            floored(covariance / outer, SPIKE) * outer,
        )

    def _best_starts(self, components: int) -> tuple[Tensor, float]:
        """The sums of features (R, K, F) that EM begins with, and the weight of the prior.

        A few iterations on some of the rows show which starts are likely. A few more iterations of these, with each
        weight of the prior, show which weight predicts left-out rows best.
        """
        generator = torch.Generator(self.white.device).manual_seed(0)
        features = self.white.shape[-1]
        few = max(2000, min(16 * features * components, 5000))
        tries = 1 if features > _WIDE or components > _MANY else max(6, 48 // components)
        picked = torch.randperm(len(self.white), generator=generator, device=self.white.device)[:few]
        fold = split(self.standard[picked])
        seen = picked[fold > 0] if fold.max().item() > 0 else picked
        rows = _Rows(self.white[seen])
        starts = [rows.sums(member) for member in self._members(seen, components, tries, generator)]
        likely = []
        # A spike is a component of rows that share values. Only a weak prior lets EM find one.
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
        # For a small table, there is time to run several starts to their end.
        ends = min(number, max(1, 8000 // len(self.white)))
        chosen = score[:, int(best)].topk(ends).indices * len(self.priors) + int(best)
        coefficients = _coefficients(Mixture(*(part[chosen] for part in fitted)))
        return _Rows(self.white).expect(coefficients)[0], self.priors[int(best)]

    def _members(self, seen: Tensor, components: int, tries: int, generator: torch.Generator) -> list[Tensor]:
        """For each start, the shares (N, K) of the components in the rows numbered ``seen``."""
        standard, white = self.standard[seen], self.white[seen]
        members = [k_means(rows, components, generator) for _ in range(tries) for rows in (standard, white)]
        outside = rows_outside(standard)
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
        """``steps`` iterations of R runs of EM, fewer if no run gains ``tolerance`` nats a row.

        Args:
            rows: the rows to learn from.
            sums: (R, K, F), the sums of features of R runs.
            prior: (R,), the weight of each run's prior, in rows.
            steps: the number of iterations.
            tolerance: in nats a row.

        Returns:
            The mixtures, their sums of features (R, K, F), and the mean log density of a row (R,).

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
        """The maximisation step: R mixtures from the sums (R, K, F) of features, with ``prior`` (R,) in rows."""
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
        # The covariance of a few rows is uncertain, so the prior is stronger there, whatever its weight.
        prior = prior.unsqueeze(-1) + (features + 2.0) * torch.exp(-count / (features + 2.0))
        covariance = (scatter + prior[..., None, None] * mean) / (count + prior)[..., None, None] + self.floor
        # The scatter of rows far from the origin is a difference of large numbers. Its rounding error is added.
        rounding = 1e-13 * (loc.square().sum(-1) + covariance.diagonal(dim1=-2, dim2=-1).sum(-1))
        log_weight = (count + 1.0).log()
        log_weight = log_weight - torch.logsumexp(log_weight, dim=-1, keepdim=True)
        return Mixture(log_weight, loc, covariance + rounding[..., None, None] * one)


class _Rows:
    """Rows ``white`` (N, D) and their F features: 1, the elements of z, and the products of two elements of z.

    Features that would fill too much memory are not kept. Each component then takes two matrix products with the rows,
    which is faster than computing the features again.
    """

    def __init__(self, white: Tensor) -> None:
        features = white.shape[-1]
        self.parts = white.split(4096)
        self.pair = torch.triu_indices(features, features, device=white.device)
        size = len(white) * (1 + features + self.pair.shape[-1])
        self.kept = [self._features(part) for part in self.parts] if size <= _CACHE else None

    def sums(self, member: Tensor) -> Tensor:
        """The sums (K, F) of the features of all rows, weighted by the shares ``member`` (N, K) of the components."""
        shares = enumerate(member.split(4096))
        return torch.stack([self._sums_of(number, share) for number, share in shares]).sum(dim=0)

    def expect(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The expectation step: sums of features (R, K, F) and the mean log density of a row (R,).

        ``coefficients`` (R, K, F) are those of the R mixtures.
        """
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
        """Log densities (n, K) of the rows of a part, weights included, from the coefficients ``flat`` (K, F)."""
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
        """The sums (K, F) of the features of the rows of a part, weighted by the ``share`` (n, K) of each component."""
        if self.kept is not None:
            return share.mT @ self.kept[number]
        part, (row, column) = self.parts[number], self.pair
        products = [((part * one.unsqueeze(-1)).mT @ part)[row, column] for one in share.unbind(-1)]
        return torch.cat([share.sum(dim=0).unsqueeze(-1), share.mT @ part, torch.stack(products)], dim=-1)


def _coefficients(fitted: Mixture) -> Tensor:
    """The coefficients (R, K, F) of a row's features in the log density of the components, weights included."""
    features = fitted.loc.shape[-1]
    root = cholesky(fitted.covariance.flatten(0, 1)).view_as(fitted.covariance)
    precision = torch.cholesky_inverse(root)
    linear = (precision @ fitted.loc.unsqueeze(-1)).squeeze(-1)
    log_scale = root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1) + 0.5 * features * math.log(2.0 * math.pi)
    constant = fitted.log_weight - log_scale - 0.5 * (fitted.loc * linear).sum(dim=-1)
    row, column = torch.triu_indices(features, features, device=root.device)
    square = -precision[..., row, column] * torch.where(row == column, 0.5, 1.0).to(root)
    return torch.cat([constant.unsqueeze(-1), linear, square], dim=-1)
