import math

import pytest
import torch

from frechet.optimize._least_squares.curved_model import curved
from frechet.optimize._least_squares.residual import Linearization, Point, length
from spectra import F64, gaussian

ONE = torch.ones(4, dtype=F64)
ALL = torch.ones(4, dtype=torch.bool)


def model(values, gradient, scale=ONE, free=ALL):
    """The model with Hessian diag(values): J = 0, all of it in S."""
    J, r = torch.zeros(4, 4, dtype=F64), torch.ones(4, dtype=F64)
    gradient = torch.as_tensor(gradient, dtype=F64)
    linear = Linearization(Point(0 * ONE, r, 2.0), r, J, None, gradient, ONE, 1e-16)
    return curved(linear, torch.diag(torch.as_tensor(values, dtype=F64)), scale, free), linear


def test_newton_step_where_the_matrix_is_positive():
    m, linear = model([1, 2, 4, 8], [1, 1, 1, 1])
    p, damping = m.within(100.0)
    assert damping == 0
    assert torch.allclose(p, -torch.tensor([1, 0.5, 0.25, 0.125], dtype=F64))
    assert m.predicted(linear, p) == pytest.approx(m.reduction) == pytest.approx(0.5 * 1.875)


@pytest.mark.parametrize("values", [[1, 2, 4, 8], [-3, 1, 2, 5], [-3, -3, 1, 0]])
def test_steps_on_the_boundary_are_the_minimizers_there(values):
    gradient = gaussian(4)
    m, linear = model(values, gradient)
    p, damping = m.within(0.3)
    assert length(p) == pytest.approx(0.3, rel=0.1)
    assert damping >= -min(values)
    best = m.predicted(linear, p)
    others = torch.nn.functional.normalize(gaussian(4000).view(1000, 4), dim=1) * length(p)
    assert all(m.predicted(linear, q) <= best * (1 + 1e-9) for q in others)


def test_hard_case_moves_along_the_lowest_direction():
    m, linear = model([-2, 1, 1, 1], [0, 1, 0, 0])
    p, _ = m.within(2.0)
    assert length(p) == pytest.approx(2.0, rel=0.1)
    assert abs(float(p[0])) > 1.5
    assert m.reduction == math.inf
    assert m.predicted(linear, p) > 0


def test_scale_and_free_entries():
    free, scale = torch.tensor([True, True, False, True]), torch.tensor([1.0, 10, 1, 0.1], dtype=F64)
    m, linear = model([1, 2, 4, 8], [1, 1, 1, 1], scale, free)
    p, _ = m.within(1e6)
    assert torch.allclose(p, -torch.tensor([1, 0.5, 0, 0.125], dtype=F64))
    small, _ = m.within(0.01)
    assert length(scale * small) == pytest.approx(0.01, rel=0.1)
    held = m.holding(linear, torch.tensor([0.0, 0, 0, 0.5], dtype=F64), torch.tensor([True, True, False, False]))
    assert torch.allclose(held.step(0.0), -torch.tensor([1, 0.5, 0, 0], dtype=F64))


def test_stationary_points_are_left_where_the_cost_falls():
    m, linear = model([-2, 1, 1, 1], [0, 0, 0, 0])
    p, damping = m.within(0.5)
    assert m.descends
    assert damping == 2
    assert m.predicted(linear, p) == pytest.approx(0.25)
    m, _ = model([0, 1, 1, 1], [0, 0, 0, 0])
    assert not m.descends
    assert not m.within(0.5)[0].any()
