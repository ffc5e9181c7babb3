"""Data with a bounded support, such as positive amounts and proportions, are mapped to the real line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from numbers import Real

import torch
from torch import Tensor

from ..checks import check_integer
from ..export import in_onnx_export
from .base import Transform
from .pointwise import LINE, describe_interval, point_inside

__all__ = ["Support"]

Map = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A map of ``x`` (..., n), given the ends ``low`` and ``high`` (n,): the image and ladj, both (..., n)."""


class Support(Transform):
    r"""Maps each feature from the open interval in which its values lie to the real line.

    .. math::
        z = \log \frac{x - a}{b - x} \text{ on } (a, b), \quad \log(x - a) \text{ on } (a, \infty), \quad
        -\log(b - x) \text{ on } (-\infty, b)

    Tensors may have any floating-point dtype, and the result has the same dtype. ``.to(dtype)`` does not round the
    ends: each call rounds them to the dtype of ``x``. For dtypes narrower than float32, computation is in float32.

    An end goes to -inf or inf. A number beyond an end has no image and gives NaN. :meth:`outside` finds both.
    ``inverse`` returns numbers strictly inside the interval, even if the exact value would round to an end or overflow.

    Args:
        features: D.
        support: "positive" for (0, inf), a pair (low, high), or None for a feature that stays as it is; or a sequence
            of these, one for each feature. An end of a pair may be infinite or None, which means infinite. Pairs may be
            tuples or lists.

    Attributes:
        support: the argument in its simplest form, which is a single entry if all features have the same.

    Raises:
        ValueError: features is out of range, or support is none of these. A call raises it if the dtype of ``x`` has
            too few numbers between the ends, or none as large as an end.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Support
        >>> to_line = Support(3, ["positive", (0, 100), None])
        >>> x = torch.tensor([[1.0, 50.0, -7.0], [0.0, 100.0, 3.0]])
        >>> z, ladj = to_line(x)
        >>> z
        tensor([[ 0.,  0., -7.],
                [-inf, inf,  3.]])
        >>> to_line.outside(x)
        tensor([[False, False, False],
                [ True,  True, False]])

    """

    bits: Tensor
    order: Tensor
    back: Tensor

    def __init__(self, features: int, support: str | Sequence[object] | None) -> None:
        super().__init__(check_integer("features", features, 1))
        self._intervals = _intervals(support, self.features)
        self._largest, self._narrowest = _sizes(self._intervals)
        entries = [_entry(*ends) for ends in self._intervals]
        self.support = entries[0] if all(entry == entries[0] for entry in entries) else entries
        bounded = [(math.isfinite(low), math.isfinite(high)) for low, high in self._intervals]
        self._kinds = sorted(set(bounded))
        self._counts = [bounded.count(kind) for kind in self._kinds]
        order = sorted(range(self.features), key=bounded.__getitem__)
        points = [point_inside(*ends) for ends in self._intervals]
        # These are constants of the constructor, so files do not hold them. `.to(dtype)` would round floating-point
        # buffers. It moves integers to another device but does not change them, so the bits of float64 numbers are kept
        # as integers.
        self._listed = [*zip(*self._intervals, strict=True), points]
        numbers = torch.tensor(self._listed, dtype=torch.float64)
        self.register_buffer("bits", numbers.view(torch.int64), persistent=False)
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("back", torch.tensor(order).argsort(), persistent=False)

    def outside(self, x: Tensor) -> Tensor | None:
        """Elements of ``x`` (..., D) outside their open interval: booleans (..., D); None if all are the real line.

        NaN is not outside: it stays NaN.
        """
        if self.support is None:
            return None
        low, high, _ = self._numbers(x)
        outside: Tensor = (x <= low) | (x >= high)
        return outside

    def inside(self, x: Tensor) -> Tensor:
        """A point (D,) inside the intervals, of the dtype of ``x``. It can replace elements outside."""
        return self._numbers(x)[2]

    def describe(self, feature: int) -> str:
        """The interval of ``feature`` in words, such as "positive" or "between 0 and 1"."""
        return describe_interval(*self._intervals[feature])

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"features={self.features}, support={self.support!r}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._mapped(x, [_MAPS[kind][0] for kind in self._kinds])

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, ladj = self._mapped(z, [_MAPS[kind][1] for kind in self._kinds])
        if self.support is None:
            return x, ladj
        return x.clamp(*_limits(*self._numbers(x)[:2])), ladj

    def _numbers(self, like: Tensor) -> tuple[Tensor, ...]:
        """Lower ends, upper ends and points inside, each (D,), of the dtype and on the device of ``like``."""
        if in_onnx_export() or torch._C._get_tracing_state() is not None:  # neither can reinterpret bits
            return torch.tensor(self._listed, dtype=like.dtype, device=like.device).unbind()
        return self.bits.to(like.device).view(torch.float64).to(like.dtype).unbind()

    def _mapped(self, value: Tensor, maps: Sequence[Map]) -> tuple[Tensor, Tensor]:
        """``value`` (..., D) with one of ``maps`` for each kind of interval, and the sum (...) of the ladj."""
        self._check_dtype(value.dtype)
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        low, high, _ = self._numbers(wide)
        if len(maps) == 1:
            image, ladj = maps[0](wide, low, high)
        else:
            parts = zip(maps, self._grouped(wide), self._grouped(low), self._grouped(high), strict=True)
            results = [own(*arguments) for own, *arguments in parts]
            image = torch.cat([image for image, _ in results], -1).index_select(-1, self.back)
            ladj = torch.cat([ladj for _, ladj in results], -1)
        return image.to(value.dtype), ladj.sum(-1).to(value.dtype)

    def _grouped(self, value: Tensor) -> tuple[Tensor, ...]:
        """The columns of ``value`` (..., D) for each kind of interval."""
        parts: tuple[Tensor, ...] = value.index_select(-1, self.order).split(self._counts, -1)
        return parts

    def _check_dtype(self, dtype: torch.dtype) -> None:
        """ValueError if ends overflow or collapse once they are rounded to ``dtype``."""
        largest, narrowest, info = self._largest, self._narrowest, torch.finfo(dtype)
        if largest > 0.25 * info.max:
            raise ValueError(f"support: expected ends of at most {0.25 * info.max:g} for {dtype}, got {largest:g}")
        if narrowest < 16.0 * info.eps:
            raise ValueError(
                f"support: expected ends that differ by more than {16.0 * info.eps:.2g} of their size, for {dtype} to "
                f"have numbers between them, got a pair that differs by {narrowest:.2g} of its size"
            )


