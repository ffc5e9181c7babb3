"""Flows as distributions, and the register of the recipes that build them."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from ..checks import check_integer, check_seed
from ..reference import BASES
from ..transforms import MixtureCDF, Transform
from ..transforms.base import check_name, check_transform, own_tensor
from .start import start, supported_counts, use_counts

__all__ = ["RECIPES", "Flow", "Recipe", "like", "recipe"]

P = ParamSpec("P")


@dataclass(frozen=True)
class Recipe:
    """The name of a flow's constructor and the arguments it was called with: enough to build it again."""

    name: str
    arguments: dict[str, Any]


class Flow(nn.Module):
    r"""The distribution of ``x`` whose image under a transform follows a base distribution.

    .. math:: \log p(x) = \sum_d \log g(z_d) + \log |\det dz/dx|, \quad z = T(x)

    in nats and in the units of ``x`` (Papamakarios et al., 2021, arXiv:1912.02762).

    With one feature, ``x`` and ``z`` may also be of shape (N,), N samples; results then have shape (N,) as
    well.

    Args:
        transform: data to base.
        base: the base distribution, one of ``mixflow.BASES``; the last transform's own base.

    Attributes:
        recipe: how a recipe built this flow (None for a flow put together by hand).
        notes: JSON values that travel with the flow in its model file, such as the names of the columns.
        fitted: whether the weights were set from data or loaded; ``fit`` then goes on from them.

    Raises:
        ValueError: unknown base.
        TypeError: transform is not a Transform.

    Example:
        >>> import torch
        >>> from mixflow import flows
        >>> flow = flows.univariate(components=4)
        >>> flow.log_prob(torch.tensor([0.0, 1.0])).shape
        torch.Size([2])
        >>> flow.sample(5, seed=0).shape
        torch.Size([5, 1])

    """

    def __init__(self, transform: Transform, base: str = "normal") -> None:
        super().__init__()
        check_transform("transform", transform)
        self.data_to_base = transform
        self.base = check_name("base", base, list(BASES))
        self.features = transform.features
        self.context = transform.context
        self.recipe: Recipe | None = None
        self.notes: dict[str, Any] = {}
        self.fitted = False
        self.register_load_state_dict_post_hook(_note_that_it_is_fitted)

    def transform(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data ``x`` (..., D) to the base: ``z`` (..., D) and ``ladj = log |det dz/dx|`` (...).

        ``x`` may have any floating-point dtype. What is subtracted from it is subtracted in that dtype; the results
        have the flow's.
        """
        return self._through(self.data_to_base, self._converted(x, forward=True), context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Base ``z`` (..., D) to data: ``x`` (..., D) and ``ladj = log |det dx/dz|`` (...).

        ``x`` has the flow's dtype, or float64 where the flow was fitted to float64 data with offsets so large against
        their spread that a narrower dtype would round them visibly.
        """
        return self._through(self.data_to_base.inverse, self._converted(z, forward=False), context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density of ``x`` (..., D) in nats: shape (...), -inf outside the support, at its ends and at infinity."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
        rows = x.unsqueeze(-1) if self.features == 1 and x.ndim == 1 else x
        # The map has no slope there. A point of the support in its place keeps NaN out of the other elements'
        # gradients.
        beyond = self._outside(rows)
        z, ladj = self.transform(torch.where(beyond, self.data_to_base.inside(rows), rows), context)
        log_prob = self._base_log_prob(z, context) + ladj
        # So is a number so far out that z overflows: the density there is less than the dtype's smallest number.
        nothing = beyond | z.reshape(rows.shape).isinf()
        return log_prob.masked_fill(nothing.any(-1) & ~rows.isnan().any(-1), -math.inf)

    def supports(self, x: Tensor) -> Tensor:
        """Whether the density can be positive at ``x`` (..., D): all elements finite and inside the support; (...)."""
        return ~self._outside(x.unsqueeze(-1) if self.features == 1 and x.ndim == 1 else x).any(-1)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set the parameters from data ``x`` (N, D), as ``fit`` does before training; frozen ones stay as they are."""
        self.starts(x, context)
        self.fitted = True

    def starts(self, x: Tensor, context: Tensor | None = None) -> dict[str, dict[str, Tensor]]:
        """Initialise, and return the weights of other plain densities of ``x`` (N, D) by name, to compare with."""
        plain = start(self.data_to_base, self._converted(x, forward=True), context)
        return {
            name: {f"data_to_base.{key}": value for key, value in weights.items()} for name, weights in plain.items()
        }

    def sizes(self) -> dict[str, int]:
        """The number of components of each mixture whose size follows the rows, by the module's name."""
        return {
            name: module.components
            for name, module in self.named_modules()
            if isinstance(module, MixtureCDF) and module.follows_rows
        }

    def resize(self, sizes: dict[str, int]) -> None:
        """Give the mixtures with these names so many components."""
        for name, components in sizes.items():
            module = self.get_submodule(name)
            assert isinstance(module, MixtureCDF)
            if module.components != components:
                module.resize(components)

    def supported_counts(self, x: Tensor, rows: int) -> Tensor | None:
        """How many components each column of ``x`` (N, D), the first of ``rows`` rows, supports in the marginals.

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
        n: int,
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw ``n`` samples: shape (n, D), of the dtype that :meth:`inverse` gives.

        Args:
            n: the number of samples.
            context: (C,) for all samples, or (n, C), a row for each.
            seed: makes the draws reproducible without touching torch's global generator.
            generator: a generator to draw from, in place of a seed.

        Raises:
            ValueError: n or seed is not an integer in range, or both seed and generator are given.

        """
        n = check_integer("n", n, 0)
        if seed is not None and generator is not None:
            raise ValueError("seed: expected a seed or a generator, got both")
        own = like(self)
        if seed is not None:
            generator = torch.Generator(own.device).manual_seed(check_seed(seed))
        x, _ = self.inverse(self._base_sample(n, generator, own, context), context)
        return x

    def _base_log_prob(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Log density (...) of ``z`` (..., D) under the base."""
        return BASES[self.base].log_prob(z).sum(-1)

    def _base_sample(self, n: int, generator: torch.Generator | None, own: Tensor, context: Tensor | None) -> Tensor:
        """``n`` draws (n, D) from the base, of the dtype and on the device of ``own``."""
        return BASES[self.base].sample((n, self.features), generator=generator, dtype=own.dtype, device=own.device)

    def _outside(self, rows: Tensor) -> Tensor:
        """Which elements of ``rows`` (..., D) are infinite or outside the support."""
        infinite = rows.isinf()
        if rows.ndim == 0 or rows.shape[-1] != self.features:
            return infinite  # the transform reports the shape
        outside = self.data_to_base.outside(rows)
        return infinite if outside is None else infinite | outside

    def _converted(self, values: Tensor, forward: bool) -> Tensor:
        """``values`` in the flow's dtype where the transform that meets them first cannot take another."""
        if not isinstance(values, Tensor) or not values.is_floating_point():
            return values
        own = own_tensor(self.data_to_base)
        if own is None or own.dtype == values.dtype or self.data_to_base.takes_any_dtype(forward):
            return values
        return values.to(own.dtype)

    def _through(
        self, direction: Callable[..., tuple[Tensor, Tensor]], values: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.features == 1 and isinstance(values, Tensor) and values.ndim == 1:
            image, ladj = direction(values.unsqueeze(-1), context)
            return image.squeeze(-1), ladj
        return direction(values, context)


def _note_that_it_is_fitted(flow: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(flow, Flow)
    flow.fitted = True


def like(flow: Flow) -> Tensor:
    """A tensor of the dtype and on the device that ``flow`` computes in; torch's defaults if it holds no numbers."""
    own = own_tensor(flow)
    return torch.empty(0) if own is None else own


RECIPES: dict[str, Callable[..., Flow]] = {}


def recipe(build: Callable[P, Flow]) -> Callable[P, Flow]:
    """Register a function that builds a flow, and record on each flow the call that built it.

    :func:`mixflow.load` and the command line know flows by this register alone.
    """
    signature = inspect.signature(build)

    @functools.wraps(build)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> Flow:
        flow = build(*args, **kwargs)
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        flow.recipe = Recipe(build.__name__, {name: _plain(value) for name, value in call.arguments.items()})
        return flow

    RECIPES[build.__name__] = recorded
    return recorded


def _plain(value: Any) -> Any:
    """``value`` as JSON gives it back: integers of numpy and torch as Python's own, sequences as lists, no infinity."""
    if isinstance(value, float) and math.isinf(value):
        return None  # an open end of a support
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return operator.index(value) if hasattr(value, "__index__") else value
