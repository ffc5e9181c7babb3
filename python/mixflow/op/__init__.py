"""The op: a mixture CDF and its inverse for torch tensors and numpy arrays, with gradients of any order.

A call goes through these modules from top to bottom, and each imports only from those below it:

================ ===================================================================================================
functions.py     the public functions and their documentation
arguments.py     checks of arguments, numpy arrays, the axis of the components, half precision
registration.py  the registration with torch, and a map of which implementation runs when
functional.py    autograd Functions of the torch ops: ``torch.func``, forward mode, second derivatives, vmap
autograd.py      the backward pass, and the autograd Functions of eager mode
table.py         the three ops: names of operands, kernels, gradients written out
written_out.py   the gradients in ordinary torch operations, for derivatives of derivatives
kernels.py       what an op is, the memory for its results, and the call of its kernels
modes.py         which parts of torch take part in a call
shapes.py        broadcast shapes
================ ===================================================================================================
"""

from .arguments import check_mixture, components_last, from_numpy
from .functions import (
    affine_transform,
    cdf_transform,
    cdf_transform_inverse,
    discretized_log_prob,
    inverse_diagnostics,
)
from .kernels import BASES, FAMILIES, limit
from .modes import can_be_looked_at, is_known_finite

__all__ = [
    "BASES",
    "FAMILIES",
    "affine_transform",
    "can_be_looked_at",
    "cdf_transform",
    "cdf_transform_inverse",
    "check_mixture",
    "components_last",
    "discretized_log_prob",
    "from_numpy",
    "inverse_diagnostics",
    "is_known_finite",
    "limit",
]
