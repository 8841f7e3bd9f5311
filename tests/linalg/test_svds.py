import math

import numpy as np
import pytest
import torch

from counting import counting
from frechet.errors import NonFinite, NotConverged
from frechet.linalg._eigsh import eigsh
from frechet.linalg._result import Status
from frechet.linalg._svds import svds
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix, identity
from frechet.space import euclidean


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_values(m, n, values, dtype=torch.float64):
    """An (m, n) matrix with the given singular values."""
    r = len(values)
    U, V = torch.linalg.qr(draw(m, r))[0], torch.linalg.qr(draw(n, r, seed=1))[0]
    return from_matrix((U * torch.as_tensor(values, dtype=torch.float64) @ V.T).to(dtype))


def true_residuals(A, S):
    u, v = S.left.double(), S.vectors.double()
    a = (A @ S.vectors).double() - u * S.values
    b = (A.T @ S.left).double() - v * S.values
    return (a.square().sum(0) + b.square().sum(0)).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(120, 80), (80, 120), (90, 90), (400, 6), (6, 400)])
@pytest.mark.parametrize("rtol", [1e-3, 0.0])
def test_triplets_agree_with_dense(dtype, shape, rtol):
    A = from_matrix(draw(*shape).to(dtype))
    exact = torch.linalg.svdvals(A.dense().double())
    k = 5
    S = svds(A, k, seed=0, rtol=rtol)
    eps = A.domain.eps
    assert S.status is Status.CONVERGED
    assert bool(S.converged.all())
    assert torch.allclose(S.values, exact[:k], rtol=max(rtol**2 * 10, 100 * eps))
    true, rounding = true_residuals(A, S), 60 * eps * exact[0]
    assert bool((true <= 1.001 * S.residuals + rounding).all())
    assert bool((S.residuals <= 1.001 * true + rounding).all())
    for space, W in ((A.domain, S.vectors), (A.codomain, S.left)):
        assert W.shape == (space.dim, k)
        assert (space.gram(W, W) - torch.eye(k)).abs().max() < 50 * eps
    assert S.vectors.dtype == dtype


def test_thick_restart_reaches_the_same_triplets_with_little_memory():
    A = with_values(400, 300, np.linspace(1, 2, 300) ** 3)
    small, large = (svds(A, 4, seed=0, rtol=1e-8, basis=b) for b in (10, 250))
    assert small.iterations > 3
    assert large.iterations == 0
    assert torch.allclose(small.values, large.values, rtol=1e-12)
    assert bool((true_residuals(A, small) <= 1.01e-8 * small.values).all())


def test_small_singular_values_survive_in_float32_where_the_square_would_lose_them():
    values = np.r_[1.0, 1e-2, 3e-4, 1e-5]
    A = with_values(60, 40, values, torch.float32)
    S = svds(A, 4, seed=0, rtol=1e-3)
    assert S.values.tolist() == pytest.approx(values.tolist(), rel=2e-2)


def test_products_are_counted_on_both_sides():
    for shape in ((50, 30), (30, 50)):
        A, count = counting(from_matrix(draw(*shape)))
        S = svds(A, 3, seed=0)
        assert S.products == count.total
        assert count.products == count.transposed


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 1), (3, 3), (5, 3), (3, 5)])
def test_every_k_in_every_small_shape(shape):
    A = from_matrix(draw(*shape))
    exact = torch.linalg.svdvals(A.dense())
    for k in range(min(shape) + 1):
        S = svds(A, k, seed=0, rtol=1e-12)
        assert torch.allclose(S.values, exact[:k])
        assert (S.vectors.shape, S.left.shape) == ((shape[1], k), (shape[0], k))
        assert S.status is Status.CONVERGED


def test_low_rank_zero_and_identity_are_continued_with_random_vectors():
    S = svds(with_values(50, 30, [3.0, 2.0]), 5, seed=0, rtol=1e-6, atol=1e-10)
    assert S.values.tolist() == pytest.approx([3, 2, 0, 0, 0], abs=1e-10)
    zero = svds(from_matrix(torch.zeros(6, 4)), 2, seed=0)
    assert zero.values.tolist() == [0.0, 0.0]
    same = svds(identity(euclidean(20, torch.float64)), 3, seed=0)
    assert same.values.tolist() == pytest.approx([1.0] * 3)
    for S in (zero, same):
        assert (S.left.T @ S.left - torch.eye(S.left.shape[1])).abs().max() < 1e-6
        assert (S.vectors.T @ S.vectors - torch.eye(S.left.shape[1])).abs().max() < 1e-6


def test_restart_after_a_breakdown_at_the_last_column():
    A = with_values(60, 40, np.r_[np.arange(8.0, 0.0, -1.0), np.zeros(0)])
    S = svds(A, 5, seed=0, rtol=0.0, basis=8)
    assert torch.allclose(S.values, torch.arange(8.0, 3.0, -1.0, dtype=torch.float64))


