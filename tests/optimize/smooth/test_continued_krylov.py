import math
from functools import partial

import pytest
import torch

from frechet import from_matrix, minimize
from frechet.optimize._smooth.newton_loop import NEWTON
from frechet.optimize._smooth.quadratic_model import Diagonal, krylov_model
from frechet.space import euclidean

N = 60


def spread(condition, seed=0, lowest=1.0):
    """A symmetric matrix with eigenvalues from `lowest` to `condition`, evenly in their logarithms."""
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(N, N, generator=g, dtype=torch.float64))[0]
    values = torch.logspace(0, math.log10(condition), N, dtype=torch.float64)
    values[0] = lowest
    A = (Q * values) @ Q.T
    return 0.5 * (A + A.T)


def preconditioner(seed=5):
    g = torch.Generator().manual_seed(seed)
    M = torch.randn(N, N, generator=g, dtype=torch.float64)
    return M @ M.T / N + torch.eye(N, dtype=torch.float64)


def model_of(A, *, most, beyond=4 * N, P=None, seed=9, unit=1.0):
    space = euclidean(N, torch.float64)
    g = unit * torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inverse = None if P is None else from_matrix(P, domain=space, facts="positive_definite")
    H = from_matrix(A, domain=space, facts="symmetric")
    return krylov_model(space, H, g, preconditioner=inverse, most=most, beyond=beyond), g


@pytest.mark.parametrize("P", [None, preconditioner()])
@pytest.mark.parametrize("most", [1, 2, 7, 30])
def test_a_step_beyond_the_basis_solves_the_system(most, P):
    A = spread(1e4)
    model, g = model_of(A, most=most, P=P)
    step = model.solved(NEWTON, 1e-9 * model.size, radius=math.inf)
    x = -torch.linalg.solve(A, g)
    s = model.vector(step)
    assert step.residual <= 1e-9 * model.size
    assert (s - x).norm() <= 1e-6 * x.norm()
    assert step.decrease == pytest.approx(float(-(g @ s + 0.5 * s @ A @ s)), rel=1e-9)
    B = torch.eye(N, dtype=torch.float64) if P is None else torch.linalg.inv(P)
    assert step.length == pytest.approx(math.sqrt(float(s @ B @ s)), rel=1e-8)


@pytest.mark.parametrize("most", [1, 3, 10])
@pytest.mark.parametrize("dimensions", [12, 15, 20])
def test_the_step_is_that_of_a_longer_basis(dimensions, most):
    A = spread(1e2)
    short, _ = model_of(A, most=most, beyond=dimensions - most)
    long, _ = model_of(A, most=dimensions, beyond=0)
    s = short.vector(short.solved(NEWTON, 0.0, radius=math.inf))
    expected = long.vector(long.solved(NEWTON, 0.0))
    torch.testing.assert_close(s, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.3, 40.0])
@pytest.mark.parametrize("P", [None, preconditioner()])
def test_a_shifted_step_beyond_the_basis(sigma, P):
    A = spread(1e4)
    model, g = model_of(A, most=5, P=P)
    step = model.solved(partial(Diagonal.shifted, sigma=sigma), 1e-10 * model.size, radius=math.inf)
    B = torch.eye(N, dtype=torch.float64) if P is None else torch.linalg.inv(P)
    expected = -torch.linalg.solve(A + sigma * B, g)
    s = model.vector(step)
    assert (s - expected).norm() <= 1e-7 * expected.norm()
    assert step.decrease == pytest.approx(float(-(g @ s + 0.5 * s @ A @ s)), rel=1e-8)


@pytest.mark.parametrize("P", [None, preconditioner()])
@pytest.mark.parametrize("lowest", [1.0, -0.5])
def test_steps_end_at_the_radius_and_smaller_radii_cost_no_products(lowest, P):
    A = spread(1e4, lowest=lowest)
    model, g = model_of(A, most=6, P=P)
    B = torch.eye(N, dtype=torch.float64) if P is None else torch.linalg.inv(P)
    whole = model.solved(NEWTON, 0.0, radius=1e9) if lowest < 0 else model.solved(NEWTON, 1e-9, radius=1e9)
    steps, decreases = [], []
    spent = model.beyond_basis.steps
    inside = model_of(A, most=6, beyond=0, P=P)[0].solved(NEWTON, 0.0).length
    for part in (0.9, 0.5, 0.1):
        radius = inside + part * (min(whole.length, 100 * inside) - inside)
        step = model.solved(partial(Diagonal.within, radius=radius), 1e-9, radius=radius)
        s = model.vector(step)
        assert step.bounded
        assert math.sqrt(float(s @ B @ s)) == pytest.approx(radius, rel=1e-7)
        assert step.decrease == pytest.approx(float(-(g @ s + 0.5 * s @ A @ s)), rel=1e-7)
        decreases.append(step.decrease)
        steps.append(model.beyond_basis.steps)
    assert decreases == sorted(decreases, reverse=True)
    assert set(steps) == {spent}
    assert whole.decrease >= decreases[0]


@pytest.mark.parametrize("unit", [1e-160, 1e-150, 1e-140, 1e-100, 1e100, 1e140])
def test_squares_out_of_range_end_the_way(unit):
    model, _ = model_of(spread(1e4), most=5, unit=unit)
    step = model.solved(NEWTON, 1e-9 * model.size, radius=math.inf)
    assert model.vector(step).isfinite().all()
    assert step.decrease >= 0


def test_a_direction_that_bends_downwards_is_no_newton_step():
    A = spread(1e4, lowest=-0.01)
    model, _ = model_of(A, most=4)
    step = model.solved(NEWTON, 1e-12, radius=math.inf)
    assert step.indefinite
    assert model.diagonal.values[0] > 0  # the basis has not seen it


@pytest.mark.parametrize("most", [5, 40])
@pytest.mark.parametrize("bounds", [None, (-10.0, 10.0)])
def test_minimize_solves_an_ill_conditioned_function_whatever_vectors_it_may_keep(most, bounds):
    n = 120
    weights = torch.logspace(0, 4, n, dtype=torch.float64)
    shift = torch.linspace(-1, 1, n, dtype=torch.float64)

    def f(x):
        y = x - shift
        y = y + 0.5 * y.roll(1)  # no diagonal Hessian
        return (weights * y * y).sum() + (y**4).sum()

    s = minimize(f, torch.zeros(n, dtype=torch.float64), max_basis=most, bounds=bounds)
    assert s.converged
    torch.testing.assert_close(s.x, shift, rtol=0, atol=1e-5)
    assert s.iterations <= 40
