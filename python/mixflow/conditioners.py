"""Networks that turn a context into the parameters of a transform."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """A multilayer perceptron ``(..., inputs) -> (..., outputs)`` with SiLU activations.

    The last layer starts at zero: a conditioned transform begins as its unconditioned self and learns from
    there what the context changes. SiLU is smooth, so second derivatives exist everywhere.

    Args:
        inputs: size of the context.
        outputs: number of values returned.
        hidden: widths of the hidden layers.

    Example:
        >>> import torch
        >>> from mixflow.conditioners import MLP
        >>> MLP(3, 5)(torch.randn(7, 3)).shape
        torch.Size([7, 5])

    """

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int] = (64, 64)) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.SiLU()]
            inputs = width
        last = nn.Linear(inputs, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(*layers, last)
