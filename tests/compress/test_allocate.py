import itertools

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from frechet.compress import Sensitivity, _allocate, allocate_bits, pareto_front, plot_front

matplotlib.use("Agg")
F64 = torch.float64


def table_of(seed, layers=8, bits=(2, 4, 8), signed=False):
    g = torch.Generator().manual_seed(seed)
    loss = (
        torch.rand(layers, len(bits), generator=g, dtype=F64) * torch.tensor([1.0, 0.1, 0.01], dtype=F64)[: len(bits)]
    )
    loss = loss - 0.05 if signed else loss
    sizes = tuple(int(n) for n in torch.randint(1, 500, (layers,), generator=g))
    names = tuple(f"layer{i}" for i in range(layers))
    return Sensitivity(names, sizes, bits, loss, loss, loss, loss + 0.1, 0.0, "", 0)


def every_plan(table, losses=None):
    loss = table.predicted if losses is None else losses
    sizes = torch.tensor(table.sizes, dtype=F64)
    cost = sizes[:, None] * torch.tensor(table.bits, dtype=F64) / 8
    rows = range(len(table.names))
    for chosen in itertools.product(range(len(table.bits)), repeat=len(table.names)):
        yield (
            sum(float(cost[i, j]) for i, j in zip(rows, chosen, strict=True)),
            sum(float(loss[i, j]) for i, j in zip(rows, chosen, strict=True)),
            chosen,
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.26, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("signed", [False, True])
def test_the_plan_is_that_of_exhaustive_search(seed, share, signed):
    table = table_of(seed, signed=signed)
    budget = share * sum(table.sizes)
    best = min(f for c, f, _ in every_plan(table) if c <= budget)
    plan = allocate_bits(table, budget)
    assert plan.bytes <= budget
    assert plan.predicted == pytest.approx(best, abs=1e-12)
    assert plan.predicted == pytest.approx(
        sum(float(table.predicted[i, table.bits.index(b)]) for i, b in enumerate(plan.bits.values()))
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_integer_program_finds_the_same(seed, monkeypatch):
    table = table_of(seed)
    budget = 0.5 * sum(table.sizes)
    expected = allocate_bits(table, budget).predicted
    monkeypatch.setattr(_allocate, "MOST", 3)
    assert allocate_bits(table, budget).predicted == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="the front must have at most 3 plans"):
        pareto_front(table)


@pytest.mark.parametrize("seed", range(3))
def test_several_budgets_hold_at_once(seed):
    table = table_of(seed, layers=6)
    g = torch.Generator().manual_seed(seed)
    seconds = torch.rand(6, 3, generator=g, dtype=F64)
    budget, most = 0.6 * sum(table.sizes), 0.9 * float(seconds.mean()) * 6

    def fits(chosen):
        return sum(float(seconds[i, j]) for i, j in enumerate(chosen)) <= most

    best = min(f for c, f, chosen in every_plan(table) if c <= budget and fits(chosen))
    plan = allocate_bits(table, budget, limits=[(seconds, most)])
    assert plan.predicted == pytest.approx(best, abs=1e-9)
    assert plan.costs[0] <= budget
    assert plan.costs[1] <= most


@pytest.mark.parametrize("seed", range(4))
def test_the_front_has_all_plans_that_no_other_beats(seed):
    table = table_of(seed, layers=5, signed=seed % 2 == 1)
    plans = sorted(every_plan(table))
    expected, least = [], float("inf")
    for cost, loss, _ in plans:
        if loss < least - 1e-12:
            if expected and expected[-1][0] == cost:
                expected.pop()
            expected.append((cost, loss))
            least = loss
    front = pareto_front(table)
    assert [p.bytes for p in front] == pytest.approx([c for c, _ in expected])
    assert [p.predicted for p in front] == pytest.approx([f for _, f in expected])


def test_many_layers_take_a_moment():
    table = table_of(0, layers=80)
    plan = allocate_bits(table, 0.5 * sum(table.sizes))
    assert plan.bytes <= 0.5 * sum(table.sizes)
    other = allocate_bits(table, 0.5 * sum(table.sizes), losses="measured")
    assert other.bits == plan.bits  # a constant more for each layer


def test_wrong_arguments_are_named():
    table = table_of(0)
    with pytest.raises(ValueError, match="allocate_bits: a budget or limits must be given, got none"):
        allocate_bits(table)
    with pytest.raises(
        ValueError, match=r"allocate_bits: the budget must be at least .*, the cost of the fewest bits, got 1"
    ):
        allocate_bits(table, 1)
    with pytest.raises(ValueError, match=r"allocate_bits: costs must be finite of shape \(8, 3\), got \(2,\)"):
        allocate_bits(table, limits=[(torch.ones(2), 1.0)])
    bare = Sensitivity(
        table.names, table.sizes, table.bits, table.predicted, table.lower, table.upper, None, 0.0, "", 0
    )
    with pytest.raises(ValueError, match="losses must be 'predicted', or 'measured' of a table with measured=True"):
        allocate_bits(bare, 1e9, losses="measured")


def test_a_front_is_drawn():
    table = table_of(0, layers=3)
    front = pareto_front(table)
    figure, axes = plt.subplots()
    assert plot_front(front, axes, measured=[plan.predicted for plan in front]) is axes
    assert len(axes.lines) == 2
    assert list(axes.lines[0].get_xdata()) == [plan.bytes for plan in front]
    plt.close(figure)
    with pytest.raises(ValueError, match=r"plot_front: measured must have \d+ numbers, one for each plan, got 1"):
        plot_front(front, axes, measured=[0.0])