def test_budget_ends_a_run_honestly():
    A = with_values(300, 200, np.linspace(1, 2, 200))
    S = svds(A, 3, seed=0, rtol=1e-10, max_products=13)
    assert (S.status, S.products, S.values.shape) == (Status.MAX_ITERATIONS, 12, (3,))
    assert bool((true_residuals(A, S) <= 1.001 * S.residuals).all())
    with pytest.raises(NotConverged, match="0 of 3 pairs converged"):
        S.checked()
    assert svds(A, 3, seed=0, max_products=2).values.shape == (1,)


def test_eigenvalues_of_a_symmetric_operator_lose_their_sign():
    S = svds(from_diagonal(torch.tensor([1.0, -5.0, 3.0, 0.0])), 2, seed=0)
    assert S.values.tolist() == pytest.approx([5.0, 3.0])


def test_bad_arguments_are_named():
    A = from_matrix(torch.ones(4, 3))
    cases = [
        (lambda: svds(A, 4, seed=0), "svds: k must be an int between 0 and the smaller dimension 3, got 4"),
        (lambda: svds(A, 1, seed=0, rtol=-1.0), "svds: rtol and atol must be non-negative, got -1.0 and 0.0"),
        (lambda: svds(A, 1, seed=0, max_products=1), "svds: max_products must be at least 2, got 1"),
        (lambda: svds(A, 1, seed=0, basis=1), "svds: basis must be at least 3 for 1 triplets, got 1"),
        (lambda: svds(A, 1, seed=-1), "seed must be a non-negative int"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    nan = from_callable(lambda V: V * math.nan, euclidean(5), rmatmat=lambda U: U)
    with pytest.raises(NonFinite, match=r"svds: product 1 \(A @ v\) holds a NaN"):
        svds(nan, 1, seed=0)
    nan = from_callable(lambda V: V * math.nan, euclidean(5), euclidean(7), rmatmat=lambda U: U[:5])
    wide = from_callable(lambda V: V[:3], euclidean(5), euclidean(3), rmatmat=lambda U: U.new_full((5, 1), math.nan))
    with pytest.raises(NonFinite, match=r"svds: product 1 \(A.T @ u\) holds a NaN"):
        svds(wide, 1, seed=0)


def hypercube(d):
    bits = torch.arange(2**d)
    neighbours = lambda V: sum(V[bits ^ (1 << j)] for j in range(d))  # noqa: E731
    return from_callable(neighbours, 2**d, rmatmat=neighbours, dtype=torch.float64)


MULTIPLE = {
    "8-cube": lambda: (hypercube(8), 10),
    "9-cube": lambda: (hypercube(9), 30),
    "a twelvefold value": lambda: (with_values(150, 120, [3.0] * 12 + np.linspace(0, 1, 108).tolist()), 14),
    "more columns": lambda: (with_values(120, 150, [3.0] * 12 + np.linspace(0, 1, 108).tolist()), 14),
    "few values": lambda: (with_values(120, 80, [5.0] * 10 + [4.0] * 20 + [1.0] * 50), 25),
    "low rank": lambda: (with_values(120, 80, [5.0] * 3 + [4.0] * 3 + [0.0] * 74), 10),
    "one value": lambda: (with_values(60, 60, [2.0] * 60), 5),
    "triple values": lambda: (with_values(90, 60, np.repeat(np.linspace(3, 1, 20), 3).tolist()), 8),
    "simple values": lambda: (from_matrix(draw(100, 70)), 6),
}


@pytest.mark.parametrize("rtol", [1e-3, 1e-10])
@pytest.mark.parametrize("name", MULTIPLE)
def test_copies_end_on_multiple_values_within_twice_the_products_of_blocks(name, rtol):
    A, k = MULTIPLE[name]()
    M = A.dense()
    S = svds(A, k, seed=0, rtol=rtol, copies=True)
    assert torch.allclose(S.values, torch.linalg.svdvals(M)[:k], atol=1e-7)
    assert S.status is Status.CONVERGED
    assert bool((true_residuals(A, S) <= S.residuals + 50 * A.domain.eps * S.values[0]).all())
    for W in (S.vectors, S.left):
        assert torch.allclose(W.T @ W, torch.eye(k, dtype=torch.float64), atol=1e-12)
    blocks = eigsh(from_matrix(M.T @ M, facts="symmetric"), k, seed=0, rtol=rtol, method="lobpcg")
    assert S.products <= 2 * (2 * blocks.products)  # a product with A'A is two


def test_a_search_for_copies_that_the_budget_ends_is_not_converged():
    A = with_values(150, 120, [3.0] * 12 + np.linspace(0, 1, 108).tolist())
    S = svds(A, 5, seed=0, copies=True, max_products=60)
    assert S.status is Status.MAX_ITERATIONS
    assert S.products <= 60
