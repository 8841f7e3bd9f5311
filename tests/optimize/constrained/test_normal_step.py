import pytest
import torch

from frechet.operators._constructors import from_matrix
from frechet.optimize._constrained.normal_step import normal_step
from frechet.optimize._constrained.projection import rows_of
from spectra import F64, gaussian

MATRIX = gaussian(24).reshape(4, 6)
A = from_matrix(MATRIX)
ROWS = rows_of(A)
C = gaussian(4)
OPEN = torch.full((6,), torch.inf, dtype=F64)


def test_with_room_it_is_the_least_norm_solution():
    v, left = normal_step(A, ROWS, C, 100.0, -OPEN, OPEN)
    assert torch.allclose(v, -torch.linalg.pinv(MATRIX) @ C, atol=1e-10)
    assert left < 1e-10


@pytest.mark.parametrize("radius", [0.01, 0.1, 0.3])
def test_in_a_ball_it_gains_at_least_what_steepest_descent_does(radius):
    v, left = normal_step(A, ROWS, C, radius, -OPEN, OPEN)
    down = -(MATRIX.T @ C)
    down = down * min(float(down @ down / (MATRIX @ down).square().sum()), radius / float(down.square().sum().sqrt()))
    assert float(v.square().sum().sqrt()) <= radius * (1 + 1e-12)
    assert left <= float((MATRIX @ down + C).square().sum().sqrt()) * (1 + 1e-12)
    assert left == pytest.approx(float((MATRIX @ v + C).square().sum().sqrt()))


def test_one_variable_near_its_side_does_not_stop_the_others():
    low, high = -OPEN.clone(), OPEN.clone()
    low[0] = high[0] = 1e-9
    low[0] = -1e-9
    v, left = normal_step(A, ROWS, C, 100.0, low, high)
    assert abs(float(v[0])) <= 1e-9 * (1 + 1e-9)
    assert left < 0.1 * float(C.square().sum().sqrt())


def test_at_a_stationary_violation_it_stays():
    B = from_matrix(torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=F64))
    v, left = normal_step(B, rows_of(B), torch.tensor([1.0, -1.0], dtype=F64), 1.0, -OPEN[:2], OPEN[:2])
    assert not v.any()
    assert left == pytest.approx(2**0.5)
