"""Several processes that train one flow together, as ``torchrun`` starts them. A single process is a group of one.

Gradients are summed by one ``all_reduce`` of one flat tensor, and not by ``DistributedDataParallel``, for three
reasons. A flow is trained through ``log_prob`` and not through ``forward``. The shards of the last batch differ in size
and must be weighted by their rows. And a flow has only a few thousand numbers, so there is no communication worth
hiding behind the backward pass.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Group", "process_rank"]

T = TypeVar("T")


def process_rank() -> int:
    """This process's number, from 0, among those that ``torchrun`` started; 0 for a process alone.

    Example:
        >>> from mixflow.fitting.parallel import process_rank
        >>> process_rank()
        0

    """
    if _is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if _started_together() else 0


@dataclass
class Group:
    """The processes that train together.

    Attributes:
        rank: this process's number, from 0. Process 0 writes files and messages.
        size: the number of processes.
        interrupted: whether Ctrl-C reached this process inside :meth:`hold_interrupts`.

    Example:
        >>> from mixflow.fitting.parallel import Group
        >>> group = Group()
        >>> group.shard(10), group.share(lambda: "said once")
        (slice(0, 10, None), 'said once')
        >>> Group(rank=1, size=3).shard(10)
        slice(3, 6, None)

    """

    rank: int = 0
    size: int = 1
    interrupted: bool = False

    @classmethod
    def join(cls, device: torch.device) -> Group:
        """The group of ``torch.distributed``; it is initialised here if ``torchrun`` started this process."""
        if not _is_initialized():
            if not _started_together():
                return cls()
            if device.type == "cuda":
                torch.cuda.set_device(device)  # nccl sends objects over this device; otherwise all would take the first
            # The functions of this module keep the group that exists when they are defined, as their default. If they
            # were imported later, as by the optimizers, they would keep this group alive. Its threads would then still
            # run at the end of the interpreter, which sometimes aborts the process.
            importlib.import_module("torch.distributed.nn.functional")
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(_leave)
        return cls(dist.get_rank(), dist.get_world_size())

    def shard(self, rows: int) -> slice:
        """This process's part of ``rows`` rows: consecutive rows, with parts of sizes as equal as possible."""
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    def sum_(self, value: Tensor) -> Tensor:
        """``value`` summed over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def share(self, work: Callable[[], T]) -> T:
        """Do ``work`` on process 0 alone. Its result, or the error that it raises, is then that of all processes."""
        if self.size == 1:
            return work()
        box: list[Any] = [None]
        if self.rank == 0:
            try:
                box = [(work(), None)]
            except Exception as error:
                box = [(None, error)]
        dist.broadcast_object_list(box, src=0)
        result, failure = box[0]
        if failure is not None:
            raise failure
        return cast("T", result)

    def gather(self, value: T) -> list[T]:
        """The ``value`` of each process, in the order of their numbers; the result is the same on all."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone

    def require_same(self, settings: dict[str, Any]) -> None:
        """ValueError on all processes if their ``settings`` differ."""
        everyone = self.gather(settings)
        for name in settings:
            for rank, other in enumerate(everyone):
                if other[name] != everyone[0][name]:
                    raise ValueError(
                        f"{name}: expected the same on every process, got {everyone[0][name]!r} on 0 and "
                        f"{other[name]!r} on {rank}"
                    )

    @contextmanager
    def hold_interrupts(self) -> Iterator[None]:
        """In the block, Ctrl-C sets ``interrupted`` instead of raising an error.

        Several processes must stop at the same step, or they would wait for each other for ever. A single process is
        interrupted at once, as usual. Threads other than the main one get no signals, so nothing changes for them.
        """
        if self.size == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self.interrupted = True

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _started_together() -> bool:
    return dist.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _leave() -> None:
    if _is_initialized():
        dist.destroy_process_group()
