import math
import pickle
from itertools import pairwise

import pytest
import torch

from frechet import minimize
from frechet.linalg._result import Status
from frechet.optimize._smooth.newton_loop import Models, gain, limits, noise, polished, shown, solved
from smooth_problems import begun

X = torch.tensor([1e-3, -2e-3], dtype=torch.float64)


def quadratic(x):
    return 3 + (x[0] ** 2 + 4 * x[1] ** 2) / 2


def test_a_point_is_solved_by_its_gradient_or_by_what_a_newton_step_would_gain():
    f, point, rules = begun(quadratic, X, gtol=1.0)
    assert "gradient" in solved(point, Models(f, rules).at(point), rules)
    f, point, rules = begun(quadratic, X, ftol=1e-4)
    assert "would reduce f by 8.5e-06" in solved(point, Models(f, rules).at(point), rules)
    f, point, rules = begun(quadratic, X, ftol=1e-6)
    assert not solved(point, Models(f, rules).at(point), rules)
    f, point, rules = begun(lambda x: 3 - (x * x).sum(), X, ftol=1.0)
    assert not solved(point, Models(f, rules).at(point), rules)


def test_gains_below_rounding_are_taken_from_gradients():
    f, point, _ = begun(lambda x: 1e8 + quadratic(x), 1e-5 * X)
    s = -point.x
    gained, after = gain(f, point, f.at(point.x + s), s)
    assert after is not None
    assert gained == torch.tensor(float(quadratic(1e-5 * X) - 3)).item() or math.isclose(gained, 8.5e-16, rel_tol=1e-6)
    far, start, _ = begun(quadratic, torch.ones(2).double())
    gained, after = gain(far, start, far.at(torch.zeros(2).double()), -start.x)
    assert (gained, after) == (2.5, None)
    assert gain(far, start, far.at(torch.full((2,), math.nan).double()), X)[0] == -math.inf


def test_polishing_reaches_the_digits_that_values_cannot_show():
    def flat(x):
        return 1e3 + torch.cosh(x - 1).sum()

    f, point, rules = begun(flat, torch.full((2,), 1.0 + 1e-5, dtype=torch.float64))
    better, values = polished(f, point, Models(f, rules))
    assert len(values) >= 1
    assert values[-1] == better.value
    assert better.largest <= 1e-15
    assert (better.x - 1).abs().max() <= 1e-15


def test_noise_is_that_of_values_and_of_the_point():
    f, point, _ = begun(lambda x: 5 + 0 * x.sum(), X)
    assert noise(f, point) == 4 * 2.220446049250313e-16 * 5
    steep, start, _ = begun(lambda x: 1e6 * x.sum(), torch.tensor([1.0, -1.0]).double())
    assert noise(steep, start) == 4 * 2.220446049250313e-16 * 2e6


def test_models_keep_their_largest_scales_or_their_first():
    f, point, rules = begun(lambda x: (x**4).sum(), torch.tensor([1.0, 2.0]).double())
    largest, fixed = Models(f, rules), Models(f, rules, fixed=True)
    largest.at(point), fixed.at(point)
    near = f.differentiated(f.at(torch.full((2,), 0.1).double()))
    far = f.differentiated(f.at(torch.tensor([2.0, 1.0]).double()))
    torch.testing.assert_close(largest.at(near).weights, torch.tensor([12.0, 48.0]).double())
    torch.testing.assert_close(largest.at(far).weights, torch.tensor([48.0, 48.0]).double())
    torch.testing.assert_close(fixed.at(far).weights, torch.tensor([12.0, 48.0]).double())
    torch.testing.assert_close(fixed.at(near).weights, torch.tensor([12.0, 48.0]).double())
    direction, size = fixed.raised(torch.tensor([12.0, 48.0]).double())
    torch.testing.assert_close(direction, torch.ones(2).double())
    assert math.isclose(size, 60**0.5)


def test_a_hessian_that_is_not_finite_gives_the_model_without_curvature():
    f, point, rules = begun(lambda x: (x.abs() ** 1.5).sum() + x.sum(), torch.tensor([0.0, 1.0]).double())
    model = Models(f, rules).at(point)
    torch.testing.assert_close(model.vector(model.diagonal.within(2.0)), -2 * point.gradient / point.gradient.norm())


def test_limits_are_named():
    f, point, rules = begun(quadratic, X, max_iterations=3)
    assert limits(f, point, rules, 2) == (None, "")
    assert limits(f, point, rules, 3)[0] is Status.MAX_ITERATIONS
    far = f.differentiated(f.at(torch.full((2,), 1e16).double()))
    assert limits(f, far, rules, 0)[0] is Status.UNBOUNDED


def test_a_state_can_be_pickled():
    f, point, _ = begun(quadratic, X)
    state = pickle.loads(pickle.dumps(shown(f, point, 3, 0.5)))
    assert (state.iteration, state.control, state.evaluations) == (3, 0.5, 1)


@pytest.mark.parametrize("every", [1, 2, 7, 150])
@pytest.mark.parametrize("orders", [2, 6])
def test_where_f_bends_downwards_a_space_ends_before_its_basis_is_full(orders, every):
    n = 300
    weights = torch.logspace(0, orders, n, dtype=torch.float64)
    weights[::every] *= -1
    spent = []

    def f(x):
        return 0.5 * (weights * x * x).sum() + 1e-2 * (weights.abs() * x**4).sum()

    def observe(state):
        spent.append(state.products)
        return state.iteration == 2

    minimize(f, 1 / weights.abs(), observe=observe)  # all of the spectrum has the same slope
    assert max(after - before for before, after in pairwise(spent)) <= 100
