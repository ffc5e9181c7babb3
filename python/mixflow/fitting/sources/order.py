"""The order of rows: a permutation that is computed where it is needed.

No index of all rows is held. The order is a function of the seed, the epoch and the position alone: every process of
several computes every batch, and a resumed run meets the batches that it would have met.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ... import _core

__all__ = ["shuffled"]


def shuffled(positions: NDArray[np.int64] | range, count: int, *key: int) -> NDArray[np.int64]:
    """The images of ``positions`` under the pseudo-random permutation of ``range(count)`` that belongs to ``key``.

    A Feistel network permutes the range up to the next power of two. It is applied until the result is below ``count``
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002; as a shuffle, Mitchell et al., 2022,
    arXiv:2106.06161). This needs no memory beyond ``positions``, and any part of the permutation can be computed alone.

    Args:
        positions: integers in ``range(count)``; a range of step 1 takes no memory.
        count: the number of integers that are permuted, at most 2^62.
        key: integers from 0 on. Different keys give unrelated permutations.

    Raises:
        IndexError: a position outside ``range(count)``.

    Example:
        >>> import numpy as np
        >>> from mixflow.fitting.sources import shuffled
        >>> sorted(shuffled(np.arange(10), 10, 7).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

    """
    # There are twelve rounds. With eight, some permutations of a handful of rows are visibly likelier than others.
    keys = np.random.SeedSequence(key).generate_state(12)
    rows = np.empty(len(positions), np.int64)
    if isinstance(positions, range) and positions.step == 1:
        _core.permute(keys, count, positions.start, rows)
    else:
        _core.permute(keys, count, np.ascontiguousarray(positions, np.int64), rows)
    return rows
