import math

import pytest
import torch

from frechet.transport._certificate import gap, rounded, transport_bounds
from transport_problems import INF, assignment, masses, problem, uniform


def made(n=9, m=7, epsilon=0.1, seed=0):
    cost, a, b = problem(n, m, seed=seed)
    f, g = uniform(n, seed=seed + 7) / 3, uniform(m, seed=seed + 8) / 3
    E = (f.unsqueeze(1) + g - cost) / epsilon + a.log().unsqueeze(1) + b.log()
    return cost, a, b, f, g, E


@pytest.mark.parametrize("seed", range(5))
def test_the_rounded_plan_has_the_marginals(seed):
    _, a, b, _, _, E = made(seed=seed)
    x, y, added = rounded(E.exp(), a, b)
    Q = E.exp() * x.unsqueeze(1) * y + added
    assert bool((Q >= 0).all())
    assert torch.allclose(Q.sum(1), a, atol=1e-15)
    assert torch.allclose(Q.sum(0), b, atol=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_the_gap_is_the_primal_minus_the_dual_value(seed):
    cost, a, b, f, g, E = made(seed=seed)
    P = E.exp()
    x, y, added = rounded(P, a, b)
    Q = P * x.unsqueeze(1) * y + added
    primal = float((Q * cost).sum() + 0.1 * torch.xlogy(Q, Q / torch.outer(a, b)).sum())
    dual = float(a @ f + b @ g - 0.1 * (P.sum() - 1))
    assert gap(P, E, a, b, 0.1, cost) == pytest.approx(primal - dual, rel=1e-10)


def test_tiny_gaps_have_digits():
    cost, a, _, _, _, _ = made(6, 6)
    P = torch.diag(a)
    E = P.log()
    away = P.clone()
    away[0, 0] *= 1 + 1e-9
    E = away.log()
    found = gap(away, E, a, a, 1.0, cost)
    assert found == pytest.approx(float(a[0]) * 0.5e-18, rel=1e-6, abs=0)


def test_a_forbidden_pair_leaves_no_certificate():
    cost, a, b, _, _, E = made()
    cost[:, 0] = INF
    cost[0, 0] = 0.0
    E = torch.where(torch.isinf(cost), -INF, E)
    assert gap(E.exp(), E, a, b, 0.1, cost) == INF


def test_underflowed_entries_are_paid_for():
    cost, a, b = torch.zeros(2, 2, dtype=torch.float64), masses(2), masses(2, 1)
    E = torch.tensor([[math.log(a[0]), -2000.0], [-2000.0, math.log(a[1])]], dtype=torch.float64)
    found = gap(E.exp(), E, a, b, 1.0, cost)
    moved = abs(float(a[0] - b[0]))
    assert 2000 * moved * 0.9 < found < 2000 * moved * 1.1


def test_bounds_hold_for_any_potentials():
    cost = uniform(15, 15)
    u = torch.full((15,), 1 / 15, dtype=torch.float64)
    for seed in range(5):
        f = uniform(15, seed=seed)
        P = torch.exp(5 * (f.unsqueeze(1) - cost)) / 100
        lower, upper = transport_bounds(P, f, u, u, cost)
        assert lower <= assignment(cost) <= upper
