"""Whether a Jacobian is used as a matrix or through its products: a question of its size."""

from __future__ import annotations

from frechet.optimize._least_squares.own_jacobian import OwnJacobian, in_products
from frechet.optimize._least_squares.residual import Point, Residual

LARGEST = 1 << 22  # entries of a dense Jacobian
DEAR = 1 << 31  # m n min(m, n), the cost of its factors: some seconds
WIDEST = 1 << 9  # columns of a matrix that is made of the caller's operators


def through_products(problem: Residual, start: Point, jacobian: object) -> bool:
    """Whether J is used through its products alone; a matrix that the caller forms is used as it is."""
    if isinstance(problem.function, OwnJacobian) and not callable(jacobian):
        return in_products(jacobian, len(start.r), len(start.x))
    wanted = by_products(jacobian, len(start.r), len(start.x))
    return wanted and (not callable(jacobian) or problem.gives_operator(start.x))


def by_products(jacobian: object, m: int, n: int) -> bool:
    """Whether a Jacobian ``(m, n)`` is used through its products alone."""
    large = m * n > LARGEST or m * n * min(m, n) > DEAR
    if callable(jacobian):
        return large or n > WIDEST
    return jacobian == "products" or (large and jacobian == "auto")
