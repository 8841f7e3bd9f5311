import pytest
import torch

from counting import counting
from frechet.errors import NonFinite
from frechet.linalg._result import Status
from frechet.operators._constructors import from_diagonal, from_matrix
from frechet.optimize._least_squares.least_squares import least_squares
from more_garbow_hillstrom import numbers
from nist import load
from spectra import F64, gaussian


def run(residual, x0, **options):
    return least_squares(residual, x0, **{"jacobian": "products", **options})


def broyden(x):
    """Broyden's tridiagonal equations."""
    zero = x.new_zeros(1)
    return (3 - 2 * x) * x + 1 - torch.cat([zero, x[:-1]]) - 2 * torch.cat([x[1:], zero])


def test_a_large_system():
    s = run(broyden, -torch.ones(3000, dtype=F64))
    assert s.converged, s.message
    assert s.residual < 1e-12
    assert s.rank is None
    assert s.covariance is None
    assert s.products < 3000
    assert "products" in s.report()


@pytest.mark.parametrize("name", ["Misra1a", "Gauss1", "Kirby2", "Rat42", "DanWood"])
def test_certified_digits(name):
    regression = load(name)
    s = run(regression.residual, regression.starts[1])
    assert s.converged, s.message
    assert regression.digits(s.x) > 8


def test_products_are_counted_and_operators_of_the_user_are_taken():
    A = gaussian(40).view(10, 4)
    seen = []

    def jacobian(x):
        seen.append(1)
        return from_matrix(A)

    plain = run(lambda x: A @ x - 1, torch.zeros(4, dtype=F64))
    assert plain.converged, plain.message
    assert torch.allclose(plain.x, torch.linalg.lstsq(A, torch.ones(10, dtype=F64)).solution, atol=1e-8)
    assert plain.products > plain.jacobian_evaluations

    def residual(x):
        return A @ x - 1

    dense = least_squares(residual, torch.zeros(4, dtype=F64), jacobian=jacobian)
    assert dense.converged
    assert len(seen) == dense.jacobian_evaluations


def test_large_operators_of_the_user_are_used_by_their_products_alone():
    n, counts = 600, []

    def jacobian(x):
        A, count = counting(from_diagonal(3 * x**2))
        counts.append(count)
        return A

    s = least_squares(lambda x: x**3 - 8, torch.ones(n, dtype=F64), jacobian=jacobian)
    assert s.converged, s.message
    assert torch.allclose(s.x, torch.full((n,), 2.0, dtype=F64))
    assert s.products == sum(count.total for count in counts)


def test_large_matrices_of_the_user_are_used_as_they_are():
    n = 513
    s = least_squares(lambda x: x**3 - 8, torch.ones(n, dtype=F64), jacobian=lambda x: torch.diag(3 * x**2))
    assert s.converged, s.message
    assert "dense" in s.method
    assert torch.allclose(s.x, torch.full((n,), 2.0, dtype=F64))


def test_bounds_and_losses():
    target = torch.linspace(-1, 2, 50, dtype=F64)
    s = run(lambda x: x - target, torch.full((50,), 0.5, dtype=F64), bounds=(0.0, 1.0))
    assert s.converged, s.message
    assert torch.allclose(s.x, target.clamp(0, 1))
    assert torch.equal(s.active, (target > 1).to(torch.int8) - (target < 0).to(torch.int8))
    y = torch.cat([torch.zeros(20, dtype=F64), numbers(100)])
    s = run(lambda x: x.expand(21) - y, numbers(1.0), loss="huber", loss_scale=0.1)

    dense = least_squares(lambda x: x.expand(21) - y, numbers(1.0), loss="huber", loss_scale=0.1)
    assert float(s.x) == pytest.approx(float(dense.x), rel=1e-6)


def test_dicts_nan_limits_and_stops():
    s = run(lambda x: {"r": x["a"] * 2 - 1, "q": x["b"] + 1}, {"a": torch.zeros(3, dtype=F64), "b": numbers(0)})
    assert s.x["a"].tolist() == pytest.approx([0.5] * 3)
    s = run(lambda x: torch.sqrt(4 - x) - 1, numbers(-60))
    assert float(s.x) == pytest.approx(3)
    s = run(broyden, -torch.ones(30, dtype=F64), max_evaluations=3)
    assert s.status is Status.MAX_ITERATIONS
    s = run(broyden, -torch.ones(30, dtype=F64), observe=lambda s: s.iteration == 2)
    assert (s.status, s.iterations) == (Status.STOPPED, 2)
    s = run(lambda x: torch.where(x < 0.3, x + 2, x - 0.1), numbers(1.0))
    assert s.status is Status.STAGNATED
    with pytest.raises(NonFinite, match="least_squares: J'r must be finite at x0, got NaN or infinity"):
        run(lambda x: x.abs().sqrt() - 1, torch.zeros(2, dtype=F64))


def test_float32():
    s = run(broyden, -torch.ones(200))
    assert s.converged, s.message
    assert s.residual < 1e-4


@pytest.mark.parametrize("n", [50, 300, 900, 1500])
def test_a_step_that_lsmr_did_not_solve_for_is_no_sign_of_convergence(n):
    """The norms of the columns are estimated, so that the largest cosine may be above 1."""
    s = least_squares(lambda x: torch.cat([x - 1, x[1:] - x[:-1] ** 2]), torch.zeros(n, dtype=F64), jacobian="products")
    assert s.converged
    assert s.residual < 1e-12
    assert torch.allclose(s.x, torch.ones(n, dtype=F64))
