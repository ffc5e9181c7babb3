"""Transforms made of transforms."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ..precise import offsets_of, restore_offsets
from .base import Transform, any_of_event, check_transform, own_tensor, spread

__all__ = ["Compose", "Inverse"]


class Compose(Transform):
    """Transforms one after the other; their ladj add up.

    Args:
        transforms: in the order in which the forward direction applies them. Each takes events of the shape that the
            one before it gives, and those that take a context agree in its size.

    Raises:
        ValueError: no transforms, or sizes that disagree.
        TypeError: an argument is not a Transform.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Affine, Compose, MixtureCDF
        >>> transform = Compose(Affine(2), MixtureCDF(2, components=4))
        >>> transform(torch.randn(5, 2))[1].shape
        torch.Size([5])

    """

    def __init__(self, *transforms: Transform) -> None:
        if not transforms:
            raise ValueError("transforms: expected at least one Transform, got none")
        for transform in transforms:
            check_transform("transforms", transform)
        for before, after in itertools.pairwise(transforms):
            if before.output_shape != after.event_shape:
                raise ValueError(
                    "transforms: expected each to take what the one before it gives, got "
                    f"{_described(before.output_shape)} and then {_described(after.event_shape)}"
                )
        contexts = {transform.context for transform in transforms if transform.context}
        if len(contexts) > 1:
            raise ValueError(f"transforms: expected the same context in all, got {sorted(contexts)}")
        super().__init__(
            transforms[0].event_shape, contexts.pop() if contexts else 0, output=transforms[-1].output_shape
        )
        self.transforms = nn.ModuleList(transforms)
        # The transforms whose domain is not all numbers. Those after one that takes a context are left out: whether a
        # value is outside their domain would depend on the context.
        free = itertools.takewhile(lambda transform: not transform.context, transforms)
        self._limited = [number for number, transform in enumerate(free) if transform.is_limited]

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initialise each transform on the data as the transforms before it return them."""
        with torch.no_grad():
            *before, last = self.each()
            for transform in before:
                with frozen_kept(transform):
                    transform.initialize(x, context if transform.context else None)
                x, _ = transform(x, context)
            with frozen_kept(last):  # its image is not needed
                last.initialize(x, context if last.context else None)

    def takes_any_dtype(self, forward: bool = True) -> bool:
        """As the first transform with parameters, in this direction."""
        for transform in self.each() if forward else reversed(self.each()):
            if own_tensor(transform) is not None:
                return transform.takes_any_dtype(forward)
        return True

    @property
    def is_limited(self) -> bool:
        """Whether the domain of one of the transforms is not all numbers."""
        return bool(self._limited)

    def outside(self, x: Tensor) -> Tensor | None:
        """The elements of ``x`` outside the domain of the first transform; for a later transform, whole events."""
        if not self._limited:
            return None
        found, value = torch.zeros_like(x, dtype=torch.bool), x
        for number, transform in enumerate(self.each()[: self._limited[-1] + 1]):
            own = transform.outside(value)
            if own is not None:
                rows = any_of_event(own, transform.event_shape)
                found = found | (spread(rows, self.event_shape) if number else own)
                own = spread(rows, transform.event_shape) if number else own
                value = torch.where(own, transform.inside(value), value)
            if number < self._limited[-1]:
                value, _ = transform(value)
        return found

    def inside(self, x: Tensor) -> Tensor:
        """A point of the domain of the last transform that has one, taken back to ``x``."""
        if not self._limited:
            return super().inside(x)
        *before, last = self.each()[: self._limited[-1] + 1]
        point = last.inside(x)
        for transform in reversed(before):
            own = own_tensor(transform)
            point, _ = transform.inverse(point if own is None else point.to(own.dtype))
        return point

    def each(self) -> list[Transform]:
        """The transforms, in the order of the forward direction."""
        return cast("list[Transform]", list(self.transforms))

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        ladjs = []
        for transform in self.each():
            x, ladj = transform(x, context)
            ladjs.append(ladj)
        return x, _total(ladjs)

    def _log_density(self, x: Tensor, context: Tensor | None, base: str) -> Tensor:
        *before, last = self.each()
        ladjs = []
        for transform in before:
            x, ladj = transform(x, context)
            ladjs.append(ladj)
        return _total([*ladjs, last.log_density(x, context, base)])

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        ladjs = []
        for transform in reversed(self.each()):
            z, ladj = transform.inverse(z, context)
            ladjs.append(ladj)
        return z, _total(ladjs)


class Inverse(Transform):
    """A transform with its two directions exchanged.

    Args:
        transform: the transform to turn round; its parameters are shared, not copied.

    Raises:
        TypeError: not a Transform.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Inverse, MixtureCDF
        >>> transform, z = MixtureCDF(1, components=4), torch.randn(5, 1)
        >>> torch.equal(Inverse(transform)(z)[0], transform.inverse(z)[0])
        True

    """

    transform: Transform

    def __init__(self, transform: Transform) -> None:
        check_transform("transform", transform)
        super().__init__(transform.output_shape, transform.context, output=transform.event_shape)
        self.transform = transform

    def takes_any_dtype(self, forward: bool = True) -> bool:
        """As the transform in its other direction."""
        return self.transform.takes_any_dtype(not forward)

    def outside(self, x: Tensor) -> Tensor | None:
        """The elements of ``x`` (..., D) outside the transform's image."""
        return self.transform.outside_image(x)

    def inside(self, x: Tensor) -> Tensor:
        """A point of the transform's image."""
        return self.transform.inside_image(x)

    def outside_image(self, z: Tensor) -> Tensor | None:
        """The elements of ``z`` (..., D) outside the transform's domain."""
        return self.transform.outside(z)

    def inside_image(self, z: Tensor) -> Tensor:
        """A point of the transform's domain."""
        return self.transform.inside(z)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.forward(z, context)


@contextmanager
def frozen_kept(transform: nn.Module) -> Iterator[None]:
    """At the end, undo what the block did to frozen parameters, which require no gradient.

    If all parameters of a module are frozen, its buffers are kept as well, such as those that standardise the inputs of
    its networks.
    """
    frozen: dict[str, Tensor] = {}
    for name, module in transform.named_modules():
        trained = [parameter.requires_grad for parameter in module.parameters()]
        own = module.state_dict() if trained and not any(trained) else {}
        own |= {key: value for key, value in module.named_parameters(recurse=False) if not value.requires_grad}
        frozen |= {f"{name}.{key}" if name else key: value.detach().clone() for key, value in own.items()}
    whole = [module for module in transform.modules() if not any(p.requires_grad for p in module.parameters())]
    offsets = [kept for module in whole if any(True for _ in module.parameters()) for kept in offsets_of(module)]
    yield
    if frozen:
        transform.load_state_dict(frozen, strict=False)
    restore_offsets(offsets)


def _described(event: torch.Size) -> str:
    return f"features = {event[0]}" if len(event) == 1 else f"events of shape {tuple(event)}"


def _total(ladjs: Sequence[Tensor]) -> Tensor:
    """The sum of the ladj of transforms in the narrowest of their dtypes, which is that of the parameters."""
    total = ladjs[0]
    for ladj in ladjs[1:]:
        narrower = ladj.dtype if ladj.dtype.itemsize < total.dtype.itemsize else total.dtype
        total = total.to(narrower) + ladj.to(narrower)
    return total
