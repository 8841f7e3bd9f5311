"""The loop that the solvers share: the order of its calls, what an observer sees, and how a run ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from frechet.linalg._result import Status
from frechet.linalg.systems._cg import cg
from frechet.linalg.systems._minres import minres
from frechet.linalg.systems._protocol import Course, Ending, iterate, origin, system, verdict
from frechet.operators._constructors import from_callable, from_matrix
from spectra import F64, gaussian, geometric, with_eigenvalues


@dataclass(frozen=True)
class Halving:
    iteration: int
    residual: float
    history: tuple[float, ...] = ()


def run(state=None, limit=10, observe=None, tolerance=0.1):
    state = state or Halving(0, 1.0)
    course = Course.of(state, limit, observe)

    def judge(s):
        course.record(s, s.residual)
        return s, Ending(Status.CONVERGED) if s.residual <= tolerance else course.ended(s)

    end, ending = iterate(state, judge, lambda s: (Halving(s.iteration + 1, s.residual / 2), None))
    return end, ending.status, course.history


def test_the_history_has_one_residual_for_each_iteration_and_the_first():
    end, status, history = run()
    assert (end.iteration, status) == (4, Status.CONVERGED)
    assert history == [1.0, 0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_the_limit_ends_a_run_that_has_not_converged(limit):
    end, status, history = run(limit=limit)
    assert (end.iteration, status, len(history)) == (limit, Status.MAX_ITERATIONS, limit + 1)


def test_an_observer_is_not_shown_the_first_state_and_sees_the_history_before_each():
    seen = []
    run(observe=lambda s: bool(seen.append(s)))
    assert [s.iteration for s in seen] == [1, 2, 3, 4]
    assert seen[1].history == (1.0, 0.5)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_that_was_stopped_and_resumed_has_the_history_of_one_run(at):
    kept = []
    _, status, _ = run(observe=lambda s: bool(kept.append(s)) or s.iteration == at)
    assert status is Status.STOPPED
    seen = []
    resumed = run(kept[-1], observe=lambda s: bool(seen.append(s.iteration)))
    assert resumed == run()
    assert seen == list(range(at + 1, 5))  # the state that was resumed is not shown again


def test_convergence_goes_before_the_observer_and_the_limit():
    assert run(observe=lambda s: s.iteration == 4, limit=4)[1] is Status.CONVERGED
    assert run(observe=lambda s: True, limit=1)[1] is Status.MAX_ITERATIONS


def test_a_step_may_end_the_run():
    end, ending = iterate(
        0, lambda s: (s, None), lambda s: (s + 1, Ending(Status.BREAKDOWN, "over") if s == 2 else None)
    )
    assert (end, ending.message("m")) == (3, "m: over")
    assert Ending(Status.STOPPED).message("m") == "m"


@pytest.mark.parametrize(
    ("met", "excess", "confirmed", "status"),
    [
        (True, 0.0, math.inf, Status.CONVERGED),
        (False, 5.0, math.inf, None),  # the first miss begins again
        (False, 2.4, 5.0, None),
        (False, 2.5, 5.0, Status.STAGNATED),
        (False, math.inf, math.inf, Status.STAGNATED),
        (False, math.nan, math.inf, Status.STAGNATED),
    ],
)
def test_a_miss_must_be_less_than_half_of_the_one_before(met, excess, confirmed, status):
    ending = verdict(met, excess, confirmed, "told")
    assert (ending and ending.status) == status


def test_the_targets_are_those_of_each_column():
    A = from_matrix(torch.eye(2, dtype=F64), facts="positive_definite")
    b = torch.tensor([[3.0, 0.0, 0.0], [4.0, 0.0, 2.0]], dtype=F64)
    assert system("cg", A, b, None, 0.1, 0.3).goals == [0.5, 0.3, 0.3]


def test_a_zero_right_hand_side_has_the_solution_zero_and_no_other_ignores_the_start():
    A, x0 = from_matrix(2 * torch.eye(2, dtype=F64)), torch.ones(2, dtype=F64)
    b = torch.zeros(2, dtype=F64)
    x, _, products = origin("gmres", A, b, 0.0, x0)
    assert (x.tolist(), products) == ([0.0, 0.0], 0)
    x, r, products = origin("gmres", A, b, math.nan, x0)
    assert (x.tolist(), r.tolist(), products) == ([1.0, 1.0], [-2.0, -2.0], 1)


@pytest.mark.parametrize("solver", [cg, minres])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_true_residual_that_is_not_finite_confirms_nothing(solver, wrong):
    M, b = with_eigenvalues(geometric(30, 10)), gaussian(30)
    needed, calls = solver(from_matrix(M, facts="positive_definite"), b).iterations, []

    def product(V):  # the product after the last iteration is the one that confirms
        calls.append(1)
        return M @ V * (wrong if len(calls) == needed + 1 else 1.0)

    s = solver(from_callable(product, 30, facts="positive_definite", dtype=F64), b)
    assert len(calls) == s.products
    assert not s.converged


def test_a_state_is_replaced_and_never_changed():
    states = []
    A = from_matrix(with_eigenvalues(geometric(20, 10)), facts="positive_definite")
    cg(A, gaussian(20), observe=lambda s: bool(states.append((s, s.x.clone(), replace(s)))))
    assert all(torch.equal(s.x, x) and s.history == copy.history for s, x, copy in states)
