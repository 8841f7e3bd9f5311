"""Units of f and of constraints do not matter: neither to the answer, nor to the status, nor to the multipliers."""

import math

import pytest
import torch

from frechet import minimize
from frechet.linalg._result import Status
from frechet.optimize import Constraint

F64 = torch.float64
X0 = torch.tensor([1.0, 5.0, 5.0, 1.0], dtype=F64)
BEST = 17.0140172891


def hs71(f_unit=1.0, product_unit=1.0, sphere_unit=1.0, x_units=(1.0, 1.0, 1.0, 1.0)):
    """Problem 71 of Hock and Schittkowski, f, each constraint and each parameter in a unit of its own."""
    units = torch.tensor(x_units, dtype=F64)

    def f(z):
        x = z * units
        return f_unit * (x[0] * x[3] * x[:3].sum() + x[2])

    rows = [
        Constraint(lambda z: product_unit * (z * units).prod(), lower=25.0 * product_unit, upper=math.inf),
        lambda z: sphere_unit * ((z * units) @ (z * units) - 40.0),
    ]
    return minimize(f, X0 / units, constraints=rows, bounds=(1.0 / units, 5.0 / units))


def assert_same(s, f_unit, units, x_units=(1.0, 1.0, 1.0, 1.0)):
    """The answer and the multipliers of the plain problem, in other units."""
    plain, x_units = hs71(), torch.tensor(x_units, dtype=F64)
    assert s.converged
    assert s.value / f_unit == pytest.approx(BEST, rel=1e-8)
    assert torch.allclose(s.x * x_units, plain.x, rtol=1e-6)
    for y, expected, unit in zip(s.multipliers, plain.multipliers, units, strict=True):
        assert float(y) * unit / f_unit == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(s.bound_multipliers / f_unit / x_units, plain.bound_multipliers, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("unit", [1e-9, 1e-6, 1e-3, 1e3, 1e6, 1e8, 1e10, 1e12])
def test_units_of_f_do_not_matter(unit):
    assert_same(hs71(f_unit=unit), unit, (1.0, 1.0))


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("which", [0, 1])
def test_units_of_constraints_do_not_matter(which, unit):
    units = [1.0, 1.0]
    units[which] = unit
    assert_same(hs71(1.0, *units), 1.0, units)


PARAMETERS = [
    *((unit,) * 4 for unit in (1e-12, 1e-6, 1e-3, 1e3, 1e6, 1e9, 1e12)),
    (1e-6, 1.0, 1.0, 1.0),
    (1.0, 1e6, 1.0, 1e-6),
    (1e-6, 1e-3, 1e3, 1e6),
]


@pytest.mark.parametrize("f_unit", [1e-6, 1.0, 1e9])
@pytest.mark.parametrize("x_units", PARAMETERS)
def test_units_of_parameters_do_not_matter(x_units, f_unit):
    assert_same(hs71(f_unit, x_units=x_units), f_unit, (1.0, 1.0), x_units)


def test_all_units_at_once():
    assert_same(hs71(1e8, 1e-4, 1e5), 1e8, (1e-4, 1e5))
    assert_same(hs71(1e8, 1e-4, 1e5, PARAMETERS[-1]), 1e8, (1e-4, 1e5), PARAMETERS[-1])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s: {"multipliers": tuple(2 * y for y in s.multipliers)},
        lambda s: {"bound_multipliers": 1.01 * s.bound_multipliers},
        lambda s: {"x": s.x * (1 + 1e-5)},
        lambda s: {"value": s.value * (1 + 1e-7)},
        lambda s: {"status": Status.STAGNATED},
    ],
)
def test_a_wrong_result_is_seen_in_any_units(wrong):
    s = hs71(f_unit=1e6, x_units=PARAMETERS[1])
    broken = type(s)(**{**vars(s), **wrong(s)})
    with pytest.raises(AssertionError):
        assert_same(broken, 1e6, (1.0, 1.0), PARAMETERS[1])


