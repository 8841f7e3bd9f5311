import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from frechet.errors import NonFinite, NotConverged
from frechet.linalg._result import Status
from frechet.transport._cardinality import sparse_transport
from transport_problems import F64, INF, assignment, masses, problem, uniform

# by POT 0.9.7, ot.smooth.smooth_ot_semi_dual(a, b, C, 0.1, reg_type="sparsity_constrained", max_nz=5)
POT = [
    (0, 2, 0.04833895), (1, 0, 0.03959283), (1, 3, 0.05781981), (2, 2, 0.07645952), (2, 3, 0.0238639),
    (3, 2, 0.01601644), (3, 4, 0.06715284), (4, 0, 0.19691397), (5, 2, 0.04715929), (5, 3, 0.01570373),
    (6, 4, 0.16835385), (7, 1, 0.04576807), (7, 3, 0.0514255), (7, 5, 0.14543129),
]  # fmt: skip


def objective(T, cost, gamma):
    return float((T * cost).sum() + gamma / 2 * (T * T).sum())


def by_enumeration(cost, a, b, k, gamma):
    """The least objective over all supports of k entries per column that carry a plan."""
    n, m = cost.shape
    best, sums = INF, torch.cat([a, b[:-1]]).numpy()  # the last sum follows from the others
    for supports in itertools.product(itertools.combinations(range(n), k), repeat=m):
        at = [(i, j) for j, rows in enumerate(supports) for i in rows]
        A = np.array([[float(r in (i, n + j)) for i, j in at] for r in range(n + m - 1)])
        c = np.array([float(cost[i, j]) for i, j in at])
        feasible = linprog(c, A_eq=A, b_eq=sums)
        if feasible.status == 0:
            best = min(best, least(c, A, sums, feasible.x, gamma))
    return best


def least(c, A, sums, start, gamma):
    """min c't + gamma/2 |t|^2 over t >= 0 with A t = sums."""
    found = minimize(
        lambda t: c @ t + gamma / 2 * t @ t,
        start,
        jac=lambda t: c + gamma * t,
        bounds=[(0, None)] * len(c),
        constraints={"type": "eq", "fun": lambda t: A @ t - sums, "jac": lambda t: A},
        method="SLSQP",
        options={"ftol": 1e-15},
    )
    assert found.success
    return found.fun


def test_it_is_the_plan_that_pot_finds():
    cost, a, b = problem(8, 6)
    s = sparse_transport(cost, a, b, cardinality=5, gamma=0.1).checked()
    expected = torch.zeros(8, 6, dtype=F64)
    for i, j, t in POT:
        expected[i, j] = t
    assert torch.allclose(s.plan, expected, atol=2e-8)
    assert torch.equal(s.plan > 0, expected > 0)


@pytest.mark.parametrize(
    ("n", "m", "k", "gamma"), [(8, 6, 5, 0.1), (40, 30, 5, 1.0), (40, 30, 40, 10.0), (1, 3, 1, 1.0)]
)
def test_a_converged_plan_is_feasible_and_optimal(n, m, k, gamma):
    cost, a, b = problem(n, m)
    s = sparse_transport(cost, a, b, cardinality=k, gamma=gamma).checked()
    assert bool((s.plan >= 0).all())
    assert int((s.plan > 0).sum(0).max()) <= k
    assert torch.allclose(s.plan.sum(0), b, atol=1e-15)
    assert float((s.plan.sum(1) - a).abs().sum()) == pytest.approx(s.marginal_error, abs=1e-16)
    assert s.marginal_error < 2e-12
    assert s.objective == pytest.approx(objective(s.plan, cost, gamma), rel=1e-13)
    assert s.gap == pytest.approx(0, abs=1e-12)
    # the plan is what the dual problem's optimality says
    S = s.alpha.unsqueeze(1) + s.beta - cost
    assert torch.allclose(s.plan, S.clamp(min=0).where(s.plan > 0, torch.zeros(())) / gamma, atol=1e-11)


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_small_problems_by_enumeration(seed):
    cost, a, b = problem(4, 3, seed)
    s = sparse_transport(cost, a, b, cardinality=3, gamma=0.5).checked()
    assert s.objective == pytest.approx(by_enumeration(cost, a, b, 3, 0.5), abs=1e-8)
    # two nonzeros: the dual maximum lies at ties; its value is a bound still
    tied = sparse_transport(cost, a, b, cardinality=2, gamma=2.0)
    assert tied.status is Status.STAGNATED
    assert tied.ties > 0
    assert tied.marginal_error < 1e-11
    assert tied.objective >= by_enumeration(cost, a, b, 2, 2.0) - 1e-8
    assert tied.message.startswith(f"the 2-th and the next entry are tied in {tied.ties} columns")
    assert tied.dual_value <= by_enumeration(cost, a, b, 2, 2.0) + 1e-9
    with pytest.raises(NotConverged, match=r"sparse_transport: the 2-th and the next entry .* \(status 'stagnated'"):
        tied.checked()


