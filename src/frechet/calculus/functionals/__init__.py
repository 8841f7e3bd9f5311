"""Functionals of functions: Fréchet derivatives as functions, boundary terms, metrics and Riesz maps."""

from frechet.calculus.functionals._difference_operator import difference_operator
from frechet.calculus.functionals._domain import Box, box
from frechet.calculus.functionals._functional import (
    Functional,
    FunctionalDerivative,
    composed_functional,
    functional_derivative,
    local_functional,
    nonlocal_functional,
)
from frechet.calculus.functionals._integral_operator import integral_operator
from frechet.calculus.functionals._riesz import sobolev

__all__ = [
    "Box",
    "Functional",
    "FunctionalDerivative",
    "box",
    "composed_functional",
    "difference_operator",
    "functional_derivative",
    "integral_operator",
    "local_functional",
    "nonlocal_functional",
    "sobolev",
]
