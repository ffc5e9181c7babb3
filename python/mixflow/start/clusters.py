"""Groups of rows that lie together. The components of a mixture start at such groups."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["k_means"]


def k_means(x: Tensor, components: int, generator: torch.Generator, steps: int = 5) -> Tensor:
    """Assign each row of ``x`` (N, D) to one of ``components`` clusters: (N, K), 1 for its cluster and 0 for others.

    The centres start as in Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding" (2007): each is the
    best of a few rows, which are drawn in proportion to their squared distance from the centres so far.
    """
    loc = x[torch.randint(len(x), (1,), generator=generator, device=x.device)]
    nearest = torch.cdist(x, loc).square()
    for _ in range(components - 1):
        # If all rows repeat each other, all distances are 0. The small number then makes all rows equally likely.
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