def test_the_dual_value_is_a_bound_for_every_feasible_plan():
    cost, a, b = problem(12, 10)
    for k in (1, 2, 3, 12):
        s = sparse_transport(cost, a, b, cardinality=k, gamma=0.2)
        best = sparse_transport(cost, a, b, cardinality=4, gamma=0.2).checked()
        if k >= 4:
            assert s.dual_value <= best.objective + 1e-12
        else:  # fewer nonzeros cost more
            assert s.dual_value >= best.dual_value - 1e-12


def test_an_assignment_has_one_nonzero_per_column():
    cost = uniform(12, 12)
    s = sparse_transport(cost, cardinality=1, gamma=1e-3)
    full = sparse_transport(cost, cardinality=12, gamma=1e-3).checked()
    assert s.value == pytest.approx(assignment(cost), abs=1e-9) or s.status is Status.STAGNATED
    assert full.value == pytest.approx(assignment(cost), abs=1e-3)
    assert s.dual_value <= assignment(cost) + 1e-3 / 2 / 12 + 1e-12


def test_a_large_gamma_spreads_and_units_do_not_matter():
    cost, a, b = problem(6, 5)
    s = sparse_transport(cost, a, b, cardinality=6, gamma=0.3).checked()
    t = sparse_transport(1e3 * cost, 2 * a, 2 * b, cardinality=6, gamma=0.15e3, rtol=1e-11).checked()
    assert torch.allclose(t.plan, 2 * s.plan, atol=1e-9)
    uniform_plan = sparse_transport(cost, cardinality=6, gamma=1e6).checked().plan
    assert torch.allclose(uniform_plan, torch.full((6, 5), 1 / 30, dtype=F64), atol=1e-5)


def test_rows_and_columns_without_mass():
    cost, a, b = problem(8, 6)
    a[2], b[3] = 0.0, 0.0
    a, b = a / a.sum(), b / b.sum()
    s = sparse_transport(cost, a, b, cardinality=7, gamma=0.3).checked()
    assert float(s.plan[2].sum() + s.plan[:, 3].sum()) == 0
    assert s.alpha[2] == -INF
    rows, columns = [0, 1, 3, 4, 5, 6, 7], [0, 1, 2, 4, 5]
    t = sparse_transport(cost[rows][:, columns], a[rows], b[columns], cardinality=7, gamma=0.3)
    assert torch.allclose(s.plan[rows][:, columns], t.plan, atol=1e-11)


def test_it_can_be_watched_stopped_and_limited():
    cost, a, b = problem(40, 30)
    seen = []
    s = sparse_transport(cost, a, b, cardinality=5, gamma=0.1, observe=lambda x: seen.append(x) or x.iteration == 4)
    assert s.status is Status.STOPPED
    assert [x.iteration for x in seen] == [1, 2, 3, 4]
    assert math.isfinite(seen[-1].dual_value)
    limited = sparse_transport(cost, a, b, cardinality=5, gamma=0.1, max_iterations=3)
    assert (limited.status, limited.iterations) == (Status.MAX_ITERATIONS, 3)
    assert sparse_transport(cost, a, b, cardinality=5, gamma=0.1, max_iterations=0).status is Status.MAX_ITERATIONS


