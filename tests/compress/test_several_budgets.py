import itertools

import numpy as np
import pytest
import torch

from frechet.compress import Sensitivity, allocate_bits
from frechet.compress import _several_budgets as several

F64 = torch.float64


def table_of(seed, spread, layers=6):
    """Losses whose columns lie `spread` apart, and one weight far above all others."""
    g = torch.Generator().manual_seed(seed)
    loss = torch.rand(layers, 3, generator=g, dtype=F64) * torch.tensor(spread, dtype=F64)
    loss[0] *= 100
    sizes = tuple(int(n) for n in torch.randint(1, 500, (layers,), generator=g))
    seconds = torch.rand(layers, 3, generator=g, dtype=F64)
    return Sensitivity(
        tuple(map(str, range(layers))), sizes, (2, 4, 8), loss, loss, loss, None, 0.0, "", 0
    ), seconds  # fmt: skip


def best_of_all(table, limits):
    """The least loss of all plans that fit, by trying each; infinity where none does."""
    loss, best = table.predicted.numpy(), np.inf
    rows = np.arange(len(loss))
    for chosen in itertools.product(range(3), repeat=len(loss)):
        if all(float(cost.numpy()[rows, chosen].sum()) <= most for cost, most in limits):
            best = min(best, float(loss[rows, chosen].sum()))
    return best


def byte_costs(table):
    return torch.tensor(table.sizes, dtype=F64)[:, None] * torch.tensor(table.bits, dtype=F64) / 8


@pytest.mark.parametrize("spread", [(1.0, 0.1, 0.01), (10.0, 1e-5, 1e-7), (1e3, 1.0, 1e-9), (1e-9, 1e-10, 1e-11)])
@pytest.mark.parametrize("seed", range(5))
def test_small_losses_beside_large_ones_are_planned_exactly(seed, spread):
    table, seconds = table_of(seed, spread)
    limits = [(byte_costs(table), 0.7 * sum(table.sizes)), (seconds, 6 * float(seconds.mean()))]
    best = best_of_all(table, limits)
    if best == np.inf:
        with pytest.raises(ValueError, match="a plan must fit all budgets, got none"):
            allocate_bits(table, limits=limits)
        return
    plan = allocate_bits(table, limits=limits)
    assert plan.predicted == pytest.approx(best, rel=1e-12)
    assert all(c <= most for c, (_, most) in zip(plan.costs, limits, strict=True))


@pytest.mark.parametrize("less", [1e-9, 1e-7, 1e-5])
@pytest.mark.parametrize("seed", range(5))
def test_a_budget_a_little_below_the_cost_of_a_plan_is_kept(seed, less):
    table, seconds = table_of(seed, (1.0, 0.1, 0.01))
    first = allocate_bits(table, 0.7 * sum(table.sizes), limits=[(seconds, 6 * float(seconds.mean()))])
    limits = [(byte_costs(table), 0.7 * sum(table.sizes)), (seconds, first.costs[1] * (1 - less))]
    plan = allocate_bits(table, limits=limits)
    assert plan.costs[1] <= limits[1][1]
    assert plan.predicted == pytest.approx(best_of_all(table, limits), rel=1e-12)


def test_three_budgets_and_many_weights_leave_few_states():
    table, seconds = table_of(0, (1.0, 0.1, 0.01), layers=60)
    operations = torch.rand(60, 1, generator=torch.Generator().manual_seed(1), dtype=F64) * torch.tensor([2.0, 4, 8])
    limits = [(c, 0.9 * float(c.mean(1).sum())) for c in (byte_costs(table), seconds, operations)]
    plan = allocate_bits(table, limits=limits)
    assert all(c <= most for c, (_, most) in zip(plan.costs, limits, strict=True))
    relaxed = allocate_bits(table, limits=limits[:1])
    assert plan.predicted >= relaxed.predicted
    pairs = [(c.numpy(), most) for c, most in limits]
    assert several.within(table.predicted.numpy(), pairs, 20_000) == [table.bits.index(b) for b in plan.bits.values()]


def test_where_states_are_too_many_the_plan_of_the_program_is_returned():
    table, seconds = table_of(0, (1.0, 0.1, 0.01))
    limits = [(byte_costs(table).numpy(), 0.7 * sum(table.sizes)), (seconds.numpy(), 6 * float(seconds.mean()))]
    exact, known = (several.within(table.predicted.numpy(), limits, most) for most in (10**6, 0))
    rows = np.arange(6)
    assert table.predicted.numpy()[rows, known].sum() == pytest.approx(table.predicted.numpy()[rows, exact].sum())
    assert all(cost[rows, known].sum() <= most for cost, most in limits)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("budgets", [1, 2])
def test_losses_that_are_not_finite_are_refused(wrong, budgets):
    table, seconds = table_of(0, (1.0, 0.1, 0.01))
    table.predicted[2, 1] = wrong
    with pytest.raises(ValueError, match="the predicted losses must be finite, got NaN or infinity for '2'"):
        allocate_bits(table, 1e6, limits=[(seconds, 1e6)] * (budgets - 1))


def test_a_budget_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="the budget must be at least"):
        allocate_bits(table_of(0, (1.0, 0.1, 0.01))[0], float("nan"))
