"""Distances between Gaussians and between definite matrices, with exact derivatives."""

from frechet.calculus.distances._definite import (
    affine_invariant_distance,
    bures_distance,
    log_euclidean_distance,
)
from frechet.calculus.distances._frechet_distance import class_frechet_distance, frechet_distance
from frechet.calculus.distances._gaussian import Gaussian, gaussian, gaussian_of

__all__ = [
    "Gaussian",
    "affine_invariant_distance",
    "bures_distance",
    "class_frechet_distance",
    "frechet_distance",
    "gaussian",
    "gaussian_of",
    "log_euclidean_distance",
]
