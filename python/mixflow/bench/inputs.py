"""What the cases run on: the settings of a run, and the tensors of one call of the op."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import mixflow

from .baselines import BASE_OF, Parameters

__all__ = ["LAYOUTS", "OPS", "Inputs", "Settings", "draw_inputs", "normal"]

# The name of an op in the tables: whether it is the inverse, and whether it takes gradients of everything.
OPS = {
    "forward + ladj": (False, False),
    "forward + backward": (False, True),
    "inverse + ladj": (True, False),
    "inverse + backward": (True, True),
}
# The number of elements -> the shape of x, and the batch shape of the parameters.
LAYOUTS: dict[str, Callable[[int], tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "shared": lambda n: ((n,), ()),
    "per feature": lambda n: ((n // 64, 64), (64,)),
    "per element": lambda n: ((n,), (n,)),
}
_MOST_COPIES = 64
_CACHE = 2**26  # bytes, where torch does not tell


@dataclass(frozen=True)
class Settings:
    """How to run.

    Args:
        n: number of elements of the main cases.
        components: K of the main cases.
        dtype: torch.float32 or torch.float64.
        threads: number of CPU threads.
        device: where the tensors lie.
        quick: a few short rounds and no torch.compile, to see that everything works. Such times mean little.

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
    """The tensors of one call of the op.

    Args:
        x: the elements, ``(...)``; values of the base for the inverse.
        parameters: logits, loc and log_scale, ``(..., K)``.
        family: one of ``mixflow.FAMILIES``.
        inverse: whether the inverse is called.
        seeds: the gradients of the two results, each shaped like x; empty where no gradients are taken.

    """

    x: Tensor
    parameters: Parameters
    family: str
    inverse: bool = False
    seeds: tuple[Tensor, ...] = ()

    def select(self, rows: slice) -> Inputs:
        """Some of the elements, as views that require gradients where the whole does."""

        def part(t: Tensor) -> Tensor:
            return t.detach()[rows].requires_grad_(t.requires_grad)

        logits, loc, log_scale = self.parameters if self.shared else map(part, self.parameters)
        seeds = tuple(seed[rows] for seed in self.seeds)
        return replace(self, x=part(self.x), parameters=(logits, loc, log_scale), seeds=seeds)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that gradients are taken of: x, logits, loc, log_scale."""
        return (self.x, *self.parameters)

    @property
    def shared(self) -> bool:
        """Whether all elements have the same parameters."""
        return self.parameters[0].dim() == 1

    def op(self) -> tuple[Tensor, Tensor]:
        """The two results of mixflow."""
        op = mixflow.cdf_transform_inverse if self.inverse else mixflow.cdf_transform
        return op(self.x, *self.parameters, family=self.family, base=BASE_OF[self.family])


def normal(settings: Settings) -> Callable[..., Tensor]:
    """A function of a shape that draws standard normal numbers, the same in every run."""
    generator = torch.Generator(settings.device).manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator, device=settings.device).to(settings.dtype)


def draw_inputs(
    settings: Settings, op: str, family: str, layout: str, n: int, *, equal_weights: bool = False
) -> list[Inputs]:
    """Standard normal elements and overlapping components: logits and loc from N(0, 1), log_scale from N(-1, 0.3).

    Args:
        settings: for K, dtype and device.
        op: a key of :data:`OPS`; the inverse gets the images of such elements.
        family: one of ``mixflow.FAMILIES``.
        layout: a key of :data:`LAYOUTS`.
        n: number of elements.
        equal_weights: whether all logits are 0.

    Returns:
        One set of inputs on a CPU. On a CUDA device as many equal sets as twice its L2 cache holds, since a kernel of
        a flow does not find its data in the cache either.

    Example:
        >>> from mixflow.bench.inputs import Settings, draw_inputs
        >>> [inputs] = draw_inputs(Settings(components=3), "forward + ladj", "gaussian", "per element", 5)
        >>> inputs.x.shape, inputs.parameters[0].shape
        (torch.Size([5]), torch.Size([5, 3]))

    """
    inverse, backward = OPS[op]
    draw = normal(settings)
    shape, batch = LAYOUTS[layout](n)
    logits, loc, log_scale = (draw(*batch, settings.components) for _ in range(3))
    log_scale.mul_(0.3).sub_(1)
    if equal_weights:
        logits.zero_()
    seeds = (draw(*shape), draw(*shape)) if backward else ()
    first = Inputs(draw(*shape), (logits, loc, log_scale), family, seeds=seeds)
    if inverse:
        first = replace(first, x=first.op()[0], inverse=True)
    for tensor in first.leaves:
        tensor.requires_grad_(backward)
    extra = 0
    if settings.device.type == "cuda":
        size = sum(t.nbytes for t in (*first.leaves, *first.seeds))
        cache = getattr(torch.cuda.get_device_properties(settings.device), "L2_cache_size", 0) or _CACHE
        extra = min(_MOST_COPIES, math.ceil(2 * cache / size))
    return [first, *(copy.deepcopy(first) for _ in range(extra))]
