import math

import numpy as np
import pytest
import torch

from frechet import from_diagonal, from_matrix
from frechet.errors import NonFinite
from frechet.optimize._smooth.quadratic_model import Diagonal, equilibrated, full_model, krylov_model
from frechet.space import euclidean

SPACE = euclidean(12, torch.float64)


def symmetric(seed, definite=False):
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(12, 12, generator=g, dtype=torch.float64)
    return (A @ A.T + torch.eye(12, dtype=torch.float64)) if definite else A + A.T


def gradient(seed=9):
    return torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_diagonals():
    rng = np.random.default_rng(0)
    for t in range(300):
        m = int(rng.integers(1, 8))
        values = np.sort(rng.normal(size=m) * 10.0 ** rng.integers(-5, 5))
        slopes = rng.normal(size=m) * 10.0 ** rng.integers(-5, 4, size=m)
        yield Diagonal(np.sort(np.abs(values)) if t % 3 == 0 else values, slopes, np.zeros(m)), rng


def test_a_step_within_a_radius_meets_the_optimality_conditions():
    for d, rng in random_diagonals():
        radius = 10.0 ** rng.uniform(-4, 4)
        s = d.within(radius)
        assert s.length <= radius * (1 + 1e-8)
        assert d.values[0] + s.shift >= -1e-9 * abs(d.values).max()
        assert s.bounded == (abs(s.length - radius) <= 1e-8 * radius) or s.length < radius
        kkt = d.values * s.z + s.shift * s.z + d.slopes
        assert np.abs(kkt).max() <= 1e-8 * (np.abs(d.slopes).max() + np.abs(d.values).max() * radius)
        if d.values[0] < -d.floor:
            assert s.bounded


def test_no_point_of_a_disk_is_below_the_step():
    d = Diagonal(np.array([-2.0, 3.0]), np.array([0.0, 1.0]), np.zeros(2))  # the hard case: no slope along e_0
    s = d.within(1.5)
    angles = np.linspace(0, 2 * math.pi, 2001)
    for r in np.linspace(0, 1.5, 16):
        z = r * np.stack([np.cos(angles), np.sin(angles)])
        values = d.slopes @ z + 0.5 * (d.values[:, None] * z * z).sum(0)
        assert values.min() >= -s.decrease - 1e-12
    assert s.length == pytest.approx(1.5)


def test_a_cubic_step_has_the_shift_that_its_length_asks_for():
    for d, rng in random_diagonals():
        M = 10.0 ** rng.uniform(-3, 3)
        s = d.cubic(M)
        assert s.shift == pytest.approx(M * s.length / 2, rel=1e-7, abs=1e-12 * abs(d.values).max())
        assert d.values[0] + s.shift >= -1e-9 * abs(d.values).max()


def test_the_decrease_of_a_newton_step_is_infinite_where_the_model_is_indefinite():
    assert Diagonal(np.array([2.0, 8.0]), np.array([2.0, 4.0]), np.zeros(2)).newton_decrease() == 2.0
    assert Diagonal(np.array([-1.0, 8.0]), np.array([2.0, 4.0]), np.zeros(2)).newton_decrease() == math.inf


@pytest.mark.parametrize("preconditioned", [False, True])
def test_a_krylov_space_of_all_dimensions_solves_shifted_systems(preconditioned):
    A, g = symmetric(0, definite=True), gradient()
    d = torch.linspace(1, 5, 12, dtype=torch.float64)
    P = from_diagonal(1 / d) if preconditioned else None
    B = torch.diag(d) if preconditioned else torch.eye(12, dtype=torch.float64)
    model = krylov_model(SPACE, from_matrix(A, facts="symmetric"), g, preconditioner=P, most=12)
    step = model.solved(lambda m: m.shifted(0.7), 1e-13)
    torch.testing.assert_close(model.vector(step), -torch.linalg.solve(A + 0.7 * B, g), rtol=1e-9, atol=1e-9)


