"""The contract of all transforms, and the checks that they share."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..checks import broadcast_shapes, check_integer
from ..op import can_be_looked_at, is_known_finite
from ..standard import BASES

__all__ = [
    "Transform",
    "any_of_event",
    "base_log_prob",
    "check_name",
    "check_transform",
    "density_where_finite",
    "full_precision",
    "infinite_where_overflowed",
    "own_tensor",
    "remembers_arguments",
    "spread",
]


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which ``torch.autocast`` leaves matrix products alone.

    Networks may compute in half precision under autocast. The map itself may not: its two directions would no longer
    undo each other.
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def own_tensor(module: nn.Module) -> Tensor | None:
    """A parameter or buffer of floating-point numbers, with the dtype and device of ``module``; None without one."""
    # Each transform needs this in each call. ``module.parameters()`` would take ten times as long.
    for kind in ("_parameters", "_buffers"):
        found = _first_of(module, kind)
        if found is not None:
            return found
    return None


def _first_of(module: nn.Module, kind: str) -> Tensor | None:
    for tensor in getattr(module, kind).values():
        if tensor is not None and tensor.is_floating_point():
            return cast(Tensor, tensor)
    for child in module._modules.values():
        found = None if child is None else _first_of(child, kind)
        if found is not None:
            return found
    return None


def remembers_arguments(build: Callable[..., None]) -> Callable[..., None]:
    """The constructor ``build``, extended to keep its arguments in the attribute ``arguments``.

    A model file describes the parts of a flow by their classes and these arguments.
    """
    signature = inspect.signature(build)

    @functools.wraps(build)
    def remembering(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        # The constructor of a subclass returns after that of its base class, so its arguments are kept.
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        self.arguments = {name: value for name, value in call.arguments.items() if name != "self"}

    return remembering


_MAP = "forward", "_forward", "_log_density"


class Transform(nn.Module):
    """The contract of all transforms.

    ``forward(x, context=None) -> (z, ladj)`` and ``inverse(z, context=None) -> (x, ladj)``, with ``x`` and ``z`` of
    shape ``(..., D)``, ``ladj`` of shape ``(...)`` in nats, and ``context`` of shape ``(..., C)``. The batch shapes of
    ``x`` and ``context`` broadcast against each other. A transform that takes no context ignores one, so that the same
    call serves all transforms of a sequence. ``x`` has the dtype and device of the transform's parameters. ``context``
    may have any floating-point dtype. So may ``x`` if the transform first subtracts an offset from it, as
    :class:`~mixflow.transforms.Affine` does: it subtracts in the precision of the data.

    Each log-determinant belongs to one event. An event is a vector of shape ``(D,)``, or an image of shape
    ``(C, H, W)``. Most transforms give ``z`` the shape of ``x``.

    Args:
        features: D, the size of the last dimension of ``x``; or the shape of an event.
        context: C, the size of the last dimension of ``context``; 0 for a transform that takes none.
        output: the shape of an event of ``z``, of as many numbers; by default that of ``x``.

    Attributes:
        event_shape: the shape of an event of ``x``.
        output_shape: the shape of an event of ``z``.
        features: the number of numbers in an event.
        arguments: what the constructor was called with, by name.

    Raises:
        TypeError: an argument is not a tensor of the transform's dtype.
        ValueError: a shape or device does not fit, or a context is missing.

    Example:
        A subclass supplies two functions, and perhaps ``initialize``:

        >>> import torch
        >>> from mixflow.transforms import Transform
        >>> class Flip(Transform):
        ...     def _forward(self, x, context):
        ...         return -x, torch.zeros_like(x[..., 0])
        ...     _inverse = _forward
        >>> z, ladj = Flip(features=2)(torch.ones(3, 2))
        >>> z.shape, ladj.shape
        (torch.Size([3, 2]), torch.Size([3]))

    """

    arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = remembers_arguments(cls.__init__)  # type: ignore[method-assign]
        # `_log_density` may be a shortcut that holds only for the map of the class that defines it. A subclass with
        # another map must not inherit it.
        first = {name: next(i for i, of in enumerate(cls.__mro__) if name in vars(of)) for name in _MAP}
        if min(first["forward"], first["_forward"]) < first["_log_density"]:
            cls._log_density = Transform._log_density  # type: ignore[method-assign]

    @remembers_arguments
    def __init__(self, features: int | Sequence[int], context: int = 0, *, output: Sequence[int] | None = None) -> None:
        super().__init__()
        self.event_shape = _event_shape("features", features)
        self.output_shape = self.event_shape if output is None else _event_shape("output", output)
        self.features = math.prod(self.event_shape)
        if math.prod(self.output_shape) != self.features:
            raise ValueError(
                f"output: expected a shape of as many numbers as {tuple(self.event_shape)} has, got {output}"
            )
        self.context = check_integer("context", context, 0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to base: ``(z, ladj)`` with ``ladj = log |det dz/dx|``."""
        return self._forward(*self._checked("x", x, context, forward=True))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Base to data: ``(x, ladj)`` with ``ladj = log |det dx/dz|``."""
        return self._inverse(*self._checked("z", z, context, forward=False))

    def log_density(self, x: Tensor, context: Tensor | None = None, base: str = "normal") -> Tensor:
        """The log density of ``x`` if its image ``z`` follows a base distribution: that of ``z``, plus ladj.

        A transform that can compute it without ``z`` overrides ``_log_density``. If a transform has forward hooks,
        :meth:`forward` is called, so that they run.

        Args:
            x: (..., D).
            context: (..., C); None for a transform without.
            base: one of ``mixflow.BASES``.

        Returns:
            (...), in nats.

        Raises:
            TypeError: as :meth:`forward`.
            ValueError: as :meth:`forward`, or the base is unknown.

        Example:
            >>> import torch
            >>> from mixflow.transforms import Affine
            >>> f"{Affine(1, scale=2.0).log_density(torch.zeros(1)):.4f}"  # of a normal of standard deviation 2
            '-1.6121'

        """
        check_name("base", base, list(BASES))
        if self._forward_hooks or self._forward_pre_hooks:
            z, ladj = self(x, context)
            return self._image_log_density(z, ladj, base)
        return self._log_density(*self._checked("x", x, context, forward=True), base)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set the parameters from data ``x`` (N, D) before training. By default nothing is set."""

    def takes_any_dtype(self, forward: bool = True) -> bool:
        """Whether a direction takes any floating-point dtype, and not only that of the parameters."""
        return own_tensor(self) is None

    @property
    def is_limited(self) -> bool:
        """Whether the domain of the map is not all numbers."""
        return self.outside(torch.ones(self.event_shape)) is not None

    def outside(self, x: Tensor) -> Tensor | None:
        """Which elements of ``x`` (..., D) lie outside the open domain of the map.

        None, whatever ``x`` is, if the domain is all numbers.
        """
        return None

    def inside(self, x: Tensor) -> Tensor:
        """A point of the domain that broadcasts to ``x`` (..., D). It can replace elements outside the domain."""
        return x.new_zeros(self.event_shape)

    def outside_image(self, z: Tensor) -> Tensor | None:
        """As ``outside``, for the inverse: which elements of ``z`` (..., D) are the image of no x."""
        return None

    def inside_image(self, z: Tensor) -> Tensor:
        """As ``inside``, for the inverse."""
        return z.new_zeros(self.output_shape)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _log_density(self, x: Tensor, context: Tensor | None, base: str) -> Tensor:
        return self._image_log_density(*self._forward(x, context), base)

    def _image_log_density(self, z: Tensor, ladj: Tensor, base: str) -> Tensor:
        return density_where_finite(z, self.output_shape, lambda z: base_log_prob(z, self.output_shape, base)) + ladj

    def _checked(self, name: str, value: Tensor, context: Tensor | None, forward: bool) -> tuple[Tensor, Tensor | None]:
        """The checked arguments of a direction, with ``value`` expanded to the common batch shape of both."""
        event = self.event_shape if forward else self.output_shape
        self._check_tensor(name, value, event, self.takes_any_dtype(forward))
        if not self.context:
            return value, None
        if context is None:
            raise ValueError(f"context: expected a tensor of shape (..., {self.context}), got None")
        self._check_tensor("context", context, torch.Size([self.context]), any_dtype=True)
        batch, given = value.shape[: value.ndim - len(event)], context.shape[:-1]
        try:
            common = broadcast_shapes(batch, given)
        except RuntimeError:
            raise ValueError(
                f"context: expected a batch shape that broadcasts against {tuple(batch)}, that of {name}, "
                f"got {tuple(context.shape)}"
            ) from None
        return value if common == batch else value.expand(*common, *event), context

    def _check_tensor(self, name: str, value: Tensor, event: torch.Size, any_dtype: bool) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
        if value.ndim < len(event) or value.shape[value.ndim - len(event) :] != event:
            raise ValueError(f"{name}: expected shape (..., {', '.join(map(str, event))}), got {tuple(value.shape)}")
        own = own_tensor(self)
        if not value.is_floating_point():
            wanted = "floating-point numbers" if own is None else f"{own.dtype}, the dtype of the parameters"
            raise TypeError(f"{name}: expected {wanted}, got {value.dtype}")
        if own is None:
            return
        if value.dtype != own.dtype and not any_dtype:
            raise TypeError(f"{name}: expected {own.dtype}, the dtype of the parameters, got {value.dtype}")
        if value.device != own.device:
            raise ValueError(f"{name}: expected a tensor on {own.device}, where the parameters are, got {value.device}")


