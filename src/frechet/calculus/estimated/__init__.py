"""Gradients without backpropagation, and what their bias and variance are."""

from frechet.calculus.estimated._estimate import BiasVariance, GradientEstimate, bias_and_variance
from frechet.calculus.estimated._expectation import expectation_gradient
from frechet.calculus.estimated._forward import forward_gradient
from frechet.calculus.estimated._neighbours import knn_gradient
from frechet.calculus.estimated._straight_through import signs, straight_through
from frechet.calculus.estimated._zeroth_order import local_perturbation_gradient, zeroth_order_gradient

__all__ = [
    "BiasVariance",
    "GradientEstimate",
    "bias_and_variance",
    "expectation_gradient",
    "forward_gradient",
    "knn_gradient",
    "local_perturbation_gradient",
    "signs",
    "straight_through",
    "zeroth_order_gradient",
]
