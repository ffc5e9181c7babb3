"""Steps of a training as CUDA graphs.

A step of a flow consists of hundreds of small kernels. Launching them one by one takes longer than running them. A CUDA
graph holds all of them and is launched at once. It runs the same kernels on the same memory each time, so each batch is
first copied to the memory that the graph reads. There is one graph for each shape of a batch. An epoch has two shapes,
because its last batch may be smaller.

Nothing in a graph can wait for the device, and Python can decide nothing in it. The first steps of each shape are
therefore taken plainly, under torch's check for operations that wait. If a step waits, all steps stay plain.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["CudaGraph", "Graph", "Graphs", "can_capture", "disabled"]

PLAIN_FIRST = 3  # plain steps of each shape, in which torch and cuBLAS allocate the memory that they keep
MOST_SHAPES = 4  # shapes that are captured; each takes memory of its own

_is_disabled: ContextVar[bool] = ContextVar("is_disabled", default=False)


@contextmanager
def disabled() -> Iterator[None]:
    """Within the block, :func:`mixflow.fit` takes its steps plainly, kernel by kernel. Use it to compare or to debug.

    Example:
        >>> import torch, mixflow
        >>> with mixflow.fitting.captured.disabled():
        ...     history = mixflow.fit(mixflow.flows.univariate(2), torch.randn(100), epochs=1, progress=False)

    """
    token = _is_disabled.set(True)
    try:
        yield
    finally:
        _is_disabled.reset(token)


def can_capture(device: torch.device) -> bool:
    """Whether there are graphs for ``device``.

    Example:
        >>> import torch
        >>> from mixflow.fitting.captured import can_capture
        >>> can_capture(torch.device("cpu"))
        False

    """
    return device.type == "cuda"


class Graph(Protocol):
    """The interface of a graph: it records the work of a block once, and repeats it any number of times."""

    def checked(self) -> AbstractContextManager[None]:
        """A block in which an operation that waits for the device raises RuntimeError."""

    def captured(self) -> AbstractContextManager[None]:
        """A block whose operations are recorded, and not run."""

    def replay(self) -> None:
        """Run what was recorded, on the memory that it was recorded on."""


class CudaGraph:
    """A :class:`Graph` of the current CUDA stream."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    @contextmanager
    def checked(self) -> Iterator[None]:
        """See :class:`Graph`."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns each time that this mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode(before)

    @contextmanager
    def captured(self) -> Iterator[None]:
        """See :class:`Graph`."""
        # Other threads, such as those of a loader, may call CUDA meanwhile.
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            yield

    def replay(self) -> None:
        """See :class:`Graph`."""
        self._graph.replay()


class _Captured:
    """One graph and the memory that it reads."""

    def __init__(self, graph: Graph, run: Callable[..., None], inputs: tuple[Tensor | None, ...]) -> None:
        self._graph = graph
        self._inputs = tuple(None if value is None else value.clone() for value in inputs)
        with graph.captured():
            run(*self._inputs)

    def replay(self, inputs: tuple[Tensor | None, ...]) -> None:
        for own, value in zip(self._inputs, inputs, strict=True):
            if own is not None and value is not None:
                own.copy_(value)
        self._graph.replay()


class Graphs:
    """Runs ``run(*inputs)`` as graphs if that is possible. The results are those of plain calls, bit for bit.

    Args:
        run: work that reads tensors and writes into tensors at fixed places; it returns nothing.
        why_not: the reason why it must run plainly, "" if there is none.

    Attributes:
        note: a note for the history, "" as long as there is none.

    Example:
        >>> import torch
        >>> from mixflow.fitting.captured import Graphs
        >>> total = torch.zeros(())
        >>> graphs = Graphs(total.add_, why_not="there is no GPU")
        >>> graphs(torch.ones(()))
        >>> total, graphs.note
        (tensor(1.), 'Steps: kernel by kernel, since there is no GPU.')

    """

    def __init__(self, run: Callable[..., Any], why_not: str = "") -> None:
        self._run = run
        self._counts: dict[Any, int] = {}  # of the plain steps of each shape
        self._captured: dict[Any, _Captured] = {}
        self.note, self._is_plain = "", False
        if not why_not and _is_disabled.get():
            why_not = "CUDA graphs are disabled"
        if why_not:
            self._stay_plain(why_not)

    def __call__(self, *inputs: Tensor | None) -> None:
        """Run on ``inputs``, tensors on one device or None."""
        shape = tuple(None if value is None else (value.shape, value.dtype) for value in inputs)
        if self._is_plain:
            self._run(*inputs)
        elif shape in self._captured:
            self._captured[shape].replay(inputs)
        else:
            self._prepare(shape, inputs)

    def _prepare(self, shape: Any, inputs: tuple[Tensor | None, ...]) -> None:
        """The first steps of a shape: taken plainly, then captured."""
        count = self._counts[shape] = self._counts.get(shape, 0) + 1
        if len(self._counts) > MOST_SHAPES:
            self._stay_plain(f"there are batches of more than {MOST_SHAPES} shapes")
            self._captured.clear()
            self._run(*inputs)
        elif count <= PLAIN_FIRST:
            self._run_checked(inputs)
        else:
            try:
                captured = self._captured[shape] = _Captured(CudaGraph(), self._run, inputs)
            except RuntimeError as error:
                self._stay_plain(f"a step could not be captured ({_first_line(error)})")
                self._run(*inputs)
                return
            self.note = "Steps: each is one launch of a CUDA graph."
            captured.replay(inputs)

    def _run_checked(self, inputs: tuple[Tensor | None, ...]) -> None:
        device = next(value.device for value in inputs if value is not None)
        drawn_so_far = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        try:
            with CudaGraph().checked():
                self._run(*inputs)
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            self._stay_plain(f"a step waits for the GPU ({_first_line(error)})")
            torch.set_rng_state(drawn_so_far[0])  # the step that failed has drawn numbers, which are drawn again
            if drawn_so_far[1] is not None:
                torch.cuda.set_rng_state(drawn_so_far[1], device)
            self._run(*inputs)

    def _stay_plain(self, reason: str) -> None:
        self._is_plain = True
        self.note = f"Steps: kernel by kernel, since {reason}."


def _first_line(error: RuntimeError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
