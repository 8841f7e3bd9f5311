import math
import pickle

import pytest
import torch
from scipy import stats

from frechet.errors import NonFinite
from frechet.linalg._sequential import (
    FIRST_LOOK,
    EstimateState,
    check_request,
    degrees_of_freedom,
    finite,
    looks,
    meets,
    shared_error,
)
from frechet.linalg._trace import trace
from frechet.operators._constructors import from_callable
from frechet.space import euclidean

R3 = euclidean(3, torch.float64)


def test_looks_double_and_end_at_the_limit():
    assert looks(16, 100) == [16, 32, 64, 100]
    assert looks(16, 64) == [16, 32, 64]
    assert looks(16, 10) == [10]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dof", [1.0, 7.5, math.inf])
def test_shared_error_turns_the_plain_interval_into_the_divided_one(count, dof):
    widened = float(shared_error(torch.tensor(2.0, dtype=torch.float64), dof, count))
    half = stats.t.ppf(0.975, dof) * widened
    assert math.isclose(half, 2.0 * stats.t.ppf(1 - 0.025 / count, dof), rel_tol=1e-12)


def test_degrees_of_freedom_are_half_of_the_textbook_and_at_least_one():
    assert [degrees_of_freedom(k) for k in (1, 2, 3, 10, 31)] == [1.0, 1.0, 1.0, 4.5, 15.0]


def test_meets_compares_norms_for_vectors_and_sizes_for_numbers():
    q = stats.norm.ppf(0.975)
    value, error = torch.tensor(-10.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    assert meets(value, error, math.inf, q / 10 + 1e-9, R3)
    assert not meets(value, error, math.inf, q / 10 - 1e-9, R3)
    v = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    assert meets(v, v / 5, math.inf, q / 5 + 1e-9, R3)
    assert not meets(v, v / 5, math.inf, q / 5 - 1e-9, R3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 10, None, 4), "seed must be given where A has no closed form, got None"),
        ((0, 0, None, 4), "products must be a positive int, got 0"),
        ((0, 2.5, None, 4), "products must be a positive int, got 2.5"),
        ((0, True, None, 4), "products must be a positive int, got True"),
        ((0, 10, 0.0, 4), "rtol must be positive and finite, got 0.0"),
        ((0, 10, math.nan, 4), "rtol must be positive and finite, got nan"),
        ((0, 10, None, 0), "block must be a positive int, got 0"),
    ],
)
def test_wrong_requests_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_request("trace", *arguments, "A")


def test_products_that_are_not_finite_are_named():
    with pytest.raises(NonFinite, match=r"trace: products must be finite, got NaN or infinity for probes 4 to 7"):
        finite(torch.tensor([[1.0, math.inf]]), "trace", range(4, 8))


def _noisy(n=400):
    M = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    M = (M + M.T) / 2 + 3 * torch.eye(n, dtype=torch.float64)
    return from_callable(lambda V: (V.T @ M).T, euclidean(n, torch.float64), facts="symmetric")


METHODS = ["hutchinson", "hutch++", "xtrace"]


@pytest.mark.parametrize("rtol", [None, 0.2])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumed_from_a_pickled_state_equals_the_uninterrupted_one(method, rtol):
    A, states = _noisy(), []
    arguments = {"seed": 3, "products": 150, "method": method, "rtol": rtol, "block": 8}
    whole = trace(A, observe=lambda s: states.append(s), **arguments)
    assert len(states) >= 2
    for state in (states[0], states[len(states) // 2], states[-1]):
        again = trace(A, resume=pickle.loads(pickle.dumps(state)), **arguments)
        assert torch.equal(again.value, whole.value)
        assert torch.equal(again.standard_error, whole.standard_error)
        assert (again.products, again.samples, again.converged) == (whole.products, whole.samples, whole.converged)


def test_observing_changes_nothing_and_true_stops():
    A = _noisy()
    plain = trace(A, seed=3, products=60, method="xtrace", block=10)
    seen: list[EstimateState] = []
    watched = trace(A, seed=3, products=60, method="xtrace", block=10, observe=lambda s: seen.append(s))
    assert torch.equal(plain.value, watched.value)
    assert [s.probes for s in seen] == [10, 20, 30]
    assert [s.products for s in seen] == [20, 40, 60]
    assert torch.equal(seen[-1].value, plain.value)
    stopped = trace(A, seed=3, products=60, method="xtrace", block=10, observe=lambda s: s.probes >= 20)
    assert (stopped.samples, stopped.products) == (20, 40)
    assert torch.equal(stopped.value, seen[1].value)
    unfinished = trace(A, seed=3, products=60, method="xtrace", block=10, rtol=1e-6, observe=lambda s: True)
    assert unfinished.converged is False


def test_a_finished_run_can_be_extended_by_a_larger_budget():
    A, states = _noisy(), []
    trace(A, seed=3, products=40, method="hutchinson", block=8, observe=lambda s: states.append(s))
    longer = trace(A, seed=3, products=80, method="hutchinson", block=8, resume=states[-1])
    assert torch.equal(longer.value, trace(A, seed=3, products=80, method="hutchinson", block=8).value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, r"resume must come from the same run, got .*seed 3.* not .*seed 4"),
        ({"method": "xtrace"}, "resume must come from the same run"),
        ({"rtol": 0.1}, "resume must come from the same run"),
        ({"products": 20}, "products must allow the 40 probes of resume, got 20 probes"),
    ],
)
def test_a_state_of_another_run_is_refused(change, message):
    A, states = _noisy(), []
    arguments = {"seed": 3, "products": 40, "method": "hutchinson"}
    trace(A, observe=lambda s: states.append(s), **arguments)
    with pytest.raises(ValueError, match=message):
        trace(A, resume=states[-1], **(arguments | change))


def test_a_budget_without_a_probe_raises():
    with pytest.raises(ValueError, match="products must be at least 2 for method 'xtrace', got 1"):
        trace(_noisy(), seed=0, products=1, method="xtrace")


def test_a_tolerance_is_met_at_a_look_or_reported_as_missed():
    A = _noisy()
    met = trace(A, seed=0, products=390, rtol=0.5, method="hutchinson")
    assert met.converged is True
    assert met.samples in looks(FIRST_LOOK, 390)
    low, high = met.interval()
    assert float(high - low) / 2 <= 0.5 * abs(float(met))
    plain = trace(A, seed=0, products=met.products, method="hutchinson")
    assert torch.equal(plain.value, met.value)
    paid = shared_error(plain.standard_error, plain.degrees_of_freedom, len(looks(FIRST_LOOK, 390)))
    assert math.isclose(float(met.standard_error), float(paid), rel_tol=1e-12)
    missed = trace(A, seed=0, products=50, rtol=1e-3, method="hutchinson")
    assert (missed.converged, missed.products) == (False, 50)
