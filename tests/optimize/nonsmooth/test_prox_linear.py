import math
import pickle
import sys
from itertools import pairwise

import pytest
import torch
from scipy.optimize import linprog

from frechet.errors import NonFinite, NotConverged
from frechet.linalg._result import Status
from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._nonsmooth.convex import Convex
from frechet.optimize._nonsmooth.prox_linear import prox_linear
from spectra import F64, gaussian

T = torch.arange(6.0, dtype=F64)
HALF_SQUARE = Convex(lambda z: z.square().sum() / 2, lambda z, s: z / (1 + s))


def size(v):
    return float(v.square().sum().sqrt())


def rosenbrock(x):
    return torch.cat([10 * (x[1:] - x[:1] ** 2), 1 - x[:1]])


def phases(n, m, outliers, seed=0):
    """Squares of products with random vectors, a share of them wrong; the signal, and a start near it."""
    g = torch.Generator().manual_seed(seed)
    x, A = gaussian(n, seed=seed), gaussian(m, n, seed=seed + 1)
    b, bad = (A @ x) ** 2, torch.rand(m, generator=g) < outliers
    b[bad] = 20 * b.mean() * torch.rand(int(bad.sum()), generator=g, dtype=F64)
    start = x + 0.3 * size(x) * gaussian(n, seed=seed + 2) / math.sqrt(n)
    return (lambda v: ((A @ v) ** 2 - b) / m), x, start


def test_gross_errors_do_not_move_the_solution():
    y = 2 * torch.exp(-0.5 * T)
    y[2] = 9.0
    s = prox_linear("l1", lambda x: x[0] * torch.exp(-x[1] * T) - y, torch.tensor([1.0, 0.0], dtype=F64)).checked()
    assert torch.allclose(s.x, torch.tensor([2.0, 0.5], dtype=F64), rtol=1e-14)
    assert s.value == pytest.approx(9 - 2 * math.exp(-1), rel=1e-14)


def test_minimax_of_a_linear_map_is_the_linear_program():
    t = torch.linspace(-1, 1, 41, dtype=F64)
    M = torch.stack([t**j for j in range(4)], 1)
    C, rhs = torch.cat([M, -M]), torch.cat([t.exp(), -t.exp()])
    s = prox_linear("max", lambda x: C @ x - rhs, torch.zeros(4, dtype=F64)).checked()
    A = torch.cat([C, -torch.ones(82, 1, dtype=F64)], 1)
    best = linprog([0, 0, 0, 0, 1], A_ub=A.numpy(), b_ub=rhs.numpy(), bounds=(None, None))
    assert s.value == pytest.approx(best.fun, rel=1e-12)
    # the multipliers are a distribution on the points of the alternation, orthogonal to the range of C
    assert float(s.multipliers.sum()) == pytest.approx(1)
    assert float((C.T @ s.multipliers).abs().max()) < 1e-9


def test_the_half_square_is_nonlinear_least_squares():
    y = 2 * torch.exp(-0.5 * T) + 0.1 * gaussian(6)

    def c(x):
        return x[0] * torch.exp(-x[1] * T) - y

    start = torch.tensor([1.0, 0.1], dtype=F64)
    assert torch.allclose(prox_linear(HALF_SQUARE, c, start).checked().x, least_squares(c, start).x, rtol=1e-8)


def test_huber_is_the_huber_loss_of_least_squares():
    t = torch.linspace(-1, 1, 41, dtype=F64)
    f = t.exp() + 0.1 * (torch.arange(41) % 7 == 0)

    def c(x):
        return 10 * (x[0] * torch.exp(x[1] * t) - f)

    found = prox_linear("huber", c, torch.zeros(2, dtype=F64)).checked()
    other = least_squares(c, torch.zeros(2, dtype=F64), loss="huber").checked()
    assert torch.allclose(found.x, other.x, rtol=1e-7)
    assert found.value == pytest.approx(other.cost, rel=1e-12)


@pytest.mark.parametrize("outliers", [0.1, 0.2])
def test_robust_phase_retrieval_is_exact_and_converges_quadratically(outliers):
    c, x, start = phases(12, 120, outliers)
    errors = []
    s = prox_linear("l1", c, start, observe=lambda state: bool(errors.append(size(state.x - x)))).checked()
    assert size(s.x - x) < 1e-14 * size(x) * 10
    fast = [(a, b) for a, b in pairwise(errors) if 1e-7 < a < 0.5]
    assert len(fast) >= 2
    assert all(b <= 2 * a**2 for a, b in fast)


def test_a_curved_valley_is_followed_to_its_end():
    s = prox_linear("l1", rosenbrock, torch.tensor([-1.2, 1.0], dtype=F64)).checked()
    assert torch.allclose(s.x, torch.ones(2, dtype=F64), rtol=1e-13)
    assert all(later <= earlier for earlier, later in pairwise(s.history))


def test_products_alone_find_the_same_point(monkeypatch):
    c, _, start = phases(8, 80, 0.1)
    formed = prox_linear("l1", c, start).checked()
    monkeypatch.setattr(sys.modules["frechet.optimize._nonsmooth.prox_linear"], "LARGEST", 0)
    free = prox_linear("l1", c, start).checked()
    assert torch.allclose(formed.x, free.x, rtol=1e-12)


def test_the_mapping_is_that_of_the_step():
    c, _, start = phases(8, 80, 0.1)
    s = prox_linear("l1", c, start, max_iterations=1)
    J = torch.func.jacrev(c)(s.x)
    d = -s.t * J.T @ s.multipliers
    assert s.status is Status.MAX_ITERATIONS
    assert s.iterations == 1
    assert "the limit of 1 iterations was reached" in s.message
    assert s.stationarity == pytest.approx(size(d) / s.t, rel=0.5)  # both are exact to a share
    assert s.gap <= 0.09 * (s.t * s.stationarity**2) / 2 + 1e-12
    with pytest.raises(NotConverged, match="prox_linear: the limit of 1 iterations"):
        s.checked()


