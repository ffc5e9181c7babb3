"""Default settings of a training: the number of steps, their size and the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..flows import Flow, GaussianMixture
from ..networks.inputs import Inputs
from ..transforms import MixtureCDF

__all__ = ["Schedule", "schedule_of"]

_ROWS_TO_DECAY = 10_000
_STEPS_PER_ROW = 4  # at most: few rows are learned in few steps


@dataclass(frozen=True)
class Schedule:
    """Settings of a training.

    Attributes:
        steps: the approximate number of steps over all epochs, for any number of rows.
        least: the least rows of a step, if there are so many.
        most: the most rows of a step, unless one epoch would then take more than ``steps``.
        part: the number of steps in an epoch, if rows for each step then lie between ``least`` and ``most``.
        lr: the highest learning rate.
        weight_decay: the decoupled weight decay of AdamW for up to 10,000 rows.

    """

    steps: int
    least: int
    most: int
    lr: float
    weight_decay: float = 0.0
    part: int = 8

    def batch_size_for(self, rows: int) -> int:
        """The number of rows of a step, for ``rows`` rows in all.

        Example:
            >>> from mixflow.fitting.schedule import Schedule
            >>> schedule = Schedule(steps=1000, least=256, most=1024, lr=0.01)
            >>> [schedule.batch_size_for(rows) for rows in (100, 1000, 4000, 10**4, 10**7)]
            [100, 256, 500, 1024, 10000]

        """
        return min(rows, max(self.least, min(self.most, rows // self.part), math.ceil(rows / self.steps)))

    def weight_decay_for(self, rows: int) -> float:
        """The weight decay for ``rows`` rows in all. It prevents overfitting, and more rows need less of it."""
        return self.weight_decay * min(1.0, _ROWS_TO_DECAY / rows)

    def epochs_for(self, rows: int, steps_per_epoch: int) -> int:
        """The number of passes over ``rows`` rows that take about the wanted number of steps."""
        return max(1, math.ceil(min(self.steps, _STEPS_PER_ROW * rows) / steps_per_epoch))


def schedule_of(flow: Flow) -> Schedule:
    """The settings that did best on most tables, for the kind of parts that the flow consists of.

    Example:
        >>> from mixflow import flows
        >>> from mixflow.fitting.schedule import schedule_of
        >>> schedule_of(flows.coupling(2)).lr < schedule_of(flows.univariate()).lr
        True

    """
    if isinstance(flow, GaussianMixture) and not flow.context:
        return Schedule(steps=30, least=256, most=4096, lr=0.002)  # it starts where expectation maximisation ends
    if any(isinstance(module, Inputs) for module in flow.modules()):
        return Schedule(steps=2400, least=256, most=1024, lr=0.003, weight_decay=0.03)
    if sum(isinstance(module, MixtureCDF) for module in flow.modules()) > 1:
        return Schedule(steps=1800, least=256, most=4096, lr=0.02, part=4)
    return Schedule(steps=1500, least=64, most=4096, lr=0.02)
