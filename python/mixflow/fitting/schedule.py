"""How long a flow is trained, in what steps, where the caller leaves that open."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..flows import Flow, GaussianMixture
from ..networks.inputs import Inputs
from ..transforms import MixtureCDF

__all__ = ["Schedule", "schedule_of"]

_ROWS_TO_DECAY = 10_000
_STEPS_PER_ROW = 4  # at most: of few rows, all is learned soon


@dataclass(frozen=True)
class Schedule:
    """Settings of a training.

    Attributes:
        steps: about so many, over all epochs, however many rows there are.
        least: rows a step at least, as far as there are so many.
        most: rows a step at most, unless one epoch would take more steps than wanted.
        part: the number of steps in an epoch in between.
        lr: the highest learning rate.
        weight_decay: the decoupled weight decay of AdamW, of up to 10,000 rows.

    """

    steps: int
    least: int
    most: int
    lr: float
    weight_decay: float = 0.0
    part: int = 8

    def batch_size_for(self, rows: int) -> int:
        """Rows per step for ``rows`` rows in all.

        Example:
            >>> from mixflow.fitting.schedule import Schedule
            >>> schedule = Schedule(steps=1000, least=256, most=1024, lr=0.01)
            >>> [schedule.batch_size_for(rows) for rows in (100, 1000, 4000, 10**4, 10**7)]
            [100, 256, 500, 1024, 10000]

        """
        return min(rows, max(self.least, min(self.most, rows // self.part), math.ceil(rows / self.steps)))

    def weight_decay_for(self, rows: int) -> float:
        """The weight decay for ``rows`` rows in all: the more there are, the less is left for it to prevent."""
        return self.weight_decay * min(1.0, _ROWS_TO_DECAY / rows)

    def epochs_for(self, rows: int, steps_per_epoch: int) -> int:
        """Passes over ``rows`` rows that take about the wanted steps."""
        return max(1, math.ceil(min(self.steps, _STEPS_PER_ROW * rows) / steps_per_epoch))


def schedule_of(flow: Flow) -> Schedule:
    """The settings that did best on most tables, by the parts that the flow is made of.

    Example:
        >>> from mixflow import flows
        >>> from mixflow.fitting.schedule import schedule_of
        >>> schedule_of(flows.coupling(2)).lr < schedule_of(flows.univariate()).lr
        True

    """
    if isinstance(flow, GaussianMixture) and not flow.context:
        return Schedule(steps=30, least=256, most=4096, lr=0.002)  # it starts where expectation-maximisation ends
    if any(isinstance(module, Inputs) for module in flow.modules()):
        return Schedule(steps=2400, least=256, most=1024, lr=0.003, weight_decay=0.03)
    if sum(isinstance(module, MixtureCDF) for module in flow.modules()) > 1:
        return Schedule(steps=1800, least=256, most=4096, lr=0.02, part=4)
    return Schedule(steps=1500, least=64, most=4096, lr=0.02)
