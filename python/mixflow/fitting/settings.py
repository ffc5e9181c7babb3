"""The settings of a training: which values are allowed, and what stands for those that the caller leaves open."""

from __future__ import annotations

import math
import numbers
import os
from typing import Any

import numpy as np
import torch

from ..checks import check_integer, check_seed
from ..flows import Flow, like
from .schedule import schedule_of
from .sources import Subset
from .split import Split

__all__ = ["check_device", "check_resolution", "check_settings", "check_trainable", "open_settings"]


def check_settings(
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    weight_decay: float | None,
    max_grad_norm: float,
    patience: int | None,
    seed: int,
) -> dict[str, Any]:
    """The settings as plain values that JSON can hold, None for those that the caller leaves open."""

    def integer(name: str, value: int | None) -> int | None:
        return None if value is None else check_integer(name, value, 1)

    return {
        "epochs": integer("epochs", epochs),
        "batch_size": integer("batch_size", batch_size),
        "lr": None if lr is None else _check_positive("lr", lr),
        "weight_decay": weight_decay if weight_decay in (None, 0) else _check_positive("weight_decay", weight_decay),
        "max_grad_norm": math.inf if max_grad_norm == math.inf else _check_positive("max_grad_norm", max_grad_norm),
        "patience": integer("patience", patience),
        "seed": check_seed(seed),
    }


def open_settings(flow: Flow, split: Split, given: dict[str, Any]) -> dict[str, Any]:
    """Values for the settings that the caller left open, by the kind of flow and the number of rows."""
    schedule, train = schedule_of(flow), split.train
    decay = schedule.weight_decay
    if isinstance(train, Subset):
        rows = len(train)
        size = given["batch_size"] or schedule.batch_size_for(rows)
        epochs = given["epochs"] or schedule.epochs_for(rows, train.steps(size))
        decay = schedule.weight_decay_for(rows)
    elif given["batch_size"] is not None:
        raise ValueError(f"batch_size: expected None, as data are batches, got {given['batch_size']!r}")
    else:
        size, steps = None, train.steps(0)
        epochs = given["epochs"] or max(1, math.ceil(schedule.steps / (steps or 100)))
    return {
        "lr": given["lr"] or schedule.lr,
        "weight_decay": decay if given["weight_decay"] is None else given["weight_decay"],
        "batch_size": size,
        "epochs": epochs,
        "patience": given["patience"] or epochs,
    }


def check_resolution(resolution: Any, features: int) -> str | list[float] | None:
    """The width of each column's intervals, "auto", or None; ValueError for a width that is negative or not finite."""
    if resolution is None:
        return None
    if isinstance(resolution, str) and resolution == "auto":
        return "auto"
    try:
        widths = np.asarray(resolution, dtype=np.float64)
    except (TypeError, ValueError):
        widths = np.asarray(math.nan)
    if widths.shape not in ((), (features,)) or not (np.isfinite(widths) & (widths >= 0.0)).all():
        expected = "a number" if features == 1 else f"a number or {features} numbers"
        raise ValueError(f'resolution: expected None, "auto", or {expected} of at least 0, got {resolution!r}')
    return [float(width) for width in np.broadcast_to(widths, (features,))]


def _check_positive(name: str, value: float) -> float:
    if not (isinstance(value, numbers.Real) and 0.0 < value < math.inf):
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
    return float(value)


def check_trainable(flow: Flow) -> None:
    """ValueError unless ``flow`` has trainable parameters, all of one dtype and on one device."""
    kinds = {(parameter.dtype, parameter.device) for parameter in flow.parameters() if parameter.requires_grad}
    if not kinds:
        raise ValueError("flow: expected one with trainable parameters, got none that requires a gradient")
    if len(kinds) > 1:
        named = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(f"flow: expected parameters of one dtype on one device, got {named}")


def check_device(device: torch.device | str | int | None, flow: Flow) -> torch.device:
    """The device to train on, by default the flow's own; ValueError for one that torch cannot use here."""
    if device is None:
        return like(flow).device
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: expected one that torch can use here, got {str(device)!r} ({reason})") from error
    return chosen
