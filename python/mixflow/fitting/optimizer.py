"""AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), with as little work around a step as can be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .captured import can_capture

__all__ = ["OneCall", "optimizer_for"]


def optimizer_for(parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, which updates all ``parameters`` in one call.

    If steps can be captured as a graph, the learning rate is a tensor: a graph would repeat a number as it was.
    """
    device = parameters[0].device
    if not can_capture(device):
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    rate = torch.tensor(lr, dtype=torch.float32, device=device)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, fused=True, capturable=True)


class OneCall:
    """Steps of AdamW by the single call that does the work; the optimizer holds the state.

    ``Optimizer.step`` collects parameters, gradients and state anew each time. For a few small tensors that takes five
    times as long as the update itself.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        (self._options,) = optimizer.param_groups
        # Parameters, gradients, first and second moments, nothing for the largest second moments, and counts of steps.
        self._tensors: list[list[Tensor]] = []

    def step(self) -> None:
        """As ``Optimizer.step``, which takes the first step and so creates the state."""
        if not self._tensors:
            self._optimizer.step()
            parameters = self._options["params"]
            states = [self._optimizer.state[parameter] for parameter in parameters]
            gradients = [parameter.grad for parameter in parameters]
            moments = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")]
            self._tensors = [parameters, gradients, *moments, [], [state["step"] for state in states]]
            return
        with torch.no_grad():
            torch._foreach_add_(self._tensors[-1], 1)
            torch._fused_adamw_(
                *self._tensors,
                lr=self._options["lr"],
                beta1=self._options["betas"][0],
                beta2=self._options["betas"][1],
                weight_decay=self._options["weight_decay"],
                eps=self._options["eps"],
                amsgrad=False,
                maximize=False,
            )
