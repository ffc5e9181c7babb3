"""The record of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

__all__ = ["History"]


@dataclass
class History:
    """What happened during :func:`mixflow.fit`, epoch by epoch.

    Attributes:
        train_log_prob: mean log_prob of the epoch's minibatches, in nats, while they were being learned from.
        validation_log_prob: mean log_prob of the held-out rows after the epoch; empty without held-out rows.
        lr: the learning rate at the start of the epoch.
        seconds: the time the epoch took.
        interrupted: whether Ctrl-C ended the training.

    Example:
        >>> from mixflow import History
        >>> History([-1.5, -1.2], [-1.6, -1.4], [0.02, 0.01], [0.5, 0.5])
        History(2 epochs in 1.0 s, best at epoch 2: train -1.2000, validation -1.4000 nats)

    """

    train_log_prob: list[float] = field(default_factory=list)
    validation_log_prob: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    interrupted: bool = False

    @property
    def monitored(self) -> list[float]:
        """The curve that early stopping watches: validation, or training without held-out rows."""
        return self.validation_log_prob or self.train_log_prob

    @property
    def best_epoch(self) -> int | None:
        """Index, from 0, of the epoch whose weights were kept; None before the first."""
        return int(np.argmax(self.monitored)) if self.monitored else None

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and values, fit for JSON."""
        return asdict(self)

    def interrupt(self) -> None:
        """Record that Ctrl-C ended the training, and drop what it left of an epoch half recorded."""
        self.interrupted = True
        for curve in (self.validation_log_prob, self.train_log_prob, self.lr):
            del curve[len(self.seconds) :]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """Undo :meth:`to_dict`; ValueError if ``values`` is not of that form."""
        curves = [f.name for f in fields(cls) if f.name != "interrupted"]
        if (
            not isinstance(values, dict)
            or set(values) != {f.name for f in fields(cls)}
            or not isinstance(values["interrupted"], bool)
            or not all(isinstance(values[name], list) for name in curves)
            or not all(isinstance(value, (int, float)) for name in curves for value in values[name])
            or len({len(values[name]) for name in curves if name != "validation_log_prob" or values[name]}) > 1
        ):
            raise ValueError("history: expected the dictionary that History.to_dict returns")
        return cls(**values)

    def __repr__(self) -> str:
        best = self.best_epoch
        if best is None:
            return "History(0 epochs)"
        curves = [f"train {self.train_log_prob[best]:.4f}"]
        if self.validation_log_prob:
            curves.append(f"validation {self.validation_log_prob[best]:.4f}")
        ended = ", interrupted" if self.interrupted else ""
        return (
            f"History({len(self.lr)} epochs in {sum(self.seconds):.1f} s{ended}, "
            f"best at epoch {best + 1}: {', '.join(curves)} nats)"
        )
