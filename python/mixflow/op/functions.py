"""The public functions: they check and convert their arguments, and call an op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import ARRAYS, Array, are_plain_and_right, check, components_last, from_numpy, in_full_precision
from .kernels import BASES, FAMILIES, PARAMETERS, run
from .modes import are_plain
from .registration import AFFINE_TRANSFORM, CDF_TRANSFORM, DISCRETIZED_LOG_PROB, Entry
from .shapes import are_same

__all__ = ["affine_transform", "cdf_transform", "cdf_transform_inverse", "discretized_log_prob", "inverse_diagnostics"]


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

    A float16 or bfloat16 tensor is read and written as such, and computed in float32. ``torch.autocast`` changes no
    dtype here.

    Torch results are differentiable in every argument, any number of times. An element whose incoming gradients are all
    zero adds exactly nothing to any gradient, even if the element or its parameters are NaN or infinite. So
    ``torch.where(mask, ladj, 0)`` is safe.

    Args:
        x: Elements to transform, shape ``(...)``; a torch tensor or a numpy array, like all the others. Numpy arrays
            are used in place, in any layout, and may be read-only. Only arrays with negative strides, foreign byte
            order or unaligned elements are copied.
        logits: Unnormalised log-weights, shape ``(..., K)``. The batch axes of the parameters broadcast against ``x``,
            and nothing is expanded in memory: ``(K,)``, ``(D, K)`` against ``(N, D)`` and ``(N, D, K)`` all work.
        loc: Locations of the components, ``(..., K)``, in the units of ``x``.
        log_scale: Natural logarithms of the scales of the components, ``(..., K)``.
        family: One of ``mixflow.FAMILIES``.
        base: One of ``mixflow.BASES``.
        dim: The axis of the components, in each of the three parameters: with images ``(B, C, H, W)`` and parameters
            ``(B, K, C, H, W)`` it is 1. The shapes above are those with this axis moved to the end; nothing is copied.

    Returns:
        ``z`` and ``ladj = log |dz/dx|`` in nats, both of the broadcast shape ``(...)`` and in the dtype of ``x``. If
        ``x`` has that shape, they also have its memory format (channels_last, transposed). ``x = +-inf`` gives
        ``z = +-inf`` (0 or 1 for the uniform base). NaN gives NaN for that element alone. ``ladj`` is -inf where a tail
        is smaller than any number.

    Raises:
        TypeError: An argument is not a floating-point tensor or array, or float64 is mixed with another dtype.
        ValueError: Shapes do not broadcast, ``K`` differs or is 0, devices differ, a name is unknown, or a parameter
            has no axis ``dim``.

    Source: the "mixture CDF" flow layer of Ho et al., "Flow++" (2019), and Meng et al., "Gaussianization Flows" (2020).

    Example:
        >>> import torch, mixflow
        >>> logits, loc, log_scale = torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.zeros(2)
        >>> z, ladj = mixflow.cdf_transform(torch.tensor([0.0, 1.0]), logits, loc, log_scale)
        >>> z.shape, f"{z[0]:.4f}"
        (torch.Size([2]), '0.0000')

    """
    value, ladj = _call(CDF_TRANSFORM, ("x",), (x, logits, loc, log_scale), dim, family, base, False)
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

    A Newton iteration solves for x inside a bracket that always contains the root. Gradients are those of the implicit
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
        of ``z``. ``z = +-inf`` (uniform base: 0 or 1) gives ``x = +-inf``. NaN, and for the uniform base anything
        outside ``[0, 1]``, gives NaN for that element alone.

    Raises:
        TypeError: As in :func:`cdf_transform`.
        ValueError: As in :func:`cdf_transform`.

    Source: that component quantiles bracket the root is folklore; implicit gradients as in Figurnov et al., "Implicit
    Reparameterization Gradients" (2018).

    Example:
        >>> import torch, mixflow
        >>> parameters = torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.zeros(2)
        >>> x, ladj = mixflow.cdf_transform_inverse(torch.tensor([0.0, 2.0]), *parameters, base="logistic")
        >>> z, _ = mixflow.cdf_transform(x, *parameters, base="logistic")
        >>> torch.allclose(z, torch.tensor([0.0, 2.0]), atol=1e-6)
        True

    """
    value, ladj = _call(CDF_TRANSFORM, ("z",), (z, logits, loc, log_scale), dim, family, base, True)
    return value, ladj


def discretized_log_prob(
    lower: Array, upper: Array, logits: Array, loc: Array, log_scale: Array, *, family: str = "gaussian", dim: int = -1
) -> Array:
    r"""Log-probability of an interval under a mixture, ``log P(lower < X <= upper) = log(F(upper) - F(lower))``.

    Nothing cancels: the probability keeps its relative accuracy for an interval far out in either tail, and for one so
    narrow that ``F`` is the same number at both edges. This is the likelihood of images and audio in bins, of which the
    first and the last reach to infinity.

    Args:
        lower: Lower edges, shape ``(...)``; a torch tensor or a numpy array, like all the others. May be ``-inf``.
        upper: Upper edges, ``(...)``, broadcasting against ``lower``. May be ``inf``.
        logits: Unnormalised log-weights, shape ``(..., K)``, as in :func:`cdf_transform`.
        loc: Locations of the components, ``(..., K)``, in the units of the edges.
        log_scale: Natural logarithms of the scales of the components, ``(..., K)``.
        family: One of ``mixflow.FAMILIES``.
        dim: The axis of the components, as in :func:`cdf_transform`.

    Returns:
        The log-probability in nats, of the broadcast shape ``(...)``, in the dtype of ``lower``; dtypes and gradients
        as in :func:`cdf_transform`. ``-inf`` where ``lower == upper``. NaN where ``lower > upper``, or where an edge or
        a parameter of the element is NaN.

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
    arguments = (lower, upper, logits, loc, log_scale)
    return _call(DISCRETIZED_LOG_PROB, ("lower", "upper"), arguments, dim, family)[0]


