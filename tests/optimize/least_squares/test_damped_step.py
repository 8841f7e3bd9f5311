import pytest
import torch

from frechet.optimize._least_squares.curved_model import curved
from frechet.optimize._least_squares.damped_step import blocked, boxed, column_scale, factored
from frechet.optimize._least_squares.residual import Linearization, Point, length
from spectra import F64, gaussian, geometric, with_singular_values


def linearization(J, r, x=None):
    x = torch.zeros(J.shape[1], dtype=F64) if x is None else x
    return Linearization(Point(x, r, 0.5 * float(r @ r)), r, J, None, J.T @ r, J.square().sum(0).sqrt(), 1e-16)


MATRIX = with_singular_values(12, 5, geometric(5, 1e3))
LINEAR = linearization(MATRIX, gaussian(12))
SCALE = torch.linspace(1, 3, 5, dtype=F64)
ALL = torch.ones(5, dtype=torch.bool)


@pytest.mark.parametrize("damping", [0.0, 1e-4, 2.0])
def test_step_solves_the_damped_normal_equations(damping):
    p = factored(LINEAR, SCALE, ALL).step(damping)
    H = MATRIX.T @ MATRIX + damping * torch.diag(SCALE**2)
    assert torch.allclose(p, -torch.linalg.solve(H, LINEAR.gradient), rtol=1e-6)


@pytest.mark.parametrize("radius", [1e-6, 1e-2, 1.0])
def test_step_within_a_radius_has_that_length_and_its_damping(radius):
    factor = factored(LINEAR, SCALE, ALL)
    p, damping = factor.within(radius)
    assert damping > 0
    assert length(SCALE * p) == pytest.approx(radius, rel=0.1)
    assert torch.equal(p, factor.step(damping))


def test_a_wide_radius_gives_the_undamped_step():
    p, damping = factored(LINEAR, SCALE, ALL).within(1e9)
    assert damping == 0
    assert torch.allclose(p, torch.linalg.lstsq(MATRIX, -LINEAR.r).solution, rtol=1e-9)


@pytest.mark.parametrize("radius", [1e-150, 1e-300, 5e-324, 0.0])
def test_a_radius_that_vanishes_leaves_no_step_and_never_a_longer_one(radius):
    p, damping = factored(LINEAR, SCALE, ALL).within(radius)
    assert length(SCALE * p) <= 1.1 * radius
    assert damping >= 0


def test_reductions_are_what_the_linear_model_loses():
    factor = factored(LINEAR, SCALE, ALL)
    p = factor.step(0.0)
    lost = 0.5 * float(LINEAR.r @ LINEAR.r) - 0.5 * length(LINEAR.r + MATRIX @ p) ** 2
    assert factor.predicted(LINEAR, p) == pytest.approx(lost)
    assert factor.reduction == pytest.approx(lost)


def test_rank_deficient_matrices_give_the_shortest_step():
    J = with_singular_values(8, 5, torch.tensor([2.0, 1.0, 0.5]))
    factor = factored(linearization(J, gaussian(8)), torch.ones(5, dtype=F64), ALL)
    assert factor.rank == 3
    assert torch.allclose(factor.step(0.0), -torch.linalg.pinv(J, rtol=1e-10) @ gaussian(8), atol=1e-10)
    assert factored(linearization(0 * J, gaussian(8)), torch.ones(5, dtype=F64), ALL).within(1.0)[1] == 0


def test_fixed_columns_do_not_move():
    free = torch.tensor([True, False, True, True, False])
    p = factored(LINEAR, SCALE, free).step(0.0)
    assert not p[~free].any()
    assert torch.allclose(p[free], torch.linalg.lstsq(MATRIX[:, free], -LINEAR.r).solution, rtol=1e-8)


def test_a_step_in_a_box_is_optimal_for_the_entries_inside():
    factor = factored(LINEAR, SCALE, ALL)
    plain = factor.step(1e-3)
    side = 0.3 * float(plain.abs().max()) * torch.ones(5, dtype=F64)
    p = boxed(LINEAR, factor, plain, 1e-3, -side, side)
    inside = p.abs() < side
    assert 0 < int(inside.sum()) < 5
    gradient = MATRIX.T @ (LINEAR.r + MATRIX @ p) + 1e-3 * SCALE**2 * p
    assert float(gradient[inside].abs().max()) < 1e-10


def test_entries_held_by_a_bound():
    x, g = torch.zeros(4, dtype=F64), torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=F64)
    low, high = torch.tensor([0.0, 0.0, -1.0, -1.0], dtype=F64), torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=F64)
    assert blocked(x, g, low, high).tolist() == [True, False, False, True]
    assert column_scale(torch.tensor([0.0, 2.0])).tolist() == [1.0, 2.0]


def test_without_curvature_the_second_order_model_is_the_linear_one():
    zero = torch.zeros(5, 5, dtype=F64)
    model, factor = curved(LINEAR, zero, SCALE, ALL), factored(LINEAR, SCALE, ALL)
    assert torch.allclose(model.step(0.0), factor.step(0.0), rtol=1e-8)
    assert model.reduction == pytest.approx(factor.reduction)
