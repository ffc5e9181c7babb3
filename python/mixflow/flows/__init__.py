"""Normalizing flows: a transform from data to a base distribution, and the recipes that build them."""

from .base import RECIPES, Flow, Recipe, like, recipe, seeded
from .gaussian_mixture import GaussianMixture
from .recipes import autoregressive, coupling, gaussian_mixture, gaussianization, univariate
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
