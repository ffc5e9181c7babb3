"""Fitting flows by maximum likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..files.atomic import PathLike
from ..flows import Flow, like, seeded
from .epochs import Diverged, Training
from .history import History
from .parallel import Group
from .parameters import trained_alone
from .preparing import Prepared, prepare, undo_of
from .reports import progress_bar, report_divergence
from .settings import check_device, check_resolution, check_settings, check_trainable, open_settings
from .sources import Data
from .split import Split, open_split
from .steps import own_stream
from .threads import one_thread

__all__ = ["History", "fit"]


def fit(
    flow: Flow,
    data: Data,
    *,
    context: Tensor | ArrayLike | PathLike | None = None,
    weights: Tensor | ArrayLike | PathLike | None = None,
    validation: float | Data | tuple[Data, ...] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    max_grad_norm: float = 1.0,
    patience: int | None = None,
    seed: int = 0,
    device: torch.device | str | int | None = None,
    progress: bool = True,
    checkpoint: PathLike | None = None,
    resume: bool = False,
    initialize: bool | None = None,
    resolution: str | float | Sequence[float] | None = None,
    steps_per_epoch: int | None = None,
) -> History:
    """Fit ``flow`` to ``data`` by maximum likelihood and leave it with the best weights seen.

    A flow that was never fitted first gets its parameters from up to 65,536 of the training rows: they make a plain
    density that predicts left-out rows. Then AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) minimises the mean
    negative log_prob of minibatches. Gradients are clipped in norm. The learning rate rises over the first twentieth of
    the steps, and then falls to zero along a half cosine (Loshchilov and Hutter, 2017, arXiv:1608.03983). After each
    epoch the held-out rows are scored, and the best weights are kept. The start and one Gaussian compete with all
    epochs. If there are few held-out rows, an epoch must win by more than chance. Settings that the caller leaves open
    follow the kind of flow and the number of rows.

    ``fit`` first surveys the data. What it found (repeated values, offsets, values far out, dependent columns) and what
    it did about that is in ``history.notes``, which ``print(history)`` shows.

    ``fit`` can run in several processes, which ``torchrun`` started, or for which the caller has initialised
    ``torch.distributed``. Each minibatch is split over the processes, and the result is that of one process, up to the
    rounding of sums. Every process calls ``fit`` with the same arguments. The first process writes the checkpoint and
    shows the progress bar. Ctrl-C in any process ends the training in all.

    Args:
        flow: the flow to fit, in place. Parameters that require no gradient stay as they are.
        data: (N, D), or (N,) for one feature, or (N, C, H, W) for a flow of images; any real numbers. They keep their
            own precision until the flow has subtracted its offset from them. Tensors and arrays are held in memory. A
            memory map (``np.load(..., mmap_mode="r")``) and the path of a .npy file are read batch by batch. Other
            tables are first copied to a temporary file, which is read in the same way. Or batches: a
            ``torch.utils.data.DataLoader`` or another iterable that yields ``x``, ``(x, context)``,
            ``(x, context, weight)`` or a dict of these names, anew for each epoch. With several processes, each
            process's iterable yields its own shard.
        context: (N, C), for a flow that takes a context, or (N, ...) as its embedding takes it. Batches bring their
            own.
        weights: (N,), the weights of the rows, at least 0. A row of weight 2 counts as two rows. Batches bring their
            own.
        validation: the fraction of the rows that is held out, chosen at random, by default a tenth; or the held-out
            data themselves, of any of the kinds above, as ``(data, context)`` if the flow takes a context, and as
            ``(data, context, weights)`` if they have weights. With 0, which is the default for batches, the best epoch
            is that with the best training score.
        epochs: the most passes over the training rows.
        batch_size: rows per step, in all processes together.
        lr: the highest learning rate.
        weight_decay: the decoupled weight decay of AdamW. The default is 0 without networks, and 0.03 with networks,
            less for more than 10,000 rows.
        max_grad_norm: the norm that gradients are clipped to; ``inf`` for no clipping.
        patience: the training ends after so many epochs without improvement. By default it goes on, because the last
            epochs, at low learning rates, are often the best.
        seed: for the split, the minibatches, and random numbers of the flow's own modules, such as dropout. Afterwards
            torch's global generators are as they were before.
        device: where to train; the flow is moved there and stays. The default is where the flow is. With several
            processes, "cuda" is each process's own device.
        progress: show a progress bar on stderr.
        checkpoint: a file that holds, after each epoch, all that is needed to go on. A run that is killed at any moment
            and resumed ends with the same weights, bit for bit, as a run without interruption. With a loader this holds
            if it yields the same batches in the same epoch.
        resume: go on from ``checkpoint`` if the file exists. Data and settings must be the same as when it was written.
        initialize: whether the parameters are first set from the data (True), or the training goes on from the flow's
            weights (False). By default they are set if the flow was neither fitted nor loaded before. A new flow that
            is not set from the data learns from rows that are not standardised.
        resolution: the step that values were rounded to: a number, or one for each feature, 0 for no rounding. "auto"
            takes the step that the repeated values of a column show. Each value then stands for an interval of that
            width around it, and is drawn anew from the interval in each epoch. ``log_prob`` stays a density in the
            units of the data: that of the values before rounding.
        steps_per_epoch: batches in an epoch, for loaders without an end.

    Returns:
        The :class:`History`. The flow is then in evaluation mode, ``flow.eval()``, in which dropout does nothing. After
        Ctrl-C the history is returned early, with ``interrupted`` set. The best weights are then in place; in the first
        epoch, those after the steps so far.

    Raises:
        ValueError: no flow can be fitted to the data (they are empty, have too few rows, the wrong number of columns, a
            value that is not finite or outside the flow's support, or a constant column), a setting is out of range,
            a device cannot be used, the flow has no trainable parameters, or the checkpoint is of another run. The flow
            is then as it was before.
        OSError: the checkpoint cannot be written. If it could not be written from the start, the flow is as it was
            before.
        TypeError: the data are not real numbers.

    Warns:
        RuntimeWarning: the loss or its gradient was no longer finite. The training ends there, with the best weights in
            place. The warning names the likely cause.

    Example:
        >>> import mixflow, torch
        >>> flow = mixflow.flows.univariate(components=2)
        >>> data = torch.randn(200, generator=torch.Generator().manual_seed(0))
        >>> history = mixflow.fit(flow, data, epochs=5, progress=False)
        >>> len(history.train_log_prob)
        5

    """
    own = torch.empty(0, dtype=like(flow).dtype, device=check_device(device, flow))
    if resume and checkpoint is None:
        raise ValueError("resume: expected a checkpoint to go on from, got checkpoint=None")
    check_trainable(flow)
    settings = check_settings(epochs, batch_size, lr, weight_decay, max_grad_norm, patience, seed)
    group = Group.join(own.device)
    with seeded(settings["seed"] % 2**32, own.device):  # dequantisation draws noise while the support is checked
        split = open_split(flow, data, context, weights, validation, settings["seed"], own, steps_per_epoch)
    settings |= open_settings(flow, split, settings)
    set_from_data = not flow.fitted if initialize is None else bool(initialize)
    settings |= {"initialize": set_from_data, "resolution": check_resolution(resolution, flow.features)}

    undo, history = undo_of(flow), History()
    flow.to(own.device)
    with ExitStack() as at_the_end:
        try:
            with one_thread():
                prepared = prepare(flow, split, group, settings, history, checkpoint, resume, at_the_end)
        except KeyboardInterrupt:
            undo()
            history.interrupt()
            return history
        except BaseException:
            undo()
            raise
        with trained_alone(flow, prepared.moved), own_stream(own.device):
            _train(prepared, group, split, checkpoint, progress)
    return prepared.run.history


def _train(prepared: Prepared, group: Group, split: Split, checkpoint: PathLike | None, progress: bool) -> None:
    """Take the steps. However they end, the best weights are in place afterwards."""
    run, start = prepared.run, prepared.start
    flow, settings = run.flow, run.settings
    limited = flow.data_to_base.is_limited
    try:
        with group.hold_interrupts(), progress_bar(run, split.train, progress and group.rank == 0) as bar:
            training = Training(run, group, split.train, split.valid, bar, start.rounding, limited, prepared.parameters)
            try:
                training.begin(prepared.plain)
                while len(run.history.lr) < settings["epochs"] and not _out_of_patience(
                    run.history, settings["patience"]
                ):
                    training.epoch()
                    if checkpoint is not None:
                        group.share(lambda: run.write(checkpoint))
            except KeyboardInterrupt:
                run.history.interrupt()
                with suppress(KeyboardInterrupt, Diverged):
                    training.keep_what_was_learned()
            except Diverged as reason:
                run.history.end(report_divergence(run.history, reason, start.seen.suspects(start.names)))
    finally:
        flow.zero_grad()
        flow.load_state_dict(run.best)
        flow.eval()
        if start.rounding is not None:
            flow.notes["resolution"] = start.rounding.widths.tolist()


def _out_of_patience(history: History, patience: int) -> bool:
    best = history.highest_epoch
    return best is not None and len(history.lr) - 1 - best >= patience
