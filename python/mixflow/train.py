"""Fitting flows by maximum likelihood."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from tqdm import tqdm

from .checks import check_integer, check_seed
from .files import PathLike, check_writable, replace_file
from .flows import Flow, like

__all__ = ["History", "fit"]


@dataclass
class History:
    """What happened during :func:`fit`, epoch by epoch.

    Attributes:
        train_log_prob: mean log_prob of the epoch's minibatches, in nats, while they were being learned from.
        validation_log_prob: mean log_prob of the held-out rows after the epoch; empty without held-out rows.
        lr: the learning rate.
        seconds: the time the epoch took.
        interrupted: whether Ctrl-C ended the training.

    Example:
        >>> from mixflow.train import History
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


def fit(
    flow: Flow,
    data: Tensor | ArrayLike,
    *,
    context: Tensor | ArrayLike | None = None,
    validation: float = 0.1,
    epochs: int = 200,
    batch_size: int | None = None,
    lr: float = 0.02,
    patience: int = 30,
    seed: int = 0,
    progress: bool = True,
    checkpoint: PathLike | None = None,
    resume: bool = False,
) -> History:
    """Fit ``flow`` to ``data`` by maximum likelihood and leave it with the best weights seen.

    The transforms are first initialised from the training rows; then Adam (Kingma and Ba, 2015,
    arXiv:1412.6980) minimises the mean negative log_prob of minibatches, with gradients clipped to norm 10
    and a learning rate that falls to zero along a half cosine (Loshchilov and Hutter, 2017,
    arXiv:1608.03983). After each epoch the held-out rows are scored; the best epoch's weights are kept, and
    ``patience`` epochs without a better one end the training.

    Args:
        flow: the flow to fit, in place.
        data: (N, D), or (N,) for one feature; any real numbers, converted to the flow's dtype and device.
        context: (N, C), for a flow that takes a context.
        validation: fraction of the rows held out, chosen at random; with 0 the training curve itself is
            watched.
        epochs: passes over the training rows at most.
        batch_size: rows per step; by default an eighth of the training rows, but 64 at least and 4096 at
            most.
        lr: the learning rate at the start.
        patience: epochs without improvement to wait for.
        seed: of the split and the minibatches. The global random generators are neither read nor changed.
        progress: show a progress bar on stderr.
        checkpoint: a file that holds, after each epoch, all that is needed to go on: a run killed at any
            moment and resumed ends with the same weights, bit for bit, as one left alone.
        resume: go on from ``checkpoint`` if the file exists. Data and settings must be those it was written
            with.

    Returns:
        The :class:`History`. After Ctrl-C it is returned early, with ``interrupted`` set, the best weights in
        place.

    Raises:
        ValueError: data that no flow can be fitted to (empty, too few rows, the wrong number of columns, a
            value that is not finite, a constant column), a setting out of range, a flow without trainable
            parameters, or a checkpoint of another run. The flow is then as it was before.
        OSError: the checkpoint cannot be written; the flow is as it was before if it could not from the start.
        TypeError: data that are not real numbers.
        FloatingPointError: the loss or its gradient stopped being finite; the best weights so far are in
            place.

    Example:
        >>> import mixflow, torch
        >>> flow = mixflow.flows.univariate(components=2)
        >>> data = torch.randn(200, generator=torch.Generator().manual_seed(0))
        >>> history = mixflow.fit(flow, data, epochs=5, progress=False)
        >>> len(history.train_log_prob)
        5

    """
    validation, lr = _check_settings(validation, lr)
    epochs = check_integer("epochs", epochs, 1)
    patience = check_integer("patience", patience, 1)
    seed = check_seed(seed)
    if not any(parameter.requires_grad for parameter in flow.parameters()):
        raise ValueError("flow: expected one with trainable parameters, got none that requires a gradient")
    x = _as_rows("data", data, flow.features, flow)
    ctx = None
    if flow.context:
        if context is None:
            raise ValueError(f"context: expected shape ({len(x)}, {flow.context}), got None")
        ctx = _as_rows("context", context, flow.context, flow)
        if len(ctx) != len(x):
            raise ValueError(f"context: expected {len(x)} rows, as many as data; got {len(ctx)}")
    elif context is not None:
        raise ValueError("context: expected None, this flow takes no context")

    generator = torch.Generator().manual_seed(seed)
    held_out = math.ceil(validation * len(x))
    if len(x) - held_out < 2:
        raise ValueError(
            f"data: expected at least 2 rows to learn from beside {held_out} held out, got {len(x)} in all"
        )
    order = torch.randperm(len(x), generator=generator).to(x.device)
    train, valid = order[held_out:], order[:held_out]
    _check_columns_vary(x[train], flow)
    if batch_size is None:
        batch_size = min(4096, max(64, len(train) // 8))
    batch_size = check_integer("batch_size", batch_size, 1)
    settings = {
        "recipe": repr(flow.recipe),
        "transform": " ".join(repr(flow.data_to_base).split()),
        "base": flow.base,
        "data": _digest(x, ctx),
        "validation": validation,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "patience": patience,
        "seed": seed,
    }

    optimizer = torch.optim.Adam(flow.parameters(), lr=lr)
    run = _Run(flow, optimizer, generator, History(), _weights(flow), settings)
    resumed = False
    if checkpoint is not None:
        check_writable(checkpoint)
        if resume and Path(checkpoint).exists():
            run.read(checkpoint)
            resumed = True
    history = run.history
    steps = math.ceil(len(train) / batch_size)

    bar = tqdm(total=epochs, initial=len(history.lr), desc="fit", unit="epoch", disable=not progress)
    try:
        if not resumed:
            flow.initialize(x[train], None if ctx is None else ctx[train])
            run.best = _weights(flow)
        while len(history.lr) < epochs and not _out_of_patience(history, patience):
            started = time.perf_counter()
            rate = 0.5 * lr * (1.0 + math.cos(math.pi * len(history.lr) / epochs))
            for group in optimizer.param_groups:
                group["lr"] = rate
            log_prob = score = _train_epoch(run, x, ctx, train, batch_size)
            if held_out:
                score = _mean_log_prob(flow, x, ctx, valid)
                _require_finite(run, "the validation log_prob", score, (len(history.lr) + 1) * steps)
            # Before the epoch is recorded, lest Ctrl-C in between leave a record of weights that are gone.
            if history.best_epoch is None or score > history.monitored[history.best_epoch]:
                run.best = _weights(flow)
            if held_out:
                history.validation_log_prob.append(score)
            history.train_log_prob.append(log_prob)
            history.lr.append(rate)
            history.seconds.append(time.perf_counter() - started)
            if checkpoint is not None:
                run.write(checkpoint)
            shown = {"train": f"{log_prob:.4f}", "rows/s": f"{len(train) / history.seconds[-1]:.3g}"}
            if held_out:
                shown["validation"] = f"{history.validation_log_prob[-1]:.4f}"
            bar.set_postfix(shown, refresh=False)
            bar.update()
    except KeyboardInterrupt:
        history.interrupted = True
        for curve in (history.validation_log_prob, history.train_log_prob, history.lr):
            del curve[len(history.seconds) :]  # Ctrl-C may fall between two appends
    finally:
        bar.close()
        flow.load_state_dict(run.best)
    return history


# -- the parts of a run --------------------------------------------------------------------------------------


@torch.enable_grad()
def _train_epoch(run: _Run, x: Tensor, context: Tensor | None, rows: Tensor, batch_size: int) -> float:
    """One pass over ``rows`` in random order; the mean log_prob of its minibatches."""
    total = 0.0
    shuffled = rows[torch.randperm(len(rows), generator=run.generator).to(rows.device)]
    batches = _batches(shuffled, batch_size)
    for number, batch in enumerate(batches):
        loss = -run.flow.log_prob(x[batch], None if context is None else context[batch]).mean()
        run.optimizer.zero_grad()
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(run.flow.parameters(), 10.0)
        value = loss.item()
        step = len(run.history.lr) * len(batches) + number + 1
        _require_finite(run, "the loss", value, step)
        _require_finite(run, "the norm of the gradient", norm.item(), step)
        run.optimizer.step()
        total += value * len(batch)
    return -total / len(rows)


def _batches(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _require_finite(run: _Run, what: str, value: float, step: int) -> None:
    if math.isfinite(value):
        return
    best = run.history.best_epoch
    kept = "the initial weights are" if best is None else f"the best weights, of epoch {best + 1}, are"
    raise FloatingPointError(
        f"{what} is {value} at step {step} (epoch {len(run.history.lr) + 1}); {kept} restored. "
        "A smaller lr, float64 or data without extreme outliers may help"
    )


@torch.no_grad()
def _mean_log_prob(flow: Flow, x: Tensor, context: Tensor | None, rows: Tensor) -> float:
    total = 0.0
    for batch in _batches(rows, 1 << 16):
        total += flow.log_prob(x[batch], None if context is None else context[batch]).double().sum().item()
    return total / len(rows)


def _out_of_patience(history: History, patience: int) -> bool:
    best = history.best_epoch
    return best is not None and len(history.lr) - 1 - best >= patience


def _weights(flow: Flow) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in flow.state_dict().items()}


@dataclass
class _Run:
    """Everything that the next epoch depends on: what a checkpoint holds."""

    flow: Flow
    optimizer: torch.optim.Adam
    generator: torch.Generator
    history: History
    best: dict[str, Tensor]
    settings: dict[str, Any]

    def write(self, path: PathLike) -> None:
        tensors = {f"weights.{name}": value for name, value in _weights(self.flow).items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors["generator"] = self.generator.get_state()
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        metadata = {
            "format": "mixflow checkpoint 1",
            "settings": json.dumps(self.settings),
            "history": json.dumps(self.history.to_dict()),
        }
        with replace_file(path) as temporary:
            temporary.write_bytes(to_bytes({name: value.contiguous() for name, value in tensors.items()}, metadata))

    def read(self, path: PathLike) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"checkpoint: {path} is damaged or not a checkpoint ({error})") from error
        if metadata.get("format") != "mixflow checkpoint 1":
            raise ValueError(f"checkpoint: {path} is not a mixflow checkpoint of this version")
        try:
            written, history = json.loads(metadata["settings"]), History.from_dict(json.loads(metadata["history"]))
        except (ValueError, KeyError, RecursionError) as error:
            raise ValueError(f"checkpoint: {path} is damaged, its settings or history cannot be read") from error
        for name, value in self.settings.items():
            if written.get(name) != value:
                raise ValueError(
                    f"checkpoint: {path} is of a run with {name} = {written.get(name)}, this run has {name} = {value}"
                )
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = value
        shapes = {
            f"{part}.{name}": value.shape for part in ("weights", "best") for name, value in _weights(self.flow).items()
        }
        shapes["generator"] = self.generator.get_state().shape
        found = {name: value.shape for name, value in tensors.items() if not name.startswith("optimizer.")}
        for name in sorted(shapes.keys() | found.keys()):
            if shapes.get(name) != found.get(name):
                expected, got = (tuple(of[name]) if name in of else "none" for of in (shapes, found))
                raise ValueError(f"checkpoint: {path} is of another flow: {name}: expected shape {expected}, got {got}")
        self.generator.set_state(tensors["generator"])
        state = self.optimizer.state_dict()
        for name, value in parts["optimizer"].items():
            index, _, key = name.partition(".")
            state["state"].setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(state)
        self.best, self.history = parts["best"], history
        self.flow.load_state_dict(parts["weights"])


# -- checks --------------------------------------------------------------------------------------------------


def _check_settings(validation: float, lr: float) -> tuple[float, float]:
    if not (isinstance(validation, numbers.Real) and 0.0 <= validation < 1.0):
        raise ValueError(f"validation: expected a fraction in [0, 1), got {validation!r}")
    if not (isinstance(lr, numbers.Real) and 0.0 < lr < math.inf):
        raise ValueError(f"lr: expected a positive number, got {lr!r}")
    return float(validation), float(lr)


def _as_rows(name: str, values: Tensor | ArrayLike, columns: int, flow: Flow) -> Tensor:
    """``values`` as a finite (N, columns) tensor of the flow's dtype, on its device."""
    try:
        rows = values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array of real numbers ({error})") from error
    if rows.is_complex() or rows.dtype == torch.bool:
        raise TypeError(f"{name}: expected real numbers, got {rows.dtype}")
    given = tuple(rows.shape)
    if rows.ndim == 1 and columns == 1:
        rows = rows.unsqueeze(-1)
    if rows.ndim != 2 or rows.shape[1] != columns:
        expected = "(N,) or (N, 1)" if columns == 1 else f"(N, {columns})"
        raise ValueError(f"{name}: expected shape {expected}, got {given}")
    if len(rows) == 0:
        raise ValueError(f"{name}: expected at least one row, got none")
    rows = rows.to(like(flow))
    wrong = (~rows.isfinite()).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(
            f"{name}: expected finite numbers, got {rows[row, column].item()} in row {row}, column {column} "
            f"(counted from 0; {len(wrong)} such values in all, as {rows.dtype})"
        )
    return rows


def _check_columns_vary(x: Tensor, flow: Flow) -> None:
    # A spread of a few rounding steps carries no shape to learn, and a spread of zero has no logarithm.
    resolution = 16.0 * torch.finfo(x.dtype).eps * x.abs().amax(dim=0)
    constant = (x.amax(dim=0) - x.amin(dim=0) <= resolution).nonzero()
    if len(constant):
        column = int(constant[0])
        names = flow.notes.get("columns")
        named = repr(names[column]) if names else f"{column} (counted from 0)"
        raise ValueError(
            f"data: expected columns that vary, got the constant {x[0, column].item():g} in column {named} "
            f"as far as {x.dtype} can tell"
        )


def _digest(*tensors: Tensor | None) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
