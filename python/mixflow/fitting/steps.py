"""The steps of a training: gradients of a batch, clipped, and an update by AdamW."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..transforms.base import spread
from .captured import Graphs, can_capture
from .checkpoint import Run
from .mixtures import Mixtures
from .optimizer import OneCall
from .parallel import Group
from .parameters import Parameters

__all__ = ["Steps", "own_stream"]


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A new CUDA stream for the block, because a graph cannot be captured on the default stream."""
    if device.type != "cuda":
        yield
        return
    before, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    own.wait_stream(before)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        before.wait_stream(own)


class Steps:
    """Steps of gradient descent on the mean negative log_prob of batches.

    Args:
        run: the flow and its optimizer.
        parameters: those of the flow that are trained.
        group: the processes that share each batch.
        rows: the sum of the weights of all rows.
        max_grad_norm: the norm that gradients are clipped to.
        limited: whether the density has a support, so that rows can lie outside.

    """

    def __init__(
        self, run: Run, parameters: Parameters, group: Group, rows: float, max_grad_norm: float, limited: bool
    ) -> None:
        self.flow, self.group = run.flow, group
        self.optimizer, self.options = OneCall(run.optimizer), run.optimizer.param_groups[0]
        self.max_grad_norm, self.limited = max_grad_norm, limited
        self.gradients = parameters.gradients()
        self.mixtures = Mixtures(parameters, run.start, rows) if parameters.mixtures else None
        device = self.gradients.flat.device
        # Sums would overflow in half precision.
        self.dtype = torch.promote_types(self.gradients.flat.dtype, torch.float32)
        self.minus_part = torch.zeros((), dtype=self.dtype, device=device)  # minus the weight of a row in the loss
        self.run: Any = self._step
        if can_capture(device):
            several = "several processes share each batch" if group.size > 1 else ""
            self.run = Graphs(self._step, why_not=several)

    @property
    def note(self) -> str:
        """A note for the history on how steps are taken; "" without one."""
        return self.run.note if isinstance(self.run, Graphs) else ""

    def take(self, x: Tensor, context: Tensor | None, weight: Tensor | None, total: float, rate: float) -> Tensor:
        """One step on this process's events ``x`` (n, *event) of a batch whose weights sum to ``total``.

        Args:
            x: the events.
            context: their context, (n, ...); None for a flow without a context.
            weight: their weights, (n,); None if all count the same.
            total: the sum of the weights in all processes.
            rate: the learning rate.

        Returns:
            (4,): the loss, which is the batch's mean negative log_prob; the part of its weight outside the support; 1
            if the training is to stop; and the norm of the gradient before clipping.

        """
        self.minus_part.fill_(-1.0 / total if total else 0.0)
        if isinstance(self.options["lr"], Tensor):
            self.options["lr"].fill_(rate)
        else:
            self.options["lr"] = rate
        self.run(x, context, weight)
        return self.gradients.outcome.clone()

    def _step(self, x: Tensor, context: Tensor | None, weight: Tensor | None) -> None:
        """Take the step. All tensors that it reads and writes stay at their places, so that it can be captured."""
        gradients = self.gradients
        gradients.flat.zero_()
        if len(x):
            log_prob, outside = self._log_prob(x, context, weight)
            torch.autograd.backward(log_prob, self.minus_part)
            torch.mul(log_prob.detach(), self.minus_part, out=gradients.loss)
            if outside is not None:
                torch.mul(outside, -self.minus_part, out=gradients.outside)
        if self.mixtures is not None and self.group.rank == 0:
            self.mixtures.add_prior()
        if self.group.interrupted:
            gradients.stop.fill_(1.0)
        self.group.sum_(gradients.flat)
        gradients.clip_(self.max_grad_norm)
        with nullcontext() if self.mixtures is None else self.mixtures.careful():
            self.optimizer.step()

    def _log_prob(self, x: Tensor, context: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weighted sum of log_prob over the rows of this process, and the weight of those outside the support."""
        if weight is not None:  # rows of weight 0 may hold anything
            counts = spread(weight != 0.0, self.flow.event_shape)
            x = torch.where(counts, x, self.flow.data_to_base.inside(x))
        log_prob = self.flow.log_prob(x, context)
        if weight is not None:
            weight = weight.to(self.dtype)
        outside = None
        if self.limited:  # outside, the density is 0 whatever the parameters are
            beyond = ~self.flow.supports(x)
            log_prob = log_prob.masked_fill(beyond, 0.0)
            outside = (beyond if weight is None else beyond * weight).sum(dtype=self.dtype)
        if weight is None:
            return log_prob.sum(dtype=self.dtype), outside
        return (log_prob.to(self.dtype) * weight).sum(), outside
