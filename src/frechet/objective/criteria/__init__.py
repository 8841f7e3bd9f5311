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
from frechet.objective.criteria._sparse_probabilities import Entmax, entmax, entmax_loss, sparsemax

__all__ = [
    "Criterion",
    "Entmax",
    "binary_cross_entropy",
    "cross_entropy",
    "custom",
    "entmax",
    "entmax_loss",
    "gaussian",
    "huber",
    "poisson",
    "sparsemax",
    "squared_error",
]
