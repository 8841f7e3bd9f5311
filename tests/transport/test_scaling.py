import math

import torch

from frechet.transport._problem import checked, reduced
from frechet.transport._scaling import point, sweeps
from transport_problems import F64, problem


def reduced_problem(epsilon=0.05):
    cost, a, b = problem(20, 15)
    return reduced(checked("f", cost, a, b, epsilon))


def test_a_point_has_exact_rows_and_its_error_is_that_of_the_columns():
    p = reduced_problem()
    x = point(p, torch.zeros(15, dtype=F64), 0.05)
    P = torch.exp((x.f.unsqueeze(1) + x.g - p.cost) / 0.05) * torch.outer(p.a, p.b)
    assert torch.allclose(x.plan, P, atol=1e-15)
    assert torch.allclose(x.plan.sum(1), p.a, rtol=1e-14)
    assert x.error == float((x.plan.sum(0) - p.b).abs().sum())


def test_sweeps_by_products_are_sweeps_in_the_log_domain():
    p = reduced_problem()
    x = point(p, torch.zeros(15, dtype=F64), 0.05)
    y, count = sweeps(p, x, 0.0, 7, math.inf)
    assert count == 7
    g = x.g
    for _ in range(7):
        f = -0.05 * torch.logsumexp((g - p.cost) / 0.05 + p.b.log(), 1)
        g = -0.05 * torch.logsumexp((f.unsqueeze(1) - p.cost) / 0.05 + p.a.log().unsqueeze(1), 0)
    assert torch.allclose(y.g, g, atol=1e-14)


def test_columns_that_underflow_are_found_again():
    p = reduced_problem(1e-4)
    far = torch.zeros(15, dtype=F64)
    far[3] = -50.0  # half a million epsilon away
    x = point(p, far, 1e-4)
    assert bool((x.columns > 0).all())
    assert math.isfinite(x.error)


def test_sweeps_end_at_the_target_or_where_they_would_take_long():
    p = reduced_problem(0.003)
    x = point(p, torch.zeros(15, dtype=F64), 0.003)
    _, count = sweeps(p, x, 1e-10, 10_000, 50.0)
    assert count < 200
    y, _ = sweeps(p, x, 0.3, 10_000, math.inf)
    assert y.error <= 0.3
    assert sweeps(p, y, 1.0, 5, math.inf) == (y, 0)