def affine_transform(
    x: Tensor, rows: Tensor, *, family: str, base: str, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    r"""A mixture CDF, the quantile function of a base and an affine map as one op: the map of coupling flows.

    ``z = exp(log_slope) G^-1(F(x)) + shift`` and ``ladj = log |dz/dx|``, or its inverse. The parameters are the output
    of a network as it is, and their gradient is one tensor of the same layout.

    Args:
        x: Elements ``(...)``; z if ``inverse``.
        rows: ``(..., 3 K + 2)``, broadcasting against x: for each element K logits, K locations, K log-scales, shift,
            log_slope.
        family: One of ``mixflow.FAMILIES``.
        base: One of ``mixflow.BASES``.
        inverse: Whether to map from z to x, with ``ladj = log |dx/dz|``.

    Returns:
        Value and ladj, in nats, both of the broadcast shape; dtypes as in :func:`cdf_transform`.

    Raises:
        TypeError: One of the two is float64 and the other is not.
        ValueError: The last axis of ``rows`` does not have a length of 3 K + 2.

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
        raise ValueError(f"rows: expected shape (..., 3 K + 2) with K >= 1, got {tuple(rows.shape)}")
    if (x.dtype == torch.float64) != (rows.dtype == torch.float64):
        raise TypeError(f"rows: expected {x.dtype}, like x, got {rows.dtype}")
    if are_plain((x, rows)) and are_same(rows.shape[:-1], x.shape):
        value, ladj = AFFINE_TRANSFORM.call_plain((x, rows), family, base, inverse)
    else:
        value, ladj = in_full_precision(AFFINE_TRANSFORM, (x, rows), family, base, inverse)
    return value, ladj


def inverse_diagnostics(
    z: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, *, family: str = "gaussian", base: str = "normal"
) -> tuple[Tensor, Tensor, Tensor]:
    """How :func:`cdf_transform_inverse` found its result, on the CPU: for tests and benchmarks.

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
    check(("z",), tensors, family, base)
    op = CDF_TRANSFORM.op
    x, ladj = op.empty_outputs(tensors)
    evaluations, residual = torch.empty_like(x), torch.empty_like(x)
    if x.numel() > 0:
        run(op.kernel, op.indices(family, base, inverse=True), (*tensors, x, ladj, evaluations, residual))
    return x, evaluations, residual


def _call(
    entry: Entry, elements: tuple[str, ...], arrays: tuple[Array, ...], dim: int, family: str, *options: Any
) -> tuple[Array, ...]:
    """Check and convert the arguments, then call the op.

    Args:
        entry: The op.
        elements: The names of the elements, for messages: an inverse calls its only one z.
        arrays: The elements, and logits, loc and log_scale.
        dim: The axis of the components.
        family: An option of the op.
        options: Its other options: the base, if it has one, comes first.
    """
    if isinstance(arrays[0], ARRAYS):
        tensors = tuple(from_numpy(n, a) for n, a in zip((*elements, *PARAMETERS), arrays, strict=True))
        with torch.no_grad():
            return tuple(t.numpy() for t in _call(entry, elements, tensors, dim, family, *options))
    if dim != -1:
        moved: Any = components_last(arrays[-3:], dim)
        arrays = arrays[:-3] + moved
    if are_plain_and_right(arrays) and family in FAMILIES and (not options or options[0] in BASES):
        return entry.call_plain(arrays, family, *options)
    check(elements, arrays, family, *options[:1])
    return in_full_precision(entry, arrays, family, *options)
