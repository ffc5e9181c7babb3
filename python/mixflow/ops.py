"""The mixture-CDF transform as torch ops: checks, registration, gradients, and the numpy entry.

The compiled core knows pointers and strides only. Here it becomes two functional ops, ``mixflow::map`` and
``mixflow::map_backward``, registered with ``torch.library`` so that ``torch.compile``, ``torch.func`` and fake tensors
see through them, with a ``torch.autograd.Function`` around them that is entered only when a gradient is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _core, reference

__all__ = ["BASES", "FAMILIES", "cdf_transform", "cdf_transform_inverse"]

FAMILIES: tuple[str, ...] = _core.FAMILIES
BASES: tuple[str, ...] = _core.BASES

Array = TypeVar("Array", Tensor, np.ndarray[Any, Any])
Tensors: TypeAlias = tuple[Tensor, ...]

_FAMILY_INDEX = {name: index for index, name in enumerate(FAMILIES)}
_BASE_INDEX = {name: index for index, name in enumerate(BASES)}
_PLAIN = (Tensor, torch.nn.Parameter)
_ARRAYS = (np.ndarray, np.generic)
_PARAMETERS = ("logits", "loc", "log_scale")
_HALF = (torch.float16, torch.bfloat16)
_FULL = (torch.float32, torch.float64)


def cdf_transform(
    x: Array, logits: Array, loc: Array, log_scale: Array, *, family: str = "gaussian", base: str = "normal"
) -> tuple[Array, Array]:
    r"""Map data to the base distribution through a mixture CDF, ``z = G^-1(F(x))``.

    ``F(x) = sum_k softmax(logits)_k C((x - loc_k) / exp(log_scale_k))``, with ``C`` the standard CDF of ``family`` and
    ``G`` the CDF of ``base``. Both tails keep full relative accuracy, however far out ``x`` lies.

    Args:
        x: Elements to transform, shape ``(...)``; a torch tensor or a numpy array, like all the others. Arrays are used
            where they lie, read-only ones too; only those with negative strides, foreign byte order or unaligned
            elements are copied.
        logits: Unnormalised log-weights, shape ``(..., K)``. Batch axes of the parameters broadcast against ``x``, and
            nothing is expanded in memory: ``(K,)``, ``(D, K)`` against ``(N, D)`` and ``(N, D, K)`` all work.
        loc: Locations of the components, ``(..., K)``, in the units of ``x``.
        log_scale: Natural logarithms of their scales, ``(..., K)``.
        family: One of ``mixflow.FAMILIES``.
        base: One of ``mixflow.BASES``.

    Returns:
        ``z`` and ``ladj = log |dz/dx|`` in nats, both of the broadcast shape ``(...)``, in the dtype of ``x``. float32
        and float64 are computed as such; float16 and bfloat16 are computed in float32. That is so under
        ``torch.autocast``, too, which changes no dtype here. For torch tensors both are differentiable in every
        argument. ``x = +-inf`` gives ``z = +-inf`` (0 or 1 for the uniform base), NaN gives NaN for that element alone.

    Raises:
        TypeError: An argument is not a floating-point tensor or array, or float64 is mixed with another dtype.
        ValueError: Shapes do not broadcast, ``K`` differs or is 0, devices differ, or a name is unknown.

    Source: the "mixture CDF" flow layer of Ho et al., "Flow++" (2019), and Meng et al., "Gaussianization Flows" (2020).

    Example:
        >>> import torch, mixflow
        >>> logits, loc, log_scale = torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.zeros(2)
        >>> z, ladj = mixflow.cdf_transform(torch.tensor([0.0, 1.0]), logits, loc, log_scale)
        >>> z.shape, f"{z[0]:.4f}"
        (torch.Size([2]), '0.0000')

    """
    return _call("x", x, logits, loc, log_scale, family, base, inverse=False)


def cdf_transform_inverse(
    z: Array, logits: Array, loc: Array, log_scale: Array, *, family: str = "gaussian", base: str = "normal"
) -> tuple[Array, Array]:
    r"""Map from the base distribution back to data, ``x = F^-1(G(z))``: the inverse of :func:`cdf_transform`.

    Solved by a Newton iteration inside a bracket that always holds the root; gradients are those of the implicit
    function, not of the iteration.

    Args:
        z: Elements of the base distribution, shape ``(...)``; in ``[0, 1]`` for the uniform base.
        logits: As in :func:`cdf_transform`.
        loc: As in :func:`cdf_transform`.
        log_scale: As in :func:`cdf_transform`.
        family: One of ``mixflow.FAMILIES``.
        base: One of ``mixflow.BASES``.

    Returns:
        ``x`` and ``ladj = log |dx/dz|`` in nats, both of the broadcast shape ``(...)``, in the dtype of ``z``.
        ``z = +-inf`` (uniform base: 0 or 1) gives ``x = +-inf``; NaN, and for the uniform base anything outside
        ``[0, 1]``, gives NaN for that element alone.

    Raises:
        TypeError: As in :func:`cdf_transform`.
        ValueError: As in :func:`cdf_transform`.

    Source: bracketing by component quantiles is folklore of mixture quantiles; implicit gradients as in Figurnov et
    al., "Implicit Reparameterization Gradients" (2018).

    Example:
        >>> import torch, mixflow
        >>> parameters = torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.zeros(2)
        >>> x, ladj = mixflow.cdf_transform_inverse(torch.tensor([0.0, 2.0]), *parameters, base="logistic")
        >>> z, _ = mixflow.cdf_transform(x, *parameters, base="logistic")
        >>> torch.allclose(z, torch.tensor([0.0, 2.0]), atol=1e-6)
        True

    """
    return _call("z", z, logits, loc, log_scale, family, base, inverse=True)


def _call(
    name: str, x: Array, logits: Array, loc: Array, log_scale: Array, family: str, base: str, *, inverse: bool
) -> tuple[Array, Array]:
    if isinstance(x, _ARRAYS):
        tensors = [_from_numpy(n, a) for n, a in zip((name, *_PARAMETERS), (x, logits, loc, log_scale), strict=True)]
        with torch.no_grad():
            results = _call(name, tensors[0], tensors[1], tensors[2], tensors[3], family, base, inverse=inverse)
        return results[0].numpy(), results[1].numpy()
    _check(name, x, logits, loc, log_scale, family, base)
    dtype = x.dtype
    if dtype in _HALF or logits.dtype in _HALF or loc.dtype in _HALF or log_scale.dtype in _HALF:
        x, logits, loc, log_scale = x.float(), logits.float(), loc.float(), log_scale.float()
    value, ladj = _apply(x, logits, loc, log_scale, family, base, inverse)
    return (value.to(dtype), ladj.to(dtype)) if dtype in _HALF else (value, ladj)


def _from_numpy(name: str, array: object) -> Tensor:
    """``array`` as a tensor of the same memory, if torch can hold it: native, aligned, no negative strides."""
    if not isinstance(array, _ARRAYS) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a numpy array, like the others; got {type(array).__name__}")
    dtype = array.dtype.newbyteorder("=")
    if dtype not in (np.float32, np.float64, np.float16):
        raise TypeError(f"{name}: expected a float16, float32 or float64 array; got {array.dtype}")
    native = np.asarray(array, dtype)
    strides = native.strides
    if not native.flags.aligned or any(stride < 0 or stride % dtype.itemsize for stride in strides):
        native = native.copy()
    return torch.from_numpy(native if native.flags.writeable else np.asarray(_Unlocked(native)))


class _Unlocked:
    """A read-only array as numpy's interface presents it, but for the flag: torch warns of it, and nothing writes."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
        self.array = array  # whose memory it is


