"""The inputs of a network: standardised, bounded, and side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..precise import KeepsPrecision
from ..start.robust import moments

__all__ = ["Inputs", "Standardised", "join"]


class Inputs(KeepsPrecision):
    """Standardised, bounded inputs of a network: ``8 tanh((x - loc) / (8 scale))``.

    Over the bulk of the data this is close to ``(x - loc) / scale``. An outlier, however far, changes the parameters of
    a transform by a bounded amount. Unbounded inputs would make the exponentials of parameters overflow.

    Args:
        size: the number of inputs.

    Example:
        >>> import torch
        >>> from mixflow.networks.inputs import Inputs
        >>> Inputs(1)(torch.tensor([[0.1], [1e30]]))
        tensor([[0.1000],
                [8.0000]])

    """

    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("loc", torch.zeros(size))

    def initialize(self, x: Tensor) -> None:
        """Set loc and scale from the bulk of ``x`` (..., size); the scale of a constant column is 1."""
        with torch.no_grad():
            loc, spread = moments(x.reshape(-1, x.shape[-1]))
            self._set_loc(loc)
            self.scale.copy_(torch.where(spread > 0.0, spread, 1.0))

    def forward(self, x: Tensor, columns: slice = slice(None)) -> Tensor:
        """The standardised inputs (..., size), in the dtype of ``scale``; ``x`` may have any floating-point dtype.

        With ``columns``, ``x`` holds these columns of the inputs alone.
        """
        centred = x - self.loc[columns]
        return 8.0 * torch.tanh((centred / (8.0 * self.scale[columns])).to(self.scale.dtype))


class Standardised(nn.Sequential):
    """A network whose first module is its :class:`Inputs`."""

    def initialize(self, x: Tensor) -> None:
        """Set the standardisation from the inputs ``x`` (..., inputs)."""
        first = self[0]
        assert isinstance(first, Inputs)
        first.initialize(x)


def join(x: Tensor, context: Tensor | None) -> Tensor:
    """``x`` (..., D) and ``context`` (..., C) side by side; the context's batch shape is expanded to that of x."""
    return x if context is None else torch.cat([x, context.expand(*x.shape[:-1], -1)], dim=-1)
