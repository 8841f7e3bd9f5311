import math

import pytest
import torch

from counting import counting
from frechet.errors import NonFinite
from frechet.linalg._trace import _choice, trace
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
from frechet.space import Space, euclidean

METHODS = ["hutchinson", "hutch++", "xtrace", "nystrom"]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def semidefinite(n, seed=0, dtype=torch.float64):
    M = random(n, n, seed=seed)
    return (M @ torch.diag(1 / torch.arange(1.0, n + 1, dtype=torch.float64)) @ M.T).to(dtype)


def opaque(M, facts="positive_semidefinite"):
    return from_callable(
        lambda V: (V.T @ M.T).T, euclidean(M.shape[0], M.dtype), rmatmat=lambda U: (U.T @ M).T, facts=facts
    )


STRUCTURED = {
    "identity": identity(euclidean(5, torch.float64)),
    "matrix": from_matrix(random(5, 5)),
    "diagonal": from_diagonal(random(5)),
    "low rank": from_factors(random(5, 2), random(2, seed=1)),
    "rank zero": from_factors(random(5, 0)),
    "kronecker": kronecker(from_matrix(random(3, 3)), from_matrix(random(2, 2))),
    "blocks": block_diagonal(from_matrix(random(3, 3)), 2 * identity(euclidean(2, torch.float64))),
    "scaled": -3 * from_matrix(random(4, 4)),
    "sum": from_matrix(random(4, 4)) + 0.5 * identity(euclidean(4, torch.float64)) - from_diagonal(random(4)),
    "transpose": from_matrix(random(4, 4)).T,
    "gram": from_matrix(random(3, 6)).T @ from_matrix(random(3, 6)),
}
X = from_matrix(random(3, 6))
STRUCTURED["gram"] = X.T @ X


@pytest.mark.parametrize("name", STRUCTURED)
def test_structure_gives_the_trace_for_free(name):
    A = STRUCTURED[name]
    estimate = trace(A)
    assert math.isclose(float(estimate), float(A.dense().trace()), rel_tol=1e-12, abs_tol=1e-12)
    assert (estimate.exact, estimate.products, float(estimate.standard_error)) == (True, 0, 0.0)


def test_rectangular_factors_of_a_kronecker_product_are_no_closed_form():
    A = kronecker(from_matrix(random(2, 3)), from_matrix(random(3, 2)))
    plain = from_callable(lambda V: A @ V, euclidean(6, torch.float64))
    assert math.isclose(float(trace(plain, products=6)), float(A.dense().trace()), rel_tol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 130])
def test_a_budget_of_n_products_gives_the_exact_trace(n):
    M = random(n, n)
    A, count = counting(opaque(M, ()))
    estimate = trace(A, products=n + 3)
    assert math.isclose(float(estimate), float(M.trace()), rel_tol=1e-12)
    assert (estimate.exact, estimate.products, count.products, estimate.seed) == (True, n, n, None)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("products", [2, 3, 7, 50])
def test_tiny_dimensions_work_with_any_budget(n, method, products):
    M = semidefinite(n)
    estimate = trace(opaque(M), seed=0, products=products, method=method)
    low, high = estimate.interval(0.9999)
    assert float(low) <= float(M.trace()) <= float(high)
    assert estimate.products <= products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("products", [2, 11, 40])
def test_products_are_counted(method, products, dtype):
    A, count = counting(opaque(semidefinite(60, dtype=dtype)))
    estimate = trace(A, seed=0, products=products, method=method, block=7)
    assert estimate.products == count.total <= products
    assert estimate.value.dtype == estimate.standard_error.dtype == torch.float64
    assert estimate.value.ndim == 0
    assert (estimate.seed, estimate.method, estimate.exact, estimate.converged) == (0, method, False, None)


@pytest.mark.parametrize("method", METHODS)
def test_products_of_a_low_rank_operator_are_counted(method):
    A, count = counting(opaque(from_factors(random(60, 3)).dense()))
    estimate = trace(A, seed=0, products=40, method=method, block=6)
    assert estimate.products == count.total <= 40


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_the_blocks_changes_only_the_rounding(method):
    A = opaque(semidefinite(60))
    one, many = (trace(A, seed=1, products=30, method=method, block=b) for b in (1, 64))
    assert math.isclose(float(one), float(many), rel_tol=1e-11)
    assert math.isclose(float(one.standard_error), float(many.standard_error), rel_tol=1e-6)


def test_terms_with_a_closed_form_are_not_estimated():
    M = semidefinite(80)
    A = opaque(M)
    shifted = 2 * (A + 1e6 * identity(A.domain)) + from_diagonal(torch.ones(80, dtype=torch.float64))
    alone, whole = (trace(B, seed=0, products=30) for B in (A, shifted))
    assert math.isclose(float(whole), 2 * float(alone) + 160e6 + 80, rel_tol=1e-12)
    assert math.isclose(float(whole.standard_error), 2 * float(alone.standard_error), rel_tol=1e-6)
    assert whole.method == "nystrom"
    negative = trace(-1 * A, seed=0, products=30)
    assert (float(negative), negative.method) == (-float(alone), "nystrom")


