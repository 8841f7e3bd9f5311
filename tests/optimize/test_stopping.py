import math
from functools import partial

import pytest
import torch

from frechet.linalg._result import Status
from frechet.optimize import minimize, studies
from frechet.optimize._stopping import at_rounding, is_rounding, leads_on

STUDIES = {
    "stepsized": studies.stepsized_newton,
    "stepsized, greedy": partial(studies.stepsized_newton, rule="greedy"),
    "cubic": studies.cubic_newton,
}
METHODS = ["trust-region", "gradient-regularized", "projected-newton", *STUDIES]
C = torch.tensor([1.0, 2.0], dtype=torch.float64)
softplus = torch.nn.functional.softplus


def run(f, x0, method="trust-region", **options):
    start = torch.tensor(x0, dtype=torch.float64)
    if method in STUDIES:
        return STUDIES[method](f, start, **options)
    bounds = (-1e31, 1e31) if method == "projected-newton" else None
    return minimize(f, start, method=method, bounds=bounds, **options)


# f, where it has its only minimum, a start by its distance
CONVEX = {
    "quartic": (lambda x: ((x - C) ** 4).sum() + ((x - C) ** 2).sum(), C, lambda t: [t, -t]),
    "flat quartic": (lambda x: ((x - C) ** 4).sum(), C, lambda t: [t, -t]),
    "quartic at zero": (lambda x: (x**4).sum(), 0 * C, lambda t: [t, -t]),
    "sixth power": (lambda x: ((x - C) ** 6).sum(), C, lambda t: [t, 1.0]),
    "cubic growth": (lambda x: (x - C).abs().pow(3).sum() + x.square().sum() * 0, C, lambda t: [t, t]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [1.5, 1e4, 1e10, 1e30])
@pytest.mark.parametrize("name", CONVEX)
def test_converged_means_the_minimum_from_any_start(name, start, method):
    f, minimum, x0 = CONVEX[name]
    slow = method in ("cubic", "stepsized")  # which may need more steps, or none that they find
    s = run(f, x0(start), method, max_iterations=150 if slow else 1000)
    assert s.converged or slow
    if s.converged:
        assert float((s.x - minimum).abs().max()) <= 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [5.0, 40.0, 80.0, 170.0])
def test_exponentials_are_solved_from_where_they_are_huge(start, method):
    s = run(lambda x: (x.exp() - 2).square().sum() / 2, [start], method)
    assert s.converged
    assert float(s.x) == pytest.approx(math.log(2), rel=1e-12)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "projected-newton"])
@pytest.mark.parametrize("start", [20.0, 60.0, 300.0])
def test_a_flat_start_moves(start, method):
    s = run(lambda x: (softplus(x) + softplus(-x)).sum(), [start], method)
    assert s.converged
    assert float(s.x.abs()) <= 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [0.0, 5.0])
@pytest.mark.parametrize("gtol", [None, 1e-8])
def test_a_minimum_at_infinity_is_none(method, shift, gtol):
    x = torch.tensor([-2.0, -1.5, -1.0, 1.0, 1.2, 2.0], dtype=torch.float64)

    def separated(w):
        return shift + softplus(-x.sign() * (w[0] + w[1] * x)).sum()

    s = run(separated, [0.0, 0.0], method, gtol=gtol)
    assert s.status is Status.UNBOUNDED
    assert "x runs to infinity" in s.message


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [0.0, 2.0, 1e3, 1e8])
def test_a_minimum_with_a_value_is_solved_where_its_gradient_is_zero(start, method):
    s = run(lambda x: (x**2 + 5).square().sum() / 2, [start], method)
    assert s.converged
    assert float(s.x.abs()) <= 1e-7


# --- the tests themselves, with twins that must not pass --------------------------------------------------------------


def linear(noise=0.0):
    """y = x - 3 with errors of a fixed pattern."""
    return lambda x: x - 3 + noise * torch.cos(1e17 * x)


def norm(v):
    return float(v.norm())


