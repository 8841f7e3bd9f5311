import math

import pytest
import torch

from frechet.optimize._constrained.active_set import on_active_set
from frechet.optimize._constrained.kkt import conditions
from frechet.optimize._constrained.program import Program
from frechet.space import euclidean
from spectra import F64

INF = math.inf


def boxed(f, c, low, high):
    sides = [torch.tensor(t, dtype=F64) for t in ((0.0, 0.0, 0.0), (INF, INF, INF), low, high)]
    return Program(f, (c,), euclidean(3, F64), True, *sides)


PROBLEM = boxed(lambda x: ((x - 2) ** 2).sum() + 10 * x[2], lambda x: (x @ x).reshape(1), (-INF,), (1.0,))


def test_a_point_on_the_central_path_goes_to_the_last_digits():
    p = PROBLEM
    start = p.point(torch.tensor([0.7070, 0.7071, 1e-4], dtype=F64))
    assert start is not None
    y, z = torch.tensor([1.8], dtype=F64), torch.tensor([0.0, 0.0, -6.0], dtype=F64)
    point, y, found = on_active_set(p, start, y, z, 1e-10, 1e-10)
    assert found.worst < 1e-12
    assert point.x.tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0.0], abs=1e-12)
    assert float(y) == pytest.approx(2 * 2**0.5 - 1)


def test_nothing_is_kept_that_is_worse():
    p = PROBLEM
    start = p.point(torch.tensor([0.2, 0.9, 0.5], dtype=F64))
    assert start is not None
    y, z = torch.tensor([5.0], dtype=F64), torch.tensor([-9.0, -9.0, -9.0], dtype=F64)
    before = conditions(p, start, y).worst
    assert on_active_set(p, start, y, z, 1e-10, 1e-10)[2].worst <= before


def test_a_wrong_sign_is_no_solution():
    # at (1, 0, 0) the row is active, but its multiplier would be negative: f falls towards the inside
    p = boxed(lambda x: (x**2).sum(), lambda x: x[:1], (-INF,), (1.0,))
    start = p.point(torch.tensor([1.0 - 1e-6, 1e-6, 1e-6], dtype=F64))
    assert start is not None
    y = torch.tensor([1.0], dtype=F64)
    _, _, found = on_active_set(p, start, y, torch.zeros(3, dtype=F64), 1e-10, 1e-10)
    assert found.worst > 0.1


@pytest.mark.parametrize("power", [1, 3])
def test_the_vertex_of_a_linear_program_is_met_exactly(power):
    p = boxed(lambda x: -x[0] - 0.5 * x[1] + x[2], lambda x: x[:2].sum().reshape(1), (-INF,), (1.0,))
    mu = 10.0**-power
    start = p.point(torch.tensor([1.0 - 2 * mu, mu, mu], dtype=F64))
    assert start is not None
    y, z = torch.tensor([1.0], dtype=F64), torch.tensor([0.0, -0.5, -1.0], dtype=F64)
    point, y, found = on_active_set(p, start, y, z, 1e-12, 1e-12)
    assert point.x.tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-14)
    assert y.tolist() == pytest.approx([1.0])
    assert found.worst < 1e-12
