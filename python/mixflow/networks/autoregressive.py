"""Autoregressive networks: the values of each feature depend on the features before it alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .conditioners import HIDDEN, Network, OwnNetwork, check_hidden, start_at
from .inputs import Inputs, join

__all__ = ["FeatureByFeature", "MaskedMLP"]


class MaskedMLP(nn.Module):
    """An autoregressive network: P values for each of D features, which depend on the features before it alone.

    The masks are those of Germain et al., "MADE" (2015, arXiv:1502.03509). Between layers of equal width the input is
    added to the output, which the masks allow (Durkan and Nash, 2019, arXiv:1904.05626). All values depend on a
    context.

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
        >>> from mixflow.networks.autoregressive import MaskedMLP
        >>> MaskedMLP(3, 5)(torch.randn(7, 3)).shape
        torch.Size([7, 3, 5])

    """

    def __init__(
        self,
        features: int,
        outputs: int,
        hidden: Sequence[int] = HIDDEN,
        context: int = 0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.features, self.outputs = features, outputs
        self.inputs = Inputs(features + context)
        # A unit of degree n may depend on the first n features. The context has the degree 0. Hidden units of degree 0
        # are useful only if there is a context.
        degrees = torch.cat([torch.arange(1, features + 1), torch.zeros(context, dtype=torch.long)])
        lowest = 0 if context or features == 1 else 1
        self.layers = nn.ModuleList()
        # For each layer and each feature: how many units depend on the features before it alone.
        self._ends: list[list[int]] = []
        for width in check_hidden(hidden):
            own = [lowest + unit * (features - lowest) // width for unit in range(width)]
            self._ends.append([bisect_right(own, feature) for feature in range(features)])
            before, degrees = degrees, torch.tensor(own)
            self.layers.append(_MaskedLinear(before, degrees))
        self.last = _MaskedLinear(degrees, torch.arange(features).repeat_interleave(outputs))
        start_at(self.last, None if start is None else start.repeat(features))

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set the standardisation from the inputs ``x`` (..., D) and ``context`` (..., C)."""
        self.inputs.initialize(join(x, context))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The values (..., D, P) of all features."""
        hidden = self.inputs(join(x, context))
        for number, layer in enumerate(self.layers):
            image = functional.silu(layer(hidden))
            hidden = hidden + image if self._adds_input(number) else image
        return torch.unflatten(self.last(hidden), -1, (self.features, self.outputs))

    def one_by_one(self, like: Tensor, context: Tensor | None = None) -> Callable[[Sequence[Tensor]], Tensor]:
        """A function from the first features, each (...), to the values (..., P) of the next feature.

        Call it with no feature, then with one, and so on. Each unit of the network is computed once, as soon as the
        features that it depends on are there. So D calls take the work of one pass.

        Args:
            like: a tensor of the shape (..., D) of all features.
            context: (..., C); None for a network without a context.
        """
        layers = [*cast("list[_MaskedLinear]", list(self.layers)), self.last]
        weights = [layer.masked() for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers]
        if context is not None:  # its part of the first layer is the same in all calls
            columns = slice(self.features, None)
            biases[0] = functional.linear(self.inputs(context, columns), weights[0][:, columns], biases[0])
        known = [like.new_empty(*like.shape[:-1], 0) for _ in layers]  # the inputs, and the units of each layer

        def units(number: int, begin: int, end: int) -> Tensor:
            """Units of a layer before the activation; the last layer has the number of hidden layers."""
            weight = weights[number][begin:end, : known[number].shape[-1]]
            bias = biases[number][..., begin:end]
            if bias.ndim == 1:
                return functional.linear(known[number], weight, bias)
            return functional.linear(known[number], weight) + bias

        def values(features: Sequence[Tensor]) -> Tensor:
            feature = len(features)
            if feature:
                newest = self.inputs(features[-1].unsqueeze(-1), slice(feature - 1, feature))
                known[0] = torch.cat([known[0], newest], dim=-1)
            for number, ends in enumerate(self._ends):
                begin, end = known[number + 1].shape[-1], ends[feature]
                if begin == end:
                    continue
                image = functional.silu(units(number, begin, end))
                if self._adds_input(number):
                    image = known[number][..., begin:end] + image
                known[number + 1] = torch.cat([known[number + 1], image], dim=-1)
            return units(len(layers) - 1, feature * self.outputs, (feature + 1) * self.outputs)

        return values

    def _adds_input(self, number: int) -> bool:
        """Whether the input of a layer is added to its output."""
        return number > 0 and self._ends[number - 1][-1] == self._ends[number][-1]


class FeatureByFeature(nn.Module):
    """Any network, made autoregressive: P values for each of D features, from the features before it alone.

    The network is called for each feature of each row by itself. Its inputs are D numbers, which are the features
    before this one and 0 in the place of the others; D more numbers, which are 1 at the place of this feature and 0
    elsewhere; and the context. So the result is autoregressive, whatever the network computes. The network gets D times
    as many rows as a masked network.

    Args:
        network: from the numbers of inputs, 2 D + C, and of outputs, P, to a module.
        features: D.
        outputs: P.
        context: C, the size of the context; 0 for none.
        start: the values (P,) of every feature at the start; by default 0.

    Raises:
        TypeError: as :class:`~mixflow.networks.conditioners.OwnNetwork`.
        ValueError: as :class:`~mixflow.networks.conditioners.OwnNetwork`.

    Example:
        >>> import torch
        >>> from mixflow.networks.autoregressive import FeatureByFeature
        >>> FeatureByFeature(torch.nn.Linear, 3, 5)(torch.randn(7, 3)).shape
        torch.Size([7, 3, 5])

    """

    before: Tensor

    def __init__(
        self, network: Network, features: int, outputs: int, context: int = 0, start: Tensor | None = None
    ) -> None:
        super().__init__()
        self.features = features
        self.inputs = Inputs(features + context)
        self.own = OwnNetwork(network, 2 * features + context, outputs, start)
        before = torch.ones(features, features, dtype=torch.bool).tril(-1)
        self.register_buffer("before", before, persistent=False)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set the standardisation from the inputs ``x`` (..., D) and ``context`` (..., C)."""
        self.inputs.initialize(join(x, context))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The values (..., D, P) of all features."""
        return self._values(x, context, slice(None))

    def one_by_one(self, like: Tensor, context: Tensor | None = None) -> Callable[[Sequence[Tensor]], Tensor]:
        """As for :class:`MaskedMLP`: a function from the first features to the values of the next one."""
        unknown = torch.zeros_like(like)

        def values(features: Sequence[Tensor]) -> Tensor:
            count = len(features)
            known = [feature.unsqueeze(-1) for feature in features]
            x = torch.cat([*known, unknown[..., count:]], dim=-1)
            return self._values(x, context, slice(count, count + 1)).squeeze(-2)

        return values

    def _values(self, x: Tensor, context: Tensor | None, wanted: slice) -> Tensor:
        inputs = self.inputs(join(x, context)).unsqueeze(-2)
        before = self.before[wanted]
        place = torch.eye(self.features, dtype=inputs.dtype, device=inputs.device)[wanted]
        known = torch.where(before, inputs[..., : self.features], 0.0)
        rest = inputs[..., self.features :].expand(*known.shape[:-1], -1)
        values: Tensor = self.own(torch.cat([known, place.expand_as(known), rest], dim=-1))
        return values


class _MaskedLinear(nn.Linear):
    """A linear layer in which an output depends on the inputs whose degree is not above its own."""

    mask: Tensor

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        super().__init__(len(inputs), len(outputs))
        # The mask holds numbers and not bools, because torch multiplies tensors of one dtype without a conversion.
        mask = (inputs <= outputs.unsqueeze(-1)).to(self.weight.dtype)
        self.register_buffer("mask", mask, persistent=False)

    def masked(self) -> Tensor:
        """The weights, 0 where an output does not depend on an input."""
        return self.weight * self.mask.to(self.weight.dtype)  # mixflow.load puts in weights of another dtype

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.masked(), self.bias)
