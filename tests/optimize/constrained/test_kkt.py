import math

import pytest
import torch

from frechet.optimize._constrained.kkt import conditions, stationary_violation, violation
from frechet.optimize._constrained.program import Program
from frechet.space import euclidean
from spectra import F64

INF = math.inf


def program(f, c, *, low, high, lower=(-INF, -INF), upper=(INF, INF)):
    sides = [torch.tensor(t, dtype=F64) for t in (lower, upper, low, high)]
    return Program(f, (c,), euclidean(2, F64), True, *sides)


def at(p, *x):
    found = p.point(torch.tensor(x, dtype=F64))
    assert found is not None
    return found


QUADRATIC = program(lambda x: (x**2).sum(), lambda x: x.sum().reshape(1), low=(2.0,), high=(INF,))


def test_all_three_vanish_at_a_solution_and_each_is_seen_when_it_does_not():
    p = QUADRATIC
    right = torch.tensor([-2.0], dtype=F64)
    solved = conditions(p, at(p, 1.0, 1.0), right)
    assert (solved.residual, solved.infeasibility, solved.complementarity) == (0.0, 0.0, 0.0)
    assert conditions(p, at(p, 1.0, 1.0), right * 1.5).residual == pytest.approx(1.0)
    assert conditions(p, at(p, 0.5, 0.5), right).infeasibility == pytest.approx(1.0)
    assert conditions(p, at(p, 2.0, 1.0), right).complementarity == pytest.approx(2.0)


def test_a_multiplier_of_the_sign_of_an_open_side_is_set_to_zero():
    assert conditions(QUADRATIC, at(QUADRATIC, 1.0, 1.0), torch.tensor([3.0], dtype=F64)).y.tolist() == [0.0]


def test_bound_multipliers_are_neither_bought_by_residual_nor_by_complementarity():
    p = program(lambda x: x.sum(), lambda x: x[:0], low=(), high=(), lower=(0.0, 0.0))
    near = conditions(p, at(p, 1e-9, 0.0), torch.zeros(0, dtype=F64))
    assert near.z.tolist() == pytest.approx([-1.0, -1.0])
    assert near.residual == pytest.approx(1e-9)
    assert near.complementarity == pytest.approx(1e-9)
    far = conditions(p, at(p, 100.0, 0.0), torch.zeros(0, dtype=F64))
    assert min(far.residual, far.complementarity) > 0.9


def test_measures_do_not_depend_on_the_units_of_the_algorithm():
    units = torch.tensor([7.0], dtype=F64)
    scaled = QUADRATIC.scaled(3.0, units)
    y = torch.tensor([-1.7], dtype=F64)
    one, other = (
        conditions(QUADRATIC, at(QUADRATIC, 0.3, 0.9), y),
        conditions(scaled, at(scaled, 0.3, 0.9), y * units / 3),
    )
    for name in ("residual", "infeasibility", "complementarity", "size"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-12)
    assert torch.allclose(one.y, other.y)


def test_a_violation_is_stationary_only_where_no_direction_inside_the_bounds_reduces_it():
    p = program(lambda x: x.sum(), lambda x: (x @ x + 1).reshape(1), low=(0.0,), high=(0.0,))
    assert stationary_violation(p, at(p, 0.0, 0.0), 1e-6)
    assert not stationary_violation(p, at(p, 0.1, 0.0), 1e-6)
    boxed = program(lambda x: x.sum(), lambda x: x.sum().reshape(1), low=(3.0,), high=(3.0,), upper=(1.0, 1.0))
    assert stationary_violation(boxed, at(boxed, 1.0, 1.0), 1e-6)
    assert not stationary_violation(boxed, at(boxed, 1.0, 0.0), 1e-6)
    assert violation(boxed, at(boxed, 1.0, 0.0).x, at(boxed, 1.0, 0.0).c).tolist() == [-2.0]
