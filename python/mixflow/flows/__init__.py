"""Normalizing flows: a transform from data to a base distribution, and the recipes that build them."""

from .arguments import like
from .base import Flow, Recipe
from .gaussian_mixture import GaussianMixture
from .recipes import autoregressive, coupling, gaussian_mixture, gaussianization, univariate
from .register import RECIPES, recipe
from .seeds import seeded
from .transport import transport

__all__ = [
    "RECIPES",
    "Flow",
    "GaussianMixture",
    "Recipe",
    "autoregressive",
    "coupling",
    "gaussian_mixture",
    "gaussianization",
    "like",
    "recipe",
    "seeded",
    "transport",
    "univariate",
]
