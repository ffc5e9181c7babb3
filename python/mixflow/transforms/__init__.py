"""Invertible transforms with known log-determinants: the parts that flows are composed of.

A transform maps data ``x`` of shape ``(..., D)``, or images of shape ``(..., C, H, W)``, to ``z`` and reports
``ladj = log |det dz/dx|`` in nats, of shape ``(...)``. Inputs are checked in one place, :class:`Transform`; a
subclass writes only the mathematics, in ``_forward`` and ``_inverse``.
"""

from .affine import ActNorm as ActNorm
from .affine import Affine, Whitening
from .autoregressive import Autoregressive
from .base import Transform
from .compose import Compose, Inverse
from .coupling import Coupling
from .dequantize import Dequantize
from .image import Pixelwise, Reshape, Squeeze
from .image_coupling import ImageCoupling
from .linear import Permutation, Rotation
from .mixture import MixtureCDF
from .pointwise import Exp, Log, Logit, Rebase, Sigmoid, Softplus
from .support import Support

__all__ = [
    "Affine",
    "Autoregressive",
    "Compose",
    "Coupling",
    "Dequantize",
    "Exp",
    "ImageCoupling",
    "Inverse",
    "Log",
    "Logit",
    "MixtureCDF",
    "Permutation",
    "Pixelwise",
    "Rebase",
    "Reshape",
    "Rotation",
    "Sigmoid",
    "Softplus",
    "Squeeze",
    "Support",
    "Transform",
    "Whitening",
]
