"""Flows as distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..op import can_be_looked_at, is_known_finite
from ..standard import BASES
from ..transforms import MixtureCDF, Transform
from ..transforms.base import any_of_event, base_log_prob, check_name, check_transform, density_where_finite, spread
from .arguments import check_embedding, generator_of, known_context, like, rows_of, shape_of, takes_numpy, to_tensor
from .distribution import FlowDistribution, mixture_of
from .initialize import initialize, supported_counts, use_counts
from .odd_rows import either, guarded

__all__ = ["Flow", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """The name of a flow's constructor and the arguments it was called with: enough to build it again."""

    name: str
    arguments: dict[str, Any]


class Flow(nn.Module):
    r"""The distribution of ``x`` whose image under a transform follows a base distribution.

    .. math:: \log p(x) = \sum_d \log g(z_d) + \log |\det dz/dx|, \quad z = T(x)

    in nats and in the units of ``x`` (Papamakarios et al., 2021, arXiv:1912.02762).

    With one feature, ``x`` and ``z`` may also have the shape (N,), for N samples. Results then have the shape (N,) too.

    Args:
        transform: data to base.
        base: the base distribution, one of ``mixflow.BASES``; the last transform's own base.
        embedding: a module that the context passes first; it returns (..., C), and its parameters are the flow's, too.

    Attributes:
        recipe: how a recipe built this flow (None for a flow put together by hand).
        notes: JSON values that travel with the flow in its model file, such as the names of the columns.
        fitted: whether the weights were set from data or loaded; ``fit`` then goes on from them.

    Raises:
        ValueError: unknown base, or an embedding of a context that no transform takes.
        TypeError: transform is not a Transform, or embedding no module.

    Example:
        >>> import torch
        >>> from mixflow import flows
        >>> flow = flows.univariate(components=4)
        >>> flow.log_prob(torch.tensor([0.0, 1.0])).shape
        torch.Size([2])
        >>> flow.sample(5, seed=0).shape
        torch.Size([5, 1])

    """

    def __init__(self, transform: Transform, base: str = "normal", embedding: nn.Module | None = None) -> None:
        super().__init__()
        check_transform("transform", transform)
        self.data_to_base = transform
        self.base = check_name("base", base, list(BASES))
        self.event_shape = transform.event_shape
        self.features = transform.features
        self.context = transform.context
        self.embedding = check_embedding(embedding, self.context)
        self.recipe: Recipe | None = None
        self.notes: dict[str, Any] = {}
        self.fitted = False
        self.register_load_state_dict_post_hook(_note_that_it_is_fitted)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The same as :meth:`log_prob`, under the name that ``torch.export`` and modules that wrap a flow call."""
        log_prob: Tensor = self.log_prob(x, context)
        return log_prob

    @takes_numpy
    def transform(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data ``x`` (..., D) to the base: ``z`` (..., D) and ``ladj = log |det dz/dx|`` (...).

        The batch shapes of ``x`` and ``context`` broadcast against each other. ``x`` may have any floating-point
        dtype, and numpy arrays give numpy arrays. The flow subtracts its offsets from ``x`` in the dtype of ``x``; the
        results have the flow's dtype. A row that holds NaN gives NaN, and adds nothing to the gradients of other rows.
        """
        return self._both_ways("x", x, context, forward=True)

    @takes_numpy
    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Base ``z`` (..., D) to data: ``x`` (..., D) and ``ladj = log |det dx/dz|`` (...).

        Arguments are as in :meth:`transform`. ``x`` has the flow's dtype. It is float64 if the flow was fitted to
        float64 data whose offset is so large against their spread that a narrower dtype would round them visibly.
        """
        return self._both_ways("z", z, context, forward=False)

    @takes_numpy
    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density of ``x`` (..., D) in nats: shape (...), -inf outside the support, at its ends and at infinity.

        Arguments are as in :meth:`transform`. A row that holds NaN, in ``x`` or in its context, has the log density
        NaN. A row of finite numbers never has: it is -inf for numbers so large that the map overflows. Rows whose log
        density ``torch.where`` leaves out of a loss add exactly nothing to any gradient.
        """
        rows = self._rows("x", x, forward=True)
        context, unknown = self._known_context(context)
        # In training mode, a network may keep statistics of its inputs, such as means. So they must be finite.
        seen = not self.training or is_known_finite(rows)
        if unknown is None and can_be_looked_at(rows) and seen and not self.data_to_base.is_limited:
            log_prob = self._log_density(rows, context)
            if is_known_finite(log_prob):  # then every row is finite, and there is nothing to mask
                return log_prob
        return self._careful_log_prob(rows, context, unknown)

    def _careful_log_prob(self, rows: Tensor, context: Tensor | None, unknown: Tensor | None) -> Tensor:
        """The log density of rows, some of them infinite, NaN or outside; ``unknown`` marks contexts that hold NaN."""
        finite = is_known_finite(rows)
        nothing, missing = self._outside(rows, finite), None if finite else rows.isnan()
        # The map has no slope at infinity or outside the support, and NaN spreads to all gradients. Such rows are
        # replaced by a point of the support, and their results are overwritten below.
        harmless, odd = rows, either(nothing, missing)
        if odd is not None:
            harmless = torch.where(odd, self.data_to_base.inside(rows), rows)
        (log_prob,) = guarded(
            lambda rows: (self._log_density(rows, context),), harmless, self.data_to_base.inside, self.event_shape
        )
        if nothing is not None:
            log_prob = log_prob.masked_fill(self._any(nothing), -math.inf)
        unknown = either(None if missing is None else self._any(missing), unknown)
        return log_prob if unknown is None else log_prob.masked_fill(unknown, math.nan)

    @takes_numpy
    def supports(self, x: Tensor) -> Tensor:
        """Whether the density can be positive at ``x`` (..., D): all elements finite and inside the support; (...)."""
        rows = self._rows("x", x, forward=True)
        outside = self._outside(rows, is_known_finite(rows))
        if outside is None:
            batch = rows.shape[: rows.ndim - len(self.event_shape)]
            return torch.ones(batch, dtype=torch.bool, device=rows.device)
        return ~self._any(outside)

    def shaped(self, rows: Tensor) -> Tensor:
        """``rows`` (N, features) as events ``(N, *event_shape)``."""
        return rows if len(self.event_shape) == 1 else rows.reshape(-1, *self.event_shape)

    @property
    def context_shape(self) -> torch.Size | None:
        """The shape of one context, (C,). None if the context passes an embedding, which may take any shape."""
        return torch.Size([self.context]) if self.embedding is None else None

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set the parameters from data ``x`` (N, D), as ``fit`` does before training; frozen ones stay as they are.

        Rows outside the support, or at an end of it, are left out.
        """
        inside = self.supports(x) | self._any(self._rows("x", x, forward=True).isnan())
        if not inside.all():
            x, context = x[inside], context if context is None or context.ndim == 1 else context[inside]
        self.starts(x, context)
        self.fitted = True

    def starts(self, x: Tensor, context: Tensor | None = None) -> dict[str, dict[str, Tensor]]:
        """Initialise, and return the weights of other plain densities of ``x`` (N, D) by name, for comparison."""
        with torch.no_grad():
            context, _ = self._known_context(context)
        plain = initialize(self.data_to_base, self._rows("x", x, forward=True), context)
        others = {
            key: value.detach().clone()  # training moves the values themselves
            for key, value in self.state_dict().items()
            if not key.startswith("data_to_base.")
        }
        return {
            name: {f"data_to_base.{key}": value for key, value in weights.items()} | others
            for name, weights in plain.items()
        }

    def sizes(self) -> dict[str, int]:
        """The number of components of each mixture whose size follows the rows, by the module's name."""
        return {
            name: module.components
            for name, module in self.named_modules()
            if isinstance(module, MixtureCDF) and module.follows_rows
        }

    def resize(self, sizes: dict[str, int]) -> None:
        """Give each mixture named in ``sizes`` that number of components."""
        for name, components in sizes.items():
            module = self.get_submodule(name)
            assert isinstance(module, MixtureCDF)
            if module.components != components:
                module.resize(components)

    def supported_counts(self, x: Tensor, rows: int) -> Tensor | None:
        """How many marginal components ``rows`` rows support in each column; ``x`` (N, D) are the first of them.

        None if the recipe left no size open, or if the marginals are frozen.
        """
        return supported_counts(self.data_to_base, x, rows)

    def use_counts(self, counts: Tensor) -> None:
        """Give the marginals the size that ``counts`` (D,) need, and record it as an argument of the recipe."""
        components = use_counts(self.data_to_base, counts)
        if self.recipe is not None:
            arguments = self.recipe.arguments | {"marginal_components": components}
            self.recipe = Recipe(self.recipe.name, arguments)

    @torch.no_grad()
    def sample(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw samples: shape ``(*n, *B, D)`` for a context ``(*B, C)``, of the dtype that :meth:`inverse` gives.

        Args:
            n: the number of samples for each context, or their shape. ``()`` draws one sample, without an axis for it.
            context: (C,) for all samples, or ``(*B, C)``, with samples for each. A numpy array gives a numpy array.
            seed: makes the draws reproducible. torch's global generator is then neither read nor changed.
            generator: a generator to draw from, in place of a seed.

        Raises:
            ValueError: n is no shape, seed is no integer in range, or both seed and generator are given.

        """
        return self.rsample(n, context, seed=seed, generator=generator)

    @torch.no_grad()
    def sample_and_log_prob(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples as of :meth:`sample` and their log density in nats, in one pass of the map."""
        return self.rsample_and_log_prob(n, context, seed=seed, generator=generator)

    def rsample(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The samples of :meth:`sample` as a differentiable function of the parameters and the context.

        The gradients are those of the map from base noise that is held fixed (Kingma and Welling, 2014,
        arXiv:1312.6114).
        """
        return self._drawn(n, context, seed, generator, scored=False)[0]

    def rsample_and_log_prob(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples as of :meth:`rsample` and their log density in nats, in one pass of the map, both with gradients.

        The log density is a function of the parameters in two ways: directly, and through the samples, which move with
        them. Its gradient counts both, as the evidence lower bound of variational inference needs it.

        Example:
            >>> from mixflow import flows
            >>> flow = flows.coupling(features=2, layers=1, context=3, seed=0)
            >>> x, log_prob = flow.rsample_and_log_prob(10, torch.zeros(4, 3))
            >>> x.shape, log_prob.shape
            (torch.Size([10, 4, 2]), torch.Size([10, 4]))

        """
        x, log_prob = self._drawn(n, context, seed, generator, scored=True)
        return x, log_prob

    def distribution(self, context: Tensor | None = None) -> Distribution:
        """The density as a ``torch.distributions.Distribution``, in the data's own units.

        A flow of one feature without a support gives a :class:`mixflow.Mixture`, with its weights, locations and
        scales. A :func:`gaussian_mixture` gives a ``MixtureSameFamily`` of ``MultivariateNormal``. Any other flow gives
        a distribution with ``log_prob`` and ``rsample``; with one feature it also has ``cdf`` and ``icdf``.

        Args:
            context: (C,) for a single distribution, or ``(*B, C)`` for a batch of them.

        Example:
            >>> import torch
            >>> from mixflow import flows
            >>> flow = flows.univariate(components=2)
            >>> flow.initialize(100.0 + torch.arange(50.0))
            >>> fitted = flow.distribution()
            >>> f"{fitted.mean:.1f} {fitted.icdf(0.5):.1f}"
            '124.5 124.5'

        """
        if isinstance(context, np.ndarray):
            context = to_tensor("context", context).to(like(self).device)
        known, _ = self._known_context(context)
        if self.context and known is None:
            raise ValueError(f"context: expected a tensor of shape (..., {self.context}), got None")
        mixture = self._mixture(known)
        return FlowDistribution(self, context) if mixture is None else mixture

    def _mixture(self, context: Tensor | None) -> Distribution | None:
        """The density as a mixture in the data's own units, for a ``context`` (*B, C); None if it is no mixture."""
        return mixture_of(self.data_to_base, self.base, context)

    @takes_numpy
    def _drawn(
        self,
        n: int | Sequence[int],
        context: Tensor | None,
        seed: int | None,
        generator: torch.Generator | None,
        scored: bool,
    ) -> tuple[Tensor, ...]:
        """Samples, and if ``scored`` also their log density, for which plain samples need not wait."""
        shape, own = shape_of("n", n), like(self)
        generator = generator_of(seed, generator, own.device)
        context, unknown = self._known_context(context)
        batch = shape if context is None else (*shape, *context.shape[:-1])
        z = self._base_sample(batch, generator, own, context)
        x, ladj = self.data_to_base.inverse(z, context)
        if unknown is not None:
            x, ladj = x.masked_fill(spread(unknown, self.event_shape), math.nan), ladj.masked_fill(unknown, math.nan)
        return (x, self._base_log_prob(z, context) - ladj) if scored else (x,)

    def _log_density(self, rows: Tensor, context: Tensor | None) -> Tensor:
        """The log density (...) of ``rows`` (..., D) that lie inside the support."""
        transform = self.data_to_base
        if type(self)._base_log_prob is Flow._base_log_prob:
            return transform.log_density(rows, context, self.base)
        z, ladj = transform(rows, context)
        log_prob = density_where_finite(z, transform.output_shape, lambda z: self._base_log_prob(z, context))
        return log_prob + cast(Tensor, ladj)

    def _base_log_prob(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Log density (...) of ``z`` (..., D) under the base."""
        return base_log_prob(z, self.data_to_base.output_shape, self.base)

    def _base_sample(
        self, batch: tuple[int, ...], generator: torch.Generator | None, own: Tensor, context: Tensor | None
    ) -> Tensor:
        """Draws (*batch, D) from the base, of the dtype and on the device of ``own``, without gradients."""
        shape = *batch, *self.data_to_base.output_shape
        return BASES[self.base].sample(shape, generator=generator, dtype=own.dtype, device=own.device)

    def _outside(self, rows: Tensor, finite: bool) -> Tensor | None:
        """Which elements of ``rows`` (..., D) are infinite or outside the support; None if certainly none is."""
        outside = self.data_to_base.outside(rows)
        if outside is not None and can_be_looked_at(outside) and not outside.any():
            outside = None
        return either(None if finite else rows.isinf(), outside)

    def _any(self, elements: Tensor) -> Tensor:
        return any_of_event(elements, self.event_shape)

    def _rows(self, name: str, values: Tensor, forward: bool) -> Tensor:
        return rows_of(self.data_to_base, name, values, forward)

    def _known_context(self, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return known_context(context, self.context, self.embedding, lambda: like(self))

    def _both_ways(self, name: str, values: Tensor, context: Tensor | None, forward: bool) -> tuple[Tensor, Tensor]:
        rows = self._rows(name, values, forward)
        context, unknown = self._known_context(context)
        transform, missing = self.data_to_base, None if is_known_finite(rows) else rows.isnan()
        given, found = transform.event_shape, transform.output_shape
        inside: Callable[[Tensor], Tensor] = transform.inside
        direction: Callable[..., tuple[Tensor, Tensor]] = transform.forward
        if not forward:
            given, found, inside, direction = found, given, transform.inside_image, transform.inverse
        harmless = rows if missing is None else torch.where(missing, inside(rows), rows)
        image, ladj = guarded(lambda rows: direction(rows, context), harmless, inside, given)
        unknown = either(None if missing is None else any_of_event(missing, given), unknown)
        if unknown is not None:
            image, ladj = image.masked_fill(spread(unknown, found), math.nan), ladj.masked_fill(unknown, math.nan)
        return image.squeeze(-1) if rows.ndim > values.ndim and image.ndim > 1 else image, ladj


def _note_that_it_is_fitted(flow: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(flow, Flow)
    flow.fitted = True
