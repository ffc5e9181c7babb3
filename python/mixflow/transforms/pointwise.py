"""Fixed maps of each feature by itself, without parameters."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..checks import check_integer
from ..op import BASES
from ..standard import BASES as DISTRIBUTIONS
from .base import Transform, base_log_prob, check_name, density_where_finite

__all__ = ["Exp", "Log", "Logit", "Pointwise", "Rebase", "Sigmoid", "Softplus", "describe_interval", "point_inside"]

LINE, POSITIVE, UNIT = (-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0)


class Pointwise(Transform):
    """A map of each feature by itself, from one open interval onto another.

    A subclass sets ``domain`` and ``image``. There are no parameters, so tensors may have any floating-point dtype, and
    computation is in that dtype.

    Args:
        features: D.

    Attributes:
        domain: the ends (low, high) of the interval that the map is defined on.
        image: the ends of the interval that it maps onto.

    Raises:
        ValueError: features is out of range.

    Example:
        >>> import torch
        >>> from mixflow.transforms.pointwise import Pointwise
        >>> class Reciprocal(Pointwise):
        ...     domain = image = (0.0, float("inf"))
        ...     def _forward(self, x, context):
        ...         return 1.0 / x, -2.0 * x.log().sum(-1)
        ...     _inverse = _forward
        >>> Reciprocal(2).outside(torch.tensor([-1.0, 2.0]))
        tensor([ True, False])

    """

    domain: tuple[float, float] = LINE
    image: tuple[float, float] = LINE

    def __init__(self, features: int) -> None:
        super().__init__(check_integer("features", features, 1))

    def outside(self, x: Tensor) -> Tensor | None:
        """Elements of ``x`` (..., D) outside the open ``domain``: booleans (..., D); None if it is the real line.

        NaN is not outside: it stays NaN.
        """
        return _outside(x, self.domain)

    def inside(self, x: Tensor) -> Tensor:
        """A point (D,) of the domain, of the dtype of ``x``. It can replace elements of ``x`` outside the domain."""
        return x.new_full((self.features,), point_inside(*self.domain))

    def outside_image(self, z: Tensor) -> Tensor | None:
        """As :meth:`outside`, for ``z`` (..., D) and the domain of the inverse."""
        return _outside(z, self.image)

    def inside_image(self, z: Tensor) -> Tensor:
        """As :meth:`inside`, for ``z`` (..., D) and the domain of the inverse."""
        return z.new_full((self.features,), point_inside(*self.image))

    def describe(self, feature: int) -> str:
        """The domain of ``feature`` in words, such as "positive" or "between 0 and 1"."""
        return describe_interval(*self.domain)

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"features={self.features}"


class Exp(Pointwise):
    """``z = exp(x)``: the real line to (0, inf). ``ladj = x``, summed over the features.

    ``z`` overflows to inf, or underflows to 0, for x beyond about ±88 in float32 and ±709 in float64.

    Args:
        features: D.

    Raises:
        ValueError: features is out of range.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Exp
        >>> Exp(2)(torch.tensor([[0.0, 1.0]]))
        (tensor([[1.0000, 2.7183]]), tensor([1.]))

    """

    image = POSITIVE

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return x.exp(), x.sum(-1)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x = z.log()
        return x, -x.sum(-1)


class Log(Exp):
    """``z = log x``: (0, inf) to the real line, the inverse of :class:`Exp`. ``ladj = -log x``, summed.

    0 goes to -inf. A negative number has no image and gives NaN.

    Args:
        features: D.

    Raises:
        ValueError: features is out of range.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Log
        >>> Log(3)(torch.tensor([[1.0, 0.0, -1.0]]))[0]
        tensor([[0., -inf, nan]])

    """

    domain, image = POSITIVE, LINE

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return super()._inverse(x, context)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return super()._forward(z, context)


class Softplus(Pointwise):
    """``z = log(1 + exp(x))``: the real line to (0, inf). ``ladj = log sigmoid(x)``, summed over the features.

    For large x, ``z`` is close to x, so that large values keep their spacing. For very negative x it is close to
    exp(x). The inverse is ``x = log(exp(z) - 1)``: 0 goes to -inf, and a negative number has no image and gives NaN.
    Both directions, their ladj and the derivatives are accurate for arguments of any size.

    Args:
        features: D.

    Raises:
        ValueError: features is out of range.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Softplus
        >>> z, ladj = Softplus(3)(torch.tensor([[-1000.0, 0.0, 1000.0]], dtype=torch.float64))
        >>> z
        tensor([[0.0000e+00, 6.9315e-01, 1.0000e+03]], dtype=torch.float64)
        >>> ladj
        tensor([-1000.6931], dtype=torch.float64)

    """

    image = POSITIVE

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        # torch's softplus returns x for x > 20, an error of 2e-9. In one tail the second derivative of its logsigmoid
        # cancels. Here exp(-|x|) cannot overflow. |x| is written with `where`, whose derivative at 0 is not 0.
        negative = x < 0.0
        rest = torch.where(negative, x, -x).exp().log1p()
        ladj = torch.where(negative, x - rest, -rest)
        return torch.where(negative, rest, x + rest), ladj.sum(-1)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_slope = _log1mexp(z)
        return z + log_slope, -log_slope.sum(-1)


class Sigmoid(Pointwise):
    """``z = 1 / (1 + exp(-x))``: the real line to (0, 1).

    ``ladj = log sigmoid(x) + log sigmoid(-x)``, accurate in both tails. ``z`` rounds to 1 if ``1 - z`` is below the
    precision of the dtype, and the inverse of 1 is inf. Values near 0 keep their digits, so prefer them to values near
    1.

    Args:
        features: D.

    Raises:
        ValueError: features is out of range.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Sigmoid
        >>> z, ladj = Sigmoid(1)(torch.tensor([[-200.0]], dtype=torch.float64))
        >>> ladj
        tensor([-200.], dtype=torch.float64)

    """

    image = UNIT

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(x), (logsigmoid(x) + logsigmoid(-x)).sum(-1)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.logit(z), -(z.log() + torch.log1p(-z)).sum(-1)


class Logit(Sigmoid):
    """``z = log(x / (1 - x))``: (0, 1) to the real line, the inverse of :class:`Sigmoid`.

    0 and 1 go to -inf and inf. A number outside [0, 1] has no image and gives NaN.

    Args:
        features: D.

    Raises:
        ValueError: features is out of range.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Logit
        >>> logit, x = Logit(3), torch.tensor([[0.5, 1.0, 1.5]])
        >>> logit(x)[0]
        tensor([[0., inf, nan]])
        >>> logit.outside(x)
        tensor([[False,  True,  True]])

    """

    domain, image = UNIT, LINE

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return super()._inverse(x, context)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return super()._forward(z, context)


class Rebase(Pointwise):
    """From one base distribution to another: ``z = G^-1(F(x))``, where F and G are the CDFs of bases.

    It is computed from the logs of both tails of F, so that neither tail is lost between unbounded bases.

    Args:
        features: D.
        source: the distribution that ``x`` follows, one of ``mixflow.BASES``.
        target: the distribution that ``z`` then follows, another of them.

    Raises:
        ValueError: features is out of range, or a base is unknown.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Rebase
        >>> Rebase(1, "normal", "uniform")(torch.tensor([[0.0], [1.96]]))[0]
        tensor([[0.5000],
                [0.9750]])

    """

    def __init__(self, features: int, source: str, target: str) -> None:
        super().__init__(features)
        self.source = check_name("source", source, BASES)
        self.target = check_name("target", target, BASES)
        self.domain, self.image = _support(self.source), _support(self.target)

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"features={self.features}, source={self.source!r}, target={self.target!r}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return _rebased(x, self.source, self.target)

    def _log_density(self, x: Tensor, context: Tensor | None, base: str) -> Tensor:
        if base != self.target:
            return super()._log_density(x, context, base)
        return density_where_finite(x, self.event_shape, lambda x: base_log_prob(x, self.event_shape, self.source))

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return _rebased(z, self.target, self.source)


def _rebased(value: Tensor, source: str, target: str) -> tuple[Tensor, Tensor]:
    of, to = DISTRIBUTIONS[source], DISTRIBUTIONS[target]
    logit = of.to_logit(value)
    image = to.from_log_tails(logsigmoid(logit), logsigmoid(-logit))
    return image, (of.log_prob(value) - to.log_prob(image)).sum(-1)


def describe_interval(low: float, high: float) -> str:
    """The open interval from ``low`` to ``high`` in words.

    Example:
        >>> from mixflow.transforms.pointwise import describe_interval
        >>> describe_interval(0.0, float("inf")), describe_interval(-1.0, 2.5)
        ('positive', 'between -1 and 2.5')

    """
    if (low, high) in (LINE, POSITIVE):
        return "positive" if low == 0.0 else "any number"
    if math.isinf(high):
        return f"above {low:.15g}"
    return f"below {high:.15g}" if math.isinf(low) else f"between {low:.15g} and {high:.15g}"


def point_inside(low: float, high: float) -> float:
    """A number between ``low`` and ``high``, far enough from finite ends to stay inside in any dtype.

    Example:
        >>> from mixflow.transforms.pointwise import point_inside
        >>> point_inside(0.0, 1.0), point_inside(0.0, float("inf")), point_inside(-float("inf"), 3.0)
        (0.5, 1.0, 2.0)

    """
    if (low, high) == LINE:
        return 0.0
    if math.isinf(high):
        return low + max(1.0, 0.125 * abs(low))
    return -point_inside(-high, math.inf) if math.isinf(low) else 0.5 * low + 0.5 * high


def _outside(value: Tensor, interval: tuple[float, float]) -> Tensor | None:
    low, high = interval
    return None if interval == LINE else (value <= low) | (value >= high)


def _log1mexp(z: Tensor) -> Tensor:
    """``log(1 - exp(-z))`` for z > 0; -inf at 0 and NaN below.

    ``log(-expm1(-z))`` loses digits if exp(-z) is small, and ``log1p(-exp(-z))`` if it is close to 1. The second is
    better from z = log 2 on.
    """
    small = z < math.log(2.0)
    # For tiny z the second is infinite, and its gradient would be NaN although `where` does not choose it. The first is
    # safe everywhere.
    far = torch.where(small, 1.0, z)
    return torch.where(small, (-torch.expm1(-z)).log(), (-(-far).exp()).log1p())


@functools.cache
def _support(base: str) -> tuple[float, float]:
    """The ends of the support of the distribution ``base``: its quantiles at the probabilities 0 and 1."""
    nothing, all_ = (torch.tensor(value, device="cpu") for value in (-math.inf, 0.0))
    quantile = DISTRIBUTIONS[base].from_log_tails
    return float(quantile(nothing, all_)), float(quantile(all_, nothing))