@pytest.mark.parametrize("near", [1e-12, 1e-8, 1e-3, 0.0])
@pytest.mark.parametrize("far", [1.0, 1e4])
@pytest.mark.parametrize("method", ["composite", "augmented"])
def test_a_start_near_zero_is_no_unit(method, near, far):
    """Minimum of (x - 1)^2 + 4 (y - 2)^2 where x + y = 1: x = -0.6, y = 1.6."""
    s = minimize(
        lambda x: (x[0] - 1) ** 2 + 4 * (x[1] - 2) ** 2,
        torch.tensor([near, far], dtype=F64),
        constraints=lambda x: x[:1] + x[1:2] - 1,
        method=method,
    )
    assert s.converged
    assert s.x.tolist() == pytest.approx([-0.6, 1.6], rel=1e-7)


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1e6])
def test_what_is_watched_is_in_the_units_of_the_caller(unit):
    seen = []
    s = minimize(
        lambda x: (x / unit - 1).square().sum(),
        torch.full((2,), 3 * unit, dtype=F64),
        constraints=lambda x: (x[:1] - 2 * x[1:2]) / unit,
        observe=lambda state: seen.append(state.x) or False,
    )
    assert s.converged
    assert float(seen[0][0]) == pytest.approx(3 * unit)
    expected = torch.tensor([1.2, 0.6], dtype=F64)
    assert torch.allclose(s.x / unit, expected, rtol=1e-7)
    assert torch.allclose(s.gradient * unit, 2 * (expected - 1), rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_what_cannot_be_met_is_infeasible_in_any_units(unit):
    s = minimize(
        lambda x: unit * x.square().sum(),
        torch.ones(2, dtype=F64),
        constraints=[lambda x: unit * (x.square().sum() + 1)],
    )
    assert s.status is Status.INFEASIBLE


SHIFT = torch.tensor([1.0, 2.0], dtype=F64)
# f, its solution between the constraints, the error of x that gtol = 1e-8 of the size of f allows by its order
FAR = {
    "quartic and quadratic": (lambda x: ((x - SHIFT) ** 4).sum() + ((x - SHIFT) ** 2).sum(), [1.0, 2.0], 5e-8),
    "quadratic": (lambda x: ((x - SHIFT) ** 2).sum(), [1.0, 2.0], 5e-8),
    "quartic": (lambda x: ((x - SHIFT) ** 4).sum(), [1.0, 2.0], 1e-6),
    "exponentials": (lambda x: (x.exp() - x.new_tensor([3.0, 5.0])).square().sum(), [math.log(3), math.log(5)], 5e-8),
}
AROUND = {
    "plane": (lambda x: x[:1] + x[1:2] - 3, ("quartic and quadratic", "quadratic", "quartic")),
    "inactive": (Constraint(lambda x: x[:1] + x[1:2], lower=-100.0, upper=math.inf), tuple(FAR)),
    "ball": (Constraint(lambda x: x @ x, lower=-math.inf, upper=100.0), tuple(FAR)),
}


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e12])
@pytest.mark.parametrize("start", [3.0, 150.0, 1e8, 1e20])
@pytest.mark.parametrize(("around", "name"), [(a, n) for a, (_, names) in AROUND.items() for n in names])
def test_converged_means_the_minimum_from_any_start(around, name, start, unit):
    f, solution, accuracy = FAR[name]
    if name == "exponentials" and start > 200:
        return  # infinite there
    x0 = torch.tensor([start, -start if name != "exponentials" else start / 2], dtype=F64)
    s = minimize(lambda x: unit * f(x), x0, constraints=AROUND[around][0], max_iterations=300)
    assert s.converged or (s.status is Status.MAX_ITERATIONS and start > 1e6)
    if s.converged:
        assert s.x.tolist() == pytest.approx(solution, abs=accuracy)
