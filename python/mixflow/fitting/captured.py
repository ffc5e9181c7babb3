"""Steps of a training as CUDA graphs.

A step of a flow is hundreds of small kernels. On a GPU, to launch them one by one takes longer than to run them. A CUDA
graph holds all of them and is launched at once. It runs the same kernels on the same memory each time, so a batch is
first copied to where the graph reads it: one graph for each shape of a batch, of which an epoch has two, the last
smaller batch being the second.

Nothing in a graph can wait for the device or be decided by Python. The first steps of each shape are therefore taken
plainly, under torch's check for operations that wait, and a step that waits stays plain.
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

PLAIN_FIRST = 3  # steps of each shape, in which torch and cuBLAS allocate what they keep
MOST_SHAPES = 4  # that are captured: each has memory of its own

_is_disabled: ContextVar[bool] = ContextVar("is_disabled", default=False)


@contextmanager
def disabled() -> Iterator[None]:
    """Let :func:`mixflow.fit` take its steps plainly, kernel by kernel, within the block: to compare or to debug.

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
    """What a graph must offer: the work of a block, recorded once and repeated at will."""

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
            warnings.simplefilter("ignore", UserWarning)  # torch calls this mode a prototype, each time that it is set
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode(before)

    @contextmanager
    def captured(self) -> Iterator[None]:
        """See :class:`Graph`."""
        # Other threads, such as a loader's, may go on to call CUDA meanwhile.
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
    """Runs ``run(*inputs)`` as graphs where it can: with the results of plain calls, bit for bit.

    Args:
        run: work that reads tensors and writes into tensors that stay where they are; it returns nothing.
        why_not: why it must run plainly, "" if it need not.

    Attributes:
        note: what the history says about it, "" before it is known.

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
            torch.set_rng_state(drawn_so_far[0])  # what was drawn before it failed is drawn again
            if drawn_so_far[1] is not None:
                torch.cuda.set_rng_state(drawn_so_far[1], device)
            self._run(*inputs)

    def _stay_plain(self, reason: str) -> None:
        self._is_plain = True
        self.note = f"Steps: kernel by kernel, since {reason}."


def _first_line(error: RuntimeError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
