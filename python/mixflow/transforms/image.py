"""Transforms of images (C, H, W): other shapes, vector transforms of each pixel, couplings with convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_integer
from ..networks import ConvNet
from ..networks.conditioners import Inputs, Network, OwnNetwork
from .base import Transform, check_name, check_transform
from .elementwise import ElementwiseMap

__all__ = ["ImageCoupling", "Pixelwise", "Reshape", "Squeeze"]

MASKS = ("checkerboard", "channels")


class Reshape(Transform):
    """The same numbers, in the same order, in an event of another shape, with ladj 0.

    Between two of them, transforms of vectors serve images: ``Reshape((1, 8, 8), (64,))`` and back.

    Args:
        before: the shape of an event of ``x``, such as (C, H, W); an integer D stands for (D,).
        after: the shape of an event of ``z``, of as many numbers.

    Raises:
        ValueError: a size is out of range, or the two shapes differ in their numbers.

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
                f"after: expected a shape of {self.features} numbers, as before has; got {tuple(self.output_shape)}"
            )

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"before={tuple(self.event_shape)}, after={tuple(self.output_shape)}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return _reshaped(x, self.event_shape, self.output_shape)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return _reshaped(z, self.output_shape, self.event_shape)


class Squeeze(Transform):
    """Each square of ``factor`` x ``factor`` pixels becomes the channels of one, with ladj 0.

    ``z`` has the event shape (C f^2, H / f, W / f), its channels in the order of ``torch.nn.PixelUnshuffle``. Couplings
    that split the channels then see neighbours apart (Dinh et al., "Real NVP", 2017, arXiv:1605.08803). ``Inverse``
    makes it the way back.

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
        # (..., C, H, W) to (..., C, h, f, w, f), then to (..., C, f, f, h, w): any batch shape, an empty one, too.
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
        pixels = _channels_last(x)
        if context is not None:
            context = _at_pixels(context).expand(*pixels.shape[:-1], -1).flatten(0, -2)
        self.transform.initialize(pixels.flatten(0, -2), context)

    def takes_any_dtype(self, forward: bool = True) -> bool:
        """As the transform."""
        return self.transform.takes_any_dtype(forward)

    def outside(self, x: Tensor) -> Tensor | None:
        """The elements of ``x`` (..., C, H, W) outside the transform's domain."""
        return _channels_first(self.transform.outside(_channels_last(x)))

    def inside(self, x: Tensor) -> Tensor:
        """A point of the transform's domain at every pixel."""
        return self.transform.inside(_channels_last(x)).reshape(-1, 1, 1).expand(self.event_shape)

    def outside_image(self, z: Tensor) -> Tensor | None:
        """The elements of ``z`` (..., C, H, W) outside the transform's image."""
        return _channels_first(self.transform.outside_image(_channels_last(z)))

    def inside_image(self, z: Tensor) -> Tensor:
        """A point of the transform's image at every pixel."""
        return self.transform.inside_image(_channels_last(z)).reshape(-1, 1, 1).expand(self.event_shape)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z, ladj = self.transform.forward(_channels_last(x), None if context is None else _at_pixels(context))
        return z.movedim(-1, -3), ladj.sum((-2, -1))

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, ladj = self.transform.inverse(_channels_last(z), None if context is None else _at_pixels(context))
        return x.movedim(-1, -3), ladj.sum((-2, -1))


