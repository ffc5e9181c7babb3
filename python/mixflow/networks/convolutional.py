"""Convolutional networks for couplings of images: factories, as :mod:`mixflow.networks` describes them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checks import check_integer

__all__ = ["ConvNet"]


@dataclass(frozen=True)
class ConvNet:
    """A small residual convolutional network (N, inputs, H, W) -> (N, outputs, H, W), of gated blocks.

    A convolution leads to ``channels`` channels. Each of the ``blocks`` applies SiLU, a convolution, SiLU, dropout, a
    1 x 1 convolution, and a gate ``a sigmoid(b)``; it adds the result to its input and normalises all channels of an
    image together. A last 1 x 1 convolution gives the outputs. The blocks are those of Ho et al., "Flow++" (2019,
    arXiv:1902.00275), without attention. Images are padded with zeros, so outputs may depend on the distance from the
    edges.

    Args:
        channels: the width of the network.
        blocks: the number of residual blocks; 0 for two convolutions alone.
        kernel: the side of the convolutions, odd.
        dropout: the probability that a channel of a block is dropped in training, which prevents overfitting to few
            images. It is active in training mode alone. ``fit`` trains in this mode, and leaves a flow in evaluation
            mode.

    Raises:
        ValueError: a size is out of range, the kernel is even, or dropout is not in [0, 1).

    Example:
        >>> import torch
        >>> from mixflow.networks import ConvNet
        >>> network = ConvNet(channels=8, blocks=1)
        >>> network(inputs=2, outputs=5)(torch.randn(7, 2, 4, 4)).shape
        torch.Size([7, 5, 4, 4])

    """

    channels: int = 32
    blocks: int = 2
    kernel: int = 3
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_integer("channels", self.channels, 1)
        check_integer("blocks", self.blocks, 0, 1000)
        if check_integer("kernel", self.kernel, 1) % 2 == 0:
            raise ValueError(f"kernel: expected an odd size, which has a middle, got {self.kernel}")
        if not (isinstance(self.dropout, Real) and 0.0 <= self.dropout < 1.0):
            raise ValueError(f"dropout: expected a probability in [0, 1), got {self.dropout!r}")

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor was called with, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __call__(self, inputs: int, outputs: int) -> nn.Module:
        """The network for these numbers of channels."""
        return nn.Sequential(
            _conv(inputs, self.channels, self.kernel),
            *(_GatedBlock(self.channels, self.kernel, self.dropout) for _ in range(self.blocks)),
            nn.SiLU(),
            nn.Conv2d(self.channels, outputs, 1),
        )


class _GatedBlock(nn.Module):
    """``x + a sigmoid(b)``, with a and b from two convolutions of ``x`` (N, channels, H, W)."""

    def __init__(self, channels: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.first = _conv(channels, channels, kernel)
        self.dropout = nn.Dropout2d(dropout)
        self.second = nn.Conv2d(channels, 2 * channels, 1)
        self.norm = nn.GroupNorm(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.silu(self.first(functional.silu(x)))
        value, gate = self.second(self.dropout(hidden)).chunk(2, dim=1)
        result: Tensor = self.norm(x + value * torch.sigmoid(gate))
        return result


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