def test_a_sum_of_unknown_terms_is_estimated_as_one():
    M, N = random(70, 70), random(70, 70, seed=1)
    A = opaque(M, ()) + 3 * opaque(N, ())
    assert math.isclose(
        float(trace(A, seed=0, products=30)), float(trace(opaque(M + 3 * N, ()), seed=0, products=30)), rel_tol=1e-9
    )


def test_hutchinson_is_exact_for_a_diagonal_and_the_others_for_a_multiple_of_the_identity():
    d = random(90)
    A = from_callable(lambda V: (V.T * d).T, euclidean(90, torch.float64), facts="symmetric")
    assert math.isclose(float(trace(A, seed=0, products=2, method="hutchinson")), float(d.sum()), rel_tol=1e-12)
    scaled = from_callable(lambda V: -4 * V, euclidean(90, torch.float64), facts="symmetric")
    for method in ("hutch++", "xtrace"):
        assert math.isclose(float(trace(scaled, seed=0, products=8, method=method)), -360.0, rel_tol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_estimates_are_unbiased(method):
    M = semidefinite(50)
    A = opaque(M)
    found = torch.stack([trace(A, seed=s, products=8, method=method).value for s in range(1000)])
    z = float((found.mean() - M.trace()) / (found.std() / math.sqrt(1000)))
    assert abs(z) < 3.3  # passed with probability 0.999 by an unbiased estimate


@pytest.mark.parametrize("method", METHODS)
def test_a_single_probe_reports_an_infinite_error(method):
    estimate = trace(opaque(semidefinite(30)), seed=0, products=2 if method == "xtrace" else 1, method=method)
    assert (estimate.samples, float(estimate.standard_error)) == (1, math.inf)
    low, high = estimate.interval()
    assert (float(low), float(high)) == (-math.inf, math.inf)


@pytest.mark.parametrize("method", METHODS)
def test_the_zero_operator_has_trace_zero(method):
    estimate = trace(opaque(torch.zeros(40, 40, dtype=torch.float64)), seed=0, products=12, method=method)
    assert (float(estimate), float(estimate.standard_error)) == (0.0, 0.0)


def test_the_method_follows_the_budget_and_the_sign():
    psd, indefinite = opaque(semidefinite(400)), opaque(random(9, 9), ())
    assert [_choice(psd, m, None) for m in (9, 10, 200, 201)] == ["hutchinson", "nystrom", "nystrom", "hutch++"]
    assert [_choice(opaque(semidefinite(30)), m, None) for m in (15, 16, 29)] == ["nystrom", "hutchinson", "xtrace"]
    assert [_choice(indefinite, m, None) for m in (19, 20, 200, 201)] == ["hutchinson", "xtrace", "xtrace", "hutch++"]


def test_the_default_budget_is_a_hundred_products():
    A, count = counting(opaque(semidefinite(200)))
    assert trace(A, seed=0).products == count.total == 100
    assert trace(opaque(semidefinite(100)), seed=0).exact


def test_named_blocks_and_restrictions_work():
    space = Space(("a", "b"), ((3, 4), (8,)), torch.float64)
    M = semidefinite(20)
    A = from_callable(lambda V: (V.T @ M.T).T, space, facts="positive_semidefinite")
    R = restriction(space, "b")
    part = R @ A @ R.T
    assert math.isclose(float(trace(part, products=8)), float(M[12:, 12:].trace()), rel_tol=1e-12)
    assert trace(part, seed=0, products=4, method="nystrom").samples == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "trace: seed must be given where A has no closed form, got None for FromCallable"),
        ({"seed": -1}, "seed must be a non-negative int, got -1"),
        ({"seed": 0, "products": 0}, "trace: products must be a positive int, got 0"),
        ({"seed": 0, "rtol": -0.1}, "trace: rtol must be positive and finite, got -0.1"),
        ({"seed": 0, "block": 0}, "trace: block must be a positive int, got 0"),
        ({"seed": 0, "method": "exakt"}, "trace: method must be one of .*, got 'exakt'"),
        ({"seed": 0, "method": "hutch++", "sketch": 150}, "trace: sketch must lie between 0 and 149, got 150"),
        ({"seed": 0, "method": "hutch++", "sketch": 5, "products": 9}, "trace: products must be at least 11 for"),
    ],
)
def test_wrong_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        trace(opaque(semidefinite(150)), **arguments)


def test_wrong_operators_raise():
    with pytest.raises(ValueError, match="trace: A must be square on one space, got Matrix"):
        trace(from_matrix(random(3, 4)))
    with pytest.raises(ValueError, match="trace: A must be known to be positive semidefinite for method 'nystrom'"):
        trace(opaque(random(30, 30), ()), seed=0, products=10, method="nystrom")


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_in_a_product_is_named(method):
    M = semidefinite(40)
    M[3, 3] = math.nan
    with pytest.raises(NonFinite, match="trace: products must be finite, got NaN or infinity for probes 0 to"):
        trace(opaque(M), seed=0, products=20, method=method)
