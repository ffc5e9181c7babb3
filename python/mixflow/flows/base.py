"""Flows as distributions, and the register of the recipes that build them."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, SupportsIndex, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..checks import check_integer, check_seed
from ..op import can_be_looked_at, from_numpy, is_known_finite
from ..standard import BASES
from ..transforms import MixtureCDF, Transform
from ..transforms.base import (
    any_of_event,
    base_log_prob,
    check_name,
    check_transform,
    density_where_finite,
    own_tensor,
    spread,
)
from .parts import plain
from .start import start, supported_counts, use_counts

__all__ = ["RECIPES", "Flow", "Recipe", "like", "recipe", "seeded"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Recipe:
    """The name of a flow's constructor and the arguments it was called with: enough to build it again."""

    name: str
    arguments: dict[str, Any]


def takes_numpy(method: Callable[P, R]) -> Callable[P, R]:
    """A method of a flow on tensors that takes numpy arrays in their place, too, and then returns numpy arrays."""
    names = list(inspect.signature(method).parameters)

    @functools.wraps(method)
    def taking(*args: P.args, **kwargs: P.kwargs) -> R:
        if not any(isinstance(value, np.ndarray) for value in (*args, *kwargs.values())):
            return method(*args, **kwargs)
        given: dict[str, Any] = dict(zip(names, args, strict=False)) | kwargs
        device = like(given["self"]).device
        tensors: dict[str, Any] = {
            name: _to_tensor(name, value).to(device) if isinstance(value, np.ndarray) else value
            for name, value in given.items()
        }
        with torch.no_grad():
            found: Any = method(**tensors)  # type: ignore[call-arg]
        return tuple(map(_to_numpy, found)) if isinstance(found, tuple) else _to_numpy(found)  # type: ignore[return-value]

    return taking


def _to_tensor(name: str, values: np.ndarray[Any, Any]) -> Tensor:
    if name == "context" and values.dtype.kind in "iu" and not isinstance(values, np.ma.MaskedArray):
        return torch.from_numpy(values.astype(np.int64))  # labels, which an embedding may take
    return from_numpy(name, values)


def _to_numpy(values: Tensor) -> Any:
    return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()  # numpy has no bfloat16


