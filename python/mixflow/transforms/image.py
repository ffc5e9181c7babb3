"""Transforms of images (C, H, W): other shapes, and vector transforms of each pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_integer
from .base import Transform, check_transform

__all__ = ["Pixelwise", "Reshape", "Squeeze", "channels_last", "check_image_shape"]


class Reshape(Transform):
    """The same numbers, in the same order, in an event of another shape, with ladj 0.

    Between ``Reshape((1, 8, 8), (64,))`` and its inverse, transforms of vectors can serve images.

    Args:
        before: the shape of an event of ``x``, such as (C, H, W); an integer D stands for (D,).
        after: the shape of an event of ``z``, of as many numbers.

    Raises:
        ValueError: a size is out of range, or the two shapes hold different amounts of numbers.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Compose, MixtureCDF, Reshape
        >>> transform = Compose(Reshape((1, 8, 8), 64), MixtureCDF(64, components=4), Reshape(64, (1, 8, 8)))
        >>> z, ladj = transform(torch.randn(5, 1, 8, 8))
        >>> z.shape, ladj.shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5]))

    """

    def __init__(self, before: int | Sequence[int], after: int | Sequence[int]) -> None:
        super().__init__(before)
        self.output_shape = Transform(after).event_shape
        if math.prod(self.output_shape) != self.features:
            raise ValueError(
                f"after: expected a shape of {self.features} numbers, as before has, got {tuple(self.output_shape)}"
            )

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"before={tuple(self.event_shape)}, after={tuple(self.output_shape)}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return _reshaped(x, self.event_shape, self.output_shape)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return _reshaped(z, self.output_shape, self.event_shape)


class Squeeze(Transform):
    """Each square of ``factor`` x ``factor`` pixels becomes the channels of one pixel, with ladj 0.

    ``z`` has the event shape (C f^2, H / f, W / f), and its channels have the order of ``torch.nn.PixelUnshuffle``.
    Couplings that split the channels then separate neighbours (Dinh et al., "Real NVP", 2017, arXiv:1605.08803).
    ``Inverse`` of it is the way back.

    Args:
        shape: (C, H, W).
        factor: f, which divides H and W.

    Raises:
        ValueError: a size is out of range, or f does not divide both.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Squeeze
        >>> Squeeze((1, 2, 4))(torch.arange(8.0).reshape(1, 2, 4))[0].flatten(1)
        tensor([[0., 2.],
                [1., 3.],
                [4., 6.],
                [5., 7.]])

    """

    def __init__(self, shape: Sequence[int], factor: int = 2) -> None:
        channels, height, width = check_image_shape(shape)
        side = check_integer("factor", factor, 1)
        if height % side or width % side:
            raise ValueError(f"factor: expected one that divides {height} and {width}, got {factor}")
        squeezed = (channels * side**2, height // side, width // side)
        super().__init__((channels, height, width), output=squeezed)
        self.factor = side

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"shape={tuple(self.event_shape)}, factor={self.factor}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        # (..., C, H, W) to (..., C, h, f, w, f), then to (..., C, f, f, h, w). The batch shape may be empty.
        blocks = x.unflatten(-2, (-1, self.factor)).unflatten(-1, (-1, self.factor))
        z = blocks.movedim((-3, -1), (-4, -3)).flatten(-5, -3)
        return z, _nothing(x)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        blocks = z.unflatten(-3, (-1, self.factor, self.factor))
        x = blocks.movedim((-4, -3), (-3, -1)).flatten(-2).flatten(-3, -2)
        return x, _nothing(z)


class Pixelwise(Transform):
    """A transform of vectors, applied to the channels of each pixel: (..., C, H, W) to the same shape.

    ``Pixelwise(Affine(C), (H, W))`` is the activation normalisation and ``Pixelwise(Rotation(C), (H, W))`` an
    orthogonal one of the invertible 1 x 1 convolutions of Kingma and Dhariwal, "Glow" (2018, arXiv:1807.03039). A
    mixture CDF or an autoregressive transform in it has the same parameters at all pixels.

    Args:
        transform: of vectors (C,). A context that it takes is the same for all pixels.
        size: (H, W).

    Raises:
        TypeError: transform is not a Transform.
        ValueError: transform is not one of vectors, or a size is out of range.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Pixelwise, Rotation
        >>> z, ladj = Pixelwise(Rotation(3), (8, 8))(torch.randn(5, 3, 8, 8))
        >>> z.shape, ladj.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5]))

    """

    transform: Transform

    def __init__(self, transform: Transform, size: Sequence[int]) -> None:
        check_transform("transform", transform)
        if len(transform.event_shape) != 1 or transform.output_shape != transform.event_shape:
            raise ValueError(
                "transform: expected one of vectors (C,) to vectors (C,), got one of events "
                f"{tuple(transform.event_shape)} to {tuple(transform.output_shape)}"
            )
        if not isinstance(size, Sequence) or len(size) != 2:
            raise ValueError(f"size: expected (H, W), got {size!r}")
        super().__init__((transform.features, *size), transform.context)
        self.transform = transform

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initialise the transform on the pixels of all images."""
        pixels = channels_last(x)
        if context is not None:
            context = _at_pixels(context).expand(*pixels.shape[:-1], -1).flatten(0, -2)
        self.transform.initialize(pixels.flatten(0, -2), context)

    def takes_any_dtype(self, forward: bool = True) -> bool:
        """As the transform."""
        return self.transform.takes_any_dtype(forward)

    def outside(self, x: Tensor) -> Tensor | None:
        """The elements of ``x`` (..., C, H, W) outside the transform's domain."""
        return _channels_first(self.transform.outside(channels_last(x)))

    def inside(self, x: Tensor) -> Tensor:
        """A point of the transform's domain at every pixel."""
        return self.transform.inside(channels_last(x)).reshape(-1, 1, 1).expand(self.event_shape)

    def outside_image(self, z: Tensor) -> Tensor | None:
        """The elements of ``z`` (..., C, H, W) outside the transform's image."""
        return _channels_first(self.transform.outside_image(channels_last(z)))

    def inside_image(self, z: Tensor) -> Tensor:
        """A point of the transform's image at every pixel."""
        return self.transform.inside_image(channels_last(z)).reshape(-1, 1, 1).expand(self.event_shape)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z, ladj = self.transform.forward(channels_last(x), None if context is None else _at_pixels(context))
        return z.movedim(-1, -3), ladj.sum((-2, -1))

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, ladj = self.transform.inverse(channels_last(z), None if context is None else _at_pixels(context))
        return x.movedim(-1, -3), ladj.sum((-2, -1))


def check_image_shape(shape: Sequence[int], name: str = "shape") -> tuple[int, int, int]:
    """``shape`` as (C, H, W), or ValueError."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 3:
        raise ValueError(f"{name}: expected (C, H, W), got {shape!r}")
    channels, height, width = (check_integer(name, size, 1) for size in shape)
    return channels, height, width


def _reshaped(x: Tensor, before: torch.Size, after: torch.Size) -> tuple[Tensor, Tensor]:
    batch = x.shape[: x.ndim - len(before)]
    return x.reshape(*batch, *after), x.new_zeros(batch)


def _nothing(image: Tensor) -> Tensor:
    return image.new_zeros(image.shape[:-3])


def channels_last(x: Tensor) -> Tensor:
    """``x`` (..., C, H, W) with the channels last, (..., H, W, C): a view."""
    return x.movedim(-3, -1)


def _channels_first(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.movedim(-1, -3)


def _at_pixels(context: Tensor) -> Tensor:
    """A context (..., C) with two axes of length 1, which broadcast over the pixels: (..., 1, 1, C)."""
    return context.unsqueeze(-2).unsqueeze(-2)
