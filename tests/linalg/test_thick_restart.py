import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from counting import counting
from frechet.linalg._eigsh import eigsh
from spectra import gaussian, outliers, rotated, true_residuals


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_ten_planted_outliers_are_listed_ten_times(rtol):
    A, count = counting(outliers())
    spectrum = eigsh(A, 14, seed=0, rtol=rtol, basis=130, max_products=120).values
    assert count.total >= 30
    assert int((spectrum > 10).sum()) == 10
    assert torch.allclose(spectrum[:10], torch.linspace(100, 20, 10, dtype=torch.float64), atol=2e-4, rtol=0)


def test_thick_restart_reaches_the_same_pairs_with_little_memory():
    A = rotated(np.linspace(0, 1, 300) ** 3)
    small, large = (eigsh(A, 5, seed=0, rtol=1e-8, basis=b) for b in (14, 200))
    assert small.iterations > 3
    assert large.iterations == 0
    assert torch.allclose(small.values, large.values, rtol=1e-12)
    assert bool((true_residuals(A, small) <= 1e-8 * small.values).all())
    assert large.products < small.products < 6 * large.products


def test_products_are_counted_and_near_those_of_arpack():
    A, count = counting(outliers())
    S = eigsh(A, 10, seed=0)
    assert S.products == count.total
    peer = scipy.sparse.linalg.LinearOperator(
        A.shape, lambda x: (A @ torch.from_numpy(x.ravel())).numpy(), dtype=np.float32
    )
    count.products = 0
    scipy.sparse.linalg.eigsh(peer, 10, which="LA", tol=1e-3, v0=np.ones(4000, np.float32))
    assert S.products < count.total
    B, count = counting(rotated(gaussian(60)))
    assert eigsh(B, 3, seed=0, method="lobpcg").products == count.total


@pytest.mark.parametrize("seed", range(5))
def test_multiple_eigenvalues_are_all_found_with_copies(seed):
    values = np.r_[[5.0] * 3, 4.0, [3.0] * 2, np.linspace(-1, 1, 194)]
    A = rotated(values, seed=seed)
    blind = eigsh(A, 3, seed=seed)
    full = eigsh(A, 3, seed=seed, copies=True)
    assert blind.values.tolist() == pytest.approx([5, 4, 3], abs=1e-4)
    assert full.values.tolist() == pytest.approx([5, 5, 5], abs=1e-4)
    assert bool((true_residuals(A, full) <= full.residuals * 1.001).all())
    low = eigsh(-A, 5, which="smallest", seed=seed, copies=True)
    assert low.values.tolist() == pytest.approx([-3, -4, -5, -5, -5], abs=1e-4)
    both = eigsh(A, 3, which="both", seed=seed, copies=True)
    assert both.values[:3].tolist() == pytest.approx([5, 5, 5], abs=1e-4)


def test_null_space_is_listed_with_its_multiplicity():
    A = rotated(np.r_[np.linspace(1, 2, 30), np.zeros(70)])
    S = eigsh(A, 6, which="smallest", seed=0, atol=1e-6, copies=True, basis=20)
    assert S.values.abs().max() < 1e-6
    assert (A.domain.gram(S.vectors, S.vectors) - torch.eye(6)).abs().max() < 1e-12


def test_copies_cost_at_most_half_again_on_a_simple_spectrum():
    A = outliers()
    assert eigsh(A, 10, seed=0, copies=True).products <= 1.5 * eigsh(A, 10, seed=0).products