class Flow(nn.Module):
    r"""The distribution of ``x`` whose image under a transform follows a base distribution.

    .. math:: \log p(x) = \sum_d \log g(z_d) + \log |\det dz/dx|, \quad z = T(x)

    in nats and in the units of ``x`` (Papamakarios et al., 2021, arXiv:1912.02762).

    With one feature, ``x`` and ``z`` may also be of shape (N,), N samples; results then have shape (N,) as
    well.

    Args:
        transform: data to base.
        base: the base distribution, one of ``mixflow.BASES``; the last transform's own base.
        embedding: a module that the context passes first, to become (..., C); its parameters are the flow's, too.

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
        self.embedding = _check_embedding(embedding, self.context)
        self.recipe: Recipe | None = None
        self.notes: dict[str, Any] = {}
        self.fitted = False
        self.register_load_state_dict_post_hook(_note_that_it_is_fitted)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The same as :meth:`log_prob`: what modules that wrap a flow call, and ``torch.export``."""
        log_prob: Tensor = self.log_prob(x, context)
        return log_prob

    @takes_numpy
    def transform(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data ``x`` (..., D) to the base: ``z`` (..., D) and ``ladj = log |det dz/dx|`` (...).

        The batch shapes of ``x`` and ``context`` broadcast against each other. ``x`` may have any floating-point
        dtype, and numpy arrays give numpy arrays. What is subtracted from ``x`` is subtracted in its dtype; the
        results have the flow's. A row that holds NaN gives NaN, and adds nothing to gradients that do not ask for it.
        """
        return self._both_ways("x", x, context, forward=True)

    @takes_numpy
    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Base ``z`` (..., D) to data: ``x`` (..., D) and ``ladj = log |det dx/dz|`` (...).

        As :meth:`transform`. ``x`` has the flow's dtype, or float64 where the flow was fitted to float64 data with
        offsets so large against their spread that a narrower dtype would round them visibly.
        """
        return self._both_ways("z", z, context, forward=False)

    @takes_numpy
    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density of ``x`` (..., D) in nats: shape (...), -inf outside the support, at its ends and at infinity.

        Arguments are as in :meth:`transform`. A row that holds NaN, in ``x`` or its context, has the density NaN. A row
        of finite numbers never has: it is -inf where they are so large that the map overflows. Rows whose density is
        left out of a loss, with ``torch.where``, add exactly nothing to any gradient.
        """
        rows = self._rows("x", x, forward=True)
        context, unknown = self._known_context(context)
        # Networks that are trained may learn from what they see, which must then be finite.
        seen = not self.training or is_known_finite(rows)
        if unknown is None and can_be_looked_at(rows) and seen and not self.data_to_base.is_limited:
            log_prob = self._log_density(rows, context)
            if is_known_finite(log_prob):  # so every row is, and there is nothing to mask
                return log_prob
        return self._careful_log_prob(rows, context, unknown)

    def _careful_log_prob(self, rows: Tensor, context: Tensor | None, unknown: Tensor | None) -> Tensor:
        """The log density of rows of which some may be odd, and of contexts some of which are ``unknown``."""
        finite = is_known_finite(rows)
        nothing, missing = self._outside(rows, finite), None if finite else rows.isnan()
        # The map has no slope at infinity or outside the support, and NaN spreads. A point of the support in their
        # place keeps both out of the gradients of the other rows.
        harmless, odd = rows, _either(nothing, missing)
        if odd is not None:
            harmless = torch.where(odd, self.data_to_base.inside(rows), rows)
        (log_prob,) = _guarded(
            lambda rows: (self._log_density(rows, context),), harmless, self.data_to_base.inside, self.event_shape
        )
        if nothing is not None:
            log_prob = log_prob.masked_fill(self._any(nothing), -math.inf)
        unknown = _either(None if missing is None else self._any(missing), unknown)
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
        """The shape of one context: (C,); None where an embedding takes it, of whatever shape that takes."""
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
        """Initialise, and return the weights of other plain densities of ``x`` (N, D) by name, to compare with."""
        with torch.no_grad():
            context, _ = self._known_context(context)
        plain = start(self.data_to_base, self._rows("x", x, forward=True), context)
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
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw samples: shape ``(*n, *B, D)`` for a context ``(*B, C)``, of the dtype that :meth:`inverse` gives.

        Args:
            n: how many, for each context: a number, or a shape. ``()`` draws one, without an axis for it.
            context: (C,) for all samples, or ``(*B, C)``, each of which then has samples of its own; a numpy array
                gives a numpy array.
            seed: makes the draws reproducible without touching torch's global generator.
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
        return self._drawn(context, _shape("n", n), self._generator(seed, generator), scored=False)[0]

    def rsample_and_log_prob(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples as of :meth:`rsample` and their log density in nats, in one pass of the map, both with gradients.

        The log density is that of the samples as they move with the parameters: its gradient is the total one, as the
        evidence lower bound of variational inference needs it.

        Example:
            >>> from mixflow import flows
            >>> flow = flows.coupling(features=2, layers=1, context=3, seed=0)
            >>> x, log_prob = flow.rsample_and_log_prob(10, torch.zeros(4, 3))
            >>> x.shape, log_prob.shape
            (torch.Size([10, 4, 2]), torch.Size([10, 4]))

        """
        x, log_prob = self._drawn(context, _shape("n", n), self._generator(seed, generator), scored=True)
        return x, log_prob

    def distribution(self, context: Tensor | None = None) -> Distribution:
        """The density as a ``torch.distributions.Distribution``, in the data's own units.

        For one feature without a support, a :class:`mixflow.Mixture`, with its weights, locations and scales. For
        :func:`gaussian_mixture`, a ``MixtureSameFamily`` of ``MultivariateNormal``. For any other flow, a distribution
        with ``log_prob`` and ``rsample``, and with ``cdf`` and ``icdf`` where there is one feature.

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
        from .distribution import FlowDistribution, mixture_of

        if isinstance(context, np.ndarray):
            context = _to_tensor("context", context).to(like(self).device)
        known, _ = self._known_context(context)
        mixture = mixture_of(self, known)
        return FlowDistribution(self, context) if mixture is None else mixture

    @takes_numpy
    def _drawn(
        self, context: Tensor | None, shape: tuple[int, ...], generator: torch.Generator | None, scored: bool
    ) -> tuple[Tensor, ...]:
        """Samples, and where ``scored`` their log density, which plain samples need not wait for."""
        context, unknown = self._known_context(context)
        batch = shape if context is None else (*shape, *context.shape[:-1])
        z = self._base_sample(batch, generator, like(self), context)
        x, ladj = self.data_to_base.inverse(z, context)
        if unknown is not None:
            x, ladj = x.masked_fill(spread(unknown, self.event_shape), math.nan), ladj.masked_fill(unknown, math.nan)
        return (x, self._base_log_prob(z, context) - ladj) if scored else (x,)

    def _generator(self, seed: int | None, generator: torch.Generator | None) -> torch.Generator | None:
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
        if seed is None:
            return generator
        if generator is not None:
            raise ValueError("seed: expected a seed or a generator, got both")
        return torch.Generator(like(self).device).manual_seed(check_seed(seed))

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
        """Which elements of ``rows`` (..., D) are infinite or outside the support; None if it is known that none is."""
        outside = self.data_to_base.outside(rows)
        if outside is not None and can_be_looked_at(outside) and not outside.any():
            outside = None
        return _either(None if finite else rows.isinf(), outside)

    def _any(self, elements: Tensor) -> Tensor:
        return any_of_event(elements, self.event_shape)

    def _rows(self, name: str, values: Tensor, forward: bool) -> Tensor:
        """``values`` (..., D), (N,) for one feature made (N, 1), in a dtype that the transform takes."""
        event = self.data_to_base.event_shape if forward else self.data_to_base.output_shape
        if not isinstance(values, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor or a numpy array, got {type(values).__name__}")
        if not values.is_floating_point():
            raise TypeError(f"{name}: expected floating-point numbers, got {values.dtype}")
        if values.ndim == 1 and self.features == len(event) == 1:
            values = values.unsqueeze(-1)
        if values.ndim < len(event) or values.shape[values.ndim - len(event) :] != event:
            raise ValueError(f"{name}: expected shape (..., {', '.join(map(str, event))}), got {tuple(values.shape)}")
        own = own_tensor(self.data_to_base)
        if own is None or own.dtype == values.dtype or self.data_to_base.takes_any_dtype(forward):
            return values
        return values.to(own.dtype)

    def _known_context(self, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The context (*B, C) as the transforms take it, 0 in the place of NaN, and which rows (*B) had any."""
        if context is None:
            return None, None
        if not self.context:
            raise ValueError(f"context: expected None, as this flow takes no context; got {_described(context)}")
        if not isinstance(context, Tensor):
            raise TypeError(f"context: expected a torch.Tensor or a numpy array, got {type(context).__name__}")
        # An embedding may not survive infinity, which the transforms' own networks take.
        missing, known = None, context
        if not is_known_finite(context):
            missing = context.isnan() if self.embedding is None else ~context.isfinite()
            known = context.masked_fill(missing, 0)
        if self.embedding is not None:
            own = like(self)
            known = self.embedding(known.to(own.dtype) if known.is_floating_point() else known)
            if not isinstance(known, Tensor) or known.ndim == 0 or known.shape[-1] != self.context:
                raise ValueError(
                    f"embedding: expected a module that returns (..., {self.context}), the flow's context; "
                    f"got {_described(known)}"
                )
        if missing is None:
            return known, None
        batch = known.ndim - 1
        return known, missing.flatten(batch).any(-1) if missing.ndim > batch else missing

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
        image, ladj = _guarded(lambda rows: direction(rows, context), harmless, inside, given)
        unknown = _either(None if missing is None else any_of_event(missing, given), unknown)
        if unknown is not None:
            image, ladj = image.masked_fill(spread(unknown, found), math.nan), ladj.masked_fill(unknown, math.nan)
        return image.squeeze(-1) if rows.ndim > values.ndim and image.ndim > 1 else image, ladj


def _guarded(
    run: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor, inside: Callable[[Tensor], Tensor], event: torch.Size
) -> tuple[Tensor, ...]:
    """``run(rows)``, of which events without a finite result add nothing to gradients that do not ask for them.

    The squares of a finite number may overflow somewhere between two transforms, and then zero times infinity would
    reach the gradients of all rows. Such events run again as the point ``inside(rows)``; their results stay the first.
    Where results are not at hand without waiting, on a GPU or in a program that is recorded, this is left out.
    """
    results = run(rows)
    *image, last = results
    if not last.requires_grad or not can_be_looked_at(last) or all(map(is_known_finite, results)):
        return results
    bad = ~last.isfinite()
    for part in image:
        bad = bad | ~part.isfinite().flatten(last.ndim).all(-1)
    if not bad.any():
        return results
    again = run(torch.where(spread(bad, event), inside(rows), rows))
    return tuple(
        torch.where(bad.reshape(*bad.shape, *(1,) * (first.ndim - bad.ndim)), first.detach(), second)
        for first, second in zip(results, again, strict=True)
    )


def _either(mask: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Where one of the masks holds; a mask that is None holds nowhere."""
    if mask is None or other is None:
        return other if mask is None else mask
    return mask | other


def _shape(name: str, value: SupportsIndex | Sequence[int]) -> tuple[int, ...]:
    sizes = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(check_integer(name, size, 0) for size in sizes)


def _described(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _check_embedding(embedding: nn.Module | None, context: int) -> nn.Module | None:
    if embedding is None:
        return None
    if not isinstance(embedding, nn.Module):
        raise TypeError(f"embedding: expected a torch.nn.Module, got {type(embedding).__name__}")
    if not context:
        raise ValueError("embedding: expected None for a flow without a context, got a module")
    return embedding


def _note_that_it_is_fitted(flow: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(flow, Flow)
    flow.fitted = True


def like(flow: Flow) -> Tensor:
    """A tensor of the dtype and on the device that ``flow`` computes in; torch's defaults if it holds no numbers."""
    own = own_tensor(flow)
    return torch.empty(0) if own is None else own


RECIPES: dict[str, Callable[..., Flow]] = {}
_OBJECTS = "network", "embedding"  # arguments of all recipes that are no numbers or names, on record where given
NO_NUMBERS = (*_OBJECTS, "seed")


def recipe(build: Callable[P, Flow]) -> Callable[P, Flow]:
    """Register a function that builds a flow, and record on each flow the call that built it.

    :func:`mixflow.load` and the command line know flows by this register alone. The argument ``seed`` is of the weights
    at the start, and no part of the record; it is used here for all recipes.
    """
    signature = inspect.signature(build)

    @functools.wraps(build)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> Flow:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        given = {name: plain(value) for name, value in call.arguments.items() if name not in NO_NUMBERS}
        given |= {name: value for name, value in call.arguments.items() if name in _OBJECTS and value is not None}
        with seeded(call.arguments.get("seed")):
            flow = build(*args, **kwargs)
        flow.recipe = Recipe(build.__name__, given)
        return flow

    RECIPES[build.__name__] = recorded
    return recorded


@contextmanager
def seeded(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """Let modules draw from ``seed`` on ``device``, by default torch's; the global generators are then as they were.

    Without a seed they draw from the global generators.
    """
    if seed is None:
        yield
        return
    device = torch.get_default_device() if device is None else device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(check_seed(seed))
        for cuda in devices:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(seed)
        yield
