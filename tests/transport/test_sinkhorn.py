import math
import pickle

import pytest
import torch

from frechet.errors import NonFinite, NotConverged
from frechet.linalg._result import Status
from frechet.transport._sinkhorn import sinkhorn
from transport_problems import F64, INF, assignment, by_sweeps, plan_of, problem, uniform

METHODS = ["auto", "newton", "sinkhorn"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(8, 6), (6, 8), (7, 7), (1, 4), (4, 1), (1, 1)])
def test_it_is_what_the_plain_iteration_converges_to(method, shape):
    cost, a, b = problem(*shape)
    s = sinkhorn(cost, a, b, epsilon=0.05, method=method).checked()
    f, g = by_sweeps(cost, a, b, 0.05, 3000)
    P = plan_of(f, g, cost, a, b, 0.05)
    assert torch.allclose(s.plan(), P, atol=1e-11)
    assert torch.allclose(s.f, f, atol=1e-11)
    assert torch.allclose(s.g, g, atol=1e-11)
    assert s.value == pytest.approx(float((P * cost).sum()), abs=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_marginals_are_met_to_the_tolerance_and_the_error_is_that_of_the_plan(method):
    cost, a, b = problem(40, 30)
    for rtol in (1e-4, 1e-12):
        s = sinkhorn(cost, a, b, epsilon=0.01, method=method, rtol=rtol).checked()
        P = s.plan()
        error = float((P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum())
        assert s.marginal_error == pytest.approx(error, rel=1e-3)
        assert error <= rtol
    loose = sinkhorn(cost, a, b, epsilon=0.01, method=method, rtol=0.0, atol=1e-3).checked()
    assert loose.marginal_error <= 1e-3
    assert loose.newton_steps <= s.newton_steps


def test_the_assignment_of_500_by_newton_goes_on_to_rounding():
    cost = uniform(500, 500)
    s = sinkhorn(cost, epsilon=float(cost.max()) / 1200, rtol=1e-12).checked()
    assert s.marginal_error < 1e-12
    assert s.newton_steps < 12
    assert s.gap < 1e-12
    lower, upper = s.unregularized_bounds()
    exact = assignment(cost)
    assert lower <= exact <= upper
    assert 0 <= s.value - exact <= s.epsilon * math.log(500)


def test_exchanging_the_sides_and_units():
    cost, a, b = problem(9, 12)
    s, t = sinkhorn(cost, a, b, epsilon=0.02), sinkhorn(cost.T, b, a, epsilon=0.02)
    assert torch.allclose(s.plan(), t.plan().T, atol=1e-12)
    assert torch.allclose(s.f, t.g, atol=1e-12)
    scaled = sinkhorn(1e6 * cost, 7 * a, 7 * b, epsilon=2e4).checked()
    assert torch.allclose(scaled.plan(), 7 * s.plan(), atol=1e-11)
    assert torch.allclose(scaled.f, 1e6 * s.f, atol=1e-5)
    assert scaled.regularized_value == pytest.approx(7e6 * s.regularized_value, rel=1e-10)


def test_a_cost_of_row_and_column_terms_moves_the_potentials_only():
    cost, a, b = problem(9, 7)
    u, v = uniform(9, seed=5), uniform(7, seed=6)
    s, t = sinkhorn(cost, a, b, epsilon=0.02), sinkhorn(cost + u.unsqueeze(1) + v, a, b, epsilon=0.02)
    assert torch.allclose(s.plan(), t.plan(), atol=1e-11)
    assert t.dual_value == pytest.approx(s.dual_value + float(a @ u + b @ v), abs=1e-11)
    assert torch.allclose(t.f.unsqueeze(1) + t.g, s.f.unsqueeze(1) + s.g + u.unsqueeze(1) + v, atol=1e-11)


def test_a_large_epsilon_mixes_all_and_a_small_one_assigns():
    cost, a, b = problem(9, 7)
    assert torch.allclose(sinkhorn(cost, a, b, epsilon=1e6).plan(), torch.outer(a, b), atol=1e-7)
    square, n = uniform(20, 20, seed=3), 20
    exact = assignment(square)
    for epsilon in (1e-2, 1e-3, 1e-4, 1e-6):
        s = sinkhorn(square, epsilon=epsilon).checked()
        assert -1e-12 <= s.value - exact <= epsilon * math.log(n)
        lower, upper = s.unregularized_bounds()
        assert lower - 1e-12 <= exact <= upper + 1e-12
    assert torch.allclose(n * s.plan(), (n * s.plan()).round(), atol=1e-6)


def test_values_bracket_the_optimum():
    cost, a, b = problem(30, 20)
    exact = sinkhorn(cost, a, b, epsilon=0.01, rtol=1e-13)
    assert exact.regularized_value == pytest.approx(exact.dual_value, abs=1e-13)
    for count in (0, 3, 10):
        s = sinkhorn(cost, a, b, epsilon=0.01, max_iterations=count)
        assert s.status is Status.MAX_ITERATIONS
        assert s.iterations == count
        assert s.gap >= 0
        assert s.dual_value <= exact.dual_value + 1e-15 <= s.dual_value + s.gap + 2e-15
        with pytest.raises(NotConverged, match=r"sinkhorn: .* were not enough \(status 'max_iterations'"):
            s.checked()


def test_rows_and_columns_without_mass_are_dropped_exactly():
    cost, a, b = problem(8, 6)
    zero_a, zero_b = a.clone(), b.clone()
    zero_a[[0, 3]], zero_b[5] = 0, 0
    zero_a, zero_b = zero_a / zero_a.sum(), zero_b / zero_b.sum()
    s = sinkhorn(cost, zero_a, zero_b, epsilon=0.05).checked()
    rows, columns = torch.tensor([1, 2, 4, 5, 6, 7]), torch.arange(5)
    t = sinkhorn(cost[rows][:, columns], zero_a[rows], zero_b[columns], epsilon=0.05)
    assert torch.equal(s.plan()[[0, 3]], torch.zeros(2, 6, dtype=F64))
    assert torch.allclose(s.plan()[rows][:, columns], t.plan(), atol=1e-12)
    assert s.value == pytest.approx(t.value, abs=1e-12)
    # their potentials are the limit of those of small masses
    tiny_a, tiny_b = zero_a.clone(), zero_b.clone()
    tiny_a[[0, 3]], tiny_b[5] = 1e-13, 1e-13
    near = sinkhorn(cost, tiny_a, tiny_b, epsilon=0.05)
    assert torch.allclose(s.f, near.f, atol=1e-9)
    assert torch.allclose(s.g, near.g, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_forbidden_pairs_carry_nothing(method):
    cost, a, _ = problem(12, 12)
    allowed = (uniform(12, 12, seed=9) < 0.5) | torch.eye(12, dtype=torch.bool)
    s = sinkhorn(torch.where(allowed, cost, INF), a, a, epsilon=0.05, method=method).checked()
    assert bool((s.plan()[~allowed] == 0).all())
    assert math.isfinite(s.value)
    large = sinkhorn(torch.where(allowed, cost, 20.0), a, a, epsilon=0.05).checked()
    assert torch.allclose(s.plan(), large.plan(), atol=1e-9)


def test_pairs_that_no_plan_can_use_are_zero():
    cost = torch.tensor([[0.0, 1.0], [INF, 0.0]], dtype=F64)
    s = sinkhorn(cost, epsilon=0.1).checked()
    assert torch.allclose(s.plan(), torch.eye(2, dtype=F64) / 2, atol=1e-14)
    assert s.cost[0, 1] == INF


def test_patterns_without_a_plan_are_infeasible():
    cost = torch.tensor([[0.0, 1.0], [INF, 0.0]], dtype=F64)
    s = sinkhorn(cost, torch.tensor([0.4, 0.6], dtype=F64), epsilon=0.1)
    assert s.status is Status.INFEASIBLE
    assert (
        s.message == "no plan exists: 1 rows (1) hold 0.6 of the mass, and the 1 columns that they may go to take 0.5"
    )
    assert (s.value, s.gap) == (INF, INF)


def test_a_start_saves_work_and_a_run_can_be_stopped_and_resumed():
    cost, a, b = problem(60, 50)
    s = sinkhorn(cost, a, b, epsilon=0.005).checked()
    again = sinkhorn(cost, a, b, epsilon=0.005, x0=(s.f, s.g)).checked()
    assert again.iterations < s.iterations / 3
    states = []
    stopped = sinkhorn(cost, a, b, epsilon=0.005, observe=lambda t: states.append(t) or t.kind == "newton")
    assert stopped.status is Status.STOPPED
    assert states[0].epsilon > states[-1].epsilon
    state = pickle.loads(pickle.dumps(states[-1]))
    resumed = sinkhorn(cost, a, b, epsilon=0.005, resume=state).checked()
    assert torch.allclose(resumed.plan(), s.plan(), atol=1e-11)
    assert resumed.iterations < s.iterations
    with pytest.raises(ValueError, match="sinkhorn: resume must be a state of the same problem"):
        sinkhorn(cost, a, b, epsilon=0.004, resume=state)


def test_float32_says_where_its_digits_end():
    cost, a, b = (x.float() for x in problem(40, 30))
    s = sinkhorn(cost, a, b, epsilon=1e-3).checked()
    assert s.plan().dtype == torch.float32
    assert s.marginal_error < 5e-4
    asked = sinkhorn(cost, a, b, epsilon=1e-3, rtol=1e-9)
    assert asked.status is Status.STAGNATED
    assert asked.marginal_error < 5e-4


def test_wrong_arguments():
    cost, a, b = problem()
    with pytest.raises(ValueError, match="sinkhorn: method must be 'auto', 'newton' or 'sinkhorn', got 'lp'"):
        sinkhorn(cost, epsilon=0.1, method="lp")
    with pytest.raises(ValueError, match=r"sinkhorn: rtol and atol must be numbers >= 0, got -1 and 0\.0"):
        sinkhorn(cost, epsilon=0.1, rtol=-1)
    with pytest.raises(ValueError, match="sinkhorn: max_iterations must be >= 0, got -1"):
        sinkhorn(cost, epsilon=0.1, max_iterations=-1)
    with pytest.raises(ValueError, match=r"sinkhorn: x0 must be potentials of shapes \(8,\) and \(6,\), got"):
        sinkhorn(cost, a, b, epsilon=0.1, x0=(b, a))
    with pytest.raises(NonFinite, match="sinkhorn: x0 must be finite"):
        sinkhorn(cost, a, b, epsilon=0.1, x0=(a, b.log() * INF))
