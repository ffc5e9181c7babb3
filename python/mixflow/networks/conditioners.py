"""Networks that turn features and a context into the parameters of a transform."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checks import check_integer
from ..precise import KeepsPrecision
from ..start.robust import moments

__all__ = ["MLP", "FeatureByFeature", "Inputs", "MaskedMLP", "Network", "OwnNetwork", "Standardised", "conditioner"]

Network: TypeAlias = Callable[[int, int], nn.Module]
"""From the numbers of inputs and of outputs to a module ``(N, inputs) -> (N, outputs)``."""

HIDDEN = (64, 64)


class Inputs(KeepsPrecision):
    """Standardised, bounded inputs of a network: ``8 tanh((x - loc) / (8 scale))``.

    Close to ``(x - loc) / scale`` over the bulk of the data; an outlier, however far, then drives the parameters of a
    transform no further than to a constant, where an unbounded input would overflow their exponentials.

    Args:
        size: the number of inputs.

    Example:
        >>> import torch
        >>> from mixflow.networks.conditioners import Inputs
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
        """Set loc and scale from the bulk of ``x`` (..., size), by ``start.robust``; a constant keeps its scale."""
        with torch.no_grad():
            loc, spread = moments(x.reshape(-1, x.shape[-1]))
            self._set_loc(loc)
            self.scale.copy_(torch.where(spread > 0.0, spread, 1.0))

    def forward(self, x: Tensor, columns: slice = slice(None)) -> Tensor:
        """The inputs (..., size), of any floating-point dtype, as the network sees them: in the dtype of ``scale``.

        With ``columns``, ``x`` is these columns of the inputs alone.
        """
        centred = x - self.loc[columns]
        return 8.0 * torch.tanh((centred / (8.0 * self.scale[columns])).to(self.scale.dtype))


class Standardised(nn.Sequential):
    """A network behind its :class:`Inputs`, which are its first module."""

    def initialize(self, x: Tensor) -> None:
        """Standardise the inputs as those of ``x`` (..., inputs)."""
        first = self[0]
        assert isinstance(first, Inputs)
        first.initialize(x)


class MLP(Standardised):
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
        >>> from mixflow.networks.conditioners import MLP
        >>> MLP(3, 5)(torch.randn(7, 3)).shape
        torch.Size([7, 5])

    """

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int] = HIDDEN, start: Tensor | None = None) -> None:
        layers: list[nn.Module] = [Inputs(inputs)]
        for width in check_hidden(hidden):
            layers += [nn.Linear(inputs, width), nn.SiLU()]
            inputs = width
        last = nn.Linear(inputs, outputs)
        _start_at(last, start)
        super().__init__(*layers, last)


class OwnNetwork(nn.Module):
    """A network of the caller's: ``start + gain * network(x)``, the gain learned from 0 on.

    So a transform starts as it does with :class:`MLP`, whatever the network returns at first.

    Args:
        network: from the numbers of inputs and outputs to a module.
        inputs: the size of the last dimension of what the module takes, (N, inputs).
        outputs: the size of the last dimension of what it must return, (N, outputs).
        start: the outputs (outputs,) at the start; by default 0.

    Raises:
        TypeError: ``network`` cannot be called, or does not return a module.
        ValueError: a call raises it where the module returns another shape.

    Example:
        >>> import torch
        >>> from mixflow.networks.conditioners import OwnNetwork
        >>> OwnNetwork(torch.nn.Linear, 3, 5)(torch.randn(7, 3)).shape
        torch.Size([7, 5])

    """

    start: Tensor

    def __init__(self, network: Network, inputs: int, outputs: int, start: Tensor | None = None) -> None:
        super().__init__()
        if not callable(network) or isinstance(network, nn.Module):
            raise TypeError(
                "network: expected a function of the numbers of inputs and outputs that returns a torch.nn.Module; "
                f"got {type(network).__name__}"
            )
        self.network = network(inputs, outputs)
        if not isinstance(self.network, nn.Module):
            raise TypeError(
                f"network: expected a function that returns a torch.nn.Module, got {type(self.network).__name__}"
            )
        self.gain = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("start", torch.zeros(outputs) if start is None else start, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (..., outputs) for ``x`` (..., inputs), which the network sees as (N, inputs)."""
        outputs = len(self.gain)
        rows = self.network(x.reshape(-1, x.shape[-1]))
        if not isinstance(rows, Tensor) or rows.shape != (x[..., 0].numel(), outputs):
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(
                f"network: expected a module that maps (N, {x.shape[-1]}) to (N, {outputs}); "
                f"got {got} for N = {x[..., 0].numel()}"
            )
        return (self.start + self.gain * rows).reshape(*x.shape[:-1], outputs)


def conditioner(
    inputs: int,
    outputs: int,
    hidden: Sequence[int] | None = None,
    start: Tensor | None = None,
    network: Network | None = None,
) -> Standardised:
    """An :class:`MLP` with these ``hidden`` layers, or the caller's own ``network`` in its place.

    Raises:
        ValueError: both are given, or a width is out of range.

    Example:
        >>> import torch
        >>> from mixflow.networks.conditioners import conditioner
        >>> conditioner(3, 5, network=torch.nn.Linear)(torch.randn(7, 3)).shape
        torch.Size([7, 5])

    """
    if network is None:
        return MLP(inputs, outputs, HIDDEN if hidden is None else hidden, start)
    require_no_hidden(hidden)
    return Standardised(Inputs(inputs), OwnNetwork(network, inputs, outputs, start))


