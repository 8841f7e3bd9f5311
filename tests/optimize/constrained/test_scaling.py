import pytest
import torch

from frechet.operators._constructors import from_matrix
from frechet.optimize._constrained.scaling import row_norms
from spectra import gaussian


@pytest.mark.parametrize(("m", "n"), [(3, 200), (200, 3), (5, 5), (0, 4)])
def test_norms_are_exact_on_a_small_side(m, n):
    M = gaussian(max(m * n, 1))[: m * n].reshape(m, n)
    assert torch.allclose(row_norms(from_matrix(M)), M.square().sum(1).sqrt())


def test_norms_are_estimated_within_a_factor_of_two_elsewhere():
    M = gaussian(60 * 80).reshape(60, 80)
    ratio = row_norms(from_matrix(M)) / M.square().sum(1).sqrt()
    assert float(ratio.min()) > 0.5
    assert float(ratio.max()) < 2.0
