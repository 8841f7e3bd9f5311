"""Derivatives of functions and of objectives as linear operators, and as pure functions."""

from frechet.operators.derivatives._gauss_newton import empirical_fisher, fisher, gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._jacobian import jacobian, ntk
from frechet.operators.derivatives._kfac import Kfac, kfac
from frechet.operators.derivatives._kfac_blocks import KroneckerFactors
from frechet.operators.derivatives._products import gauss_newton_product, hessian_product, jacobian_product

__all__ = [
    "Kfac",
    "KroneckerFactors",
    "empirical_fisher",
    "fisher",
    "gauss_newton",
    "gauss_newton_product",
    "hessian",
    "hessian_product",
    "jacobian",
    "jacobian_product",
    "kfac",
    "ntk",
]
