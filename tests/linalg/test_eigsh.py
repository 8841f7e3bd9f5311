import math
import pickle

import numpy as np
import pytest
import torch

from frechet.errors import NonFinite, NotConverged
from frechet.linalg._eigsh import eigsh
from frechet.linalg._result import Status
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix, identity
from frechet.space import euclidean
from spectra import gaussian, outliers, rotated, true_residuals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
@pytest.mark.parametrize("method", ["lanczos", "lobpcg"])
def test_values_vectors_and_residuals_agree_with_dense(dtype, which, method):
    if (which, method) == ("both", "lobpcg"):
        return
    A = rotated(gaussian(150).sort().values, dtype)
    exact = torch.linalg.eigvalsh(A.dense().double()).flip(0)
    S = eigsh(A, 4, which=which, seed=0, method=method, rtol=1e-4)
    expected = {"largest": exact[:4], "smallest": exact[-4:], "both": torch.cat([exact[:4], exact[-4:]])}[which]
    assert torch.allclose(S.values, expected, rtol=1e-5)
    assert S.status is Status.CONVERGED
    assert bool(S.converged.all())
    gram = A.domain.gram(S.vectors, S.vectors)
    assert (gram - torch.eye(len(expected))).abs().max() < 20 * A.domain.eps
    assert bool((true_residuals(A, S) <= 1e-4 * S.values.abs() * 1.01).all())
    assert S.vectors.T.is_contiguous()
    assert (S.vectors.dtype, S.values.dtype) == (dtype, torch.float64)
    assert S.checked() is S


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rtol", [1e-2, 1e-4, 0.0])
def test_reported_residuals_are_the_true_ones(dtype, rtol):
    A = rotated(np.r_[np.geomspace(100, 1, 20), np.linspace(-1, 1, 130)], dtype)
    S = eigsh(A, 8, seed=0, rtol=rtol)
    true, rounding = true_residuals(A, S), 20 * 100 * A.domain.eps
    assert bool((true <= 1.001 * S.residuals).all())
    assert bool((S.residuals <= 1.001 * true + rounding).all())


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_every_k_in_every_small_dimension(n, which):
    exact = torch.arange(n, 0, -1, dtype=torch.float64) - 2.0
    A = rotated(exact)
    for k in range(n + 1):
        S = eigsh(A, k, which=which, seed=0, rtol=1e-9, atol=1e-9)
        m = min(n, 2 * k)
        expected = torch.cat([exact[: (m + 1) // 2], exact[n - m // 2 :]]) if which == "both" else None
        expected = {"largest": exact[:k], "smallest": exact[n - k :], "both": expected}[which]
        assert torch.allclose(S.values, expected, atol=1e-9), (k, S.values)
        assert S.vectors.shape == (n, len(expected))
        assert S.status is Status.CONVERGED
        assert S.products <= n
        if which != "both":
            assert torch.allclose(eigsh(A, k, which=which, seed=0, method="lobpcg", rtol=1e-9).values, expected)


def test_zero_operator_and_identity_have_as_many_pairs_as_asked():
    space = euclidean(30)
    for A, value in [(from_diagonal(torch.zeros(30)), 0.0), (identity(space), 1.0)]:
        S = eigsh(A, 3, seed=0)
        assert S.values.tolist() == pytest.approx([value] * 3, abs=1e-6)
        assert (S.status, S.products) == (Status.CONVERGED, 3)


def test_warm_start_saves_products_and_is_not_trusted():
    A = outliers()
    cold = eigsh(A, 10, seed=0)
    warm = eigsh(A, 10, seed=0, x0=cold.vectors)
    assert warm.products < cold.products
    assert torch.allclose(warm.values, cold.values, rtol=1e-5)
    blind = torch.zeros(4000, 1)
    blind[0] = 1.0  # an eigenvector, but of the tenth value
    S = eigsh(A, 1, seed=0, x0=blind)
    assert S.values.tolist() == pytest.approx([20.0])  # found at once; nothing was asked about the rest
    assert eigsh(A, 2, seed=0, x0=blind).values.tolist() == pytest.approx([100.0, 820 / 9], rel=1e-5)


def test_budget_ends_a_run_honestly():
    A = rotated(np.linspace(0, 1, 300) ** 3)
    for method in ("lanczos", "lobpcg"):
        S = eigsh(A, 5, seed=0, rtol=1e-10, max_products=9, method=method)
        assert (S.status, S.values.shape) == (Status.MAX_ITERATIONS, (5,))
        assert not bool(S.converged.all())
        with pytest.raises(NotConverged, match="of 5 pairs converged"):
            S.checked()
    assert eigsh(A, 5, seed=0, max_products=2).values.shape == (2,)


@pytest.mark.parametrize("options", [{}, {"basis": 12}, {"copies": True}, {"method": "lobpcg"}])
def test_resumed_run_equals_an_uninterrupted_one(options):
    A = rotated(np.r_[3.0, 3.0, np.linspace(0, 1, 118) ** 3])
    saved = []
    whole = eigsh(A, 4, seed=0, rtol=1e-3, observe=lambda s: saved.append(pickle.dumps(s)), **options)
    assert len(saved) >= 8
    for i in (0, len(saved) // 3, len(saved) // 2, len(saved) - 3, len(saved) - 1):
        state = pickle.loads(saved[i])
        part = eigsh(A, 4, seed=0, rtol=1e-3, resume=state, observe=lambda s: True, **options)
        assert (part.status, part.products) == (Status.STOPPED, state.products)
        assert torch.equal(part.values, state.values)
        rest = eigsh(A, 4, seed=0, rtol=1e-3, resume=state, **options)
        assert torch.equal(rest.values, whole.values)
        assert torch.equal(rest.vectors, whole.vectors)
        assert (rest.products, rest.iterations) == (whole.products, whole.iterations)
    with pytest.raises(ValueError, match="eigsh: resume must come from the same call"):
        eigsh(A, 4, seed=1, resume=state, **options)


def test_scaling_and_shift_move_the_spectrum():
    A = rotated(gaussian(80))
    S = eigsh(A, 3, seed=0, rtol=1e-10)
    B = eigsh(-2.0 * A + 5.0 * identity(A.domain), 3, which="smallest", seed=0, rtol=1e-10)
    assert torch.allclose(B.values.flip(0), 5 - 2 * S.values)


def test_a_nan_names_the_product():
    space, calls = euclidean(50, torch.float64), []

    def product(V):
        calls.append(V.shape[1])
        return V * (math.nan if sum(calls) >= 5 else 1.0) * torch.arange(50.0, dtype=V.dtype)[:, None]

    A = from_callable(product, space, facts="symmetric")
    with pytest.raises(NonFinite, match=r"eigsh: product 5 \(A @ v\) holds a NaN"):
        eigsh(A, 3, seed=0)
    calls.clear()
    with pytest.raises(NonFinite, match=r"eigsh: one of products 1 to 5 \(A @ V\) holds a NaN"):
        eigsh(A, 3, seed=0, method="lobpcg")


def test_bad_arguments_are_named():
    A = rotated(gaussian(10))
    cases = [
        (lambda: eigsh(from_matrix(torch.ones(2, 2)), 1, seed=0), r"eigsh: A must be symmetric, got .*svds"),
        (lambda: eigsh(A, 11, seed=0), "eigsh: k must be an int between 0 and the dimension 10, got 11"),
        (lambda: eigsh(A, 1, seed=0, which="LM"), "eigsh: which must be 'largest', 'smallest' or 'both', got 'LM'"),
        (lambda: eigsh(A, 1, seed=0, method="qr"), "eigsh: method must be 'lanczos' or 'lobpcg', got 'qr'"),
        (lambda: eigsh(A, 1, seed=0, rtol=-1.0), "eigsh: rtol and atol must be non-negative, got -1.0 and 0.0"),
        (lambda: eigsh(A, 1, seed=0, max_products=0), "eigsh: max_products must be positive, got 0"),
        (lambda: eigsh(A, 1, seed=0, which="both", method="lobpcg"), "eigsh: which='both', copies, basis and stor"),
        (lambda: eigsh(A, 1, seed=0, preconditioner=A), "eigsh: preconditioner must be None with method='lanczos'"),
        (
            lambda: eigsh(A, 1, seed=0, method="lobpcg", preconditioner=identity(euclidean(3))),
            r"eigsh: preconditioner must act on R\^10",
        ),
        (lambda: eigsh(A, 1, seed=0, x0=torch.ones(10)), r"eigsh: x0 must be a block \(10, j\) of R\^10"),
        (lambda: eigsh(A, 3, seed=0, basis=7), "eigsh: basis must be at least 8 for 3 pairs, got 7"),
        (lambda: eigsh(A, 1, seed=-1), "seed must be a non-negative int"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(NonFinite, match="eigsh: x0 holds a NaN"):
        eigsh(A, 1, seed=0, x0=torch.full((10, 1), math.nan, dtype=torch.float64))
