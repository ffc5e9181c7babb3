"""Mixtures for ``torch.distributions``: the density as a Distribution, the mixture-CDF transform as a Transform."""

from .mixture import Mixture
from .transform import MixtureCDFTransform

__all__ = ["Mixture", "MixtureCDFTransform"]