def _event_shape(name: str, value: int | Sequence[int]) -> torch.Size:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return torch.Size([check_integer(name, value, 1)])
    if not value:
        raise ValueError(f"{name}: expected a shape of at least one dimension, got {value!r}")
    return torch.Size([check_integer(name, size, 1) for size in value])


def check_name(name: str, value: str, known: Sequence[str]) -> str:
    """``value`` if it is one of ``known``; otherwise ValueError."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return value


def check_transform(name: str, value: Transform) -> None:
    """TypeError if ``value`` is not a Transform. Only a Transform is certainly invertible."""
    if not isinstance(value, Transform):
        raise TypeError(
            f"{name}: expected a Transform, a map whose inverse and log-determinant are known, "
            f"got {type(value).__name__}, which is not one"
        )


def any_of_event(mask: Tensor, event: torch.Size) -> Tensor:
    """Whether ``mask`` (..., *event) holds for any element of each event: (...)."""
    return mask.any(-1) if len(event) == 1 else mask.flatten(mask.ndim - len(event)).any(-1)


def base_log_prob(z: Tensor, event: torch.Size, base: str) -> Tensor:
    """Log density (...) in nats of ``z`` (..., *event) under a base distribution, one of ``mixflow.BASES``."""
    log_prob = BASES[base].log_prob(z)
    return log_prob.sum(-1) if len(event) == 1 else log_prob.flatten(z.ndim - len(event)).sum(-1)


def density_where_finite(z: Tensor, event: torch.Size, log_density: Callable[[Tensor], Tensor]) -> Tensor:
    """``log_density(z)`` (...), except -inf for the events of ``z`` (..., *event) in which a number has overflowed.

    The density of such an event is below the smallest number of its dtype.
    """
    if can_be_looked_at(z):
        log_prob = log_density(z)
        if is_known_finite(log_prob):
            return log_prob
    overflows = z.isinf()
    return log_density(z.masked_fill(overflows, 0.0)).masked_fill(any_of_event(overflows, event), -math.inf)


def infinite_where_overflowed(image: Tensor, x: Tensor) -> Tensor:
    """``image`` (..., D), sums of products of ``x`` (..., E), with inf in place of NaN after an overflow.

    Infinity minus infinity is NaN, and so is zero times infinity. But NaN marks a missing value, and a number that has
    overflowed is far away, not missing. NaN stays NaN if it comes from ``x`` or from its factors.
    """
    if is_known_finite(image):
        return image
    # The square of a number overflows if its products may overflow. The square of NaN is NaN.
    far = x.detach().square().sum(dim=-1, keepdim=True).isinf()
    return image.masked_fill(image.isnan() & far, math.inf)


def spread(rows: Tensor, event: torch.Size) -> Tensor:
    """``rows`` (...), one value for each event, with an axis of length 1 for each axis of an event."""
    return rows.reshape(*rows.shape, *(1,) * len(event))
