"""Checkpoints: one safetensors file with all that the next epoch of a training depends on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..files import tensor_file
from ..files.atomic import PathLike
from ..files.tensor_file import Contents
from ..flows import Flow
from .history import History

__all__ = ["Contents", "Run", "read_file", "weights"]

FORMAT = "mixflow checkpoint 6"
_SHOWN = 60  # characters of a difference that a message shows
_PARTS = ("weights", "start", "best")  # sets of the flow's weights


def weights(flow: Flow) -> dict[str, Tensor]:
    """A copy of the flow's parameters and buffers."""
    return {name: value.detach().clone() for name, value in flow.state_dict().items()}


@dataclass
class Run:
    """Everything that the next epoch depends on.

    Attributes:
        flow: the flow being trained.
        optimizer: its optimizer.
        history: the record so far.
        start: the weights that the training started from.
        best: the best weights so far.
        settings: values that must be the same in a checkpoint for the run to go on from it.

    """

    flow: Flow
    optimizer: torch.optim.Optimizer
    history: History
    start: dict[str, Tensor]
    best: dict[str, Tensor]
    settings: dict[str, Any]

    def write(self, path: PathLike) -> None:
        """Write the run to ``path``. The file appears whole or not at all."""
        tensors = {f"weights.{name}": value for name, value in weights(self.flow).items()}
        tensors |= {f"start.{name}": value for name, value in self.start.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        metadata = {
            "format": FORMAT,
            "settings": json.dumps(self.settings),
            "history": json.dumps(self.history.to_dict()),
        }
        tensor_file.write(path, metadata, tensors)

    def check(self, path: PathLike, contents: Contents) -> None:
        """ValueError if ``contents``, which :func:`read_file` found in ``path``, are not a checkpoint of this run."""
        metadata, tensors = contents
        if metadata.get("format") != FORMAT:
            raise ValueError(f"checkpoint: {path} is not a mixflow checkpoint of this version")
        if not tensor_file.is_intact(contents):
            raise ValueError(f"checkpoint: {path} is damaged, its contents do not match its checksum")
        try:
            written, _ = dict(json.loads(metadata["settings"])), _history(metadata)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"checkpoint: {path} is damaged, its settings or history cannot be read") from error
        for name, value in self.settings.items():
            if written.get(name) != value:
                theirs, ours = _where_they_differ(str(written.get(name)), str(value))
                raise ValueError(f"checkpoint: {path} is of a run with {name} = {theirs}, this run has {name} = {ours}")
        own = weights(self.flow)
        shapes = {f"{part}.{name}": value.shape for part in _PARTS for name, value in own.items()}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(parameters):  # Adam's two moments and its count of steps
            prefix, shape = f"optimizer.{index}", parameter.shape
            shapes |= {f"{prefix}.step": torch.Size(), f"{prefix}.exp_avg": shape, f"{prefix}.exp_avg_sq": shape}
        found = {name: value.shape for name, value in tensors.items()}
        for name in sorted(shapes.keys() | found.keys()):
            if shapes.get(name) != found.get(name):
                expected, got = (tuple(of[name]) if name in of else "none" for of in (shapes, found))
                raise ValueError(f"checkpoint: {path} is of another flow: {name}: expected shape {expected}, got {got}")

    def restore(self, contents: Contents) -> None:
        """Go on from a checkpoint that has passed :meth:`check`."""
        metadata, tensors = contents
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in (*_PARTS, "optimizer")}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        state = self.optimizer.state_dict()
        for name, value in parts["optimizer"].items():
            index, _, key = name.partition(".")
            state["state"].setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(state)
        self.start, self.best, self.history = parts["start"], parts["best"], _history(metadata)
        self.flow.load_state_dict(parts["weights"])


def read_file(path: PathLike) -> Contents:
    """The metadata and the tensors of a safetensors file, for :class:`Run`; ValueError if it is none."""
    try:
        return tensor_file.read(path)
    except ValueError as error:
        raise ValueError(f"checkpoint: {path} is damaged or not a checkpoint ({error})") from error


def _history(metadata: dict[str, str]) -> History:
    return History.from_dict(json.loads(metadata["history"]))


def _where_they_differ(first: str, second: str) -> tuple[str, str]:
    """Two texts. Long ones, such as descriptions of flows, are cut to the place where they begin to differ."""
    if max(len(first), len(second)) <= 2 * _SHOWN:
        return first, second
    pairs = enumerate(zip(first, second, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
    start = first.rfind(" ", 0, same) + 1
    before = "... " if start else ""
    shown = [
        f"{before}{text[start : start + _SHOWN]}{' ...' * (len(text) > start + _SHOWN)}" for text in (first, second)
    ]
    return shown[0], shown[1]
