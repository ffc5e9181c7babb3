"""The mixture-CDF transform and the log-probability of intervals as torch ops: checks, gradients, the numpy entry.

The compiled core knows pointers and strides only. Here each of its ops becomes two functional ones, such as
``mixflow::map`` and ``mixflow::map_backward``, registered with ``torch.library`` so that autograd, ``torch.func``,
fake tensors, compiled graphs, exported programs and traces see through them. Graphs and traces call these ops; an eager
call takes a shorter way, and enters a ``torch.autograd.Function`` only when a gradient is asked for. What an op must
say of itself is in `_Op`; the ones there are come last in this file.
"""

from __future__ import annotations

import cmath
import functools
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _core, export, reference
from ..checks import broadcast_shapes

__all__ = ["BASES", "FAMILIES", "cdf_transform", "cdf_transform_inverse", "discretized_log_prob"]

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
    x: Array,
    logits: Array,
    loc: Array,
    log_scale: Array,
    *,
    family: str = "gaussian",
    base: str = "normal",
    dim: int = -1,
) -> tuple[Array, Array]:
    r"""Map data to the base distribution through a mixture CDF, ``z = G^-1(F(x))``.

    ``F(x) = sum_k softmax(logits)_k C((x - loc_k) / exp(log_scale_k))``, with ``C`` the standard CDF of ``family`` and
    ``G`` the CDF of ``base``. Both tails keep full relative accuracy, however far out ``x`` lies.

    Args:
        x: Elements to transform, shape ``(...)``; a torch tensor or a numpy array, like all the others. Arrays are used
            where they lie, in any layout and read-only ones too; only those with negative strides, foreign byte order
            or unaligned elements are copied.
        logits: Unnormalised log-weights, shape ``(..., K)``. Batch axes of the parameters broadcast against ``x``, and
            nothing is expanded in memory: ``(K,)``, ``(D, K)`` against ``(N, D)`` and ``(N, D, K)`` all work.
        loc: Locations of the components, ``(..., K)``, in the units of ``x``.
        log_scale: Natural logarithms of their scales, ``(..., K)``.
        family: One of ``mixflow.FAMILIES``.
        base: One of ``mixflow.BASES``.
        dim: The axis of the components, in each of the three parameters: with images ``(B, C, H, W)`` and parameters
            ``(B, K, C, H, W)`` it is 1. The shapes above are those with this axis moved to the end; nothing is copied.

    Returns:
        ``z`` and ``ladj = log |dz/dx|`` in nats, both of the broadcast shape ``(...)``, in the dtype of ``x``, and in
        its memory format (channels_last, transposed) where they have its shape. float32
        and float64 are computed as such; float16 and bfloat16 are computed in float32. That is so under
        ``torch.autocast``, too, which changes no dtype here. For torch tensors both are differentiable in every
        argument; an element whose incoming gradients are all zero adds nothing to any gradient, even if it or its own
        parameters are NaN or infinite, so that ``torch.where(mask, ladj, 0)`` is safe. ``x = +-inf`` gives
        ``z = +-inf`` (0 or 1 for the uniform base), NaN gives NaN for that element alone. ``ladj`` is -inf where a tail
        is smaller than any number.

    Raises:
        TypeError: An argument is not a floating-point tensor or array, or float64 is mixed with another dtype.
        ValueError: Shapes do not broadcast, ``K`` differs or is 0, devices differ, a name is unknown, or no axis is
            ``dim``.

    Source: the "mixture CDF" flow layer of Ho et al., "Flow++" (2019), and Meng et al., "Gaussianization Flows" (2020).

    Example:
        >>> import torch, mixflow
        >>> logits, loc, log_scale = torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.zeros(2)
        >>> z, ladj = mixflow.cdf_transform(torch.tensor([0.0, 1.0]), logits, loc, log_scale)
        >>> z.shape, f"{z[0]:.4f}"
        (torch.Size([2]), '0.0000')

    """
    value, ladj = _call(_MAP, ("x",), (x, logits, loc, log_scale), dim, family, base, False)
    return value, ladj


