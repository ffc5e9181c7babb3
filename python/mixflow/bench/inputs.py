"""What the benchmarks run on: the settings of a run, and the tensors of a call."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import mixflow

from .baselines import BASE_OF, Parameters

__all__ = ["LAYOUTS", "Inputs", "Settings", "make_inputs", "to_base"]

FEATURES = 64
_MOST_COPIES = 64
_CACHE = 2**26  # bytes, where torch does not say

# n -> the shape of x, and the batch shape of the parameters
LAYOUTS: dict[str, Callable[[int], tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "shared": lambda n: ((n,), ()),
    "per feature": lambda n: ((n // FEATURES, FEATURES), (FEATURES,)),
    "per element": lambda n: ((n,), (n,)),
}


@dataclass(frozen=True)
class Settings:
    """How to run.

    Args:
        n: Elements of the main cases.
        components: K of the main cases.
        dtype: torch.float32 or torch.float64.
        threads: CPU threads of mixflow and of torch.
        device: Where the tensors lie.
        quick: Few short rounds and no torch.compile, to see that everything works: its times mean little.

    """

    n: int = 2**20
    components: int = 8
    dtype: torch.dtype = torch.float32
    threads: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quick: bool = False

    def capped(self, n: int) -> int:
        """``n``, or in a quick run no more than the main cases have."""
        return min(n, self.n) if self.quick else n


@dataclass(frozen=True)
class Inputs:
    """The tensors of one call.

    Args:
        x: Elements to transform, ``(...)``; of the base distribution, where the inverse is called.
        parameters: logits, loc and log_scale, ``(..., K)``.
        seeds: The gradients of the two results, shaped like x, from which a backward pass starts; none, where no
            gradients are taken.

    """

    x: Tensor
    parameters: Parameters
    seeds: tuple[Tensor, ...] = ()

    def head(self, n: int) -> Inputs:
        """The first ``n`` elements, as views."""
        return self.select(slice(n))

    def select(self, rows: slice) -> Inputs:
        """Some of the elements, as views that require gradients where the whole does."""

        def part(t: Tensor) -> Tensor:
            return t.detach()[rows].requires_grad_(t.requires_grad)

        logits, loc, log_scale = self.parameters if self.shared else tuple(map(part, self.parameters))
        return Inputs(part(self.x), (logits, loc, log_scale), tuple(s[rows] for s in self.seeds))

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What gradients are taken by: x, logits, loc, log_scale."""
        return (self.x, *self.parameters)

    @property
    def shared(self) -> bool:
        """Whether all elements have the same parameters."""
        return self.parameters[0].dim() == 1


def make_inputs(
    settings: Settings, n: int, components: int, layout: str, *, gradients: bool = False, equal_weights: bool = False
) -> list[Inputs]:
    """Standard normal elements and overlapping components: logits and loc from N(0, 1), log_scale from N(-1, 0.3).

    Returns:
        One set of inputs on a CPU. On a CUDA device as many as twice its L2 cache holds, since a kernel of a flow
        does not find its data there either.

    Example:
        >>> from mixflow.bench.inputs import Settings, make_inputs
        >>> [inputs] = make_inputs(Settings(), 5, 3, "per element")
        >>> inputs.x.shape, inputs.parameters[0].shape
        (torch.Size([5]), torch.Size([5, 3]))

    """
    generator = torch.Generator(settings.device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=settings.device).to(settings.dtype)

    shape, batch = LAYOUTS[layout](n)
    logits, loc, log_scale = (draw(*batch, components) for _ in range(3))
    log_scale.mul_(0.3).sub_(1)
    if equal_weights:
        logits.zero_()
    seeds = (draw(*shape), draw(*shape)) if gradients else ()
    first = Inputs(draw(*shape), (logits, loc, log_scale), seeds)
    for tensor in first.leaves:
        tensor.requires_grad_(gradients)
    extra = 0
    if settings.device.type == "cuda":
        size = sum(t.nbytes for t in (*first.leaves, *first.seeds))
        cache = getattr(torch.cuda.get_device_properties(settings.device), "L2_cache_size", 0) or _CACHE
        extra = min(_MOST_COPIES, math.ceil(2 * cache / size))
    return [first, *(copy.deepcopy(first) for _ in range(extra))]


def to_base(inputs: Inputs, family: str) -> Inputs:
    """The same with x mapped to the base: what the inverse maps back."""
    with torch.no_grad():
        z, _ = mixflow.cdf_transform(inputs.x, *inputs.parameters, family=family, base=BASE_OF[family])
    return replace(inputs, x=z.requires_grad_(inputs.x.requires_grad))
