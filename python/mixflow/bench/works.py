"""The four pieces of work that are measured, written once for mixflow and for its rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mixflow

from . import verify
from .baselines import BASE_OF, Parameters
from .inputs import Inputs, Settings, make_inputs, to_base

__all__ = ["FORWARD", "FORWARD_BACKWARD", "INVERSE", "INVERSE_BACKWARD", "WORKS", "Call", "Formula", "Work"]

# (x, parameters, family) -> (z, ladj), or the same of an inverse
Formula = Callable[[Tensor, Parameters, str], Sequence[Any]]
Call = Callable[[Inputs], Sequence[Any]]


@dataclass(frozen=True)
class Work:
    """Forward or inverse, each with its log-derivative, and with or without the gradients of everything."""

    name: str
    inverse: bool = False
    backward: bool = False

    def call(self, formula: Formula, family: str) -> Call:
        """Do this work by ``formula``: returns its two results, or the gradients of x and the three parameters."""
        if not self.backward:
            return lambda i: formula(i.x, i.parameters, family)
        return lambda i: torch.autograd.grad(formula(i.x, i.parameters, family), i.leaves, i.seeds)

    def formula(self, x: Tensor, parameters: Parameters, family: str) -> Sequence[Tensor]:
        """Mixflow's own."""
        op = mixflow.cdf_transform_inverse if self.inverse else mixflow.cdf_transform
        return op(x, *parameters, family=family, base=BASE_OF[family])

    def own(self, family: str) -> Call:
        """Do this work by mixflow."""
        return self.call(self.formula, family)

    def inputs(
        self, settings: Settings, n: int, components: int, family: str, layout: str, *, equal_weights: bool = False
    ) -> list[Inputs]:
        """Inputs of ``n`` elements for this work, as :func:`mixflow.bench.inputs.make_inputs` draws them."""
        drawn = make_inputs(settings, n, components, layout, gradients=self.backward, equal_weights=equal_weights)
        return [to_base(i, family) for i in drawn] if self.inverse else drawn

    def bytes_moved(self, inputs: Inputs) -> int:
        """The least that a call reads and writes: arguments and seeds, and two results or the gradients, once each."""
        arguments = sum(t.nbytes for t in inputs.leaves)
        written = arguments if self.backward else 2 * inputs.x.nbytes
        return arguments + sum(s.nbytes for s in inputs.seeds) + written

    def check(self, name: str, inputs: Inputs, family: str) -> None:
        """Check what mixflow makes of ``inputs``; raises :class:`mixflow.bench.verify.WrongResult`."""
        results = self.formula(inputs.x, inputs.parameters, family)
        verify.check_values(name, inputs, results, family, inverse=self.inverse)
        if self.backward:
            grads = self.own(family)(inputs)
            verify.check_gradients(name, inputs, results, grads, family, inverse=self.inverse)


FORWARD = Work("forward + ladj")
FORWARD_BACKWARD = Work("forward + backward", backward=True)
INVERSE = Work("inverse + ladj", inverse=True)
INVERSE_BACKWARD = Work("inverse + backward", inverse=True, backward=True)
WORKS = {w.name: w for w in (FORWARD, FORWARD_BACKWARD, INVERSE, INVERSE_BACKWARD)}
