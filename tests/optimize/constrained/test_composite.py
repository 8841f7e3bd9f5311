import math

import pytest
import torch

import s2mpj
from frechet.optimize import Constraint
from frechet.optimize._constrained.constrained import constrained

INF = math.inf
# published minima: Hock and Schittkowski (1981), Test examples for nonlinear programming codes; Boggs and Tolle (1989)
EQUALITIES = {
    "HS6": 0.0, "HS7": -math.sqrt(3), "HS26": 0.0, "HS39": -1.0, "HS40": -0.25, "HS42": 13.8578643763, "HS46": 0.0,
    "HS56": -3.456, "HS77": 0.24150513, "HS78": -2.91970041, "HS79": 0.0787768209, "MARATOS": -1.0,
    "BT12": 6.18811881,
}  # fmt: skip
SIDES = {
    "HS10": -1.0, "HS11": -8.49846422, "HS12": -30.0, "HS14": 1.39346498, "HS21": -99.96, "HS22": 1.0,
    "HS29": -22.627417, "HS35": 1 / 9, "HS43": -44.0, "HS65": 0.9535288567, "HS71": 17.0140173, "HS76": -4.68181818,
    "HS83": -30665.5387,
}  # fmt: skip


def solved(name):
    p = s2mpj.problem(name)
    rows = [Constraint(p.equality)] if p.equalities else []
    rows += [Constraint(p.inequality, lower=-INF)] if p.inequalities else []
    return p, constrained(p.f, p.x0, rows, bounds=(p.lower, p.upper) if p.bounded else None)


@pytest.mark.parametrize("name", EQUALITIES)
def test_equality_problems_reach_their_published_minima(name):
    p, s = solved(name)
    assert s.converged
    assert s.value == pytest.approx(EQUALITIES[name], abs=1e-6)
    g, y = s.gradient, s.multipliers[0]
    x = s.x.clone().requires_grad_()
    (pulled,) = torch.autograd.grad(p.equality(x), x, y)
    assert float((g + pulled).abs().max()) <= 1e-8 * max(1.0, float(g.abs().max()))
    assert float(p.equality(s.x).abs().max()) <= 1e-8


@pytest.mark.parametrize("name", SIDES)
def test_problems_with_sides_reach_their_published_minima(name):
    p, s = solved(name)
    assert s.converged
    assert s.value == pytest.approx(SIDES[name], rel=1e-6, abs=1e-6)
    assert s.complementarity <= 1e-8
    assert float(p.inequality(s.x).clamp_min(0.0).max()) <= 1e-8 if p.inequalities else True
    assert bool(((s.x >= p.lower) & (s.x <= p.upper)).all())


def test_a_solution_without_multipliers_is_not_called_one():
    # at (1, 0) the gradients of the active sides are parallel (Hock and Schittkowski 13)
    s = constrained(
        lambda x: (x[0] - 2) ** 2 + x[1] ** 2,
        torch.tensor([0.5, 0.5], dtype=torch.float64),
        Constraint(lambda x: (1 - x[0]) ** 3 - x[1], 0.0, INF),
        bounds=(0.0, INF),
        max_iterations=100,
    )
    assert s.x.tolist() == pytest.approx([1.0, 0.0], abs=1e-2)
    assert not s.converged
    assert "multipliers grow without bound" in s.message


def test_large_problems_are_solved_by_products():
    n, m = 2000, 20
    w = torch.linspace(1, 2, n, dtype=torch.float64)
    groups = torch.arange(n) % m
    s = constrained(
        lambda x: 0.25 * (w * x**4).sum(),
        torch.full((n,), 0.5, dtype=torch.float64),
        lambda x: torch.zeros(m, dtype=x.dtype).index_add(0, groups, x) - 30.0,
    )
    assert s.converged
    assert s.products < 1000
    # w_i x_i^3 is the same within a group
    spread = [float((w * s.x**3)[groups == k].std()) for k in range(m)]
    assert max(spread) < 1e-8
