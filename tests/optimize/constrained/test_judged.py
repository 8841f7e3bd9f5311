"""Results are judged by sizes at their end: zeros of a solution and zeros of a start are no sizes."""

import math

import pytest
import torch

import s2mpj
from frechet import minimize
from frechet.linalg._result import Status
from frechet.optimize import Constraint

F64 = torch.float64
INF = math.inf


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("steep", [1.0, 10.0])
def test_a_solution_with_a_zero_is_found_once(unit, steep):
    """The least largest residual is 0: with it falls a parameter that f consists of, to rounding."""

    def sides(x):
        r = torch.stack([steep * (x[1] - x[0] ** 2 / unit), unit - x[0]])
        return torch.cat([r - x[2], -r - x[2]])

    x0 = torch.tensor([-1.2, 1.0, 1.0], dtype=F64) * unit
    s = minimize(lambda x: x[2], x0, constraints=Constraint(sides, -INF, 0.0), max_iterations=80)
    assert s.converged
    assert torch.allclose(s.x / unit, torch.tensor([1.0, 1.0, 0.0], dtype=F64), atol=1e-7)


@pytest.mark.parametrize("power", [1.5, 1.85, 2.0])
def test_a_parameter_at_a_side_that_is_zero_has_no_size(power):
    """f is flat in it there, and its value is whatever the barrier left."""
    weights = torch.tensor([1.0, 50.0, 300.0, 20.0], dtype=F64)
    x0 = torch.tensor([100.0, 1.0, 30.0, 5.0], dtype=F64)
    s = minimize(
        lambda x: (weights * x**power).sum(),
        x0,
        constraints=[lambda x: x[0] + x[1] - 200.0, lambda x: x[2] - x[3]],
        bounds=(0.0, INF),
        max_iterations=150,
    )
    assert s.converged
    assert float(s.x[2:].max()) < 1e-2


@pytest.mark.parametrize("tiny", [1e-30, 1e-12, 0.0])
def test_a_start_of_zeros_is_no_size(tiny):
    n = 6
    x0 = torch.full((n,), tiny, dtype=F64)
    s = minimize(
        lambda x: -(x + 1e-3).log().sum() + (x * torch.arange(n)).sum(),
        x0,
        constraints=lambda x: x.sum() - 5.0,
        bounds=(0.0, INF),
        max_iterations=60,
    )
    plain = minimize(
        lambda x: -(x + 1e-3).log().sum() + (x * torch.arange(n)).sum(),
        torch.full((n,), 0.7, dtype=F64),
        constraints=lambda x: x.sum() - 5.0,
        bounds=(0.0, INF),
    )
    assert s.converged
    assert torch.allclose(s.x, plain.x, atol=1e-6)


@pytest.mark.parametrize("tiny", [1e-30, 1e-14])
@pytest.mark.parametrize("factors", [2, 3])
def test_variables_defined_by_products_of_zeros_have_no_size_either(tiny, factors):
    """At zero the linearized rows u = x_0 x_1 .. say that u is zero, not that it stays as small as its start."""
    n = 6
    target = torch.linspace(0.5, 1.5, n, dtype=F64)

    def product(x):
        return torch.stack([x[:n].roll(i)[:factors].prod() for i in range(n)])

    s = minimize(
        lambda x: ((x[:n] - target) ** 2).sum() - x[n:].sum(),
        torch.full((2 * n,), tiny, dtype=F64),
        constraints=[lambda x: x[n:] - product(x), lambda x: x[:n].sum() - 5.0],
        bounds=(0.0, INF),
        max_iterations=60,
    )
    assert s.converged, s.message
    assert s.infeasibility < 1e-8


def test_a_row_far_from_its_side_does_not_shorten_steps():
    """Hock and Schittkowski 109: two rows are 2e6 from their sides, and curved."""
    p = s2mpj.problem("HS109")
    rows = [p.equality, Constraint(p.inequality, -INF, 0.0)]
    s = minimize(p.f, p.x0, constraints=rows, bounds=(p.lower, p.upper), max_iterations=60)
    assert s.converged
    assert s.value == pytest.approx(5362.06918111, rel=1e-9)


def test_infeasible_rows_are_named_and_the_point_is_shown_in_its_own_variables():
    shapes = set()
    s = minimize(
        lambda x: x.sum() * 0,
        torch.tensor([-2.0, 1.0], dtype=F64),
        constraints=lambda x: torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]),
        bounds=(torch.tensor([-INF, 1.5], dtype=F64), INF),
        max_iterations=300,
        observe=lambda state: bool(shapes.add(tuple(state.x.shape))),
    )
    assert s.status is Status.INFEASIBLE
    assert shapes == {(2,)}


# a point in a narrow valley is no solution: the Hessian is large there, and the gradient small beside it


def chain(c, bend):
    return lambda x: ((x[:-1] - 1) ** 2).sum() + c * ((x[1:] - bend(x[:-1])) ** 2).sum()


BENDS = {"square": torch.square, "cube": lambda x: x**3}


@pytest.mark.parametrize("bounds", [False, True])
@pytest.mark.parametrize(
    ("bend", "c", "n"),
    [("square", 1e4, 6), ("square", 1e6, 2), ("square", 1e6, 6), ("square", 1e8, 6), ("cube", 1e4, 2)],
)
def test_converged_is_said_at_the_end_of_a_valley_alone(bend, c, n, bounds):
    f, x0 = chain(c, BENDS[bend]), torch.full((n,), -1.2, dtype=F64)
    rows = Constraint(lambda x: x.sum(), -math.inf, 100.0)
    s = minimize(f, x0, constraints=rows, bounds=(-10.0, 10.0) if bounds else None)
    far = float((s.x - 1).abs().max())
    assert (s.status.value == "converged") == (far < 1e-6), (s.status, far, s.residual)


@pytest.mark.parametrize("unit", [1e-6, 1e6, 1e12])
@pytest.mark.parametrize("power", [2, 4])
def test_units_of_f_with_a_gradient_that_vanishes_at_the_solution(unit, power):
    a = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    s = minimize(
        lambda x: unit * (((x - a) ** power).sum() + (x[0] * x[1] - 2) ** 2),
        torch.zeros(3, dtype=F64) + 0.5,
        constraints=lambda x: x[0] + x[1] + x[2] - 6.0,
    )
    assert s.status.value == "converged", s.message
    assert float((s.x - a).abs().max()) < (1e-6 if power == 2 else 2e-2)
