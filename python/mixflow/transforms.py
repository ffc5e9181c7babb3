"""Invertible transforms with known log-determinants: the parts that flows are composed of.

A transform maps data ``x`` of shape ``(..., D)`` to ``z`` of the same shape and reports
``ladj = log |det dz/dx|`` in nats, of shape ``(...)``. Inputs are checked in one place, :class:`Transform`; a
subclass writes only the mathematics, in ``_forward`` and ``_inverse``.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn

from .checks import check_integer
from .conditioners import MLP
from .ops import BASES, FAMILIES, cdf_transform, cdf_transform_inverse

__all__ = ["Affine", "Compose", "Inverse", "MixtureCDF", "Transform"]


def own_tensor(module: nn.Module) -> Tensor | None:
    """A parameter or buffer of floating-point numbers, to know the dtype and device of ``module`` by."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


class Transform(nn.Module):
    """The contract of all transforms.

    ``forward(x, context=None) -> (z, ladj)`` and ``inverse(z, context=None) -> (x, ladj)``, with ``x`` and
    ``z`` of shape ``(..., D)``, ``ladj`` of shape ``(...)`` in nats, and ``context`` of shape ``(..., C)``
    whose batch shape broadcasts against theirs. Tensors have the dtype and device of the transform's
    parameters.

    Args:
        features: D, the size of the last dimension of ``x``.
        context: C, the size of the last dimension of ``context``; 0 for a transform that takes none.

    Raises:
        TypeError: an argument is not a tensor of the transform's dtype.
        ValueError: a shape or device does not fit, or a context is missing or not expected.

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

    def __init__(self, features: int, context: int = 0) -> None:
        super().__init__()
        self.features = check_integer("features", features, 1)
        self.context = check_integer("context", context, 0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to base: ``(z, ladj)`` with ``ladj = log |det dz/dx|``."""
        self._check("x", x, context)
        return self._forward(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Base to data: ``(x, ladj)`` with ``ladj = log |det dx/dz|``."""
        self._check("z", z, context)
        return self._inverse(z, context)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set the parameters from data ``x`` of shape ``(N, D)`` before training; by default, leave them."""

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _check(self, name: str, value: Tensor, context: Tensor | None) -> None:
        self._check_tensor(name, value, self.features)
        if context is None:
            if self.context:
                raise ValueError(f"context: expected a tensor of shape (..., {self.context}), got None")
            return
        if not self.context:
            raise ValueError(f"context: expected None, this {type(self).__name__} takes no context")
        self._check_tensor("context", context, self.context)
        batch = value.shape[:-1]
        aligned = zip(reversed(context.shape[:-1]), reversed(batch), strict=False)
        if context.ndim > value.ndim or any(size not in (1, other) for size, other in aligned):
            raise ValueError(
                f"context: expected a batch shape that broadcasts to {tuple(batch)}, that of {name}; "
                f"got {tuple(context.shape)}"
            )

    def _check_tensor(self, name: str, value: Tensor, size: int) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
        if value.ndim == 0 or value.shape[-1] != size:
            raise ValueError(f"{name}: expected shape (..., {size}), got {tuple(value.shape)}")
        own = own_tensor(self)
        if own is None:
            return
        if value.dtype != own.dtype:
            raise TypeError(f"{name}: expected {own.dtype}, the dtype of the parameters; got {value.dtype}")
        if value.device != own.device:
            raise ValueError(f"{name}: expected a tensor on {own.device}, where the parameters are; got {value.device}")


class MixtureCDF(Transform):
    r"""Each feature through its own mixture CDF and the inverse CDF of a base.

    .. math:: z = G^{-1}(F(x)), \quad F(x) = \sum_k \mathrm{softmax}(logits)_k \,
              C\left((x - loc_k) / e^{log\_scale_k}\right)

    With a base of the data's own kind this is the marginal Gaussianization of Chen and Gopinath (2000); see
    Meng et al., "Gaussianization Flows" (2020, arXiv:2003.01941). The parameters ``logits``, ``loc`` and
    ``log_scale`` have shape (D, K). With a context, a network adds to them an offset for each element, as in
    Ho et al., "Flow++" (2019, arXiv:1902.00275).

    Args:
        features: D.
        components: K, the number of components of each feature's mixture.
        family: the components' distribution, one of ``mixflow.FAMILIES``.
        base: the distribution that the data are mapped to, one of ``mixflow.BASES``.
        context: C, the size of the context; 0 for none.

    Raises:
        ValueError: a size is out of range, or the family or base is unknown.

    Example:
        >>> import torch
        >>> from mixflow.transforms import MixtureCDF
        >>> transform = MixtureCDF(features=3, components=4, family="logistic")
        >>> x = torch.randn(10, 3)
        >>> z, ladj = transform(x)
        >>> torch.allclose(transform.inverse(z)[0], x, atol=1e-4)
        True

    """

    def __init__(
        self, features: int, components: int, family: str = "gaussian", base: str = "normal", context: int = 0
    ) -> None:
        super().__init__(features, context)
        self.components = check_integer("components", components, 1)
        for name, value, known in (("family", family, FAMILIES), ("base", base, BASES)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}; got {value!r}")
        self.family = family
        self.base = base
        # For standardised data: locations at the normal's quantiles, scales as wide as the gaps between them.
        shape = self.features, self.components
        loc = torch.special.ndtri((torch.arange(self.components) + 0.5) / self.components).expand(shape)
        self.logits = nn.Parameter(torch.zeros(shape))
        self.loc = nn.Parameter(loc.clone())
        self.log_scale = nn.Parameter(_log_spacing(loc))
        self.conditioner = MLP(self.context, 3 * loc.numel()) if self.context else None

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Equal weights, locations at the quantiles of ``x`` (N, D), scales from the gaps between them."""
        with torch.no_grad():
            spread = _spread(x)
            rows = ((torch.arange(self.components, device=x.device) + 0.5) / self.components * len(x)).long()
            loc = x.sort(dim=0).values[rows].T
            self.logits.zero_()
            self.loc.copy_(loc)
            self.log_scale.copy_(_log_spacing(loc, spread))

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return (
            f"features={self.features}, components={self.components}, family={self.family!r}, "
            f"base={self.base!r}, context={self.context}"
        )

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if self.conditioner is None or context is None:
            return self.logits, self.loc, self.log_scale
        offsets = self.conditioner(context).unflatten(-1, (3, self.features, self.components))
        logits, loc, log_scale = offsets.unbind(-3)
        return self.logits + logits, self.loc + loc, self.log_scale + log_scale

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z, ladj = cdf_transform(x, *self._parameters_for(context), family=self.family, base=self.base)
        return z, ladj.sum(-1)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, ladj = cdf_transform_inverse(z, *self._parameters_for(context), family=self.family, base=self.base)
        return x, ladj.sum(-1)


def _spread(x: Tensor) -> Tensor:
    """The standard deviation of each column of ``x`` (N, D); ValueError for one without a positive, finite one."""
    if len(x) < 2:
        raise ValueError(f"x: expected at least 2 rows, to take a standard deviation of; got {len(x)}")
    spread, low, high = x.std(dim=0), x.amin(dim=0), x.amax(dim=0)
    wrong = ((low == high) | ~(spread > 0.0) | spread.isinf()).nonzero()
    if len(wrong):
        column = int(wrong[0])
        raise ValueError(
            f"x: expected columns that vary, with a standard deviation that fits in {x.dtype}; got numbers from "
            f"{low[column].item():g} to {high[column].item():g} in column {column} (counted from 0)"
        )
    return spread


def _log_spacing(loc: Tensor, spread: Tensor | None = None) -> Tensor:
    """Log of the mean gap between each of the increasing ``loc`` (D, K) and its neighbours.

    ``spread`` (D,), 1 if not given, is the scale of a single component. Tied values leave no gap, so that a
    gap counts for at least a hundredth of an even share of the spread: a start, not a limit.
    """
    features, components = loc.shape
    spread = loc.new_ones(features, 1) if spread is None else spread.unsqueeze(-1)
    if components == 1:
        return spread.log()
    gaps = loc.diff(dim=-1)
    left, right = torch.cat([gaps[:, :1], gaps], dim=-1), torch.cat([gaps, gaps[:, -1:]], dim=-1)
    return torch.maximum(0.5 * (left + right), 0.01 / components * spread).log()


class Affine(Transform):
    """``z = (x - loc) / exp(log_scale)``, feature by feature.

    ``initialize`` sets ``loc`` and ``log_scale`` (D,) to the data's mean and log standard deviation. With
    ``trainable=False`` they stay there: a standardisation whose ladj keeps densities in the data's own units.

    Args:
        features: D.
        trainable: whether loc and log_scale are parameters (True) or buffers (False).

    Raises:
        ValueError: features is out of range.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Affine
        >>> standardise = Affine(features=1, trainable=False)
        >>> standardise.initialize(torch.tensor([[10.0], [20.0], [30.0]]))
        >>> standardise(torch.tensor([[40.0]]))[0]
        tensor([[2.0000]])

    """

    loc: Tensor
    log_scale: Tensor

    def __init__(self, features: int, trainable: bool = True) -> None:
        super().__init__(features)
        for name in ("loc", "log_scale"):
            if trainable:
                self.register_parameter(name, nn.Parameter(torch.zeros(self.features)))
            else:
                self.register_buffer(name, torch.zeros(self.features))

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set loc and log_scale from the columns' mean and standard deviation; ValueError if a column is constant."""
        with torch.no_grad():
            self.log_scale.copy_(_spread(x).log())
            self.loc.copy_(x.mean(dim=0))

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"features={self.features}, trainable={isinstance(self.loc, nn.Parameter)}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return (x - self.loc) * torch.exp(-self.log_scale), -self.log_scale.sum().expand(x.shape[:-1])

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return z * self.log_scale.exp() + self.loc, self.log_scale.sum().expand(z.shape[:-1])


class Compose(Transform):
    """Transforms one after the other; the ladj's add up.

    Args:
        transforms: in the order in which the forward direction applies them. They agree in ``features``, and
            those that take a context agree in its size.

    Raises:
        ValueError: no transforms, or sizes that disagree.
        TypeError: an argument is not a Transform.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Affine, Compose, MixtureCDF
        >>> transform = Compose(Affine(2), MixtureCDF(2, components=4))
        >>> transform(torch.randn(5, 2))[1].shape
        torch.Size([5])

    """

    def __init__(self, *transforms: Transform) -> None:
        if not transforms:
            raise ValueError("transforms: expected at least one Transform, got none")
        for transform in transforms:
            _check_transform("transforms", transform)
        features = {transform.features for transform in transforms}
        contexts = {transform.context for transform in transforms if transform.context}
        for name, sizes in (("features", features), ("context", contexts)):
            if len(sizes) > 1:
                raise ValueError(f"transforms: expected the same {name} in all, got {sorted(sizes)}")
        super().__init__(features.pop(), contexts.pop() if contexts else 0)
        self.transforms = nn.ModuleList(transforms)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initialise each transform on the data as the ones before it leave them."""
        with torch.no_grad():
            for transform in self._each():
                own = context if transform.context else None
                transform.initialize(x, own)
                x, _ = transform(x, own)

    def _each(self) -> list[Transform]:
        return cast("list[Transform]", list(self.transforms))

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[:-1])
        for transform in self._each():
            x, ladj = transform(x, context if transform.context else None)
            total = total + ladj
        return x, total

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(z.shape[:-1])
        for transform in reversed(self._each()):
            z, ladj = transform.inverse(z, context if transform.context else None)
            total = total + ladj
        return z, total


class Inverse(Transform):
    """A transform with its two directions exchanged.

    Args:
        transform: the transform to turn round; its parameters are shared, not copied.

    Raises:
        TypeError: not a Transform.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Inverse, MixtureCDF
        >>> transform, z = MixtureCDF(1, components=4), torch.randn(5, 1)
        >>> torch.equal(Inverse(transform)(z)[0], transform.inverse(z)[0])
        True

    """

    transform: Transform

    def __init__(self, transform: Transform) -> None:
        _check_transform("transform", transform)
        super().__init__(transform.features, transform.context)
        self.transform = transform

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.forward(z, context)


def _check_transform(name: str, value: Transform) -> None:
    if not isinstance(value, Transform):
        raise TypeError(f"{name}: expected a Transform, got {type(value).__name__}")