def test_what_a_small_krylov_space_leaves_over_is_known_without_a_product():
    A, g = symmetric(1), gradient()
    P = from_diagonal(torch.linspace(1, 2, 12, dtype=torch.float64))
    model = krylov_model(SPACE, from_matrix(A, facts="symmetric"), g, preconditioner=P, most=5)
    step = model.solved(lambda m: m.within(0.5), 0.0)
    assert model.dimension == 5
    assert step.residual > 1e-3
    assert step.residual == pytest.approx(model.left_over(step, g), rel=1e-9)


def test_a_space_grows_only_as_far_as_the_accuracy_asks():
    d = torch.logspace(0, 2, 12, dtype=torch.float64)
    model = krylov_model(SPACE, from_diagonal(d), gradient(), most=12)
    loose = model.solved(lambda m: m.shifted(10.0), 0.5 * model.size)
    first = model.dimension
    tight = model.solved(lambda m: m.shifted(10.0), 1e-6 * model.size)
    assert loose.residual <= 0.5 * model.size
    assert tight.residual <= 1e-6 * model.size
    assert first < model.dimension <= 12


def test_an_invariant_space_ends_the_growth():
    model = krylov_model(SPACE, from_diagonal(torch.full((12,), 3.0, dtype=torch.float64)), gradient(), most=12)
    step = model.solved(lambda m: m.shifted(0.0), 0.0)
    assert model.complete
    assert model.dimension == 1
    torch.testing.assert_close(model.vector(step), -gradient() / 3)


def test_the_full_model_agrees_with_the_matrix_and_its_steps_do_not_depend_on_units():
    A, g = symmetric(2, definite=True), gradient()
    model = full_model(SPACE, from_matrix(A, facts="symmetric"), g, None)
    s = model.vector(model.diagonal.within(0.3))
    units = torch.logspace(-4, 4, 12, dtype=torch.float64)
    scaled = from_matrix(A * units[:, None] * units[None, :], facts="symmetric")
    other = full_model(SPACE, scaled, g * units, None)
    torch.testing.assert_close(units * other.vector(other.diagonal.within(0.3)), s, rtol=1e-6, atol=1e-9)
    newton = model.vector(model.diagonal.shifted(0.0))
    torch.testing.assert_close(newton, -torch.linalg.solve(A, g), rtol=1e-9, atol=1e-9)


def test_equilibration_makes_the_largest_entry_of_each_row_one():
    A = symmetric(3)
    A[4] = 0
    A[:, 4] = 0
    d = equilibrated(A)
    largest = (A.abs() / d.sqrt()[:, None] / d.sqrt()[None, :]).amax(1)
    assert largest[4] == 0
    assert torch.allclose(torch.cat([largest[:4], largest[5:]]), torch.ones(11, dtype=torch.float64), atol=0.02)
    assert torch.isfinite(d).all()
    assert bool((equilibrated(torch.zeros(3, 3)) == 1).all())


def test_a_nan_in_a_product_is_named():
    with pytest.raises(NonFinite, match="a product with the Hessian"):
        full_model(SPACE, from_diagonal(torch.full((12,), math.nan, dtype=torch.float64)), gradient(), None)
    P = from_diagonal(torch.ones(12, dtype=torch.float64))
    bad = from_diagonal(torch.full((12,), math.nan, dtype=torch.float64))
    model = krylov_model(SPACE, bad, gradient(), preconditioner=P, most=3)
    with pytest.raises(NonFinite, match="Hessian or the preconditioner"):
        model.grow()


@pytest.mark.parametrize("radius", [1e-100, 1e-153, 1e-160, 1e-170, 1e-300, 5e-324, 0.0])
def test_a_radius_that_vanishes_leaves_no_step_and_never_a_longer_one(radius):
    for d, _ in random_diagonals():
        s = d.within(radius)
        assert np.isfinite(s.z).all()
        assert np.abs(s.z).max() <= radius * (1 + 1e-6)
        assert s.bounded
