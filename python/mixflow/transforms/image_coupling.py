"""Couplings of images by convolutional networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_integer
from ..networks import ConvNet
from ..networks.conditioners import Network, OwnNetwork
from ..networks.inputs import Inputs
from .base import Transform, check_name
from .elementwise import ElementwiseMap
from .image import channels_last, check_image_shape

__all__ = ["ImageCoupling"]

MASKS = ("checkerboard", "channels")


class ImageCoupling(Transform):
    """One half of an image passes unchanged; from it a convolutional network computes the map of the other half.

    This is :class:`~mixflow.transforms.Coupling` for images. The outputs of the network are the parameters of
    :class:`~mixflow.transforms.elementwise.ElementwiseMap`: a mixture CDF, the quantile function of the components' own
    distribution (a logit for logistic components), and an affine map, as in Ho et al., "Flow++" (2019,
    arXiv:1902.00275). Each direction takes one pass of the network. The map starts close to the identity, whatever the
    network returns at first.

    The mask "checkerboard" lets every other pixel pass. In each square of 2 x 2 pixels two pixels pass, and become two
    channels of one pixel: an image of half the height, half the width and twice the channels. The two others make a
    second such image. The network takes the first image and returns the parameters for the second, so it computes
    nothing for pixels that pass. The mask "channels" lets the first (C + 1) // 2 channels pass.

    Args:
        shape: (C, H, W). H and W are even for a checkerboard, C is at least 2 for channels.
        components: K, the number of components of each mixture.
        mask: "checkerboard" or "channels".
        swap: whether the two halves change places, so that the other half passes. A flow alternates.
        family: the components' distribution, one of ``mixflow.FAMILIES``.
        context: a number C for a context (..., C), which becomes further channels of the network's input, the same at
            all pixels; or the shape (C', H, W) of an image, which is given as a context (..., C' H W); 0 for none.
        network: builds the network: ``network(inputs, outputs)`` returns a module that maps (N, inputs, h, w) to
            (N, outputs, h, w). By default ``mixflow.networks.ConvNet()``. Networks other than those of
            :mod:`mixflow.networks` cannot be saved.

    Raises:
        TypeError: ``network`` does not build a module.
        ValueError: a size is out of range or odd, or the mask or family is unknown. A call raises it if the network
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
        """The image that has these halves."""
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
        """The network's input: the half that passes, and the context as further channels."""
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
    """A network of images with standardised, bounded inputs: ``start + gain * network(inputs)``, the gain starts at 0.

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
        self.inputs.initialize(channels_last(x))

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (..., outputs, h, w) for ``x`` (..., inputs, h, w); the network gets them as (N, ...)."""
        batch, (channels, *size), outputs = x.shape[:-3], x.shape[-3:], len(self.gain)
        images = self.inputs(channels_last(x)).movedim(-1, -3).reshape(math.prod(batch), channels, *size)
        values = self.network(images)
        if not isinstance(values, Tensor) or values.shape != (len(images), outputs, *size):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"network: expected a module that maps (N, {channels}, {size[0]}, {size[1]}) to "
                f"(N, {outputs}, {size[0]}, {size[1]}), got {got} for N = {len(images)}"
            )
        gain, start = (value.reshape(-1, 1, 1) for value in (self.gain, self.start))
        return (start + gain * values).reshape(*batch, outputs, *size)


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
