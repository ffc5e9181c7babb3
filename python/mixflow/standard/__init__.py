"""The standard distributions: the families of the components, the bases, and the normal that both need.

Everything is written with ordinary torch functions in log space, so that autograd differentiates it any number of
times, in reverse and forward mode, in float32 and float64, and neither tail saturates.
"""

from .bases import BASES, Base
from .families import FAMILIES, Family

__all__ = ["BASES", "FAMILIES", "Base", "Family"]