def test_newton_finishes_what_the_search_begins():
    cost, a, b = problem(60, 50)
    s = sparse_transport(cost, a, b, cardinality=60, gamma=0.1).checked()
    assert s.newton_steps > 0
    assert s.marginal_error < 1e-12


def test_wrong_arguments():
    cost, _, _ = problem()
    for k in (0, 9, 1.0, True):
        with pytest.raises(ValueError, match=f"sparse_transport: cardinality must be an int between 1 and 8, got {k}"):
            sparse_transport(cost, cardinality=k, gamma=1.0)
    with pytest.raises(ValueError, match=r"sparse_transport: gamma must be a number > 0, got 0\.0"):
        sparse_transport(cost, cardinality=1, gamma=0.0)
    with pytest.raises(ValueError, match="sparse_transport: rtol and atol must be numbers >= 0, got -1"):
        sparse_transport(cost, cardinality=1, gamma=1.0, rtol=-1)
    with pytest.raises(ValueError, match="sparse_transport: max_iterations must be >= 0, got -1"):
        sparse_transport(cost, cardinality=1, gamma=1.0, max_iterations=-1)
    cost[0, 0] = INF
    with pytest.raises(NonFinite, match="sparse_transport: cost must be finite, got inf; forbid a pair"):
        sparse_transport(cost, cardinality=1, gamma=1.0)


def disks(n, m, seed):
    """Squared distances between random points, random masses."""
    x, y, a, b = uniform(n, 2, seed=seed), uniform(m, 2, seed=seed + 1), masses(n), masses(m)
    return (x.unsqueeze(1) - y).square().sum(-1), a / a.sum(), b / b.sum()


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("n", "m", "k"), [(12, 12, 3), (20, 20, 3), (20, 20, 5), (30, 20, 4), (15, 40, 3)])
def test_at_ties_a_plan_that_meets_the_rows_is_found(n, m, k, gamma):
    cost, a, b = disks(n, m, seed=k)
    s = sparse_transport(cost, a, b, cardinality=k, gamma=gamma)
    assert s.converged or s.ties > 0
    assert s.marginal_error < 1e-11
    assert torch.allclose(s.plan.sum(1), a, atol=1e-11)
    assert torch.allclose(s.plan.sum(0), b, atol=1e-15)
    assert bool((s.plan >= 0).all())
    assert int((s.plan > 0).sum(0).max()) <= k
    assert s.objective == pytest.approx(objective(s.plan, cost, gamma), rel=1e-12)
    assert -1e-12 < s.gap <= 0.3 * s.objective
    assert s.converged or s.message.endswith("or take this one, which meets the rows and is within gap of the best")
    if not s.converged:
        raw = sparse_transport(cost, a, b, cardinality=k, gamma=gamma, round_ties=False)
        assert raw.marginal_error > 1e-4
        assert (raw.dual_value, raw.ties) == (s.dual_value, s.ties)
        assert not raw.message.endswith("of the best")


def test_where_no_plan_has_so_few_entries_the_rows_are_missed():
    cost, a, b = disks(6, 4, seed=1)
    s = sparse_transport(cost, a, b, cardinality=1, gamma=1.0)
    assert s.status is Status.STAGNATED
    assert s.marginal_error > 1e-2
    assert s.message.endswith("the dual maximum gives no plan; raise cardinality or gamma")


def test_equal_masses_at_ties_are_assigned():
    cost = (torch.arange(6.0, dtype=F64).unsqueeze(1) % 3 - torch.arange(6.0, dtype=F64) % 3).square()  # rows in pairs
    s = sparse_transport(cost, cardinality=1, gamma=0.1).checked()
    assert s.marginal_error < 1e-11
    assert s.value == pytest.approx(0, abs=1e-12)
    assert s.gap == pytest.approx(0, abs=1e-13)
    assert s.ties > 0
