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

    A flow that was never fitted first gets its parameters from up to 65,536 of the training rows: a plain density that
    predicts rows left out. Then AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) minimises the mean negative
    log_prob of minibatches, with gradients clipped in norm and a learning rate that rises over the first twentieth of
    the steps, then falls to zero along a half cosine (Loshchilov and Hutter, 2017, arXiv:1608.03983). After each epoch
    the held-out rows are scored. The best weights are kept; the start and one Gaussian compete with all epochs, and of
    few held-out rows an epoch must convince by more than chance. Settings that are left open follow the flow and the
    number of rows.

    ``fit`` looks at the data first. What it saw (repeated values, offsets, values far out, dependent columns) and what
    it did about it is in ``history.notes``, which ``print(history)`` shows.

    In processes that ``torchrun`` started, or where the caller has initialised ``torch.distributed``, each minibatch is
    shared out over the processes and the result is that of one process, up to the rounding of sums. Every process
    calls ``fit`` with the same arguments; the first writes the checkpoint and shows the progress bar. Ctrl-C in any of
    them ends the training in all.

    Args:
        flow: the flow to fit, in place. Parameters that require no gradient stay as they are.
        data: (N, D), or (N,) for one feature, or (N, C, H, W) for a flow of images; any real numbers. They keep their
            own precision until the flow has subtracted its offset from them. Tensors and arrays are held in memory; a
            memory map (``np.load(..., mmap_mode="r")``) and the path of a .npy file are read batch by batch, and so are
            the other tables, from a temporary copy on disk. Or batches: a ``torch.utils.data.DataLoader`` or another
            iterable that yields ``x``, ``(x, context)``, ``(x, context, weight)`` or a dict of these names, anew for
            each epoch; with several processes, each gives its own shard.
        context: (N, C), for a flow that takes a context, or (N, ...) as its embedding takes it; not with batches, which
            bring their own.
        weights: (N,), of the rows, at least 0: a row of weight 2 counts as two rows. Not with batches.
        validation: fraction of the rows held out, chosen at random, by default a tenth; or the held-out data
            themselves, of any of the kinds above, as ``(data, context)`` where the flow takes a context and as
            ``(data, context, weights)`` where they are weighted. With 0, as for batches by default, the training curve
            itself is watched.
        epochs: passes over the training rows at most.
        batch_size: rows per step, in all processes together.
        lr: the highest learning rate.
        weight_decay: the decoupled weight decay of AdamW; by default 0 without networks, and 0.03 with them, less for
            more than 10,000 rows.
        max_grad_norm: the norm that gradients are clipped to; ``inf`` for none.
        patience: epochs without improvement to wait for; by default all of them, since the last epochs, at low rates,
            are often the best.
        seed: of the split and the minibatches, and of what the flow's own modules draw from torch's generators, such as
            dropout. The global generators are as they were afterwards.
        device: where to train; the flow is moved there and stays. By default, where the flow is. With several
            processes, "cuda" is each process's own.
        progress: show a progress bar on stderr.
        checkpoint: a file that holds, after each epoch, all that is needed to go on: a run killed at any
            moment and resumed ends with the same weights, bit for bit, as one left alone (with a loader: if it yields
            the same batches in the same epoch).
        resume: go on from ``checkpoint`` if the file exists. Data and settings must be those it was written
            with.
        initialize: whether the parameters are set from the data first (True) or the training goes on from the flow's
            weights (False); by default, they are set if the flow was neither fitted nor loaded before. A new flow that
            is not set from the data learns from rows that are not standardised.
        resolution: the step that values were rounded to, a number or one for each feature, 0 where there is none;
            "auto" takes the step that repeated values of a column show. Each value then stands for an interval of
            that width around it, from which it is drawn anew each time. ``log_prob`` stays a density, in the units of
            the data: that of the values before rounding.
        steps_per_epoch: batches in an epoch, for loaders without an end.

    Returns:
        The :class:`History`. The flow is then in evaluation mode, ``flow.eval()``, in which dropout does nothing. After
        Ctrl-C the history is returned early, with ``interrupted`` set, the best weights in place, or those of the
        steps so far in the first epoch.

    Raises:
        ValueError: data that no flow can be fitted to (empty, too few rows, the wrong number of columns, a
            value that is not finite or outside the flow's support, a constant column), a setting out of range, a device
            that cannot be used, a flow without trainable parameters, or a checkpoint of another run. The flow is then
            as it was before.
        OSError: the checkpoint cannot be written; the flow is as it was before if it could not from the start.
        TypeError: data that are not real numbers.

    Warns:
        RuntimeWarning: the loss or its gradient stopped being finite. The training ends there; the best weights are in
            place, and the warning names the likely cause.

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
    with seeded(settings["seed"] % 2**32, own.device):  # a support behind noise is looked at through it
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
    """Take the steps; whatever ends them, the best weights are in place then."""
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
