"""Derivatives and structured matrices as linear maps."""

from frechet.operators.gauss_newton import empirical_fisher, fisher, gauss_newton
from frechet.operators.hessian import hessian
from frechet.operators.jacobian import jacobian, ntk
from frechet.operators.operator import Fact, LinearOperator
from frechet.operators.products import gauss_newton_product, hessian_product, jacobian_product
from frechet.operators.structured import (
    block_diagonal,
    from_callable,
    from_diagonal,
    from_factors,
    from_matrix,
    identity,
    kronecker,
    restriction,
)

__all__ = [
    "Fact",
    "LinearOperator",
    "block_diagonal",
    "empirical_fisher",
    "fisher",
    "from_callable",
    "from_diagonal",
    "from_factors",
    "from_matrix",
    "gauss_newton",
    "gauss_newton_product",
    "hessian",
    "hessian_product",
    "identity",
    "jacobian",
    "jacobian_product",
    "kronecker",
    "ntk",
    "restriction",
]
