"""The record of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

__all__ = ["History"]

_CURVES = ("train_log_prob", "validation_log_prob", "lr", "seconds")


@dataclass
class History:
    """The record of a training by :func:`mixflow.fit`, epoch by epoch, with notes on the data.

    Attributes:
        train_log_prob: mean log_prob of the epoch's minibatches, in nats, while they were being learned from.
        validation_log_prob: mean log_prob of the held-out rows after the epoch; empty without held-out rows.
        lr: the learning rate at the start of the epoch.
        seconds: the time the epoch took.
        interrupted: whether Ctrl-C ended the training.
        starts: mean log_prob of the held-out rows before the training, in nats, by name: of the weights that the
            training started from ("the start") and of plain densities of the data ("one Gaussian").
        kept: the weights that the flow has now: the index of an epoch, from 0, or one of the names in ``starts``. With
            None, they are those of the epoch with the largest log_prob.
        notes: what ``fit`` found in the data and what it did about that, in a sentence or two each. ``print(history)``
            shows them.

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
    starts: dict[str, float] = field(default_factory=dict)
    kept: int | str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def monitored(self) -> list[float]:
        """The curve that early stopping watches: validation, or training without held-out rows."""
        return self.validation_log_prob or self.train_log_prob

    @property
    def best_epoch(self) -> int | None:
        """Index, from 0, of the epoch whose weights were kept; None if no epoch's were."""
        if self.kept is not None:
            return self.kept if isinstance(self.kept, int) else None
        return self.highest_epoch

    @property
    def highest_epoch(self) -> int | None:
        """Index, from 0, of the epoch with the largest log_prob on the monitored curve; None before the first."""
        return int(np.argmax(self.monitored)) if self.monitored else None

    def to_dict(self) -> dict[str, Any]:
        """The record as plain lists and values, which JSON can hold."""
        return asdict(self)

    def interrupt(self) -> None:
        """Record that Ctrl-C ended the training, and drop the entries of an epoch that is only half recorded."""
        self.interrupted = True
        for curve in (self.validation_log_prob, self.train_log_prob, self.lr):
            del curve[len(self.seconds) :]
        if isinstance(self.kept, int) and self.kept >= len(self.seconds):
            self.kept = None

    def end(self, note: str) -> None:
        """Record why a training ended early, and drop the entries of an epoch that is only half recorded."""
        self.interrupt()
        self.interrupted = False
        self.notes.append(note)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """Undo :meth:`to_dict`, also of an earlier version; ValueError if ``values`` is not of that form."""
        known = {f.name for f in fields(cls)}
        if not (
            isinstance(values, dict)
            and {*_CURVES, "interrupted"} <= set(values) <= known
            and isinstance(values["interrupted"], bool)
            and all(isinstance(values[name], list) for name in _CURVES)
            and all(isinstance(value, (int, float)) for name in _CURVES for value in values[name])
            and len({len(values[name]) for name in _CURVES if name != "validation_log_prob" or values[name]}) <= 1
            and _is_map_of_numbers(values.get("starts", {}))
            and isinstance(values.get("kept"), (int, str, type(None)))
            and isinstance(values.get("notes", []), list)
            and all(isinstance(note, str) for note in values.get("notes", []))
        ):
            raise ValueError("history: expected the dictionary that History.to_dict returns, got another value")
        return cls(**values)

    def __str__(self) -> str:
        """One line on the training, and the notes."""
        return "\n".join([repr(self), *(f"- {note}" for note in self.notes)])

    def __repr__(self) -> str:
        ended = ", interrupted" if self.interrupted else ""
        if isinstance(self.kept, str):
            scored = f", validation {self.starts[self.kept]:.4f} nats" if self.kept in self.starts else ""
            return f"History({len(self.lr)} epochs in {sum(self.seconds):.1f} s{ended}, kept {self.kept}{scored})"
        best = self.best_epoch
        if best is None:
            return f"History(0 epochs{ended})"
        curves = [f"train {self.train_log_prob[best]:.4f}"]
        if self.validation_log_prob:
            curves.append(f"validation {self.validation_log_prob[best]:.4f}")
        return (
            f"History({len(self.lr)} epochs in {sum(self.seconds):.1f} s{ended}, "
            f"best at epoch {best + 1}: {', '.join(curves)} nats)"
        )


def _is_map_of_numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(name, str) and isinstance(value, (int, float)) for name, value in values.items()
    )
