"""A top eigenpair that is followed while its operator changes."""

import pytest
import torch

from frechet import from_matrix
from frechet.analyze._run.tracking import TRACKED, tracked_top
from frechet.errors import NonFinite


def symmetric(values, seed=0):
    torch.manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    return (Q * values) @ Q.T, Q


def test_cold_and_warm_find_the_top_and_warm_is_cheaper():
    values = torch.cat([torch.tensor([9.0, 6.0]), torch.linspace(-1, 1, 58)]).double()
    A, _ = symmetric(values)
    hint = torch.randn(60, dtype=torch.float64)
    cold = tracked_top(from_matrix(A, facts="symmetric"), None, hint, seed=0, rtol=1e-3)
    assert cold.converged
    assert abs(cold.value - 9.0) <= cold.residual
    assert cold.block.shape == (60, TRACKED)
    near = A + 1e-3 * torch.diag(torch.linspace(-1, 1, 60)).double()
    warm = tracked_top(from_matrix(near, facts="symmetric"), cold.block, hint, seed=0, rtol=1e-3)
    assert warm.products < cold.products
    assert abs(warm.value - float(torch.linalg.eigvalsh(near)[-1])) <= warm.residual


def test_a_crossing_is_seen_where_the_gradient_holds_the_new_direction():
    values = torch.cat([torch.tensor([9.0, 6.0, 5.0]), torch.linspace(-1, 1, 57)]).double()
    A, Q = symmetric(values)
    cold = tracked_top(from_matrix(A, facts="symmetric"), None, torch.ones(60).double(), seed=0, rtol=1e-4)
    crossed = A + 7 * torch.outer(Q[:, 2], Q[:, 2])  # the third is the first now, at 12
    gradient = Q[:, 2] + 0.5 * torch.randn(60, dtype=torch.float64) / 60**0.5
    found = tracked_top(from_matrix(crossed, facts="symmetric"), cold.block, gradient, seed=0, rtol=0.02)
    assert abs(found.value - 12.0) <= found.residual + 1e-9


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_bound_on_the_products_is_kept_and_told(most):
    A, _ = symmetric(torch.linspace(0, 1, 60).double())
    found = tracked_top(
        from_matrix(A, facts="symmetric"), None, torch.ones(60).double(), seed=0, rtol=1e-9, max_products=most
    )
    assert not found.converged
    assert found.products <= max(most, 2)
    assert float((torch.linalg.eigvalsh(A) - found.value).abs().min()) <= found.residual


def test_small_spaces_and_zero_hints():
    A = from_matrix(torch.diag(torch.tensor([3.0, 1.0])).double(), facts="symmetric")
    found = tracked_top(A, None, torch.zeros(2).double(), seed=0, rtol=1e-9)
    assert found.value == pytest.approx(3.0)
    again = tracked_top(A, found.block, torch.zeros(2).double(), seed=0, rtol=1e-9)
    assert again.value == pytest.approx(3.0)


def test_a_nan_is_told():
    A = from_matrix(torch.full((3, 3), float("nan")).double(), facts="symmetric")
    with pytest.raises(NonFinite, match="a product of the operator holds a NaN"):
        tracked_top(A, None, torch.ones(3).double(), seed=0, rtol=0.1)