def context_network(context: int, outputs: int, network: Network | None = None) -> Standardised | None:
    """The network of a context of this size, the caller's own if there is one; None without a context.

    Raises:
        ValueError: there is a network, and no context.

    Example:
        >>> from mixflow.networks.conditioners import context_network
        >>> context_network(0, 5) is None
        True

    """
    if context:
        return conditioner(context, outputs, network=network)
    if network is not None:
        raise ValueError("network: expected None without a context, of which it would be; got a network")
    return None


def require_no_hidden(hidden: Sequence[int] | None) -> None:
    """ValueError where widths of hidden layers are given beside a network of the caller's."""
    if hidden is not None:
        raise ValueError(f"hidden: expected None beside network, which decides on its own layers; got {hidden!r}")


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
        >>> from mixflow.networks.conditioners import MaskedMLP
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
        # The degree of a unit is the number of features, counted from the first, that it may depend on. The context's
        # is 0; hidden units of degree 0 are of use only where there is a context to depend on.
        degrees = torch.cat([torch.arange(1, features + 1), torch.zeros(context, dtype=torch.long)])
        lowest = 0 if context or features == 1 else 1
        self.layers = nn.ModuleList()
        # Of each layer, for each feature: how many units may be known when it is to be computed.
        self._ends: list[list[int]] = []
        for width in check_hidden(hidden):
            own = [lowest + unit * (features - lowest) // width for unit in range(width)]
            self._ends.append([bisect_right(own, feature) for feature in range(features)])
            before, degrees = degrees, torch.tensor(own)
            self.layers.append(_MaskedLinear(before, degrees))
        self.last = _MaskedLinear(degrees, torch.arange(features).repeat_interleave(outputs))
        _start_at(self.last, None if start is None else start.repeat(features))

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Standardise the inputs as those of ``x`` (..., D) and ``context`` (..., C)."""
        self.inputs.initialize(join(x, context))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The values (..., D, P) of all features."""
        hidden = self.inputs(join(x, context))
        for number, layer in enumerate(self.layers):
            image = functional.silu(layer(hidden))
            hidden = hidden + image if self._adds_input(number) else image
        return torch.unflatten(self.last(hidden), -1, (self.features, self.outputs))

    def one_by_one(self, like: Tensor, context: Tensor | None = None) -> Callable[[Sequence[Tensor]], Tensor]:
        """A function from the features known so far, each (...), to the values (..., P) of the next one.

        It is to be called with no feature, then with one, and so on. A unit of the network is computed once, in the
        call in which all that it depends on is first known: D calls take the work of one pass.

        Args:
            like: of the shape (..., D) of all features.
            context: (..., C); None for a network without.
        """
        layers = [*cast("list[_MaskedLinear]", list(self.layers)), self.last]
        weights = [layer.masked() for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers]
        if context is not None:  # whose part of the first layer is the same for all calls
            columns = slice(self.features, None)
            biases[0] = functional.linear(self.inputs(context, columns), weights[0][:, columns], biases[0])
        known = [like.new_empty(*like.shape[:-1], 0) for _ in layers]  # the inputs, and the units of each layer

        def units(number: int, begin: int, end: int) -> Tensor:
            """Those of a layer, or of the last one, before the activation."""
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
    """Any network as an autoregressive one: P values for each of D features, from the features before it alone.

    The network is called for each feature of each row by itself. It is given D numbers, the features before this one
    and 0 in the place of the others; D more, of which the one at this feature's place is 1 and the others are 0; and
    the context. Whatever it computes of them, the result is autoregressive. It takes D times the rows of a masked
    network.

    Args:
        network: from the numbers of inputs, 2 D + C, and of outputs, P, to a module.
        features: D.
        outputs: P.
        context: C, the size of the context; 0 for none.
        start: the values (P,) of every feature at the start; by default 0.

    Raises:
        TypeError: as :class:`OwnNetwork`.
        ValueError: as :class:`OwnNetwork`.

    Example:
        >>> import torch
        >>> from mixflow.networks.conditioners import FeatureByFeature
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
        """Standardise the inputs as those of ``x`` (..., D) and ``context`` (..., C)."""
        self.inputs.initialize(join(x, context))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The values (..., D, P) of all features."""
        return self._values(x, context, slice(None))

    def one_by_one(self, like: Tensor, context: Tensor | None = None) -> Callable[[Sequence[Tensor]], Tensor]:
        """As that of :class:`MaskedMLP`: a function from the features known so far to the values of the next one."""
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
    """A linear layer in which an output sees the inputs whose degree is not above its own."""

    mask: Tensor

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        super().__init__(len(inputs), len(outputs))
        # As numbers, not bool: torch multiplies tensors of one dtype without a conversion.
        mask = (inputs <= outputs.unsqueeze(-1)).to(self.weight.dtype)
        self.register_buffer("mask", mask, persistent=False)

    def masked(self) -> Tensor:
        """The weights, 0 where an output does not see an input."""
        return self.weight * self.mask.to(self.weight.dtype)  # mixflow.load puts in weights of another dtype

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.masked(), self.bias)


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
