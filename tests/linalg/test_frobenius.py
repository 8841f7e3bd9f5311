import math

import pytest
import torch

from counting import counting
from frechet.errors import NonFinite
from frechet.linalg._frobenius import frobenius_norm
from frechet.linalg._quadratic_forms import dominated
from frechet.operators._constructors import (
    block_diagonal,
    from_callable,
    from_diagonal,
    from_factors,
    from_matrix,
    identity,
    kronecker,
)
from frechet.space import euclidean


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def opaque(M, facts=()):
    return from_callable(
        lambda V: (V.T @ M.T).T,
        euclidean(M.shape[1], M.dtype),
        euclidean(M.shape[0], M.dtype),
        rmatmat=lambda U: (U.T @ M).T,
        facts=facts,
    )


I4 = identity(euclidean(4, torch.float64))
X = from_matrix(random(3, 6))
STRUCTURED = {
    "identity": I4,
    "matrix": from_matrix(random(5, 3)),
    "diagonal": from_diagonal(random(5)),
    "low rank": from_factors(random(5, 2), random(2, seed=1)),
    "rank zero": from_factors(random(5, 0)),
    "kronecker": kronecker(from_matrix(random(3, 2)), from_matrix(random(2, 4))),
    "blocks": block_diagonal(from_matrix(random(3, 2)), 2 * identity(euclidean(2, torch.float64))),
    "scaled": -3 * from_matrix(random(4, 5)),
    "transpose": from_matrix(random(4, 5)).T,
    "sum of matrices": from_matrix(random(4, 4)) - 2 * from_matrix(random(4, 4, seed=1)),
    "low rank plus shift": from_factors(random(4, 2)) + 0.3 * I4,
    "low rank minus diagonal": from_factors(random(4, 2)) - from_diagonal(random(4)),
    "kronecker plus shift": kronecker(from_matrix(random(2, 2)), from_matrix(random(2, 2, seed=1))),
    "gram": X.T @ X,
}
STRUCTURED["kronecker plus shift"] += 0.7 * identity(STRUCTURED["kronecker plus shift"].domain)


@pytest.mark.parametrize("name", STRUCTURED)
def test_structure_gives_the_norm_for_free(name):
    A = STRUCTURED[name]
    estimate = frobenius_norm(A)
    assert math.isclose(float(estimate), float(A.dense().norm()), rel_tol=1e-12)
    assert (estimate.exact, estimate.products) == (True, 0)


def test_a_difference_that_cancels_is_zero():
    A = from_matrix(random(4, 4))
    assert float(frobenius_norm(A - A)) == 0.0


@pytest.mark.parametrize("shape", [(1, 1), (3, 150), (150, 3), (70, 70)])
def test_a_budget_of_the_smaller_side_gives_the_exact_norm(shape):
    M = random(*shape)
    A, count = counting(opaque(M))
    estimate = frobenius_norm(-2 * A, products=min(shape))
    assert math.isclose(float(estimate), 2 * float(M.norm()), rel_tol=1e-12)
    assert (estimate.exact, estimate.products) == (True, count.total)
    assert count.total == min(shape)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
@pytest.mark.parametrize("shape", [(200, 120), (120, 200)])
def test_estimates_lie_in_their_intervals_and_count_their_products(method, shape):
    M = random(*shape) * torch.logspace(0, -3, shape[1], dtype=torch.float64)
    A, count = counting(opaque(M))
    estimate = frobenius_norm(3 * A, seed=0, products=40, method=method)
    low, high = estimate.interval(0.999)
    assert float(low) <= 3 * float(M.norm()) <= float(high)
    assert estimate.products == count.total <= 40
    assert float(estimate.standard_error) < 0.2 * float(estimate)


def test_the_error_of_the_norm_is_that_of_its_square_over_twice_the_norm():
    A = opaque(random(90, 90))
    z = A.domain.random(range(30), 4, "sphere")
    x = (A @ z).square().sum(0)
    estimate = frobenius_norm(2 * A, seed=4, products=30, method="hutchinson", block=7)
    norm = x.mean().sqrt()
    assert math.isclose(float(estimate), 2 * float(norm), rel_tol=1e-12)
    assert math.isclose(float(estimate.standard_error), float(2 * x.std() / (30**0.5 * 2 * norm)), rel_tol=1e-10)
    assert estimate.degrees_of_freedom == dominated(30)


def test_the_sketch_makes_the_error_of_a_decaying_spectrum_small():
    d = torch.logspace(0, -20, 150, dtype=torch.float64)
    A = from_callable(lambda V: (V.T * d).T, euclidean(150, torch.float64), facts="symmetric")
    plain, sketched = (frobenius_norm(A, seed=0, products=60, method=m) for m in ("hutchinson", "hutch++"))
    assert float(sketched.standard_error) < 0.03 * float(plain.standard_error)
    assert frobenius_norm(A, seed=0, products=60).method == "hutch++"
    assert frobenius_norm(A, seed=0, products=10).method == "hutchinson"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_low_rank_norm_is_exact_up_to_the_error_bar(dtype):
    M = (random(100, 4) @ random(4, 100, seed=1)).to(dtype)
    estimate = frobenius_norm(opaque(M), seed=0, products=30)
    assert abs(float(estimate) - float(M.double().norm())) <= 1.96 * float(estimate.standard_error)
    assert float(estimate.standard_error) <= 20 * torch.finfo(dtype).eps * float(estimate)


def test_zero_and_tiny_operators():
    zero = frobenius_norm(opaque(torch.zeros(50, 50, dtype=torch.float64)), seed=0, products=12)
    assert (float(zero), float(zero.standard_error)) == (0.0, 0.0)
    for n in (1, 2, 3):
        M = random(n, n)
        for method in ("hutchinson", "hutch++"):
            estimate = frobenius_norm(opaque(M), seed=0, products=9, method=method)
            low, high = estimate.interval(0.9999)
            assert float(low) <= float(M.norm()) <= float(high)
    single = frobenius_norm(opaque(random(50, 50)), seed=0, products=1)
    assert float(single.standard_error) == math.inf


def test_a_tolerance_is_met_or_reported_as_missed():
    A = opaque(random(300, 300))
    met = frobenius_norm(A, seed=0, products=250, rtol=0.05)
    low, high = met.interval()
    assert met.converged is True
    assert float(high - low) / 2 <= 0.05 * float(met)
    assert frobenius_norm(A, seed=0, products=100, rtol=1e-5).converged is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "frobenius_norm: seed must be given where A has no closed form, got None"),
        ({"seed": 0, "products": 0}, "frobenius_norm: products must be a positive int, got 0"),
        ({"seed": 0, "method": "xtrace"}, "frobenius_norm: method must be .*, got 'xtrace'"),
        ({"seed": 0, "method": "hutch++", "sketch": 200}, "frobenius_norm: sketch must lie between 0 and 199, got 200"),
    ],
)
def test_wrong_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        frobenius_norm(opaque(random(200, 200)), **arguments)


def test_a_nan_in_a_product_is_named():
    M = random(40, 40)
    M[0, 0] = math.nan
    with pytest.raises(NonFinite, match="frobenius_norm: products must be finite"):
        frobenius_norm(opaque(M), seed=0, products=20)
