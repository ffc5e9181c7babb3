"""The steps and epochs of a training run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..flows import like, seeded
from .checkpoint import Run, weights
from .parallel import Group
from .parameters import Parameters
from .sources import CHUNK, Batch, Loader, Subset, send
from .steps import Steps
from .threads import are_worthwhile, one_thread

__all__ = ["Diverged", "Rounding", "Training", "stage"]

# The part of the steps in which the learning rate rises. Adam's first steps have full size in every parameter, which
# would spoil transforms that are set from the data: the first epoch would lose more than the start gained.
WARM_UP = 0.05
READ_EVERY = 32  # steps after which the losses are read
# Up to so many held-out rows, an epoch must beat the start by more than chance. With more rows, chance hardly matters.
FEW_HELD_OUT = 1000
MOST_A_ROW = 20.0  # nats that a single row may then count for or against an epoch
START = "the start"
# It stands in place of an epoch's number, so that held-out rows are drawn from their intervals the same each time.
SCORING = 2**32 - 1


class Diverged(ArithmeticError):
    """The loss or its gradient is no longer finite."""


@dataclass(frozen=True)
class Rounding:
    """Rounded values: each stands for an interval around it, and is drawn anew from the interval in every epoch.

    This is uniform dequantisation (Theis, van den Oord and Bethge, "A note on the evaluation of generative models",
    2016, arXiv:1511.01844). The mean log density of the drawn values is at most the log of the interval's probability
    over its width. The method works with every flow. The exact probability of an interval has a closed form only for a
    single feature, and it does not determine the density inside an interval, which could then have spikes.

    Attributes:
        widths: the widths (D,) of the intervals, in float64; 0 for a column that is not rounded.
        seed: the draws depend on it, on the epoch and on the step alone.

    """

    widths: Tensor
    seed: int

    def __call__(self, x: Tensor, rows: slice, of: int, *key: int) -> Tensor:
        """Draw ``x`` (n, D) from its intervals; ``x`` holds the slice ``rows`` of ``of`` rows in all processes."""
        seed = int(np.random.SeedSequence((self.seed, *key)).generate_state(1, np.uint64)[0])
        noise = torch.rand(of, len(self.widths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return x.double() + send((noise[rows] - 0.5) * self.widths, x.device)


@dataclass
class Training:
    """The epochs of a run: takes the steps, scores the held-out rows, and records both.

    Attributes:
        run: the flow that is trained, its optimizer, and the record.
        group: the processes that train together.
        train: the rows to learn from.
        valid: the rows to score; None for none.
        bar: the progress bar.
        rounding: the intervals that values stand for; None for data as they are.
        limited: whether the density has a support, so that rows can lie outside.
        parameters: the parameters that the steps move.

    """

    run: Run
    group: Group
    train: Subset | Loader
    valid: Subset | Loader | None
    bar: tqdm[NoReturn]
    rounding: Rounding | None
    limited: bool
    parameters: Parameters
    step: int = 0  # of this epoch
    weight: float = 0.0  # of the rows of this epoch whose losses have been read
    total: float = 0.0  # the sum of their log_prob
    unread: list[tuple[int, float, Tensor]] = field(default_factory=list)  # rows, weight and outcome of steps
    takes_all: dict[int, bool] = field(default_factory=dict)  # whether batches of a size take all threads
    sent: list[Any] = field(default_factory=list)  # outcomes on their way from the device to the host

    def __post_init__(self) -> None:
        self.settings = self.run.settings
        self.steps = self.group.share(lambda: self.train.steps(self.settings["batch_size"]))
        rows = self.train.total() if isinstance(self.train, Subset) else 1e5
        norm = self.settings["max_grad_norm"]
        self.descent = Steps(self.run, self.parameters, self.group, rows, norm, self.limited)
        self.at_start: Tensor | None = None  # log_prob of this process's held-out rows under the weights at the start

    # -- before and after the epochs ---------------------------------------------------------------------------

    def begin(self, plain: dict[str, dict[str, Tensor]]) -> None:
        """Score the start and the ``plain`` densities on the held-out rows, and keep the best until an epoch wins."""
        if self.valid is None:
            return
        history = self.run.history
        if not plain and history.starts:  # the run is resumed: the record has the mean scores, but not each row's
            current = weights(self.run.flow)
            self.run.flow.load_state_dict(self.run.start)
            self.score_start()
            self.run.flow.load_state_dict(current)
            return
        history.starts[START] = self.score_start()
        history.kept = START
        for name, values in plain.items():
            self.run.flow.load_state_dict(values)
            history.starts[name], _ = self.score(self.valid)
            if history.starts[name] > history.starts[str(history.kept)]:
                self.run.best, history.kept = values, name
        self.run.flow.load_state_dict(self.run.start)

    def score_start(self) -> float:
        """The mean log_prob of the held-out rows; that of each row is kept for comparison."""
        assert self.valid is not None
        mean, self.at_start = self.score(self.valid)
        return mean

    def keep_what_was_learned(self) -> None:
        """After an interruption in the first epoch, keep its steps if the flow is now better than at the start."""
        history = self.run.history
        if history.seconds or self.step == 0:
            return
        self._read()
        learned = weights(self.run.flow)
        if self.valid is not None:
            score, _ = self.score(self.valid)
            if not score > history.starts.get(str(history.kept), -math.inf):
                return
            history.starts[f"the weights of {self.step} steps"] = score
        self.run.best, history.kept = learned, f"the weights of {self.step} steps"

    # -- an epoch ----------------------------------------------------------------------------------------------

    def epoch(self) -> None:
        """Pass over the training rows once, score the held-out rows, and record both."""
        run, history = self.run, self.run.history
        started, rate = time.perf_counter(), self._rate(0)
        log_prob = score = self._learn()
        rows = None
        if self.valid is not None:
            score, rows = self.score(self.valid)
            self._require_finite("the validation log_prob", score, self.step)
        # This comes before the epoch is recorded: otherwise Ctrl-C in between could leave a record without its weights.
        if self._is_better(score, rows):
            run.best, history.kept = weights(run.flow), len(history.lr)
        if self.valid is not None:
            history.validation_log_prob.append(score)
        if self.descent.note and self.descent.note not in history.notes:
            history.notes.append(self.descent.note)
        history.train_log_prob.append(log_prob)
        history.lr.append(rate)
        history.seconds.append(time.perf_counter() - started)
        shown = {"train": f"{log_prob:.4f}"} | ({} if self.valid is None else {"validation": f"{score:.4f}"})
        self.bar.set_postfix(shown, refresh=False)
        self.bar.set_description(stage(run))

    def _is_better(self, score: float, rows: Tensor | None) -> bool:
        """Whether the weights are better than the best so far.

        On a handful of held-out rows, the best of many epochs beats the start by chance. Up to ``FEW_HELD_OUT`` rows,
        the mean gain over the start must therefore exceed twice its standard error. For very few rows the factor is
        much larger than two; it grows about as the 0.999 quantile of Student's t.
        """
        history = self.run.history
        kept = history.kept
        best = history.monitored[kept] if isinstance(kept, int) else history.starts.get(str(kept), -math.inf)
        if not score > best:
            return False
        if rows is None or self.at_start is None:
            return True
        gain = (rows - self.at_start).clamp(-MOST_A_ROW, MOST_A_ROW)
        sums = torch.stack([torch.ones_like(gain).sum(), gain.sum(), gain.square().sum()])
        count, total, squares = self.group.sum_(sums).tolist()
        if count > FEW_HELD_OUT:
            return True
        if count < 3:
            return False
        error = math.sqrt(max(0.0, squares - total * total / count) / (count - 1) / count)
        return bool(total / count > (2.0 + 20.0 * (count - 2.0) ** -1.2) * error)

    @torch.enable_grad()
    def _learn(self) -> float:
        """Take the steps of one epoch, and return the mean log_prob of its minibatches."""
        self.step, self.weight, self.total = 0, 0.0, 0.0
        self.run.flow.train()
        with self._draws_of(self.train, len(self.run.history.lr)):
            for batch in self.train.batches(self.settings["batch_size"], self.group, len(self.run.history.lr)):
                self._take_step(batch)
                if len(self.unread) == READ_EVERY:
                    self._read(all_of_them=False)
        self._read()
        if self.step == 0:
            raise ValueError("data: expected at least one row in every epoch, got none; can it be iterated only once?")
        return self.total / self.weight if self.weight else math.nan

    def _take_step(self, batch: Batch) -> None:
        with self._threads_for(batch):
            x = self._drawn(self.train, batch, len(self.run.history.lr), self.step)
            outcome = self.descent.take(x, batch.context, batch.weight, batch.total, self._rate(self.step))
        self.step += 1
        self.unread.append((batch.rows, batch.total, outcome))

    def _threads_for(self, batch: Batch) -> AbstractContextManager[None]:
        """A block in which torch takes one thread or all, by the size of the batch; decided once for similar sizes."""
        size = len(batch.x).bit_length()
        if size not in self.takes_all:
            x = self.run.flow.shaped(batch.x)
            self.takes_all[size] = are_worthwhile(self.run.flow, x, batch.context, len(x))
        return one_thread(not self.takes_all[size])

    def _drawn(self, source: Subset | Loader, batch: Batch, *key: int) -> Tensor:
        """This process's events of ``batch``, rounded values drawn from their intervals."""
        shaped = self.run.flow.shaped
        if self.rounding is None:
            return shaped(batch.x)
        if isinstance(source, Loader):  # each process brings its own rows
            return shaped(self.rounding(batch.x, slice(None), len(batch.x), *key, self.group.rank))
        return shaped(self.rounding(batch.x, self.group.shard(batch.rows), batch.rows, *key))

    @contextmanager
    def _draws_of(self, source: Subset | Loader, *key: int) -> Iterator[None]:
        """A block in which random numbers of the flow's own, as for dropout, depend on the seed and ``key`` alone.

        A resumed run then draws the same numbers. With a loader the generators are left alone, because the loader draws
        from them as well.
        """
        if isinstance(source, Loader):
            yield
            return
        seeds = np.random.SeedSequence((self.settings["seed"] % 2**32, self.group.rank, *key))
        with seeded(int(seeds.generate_state(1)[0]), like(self.run.flow).device):
            yield

    def _read(self, all_of_them: bool = True) -> None:
        """Read the outcomes of the steps since the last call: their loss, and whether to stop.

        Outcomes are copied from a GPU to the host while the training goes on. A call sends the newest and reads those
        that the call before sent, so it does not wait, unless ``all_of_them`` are to be read.
        """
        if self.unread:
            outcomes, is_there = _on_host(torch.stack([outcome for _, _, outcome in self.unread]))
            sizes = [(rows, weight) for rows, weight, _ in self.unread]
            self.sent.append((self.step - len(sizes) + 1, sizes, outcomes, is_there))
            self.unread = []
        while self.sent:
            first, sizes, outcomes, is_there = self.sent[0]
            if is_there is not None:
                if len(self.sent) == 1 and not all_of_them:
                    return
                is_there.synchronize()
            del self.sent[0]
            self._record(first, sizes, outcomes.tolist())

    def _record(self, first: int, sizes: list[tuple[int, float]], outcomes: list[list[float]]) -> None:
        for step, ((rows, weight), (loss, outside, stop, norm)) in enumerate(zip(sizes, outcomes, strict=True), first):
            if stop:
                raise KeyboardInterrupt
            self._require_finite("the loss", loss, step)
            self._require_finite("the norm of the gradient", norm, step)
            self.weight += (1.0 - outside) * weight
            self.total -= loss * weight
            self.bar.update(rows)

    def _rate(self, step: int) -> float:
        """The learning rate: it rises to lr linearly, then falls to zero along a half cosine.

        If the length of an epoch is unknown, the rate is constant within an epoch.
        """
        part = step / self.steps if self.steps else 0.0
        progress = min(1.0, (len(self.run.history.lr) + part) / self.settings["epochs"])
        if progress < WARM_UP:
            return float(self.settings["lr"] * (0.1 + 0.9 * progress / WARM_UP))
        return float(0.5 * self.settings["lr"] * (1.0 + math.cos(math.pi * (progress - WARM_UP) / (1.0 - WARM_UP))))

    @torch.no_grad()
    def score(self, valid: Subset | Loader) -> tuple[float, Tensor]:
        """The weighted mean log_prob of the rows inside the support, and the log_prob of this process's first rows."""
        self.run.flow.eval()
        with self._draws_of(valid, SCORING):
            return self._scored(valid)

    def _scored(self, valid: Subset | Loader) -> tuple[float, Tensor]:
        own = like(self.run.flow)
        sums, parts = torch.zeros(3, dtype=torch.float64, device=own.device), []
        for number, batch in enumerate(valid.batches(CHUNK, self.group)):
            x = self._drawn(valid, batch, SCORING, number)
            sums[0] += batch.rows / self.group.size
            if not len(x):
                continue
            with self._threads_for(batch):
                log_prob, weight = self._scores(x, batch)
                sums[1] += (log_prob * weight).sum()
                sums[2] += weight.sum()
            if number == 0:
                parts.append(log_prob[: 2 * FEW_HELD_OUT])
        rows, total, weights_in_all = self.group.sum_(sums).tolist()
        if not rows:
            raise ValueError("validation: expected at least one row, got none")
        if not weights_in_all:
            raise ValueError("validation: expected a row of positive weight inside the support, got none")
        return total / weights_in_all, torch.cat(parts) if parts else own.new_zeros(0, dtype=torch.float64)

    def _scores(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The log_prob of the events ``x`` of ``batch``, and their weights, which are 0 outside the support."""
        log_prob = self.run.flow.log_prob(x, batch.context).double()
        weight = torch.ones_like(log_prob) if batch.weight is None else batch.weight
        if self.limited:
            weight = weight * self.run.flow.supports(x)
        return log_prob.masked_fill(weight == 0.0, 0.0), weight

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            done = len(self.run.history.lr)
            raise Diverged(f"{what} is {value} at step {done * (self.steps or 0) + step} (epoch {done + 1})")


def _on_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """``values`` on the host, and for a GPU the event after which they have arrived."""
    if values.device.type != "cuda":
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


def stage(run: Run) -> str:
    """The current epoch of a run and the number of epochs, for its progress bar."""
    done, epochs = len(run.history.lr), run.settings["epochs"]
    return f"epoch {min(done + 1, epochs)}/{epochs}"
