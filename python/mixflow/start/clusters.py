"""Groups of rows that lie together: where the components of a mixture start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["k_means"]


def k_means(x: Tensor, components: int, generator: torch.Generator, steps: int = 5) -> Tensor:
    """Which of ``components`` clusters each row of ``x`` (N, D) is in: (N, K), 1 there and 0 elsewhere."""
    loc = x[torch.randint(len(x), (1,), generator=generator, device=x.device)]
    nearest = torch.cdist(x, loc).square()
    for _ in range(components - 1):
        # Rows that repeat each other may leave no distance to choose by.
        trials = 2 + int(math.log(components))
        trial = x[torch.multinomial(nearest[:, 0] + 1e-30, trials, replacement=True, generator=generator)]
        nearer = torch.minimum(nearest, torch.cdist(x, trial).square())
        best = int(nearer.sum(dim=0).argmin().item())
        loc, nearest = torch.cat([loc, trial[best : best + 1]]), nearer[:, best : best + 1]
    for _ in range(steps):
        member = _closest(x, loc)
        count = member.sum(dim=0).unsqueeze(-1)
        loc = torch.where(count > 0.0, member.mT @ x / count.clamp_min(1.0), loc)
    return _closest(x, loc)


def _closest(x: Tensor, loc: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(torch.cdist(x, loc).argmin(dim=1), len(loc)).to(x)
