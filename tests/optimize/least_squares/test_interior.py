import math

import pytest
import torch

from frechet.linalg._result import Status
from frechet.optimize._least_squares.affine_scaling import SCALINGS
from frechet.optimize._least_squares.damped_step import column_scale
from frechet.optimize._least_squares.interior import interior
from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._least_squares.optimality import Rules, judged
from frechet.optimize._least_squares.residual import Residual
from frechet.optimize._least_squares.start import begin, first_linearization
from frechet.space import euclidean
from more_garbow_hillstrom import PROBLEMS, numbers
from nist import load

BOUNDED = [p for p in PROBLEMS if p.lower is not None]


def near(value, wanted):
    return abs(value - wanted) <= 1e-4 * (wanted if wanted > 0 else 1.0)


@pytest.mark.parametrize("factor", [1, 10])
@pytest.mark.parametrize("problem", BOUNDED, ids=lambda p: p.name)
def test_known_minima_between_bounds(problem, factor):
    def residual(x):
        assert bool((x >= problem.lower).all())
        assert bool((x <= problem.upper).all())
        return problem.residual(x)

    s = least_squares(residual, factor * problem.start, bounds=(problem.lower, problem.upper), method="interior")
    assert s.converged, s.message
    assert near(2 * s.cost, problem.bounded_minimum)


@pytest.mark.parametrize("scaling", [*SCALINGS, "combined"])
@pytest.mark.parametrize("name", ["box", "wood", "biggs"])
def test_every_scaling(scaling, name):
    problem = next(p for p in BOUNDED if p.name == name)
    x0 = problem.start
    residual = Residual(
        problem.residual, euclidean(len(x0), torch.float64), True, problem.lower, problem.upper, column_scale(x0.abs())
    )
    residual, start = begin(residual, x0)
    residual, linear = first_linearization(residual, start)
    rules = Rules(1e-15, 1e-15, 0.0, 2000, column_scale(x0.abs()))
    run = interior(residual, linear, rules, scaling=scaling)
    assert judged(residual, run.linear, rules).solved
    assert near(2 * run.linear.cost, problem.bounded_minimum)


def test_without_bounds_it_is_a_trust_region_method():
    regression = load("Thurber")
    s = least_squares(regression.residual, regression.starts[0], method="interior")
    assert s.converged
    assert regression.digits(s.x) > 10


def test_starts_on_the_sides_move_inwards_and_solutions_on_the_sides_are_exact():
    states = []
    s = least_squares(
        lambda x: torch.stack([x[0] + 1, x[1] - 0.25, x[0] * x[1]]),
        numbers(1.0, 0.0),
        bounds=(0.0, 1.0),
        method="interior",
        observe=lambda state: bool(states.append(state)),
    )
    assert bool(((states[0].x > 0) & (states[0].x < 1)).all())
    assert s.x.tolist() == [0.0, 0.25]
    assert s.active.tolist() == [-1, 0]


def test_stops_and_limits():
    regression = load("Thurber")
    s = least_squares(regression.residual, regression.starts[0], method="interior", max_evaluations=4)
    assert s.status is Status.MAX_ITERATIONS
    s = least_squares(regression.residual, regression.starts[0], method="interior", observe=lambda s: s.iteration == 2)
    assert (s.status, s.iterations) == (Status.STOPPED, 2)


def test_what_belongs_to_one_method_is_refused_for_another():
    def r(x):
        return x - 1

    x0 = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"eta must lie in \(0, 4\)"):
        least_squares(r, x0, method="adaptive-damping", eta=4.0)
    with pytest.raises(ValueError, match=r"method be 'adaptive-damping', got 1.5 and 'dogleg'"):
        least_squares(r, x0, method="dogleg", eta=1.5)


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.2, 2.0])
def test_the_exponent_of_the_damping_sets_the_order(eta):
    norms = []

    def r(x):
        return (x.square().sum() - 1)[None]

    least_squares(
        r, torch.tensor([2.0, 1.5], dtype=torch.float64), method="adaptive-damping", eta=eta,
        observe=lambda state: bool(norms.append(float(r(state.x).norm()))),
    )  # fmt: skip
    sizes = [n for n in norms if n > 1e-13]
    order = math.log(sizes[-1] / sizes[-2]) / math.log(sizes[-2] / sizes[-3])
    assert order > min(1 + eta, 2) - 0.25
