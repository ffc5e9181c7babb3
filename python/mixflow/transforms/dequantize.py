"""Dequantisation: integers, such as the grey levels of pixels, become numbers with a continuous density."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..checks import check_integer
from .base import Transform, check_transform, own_tensor

__all__ = ["Dequantize"]


class Dequantize(Transform):
    r"""Integers from 0 to ``levels`` - 1 to numbers in (0, 1), by adding noise u in (0, 1), drawn anew in every call.

    .. math:: z = \frac{x + u}{L}, \quad \mathrm{ladj} = -D \log L - \log q(u \mid x)

    Uniform noise has q = 1 (Theis, van den Oord and Bethge, "A note on the evaluation of generative models", 2016,
    arXiv:1511.01844). With ``noise``, the noise is learned, which is the variational dequantisation of Ho et al.,
    "Flow++" (2019, arXiv:1902.00275). For a flow that begins with this transform, ``exp(log_prob)`` is an unbiased
    estimate of the probability P(x) of the integers, and ``log_prob`` is at most log P(x) on average. The logarithm of
    the mean of ``exp(log_prob)`` over many calls comes closer to log P(x) (Burda et al., 2016, arXiv:1509.00519).

    The noise comes from torch's global generator, in training mode as in evaluation mode. ``torch.manual_seed`` makes
    it reproducible. The inverse returns integers, as floating-point numbers, so the samples of a flow are integers
    again. The inverse draws nothing. Its ladj is the negative of the forward ladj at the same z.

    ``fit(resolution=1.0)`` is another way to learn from rounded values with uniform noise. It works with every flow;
    ``log_prob`` stays a density and samples stay continuous. Use it for measurements that were rounded. Use
    ``Dequantize`` for data that are integers by nature, to get their probabilities and samples. Do not use both.

    Args:
        shape: of an event, such as (C, H, W), or D.
        levels: L, the number of different integers.
        noise: a transform of events of this shape, whose context is x / L - 1/2 as a vector of all its numbers. It maps
            standard logistic numbers to the logits of u. The identity gives uniform noise. Couplings with
            ``context=shape`` fit here: see the example.

    Raises:
        TypeError: noise is not a Transform.
        ValueError: a size is out of range, or noise has another shape or context. A call raises it if the dtype of
            ``x`` has too few digits for so many levels.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Compose, Dequantize, ImageCoupling
        >>> x = torch.randint(256, (5, 1, 8, 8)).float()
        >>> dequantize = Dequantize((1, 8, 8), levels=256)
        >>> z, _ = dequantize(x)
        >>> torch.equal(dequantize.inverse(z)[0], x)
        True
        >>> noise = Compose(*(ImageCoupling((1, 8, 8), 4, swap=s, context=(1, 8, 8)) for s in (False, True)))
        >>> learned = Dequantize((1, 8, 8), levels=256, noise=noise)
        >>> torch.equal(learned.inverse(learned(x)[0])[0], x)
        True

    """

    noise: Transform | None

    def __init__(self, shape: int | Sequence[int], levels: int, *, noise: Transform | None = None) -> None:
        super().__init__(shape)
        self.levels = check_integer("levels", levels, 2)
        if noise is not None:
            check_transform("noise", noise)
            if not noise.event_shape == noise.output_shape == self.event_shape:
                raise ValueError(
                    f"noise: expected a transform of events of shape {tuple(self.event_shape)}, got one of "
                    f"{tuple(noise.event_shape)} to {tuple(noise.output_shape)}"
                )
            if noise.context not in (0, self.features):
                raise ValueError(f"noise: expected a context of {self.features} numbers or none, got {noise.context}")
        self.noise = noise

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initialise the noise on logistic numbers, with ``x`` ``(N, *shape)`` as its context."""
        if self.noise is not None:
            x = self._in_own_dtype(x)
            start = torch.logit(self._uniform(x))
            self.noise.initialize(start, self._context(x) if self.noise.context else None)

    def takes_any_dtype(self, forward: bool = True) -> bool:
        """Images may have any floating-point dtype. So may z, if there is no noise with a dtype of its own."""
        return forward or own_tensor(self) is None

    def outside(self, x: Tensor) -> Tensor | None:
        """The elements of ``x`` that are not among the integers."""
        outside: Tensor = (x < 0.0) | (x > self.levels - 1.0) | (x != x.floor())
        return outside & ~x.isnan()

    def outside_image(self, z: Tensor) -> Tensor | None:
        """The elements of ``z`` outside of (0, 1)."""
        return (z <= 0.0) | (z >= 1.0)

    def inside_image(self, z: Tensor) -> Tensor:
        """The middle of the first interval."""
        return z.new_full(self.output_shape, 0.5 / self.levels)

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"shape={tuple(self.event_shape)}, levels={self.levels}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self._in_own_dtype(x)
        u, log_density = self._drawn(x)
        return (x + u) / self.levels, -self.features * math.log(self.levels) - log_density

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        scaled = z * self.levels
        # A z outside (0, 1) becomes the nearest integer.
        x = scaled.floor().clamp(0.0, self.levels - 1.0)
        return x, self.features * math.log(self.levels) + self._noise_log_density(scaled - x, x)

    # -- the noise ---------------------------------------------------------------------------------------------

    def _cells(self, dtype: torch.dtype) -> int:
        """The number of different u: few enough for x + u to be exact and for z L to round down to x."""
        spare = -round(math.log2(torch.finfo(dtype).eps)) - (self.levels - 1).bit_length() - 3
        if spare < 1:
            raise ValueError(f"x: expected a dtype with digits for {self.levels} levels and noise, got {dtype}")
        return 1 << min(spare, 20)

    def _uniform(self, x: Tensor) -> Tensor:
        """Noise of the shape of ``x``: middles of equal cells of (0, 1), and so never 0 or 1."""
        cells = self._cells(x.dtype)
        return (torch.randint(cells, x.shape, device=x.device).to(x.dtype) + 0.5) / cells

    def _in_own_dtype(self, x: Tensor) -> Tensor:
        own = own_tensor(self)
        return x if own is None else x.to(own.dtype)

    def _context(self, x: Tensor) -> Tensor:
        return (x / self.levels - 0.5).flatten(x.ndim - len(self.event_shape))

    def _drawn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw u of the shape of ``x``, and return it with log q(u | x) (...)."""
        u = self._uniform(x)
        if self.noise is None:
            return u, self._zeros(x)
        start = torch.logit(u)
        logits, ladj = self.noise(start, self._context(x))
        log_density = self._sum(_logistic_log_density(start) - _logistic_log_density(logits)) - ladj
        half = 0.5 / self._cells(x.dtype)
        return torch.sigmoid(logits).clamp(half, 1.0 - half), log_density

    def _noise_log_density(self, u: Tensor, x: Tensor) -> Tensor:
        """The log density log q(u | x) (...)."""
        if self.noise is None:
            return self._zeros(x)
        half = 0.5 / self._cells(x.dtype)
        logits = torch.logit(u.clamp(half, 1.0 - half))
        start, ladj = self.noise.inverse(logits, self._context(x))
        return self._sum(_logistic_log_density(start) - _logistic_log_density(logits)) + ladj

    def _zeros(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[: x.ndim - len(self.event_shape)])

    def _sum(self, elements: Tensor) -> Tensor:
        return elements.flatten(elements.ndim - len(self.event_shape)).sum(-1)


def _logistic_log_density(x: Tensor) -> Tensor:
    """The log of the logistic density, which is also the log slope of the sigmoid."""
    return logsigmoid(x) + logsigmoid(-x)
