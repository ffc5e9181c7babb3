"""An op of the compiled core: the names of its operands, the memory for its results, and the call of its kernels.

The core takes addresses, shapes and strides, and allocates nothing. So an :class:`Op` allocates outputs and gradients,
and hands them to a kernel together with the inputs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .. import _core
from .shapes import batch_shape, empty, parameter_shape

__all__ = ["BASES", "FAMILIES", "PARAMETERS", "BackwardArguments", "Op", "Tensors", "limit", "run"]

Tensors: TypeAlias = tuple[Tensor, ...]
Names: TypeAlias = tuple[str, ...]

FAMILIES: Names = _core.FAMILIES
BASES: Names = _core.BASES
PARAMETERS: Names = ("logits", "loc", "log_scale")


class _Limit(threading.local):
    """How many threads the core may use for calls from the current thread; 0 stands for as many as torch uses."""

    threads = 0


limit = _Limit()


def run(kernel: Callable[..., None], indices: tuple[int, ...], tensors: Sequence[Any], *extra: Any) -> None:
    """Call a kernel of the core on the device of ``tensors[0]``.

    Args:
        kernel: A function of ``mixflow._core``.
        indices: The first arguments of the kernel: what to compute, as numbers.
        tensors: The operands. One that is a tuple, (address, shape, strides), goes to the core as it is.
        extra: The last arguments of the kernel.

    Raises:
        RuntimeError: The tensors are on a GPU, and this build has no CUDA kernels.
    """
    x = tensors[0]
    operands = [t if type(t) is tuple else (t.data_ptr(), t.shape, t.stride()) for t in tensors]
    if x.is_cpu:
        device, stream, threads = -1, 0, limit.threads or torch.get_num_threads()
    elif _core.cuda_architectures():
        device, stream, threads = x.device.index, torch.cuda.current_stream(x.device).cuda_stream, 1
    else:
        raise RuntimeError(
            f"x: expected a CPU tensor, since this build of mixflow has no CUDA kernels, got one on {x.device}. "
            "Reinstall from source with nvcc on PATH: pip install --force-reinstall --no-deps "
            "-C cmake.define.MIXFLOW_CUDA=ON ."
        )
    kernel(*indices, x.dtype == torch.float64, operands, device, stream, threads, *extra)


class BackwardArguments(NamedTuple):
    """The arguments of a backward op, split by what they are."""

    seeds: Tensors  # the gradients of the outputs
    points: Tensors  # the elements that the gradient is a function of
    parameters: Tensors
    options: tuple[Any, ...]
    wanted: Sequence[bool]  # for each of points and parameters, whether its gradient is computed

    @property
    def tensors(self) -> Tensors:
        """All tensors, in the order of the backward op."""
        return self.seeds + self.points + self.parameters


@dataclass(kw_only=True)
class Op:
    """An op and its gradient: everything that is particular to one op and not to another.

    For torch it is two ops. ``mixflow::NAME`` takes elements, parameters and options, and returns outputs of the
    elements' broadcast shape. ``mixflow::NAME_backward`` takes the gradients of the outputs, the points, the
    parameters, the options, and which gradients are wanted. It returns a gradient for each element (of the broadcast
    shape) and for each parameter (of the parameters' broadcast shape); one that is not wanted is empty. The names here
    are the only statement of the order of operands: schemas, kernel calls and gradients follow it.

    Args:
        name: The name of the torch op.
        elements: Names of the tensors that have the elements' shape.
        outputs: Names of the results, one or two.
        options: The names of the other arguments, each with its type in torch's schema language.
        parameters: Names of the tensors whose last axis is no batch axis.
        leaves_sums_to_torch: Whether the backward kernel gives each element a gradient of its parameters, and torch
            sums them for parameters that were broadcast.
        kernel: The kernel of the op.
        backward_kernel: The kernel of the gradients.
        slopes_kernel: Optional, for an op with one element: a kernel of its outputs and of their derivatives by it.
        indices: From the options to the numbers that the kernels take first.
        written_out: From the options to a function that computes what ``backward_kernel`` computes, in differentiable
            torch operations.
    """

    name: str
    elements: Names
    outputs: Names
    options: Mapping[str, str]
    parameters: Names = PARAMETERS
    leaves_sums_to_torch: bool = False
    kernel: Callable[..., None]
    backward_kernel: Callable[..., None]
    slopes_kernel: Callable[..., None] | None = None
    indices: Callable[..., tuple[int, ...]]
    written_out: Callable[..., Callable[..., Tensors]]

    tensors: Names = field(init=False)  # elements and parameters
    component_axes: tuple[int, ...] = field(init=False)  # for each of the tensors, 1 if it has an axis of components

    def __post_init__(self) -> None:
        self.tensors = self.elements + self.parameters
        self.component_axes = (0,) * len(self.elements) + (1,) * len(self.parameters)
        # Computed once, since short calls need them.
        self._elements, self._outputs, self._tensors = len(self.elements), len(self.outputs), len(self.tensors)
        self._inverse = list(self.options).index("inverse") if "inverse" in self.options else None

    # -- as torch sees it ------------------------------------------------------------------------------------

    @property
    def schema(self) -> str:
        """The signature of the torch op."""
        return f"{self.name}({', '.join(_typed(self.tensors) + self._typed_options)}) -> {_tensor_types(self._outputs)}"

    @property
    def backward_schema(self) -> str:
        """The signature of the torch op of the gradient."""
        grads = tuple(f"grad_{name}" for name in self.outputs)
        wanted = f"bool[{self._tensors}] wanted=True"
        arguments = ", ".join([*_typed(grads + self.tensors), *self._typed_options, wanted])
        return f"{self.name}_backward({arguments}) -> {_tensor_types(self._tensors)}"

    @property
    def _typed_options(self) -> list[str]:
        return [f"{kind} {name}" for name, kind in self.options.items()]

    @property
    def torch_op(self) -> Any:
        """``torch.ops.mixflow.NAME``."""
        return getattr(torch.ops.mixflow, self.name)

    @property
    def torch_backward(self) -> Any:
        """``torch.ops.mixflow.NAME_backward``."""
        return getattr(torch.ops.mixflow, f"{self.name}_backward")

    def call_torch_op(self, *args: Any) -> Tensors:
        """The torch op, called through torch's dispatch."""
        return self.as_tuple(self.torch_op(*args))

    def as_tuple(self, result: Any) -> Tensors:
        """The result of a torch op as a tuple: a torch op of one output returns the tensor alone."""
        return (result,) if self._outputs == 1 else result

    def as_result(self, outputs: Tensors) -> Any:
        """The outputs as a torch op returns them."""
        return outputs[0] if self._outputs == 1 else outputs

    # -- arguments -------------------------------------------------------------------------------------------

    def split(self, args: Sequence[Any]) -> tuple[Tensors, tuple[Any, ...]]:
        """The tensors and the options among the arguments of the op."""
        return tuple(args[: self._tensors]), tuple(args[self._tensors :])

    def split_tensors(self, tensors: Sequence[Tensor]) -> tuple[Tensors, Tensors]:
        """The elements and the parameters."""
        return tuple(tensors[: self._elements]), tuple(tensors[self._elements :])

    def split_backward(self, args: Sequence[Any]) -> BackwardArguments:
        """The arguments of the backward op. Torch omits the last one, ``wanted``, where it has its default."""
        given, options = args[: self._outputs + self._tensors], args[self._outputs + self._tensors :]
        points, parameters = self.split_tensors(given[self._outputs :])
        has_wanted = len(options) > len(self.options)
        wanted = tuple(options[-1]) if has_wanted else (True,) * self._tensors
        own = options[:-1] if has_wanted else options
        return BackwardArguments(tuple(given[: self._outputs]), points, parameters, tuple(own), wanted)

    def is_inverse(self, options: Sequence[Any]) -> bool:
        """Whether these options are those of the inverse direction."""
        return self._inverse is not None and bool(options[self._inverse])

    def points(self, elements: Tensors, outputs: Tensors, options: Sequence[Any]) -> Tensors:
        """The elements that the gradient is a function of: x, whether it is the input or the output."""
        return (outputs[0],) if self.is_inverse(options) else elements

    # -- the op ----------------------------------------------------------------------------------------------

    def empty_outputs(self, tensors: Tensors) -> Tensors:
        """Memory for the outputs."""
        value = empty(batch_shape(tensors[: self._elements], tensors[self._elements :]), tensors[0])
        return (value,) if self._outputs == 1 else (value, torch.empty_like(value))

    def compute(self, tensors: Tensors, options: Sequence[Any]) -> Tensors:
        """The outputs, from the kernel."""
        outputs = self.empty_outputs(tensors)
        if outputs[0].numel() > 0:
            run(self.kernel, self.indices(*options), (*tensors, *outputs))
        return outputs

    def compute_plain(self, tensors: Tensors, options: Sequence[Any]) -> Tensors:
        """:meth:`compute` of tensors that are :func:`~mixflow.op.arguments.are_plain_and_right`, with fewer checks."""
        x = tensors[0]
        outputs = (torch.empty_like(x),) if self._outputs == 1 else (torch.empty_like(x), torch.empty_like(x))
        if x.numel() > 0:
            run(self.kernel, self.indices(*options), (*tensors, *outputs))
        return outputs

    def gives_slopes(self, wanted: Sequence[bool], options: Sequence[Any]) -> bool:
        """Whether the kernel with slopes is enough: only the gradient of x is wanted, in the direction from x."""
        return self.slopes_kernel is not None and True not in wanted[1:] and not self.is_inverse(options)

    def compute_with_slopes(self, tensors: Tensors, options: Sequence[Any]) -> tuple[Tensors, Tensors]:
        """The outputs, and their derivatives by x."""
        outputs = self.empty_outputs(tensors)
        slopes = tuple(torch.empty_like(o) for o in outputs)
        if outputs[0].numel() > 0:
            assert self.slopes_kernel is not None
            run(self.slopes_kernel, self.indices(*options), (*tensors, *outputs, *slopes))
        return outputs, slopes

    # -- its gradient ----------------------------------------------------------------------------------------

    def empty_gradients(
        self, points: Tensors, parameters: Tensors, batch: tuple[int, ...], wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Memory for the gradients that are wanted, otherwise None. Those of the parameters have one memory format."""
        grads: list[Tensor | None] = []
        for i, point in enumerate(points):
            grads.append(empty(batch, point) if wanted[i] else None)
        first: Tensor | None = None
        for i, parameter in enumerate(parameters, self._elements):
            if not wanted[i]:
                grads.append(None)
                continue
            if first is None:
                is_each = self.leaves_sums_to_torch
                shape = (*batch, parameter.shape[-1]) if is_each else parameter_shape(parameters)
                first = empty(shape, parameter)
                grads.append(first)
            else:
                grads.append(torch.empty_like(first))
        return grads

    def gradients(self, given: BackwardArguments) -> list[Tensor | None]:
        """The gradients from the kernel, None where they are not wanted."""
        batch = batch_shape(given.points, given.parameters)
        grads = self.empty_gradients(given.points, given.parameters, batch, given.wanted)
        if 0 in batch:
            return [g if g is None or i < self._elements else g.zero_() for i, g in enumerate(grads)]
        workspace: list[Tensor] = []  # kept alive until the kernel is enqueued; torch may reuse its memory after that

        def allocate(size: int) -> int:
            workspace.append(torch.empty(size, dtype=torch.uint8, device=given.points[0].device))
            return workspace[-1].data_ptr()

        targets: list[Any] = grads
        if not all(given.wanted):  # address 0: the core computes no such gradient; it still reads the shape
            shapes = (batch,) * self._elements + tuple(p.shape for p in given.parameters)
            targets = [(0, s, s) if g is None else g for g, s in zip(grads, shapes, strict=True)]
        operands = (*given.seeds, *given.points, *given.parameters, *targets)
        run(self.backward_kernel, self.indices(*given.options), operands, allocate)
        return grads

    def plain_gradients(self, given: BackwardArguments) -> list[Tensor | None]:
        """:meth:`gradients` of plain tensors, for all parameters and the wanted points, with fewer checks."""
        grads: list[Tensor | None] = []
        targets: list[Any] = []
        for x, is_wanted in zip(given.points, given.wanted, strict=False):
            grads.append(torch.empty_like(x) if is_wanted else None)
            targets.append(grads[-1] if is_wanted else (0, x.shape, x.shape))
        for _ in given.parameters:
            grads.append(torch.empty_like(given.parameters[0]))
        operands = (*given.seeds, *given.points, *given.parameters, *targets, *grads[self._elements :])
        run(self.backward_kernel, self.indices(*given.options), operands, None)
        return grads


def _typed(names: Names) -> list[str]:
    return [f"Tensor {name}" for name in names]


def _tensor_types(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