def _intervals(support: object, features: int) -> list[tuple[float, float]]:
    """The ends (low, high) for each feature."""
    if support is None or isinstance(support, str) or _is_pair(support):
        return [_interval(support, f"{support!r}")] * features
    if not isinstance(support, Sequence):
        raise ValueError(f"support: expected {_EXPECTED} or a sequence of these, got {support!r}")
    if len(support) != features:
        raise ValueError(f"support: expected {_EXPECTED}, or {features} of these, one a feature, got {len(support)}")
    return [_interval(entry, f"{entry!r} for feature {index}") for index, entry in enumerate(support)]


_EXPECTED = "None, 'positive' or a pair (low, high) with low < high"


def _is_pair(value: object) -> bool:
    def is_end(end: object) -> bool:
        return end is None or (isinstance(end, Real) and not isinstance(end, bool))

    return isinstance(value, Sequence) and len(value) == 2 and all(map(is_end, value))


def _interval(entry: object, given: str) -> tuple[float, float]:
    """The ends that one entry stands for; ``given`` describes it in the error."""
    if entry is None:
        return LINE
    if isinstance(entry, str) and entry == "positive":
        return 0.0, math.inf
    if isinstance(entry, Sequence) and _is_pair(entry):
        with suppress(OverflowError):  # an integer beyond the largest float
            low, high = (other if end is None else float(end) for end, other in zip(entry, LINE, strict=True))
            if low < high:
                return low, high
    raise ValueError(f"support: expected {_EXPECTED}, got {given}")


def _sizes(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The size of the largest finite end, and the smallest distance of two ends relative to the larger of them."""
    largest = [max(abs(end) for end in (*ends, 0.0) if math.isfinite(end)) for ends in intervals]
    relative = [(high - low) / size for (low, high), size in zip(intervals, largest, strict=True) if size]
    return max(largest), min(relative, default=math.inf)


def _entry(low: float, high: float) -> str | tuple[float, float] | None:
    """The simplest entry that stands for these ends."""
    if math.isinf(low) and math.isinf(high):
        return None
    return "positive" if (low, high) == (0.0, math.inf) else (low, high)


# -- the maps of each kind of interval -----------------------------------------------------------------------


def _identity(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return x, torch.zeros_like(x)


def _from_above(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    z = (x - low).log()
    return z, -z


def _to_above(z: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low + _bounded_exp(z), z


def _from_below(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    z = -(high - x).log()
    return z, z


def _to_below(z: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return high - _bounded_exp(-z), -z


def _from_between(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    # Each difference is exact close to its own end. 1 - (x - low) / (high - low) would have no digits left there.
    from_low, to_high = (x - low).log(), (high - x).log()
    return from_low - to_high, (high - low).log() - from_low - to_high


def _to_between(z: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    negative = z < 0.0
    toward_end = torch.where(negative, z, -z)
    step = (high - low) * torch.sigmoid(toward_end)
    # dx/dz = (high - low) sigmoid(z) sigmoid(-z). It is written with exp(-|z|), which does not overflow.
    ladj = (high - low).log() + toward_end - 2.0 * toward_end.exp().log1p()
    return torch.where(negative, low + step, high - step), ladj


def _bounded_exp(z: Tensor) -> Tensor:
    """``exp(z)``, or half of the largest number if that is less; the gradient is 0 there."""
    return z.clamp(max=math.log(0.5 * torch.finfo(z.dtype).max)).exp()


def _limits(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest number that ``inverse`` returns; infinite if any number is possible."""
    largest, bounded = torch.finfo(low.dtype).max, low.isfinite() | high.isfinite()
    least, greatest = (low + _margin(low)).clamp(min=-largest), (high - _margin(high)).clamp(max=largest)
    return torch.where(bounded, least, low), torch.where(bounded, greatest, high)


def _margin(end: Tensor) -> Tensor:
    """A distance from ``end`` that is at least the spacing of numbers there, and never subnormal."""
    info = torch.finfo(end.dtype)
    return (end.abs().clamp(max=0.25 * info.max) * info.eps).clamp(min=info.tiny)


_MAPS: dict[tuple[bool, bool], tuple[Map, Map]] = {
    # (is low finite, is high finite): (data to the real line, the real line to data)
    (False, False): (_identity, _identity),
    (True, False): (_from_above, _to_above),
    (False, True): (_from_below, _to_below),
    (True, True): (_from_between, _to_between),
}
