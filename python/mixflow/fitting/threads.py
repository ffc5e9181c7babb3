"""How many threads torch takes for its operations in a training on the CPU: one, unless more save more than they cost.

A parallel region ends when each of its threads has got a processor. On an idle machine that happens at once. Beside
other processes it takes 10 to 20 milliseconds, because the operating system lets a thread wait so long. Torch enters a
region for each matrix product, for each operation on more than 32,768 numbers and for each step of AdamW: hundreds of
times in a step of training. On a busy machine, two threads took a hundred times as long as one. More threads can save
no more than part of the work. The core decides in the same way for each of its own calls (``csrc/cpu/cost.h``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .. import op
from ..flows import Flow, seeded
from ..transforms import MixtureCDF

__all__ = ["are_worthwhile", "one_thread"]

# A matrix product of so many floating-point operations takes two milliseconds on one thread. The core takes all threads
# for calls of the same length.
PRODUCT = 1e8
# An operation on each number of a batch takes about as long if the batch has so many numbers.
NUMBERS = 2**21
FEW = 8  # rows that measure the cost of a row


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """If ``wanted``, torch's operations take one thread in the block. The core still decides for itself.

    Example:
        >>> import torch
        >>> from mixflow.fitting.threads import one_thread
        >>> with one_thread():
        ...     torch.get_num_threads()
        1

    """
    before = torch.get_num_threads()
    if not wanted or before == 1:
        yield
        return
    try:
        torch.set_num_threads(1)
        op.limit.threads = before
        yield
    finally:
        op.limit.threads = 0
        torch.set_num_threads(before)


def are_worthwhile(flow: Flow, x: Tensor, context: Tensor | None, rows: int) -> bool:
    """Whether torch should take all threads for batches of ``rows`` events like ``x`` (N, *event).

    Example:
        >>> import torch
        >>> from mixflow import flows
        >>> from mixflow.fitting.threads import are_worthwhile
        >>> x, flow = torch.zeros(10, 5), flows.coupling(5)
        >>> [are_worthwhile(flow, x, None, rows) for rows in (256, 4096, 65_536)]
        [False, False, True]

    """
    if x.device.type != "cpu" or rows * flow.features >= NUMBERS:
        return True
    few, others = x[:FEW], [module for module in flow.modules() if not isinstance(module, MixtureCDF)]
    has_matrices = any(parameter.ndim > 1 for module in others for parameter in module.parameters(recurse=False))
    if not has_matrices or not len(few):
        return False
    was_training = flow.training
    flow.eval()  # so that no module keeps statistics of these rows
    try:
        with torch.no_grad(), seeded(0), one_thread(), _Products() as products:
            flow.log_prob(few, None if context is None else context[:FEW])
    except Exception:  # a network may refuse so few rows; the step itself will raise any real error
        return False
    finally:
        flow.train(was_training)
    return bool(products.operations * rows >= PRODUCT * len(few) * products.count > 0)


class _Products(TorchDispatchMode):
    """Counts products of matrices and convolutions, and their floating-point operations."""

    def __init__(self) -> None:
        # The import stands here because it also imports Triton, if that is installed, which takes 0.15 seconds.
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        self._formulas = flop_registry
        self.count, self.operations = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operations_of = self._formulas.get(func._overloadpacket)
        if operations_of is not None:
            self.count += 1
            self.operations += operations_of(*args, **(kwargs or {}), out_val=result)
        return result