def test_what_is_left_is_rounding_where_y_is_linear_far_beyond_the_step():
    y = linear(1e-9)
    x = torch.tensor([3.0 + 1e-10], dtype=torch.float64)
    left = torch.tensor([1e-9], dtype=torch.float64)
    assert is_rounding(y, norm, x, -left, left, -left)
    twins = {
        "a step that helps": (linear(0.0), torch.tensor([4.0], dtype=torch.float64), 1.0),
        "a jump": (lambda x: torch.where(x < 3.3, x + 2, x - 0.1), torch.tensor([3.3], dtype=torch.float64), 1.0),
        "a wrong derivative": (linear(1e-9), x, 10.0),
        "not finite": (lambda x: None, x, 1.0),
    }
    for name, (f, at, factor) in twins.items():
        value = f(at)
        value = left if value is None or name == "a wrong derivative" else value
        assert not is_rounding(f, norm, at, -value, value, -factor * value), name


def test_a_step_of_the_rounding_of_x_is_none():
    eps = torch.finfo(torch.float64).eps
    assert at_rounding(eps, 1.0, eps)
    assert not at_rounding(10 * eps, 1.0, eps)
    assert not at_rounding(1e-30, 0.0, eps)


def test_falling_for_ever_is_told_from_a_minimum_that_is_near():
    def slope(f):
        return lambda x: torch.func.grad(lambda x: f(x).sum())(x)

    falling = {"exp": (lambda x: torch.exp(-x), 40.0, 1.0), "1/x": (lambda x: 1 / x, 1e5, 5e4)}
    ending = {
        "quadratic": (lambda x: (x - 41) ** 2, 40.0, 1.0),
        "quartic": (lambda x: x**4, 1e-3, -1e-3 / 3),
        "exponential": (lambda x: (torch.exp(x) - 2) ** 2, 81.0, -0.5),
        "line": (lambda x: -x, 40.0, 1.0),
    }
    for expected, cases in ((True, falling), (False, ending)):
        for name, (f, at, p) in cases.items():
            x, y = torch.tensor([at], dtype=torch.float64), slope(f)
            assert leads_on(y, torch.dot, x, torch.tensor([p], dtype=torch.float64), y(x)) is expected, name


# --- histories --------------------------------------------------------------------------------------------------------


def double_well(x):
    """Minima of -100.317 near 3.165 in each entry, whatever the distance of the start."""
    return (x**4 - 20 * x**2 - 0.1 * x).sum()


@pytest.mark.parametrize("start", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("bounds", [None, (-1e11, 1e11)])
def test_a_start_far_up_does_not_make_a_large_gradient_small(start, bounds):
    x0 = torch.tensor([start, -start], dtype=torch.float64)
    s = minimize(double_well, x0, bounds=bounds).checked()
    assert s.value < -199
    assert s.residual <= 1e-6  # an error of 1e-9 of x
    assert s.iterations <= 200


def test_cubic_growth_too():
    s = minimize(lambda x: x.abs().pow(3).sum() - 20 * x.square().sum(), torch.full((3,), 1e12, dtype=torch.float64))
    assert s.converged
    assert s.x.tolist() == pytest.approx([40 / 3] * 3, rel=1e-10)


def test_a_tolerance_of_the_callers_is_taken_as_it_is():
    x0 = torch.full((2,), 1e8, dtype=torch.float64)
    s = minimize(double_well, x0, gtol=1e12)
    assert s.converged
    assert s.residual <= 1e12
    assert s.iterations < minimize(double_well, x0).iterations


def test_a_quadratic_is_solved_once():
    calls = []

    def f(x):
        calls.append(1)
        return 0.5 * (x - 3).square().sum()

    s = minimize(f, torch.full((4,), 1e9, dtype=torch.float64)).checked()
    assert s.iterations <= 5
    assert len(calls) <= 12


def test_rounding_in_float32_is_no_far_start():
    x0 = torch.tensor([-1.2, 1.0, -1.2, 1.0])
    plain = minimize(lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(), x0).checked()
    assert plain.evaluations <= 60
