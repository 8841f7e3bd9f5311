"""Derivatives and structured matrices as linear maps."""

from frechet.operators.adapters import to_scipy
from frechet.operators.check import OperatorCheck, check_operator
from frechet.operators.closed_form import inverse, square_root
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
    "OperatorCheck",
    "block_diagonal",
    "check_operator",
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
    "inverse",
    "jacobian",
    "jacobian_product",
    "kronecker",
    "ntk",
    "restriction",
    "square_root",
    "to_scipy",
]
