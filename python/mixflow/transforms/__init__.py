"""Invertible transforms with known log-determinants: the parts that flows are composed of.

A transform maps data ``x`` of shape ``(..., D)`` to ``z`` of the same shape and reports
``ladj = log |det dz/dx|`` in nats, of shape ``(...)``. Inputs are checked in one place, :class:`Transform`; a
subclass writes only the mathematics, in ``_forward`` and ``_inverse``.
"""

from .autoregressive import Autoregressive
from .base import Transform
from .compose import Compose, Inverse
from .coupling import Coupling
from .linear import ActNorm, Affine, Permutation, Rotation
from .mixture import MixtureCDF
from .pointwise import Logit, Rebase, Sigmoid

__all__ = [
    "ActNorm",
    "Affine",
    "Autoregressive",
    "Compose",
    "Coupling",
    "Inverse",
    "Logit",
    "MixtureCDF",
    "Permutation",
    "Rebase",
    "Rotation",
    "Sigmoid",
    "Transform",
]