def _same(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two shapes are one; Python compares the sizes of unlike lengths, too, which a graph would guard."""
    return len(a) == len(b) and a == b


def _plain_on_cpu(x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor) -> bool:
    """Whether these are CPU tensors and no subclass of torch's own; written out, since a loop takes longer."""
    return (
        type(x) in _PLAIN
        and type(logits) in _PLAIN
        and type(loc) in _PLAIN
        and type(log_scale) in _PLAIN
        and x.is_cpu
        and logits.is_cpu
        and loc.is_cpu
        and log_scale.is_cpu
    )


def _plainly_right(x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor) -> bool:
    """Whether these are float32 CPU tensors, the parameters of one non-empty shape that fits x as it is.

    True for most calls, and known in a tenth of the time that :func:`_check` takes to find what is wrong.
    """
    shape: Any = getattr(logits, "shape", None)
    return (
        _plain_on_cpu(x, logits, loc, log_scale)
        and x.dtype is logits.dtype is loc.dtype is log_scale.dtype is torch.float32
        and x.layout is logits.layout is loc.layout is log_scale.layout is torch.strided
        and _same(shape, loc.shape)
        and _same(shape, log_scale.shape)
        and len(shape) > 0
        and shape[-1] > 0
        and (len(shape) == 1 or _same(shape[:-1], x.shape))
    )


def _check(name: str, x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: str, base: str) -> None:
    if _plainly_right(x, logits, loc, log_scale) and family in FAMILIES and base in BASES:
        return
    arguments = {name: x, "logits": logits, "loc": loc, "log_scale": log_scale}
    for key, tensor in arguments.items():
        if not isinstance(tensor, Tensor):
            wanted = "torch tensor or a numpy array" if key == name else f"torch tensor, like {name}"
            raise TypeError(f"{key}: expected a {wanted}; got {type(tensor).__name__}")
        if tensor.layout is not torch.strided or tensor.is_nested:
            kind = f"a nested tensor of layout {tensor.layout}" if tensor.is_nested else tensor.layout
            raise TypeError(f"{key}: expected a dense tensor (layout torch.strided); got {kind}")
        if tensor.dtype not in _FULL and tensor.dtype not in _HALF:
            raise TypeError(f"{key}: expected float16, bfloat16, float32 or float64; got {tensor.dtype}")
        if (tensor.dtype == torch.float64) != (x.dtype == torch.float64):
            raise TypeError(f"{key}: expected {x.dtype}, like {name}; got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{key}: expected device {x.device}, like {name}; got {tensor.device}")
    if family not in FAMILIES:
        raise ValueError(f"family: expected one of {', '.join(FAMILIES)}; got {family!r}")
    if base not in BASES:
        raise ValueError(f"base: expected one of {', '.join(BASES)}; got {base!r}")
    for key in _PARAMETERS:
        parameter = arguments[key]
        if parameter.dim() == 0 or parameter.shape[-1] == 0:
            raise ValueError(f"{key}: expected shape (..., K) with K >= 1; got {tuple(parameter.shape)}")
        if parameter.shape[-1] != logits.shape[-1]:
            raise ValueError(
                f"{key}: expected shape (..., {logits.shape[-1]}), like logits; got {tuple(parameter.shape)}"
            )
    if logits.dim() == loc.dim() == log_scale.dim() == 1:
        return
    shape = tuple(x.shape)
    for key in _PARAMETERS:
        batch = tuple(arguments[key].shape[:-1])
        try:
            shape = torch.broadcast_shapes(shape, batch)
        except RuntimeError:
            raise ValueError(
                f"{key}: expected shape (..., K) whose batch axes broadcast against {tuple(shape)}; "
                f"got {tuple(arguments[key].shape)}"
            ) from None


def _apply(
    x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: str, base: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():
        if _is_differentiated_in_graph(torch.is_grad_enabled()):
            return _written_out(x, logits, loc, log_scale, family, base, inverse)
        return cast("tuple[Tensor, Tensor]", _Map.apply(x, logits, loc, log_scale, family, base, inverse))
    if forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return cast("tuple[Tensor, Tensor]", _MapWithJvp.apply(x, logits, loc, log_scale, family, base, inverse))
    if torch.is_grad_enabled() and (
        x.requires_grad or logits.requires_grad or loc.requires_grad or log_scale.requires_grad
    ):
        return cast("tuple[Tensor, Tensor]", _EagerMap.apply(x, logits, loc, log_scale, family, base, inverse))
    return _run_map(x, logits, loc, log_scale, family, base, inverse)


@torch.compiler.assume_constant_result
def _is_differentiated_in_graph(grad_enabled: bool) -> bool:
    """Whether ``torch.func`` or forward mode differentiate inside the function that is being compiled.

    There Dynamo ignores what a Function says of its derivatives, and they would come out as zero (pytorch#192985,
    pytorch#193279). Nor does ``vmap`` in a graph show what requires a gradient, or map a Function that has one
    (pytorch#129845).
    """
    kinds = torch._C._functorch.TransformType
    keys = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
    return (
        forward_ad._current_level >= 0
        or kinds.Grad in keys
        or kinds.Jvp in keys
        or (grad_enabled and kinds.Vmap in keys)
    )


def _written_out(
    x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: str, base: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The transform in torch's own operations, whose derivatives any transform of ``torch.func`` knows."""
    if not inverse:
        return reference.cdf_transform(x, logits, loc, log_scale, family=family, base=base)
    constants = (t.detach() for t in (x, logits, loc, log_scale))
    root, _ = torch.ops.mixflow.map(*constants, family, base, True)
    return reference.solved_inverse(root, x, logits, loc, log_scale, family=family, base=base)


def _skips_dispatch(x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor) -> bool:
    """Whether nothing but the CPU kernel would see a call: no mode, no subclass. Torch's dispatch takes 15 us.

    It is needed where the memory is not the tensor: for a view that stands for its negative (``z.conj().imag``). And
    ``torch.jit.trace`` records only what is dispatched.
    """
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and _plain_on_cpu(x, logits, loc, log_scale)
        and not (x.is_neg() or logits.is_neg() or loc.is_neg() or log_scale.is_neg())
    )


def _is_plain_seed(grad: Tensor) -> bool:
    """Whether a gradient that autograd hands over is its memory; ``is_grads_batched`` hands over one without."""
    return type(grad) is Tensor and not grad.is_neg() and not torch._C._functorch.is_legacy_batchedtensor(grad)


def _run_map(
    x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: str, base: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    run = _map if _skips_dispatch(x, logits, loc, log_scale) else torch.ops.mixflow.map
    return cast("tuple[Tensor, Tensor]", run(x, logits, loc, log_scale, family, base, inverse))


def inverse_diagnostics(
    z: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, *, family: str = "gaussian", base: str = "normal"
) -> tuple[Tensor, Tensor, Tensor]:
    """How :func:`cdf_transform_inverse` came to its result, on the CPU: for tests and benchmarks.

    Args:
        z: As in :func:`cdf_transform_inverse`, a float32 or float64 CPU tensor, like the parameters.
        logits: As in :func:`cdf_transform_inverse`.
        loc: As in :func:`cdf_transform_inverse`.
        log_scale: As in :func:`cdf_transform_inverse`.
        family: One of ``mixflow.FAMILIES``.
        base: One of ``mixflow.BASES``.

    Returns:
        ``x``, the number of evaluations of the mixture, and the residual ``log F(x) - log(1 - F(x)) - logit G(z)`` of
        the last one, all of the broadcast shape ``(...)``.

    Raises:
        TypeError: As in :func:`cdf_transform`.
        ValueError: As in :func:`cdf_transform`.

    Example:
        >>> import torch
        >>> from mixflow.ops import inverse_diagnostics
        >>> x, evaluations, residual = inverse_diagnostics(torch.zeros(3), *[torch.zeros(1)] * 3)
        >>> evaluations.tolist()
        [1.0, 1.0, 1.0]
    """
    _check("z", z, logits, loc, log_scale, family, base)
    x, ladj = _map_fake(z, logits, loc, log_scale, family, base, True)
    evaluations, residual = torch.empty_like(x), torch.empty_like(x)
    if x.numel() > 0:
        _run(_core.map, True, family, base, z, logits, loc, log_scale, x, ladj, evaluations, residual)
    return x, evaluations, residual


# ------------------------------------------------------------------------------------------------------ registration

_library = torch.library.Library("mixflow", "DEF")
_library.define(
    "map(Tensor input, Tensor logits, Tensor loc, Tensor log_scale, str family, str base, bool inverse)"
    " -> (Tensor, Tensor)"
)
_library.define(
    "map_backward(Tensor grad_value, Tensor grad_ladj, Tensor x, Tensor logits, Tensor loc, Tensor log_scale,"
    " str family, str base, bool inverse) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _batch_shape(x: Tensor, *parameters: Tensor) -> tuple[int, ...]:
    shape = parameters[0].shape
    if all(_same(p.shape, shape) for p in parameters) and (len(shape) == 1 or _same(shape[:-1], x.shape)):
        return tuple(x.shape)
    return tuple(torch.broadcast_shapes(x.shape, *(p.shape[:-1] for p in parameters)))


def _parameter_shape(*parameters: Tensor) -> tuple[int, ...]:
    shape = parameters[0].shape
    if all(_same(p.shape, shape) for p in parameters):
        return tuple(shape)
    return tuple(torch.broadcast_shapes(*(p.shape for p in parameters)))


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Contiguous, of this shape; ``empty_like`` takes half the time of ``new_empty``."""
    return torch.empty_like(like) if _same(like.shape, shape) and like.is_contiguous() else like.new_empty(shape)


def _map_fake(
    x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: str, base: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    value = _empty(_batch_shape(x, logits, loc, log_scale), x)
    return value, torch.empty_like(value)


def _map_backward_fake(
    grad_value: Tensor,
    grad_ladj: Tensor,
    x: Tensor,
    logits: Tensor,
    loc: Tensor,
    log_scale: Tensor,
    family: str,
    base: str,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = _parameter_shape(logits, loc, log_scale)
    x_grad = _empty(_batch_shape(x, logits, loc, log_scale), x)
    return x_grad, _empty(shape, logits), _empty(shape, loc), _empty(shape, log_scale)


def _run(kernel: Callable[..., None], inverse: bool, family: str, base: str, x: Tensor, *others: Tensor) -> None:
    """Hand addresses, shapes and strides to the core, to run where ``x`` lies."""
    operands = [(t.data_ptr(), t.shape, t.stride()) for t in (x, *others)]
    if x.device.type == "cpu":
        device, stream = -1, torch.get_num_threads()
    elif _core.cuda_architectures():
        device, stream = x.device.index, torch.cuda.current_stream(x.device).cuda_stream
    else:
        raise RuntimeError(
            f"x: expected a CPU tensor, since this build of mixflow has no CUDA kernels; got one on {x.device}. "
            "Reinstall from source with nvcc on PATH: pip install --force-reinstall --no-deps "
            "-C cmake.define.MIXFLOW_CUDA=ON ."
        )
    kernel(inverse, _FAMILY_INDEX[family], _BASE_INDEX[base], x.dtype == torch.float64, operands, device, stream)


def _map(
    x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: str, base: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    value, ladj = _map_fake(x, logits, loc, log_scale, family, base, inverse)
    if value.numel() > 0:
        _run(_core.map, inverse, family, base, x, logits, loc, log_scale, value, ladj)
    return value, ladj


def _sum_to(grad: Tensor, shape: tuple[int, ...]) -> Tensor:
    return grad if _same(grad.shape, shape) else grad.sum_to_size(shape)


def _map_backward(
    grad_value: Tensor,
    grad_ladj: Tensor,
    x: Tensor,
    logits: Tensor,
    loc: Tensor,
    log_scale: Tensor,
    family: str,
    base: str,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = _parameter_shape(logits, loc, log_scale)
    if x.device.type == "cuda":  # the CUDA kernel writes a gradient per element; the sums are torch's
        batch = _batch_shape(x, logits, loc, log_scale)
        logits, loc, log_scale = (p.expand(*batch, p.shape[-1]) for p in (logits, loc, log_scale))
    arguments = (grad_value, grad_ladj, x, logits, loc, log_scale)
    grads = _map_backward_fake(*arguments, family, base, inverse)
    if grads[0].numel() > 0:
        _run(_core.map_backward, inverse, family, base, *arguments, *grads)
        return grads[0], _sum_to(grads[1], shape), _sum_to(grads[2], shape), _sum_to(grads[3], shape)
    return grads[0], x.new_zeros(shape), x.new_zeros(shape), x.new_zeros(shape)


for _key in ("CPU", "CUDA"):
    _library.impl("map", _map, _key)
    _library.impl("map_backward", _map_backward, _key)
torch.library.register_fake("mixflow::map", _map_fake, lib=_library)
torch.library.register_fake("mixflow::map_backward", _map_backward_fake, lib=_library)


def _align(info: Any, in_dims: tuple[int | None, ...], tensors: Tensors, component_axes: tuple[int, ...]) -> Tensors:
    """Give every operand of a vmapped call the mapped axis in front and the same number of batch axes after it."""
    ranks = [t.dim() - (d is not None) - c for t, d, c in zip(tensors, in_dims, component_axes, strict=True)]
    aligned = []
    for tensor, dim, rank in zip(tensors, in_dims, ranks, strict=True):
        front = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        padding = (1,) * (max(ranks) - rank)
        aligned.append(front.reshape(info.batch_size, *padding, *front.shape[1:]))
    return tuple(aligned)


def _map_vmap(run: Callable[..., Tensors], info: Any, in_dims: Any, *args: Any) -> tuple[Tensors, tuple[int, int]]:
    return run(*_align(info, in_dims[:4], args[:4], (0, 1, 1, 1)), *args[4:]), (0, 0)


def _map_backward_vmap(
    run: Callable[..., Tensors], info: Any, in_dims: Any, *args: Any
) -> tuple[Tensors, tuple[int, int, int, int]]:
    tensors = _align(info, in_dims[:6], args[:6], (0, 0, 0, 1, 1, 1))
    grad_input, *grads = run(*tensors, *args[6:])
    own_axes = max(t.dim() - (d is not None) for t, d in zip(args[3:6], in_dims[3:6], strict=True))
    return (grad_input, *(g.reshape(g.shape[:1] + g.shape[g.dim() - own_axes :]) for g in grads)), (0, 0, 0, 0)


for _key, _rule in (("map", _map_vmap), ("map_backward", _map_backward_vmap)):
    _operator = getattr(torch.ops.mixflow, _key)
    torch.library.register_vmap(f"mixflow::{_key}", functools.partial(_rule, _operator), lib=_library)


# --------------------------------------------------------------------------------------------------------- gradients
#
# First derivatives are fused kernels. Second derivatives differentiate `_backward_formula`, the same gradient written
# with the torch formulas of `reference`. Only inputs and outputs are saved, so that autograd sees every dependence.


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> Tensors:
    x, logits, loc, log_scale, ctx.family, ctx.base, ctx.inverse = inputs
    ctx.input_shape = x.shape
    saved = output[0] if ctx.inverse else x, logits, loc, log_scale
    ctx.save_for_backward(*saved)
    ctx.set_materialize_grads(False)
    return saved


def _pull_back(ctx: Any, grad_value: Tensor | None, grad_ladj: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_value is None and grad_ladj is None:
        return (None,) * 7
    point, logits, loc, log_scale = ctx.saved_tensors
    zero = point.new_zeros(()) if grad_value is None or grad_ladj is None else point
    grad_value, grad_ladj = zero if grad_value is None else grad_value, zero if grad_ladj is None else grad_ladj
    run: Callable[..., Tensors]
    if torch.compiler.is_compiling():  # no second derivatives in a compiled graph, and no Function in a backward
        run = torch.ops.mixflow.map_backward
    elif torch.is_grad_enabled() or torch._C._functorch.peek_interpreter_stack() is not None:
        run = _MapBackward.apply
    elif _skips_dispatch(point, logits, loc, log_scale) and _is_plain_seed(grad_value) and _is_plain_seed(grad_ladj):
        run = _map_backward
    else:
        run = torch.ops.mixflow.map_backward
    grads = run(grad_value, grad_ladj, point, logits, loc, log_scale, ctx.family, ctx.base, ctx.inverse)
    shapes = ctx.input_shape, logits.shape, loc.shape, log_scale.shape
    return (*(_sum_to(g, shape) for g, shape in zip(grads, shapes, strict=True)), None, None, None)


class _EagerMap(torch.autograd.Function):
    """For plain reverse mode: a Function with setup_context has its arguments bound by ``inspect`` at every call."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _run_map(*inputs)
        _save(ctx, inputs, output)
        return output

    backward = staticmethod(_pull_back)


class _Map(torch.autograd.Function):
    """For compiled graphs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: str, base: str, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor]", torch.ops.mixflow.map(x, logits, loc, log_scale, family, base, inverse))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _save(ctx, inputs, output)

    backward = staticmethod(_pull_back)


# Torch turns forward mode off while the jvp of a Function runs, so that jvp of jvp loses its second derivatives
# (pytorch#197867). Turned on again, it must not see the tangents of the level that jvp itself is computing.


def _forward_mode_of_outer_levels() -> AbstractContextManager[Any]:
    return forward_ad._set_fwd_grad_enabled(True)


def _primals(tensors: Tensors) -> Tensors:
    return tuple(cast(Tensor, forward_ad.unpack_dual(t).primal) for t in tensors)


class _MapWithJvp(_Map):
    """For ``torch.func`` and forward mode; Dynamo cannot trace a Function that defines jvp."""

    generate_vmap_rule = False  # under the generated one, saved tensors hide their tangents

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _map_vmap(_MapWithJvp.apply, info, in_dims, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_forward(*_save(ctx, inputs, output))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        """Rows of the Jacobian, from two unreduced backward passes, times the tangents."""
        with _forward_mode_of_outer_levels():
            point, *parameters = _primals(ctx.saved_tensors)
            shape = _batch_shape(point, *parameters)
            expanded = [p.expand(*shape, p.shape[-1]) for p in parameters]
            one, zero = point.new_ones(()), point.new_zeros(())
            results = []
            for seeds in ((one, zero), (zero, one)):
                row = _MapBackward.apply(*seeds, point, *expanded, ctx.family, ctx.base, ctx.inverse)
                products = [None if t is None else g * t for g, t in zip(row, tangents[:4], strict=True)]
                terms = [p.sum(-1) if i else p for i, p in enumerate(products) if p is not None]
                results.append(functools.reduce(torch.add, terms))
        return results[0], results[1]


def _backward_formula(family: str, base: str, inverse: bool) -> Callable[..., Tensors]:
    """What ``mixflow::map_backward`` computes, in differentiable torch operations."""

    def transform(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        return reference.cdf_transform(*arguments, family=family, base=base)

    def formula(grad_value: Tensor, grad_ladj: Tensor, x: Tensor, *parameters: Tensor) -> Tensors:
        shape = _batch_shape(x, *parameters)
        parameter_shape = _parameter_shape(*parameters)
        primals = (x.expand(shape), *(p.expand(parameter_shape) for p in parameters))
        value_and_ladj, pull_back = torch.func.vjp(transform, *primals)[:2]
        ladj = value_and_ladj[1]
        grad_value, grad_ladj = grad_value.expand(shape), grad_ladj.expand(shape)
        if not inverse:
            return cast(Tensors, pull_back((grad_value, grad_ladj)))
        slope = pull_back((torch.zeros_like(ladj), torch.ones_like(ladj)))[0]
        grad_z = (grad_value - grad_ladj * slope) * torch.exp(-ladj)
        return (grad_z, *pull_back((-grad_z, -grad_ladj))[1:])

    return formula


class _MapBackward(torch.autograd.Function):
    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _map_backward_vmap(_MapBackward.apply, info, in_dims, *args)

    @staticmethod
    def forward(*args: Any) -> Tensors:
        return cast(Tensors, torch.ops.mixflow.map_backward(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        *tensors, ctx.family, ctx.base, ctx.inverse = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        formula = _backward_formula(ctx.family, ctx.base, ctx.inverse)
        pull_back = torch.func.vjp(formula, *ctx.saved_tensors)[1]
        return (*pull_back(grads), None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensors:
        with _forward_mode_of_outer_levels():
            # Seeds are often expanded, and a tangent cannot be written into memory that its elements share.
            tensors = tuple(t.contiguous() for t in _primals(ctx.saved_tensors))
            moved = tuple(torch.zeros_like(p) if t is None else t for p, t in zip(tensors, tangents[:6], strict=True))
            formula = _backward_formula(ctx.family, ctx.base, ctx.inverse)
            return cast(Tensors, torch.func.jvp(formula, tensors, moved)[1])
