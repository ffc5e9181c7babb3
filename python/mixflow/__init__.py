"""Normalizing flows built from mixture CDFs: one fused, exact, differentiable op, and the flows made of it.

``cdf_transform`` and ``cdf_transform_inverse`` are the op, ``discretized_log_prob`` is its companion for data in bins,
``Mixture`` and ``MixtureCDFTransform`` are both as ``torch.distributions`` has them. ``transforms`` and ``flows``
compose the op, ``fit`` trains a flow by maximum likelihood, ``save`` and ``load`` keep it.
"""

from . import export, flows, networks, reference, transforms
from ._core import __version__
from .config import show_config
from .distributions import Mixture, MixtureCDFTransform
from .files.model_file import load, save
from .fitting.fit import History, fit
from .op import BASES, FAMILIES, cdf_transform, cdf_transform_inverse, discretized_log_prob

__all__ = [
    "BASES",
    "FAMILIES",
    "History",
    "Mixture",
    "MixtureCDFTransform",
    "__version__",
    "cdf_transform",
    "cdf_transform_inverse",
    "discretized_log_prob",
    "export",
    "fit",
    "flows",
    "load",
    "networks",
    "reference",
    "save",
    "show_config",
    "transforms",
]