class ImageCoupling(Transform):
    """Half of an image passes unchanged through a convolutional network, which gives the map of the other half.

    As :class:`~mixflow.transforms.Coupling`, of images: the network's outputs are the parameters of
    :class:`~mixflow.transforms.elementwise.ElementwiseMap`, a mixture CDF, a logit for logistic components, and an
    affine map, as in Ho et al., "Flow++" (2019, arXiv:1902.00275). Both directions take one pass of the network. It
    starts as next to the identity, whatever the network returns at first.

    The mask "checkerboard" lets every other pixel pass. The pixels that pass make an image of half the size in both
    directions and twice the channels, which are the two places that they have in each square of 2 x 2 pixels; so do the
    others. The network sees the first and gives the parameters of the second: nothing is computed of pixels that do not
    count. The mask "channels" lets half of the channels pass, the first (C + 1) // 2 of them.

    Args:
        shape: (C, H, W). H and W are even for a checkerboard, C is at least 2 for channels.
        components: K, the number of components of each mixture.
        mask: "checkerboard" or "channels".
        swap: whether the two halves change places: what passes is then mapped. A flow alternates.
        family: the components' distribution, one of ``mixflow.FAMILIES``.
        context: a number C for a context (..., C), which the network sees as channels that are the same at all pixels;
            or the shape (C', H, W) of an image, which is given as a context (..., C' H W); 0 for none.
        network: builds the network: ``network(inputs, outputs)`` returns a module that maps (N, inputs, h, w) to
            (N, outputs, h, w). By default ``mixflow.networks.ConvNet()``. Networks other than those of
            :mod:`mixflow.networks` cannot be saved.

    Raises:
        TypeError: ``network`` does not build a module.
        ValueError: a size is out of range or odd, or the mask or family is unknown. A call raises it where the network
            returns another shape.

    Example:
        >>> import torch
        >>> from mixflow.networks import ConvNet
        >>> from mixflow.transforms import ImageCoupling
        >>> transform = ImageCoupling((1, 8, 8), components=4, network=ConvNet(channels=16))
        >>> x = torch.randn(5, 1, 8, 8)
        >>> z, ladj = transform(x)
        >>> torch.equal(z[:, :, 0, 0], x[:, :, 0, 0]), ladj.shape, torch.allclose(transform.inverse(z)[0], x, atol=1e-4)
        (True, torch.Size([5]), True)

    """

    def __init__(
        self,
        shape: Sequence[int],
        components: int = 8,
        *,
        mask: str = "checkerboard",
        swap: bool = False,
        family: str = "logistic",
        context: int | Sequence[int] = 0,
        network: Network | None = None,
    ) -> None:
        channels, height, width = check_image_shape(shape)
        check_name("mask", mask, MASKS)
        if mask == "channels" and channels < 2:
            raise ValueError(f"shape: expected at least 2 channels for the mask {mask!r}, got {tuple(shape)}")
        if mask == "checkerboard" and (height % 2 or width % 2):
            raise ValueError(f"shape: expected an even height and width for the mask {mask!r}, got {tuple(shape)}")
        image = context if isinstance(context, Sequence) else None
        if image is not None and tuple(check_image_shape(image, "context"))[1:] != (height, width):
            raise ValueError(f"context: expected an image of {height} x {width} pixels, got {tuple(image)}")
        super().__init__((channels, height, width), context if image is None else math.prod(image))
        self.mask, self.swap = mask, bool(swap)
        self._context_image = None if image is None else torch.Size(image)
        self.elementwise = ElementwiseMap(check_integer("components", components, 1), family)
        passing, mapped = self._channels()
        self.conditioner = _Conditioner(
            ConvNet() if network is None else network,
            passing + self._context_channels(),
            self.elementwise.start().repeat(mapped),
        )

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Standardise the network's inputs, channel by channel; the map stays close to the identity."""
        passing, _ = self._split(x)
        self.conditioner.initialize(self._seen(passing, context))

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        context = self.context if self._context_image is None else tuple(self._context_image)
        return (
            f"shape={tuple(self.event_shape)}, components={self.elementwise.components}, mask={self.mask!r}, "
            f"swap={self.swap}, family={self.elementwise.family!r}, context={context}"
        )

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        passing, mapped = self._split(x)
        image, ladj = self.elementwise.forward(mapped, self._raw(passing, context))
        return self._merged(passing, image), ladj.sum((-3, -2, -1))

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        passing, mapped = self._split(z)
        image, ladj = self.elementwise.inverse(mapped, self._raw(passing, context))
        return self._merged(passing, image), ladj.sum((-3, -2, -1))

    # -- the halves --------------------------------------------------------------------------------------------

    def _channels(self) -> tuple[int, int]:
        """The numbers of channels of the half images that pass and that are mapped."""
        channels = self.event_shape[0]
        if self.mask == "checkerboard":
            return 2 * channels, 2 * channels
        first = (channels + 1) // 2
        return (channels - first, first) if self.swap else (first, channels - first)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The half images of ``x`` (..., C, H, W) that pass and that are mapped."""
        if self.mask == "checkerboard":
            halves = _checkered(x)
        else:
            first = (self.event_shape[0] + 1) // 2
            halves = x[..., :first, :, :], x[..., first:, :, :]
        return halves[::-1] if self.swap else halves

    def _merged(self, passing: Tensor, mapped: Tensor) -> Tensor:
        """The image of which these are the halves."""
        first, second = (mapped, passing) if self.swap else (passing, mapped)
        if self.mask == "channels":
            return torch.cat([first, second], dim=-3)
        return _unchecker(first, second)

    # -- the network -------------------------------------------------------------------------------------------

    def _context_channels(self) -> int:
        if self._context_image is None:
            return self.context
        return self._context_image[0] * (4 if self.mask == "checkerboard" else 1)

    def _raw(self, passing: Tensor, context: Tensor | None) -> Tensor:
        """The parameters (..., c, h, w, P) of the mapped half."""
        raw = self.conditioner(self._seen(passing, context))
        return torch.unflatten(raw, -3, (-1, self.elementwise.size)).movedim(-3, -1)

    def _seen(self, passing: Tensor, context: Tensor | None) -> Tensor:
        """What the network sees: the half that passes, and the context as further channels."""
        if context is None:
            return passing
        if self._context_image is None:
            seen = context.unsqueeze(-1).unsqueeze(-1)
        else:
            image = context.unflatten(-1, self._context_image)
            seen = torch.cat(_checkered(image), dim=-3) if self.mask == "checkerboard" else image
        shape = *passing.shape[:-3], seen.shape[-3], *passing.shape[-2:]
        return torch.cat([passing, seen.to(passing.dtype).expand(shape)], dim=-3)


class _Conditioner(OwnNetwork):
    """A network of images behind standardised, bounded inputs: ``start + gain * network(inputs)``, gain from 0 on.

    Args:
        network: from the numbers of input and output channels to a module.
        inputs: the number of input channels.
        start: the outputs (outputs,) at the start, the same at all pixels.

    """

    def __init__(self, network: Network, inputs: int, start: Tensor) -> None:
        super().__init__(network, inputs, len(start), start)
        self.inputs = Inputs(inputs)

    def initialize(self, x: Tensor) -> None:
        """Standardise the inputs as those of ``x`` (..., inputs, h, w)."""
        self.inputs.initialize(_channels_last(x))

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (..., outputs, h, w) for ``x`` (..., inputs, h, w), which the network sees as (N, ...)."""
        batch, (channels, *size), outputs = x.shape[:-3], x.shape[-3:], len(self.gain)
        images = self.inputs(_channels_last(x)).movedim(-1, -3).reshape(math.prod(batch), channels, *size)
        values = self.network(images)
        if not isinstance(values, Tensor) or values.shape != (len(images), outputs, *size):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"network: expected a module that maps (N, {channels}, {size[0]}, {size[1]}) to "
                f"(N, {outputs}, {size[0]}, {size[1]}); got {got} for N = {len(images)}"
            )
        gain, start = (value.reshape(-1, 1, 1) for value in (self.gain, self.start))
        return (start + gain * values).reshape(*batch, outputs, *size)


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


