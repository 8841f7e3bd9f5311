"""Units of f and of constraints do not matter: neither to the answer, nor to the status, nor to the multipliers."""

import math

import pytest
import torch

from frechet import Constraint, minimize
from frechet.linalg.result import Status

F64 = torch.float64
X0 = torch.tensor([1.0, 5.0, 5.0, 1.0], dtype=F64)
BEST = 17.0140172891


def hs71(f_unit=1.0, product_unit=1.0, sphere_unit=1.0):
    """Problem 71 of Hock and Schittkowski, f and each constraint in a unit of its own."""
    rows = [
        Constraint(lambda x: product_unit * x.prod(), lower=25.0 * product_unit, upper=math.inf),
        lambda x: sphere_unit * (x @ x - 40.0),
    ]
    return minimize(lambda x: f_unit * (x[0] * x[3] * x[:3].sum() + x[2]), X0, constraints=rows, bounds=(1.0, 5.0))


def assert_same(s, f_unit, units):
    """The answer and the multipliers of the plain problem, in other units."""
    plain = hs71()
    assert s.converged
    assert s.value / f_unit == pytest.approx(BEST, rel=1e-8)
    assert torch.allclose(s.x, plain.x, rtol=1e-6)
    for y, expected, unit in zip(s.multipliers, plain.multipliers, units, strict=True):
        assert float(y) * unit / f_unit == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(s.bound_multipliers / f_unit, plain.bound_multipliers, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("unit", [1e-9, 1e-6, 1e-3, 1e3, 1e6, 1e8, 1e10, 1e12])
def test_units_of_f_do_not_matter(unit):
    assert_same(hs71(f_unit=unit), unit, (1.0, 1.0))


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("which", [0, 1])
def test_units_of_constraints_do_not_matter(which, unit):
    units = [1.0, 1.0]
    units[which] = unit
    assert_same(hs71(1.0, *units), 1.0, units)


def test_all_units_at_once():
    assert_same(hs71(1e8, 1e-4, 1e5), 1e8, (1e-4, 1e5))


def test_a_wrong_multiplier_is_seen_in_any_units():
    s = hs71(f_unit=1e6)
    broken = type(s)(**{**vars(s), "multipliers": tuple(2 * y for y in s.multipliers)})
    with pytest.raises(AssertionError):
        assert_same(broken, 1e6, (1.0, 1.0))


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_what_cannot_be_met_is_infeasible_in_any_units(unit):
    s = minimize(
        lambda x: unit * x.square().sum(),
        torch.ones(2, dtype=F64),
        constraints=[lambda x: unit * (x.square().sum() + 1)],
    )
    assert s.status is Status.INFEASIBLE


@pytest.mark.parametrize("unit", [1e-8, 1e8, 1e12])
def test_a_start_far_up_does_not_loosen_the_tolerances(unit):
    s = minimize(
        lambda x: unit * ((x - 1) ** 4).sum() + unit * ((x - 1) ** 2).sum(),
        torch.tensor([1e3, -2e3], dtype=F64),
        constraints=lambda x: x[:1] + x[1:2] - 3,
    )
    assert s.converged
    assert torch.allclose(s.x, torch.full((2,), 1.5, dtype=F64), rtol=1e-6)
