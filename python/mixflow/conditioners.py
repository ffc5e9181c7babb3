"""Networks that turn features and a context into the parameters of a transform."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .checks import check_integer
from .precise import KeepsPrecision
from .robust import moments

__all__ = ["MLP", "Inputs", "MaskedMLP"]


class Inputs(KeepsPrecision):
    """Standardised, bounded inputs of a network: ``8 tanh((x - loc) / (8 scale))``.

    Close to ``(x - loc) / scale`` over the bulk of the data; an outlier, however far, then drives the parameters of a
    transform no further than to a constant, where an unbounded input would overflow their exponentials.

    Args:
        size: the number of inputs.

    Example:
        >>> import torch
        >>> from mixflow.conditioners import Inputs
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
        """Set loc and scale from the bulk of ``x`` (..., size), :mod:`mixflow.robust`; a constant keeps its scale."""
        with torch.no_grad():
            loc, spread = moments(x.reshape(-1, x.shape[-1]))
            self._set_loc(loc)
            self.scale.copy_(torch.where(spread > 0.0, spread, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """The inputs (..., size), of any floating-point dtype, as the network sees them: in the dtype of ``scale``."""
        centred = x - self.loc
        return 8.0 * torch.tanh((centred / (8.0 * self.scale)).to(self.scale.dtype))


class MLP(nn.Sequential):
    """A multilayer perceptron ``(..., inputs) -> (..., outputs)`` with SiLU activations.

    The last layer starts as a constant: a conditioned transform begins as its unconditioned self and learns from
    there what the inputs change. SiLU is smooth, so second derivatives exist everywhere.

    Args:
        inputs: number of inputs.
        outputs: number of values returned.
        hidden: widths of the hidden layers.
        start: the outputs (outputs,) at the start; by default 0.

    Raises:
        ValueError: a width is out of range.

    Example:
        >>> import torch
        >>> from mixflow.conditioners import MLP
        >>> MLP(3, 5)(torch.randn(7, 3)).shape
        torch.Size([7, 5])

    """

    def __init__(
        self, inputs: int, outputs: int, hidden: Sequence[int] = (64, 64), start: Tensor | None = None
    ) -> None:
        layers: list[nn.Module] = [Inputs(inputs)]
        for width in check_hidden(hidden):
            layers += [nn.Linear(inputs, width), nn.SiLU()]
            inputs = width
        last = nn.Linear(inputs, outputs)
        _start_at(last, start)
        super().__init__(*layers, last)

    def initialize(self, x: Tensor) -> None:
        """Standardise the inputs as those of ``x`` (..., inputs)."""
        first = self[0]
        assert isinstance(first, Inputs)
        first.initialize(x)


class MaskedMLP(nn.Module):
    """An autoregressive network: P values for each of D features, that depend on the features before it alone.

    The masks are those of Germain et al., "MADE" (2015, arXiv:1502.03509); between layers of equal width the input is
    added to the output, which they allow (Durkan and Nash, 2019, arXiv:1904.05626). A context reaches every value.

    Args:
        features: D.
        outputs: P.
        hidden: widths of the hidden layers.
        context: C, the size of the context; 0 for none.
        start: the values (P,) of every feature at the start; by default 0.

    Raises:
        ValueError: a width is out of range.

    Example:
        >>> import torch
        >>> from mixflow.conditioners import MaskedMLP
        >>> MaskedMLP(3, 5)(torch.randn(7, 3)).shape
        torch.Size([7, 3, 5])

    """

    def __init__(
        self,
        features: int,
        outputs: int,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.features, self.outputs = features, outputs
        self.inputs = Inputs(features + context)
        # The degree of a unit is the number of features, counted from the first, that it may depend on. The context's
        # is 0; hidden units of degree 0 are of use only where there is a context to depend on.
        degrees = torch.cat([torch.arange(1, features + 1), torch.zeros(context, dtype=torch.long)])
        lowest = 0 if context or features == 1 else 1
        self.layers = nn.ModuleList()
        for width in check_hidden(hidden):
            own = lowest + torch.arange(width) * (features - lowest) // width
            self.layers.append(_MaskedLinear(degrees, own))
            degrees = own
        self.last = _MaskedLinear(degrees, torch.arange(features).repeat_interleave(outputs))
        _start_at(self.last, None if start is None else start.repeat(features))

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Standardise the inputs as those of ``x`` (..., D) and ``context`` (..., C)."""
        self.inputs.initialize(join(x, context))

    def forward(self, x: Tensor, context: Tensor | None = None, feature: int | None = None) -> Tensor:
        """The values (..., D, P) of all features, or (..., P) of one."""
        hidden = self.inputs(join(x, context))
        for layer in self.layers:
            image = functional.silu(layer(hidden))
            hidden = hidden + image if layer is not self.layers[0] and image.shape == hidden.shape else image
        if feature is None:
            return torch.unflatten(self.last(hidden), -1, (self.features, self.outputs))
        rows = slice(feature * self.outputs, (feature + 1) * self.outputs)
        return functional.linear(hidden, self.last.weight[rows] * self.last.mask[rows], self.last.bias[rows])


class _MaskedLinear(nn.Linear):
    """A linear layer in which an output sees the inputs whose degree is not above its own."""

    mask: Tensor

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        super().__init__(len(inputs), len(outputs))
        self.register_buffer("mask", inputs <= outputs.unsqueeze(-1), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight * self.mask, self.bias)


def check_hidden(hidden: Sequence[int]) -> list[int]:
    """The widths of the hidden layers as a list; ValueError if one is not a positive integer."""
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise ValueError(f"hidden: expected a sequence of widths, got {hidden!r}")
    return [check_integer("hidden", width, 1) for width in hidden]


def join(x: Tensor, context: Tensor | None) -> Tensor:
    """``x`` (..., D) and ``context`` (..., C), whose batch shape broadcasts against that of x, side by side."""
    return x if context is None else torch.cat([x, context.expand(*x.shape[:-1], -1)], dim=-1)


def _start_at(last: nn.Linear, start: Tensor | None) -> None:
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.zeros_like(last.bias) if start is None else start)
