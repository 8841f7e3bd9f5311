import math

import pytest
import torch

from counting import counting
from frechet.linalg._log_determinant import log_determinant
from frechet.operators._closed_form import inverse
from frechet.operators._constructors import (
    block_diagonal,
    from_callable,
    from_diagonal,
    from_factors,
    from_matrix,
    identity,
    kronecker,
)
from frechet.operators._structured import Matrix
from frechet.space import euclidean
from spectra import with_eigenvalues


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def definite(n, seed=0, least=0.5):
    M = random(n, n, seed=seed)
    return M @ M.T / n + least * torch.eye(n, dtype=torch.float64)


def opaque(M):
    return from_callable(lambda V: (V.T @ M.T).T, euclidean(M.shape[0], M.dtype), facts="positive_definite")


def pd(M):
    return from_matrix(M, facts="positive_definite")


I6 = identity(euclidean(6, torch.float64))
K6 = kronecker(pd(definite(3)), pd(definite(2)))
X = from_matrix(random(3, 6))
STRUCTURED = {
    "identity": I6,
    "matrix": pd(definite(6)),
    "diagonal": from_diagonal(random(6).abs() + 0.1),
    "scaled": 3 * pd(definite(6)),
    "kronecker": K6,
    "kronecker plus shift": K6 + 0.7 * identity(K6.domain),
    "blocks": block_diagonal(pd(definite(3)), 2 * identity(euclidean(2, torch.float64))),
    "low rank plus shift": from_factors(random(6, 2)) + 0.3 * I6,
    "low rank plus diagonal": from_factors(random(6, 2)) + from_diagonal(random(6).abs() + 0.2),
    "gram plus shift": X.T @ X + 0.1 * I6,
    "rank zero plus shift": from_factors(random(6, 0)) + 0.3 * I6,
    "inverse": inverse(K6 + 0.7 * identity(K6.domain)),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_structure_gives_the_log_determinant_for_free(name):
    A = STRUCTURED[name]
    estimate = log_determinant(A)
    assert math.isclose(float(estimate), float(A.dense().logdet()), rel_tol=1e-11, abs_tol=1e-12)
    assert (estimate.exact, estimate.products) == (True, 0)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_a_budget_of_n_products_gives_the_exact_value(n):
    M = definite(n)
    A, count = counting(opaque(M))
    estimate = log_determinant(A, products=n)
    assert math.isclose(float(estimate), float(M.logdet()), rel_tol=1e-11, abs_tol=1e-12)
    assert (estimate.exact, estimate.products) == (True, count.total) == (True, n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quadrature_counts_its_products_and_covers(dtype):
    M = definite(200)
    A, count = counting(opaque(M.to(dtype)))
    estimate = log_determinant(A, seed=0, products=190, steps=15)
    assert (estimate.products, estimate.samples) == (count.total, 12)
    low, high = estimate.interval(0.999)
    assert float(low) <= float(M.logdet()) <= float(high)
    assert estimate.method == "lanczos"


def test_a_breakdown_ends_the_quadrature_early_and_exactly():
    A, count = counting(from_callable(lambda V: 2 * V, euclidean(300, torch.float64), facts="positive_definite"))
    estimate = log_determinant(A, seed=0, products=100, steps=10)
    assert math.isclose(float(estimate), 300 * math.log(2), rel_tol=1e-12)
    assert estimate.products == count.total == 10  # one step for each of ten probes


def test_too_few_steps_widen_the_bar_until_it_covers():
    d = torch.logspace(0, -4, 300, dtype=torch.float64)
    A = from_callable(lambda V: (V.T * d).T, euclidean(300, torch.float64), facts="positive_definite")
    true = float(d.log().sum())
    widths = []
    for steps in (10, 20, 40):
        estimate = log_determinant(A, seed=0, products=7 * steps, steps=steps)
        low, high = estimate.interval()
        assert float(low) <= true <= float(high)
        widths.append(float(high - low))
    assert widths == sorted(widths, reverse=True)
    biased = log_determinant(A, seed=0, products=250, steps=5)
    assert float(biased) > true  # Gauss quadrature of log is an upper bound


def test_coverage_of_the_interval():
    M = definite(80, least=0.1)
    A, seeds = opaque(M), 100
    found = [log_determinant(A, seed=s, products=60, steps=12) for s in range(seeds)]
    inside = 0
    for estimate in found:
        low, high = estimate.interval()
        inside += float(low) <= float(M.logdet()) <= float(high)
    assert inside >= 88  # a 95 % interval passes with probability 0.999


def test_one_probe_has_an_error_bar_whose_variance_is_known():
    M = definite(90)
    found = [log_determinant(opaque(M), seed=s, products=30) for s in range(100)]
    truth = float(torch.logdet(M))
    inside = sum(bool(low <= truth <= high) for low, high in (e.interval() for e in found))
    assert inside >= 85


@pytest.mark.parametrize("condition", [1e2, 1e4])
@pytest.mark.parametrize("outliers", [0, 20])
def test_bars_cover_and_are_not_much_longer_than_the_error(condition, outliers):
    # they were 4 to 6 times too long: the remainder came from the condition number
    values = torch.logspace(0, -math.log10(condition), 150, dtype=torch.float64)
    if outliers:
        values = torch.cat([torch.logspace(2, 0, outliers, dtype=torch.float64), 1 / condition + 0.05 * values])
    A, truth = opaque(with_eigenvalues(values)), float(values.log().sum())
    found = [log_determinant(A, seed=s, products=100, steps=20) for s in range(60)]
    errors = torch.tensor([float(e) - truth for e in found], dtype=torch.float64)
    halves = torch.tensor([float(e.interval()[1]) - float(e) for e in found], dtype=torch.float64)
    assert float((errors.abs() <= halves).double().mean()) >= 0.86
    assert float(halves.mean()) <= 2 * 1.96 * float(errors.square().mean().sqrt())


def test_a_tolerance_is_met_or_reported_as_missed():
    A = opaque(definite(400, least=2.0))
    met = log_determinant(A, seed=0, products=399, steps=10, rtol=0.3)
    low, high = met.interval()
    assert met.converged is True
    assert float(high - low) / 2 <= 0.3 * abs(float(met))
    assert log_determinant(A, seed=0, products=100, steps=10, rtol=1e-6).converged is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "log_determinant: seed must be given where A has no closed form, got None"),
        ({"seed": 0, "steps": 0}, "log_determinant: steps must be a positive int, got 0"),
        ({"seed": 0, "method": "slq"}, "log_determinant: method must be .*, got 'slq'"),
        ({"seed": 0, "products": 20}, "log_determinant: products must be at least 30 for method 'lanczos', got 20"),
    ],
)
def test_wrong_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        log_determinant(opaque(definite(400)), **arguments)


def test_operators_that_are_not_positive_definite_raise():
    with pytest.raises(ValueError, match=r"A must be known to be positive definite, got Matrix .*; add damping"):
        log_determinant(from_matrix(definite(4)))
    with pytest.raises(ValueError, match="A must be known to be positive definite"):
        log_determinant(from_factors(random(6, 2)))
    false = pd(-definite(4))
    with pytest.raises(ValueError, match="got a matrix whose leading 1 x 1 block is not"):
        log_determinant(false)
    assert isinstance(false, Matrix)
    with pytest.raises(ValueError, match="A must be positive definite, got the Ritz value -"):
        log_determinant(opaque(random(60, 60) + random(60, 60).T), seed=0, products=50, steps=10)
