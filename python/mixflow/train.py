"""Fitting flows by maximum likelihood."""

from __future__ import annotations

import math
import numbers
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from .checkpoint import Contents, Run, read_file, weights
from .checks import check_integer, check_seed
from .conditioners import Inputs
from .files import PathLike, check_writable
from .flows import Flow, like
from .history import History
from .parallel import Group
from .sources import CHUNK, Batch, Data, Loader, Rows, Subset, is_loader

__all__ = ["History", "fit"]

# The part of the steps in which the learning rate rises. Adam's first steps are of full size in every parameter, which
# would spoil transforms that are set from the data; without it, more is lost in the first epoch than the start gained.
WARM_UP = 0.05
READ_EVERY = 32  # steps between looks at the losses; each look waits for the device


def fit(
    flow: Flow,
    data: Data,
    *,
    context: Tensor | ArrayLike | PathLike | None = None,
    validation: float | Data | tuple[Data, Data] = 0.1,
    epochs: int = 200,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    max_grad_norm: float = 10.0,
    patience: int = 30,
    seed: int = 0,
    device: torch.device | str | int | None = None,
    progress: bool = True,
    checkpoint: PathLike | None = None,
    resume: bool = False,
) -> History:
    """Fit ``flow`` to ``data`` by maximum likelihood and leave it with the best weights seen.

    The transforms are first initialised from up to 65,536 of the training rows; then Adam (Kingma and Ba, 2015,
    arXiv:1412.6980) minimises the mean negative log_prob of minibatches, with gradients clipped in norm and a learning
    rate that rises over the first twentieth of the steps, then falls to zero along a half cosine (Loshchilov and
    Hutter, 2017, arXiv:1608.03983). After each epoch the held-out rows are scored; the best epoch's weights are kept,
    and ``patience`` epochs without a better one end the training.

    In processes that ``torchrun`` started, or where the caller has initialised ``torch.distributed``, each minibatch is
    shared out over the processes and the result is that of one process, up to the rounding of sums. Every process
    calls ``fit`` with the same arguments; the first writes the checkpoint and shows the progress bar. Ctrl-C in any of
    them ends the training in all.

    Args:
        flow: the flow to fit, in place.
        data: (N, D), or (N,) for one feature; any real numbers, converted to the flow's dtype and device. Tensors
            and arrays are held in memory; a memory map (``np.load(..., mmap_mode="r")``) and the path of a .npy file
            are read batch by batch, and so are the other tables, from a temporary copy on disk. Or batches:
            a ``torch.utils.data.DataLoader`` or another iterable that yields ``x`` or ``(x, context)`` anew for
            each epoch; with several processes, each gives its own shard.
        context: (N, C), for a flow that takes a context; not with batches, which bring their own.
        validation: fraction of the rows held out, chosen at random; or the held-out data themselves, of any of the
            kinds above, as a pair ``(data, context)`` where the flow takes a context. With 0 the training
            curve itself is watched.
        epochs: passes over the training rows at most.
        batch_size: rows per step, in all processes together; by default an eighth of the training rows, but 64 at
            least and 4096 at most.
        lr: the highest learning rate; by default 0.02, and 0.005 where networks make parameters.
        weight_decay: the decoupled weight decay of AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101).
        max_grad_norm: the norm that gradients are clipped to; ``inf`` for none.
        patience: epochs without improvement to wait for.
        seed: of the split and the minibatches. The global random generators are neither read nor changed.
        device: where to train; the flow is moved there and stays. By default, where the flow is. With several
            processes, "cuda" is each process's own.
        progress: show a progress bar on stderr.
        checkpoint: a file that holds, after each epoch, all that is needed to go on: a run killed at any
            moment and resumed ends with the same weights, bit for bit, as one left alone (with a loader: if it yields
            the same batches in the same epoch).
        resume: go on from ``checkpoint`` if the file exists. Data and settings must be those it was written
            with.

    Returns:
        The :class:`History`. After Ctrl-C it is returned early, with ``interrupted`` set, the best weights in
        place.

    Raises:
        ValueError: data that no flow can be fitted to (empty, too few rows, the wrong number of columns, a
            value that is not finite, a constant column), a setting out of range, a device that cannot be used, a flow
            without trainable parameters, or a checkpoint of another run. The flow is then as it was before.
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
    lr = (0.005 if any(isinstance(m, Inputs) for m in flow.modules()) else 0.02) if lr is None else lr
    settings = _check_settings(epochs, batch_size, lr, weight_decay, max_grad_norm, patience, seed)
    _check_trainable(flow)
    if resume and checkpoint is None:
        raise ValueError("resume: expected a checkpoint to go on from, got checkpoint=None")
    own = torch.empty(0, dtype=like(flow).dtype, device=_check_device(device, flow))
    group = Group.join(own.device)
    train, valid, digest = _sources(flow, data, context, validation, settings["seed"], own)
    if isinstance(train, Subset):
        settings["batch_size"] = settings["batch_size"] or min(4096, max(64, len(train) // 8))
    elif batch_size is not None:
        raise ValueError(f"batch_size: expected None, as data are batches; got {batch_size!r}")
    settings |= {"recipe": repr(flow.recipe), "flow": " ".join(repr(flow).split()), "data": digest}
    group.require_same(settings)

    optimizer = torch.optim.AdamW(flow.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    run = Run(flow, optimizer, History(), weights(flow), settings)
    contents = group.share(lambda: _open_checkpoint(checkpoint, resume))
    if contents is not None and checkpoint is not None:
        run.check(checkpoint, contents)
    flow.to(own.device)

    try:
        with group.hold_interrupts():
            if contents is not None:
                run.restore(contents)
            else:
                start = train.first(CHUNK, group)
                run.best = group.share(lambda: _initialized(flow, *start))
                flow.load_state_dict(run.best)
            with _progress_bar(run, train, progress and group.rank == 0) as bar:
                training = _Training(run, group, train, valid, bar)
                while len(run.history.lr) < epochs and not _out_of_patience(run.history, patience):
                    training.epoch()
                    if checkpoint is not None:
                        group.share(lambda: run.write(checkpoint))
    except KeyboardInterrupt:
        run.history.interrupt()
    finally:
        flow.zero_grad()
        flow.load_state_dict(run.best)
    return run.history


# -- the parts of a run --------------------------------------------------------------------------------------


class _Training:
    """The epochs of a run: takes the steps, scores the held-out rows, and records both."""

    def __init__(
        self, run: Run, group: Group, train: Subset | Loader, valid: Subset | Loader | None, bar: tqdm[NoReturn]
    ) -> None:
        self.run, self.group, self.train, self.valid, self.bar = run, group, train, valid, bar
        self.settings = run.settings
        self.steps = group.share(lambda: train.steps(self.settings["batch_size"]))
        self.gradients = _Gradients(run.flow)
        self.step = 0  # of this epoch
        self.rows, self.total = 0, 0.0  # of this epoch, and their summed log_prob, as far as they have been read
        self.unread: list[tuple[int, Tensor, Tensor]] = []

    def epoch(self) -> None:
        """One pass over the training rows, a look at the held-out ones, and the record of both."""
        run, history = self.run, self.run.history
        started, rate = time.perf_counter(), self._rate(0)
        log_prob = score = self._learn()
        if self.valid is not None:
            score = self._score(self.valid)
            self._require_finite("the validation log_prob", score, self.step)
        # Before the epoch is recorded, lest Ctrl-C in between leave a record of weights that are gone.
        if history.best_epoch is None or score > history.monitored[history.best_epoch]:
            run.best = weights(run.flow)
        if self.valid is not None:
            history.validation_log_prob.append(score)
        history.train_log_prob.append(log_prob)
        history.lr.append(rate)
        history.seconds.append(time.perf_counter() - started)
        shown = {"train": f"{log_prob:.4f}"} | ({} if self.valid is None else {"validation": f"{score:.4f}"})
        self.bar.set_postfix(shown, refresh=False)
        self.bar.set_description(_stage(run))

    @torch.enable_grad()
    def _learn(self) -> float:
        """The steps of one epoch; the mean log_prob of its minibatches."""
        self.step, self.rows, self.total = 0, 0, 0.0
        for batch in self.train.batches(self.settings["batch_size"], self.group, len(self.run.history.lr)):
            self._take_step(batch)
            if len(self.unread) == READ_EVERY:
                self._read()
        self._read()
        if self.rows == 0:
            raise ValueError("data: expected at least one row in every epoch, got none; can it be iterated only once?")
        return self.total / self.rows

    def _take_step(self, batch: Batch) -> None:
        run, gradients = self.run, self.gradients
        gradients.flat.zero_()
        if len(batch.x):
            log_prob = run.flow.log_prob(batch.x, batch.context)
            # Half precision would overflow in the sum.
            loss = log_prob.sum(dtype=torch.promote_types(log_prob.dtype, torch.float32)) * (-1.0 / batch.rows)
            torch.autograd.backward(loss)
            gradients.loss.copy_(loss.detach())
        if self.group.interrupted:
            gradients.stop.fill_(1.0)
        self.group.sum_(gradients.flat)
        norm = gradients.clip_(self.settings["max_grad_norm"])
        for parameters in run.optimizer.param_groups:
            parameters["lr"] = self._rate(self.step)
        run.optimizer.step()
        self.step += 1
        self.unread.append((batch.rows, gradients.tail.clone(), norm))

    def _read(self) -> None:
        """Look at the steps taken since the last look: their loss, and whether they were the last."""
        if not self.unread:
            return
        tails = torch.stack([tail for _, tail, _ in self.unread]).tolist()
        norms = torch.stack([norm for _, _, norm in self.unread]).tolist()
        first = self.step - len(self.unread) + 1
        for step, ((rows, _, _), (loss, stop), norm) in enumerate(zip(self.unread, tails, norms, strict=True), first):
            if stop:
                raise KeyboardInterrupt
            self._require_finite("the loss", loss, step)
            self._require_finite("the norm of the gradient", norm, step)
            self.rows += rows
            self.total -= loss * rows
            self.bar.update(rows)
        self.unread.clear()

    def _rate(self, step: int) -> float:
        """The learning rate: up to lr in a straight line, then down to zero along a half cosine.

        Where an epoch's length is unknown, both go in stairs.
        """
        part = step / self.steps if self.steps else 0.0
        progress = min(1.0, (len(self.run.history.lr) + part) / self.settings["epochs"])
        if progress < WARM_UP:
            return float(self.settings["lr"] * (0.1 + 0.9 * progress / WARM_UP))
        return float(0.5 * self.settings["lr"] * (1.0 + math.cos(math.pi * (progress - WARM_UP) / (1.0 - WARM_UP))))

    @torch.no_grad()
    def _score(self, valid: Subset | Loader) -> float:
        rows, total = 0, torch.zeros((), dtype=torch.float64, device=like(self.run.flow).device)
        for batch in valid.batches(CHUNK, self.group):
            rows += batch.rows
            if len(batch.x):
                total += self.run.flow.log_prob(batch.x, batch.context).double().sum()
        if rows == 0:
            raise ValueError("validation: expected at least one row, got none")
        return float(self.group.sum_(total)) / rows

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if math.isfinite(value):
            return
        history = self.run.history
        best = history.best_epoch
        kept = "the initial weights are" if best is None else f"the best weights, of epoch {best + 1}, are"
        raise FloatingPointError(
            f"{what} is {value} at step {len(history.lr) * (self.steps or 0) + step} (epoch {len(history.lr) + 1}); "
            f"{kept} restored. A smaller lr, float64 or data without extreme outliers may help"
        )


class _Gradients:
    """A flow's gradients in one flat tensor, and after them the loss and a call to stop.

    One tensor is zeroed, summed over the processes, measured and scaled at once; the parameters' ``grad`` are views.
    """

    def __init__(self, flow: Flow) -> None:
        parameters = [parameter for parameter in flow.parameters() if parameter.requires_grad]
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.zeros(sum(sizes) + 2, dtype=parameters[0].dtype, device=parameters[0].device)
        self.gradients, self.tail = self.flat[:-2], self.flat[-2:]
        self.loss, self.stop = self.tail
        for parameter, part in zip(parameters, self.gradients.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    def clip_(self, most: float) -> Tensor:
        """Scale the gradients to a norm of ``most`` if theirs is larger; the norm before."""
        norm: Tensor = torch.linalg.vector_norm(self.gradients)
        self.gradients.mul_((most / (norm + 1e-6)).clamp_(max=1.0))
        return norm


def _progress_bar(run: Run, train: Subset | Loader, shown: bool) -> tqdm[NoReturn]:
    rows, done = len(train) if isinstance(train, Subset) else None, len(run.history.lr)
    return tqdm(
        desc=_stage(run),
        total=None if rows is None else rows * run.settings["epochs"],
        initial=0 if rows is None else rows * done,
        unit="rows",
        unit_scale=True,
        disable=not shown,
    )


def _stage(run: Run) -> str:
    done, epochs = len(run.history.lr), run.settings["epochs"]
    return f"epoch {min(done + 1, epochs)}/{epochs}"


def _initialized(flow: Flow, x: Tensor, context: Tensor | None) -> dict[str, Tensor]:
    _check_columns_vary(x, flow)
    flow.initialize(x, context)
    return weights(flow)


def _open_checkpoint(checkpoint: PathLike | None, resume: bool) -> Contents | None:
    if checkpoint is None:
        return None
    check_writable(checkpoint)
    return read_file(checkpoint) if resume and Path(checkpoint).exists() else None


def _out_of_patience(history: History, patience: int) -> bool:
    best = history.best_epoch
    return best is not None and len(history.lr) - 1 - best >= patience


# -- data ----------------------------------------------------------------------------------------------------


def _sources(
    flow: Flow, data: Data, context: Data | None, validation: Any, seed: int, own: Tensor
) -> tuple[Subset | Loader, Subset | Loader | None, str]:
    """What to learn from, what to score, and a digest of both."""
    seed %= 2**64
    given = _open("data", flow, data, context, own)
    if not isinstance(validation, numbers.Real):
        if validation is None:
            raise ValueError("validation: expected a fraction in [0, 1) or held-out data, got None")
        held, held_context = validation if isinstance(validation, tuple) else (validation, None)
        if flow.context and held_context is None and not is_loader(held):
            raise ValueError("validation: expected a pair (data, context), as the flow takes a context; got data alone")
        scored = _open("validation", flow, held, held_context, own)
        valid = scored if isinstance(scored, Loader) else Subset(*scored, 0, len(scored[0]), None)
        train = given if isinstance(given, Loader) else Subset(*given, 0, _at_least_two(len(given[0]), 0), seed)
        return train, valid, f"{_digest(given)}, validated on {_digest(scored)}"
    fraction = float(validation)
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"validation: expected a fraction in [0, 1), got {validation!r}")
    if isinstance(given, Loader):
        if fraction:
            raise ValueError(f"validation: expected 0 or held-out data, as data are batches; got {validation!r}")
        return given, None, _digest(given)
    rows = len(given[0])
    held_out = math.ceil(fraction * rows)
    train = Subset(*given, held_out, _at_least_two(rows, held_out), seed)
    return train, Subset(*given, 0, held_out, seed) if held_out else None, f"{_digest(given)}, {held_out} held out"


def _open(name: str, flow: Flow, data: Data, context: Data | None, own: Tensor) -> Loader | tuple[Rows, Rows | None]:
    if is_loader(data):
        if context is not None:
            raise ValueError(f"context: expected None, as {name} are batches, which bring their own")
        return Loader(name, cast("Iterable[Any]", data), flow.features, flow.context, own)
    if not flow.context and context is not None:
        raise ValueError("context: expected None, this flow takes no context")
    x = Rows(name, data, flow.features, own, flow.notes.get("columns"))
    if not flow.context:
        return x, None
    if context is None:
        raise ValueError(f"context: expected shape ({len(x)}, {flow.context}), got None")
    rows = Rows("context", context, flow.context, own)
    if len(rows) != len(x):
        raise ValueError(f"context: expected {len(x)} rows, as many as {name}; got {len(rows)}")
    return x, rows


def _digest(given: Loader | tuple[Rows, Rows | None]) -> str:
    if isinstance(given, Loader):
        return "batches"
    return " with context ".join(rows.digest for rows in given if rows is not None)


def _at_least_two(rows: int, held_out: int) -> int:
    if rows - held_out < 2:
        raise ValueError(f"data: expected at least 2 rows to learn from beside {held_out} held out, got {rows} in all")
    return rows


# -- checks --------------------------------------------------------------------------------------------------


def _check_settings(
    epochs: int,
    batch_size: int | None,
    lr: float,
    weight_decay: float,
    max_grad_norm: float,
    patience: int,
    seed: int,
) -> dict[str, Any]:
    """The settings as plain values that JSON holds."""
    return {
        "epochs": check_integer("epochs", epochs, 1),
        "batch_size": None if batch_size is None else check_integer("batch_size", batch_size, 1),
        "lr": _check_positive("lr", lr),
        "weight_decay": 0.0 if weight_decay == 0 else _check_positive("weight_decay", weight_decay),
        "max_grad_norm": math.inf if max_grad_norm == math.inf else _check_positive("max_grad_norm", max_grad_norm),
        "patience": check_integer("patience", patience, 1),
        "seed": check_seed(seed),
    }


def _check_positive(name: str, value: float) -> float:
    if not (isinstance(value, numbers.Real) and 0.0 < value < math.inf):
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
    return float(value)


def _check_trainable(flow: Flow) -> None:
    kinds = {(parameter.dtype, parameter.device) for parameter in flow.parameters() if parameter.requires_grad}
    if not kinds:
        raise ValueError("flow: expected one with trainable parameters, got none that requires a gradient")
    if len(kinds) > 1:
        named = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(f"flow: expected parameters of one dtype on one device, got {named}")


def _check_device(device: torch.device | str | int | None, flow: Flow) -> torch.device:
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
            f"as far as {x.dtype} can tell, in {len(x)} rows"
        )
