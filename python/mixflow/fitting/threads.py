"""How many threads torch's operations take in a training on the CPU: one, unless more save far more than they can cost.

A parallel region ends when its last thread has had a processor. On a machine with nothing else to do that is at once.
Beside other processes it takes 10 to 20 milliseconds, the time that the system lets a thread wait. Torch enters a
region for each matrix product, for each operation on more than 32,768 numbers and for each step of AdamW: hundreds of
times in a step of training. There, two threads took a hundred times as long as one. What more threads can save is a
part of the work alone. The core decides for each of its own calls in the same way (``csrc/cpu/cost.h``).
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

# Floating-point operations of a product of matrices that takes two milliseconds on one thread, from which on the core,
# too, takes all threads.
PRODUCT = 1e8
# Numbers in a batch from which on an operation on each of them takes about as long.
NUMBERS = 2**21
FEW = 8  # rows that tell what a row costs


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Let torch's operations take one thread in the block, where that is ``wanted``. The core decides for itself.

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
    """Whether all threads should score and learn from batches of ``rows`` events like ``x`` (N, *event).

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
    flow.eval()  # so that nothing is learned from these rows
    try:
        with torch.no_grad(), seeded(0), one_thread(), _Products() as products:
            flow.log_prob(few, None if context is None else context[:FEW])
    except Exception:  # a network may refuse so few rows; what is wrong in truth, the step itself will find
        return False
    finally:
        flow.train(was_training)
    return bool(products.operations * rows >= PRODUCT * len(few) * products.count > 0)


class _Products(TorchDispatchMode):
    """Counts products of matrices and convolutions, and their floating-point operations."""

    def __init__(self) -> None:
        # Imported here, since it imports Triton where that is installed, which takes 0.15 seconds.
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
