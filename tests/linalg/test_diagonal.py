import math

import pytest
import torch

from counting import counting
from frechet.errors import NonFinite
from frechet.linalg._diagonal import diagonal, hutchinson_diagonal
from frechet.linalg._sequential import EstimateState
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

METHODS = ["hutchinson", "xdiag"]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def opaque(M, facts=()):
    return from_callable(
        lambda V: (V.T @ M.T).T, euclidean(M.shape[0], M.dtype), rmatmat=lambda U: (U.T @ M).T, facts=facts
    )


def symmetric(n, seed=0):
    M = random(n, n, seed=seed)
    return (M + M.T) / 2


X = from_matrix(random(3, 6))
STRUCTURED = {
    "identity": identity(euclidean(5, torch.float64)),
    "matrix": from_matrix(random(5, 5)),
    "diagonal": from_diagonal(random(5)),
    "low rank": from_factors(random(5, 2), random(2, seed=1)),
    "rank zero": from_factors(random(5, 0)),
    "kronecker": kronecker(from_matrix(random(3, 3)), from_matrix(random(2, 2))),
    "blocks": block_diagonal(from_matrix(random(3, 3)), 2 * identity(euclidean(2, torch.float64))),
    "scaled": -3 * from_matrix(random(4, 4)),
    "nested sum": 2 * (from_matrix(random(4, 4)) + 0.5 * identity(euclidean(4, torch.float64))).T,
    "gram": X.T @ X,
    "outer gram": X @ X.T,
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_structure_gives_the_diagonal_for_free(name):
    A = STRUCTURED[name]
    estimate = diagonal(A)
    assert torch.allclose(estimate.value, A.dense().diagonal(), rtol=1e-12, atol=1e-14)
    assert (estimate.exact, estimate.products) == (True, 0)
    assert torch.equal(estimate.standard_error, torch.zeros(A.domain.dim, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 7, 130])
def test_a_budget_of_n_products_gives_the_exact_diagonal(n):
    M = random(n, n)
    A, count = counting(opaque(M))
    estimate = diagonal(A, products=n)
    assert torch.allclose(estimate.value, M.diagonal())
    assert (estimate.exact, estimate.products, count.products, count.transposed) == (True, n, n, 0)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("products", [4, 7, 50])
def test_tiny_dimensions_work_with_any_budget(n, method, products):
    estimate = diagonal(opaque(symmetric(n), "symmetric"), seed=0, products=products, method=method)
    assert estimate.value.shape == estimate.standard_error.shape == (n,)
    assert bool(torch.isfinite(estimate.value).all())
    assert estimate.products <= products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("facts", ["symmetric", ()])
@pytest.mark.parametrize("method", METHODS)
def test_products_with_the_operator_and_its_transpose_are_counted(method, facts, dtype):
    M = (symmetric(60) if facts else random(60, 60)).to(dtype)
    A, count = counting(opaque(M, facts))
    estimate = diagonal(A, seed=0, products=25, method=method, block=5)
    assert estimate.products == count.total <= 25
    assert estimate.value.dtype == estimate.standard_error.dtype == dtype
    if method == "xdiag" and not facts:
        assert (count.products, count.transposed) == (12, 12)


def test_hutchinson_is_the_mean_of_the_products_with_signs():
    M = random(20, 20)
    A = opaque(M)
    Z = A.domain.random(range(9), 2)
    x = Z * (M @ Z)
    estimate = diagonal(A, seed=2, products=9, method="hutchinson", block=4)
    assert torch.allclose(estimate.value, x.mean(1))
    assert torch.allclose(estimate.standard_error, x.std(1) / 3)
    assert estimate.degrees_of_freedom == 4.0


def test_terms_with_a_closed_form_are_not_estimated():
    A = opaque(symmetric(80), "symmetric")
    d = random(80)
    alone = diagonal(A, seed=0, products=10)
    whole = diagonal(3 * (A + from_diagonal(d)) - identity(A.domain), seed=0, products=10)
    assert torch.allclose(whole.value, 3 * alone.value + 3 * d - 1)
    assert torch.allclose(whole.standard_error, 3 * alone.standard_error)


@pytest.mark.parametrize("rtol", [None, 0.5])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_the_uninterrupted_one(method, rtol):
    A = opaque(symmetric(90) + 8 * torch.eye(90, dtype=torch.float64), "symmetric")
    states: list[EstimateState] = []
    arguments = {"seed": 1, "products": 80, "method": method, "rtol": rtol, "block": 8}
    whole = diagonal(A, observe=lambda s: states.append(s), **arguments)
    again = diagonal(A, resume=states[1], **arguments)
    assert torch.equal(whole.value, again.value)
    assert torch.equal(whole.standard_error, again.standard_error)
    assert whole.products == again.products
    with pytest.raises(ValueError, match="diagonal: resume must come from the same run"):
        diagonal(A, resume=states[1], **(arguments | {"seed": 2}))


def test_a_tolerance_bounds_the_norm_of_the_half_widths():
    A = opaque(symmetric(300) + 30 * torch.eye(300, dtype=torch.float64), "symmetric")
    estimate = diagonal(A, seed=0, rtol=0.3, products=280)
    low, high = estimate.interval()
    assert estimate.converged is True
    assert estimate.products < 280
    assert float(((high - low) / 2).norm()) <= 0.3 * float(estimate.value.norm())


def test_a_single_probe_reports_infinite_errors():
    for method, products in (("hutchinson", 1), ("xdiag", 2)):
        estimate = diagonal(opaque(symmetric(9), "symmetric"), seed=0, products=products, method=method)
        assert bool(estimate.standard_error.isinf().all())


def test_moments_do_not_depend_on_the_blocks():
    sampler = hutchinson_diagonal(opaque(1e6 + random(10, 10)), 0)
    one = sampler.extend(None, range(12))
    many = sampler.extend(sampler.extend(None, range(5)), range(5, 12))
    assert torch.allclose(one.mean, many.mean)
    assert torch.allclose(one.deviations, many.deviations, rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "diagonal: seed must be given where A has no closed form, got None"),
        ({"seed": 0, "products": -1}, "diagonal: products must be a positive int, got -1"),
        ({"seed": 0, "method": "hutch++"}, "diagonal: method must be .*, got 'hutch\\+\\+'"),
        ({"seed": 0, "method": "xdiag", "products": 1}, "diagonal: products must be at least 2 for method 'xdiag'"),
    ],
)
def test_wrong_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        diagonal(opaque(symmetric(150), "symmetric"), **arguments)


def test_wrong_operators_raise():
    with pytest.raises(ValueError, match="diagonal: A must be square on one space, got Matrix"):
        diagonal(from_matrix(random(3, 4)))
    forward_only = from_callable(lambda V: 2 * V, euclidean(40, torch.float64))
    with pytest.raises(TypeError, match="made without rmatmat"):
        diagonal(forward_only, seed=0, products=10, method="xdiag")
    M = symmetric(40)
    M[1, 1] = math.inf
    for method in METHODS:
        with pytest.raises(NonFinite, match="diagonal: products must be finite"):
            diagonal(opaque(M, "symmetric"), seed=0, products=10, method=method)
