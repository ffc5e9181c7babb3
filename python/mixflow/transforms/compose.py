"""Transforms made of transforms."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .base import Transform, check_transform

__all__ = ["Compose", "Inverse"]


class Compose(Transform):
    """Transforms one after the other; the ladj's add up.

    Args:
        transforms: in the order in which the forward direction applies them. They agree in ``features``, and
            those that take a context agree in its size.

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
        features = {transform.features for transform in transforms}
        contexts = {transform.context for transform in transforms if transform.context}
        for name, sizes in (("features", features), ("context", contexts)):
            if len(sizes) > 1:
                raise ValueError(f"transforms: expected the same {name} in all, got {sorted(sizes)}")
        super().__init__(features.pop(), contexts.pop() if contexts else 0)
        self.transforms = nn.ModuleList(transforms)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initialise each transform on the data as the ones before it leave them."""
        with torch.no_grad():
            for transform in self._each():
                own = context if transform.context else None
                transform.initialize(x, own)
                x, _ = transform(x, own)

    def _each(self) -> list[Transform]:
        return cast("list[Transform]", list(self.transforms))

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[:-1])
        for transform in self._each():
            x, ladj = transform(x, context if transform.context else None)
            total = total + ladj
        return x, total

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(z.shape[:-1])
        for transform in reversed(self._each()):
            z, ladj = transform.inverse(z, context if transform.context else None)
            total = total + ladj
        return z, total


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
        super().__init__(transform.features, transform.context)
        self.transform = transform

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.forward(z, context)
