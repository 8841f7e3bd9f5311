"""Linear operators: the type, its algebra, and matrices whose structure is known."""

from frechet.operators._applied import applied
from frechet.operators._check import OperatorCheck, check_operator
from frechet.operators._closed_form import inverse, square_root
from frechet.operators._constructors import (
    block_diagonal,
    from_callable,
    from_diagonal,
    from_factors,
    from_matrix,
    identity,
    kronecker,
    restriction,
)
from frechet.operators._inverse_fisher import InverseFisher, inverse_fisher
from frechet.operators._metric import Metric, product_metric
from frechet.operators._operator import Fact, LinearOperator
from frechet.operators._scipy import to_scipy
from frechet.operators._submatrix import submatrix

__all__ = [
    "Fact",
    "InverseFisher",
    "LinearOperator",
    "Metric",
    "OperatorCheck",
    "applied",
    "block_diagonal",
    "check_operator",
    "from_callable",
    "from_diagonal",
    "from_factors",
    "from_matrix",
    "identity",
    "inverse",
    "inverse_fisher",
    "kronecker",
    "product_metric",
    "restriction",
    "square_root",
    "submatrix",
    "to_scipy",
]
