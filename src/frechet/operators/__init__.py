"""Derivatives and structured matrices as linear maps."""

from frechet.operators.operator import Fact, LinearOperator
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
    "from_callable",
    "from_diagonal",
    "from_factors",
    "from_matrix",
    "identity",
    "kronecker",
    "restriction",
]
