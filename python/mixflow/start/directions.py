"""The directions in which data differ most from a normal distribution. Rotations start with these directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .robust import clipped

__all__ = ["interesting_directions"]


def interesting_directions(x: Tensor, rows: int = 20_000, steps: int = 20) -> Tensor:
    """An orthogonal matrix (D, D) whose rows are the directions in which ``x`` (N, D) is least normal.

    There are two candidates: the principal axes, and the independent components that FastICA finds when it starts from
    these axes (Hyvarinen, "Fast and robust fixed-point algorithms for independent component analysis", 1999, with
    tanh). The one whose projections have the smaller sum of entropies wins, because a marginal transform that follows
    can then make more of the data normal.

    Only the first ``rows`` rows are used, clipped to their bulk. With fewer than ten rows for each feature, directions
    are interesting by chance alone, and the result is the identity.

    Example:
        >>> import torch
        >>> from mixflow.start.directions import interesting_directions
        >>> x = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.1, -0.1], [-0.1, 0.1]]).repeat(5, 1)
        >>> interesting_directions(x).abs()
        tensor([[0.7071, 0.7071],
                [0.7071, 0.7071]])

    """
    if len(x) < 10 * x.shape[1]:
        return torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    centred = clipped(x[:rows].double())
    centred = centred - centred.mean(0)
    variance, axes = torch.linalg.eigh(centred.mT @ centred / len(centred))
    principal: Tensor = axes.mT
    # Columns that repeat each other leave directions without variance. A floor keeps rounding errors there small.
    white = centred @ (axes * variance.clamp_min(1e-12 * variance[-1].item() + 1e-300).rsqrt()) @ axes.mT
    independent = principal
    for _ in range(steps):
        bent = torch.tanh(white @ independent.mT)
        slope = (1.0 - bent.square()).mean(0).unsqueeze(-1)
        left, _, right = torch.linalg.svd(bent.mT @ white / len(white) - slope * independent)
        independent = left @ right
    return min((principal, independent), key=lambda matrix: _entropy(centred @ matrix.mT)).to(x.dtype)


def _entropy(x: Tensor) -> float:
    """Sum of the entropies of the columns of ``x``, except for a constant, as Hyvarinen (1998) approximates them."""
    scale = x.std(dim=0, correction=0)
    standard = x / scale
    bell = torch.exp(-0.5 * standard.square())
    skewed = 36.0 / (8.0 * math.sqrt(3.0) - 9.0) * (standard * bell).mean(0).square()
    peaked = 24.0 / (16.0 * math.sqrt(3.0) - 27.0) * (bell.mean(0) - math.sqrt(0.5)).square()
    return (scale.log() - skewed - peaked).sum().item()
