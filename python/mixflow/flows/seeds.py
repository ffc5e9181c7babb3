"""Random numbers of a seed, which leave torch's global generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..checks import check_seed

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """Within the block, modules draw from ``seed``; afterwards torch's global generators are as they were before.

    Without a seed, modules draw from the global generators.

    Args:
        seed: the seed.
        device: where the modules draw, by default torch's default device.

    Example:
        >>> import torch
        >>> from mixflow.flows import seeded
        >>> with seeded(0):
        ...     first = torch.rand(2)
        >>> with seeded(0):
        ...     torch.equal(first, torch.rand(2))
        True

    """
    if seed is None:
        yield
        return
    device = torch.get_default_device() if device is None else device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(check_seed(seed))
        for cuda in devices:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(seed)
        yield