def test_dict_in_dict_out_and_float32():
    y = 2 * torch.exp(-0.5 * T)
    y[2] = 9.0
    start = {"a": torch.tensor(1.0), "rate": torch.zeros(1)}
    s = prox_linear("l1", lambda p: p["a"] * torch.exp(-p["rate"] * T.float()) - y.float(), start).checked()
    assert s.x["rate"].dtype == torch.float32
    assert float(s.x["a"]) == pytest.approx(2, rel=1e-5)
    assert float(s.x["rate"]) == pytest.approx(0.5, rel=1e-5)


def test_a_solution_to_start_with_is_recognized():
    s = prox_linear("l1", lambda x: x**2 - 4, torch.full((1,), 2.0, dtype=F64)).checked()
    assert s.iterations == 0
    assert float(s.x) == 2.0


def test_a_discontinuous_function_is_never_converged():
    s = prox_linear("l1", lambda x: torch.where(x < 0.3, x + 2, x - 0.1), torch.ones(1, dtype=F64))
    assert s.status is Status.STAGNATED
    assert "c may be discontinuous or noisy" in s.message


def test_values_without_end_below_are_told():
    s = prox_linear("max", lambda x: x, torch.ones(1, dtype=F64))
    assert s.status is Status.UNBOUNDED
    assert "falls without end" in s.message


def test_points_outside_of_the_domain_are_refused():
    s = prox_linear("l1", lambda x: x.sqrt() - 0.1, torch.ones(1, dtype=F64), t0=100.0).checked()
    assert float(s.x) == pytest.approx(0.01, rel=1e-12)


def test_a_constant_is_not_called_a_solution():
    s = prox_linear("l1", lambda x: 0 * x + 1, torch.ones(1, dtype=F64))
    assert s.status is Status.STAGNATED
    assert "the Jacobian is zero" in s.message


def test_observe_stops_and_states_can_be_kept():
    states = []
    s = prox_linear(
        "l1",
        rosenbrock,
        torch.tensor([-1.2, 1.0], dtype=F64),
        observe=lambda s: len(states) == 3 or bool(states.append(s)),
    )
    assert s.status is Status.STOPPED
    assert pickle.loads(pickle.dumps(states[1])).value == states[1].value


def test_messages():
    one = torch.ones(1, dtype=F64)
    with pytest.raises(ValueError, match="prox_linear: h must be 'l1', 'huber', 'max' or a Convex, got 'l2'"):
        prox_linear("l2", lambda x: x, one)
    with pytest.raises(TypeError, match="prox_linear: x0 must be a tensor or a dict of tensors, got list"):
        prox_linear("l1", lambda x: x, [1.0])
    with pytest.raises(ValueError, match="prox_linear: x0 must be finite, got nan in an entry"):
        prox_linear("l1", lambda x: x, one * math.nan)
    with pytest.raises(NonFinite, match=r"prox_linear: c and h\(c\) must be finite at x0, got h\(c\(x0\)\) = nan"):
        prox_linear("l1", lambda x: (x - 2).sqrt(), one)
    with pytest.raises(NonFinite, match="prox_linear: the Jacobian of c must be finite at x0"):
        prox_linear("l1", lambda x: (x - 1).sqrt(), one)
    with pytest.raises(TypeError, match=r"c must return a tensor of torch.float64 like x0, got torch.float32"):
        prox_linear("l1", lambda x: x.float(), one)
    with pytest.raises(ValueError, match="prox_linear: c must have at least one entry, got an empty tensor"):
        prox_linear("l1", lambda x: x[:0], one)
    with pytest.raises(ValueError, match=r"prox_linear: gtol must lie in \[0, 1\), got 1"):
        prox_linear("l1", lambda x: x, one, gtol=1)
    with pytest.raises(ValueError, match="prox_linear: t0 must be a positive number, got 0"):
        prox_linear("l1", lambda x: x, one, t0=0)
    with pytest.raises(ValueError, match="prox_linear: max_iterations must be >= 0, got -1"):
        prox_linear("l1", lambda x: x, one, max_iterations=-1)


EDGES = {
    "root": (lambda x: x.sqrt() + 1.0, 1.0),
    "root and slope": (lambda x: x + 0.5 * x.sqrt() + 1.0, 1.0),
    "root from above": (lambda x: (2.0 - x).sqrt() + 0.5, 0.0),
    "third root": (lambda x: (x * x.sqrt()) ** (1 / 4) + 1.0, 1.0),
    "edge of another function": (lambda x: x + 1.0 + 0.0 * x.log(), 1.0),
}


@pytest.mark.parametrize("t0", [None, 1.0, 1e-3])
@pytest.mark.parametrize("case", EDGES)
def test_the_edge_of_the_domain_is_no_stationary_point(case, t0):
    c, start = EDGES[case]
    s = prox_linear("l1", c, torch.full((1,), start, dtype=F64), t0=t0)
    assert s.status is Status.STAGNATED, s.message


@pytest.mark.parametrize("power", [2, 6, 12])
@pytest.mark.parametrize("t0", [None, 100.0])
def test_a_solution_near_the_edge_is_one(power, t0):
    goal = 10.0**-power
    s = prox_linear("l1", lambda x: x.sqrt() - goal**0.5, torch.ones(1, dtype=F64), t0=t0)
    assert s.converged
    assert float(s.x) == pytest.approx(goal, rel=1e-6)
