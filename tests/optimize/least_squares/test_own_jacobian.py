import pytest
import torch

from frechet import from_matrix, least_squares
from frechet.optimize._least_squares import least_squares_result
from frechet.optimize._least_squares.own_jacobian import DEAR, LARGEST, OwnJacobian, in_products
from pinns import F64

A = torch.randn(7, 3, dtype=F64, generator=torch.Generator().manual_seed(0))


class Cubes(OwnJacobian):
    """A x^3 - A, which counts who asks it for what."""

    def __init__(self):
        self.asked = []

    def __call__(self, parameters):
        return A @ parameters**3 - A.sum(1)

    def jacobian(self, parameters):
        self.asked.append("matrix")
        return A * (3 * parameters**2)

    def operator(self, parameters):
        self.asked.append("products")
        return from_matrix(self.jacobian(parameters))


@pytest.mark.parametrize(
    ("jacobian", "asked"),
    [("auto", "matrix"), ("dense", "matrix"), ("products", "products"), ("3-point", None)],
)
def test_who_is_asked(jacobian, asked):
    residual = Cubes()
    s = least_squares(residual, torch.full((3,), 2.0, dtype=F64), jacobian=jacobian)
    assert s.converged
    assert float((s.x - 1).abs().max()) < 1e-9
    assert (residual.asked[0] if residual.asked else None) == asked


def test_a_jacobian_that_the_caller_gives_comes_first():
    residual = Cubes()
    s = least_squares(residual, torch.full((3,), 2.0, dtype=F64), jacobian=lambda x: A * (3 * x**2))
    assert s.converged
    assert residual.asked == []


def test_a_large_problem_takes_products():
    assert not in_products("auto", 1020, 9873)
    assert in_products("auto", 10**5, 10**5)
    assert in_products("auto", LARGEST, 2)
    assert in_products("auto", 1 << 12, 1 << 13) == (DEAR < 1 << 37)
    assert not in_products("dense", 10**5, 10**5)


@pytest.mark.parametrize("loose", [False, True])
def test_errors_without_the_covariance(monkeypatch, loose):
    """A covariance beyond memory is left out, and the standard errors are those of the whole."""

    def residual(x):
        r = A[:, :2] @ x[:2] ** 3 - A.sum(1)
        return r + (0 * x[2] if loose else A[:, 2] * x[2])

    start = torch.full((3,), 2.0, dtype=F64)
    whole = least_squares(residual, start)
    monkeypatch.setattr(least_squares_result, "MOST", 2 if loose else 8)
    part = least_squares(residual, start)
    assert part.covariance is None
    assert part.rank == whole.rank
    assert torch.allclose(part.standard_errors, whole.standard_errors, rtol=1e-10)
    assert part.report()
