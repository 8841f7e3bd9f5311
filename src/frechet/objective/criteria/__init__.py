"""Likelihoods and losses: what a model's outputs are measured by."""

from frechet.objective.criteria._criterion import (
    Criterion,
    binary_cross_entropy,
    gaussian,
    huber,
    poisson,
    squared_error,
)
from frechet.objective.criteria._cross_entropy import cross_entropy
from frechet.objective.criteria._custom import custom

__all__ = [
    "Criterion",
    "binary_cross_entropy",
    "cross_entropy",
    "custom",
    "gaussian",
    "huber",
    "poisson",
    "squared_error",
]