def cdf_transform_inverse(
    z: Array,
    logits: Array,
    loc: Array,
    log_scale: Array,
    *,
    family: str = "gaussian",
    base: str = "normal",
    dim: int = -1,
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
        dim: The axis of the components, as in :func:`cdf_transform`.

    Returns:
        ``x`` and ``ladj = log |dx/dz|`` in nats, both of the broadcast shape ``(...)``, in the dtype and memory format
        of ``z``.
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
    value, ladj = _call(_MAP, ("z",), (z, logits, loc, log_scale), dim, family, base, True)
    return value, ladj


def discretized_log_prob(
    lower: Array, upper: Array, logits: Array, loc: Array, log_scale: Array, *, family: str = "gaussian", dim: int = -1
) -> Array:
    r"""Log-probability of an interval under a mixture, ``log P(lower < X <= upper) = log(F(upper) - F(lower))``.

    Nothing cancels: an interval far out in either tail, or so narrow that both edges have the same ``F``, keeps the
    relative accuracy of its probability. The likelihood of images and audio in bins, whose first and last reach to
    infinity.

    Args:
        lower: Lower edges, shape ``(...)``; a torch tensor or a numpy array, like all the others. May be ``-inf``.
        upper: Upper edges, ``(...)``, broadcasting against ``lower``. May be ``inf``.
        logits: Unnormalised log-weights, shape ``(..., K)``, as in :func:`cdf_transform`.
        loc: Locations of the components, ``(..., K)``, in the units of the edges.
        log_scale: Natural logarithms of their scales, ``(..., K)``.
        family: One of ``mixflow.FAMILIES``.
        dim: The axis of the components, as in :func:`cdf_transform`.

    Returns:
        The log-probability in nats, of the broadcast shape ``(...)``, in the dtype of ``lower``; dtypes as in
        :func:`cdf_transform`. ``-inf`` where ``lower == upper``, NaN where ``lower > upper`` or anything used is NaN.
        For torch tensors differentiable in every argument.

    Raises:
        TypeError: As in :func:`cdf_transform`.
        ValueError: As in :func:`cdf_transform`.

    Source: the discretized logistic mixture of Salimans et al., "PixelCNN++" (2017).

    Example:
        >>> import torch, mixflow
        >>> pixel, half = torch.tensor([-1.0, 0.0, 1.0]), 1 / 255  # 8-bit values, scaled to [-1, 1]
        >>> lower = torch.where(pixel == -1, -torch.inf, pixel - half)
        >>> upper = torch.where(pixel == 1, torch.inf, pixel + half)
        >>> parameters = torch.zeros(2), torch.tensor([-0.5, 0.5]), torch.tensor([-3.0, -3.0])
        >>> [f"{v:.3f}" for v in mixflow.discretized_log_prob(lower, upper, *parameters, family="logistic").tolist()]
        ['-10.657', '-11.890', '-10.657']

    """
    return _call(_INTERVAL, ("lower", "upper"), (lower, upper, logits, loc, log_scale), dim, family)[0]


def affine_transform(
    x: Tensor, rows: Tensor, *, family: str, base: str, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    r"""A mixture CDF, the quantile function of a base and an affine map as one op: the map of coupling flows.

    ``z = exp(log_slope) G^-1(F(x)) + shift`` and ``ladj = log |dz/dx|``, or its inverse. A network's output is taken as
    it is, and the gradient comes back as one tensor of the same layout.

    Args:
        x: Elements ``(...)``; z where ``inverse``.
        rows: ``(..., 3 K + 2)``, broadcasting against x: for each element K logits, K locations, K log scales, shift,
            log_slope.
        family: One of ``mixflow.FAMILIES``.
        base: One of ``mixflow.BASES``.
        inverse: Whether to map from z to x, with ``ladj = log |dx/dz|``.

    Returns:
        Value and ladj, in nats, both of the broadcast shape; dtypes as in :func:`cdf_transform`.

    Raises:
        TypeError: One of the two is float64 and the other is not.
        ValueError: The last axis of ``rows`` has not the length 3 K + 2.

    Source: Ho et al., "Flow++" (2019, arXiv:1902.00275).

    Example:
        >>> import torch
        >>> from mixflow.op import affine_transform
        >>> one_component = torch.tensor([0.0, 3.0, 0.0, 5.0, 0.0])  # loc 3, shift 5
        >>> z, ladj = affine_transform(torch.ones(2), one_component, family="logistic", base="logistic")
        >>> torch.allclose(z, torch.tensor([3.0, 3.0])), torch.allclose(ladj, torch.zeros(2), atol=1e-6)
        (True, True)

    """
    if rows.dim() == 0 or rows.shape[-1] < 5 or rows.shape[-1] % 3 != 2:
        raise ValueError(f"rows: expected shape (..., 3 K + 2) with K >= 1; got {tuple(rows.shape)}")
    if (x.dtype == torch.float64) != (rows.dtype == torch.float64):
        raise TypeError(f"rows: expected {x.dtype}, like x; got {rows.dtype}")
    if _are_plain((x, rows)) and _same(rows.shape[:-1], x.shape):
        value, ladj = _AFFINE.call_plain((x, rows), family, base, inverse)
    else:
        value, ladj = _in_full_precision(_AFFINE, (x, rows), family, base, inverse)
    return value, ladj


def _call(
    op: _Op, names: tuple[str, ...], arrays: tuple[Array, ...], dim: int, family: str, *options: Any
) -> tuple[Array, ...]:
    """Check, convert, compute: of the elements, which are called so, and logits, loc and log_scale."""
    if isinstance(arrays[0], _ARRAYS):
        tensors = tuple(from_numpy(n, a) for n, a in zip((*names, *_PARAMETERS), arrays, strict=True))
        with torch.no_grad():
            return tuple(t.numpy() for t in _call(op, names, tensors, dim, family, *options))
    if dim != -1:
        moved: Any = components_last(arrays[-3:], dim)
        arrays = arrays[:-3] + moved
    if _plainly_right(arrays) and family in FAMILIES and (not options or options[0] in BASES):
        return op.call_plain(arrays, family, *options)
    _check(names, arrays, family, *options[:1])
    return _in_full_precision(op, arrays, family, *options)


def _in_full_precision(op: _Op, tensors: Tensors, *options: Any) -> Tensors:
    """``op``, computed in float32 where a tensor is of half precision; results have the dtype of the first."""
    if not any(t.dtype in _HALF for t in tensors):
        return op(*tensors, *options)
    dtype = tensors[0].dtype
    results = op(*(t.float() for t in tensors), *options)
    return tuple(r.to(dtype) for r in results) if dtype in _HALF else results


def components_last(parameters: Sequence[Tensor], dim: int) -> Tensors:
    """Views of logits, loc and log_scale with axis ``dim`` of each moved to the end; ValueError where there is none."""
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer):
        raise TypeError(f"dim: expected an integer, an axis of the parameters; got {type(dim).__name__}")
    if dim == -1:
        return tuple(parameters)
    for name, parameter in zip(_PARAMETERS, parameters, strict=True):
        if isinstance(parameter, Tensor) and not -parameter.dim() <= dim < parameter.dim():
            raise ValueError(f"dim: expected an axis of {name}, of shape {tuple(parameter.shape)}; got {dim}")
    return tuple(p.movedim(int(dim), -1) if isinstance(p, Tensor) else p for p in parameters)


def from_numpy(name: str, array: object) -> Tensor:
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


def _are_plain(tensors: Tensors) -> bool:
    """Whether these are dense float32 CPU tensors, and no subclasses."""
    for tensor in tensors:
        if (
            type(tensor) not in _PLAIN
            or tensor.dtype is not torch.float32
            or tensor.layout is not torch.strided
            or not tensor.is_cpu
        ):
            return False
    return True


def _plainly_right(tensors: Tensors) -> bool:
    """Whether these are float32 CPU tensors, elements of one shape and parameters of one that fits them as it is.

    True for most calls, and known in a tenth of the time that :func:`_check` takes to find what is wrong.
    """
    if not _are_plain(tensors):
        return False
    batch, shape = tensors[0].shape, tensors[-1].shape
    for element in tensors[1:-3]:
        if not _same(element.shape, batch):
            return False
    return (
        _same(tensors[-2].shape, shape)
        and _same(tensors[-3].shape, shape)
        and len(shape) > 0
        and shape[-1] > 0
        and _fits(shape, batch)
    )


def _fits(shape: Sequence[int], batch: Sequence[int]) -> bool:
    """Whether parameters of ``shape`` broadcast against elements of shape ``batch`` as they are, in its last axes."""
    return len(shape) == 1 or _same(shape[:-1], batch[1 - len(shape) :])


def check_mixture(logits: Tensor, loc: Tensor, log_scale: Tensor, family: str, base: str = BASES[0]) -> None:
    """Raise what :func:`cdf_transform` would for these parameters, before there are elements."""
    _check((), (logits, loc, log_scale), family, base)


def _check(names: tuple[str, ...], tensors: Tensors, family: str, base: str = BASES[0]) -> None:
    name, x, logits, loc, log_scale = (*names, *_PARAMETERS)[0], tensors[0], *tensors[-3:]
    arguments = dict(zip((*names, *_PARAMETERS), tensors, strict=True))
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
    shape = tuple(x.shape) if names else ()
    for key in names[1:]:
        try:
            shape = broadcast_shapes(shape, arguments[key].shape)
        except RuntimeError:
            raise ValueError(
                f"{key}: expected a shape that broadcasts against {tuple(shape)}; got {tuple(arguments[key].shape)}"
            ) from None
    if logits.dim() == loc.dim() == log_scale.dim() == 1:
        return
    for key in _PARAMETERS:
        batch = tuple(arguments[key].shape[:-1])
        try:
            shape = broadcast_shapes(shape, batch)
        except RuntimeError:
            raise ValueError(
                f"{key}: expected shape (..., K) whose batch axes broadcast against {tuple(shape)}; "
                f"got {tuple(arguments[key].shape)}"
            ) from None


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
        >>> from mixflow.op import inverse_diagnostics
        >>> x, evaluations, residual = inverse_diagnostics(torch.zeros(3), *[torch.zeros(1)] * 3)
        >>> evaluations.tolist()
        [1.0, 1.0, 1.0]
    """
    tensors = (z, logits, loc, log_scale)
    _check(("z",), tensors, family, base)
    x, ladj = _MAP.empty_outputs(*tensors)
    evaluations, residual = torch.empty_like(x), torch.empty_like(x)
    if x.numel() > 0:
        _run(_core.map, _map_indices(family, base, True), (*tensors, x, ladj, evaluations, residual))
    return x, evaluations, residual


# -------------------------------------------------------------------------------------------------- shapes and running


# Most calls take a few microseconds: what follows avoids generators, and function calls that a loop can do without.


def _batch_shape(elements: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[int, ...]:
    """The broadcast shape of the elements and of all axes but the last of the parameters."""
    batch, shape = elements[0].shape, parameters[0].shape
    alike = _fits(shape, batch)
    for parameter in parameters[1:]:
        alike = alike and _same(parameter.shape, shape)
    for element in elements[1:]:
        alike = alike and _same(element.shape, batch)
    if alike:
        return batch
    return tuple(broadcast_shapes(*(e.shape for e in elements), *(p.shape[:-1] for p in parameters)))


def _parameter_shape(parameters: Sequence[Tensor]) -> tuple[int, ...]:
    first = parameters[0].shape
    for parameter in parameters[1:]:
        if not _same(parameter.shape, first):
            return tuple(broadcast_shapes(*(p.shape for p in parameters)))
    return first


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Of this shape, and laid out in memory as ``like`` where that has the same; else contiguous."""
    return torch.empty_like(like) if _same(like.shape, shape) else like.new_empty(shape)


def _sum_to(grad: Tensor, shape: tuple[int, ...]) -> Tensor:
    return grad if _same(grad.shape, shape) else grad.sum_to_size(shape)


class _Limit(threading.local):
    """How many threads the core may take, where torch itself is to take fewer; 0 where both may take as many."""

    threads = 0


limit = _Limit()


def _run(kernel: Callable[..., None], indices: tuple[int, ...], tensors: Sequence[Any], *extra: Any) -> None:
    """Hand addresses, shapes and strides to the core, to run where the tensors lie; a tuple is handed on as it is."""
    x = tensors[0]
    operands = [t if type(t) is tuple else (t.data_ptr(), t.shape, t.stride()) for t in tensors]
    if x.is_cpu:
        device, stream = -1, limit.threads or torch.get_num_threads()
    elif _core.cuda_architectures():
        device, stream = x.device.index, torch.cuda.current_stream(x.device).cuda_stream
    else:
        raise RuntimeError(
            f"x: expected a CPU tensor, since this build of mixflow has no CUDA kernels; got one on {x.device}. "
            "Reinstall from source with nvcc on PATH: pip install --force-reinstall --no-deps "
            "-C cmake.define.MIXFLOW_CUDA=ON ."
        )
    kernel(*indices, x.dtype == torch.float64, operands, device, stream, *extra)


def _skips_dispatch(tensors: Tensors) -> bool:
    """Whether nothing but the CPU kernel would see a call: no mode, no subclass. Torch's dispatch takes 15 us.

    It is needed where the memory is not the tensor: for a view that stands for its negative (``z.conj().imag``). And
    ``torch.jit.trace`` records only what is dispatched.
    """
    if torch._C._len_torch_dispatch_stack() != 0 or torch._C._get_tracing_state() is not None:
        return False
    for tensor in tensors:  # noqa: SIM110
        if type(tensor) not in _PLAIN or not tensor.is_cpu or tensor.is_neg():
            return False
    return True


def can_be_looked_at(tensor: Tensor) -> bool:
    """Whether a decision may depend on the numbers of ``tensor``: they are at hand, and nothing records the program."""
    return not torch.compiler.is_compiling() and not _in_functorch() and _skips_dispatch((tensor,))


def is_known_finite(tensor: Tensor) -> bool:
    """Whether every number of ``tensor`` is finite, as far as one sum tells; False where no decision may depend on it.

    A sum that overflows gives False for finite numbers. So False must only cost time.
    """
    return can_be_looked_at(tensor) and cmath.isfinite(tensor.detach().sum().item())


def _are_plain_seeds(grads: Sequence[Tensor | None]) -> bool:
    """Whether gradients that autograd hands over are their memory; ``is_grads_batched`` hands over some without."""
    for grad in grads:
        if type(grad) is not Tensor or grad.is_neg() or torch._C._functorch.is_legacy_batchedtensor(grad):
            return False
    return True


def _filled_in(grads: Sequence[Tensor | None], like: Tensor) -> Sequence[Tensor | None]:
    """``grads`` with a zero for each None beside others; as they are where none or all of them are None."""
    given = 0
    for grad in grads:
        given += grad is not None
    if given in (0, len(grads)):
        return grads
    zero = like.new_zeros(())
    return [zero if grad is None else grad for grad in grads]


def _needs_gradient(tensors: Tensors) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


def _along(grads: Sequence[Tensor | None], slopes: Tensors) -> Tensor:
    """The gradient by the elements, from their slopes; an element without any incoming gradient has none."""
    total: Any = None
    for grad, slope in zip(grads, slopes, strict=True):
        if grad is not None:
            total = grad * slope if total is None else total + grad * slope
    # To look for what is not finite takes less time than to look for zeros.
    if _are_plain_seeds((total,)) and torch._C._len_torch_dispatch_stack() == 0 and math.isfinite(total.sum().item()):
        return cast(Tensor, total)
    is_idle = functools.reduce(torch.logical_and, (grad == 0 for grad in grads if grad is not None))
    return cast(Tensor, total.masked_fill(is_idle, 0.0))


_WORTH_ASKING = 2**18  # components of all elements: their gradients take fifty times as long as the question


def _asked_for(ctx: Any, wanted: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which of the gradients that the inputs require the backward pass at hand asks for.

    ``torch.autograd.grad(loss, x)`` asks for those on the way to x alone, which ``needs_input_grad`` does not know. The
    question is private to torch, and of a leaf that is asked for it raises RuntimeError, which takes 10 us: then all
    that are left are taken to be wanted. The last one left needs no question, since something is asked for.
    """
    asked = list(wanted)
    for i in range(len(wanted) - 1, 0, -1):
        if asked[i] and any(asked[:i]):
            try:
                asked[i] = torch._C._will_engine_execute_node(ctx.next_functions[i][0])
            except (AttributeError, RuntimeError):
                break
    return tuple(asked)


def _may_carry_tangents() -> bool:
    # A compiled graph enters forward mode without telling forward_ad; it is traced in a mode.
    is_entered = forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack() != 0
    return is_entered and forward_ad._is_fwd_grad_enabled()


def _in_functorch() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def _align(info: Any, in_dims: Sequence[int | None], tensors: Tensors, component_axes: tuple[int, ...]) -> Tensors:
    """Give every operand of a vmapped call the mapped axis in front and the same number of batch axes after it."""
    ranks = [t.dim() - (d is not None) - c for t, d, c in zip(tensors, in_dims, component_axes, strict=True)]
    aligned = []
    for tensor, dim, rank in zip(tensors, in_dims, ranks, strict=True):
        front = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        padding = (1,) * (max(ranks) - rank)
        aligned.append(front.reshape(info.batch_size, *padding, *front.shape[1:]))
    return tuple(aligned)


# ------------------------------------------------------------------------------------------------------ registration
#
# First derivatives are fused kernels. Second derivatives differentiate `gradient`, the same gradient written with the
# torch formulas of `reference`. Only inputs and outputs are saved, so that autograd sees every dependence.

_library = torch.library.Library("mixflow", "DEF")


def _make_differentiable(name: str, tensors: int, apply: Callable[..., Any]) -> None:
    """Differentiate the torch op ``mixflow::name`` as an autograd Function does that ``apply`` calls.

    ``torch.library.register_autograd`` makes a Function of its own, which drops the tangents of forward mode in silence
    and is refused by ``torch.func`` (pytorch#168393). Its kernel is for one level of ``torch.func``, too, whereas a
    Function sees to all of them: so ``torch.func`` hands over the call before it has taken it apart into levels.

    Args:
        name: Of the torch op.
        tensors: How many of its arguments, the first ones, are tensors.
        apply: Takes the arguments of the torch op and returns its results.
    """
    op = getattr(torch.ops.mixflow, name).default

    def run(keyset: Any, *args: Any) -> Any:
        if _needs_gradient(args[:tensors]) or _may_carry_tangents():
            return apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    _library.impl(name, run, "Autograd", with_keyset=True)
    _library.impl(name, apply, "FuncTorchDynamicLayerFrontMode")


class _Op:
    """An op of the core, called with its elements, parameters and options; all that torch knows of it.

    It is the torch op ``mixflow::name``, from elements and parameters to outputs of the elements' broadcast shape, and
    ``mixflow::name_backward``, from gradients of the outputs, points and parameters to gradients of the elements (of
    that shape) and of the parameters (of their own broadcast shape, or where ``expands``, of the elements'). Its last
    argument tells which of these are wanted; the others are not computed, and empty.

    Args:
        name: Of the torch op.
        elements: How many tensors of the elements' shape there are.
        outputs: How many it gives, one or two.
        options: The schema of the rest of its arguments.
        parameters: Names of the parameters, whose last axis is no batch axis.
        expands: Whether the kernel leaves it to torch to sum the gradients of parameters that were broadcast.
        kernel: Of the core.
        backward_kernel: Of the core.
        slopes_kernel: Of the core, where there is one: of the op and of the derivatives of its outputs by its elements.
        indices: What the kernels take first, from the options.
        gradient: From the options to what ``backward_kernel`` computes, in differentiable torch operations.
        points: From all inputs and the outputs to the elements that the gradient is a function of.
    """

    def __init__(
        self,
        name: str,
        elements: int,
        outputs: int,
        options: str,
        *,
        parameters: tuple[str, ...] = _PARAMETERS,
        expands: bool = False,
        kernel: Callable[..., None],
        backward_kernel: Callable[..., None],
        slopes_kernel: Callable[..., None] | None = None,
        indices: Callable[..., tuple[int, ...]],
        gradient: Callable[..., Callable[..., Tensors]],
        points: Callable[[tuple[Any, ...], Tensors], Tensors],
    ) -> None:
        self.elements, self.outputs, self.parameters = elements, outputs, len(parameters)
        self.tensors = elements + len(parameters)
        self.component_axes = (0,) * elements + (1,) * len(parameters)
        self.expands = expands
        self.kernel, self.backward_kernel, self.slopes_kernel = kernel, backward_kernel, slopes_kernel
        self.indices = indices
        self.gradient, self.points = gradient, points

        inputs = ", ".join([*(f"Tensor x{i}" for i in range(elements)), *(f"Tensor {p}" for p in parameters)])
        grads = ", ".join(f"Tensor grad{i}" for i in range(outputs))
        result = "Tensor" if outputs == 1 else f"({', '.join(['Tensor'] * outputs)})"
        wanted = f"bool[{self.tensors}] wanted=True"
        results = ", ".join(["Tensor"] * self.tensors)
        _library.define(f"{name}({inputs}, {options}) -> {result}")
        _library.define(f"{name}_backward({grads}, {inputs}, {options}, {wanted}) -> ({results})")
        for key in ("CPU", "CUDA"):
            _library.impl(name, self.compute_result, key)
            _library.impl(f"{name}_backward", self.run_backward, key)
        torch.library.register_fake(f"mixflow::{name}", self.fake, lib=_library)
        torch.library.register_fake(f"mixflow::{name}_backward", self.fake_backward, lib=_library)
        self.torch_op = getattr(torch.ops.mixflow, name)
        self.torch_backward = getattr(torch.ops.mixflow, f"{name}_backward")
        self.plain, self.eager, functional, backward = _functions(self)
        _make_differentiable(name, self.tensors, lambda *args: self.as_result(functional.apply(*args)))
        _make_differentiable(
            f"{name}_backward", outputs + self.tensors, lambda *args: backward.apply(*self.with_wanted(args))
        )

    def __call__(self, *args: Any) -> Tensors:
        if export.in_onnx_export():
            return self.as_tuple(export.decompositions()[self.torch_op.default](*args))
        if (
            torch.compiler.is_compiling()
            or forward_ad._current_level >= 0
            or _in_functorch()
            or torch._C._get_tracing_state() is not None
        ):
            return self.apply_torch_op(*args)
        if _needs_gradient(args[: self.tensors]):
            return cast(Tensors, self.eager.apply(*args))
        return self.run(*args)

    def call_plain(self, tensors: Tensors, *options: Any) -> Tensors:
        """The same for tensors that are :func:`_plainly_right`, with less to find out."""
        if (
            torch.compiler.is_compiling()
            or forward_ad._current_level >= 0
            or _in_functorch()
            or torch._C._len_torch_dispatch_stack() != 0
            or torch._C._get_tracing_state() is not None
        ):
            return self(*tensors, *options)
        differentiated = False
        for tensor in tensors:
            if tensor.is_neg():
                return self(*tensors, *options)
            differentiated = differentiated or tensor.requires_grad
        if differentiated and torch.is_grad_enabled():
            return cast(Tensors, self.plain.apply(*tensors, *options))
        return self.compute_plain(tensors, options)

    def compute_plain(self, tensors: Tensors, options: Sequence[Any]) -> Tensors:
        x = tensors[0]
        outputs = (torch.empty_like(x),) if self.outputs == 1 else (torch.empty_like(x), torch.empty_like(x))
        if x.numel() > 0:
            _run(self.kernel, self.indices(*options), (*tensors, *outputs))
        return outputs

    def run(self, *args: Any) -> Tensors:
        return self.compute(*args) if _skips_dispatch(args[: self.tensors]) else self.apply_torch_op(*args)

    def apply_torch_op(self, *args: Any) -> Tensors:
        return self.as_tuple(self.torch_op(*args))

    def as_tuple(self, result: Any) -> Tensors:
        return (result,) if self.outputs == 1 else result

    # A torch op of one output returns it bare.
    def as_result(self, outputs: Tensors) -> Any:
        return outputs[0] if self.outputs == 1 else outputs

    def empty_outputs(self, *tensors: Tensor) -> Tensors:
        value = _empty(_batch_shape(tensors[: self.elements], tensors[-self.parameters :]), tensors[0])
        return (value,) if self.outputs == 1 else (value, torch.empty_like(value))

    def fake(self, *args: Any) -> Any:
        return self.as_result(self.empty_outputs(*args[: self.tensors]))

    def fake_backward(self, *args: Any) -> Tensors:
        given, _, wanted = self.split_backward(args)
        elements, parameters = given[self.outputs : -self.parameters], given[-self.parameters :]
        return self.filled(args, self.empty_gradients(elements, parameters, _batch_shape(elements, parameters), wanted))

    def compute(self, *args: Any) -> Tensors:
        tensors = args[: self.tensors]
        outputs = self.empty_outputs(*tensors)
        if outputs[0].numel() > 0:
            _run(self.kernel, self.indices(*args[self.tensors :]), (*tensors, *outputs))
        return outputs

    def compute_result(self, *args: Any) -> Any:
        return self.as_result(self.compute(*args))

    def gives_slopes(self, wanted: tuple[bool, ...], args: Sequence[Any]) -> bool:
        """Whether the op can be run such that its gradients are had at once: of x alone, in the forward direction."""
        return self.slopes_kernel is not None and True not in wanted[1:] and not args[-1]

    def compute_with_slopes(self, *args: Any) -> tuple[Tensors, Tensors]:
        """The outputs, and their derivatives by x."""
        tensors = args[: self.tensors]
        outputs = self.empty_outputs(*tensors)
        slopes = tuple(torch.empty_like(o) for o in outputs)
        if outputs[0].numel() > 0:
            assert self.slopes_kernel is not None
            _run(self.slopes_kernel, self.indices(*args[self.tensors :])[1:], (*tensors, *outputs, *slopes))
        return outputs, slopes

    def split_backward(self, args: tuple[Any, ...]) -> tuple[Tensors, tuple[Any, ...], Sequence[bool]]:
        """Tensors, options and which gradients are wanted, of the arguments of a backward op; by default, all are."""
        count = self.outputs + self.tensors
        given, options = args[:count], args[count:]
        if options and not isinstance(options[-1], str | bool):
            return given, options[:-1], options[-1]
        return given, options, (True,) * self.tensors

    def with_wanted(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a backward op with the last one, which torch leaves out where it has its default."""
        given, options, wanted = self.split_backward(args)
        return (*given, *options, tuple(wanted))

    def empty_gradients(
        self, elements: Tensors, parameters: Tensors, batch: tuple[int, ...], wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Memory for the gradients that are wanted; those of the parameters lie alike."""
        grads: list[Tensor | None] = []
        for i, element in enumerate(elements):
            grads.append(_empty(batch, element) if wanted[i] else None)
        first: Tensor | None = None
        for i, parameter in enumerate(parameters, len(elements)):
            if not wanted[i]:
                grads.append(None)
                continue
            if first is None:
                shape = (*batch, parameter.shape[-1]) if self.expands else _parameter_shape(parameters)
                first = _empty(shape, parameter)
                grads.append(first)
            else:
                grads.append(torch.empty_like(first))
        return grads

    def gradients(self, given: Tensors, options: Sequence[Any], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradients, None where they are not wanted."""
        elements, parameters = given[self.outputs : -self.parameters], given[-self.parameters :]
        batch = _batch_shape(elements, parameters)
        grads = self.empty_gradients(elements, parameters, batch, wanted)
        if 0 in batch:
            return [g if g is None or i < self.elements else g.zero_() for i, g in enumerate(grads)]
        held: list[Tensor] = []  # once the kernel is enqueued torch may hand this memory to whatever comes after it

        def allocate(size: int) -> int:
            held.append(torch.empty(size, dtype=torch.uint8, device=given[0].device))
            return held[-1].data_ptr()

        targets: list[Any] = grads
        if not all(wanted):  # without an address, but the shape of the elements is told all the same
            shapes = (batch,) * self.elements + tuple(p.shape for p in parameters)
            targets = [(0, s, s) if g is None else g for g, s in zip(grads, shapes, strict=True)]
        _run(self.backward_kernel, self.indices(*options), (*given, *targets), allocate)
        return grads

    def plain_gradients(self, given: Tensors, options: Sequence[Any], wanted: Sequence[bool]) -> list[Tensor | None]:
        """:meth:`gradients` of plain tensors, of all parameters and the wanted elements, with less to find out."""
        grads: list[Tensor | None] = []
        targets: list[Any] = []
        for i, x in enumerate(given[self.outputs : -self.parameters]):
            grads.append(torch.empty_like(x) if wanted[i] else None)
            targets.append(grads[i] if wanted[i] else (0, x.shape, x.shape))
        first = torch.empty_like(given[-self.parameters])
        for i in range(self.parameters):
            grads.append(torch.empty_like(first) if i else first)
        _run(self.backward_kernel, self.indices(*options), (*given, *targets, *grads[self.elements :]), None)
        return grads

    def run_backward(self, *args: Any) -> Tensors:
        return self.filled(args, self.gradients(*self.split_backward(args)))

    def filled(self, args: Sequence[Any], grads: Sequence[Tensor | None]) -> Tensors:
        """The gradients as a torch op returns them: an empty tensor in the place of each that is not wanted."""
        return tuple(args[0].new_empty(0) if g is None else g for g in grads)

    def vmap(self, run: Callable[..., Tensors], info: Any, in_dims: Any, *args: Any) -> tuple[Tensors, tuple[int, ...]]:
        n = self.tensors
        return run(*_align(info, in_dims[:n], args[:n], self.component_axes), *args[n:]), (0,) * self.outputs

    def vmap_backward(
        self, run: Callable[..., Tensors], info: Any, in_dims: Any, *args: Any
    ) -> tuple[Tensors, tuple[int, ...]]:
        given, options, wanted = self.split_backward(args)
        n = len(given)
        aligned = _align(info, in_dims[:n], given, (0,) * self.outputs + self.component_axes)
        grads = list(run(*aligned, *options, wanted))
        parameters = zip(given[self.outputs + self.elements :], in_dims[self.outputs + self.elements : n], strict=True)
        own_axes = max(t.dim() - (d is not None) for t, d in parameters)
        for i, (grad, w) in enumerate(zip(grads, wanted, strict=True)):
            if not w:
                grads[i] = grad.new_empty(info.batch_size, 0)
            elif i >= self.elements and not self.expands:
                grads[i] = grad.reshape(grad.shape[:1] + grad.shape[grad.dim() - own_axes :])
        return tuple(grads), (0,) * self.tensors

    def wanted_gradient(self, options: tuple[Any, ...], wanted: Sequence[bool]) -> Callable[..., Tensors]:
        """The gradients that are wanted, in differentiable torch operations."""
        gradient = self.gradient(*options)
        return lambda *tensors: tuple(g for g, w in zip(gradient(*tensors), wanted, strict=True) if w)


# Torch turns forward mode off while the jvp of a Function runs, so that jvp of jvp loses its second derivatives
# (pytorch#197867). Turned on again, it must not see the tangents of the level that jvp itself is computing.


def _forward_mode_of_outer_levels() -> AbstractContextManager[Any]:
    return forward_ad._set_fwd_grad_enabled(True)


def _primals(tensors: Tensors) -> Tensors:
    # Of the one level of forward mode that torch has. Inside a compiled graph unpack_dual does not know it.
    return tuple(cast(Tensor, forward_ad.unpack_dual(t, level=0).primal) for t in tensors)


def _push_forward(function: Callable[..., Tensors], tensors: Tensors, tangents: Tensors) -> Tensors:
    """The Jacobian times the tangents, as the derivative of its transpose by what that is applied to.

    torch.func.jvp cannot be called where a compiled graph has entered forward mode, whose levels it has not counted.
    """
    outputs, pull_back = cast(Any, torch.func.vjp(function, *tensors))
    return cast(Tensors, torch.func.vjp(lambda *seeds: pull_back(seeds), *map(torch.zeros_like, outputs))[1](tangents))


def _functions(op: _Op) -> tuple[Any, Any, Any, Any]:
    """The autograd Functions of an op: two for eager mode, the one that is registered, and that of its gradient.

    An eager Function has no setup_context, with which torch binds its arguments by ``inspect`` at every call.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], outputs: Tensors, slopes: Tensors = ()) -> Tensors:
        saved = (*op.points(inputs, outputs), *inputs[op.elements : op.tensors])
        ctx.options = inputs[op.tensors :]
        ctx.shapes = [t.shape for t in inputs[: op.tensors]]
        ctx.save_for_backward(*saved, *slopes)
        ctx.set_materialize_grads(False)
        return saved

    def pull_back(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        none = (None,) * len(ctx.options)
        wanted = ctx.needs_input_grad[: op.tensors]
        if all(g is None for g in grads):
            return (None,) * op.tensors + none
        saved = ctx.saved_tensors
        if len(saved) > op.tensors:
            saved, slopes = saved[: op.tensors], saved[op.tensors :]
            if not torch.is_grad_enabled():
                grad = _sum_to(_along(grads, slopes), ctx.shapes[0])
                return (grad, *(None,) * (op.tensors - 1), *none)
        seeds: Sequence[Any] = _filled_in(grads, saved[0])
        results: Sequence[Tensor | None]
        if not (torch.is_grad_enabled() or _in_functorch() or torch._C._len_torch_dispatch_stack() != 0):
            if saved[0].numel() * saved[-1].shape[-1] >= _WORTH_ASKING:
                wanted = _asked_for(ctx, wanted)
            if _skips_dispatch(saved) and _are_plain_seeds(seeds):
                found = op.gradients((*seeds, *saved), ctx.options, wanted)
                for i, shape in enumerate(ctx.shapes):
                    own = found[i]
                    if own is not None and own.shape != shape:
                        found[i] = own.sum_to_size(shape)
                return (*found, *none)
        results = op.torch_backward(*seeds, *saved, *ctx.options, wanted)
        summed = [
            _sum_to(cast(Tensor, g), s) if w else None for g, s, w in zip(results, ctx.shapes, wanted, strict=True)
        ]
        return (*summed, *none)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensors:
            if op.gives_slopes(ctx.needs_input_grad, inputs) and _skips_dispatch(inputs[: op.tensors]):
                outputs, slopes = op.compute_with_slopes(*inputs)
                save(ctx, inputs, outputs, slopes)
            else:
                outputs = op.run(*inputs)
                save(ctx, inputs, outputs)
            return outputs

        backward = staticmethod(pull_back)

    class Plain(Eager):
        """For tensors that are :func:`_plainly_right`: most calls, some of a few microseconds."""

        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensors:
            if op.gives_slopes(ctx.needs_input_grad, inputs):
                outputs, slopes = op.compute_with_slopes(*inputs)
                save(ctx, inputs, outputs, slopes)
            else:
                outputs = op.compute_plain(inputs[: op.tensors], inputs[op.tensors :])
                save(ctx, inputs, outputs)
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            if not torch.is_grad_enabled() and False not in ctx.needs_input_grad[op.elements : op.tensors]:
                saved = ctx.saved_tensors
                small = 0 < saved[0].numel() * saved[-1].shape[-1] < _WORTH_ASKING
                seeds = _filled_in(grads, saved[0])
                if small and _are_plain_seeds(seeds) and _skips_dispatch(saved):
                    given = cast(Tensors, (*seeds, *saved))
                    found = op.plain_gradients(given, ctx.options, ctx.needs_input_grad)
                    return (*found, *(None,) * len(ctx.options))
            return pull_back(ctx, *grads)

    class Functional(torch.autograd.Function):
        """Of the torch op itself, for autograd, forward mode and any level of ``torch.func``."""

        @staticmethod
        def forward(*args: Any) -> Tensors:
            return op.apply_torch_op(*args)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
            return op.vmap(Functional.apply, info, in_dims, *args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
            ctx.save_for_forward(*save(ctx, inputs, output))

        backward = staticmethod(pull_back)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Tensors:
            """Rows of the Jacobian, from an unreduced backward pass for each output, times the tangents."""
            with _forward_mode_of_outer_levels():
                saved = _primals(ctx.saved_tensors)
                points, parameters = saved[: op.elements], saved[op.elements :]
                shape = _batch_shape(points, parameters)
                expanded = [p.expand(*shape, p.shape[-1]) for p in parameters]
                one, zero = points[0].new_ones(()), points[0].new_zeros(())
                own = tangents[: op.tensors]
                wanted = tuple(t is not None for t in own)
                results = []
                for i in range(op.outputs):
                    seeds = [one if i == j else zero for j in range(op.outputs)]
                    row = op.torch_backward(*seeds, *points, *expanded, *ctx.options, wanted)
                    products = [None if t is None else g * t for g, t in zip(row, own, strict=True)]
                    terms = [p.sum(-1) if i >= op.elements else p for i, p in enumerate(products) if p is not None]
                    results.append(functools.reduce(torch.add, terms))
            return tuple(results)

    class Backward(torch.autograd.Function):
        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
            return op.vmap_backward(Backward.apply, info, in_dims, *args)

        @staticmethod
        def forward(*args: Any) -> Tensors:
            return cast(Tensors, op.torch_backward(*args))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
            given, ctx.options, ctx.wanted = op.split_backward(inputs)
            ctx.save_for_backward(*given)
            ctx.save_for_forward(*given)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            back = torch.func.vjp(op.wanted_gradient(ctx.options, ctx.wanted), *ctx.saved_tensors)[1]
            own = tuple(g for g, w in zip(grads, ctx.wanted, strict=True) if w)
            return (*back(own), *(None,) * (len(ctx.options) + 1))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Tensors:
            with _forward_mode_of_outer_levels():
                # Seeds are often expanded, and a tangent cannot be written into memory that its elements share.
                tensors = tuple(t.contiguous() for t in _primals(ctx.saved_tensors))
                given = tangents[: len(tensors)]
                moved = tuple(torch.zeros_like(p) if t is None else t for p, t in zip(tensors, given, strict=True))
                gradient = op.wanted_gradient(ctx.options, ctx.wanted)
                found = iter(_push_forward(gradient, tensors, moved))
                return tuple(next(found) if w else tensors[0].new_empty(0) for w in ctx.wanted)

    return Plain, Eager, Functional, Backward


# ----------------------------------------------------------------------------------------------------------- the ops


def _vjp(
    function: Callable[..., Tensors], seeds: Tensors, elements: Tensors, parameters: Tensors, expands: bool = False
) -> tuple[Tensors, Callable[..., Tensors]]:
    """``torch.func.vjp`` with gradients of the broadcast shapes, as kernels give them.

    Where no gradient comes in and a result is not finite, the function is taken at harmless numbers, so that nothing is
    added to any gradient, which would be 0 * NaN. All else is differentiated as it stands, by the seeds, too.
    """
    batch, shape = _batch_shape(elements, parameters), _parameter_shape(parameters)
    if expands:
        shape = (*batch, shape[-1])
    given = (*(x.expand(batch) for x in elements), *(p.expand(shape) for p in parameters))
    with torch.no_grad():
        is_finite = functools.reduce(torch.logical_and, (r.isfinite() for r in function(*given)))
        is_idle = functools.reduce(torch.logical_and, (seed == 0 for seed in seeds))
        harmful = (is_idle & ~is_finite).expand(batch)

    def run(*tensors: Tensor) -> Tensors:
        points = [torch.where(harmful, float(i), x) for i, x in enumerate(tensors[: len(elements)])]  # edges in order
        return function(*points, *(torch.where(harmful.unsqueeze(-1), 0.0, p) for p in tensors[len(elements) :]))

    return cast(tuple[Tensors, Callable[..., Tensors]], torch.func.vjp(run, *given))


def _map_indices(family: str, base: str, inverse: bool) -> tuple[int, ...]:
    return inverse, _FAMILY_INDEX[family], _BASE_INDEX[base]


def _point(inputs: tuple[Any, ...], outputs: Tensors) -> Tensors:
    """``x``, in either direction."""
    return (outputs[0] if inputs[-1] else inputs[0],)


def _map_gradient(
    formula: Callable[..., Any], expands: bool, family: str, base: str, inverse: bool
) -> Callable[..., Tensors]:
    """Of ``formula``, the forward map in torch operations, or of its inverse."""

    def gradient(grad_value: Tensor, grad_ladj: Tensor, x: Tensor, *parameters: Tensor) -> Tensors:
        transform = functools.partial(formula, family=family, base=base)
        (_, ladj), pull_back = _vjp(transform, (grad_value, grad_ladj), (x,), parameters, expands)
        grad_value, grad_ladj = grad_value.expand_as(ladj), grad_ladj.expand_as(ladj)
        if not inverse:
            return pull_back((grad_value, grad_ladj))
        slope = pull_back((torch.zeros_like(ladj), torch.ones_like(ladj)))[0]
        grad_z = (grad_value - grad_ladj * slope) * torch.exp(-ladj)
        return (grad_z, *pull_back((-grad_z, -grad_ladj))[1:])

    return gradient


def _unpacked(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits, loc, log_scale, shift and log_slope, as views of ``rows`` (..., 3 K + 2)."""
    logits, loc, log_scale = rows[..., :-2].unflatten(-1, (3, -1)).unbind(-2)
    return logits, loc, log_scale, rows[..., -2], rows[..., -1]


def _affine_formula(x: Tensor, rows: Tensor, *, family: str, base: str) -> tuple[Tensor, Tensor]:
    *parameters, shift, log_slope = _unpacked(rows)
    value, ladj = reference.cdf_transform(x, *parameters, family=family, base=base)
    return value * log_slope.exp() + shift, ladj + log_slope


_MAP = _Op(
    "map",
    elements=1,
    outputs=2,
    options="str family, str base, bool inverse",
    kernel=_core.map,
    backward_kernel=_core.map_backward,
    slopes_kernel=_core.map_with_slopes,
    indices=_map_indices,
    gradient=functools.partial(_map_gradient, reference.cdf_transform, False),
    points=_point,
)

_AFFINE = _Op(
    "affine_map",
    elements=1,
    outputs=2,
    options="str family, str base, bool inverse",
    parameters=("rows",),
    expands=True,
    kernel=_core.packed_map,
    backward_kernel=_core.packed_map_backward,
    indices=_map_indices,
    gradient=functools.partial(_map_gradient, _affine_formula, True),
    points=_point,
)


def _interval_gradient(family: str) -> Callable[..., Tensors]:
    def gradient(grad: Tensor, lower: Tensor, upper: Tensor, *parameters: Tensor) -> Tensors:
        def function(*args: Tensor) -> Tensors:
            return (reference.discretized_log_prob(*args, family=family),)

        (value,), pull_back = _vjp(function, (grad,), (lower, upper), parameters)
        return pull_back((grad.expand_as(value),))

    return gradient


_INTERVAL = _Op(
    "interval",
    elements=2,
    outputs=1,
    options="str family",
    kernel=_core.interval,
    backward_kernel=_core.interval_backward,
    indices=lambda family: (_FAMILY_INDEX[family],),
    gradient=_interval_gradient,
    points=lambda inputs, outputs: inputs[:2],
)
