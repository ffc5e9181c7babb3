"""Networks whose outputs are the parameters of a transform: a multilayer perceptron, or the caller's own network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..checks import check_integer
from .inputs import Inputs, Standardised

__all__ = [
    "HIDDEN",
    "MLP",
    "Network",
    "OwnNetwork",
    "check_hidden",
    "conditioner",
    "context_network",
    "require_no_hidden",
    "start_at",
]

Network: TypeAlias = Callable[[int, int], nn.Module]
"""From the numbers of inputs and of outputs to a module ``(N, inputs) -> (N, outputs)``."""

HIDDEN = (64, 64)


class MLP(Standardised):
    """A multilayer perceptron ``(..., inputs) -> (..., outputs)`` with SiLU activations.

    The last layer starts as a constant. So a transform starts independent of the inputs, and learns what they change.
    SiLU is smooth, so second derivatives exist everywhere.

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
        start_at(last, start)
        super().__init__(*layers, last)


class OwnNetwork(nn.Module):
    """The caller's own network: ``start + gain * network(x)``, with a gain that is learned and starts at 0.

    So a transform starts as with :class:`MLP`, whatever the network returns at first.

    Args:
        network: from the numbers of inputs and outputs to a module.
        inputs: the size of the last dimension of what the module takes, (N, inputs).
        outputs: the size of the last dimension of what it must return, (N, outputs).
        start: the outputs (outputs,) at the start; by default 0.

    Raises:
        TypeError: ``network`` cannot be called, or does not return a module.
        ValueError: a call raises it if the module returns another shape.

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
                "network: expected a function of the numbers of inputs and outputs that returns a torch.nn.Module, "
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
        """The outputs (..., outputs) for ``x`` (..., inputs); the network gets them as (N, inputs)."""
        outputs = len(self.gain)
        rows = self.network(x.reshape(-1, x.shape[-1]))
        if not isinstance(rows, Tensor) or rows.shape != (x[..., 0].numel(), outputs):
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(
                f"network: expected a module that maps (N, {x.shape[-1]}) to (N, {outputs}), "
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
    """The network for a context of this size: the caller's ``network``, or an MLP. None without a context.

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
        raise ValueError("network: expected None for a transform without a context, got a network")
    return None


def require_no_hidden(hidden: Sequence[int] | None) -> None:
    """ValueError if widths of hidden layers are given: the caller has passed a network as well."""
    if hidden is not None:
        raise ValueError(f"hidden: expected None beside network, which has layers of its own, got {hidden!r}")


def check_hidden(hidden: Sequence[int]) -> list[int]:
    """The widths of the hidden layers as a list; ValueError if one is not a positive integer."""
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise ValueError(f"hidden: expected a sequence of widths, got {hidden!r}")
    return [check_integer("hidden", width, 1) for width in hidden]


def start_at(last: nn.Linear, start: Tensor | None) -> None:
    """Let the layer return ``start`` (outputs,) whatever its inputs are; by default 0."""
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.zeros_like(last.bias) if start is None else start)