def _checkered(x: Tensor) -> tuple[Tensor, Tensor]:
    """The dark and the light pixels of ``x`` (..., C, H, W), each (..., 2 C, H / 2, W / 2)."""
    blocks = x.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))  # (..., C, H / 2, 2, W / 2, 2)
    dark = torch.cat([blocks[..., 0, :, 0], blocks[..., 1, :, 1]], dim=-3)
    light = torch.cat([blocks[..., 0, :, 1], blocks[..., 1, :, 0]], dim=-3)
    return dark, light


def _unchecker(dark: Tensor, light: Tensor) -> Tensor:
    """The image whose dark and light pixels these are."""
    (upper_dark, lower_dark), (upper_light, lower_light) = dark.chunk(2, dim=-3), light.chunk(2, dim=-3)
    upper = torch.stack([upper_dark, upper_light], dim=-1).flatten(-2)
    lower = torch.stack([lower_light, lower_dark], dim=-1).flatten(-2)
    return torch.stack([upper, lower], dim=-2).flatten(-3, -2)


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(-3, -1)


def _channels_first(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.movedim(-1, -3)


def _at_pixels(context: Tensor) -> Tensor:
    """A context (..., C) with two axes of length 1, which broadcast over the pixels: (..., 1, 1, C)."""
    return context.unsqueeze(-2).unsqueeze(-2)
