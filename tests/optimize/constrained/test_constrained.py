import math
import pickle

import numpy as np
import pytest
import torch

from frechet import minimize
from frechet.errors import NonFinite, NotConverged, NotDifferentiable
from frechet.linalg._result import Status
from frechet.optimize import Constraint
from frechet.optimize._constrained.constrained import constrained
from spectra import F64, gaussian

INF = math.inf
ONE_TO_FOUR = torch.tensor([1.0, 5.0, 5.0, 1.0], dtype=F64)


def vector(*entries):
    return torch.tensor(entries, dtype=F64)


def hs71(x):
    return x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2]


HS71 = (Constraint(lambda x: x.prod(), lower=25.0, upper=INF), Constraint(lambda x: x @ x, 40.0, 40.0))


def test_projection_on_a_sphere_is_the_closed_form_with_its_multiplier():
    a = vector(3.0, -4.0, 12.0)
    s = constrained(lambda x: 0.5 * ((x - a) ** 2).sum(), torch.ones(3, dtype=F64), lambda x: x @ x - 4.0)
    assert s.converged
    assert torch.allclose(s.x, a * 2 / 13, atol=1e-10)
    assert float(s.multipliers[0]) == pytest.approx((13 / 2 - 1) / 2, abs=1e-9)  # x - a + 2 y x = 0
    assert s.value == pytest.approx(0.5 * 11.0**2, abs=1e-10)


@pytest.mark.parametrize("method", ["composite", "augmented"])
def test_quadratic_program_with_equalities_is_the_dense_kkt_solution(method):
    n, m = 12, 4
    H = gaussian(n * n).reshape(n, n)
    H, J, g, b = H @ H.T + torch.eye(n, dtype=F64), gaussian(m * n).reshape(m, n), gaussian(n), gaussian(m)
    dense = torch.linalg.solve(
        torch.cat([torch.cat([H, J.T], 1), torch.cat([J, torch.zeros(m, m, dtype=F64)], 1)]), torch.cat([-g, b])
    )
    s = constrained(lambda x: 0.5 * x @ (H @ x) + g @ x, torch.zeros(n, dtype=F64), lambda x: J @ x - b, method=method)
    assert s.converged
    assert torch.allclose(s.x, dense[:n], atol=1e-8)
    assert torch.allclose(s.multipliers[0], dense[n:], atol=1e-6)


def test_linear_program_ends_in_its_vertex_with_the_dual_solution():
    # max 3a + 5b, a <= 4, 2b <= 12, 3a + 2b <= 18, a, b >= 0: (2, 6), value 36, duals (0, 3/2, 1)
    A = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 2.0]], dtype=F64)
    rows = Constraint(lambda x: A @ x, lower=-INF, upper=vector(4.0, 12.0, 18.0))
    s = constrained(lambda x: -(x @ vector(3.0, 5.0)), vector(1.0, 1.0), rows, bounds=(0.0, INF))
    assert s.converged
    assert torch.allclose(s.x, vector(2.0, 6.0), atol=1e-8)
    assert torch.allclose(s.multipliers[0], vector(0.0, 1.5, 1.0), atol=1e-7)
    assert s.value == pytest.approx(-36.0, abs=1e-7)


def test_box_and_equality_share_what_the_gradient_asks():
    # nearest point to (2, 0.5, -1) with sum 1 in [0, 1]^3: (1, 0, 0)
    a = vector(2.0, 0.5, -1.0)
    s = constrained(
        lambda x: 0.5 * ((x - a) ** 2).sum(), torch.full((3,), 0.3, dtype=F64), lambda x: x.sum() - 1, bounds=(0.0, 1.0)
    )
    assert s.converged
    assert torch.allclose(s.x, vector(1.0, 0.0, 0.0), atol=1e-7)
    r = s.x - a + s.multipliers[0]
    assert torch.allclose(r + s.bound_multipliers, torch.zeros(3, dtype=F64), atol=1e-7)
    assert float(s.bound_multipliers[2]) <= 0.0  # a lower side holds
    assert s.complementarity <= 1e-8


@pytest.mark.parametrize(("sign", "lower", "upper"), [(1.0, -INF, 2.0), (-1.0, 2.0, INF)])
def test_multipliers_are_positive_at_an_upper_and_negative_at_a_lower_side(sign, lower, upper):
    s = constrained(lambda x: -sign * x.sum(), vector(1.0), Constraint(lambda x: 3 * x, lower, upper))
    assert s.converged
    assert float(s.x) == pytest.approx(2 / 3, abs=1e-8)
    assert float(s.multipliers[0]) == pytest.approx(sign / 3, abs=1e-8)
    box = constrained(lambda x: -sign * x.sum(), vector(1.0), bounds=(lower, upper))
    assert float(box.bound_multipliers) == pytest.approx(sign, abs=1e-7)


def test_hock_and_schittkowski_71_has_its_published_solution():
    s = constrained(hs71, ONE_TO_FOUR, HS71, bounds=(1.0, 5.0))
    assert s.converged
    assert s.value == pytest.approx(17.0140172891, abs=1e-8)
    assert torch.allclose(s.x, vector(1.0, 4.74299963, 3.82114998, 1.37940829), atol=1e-7)
    assert float(s.multipliers[0]) == pytest.approx(-0.5522936, abs=1e-6)
    assert float(s.multipliers[1]) == pytest.approx(0.1614686, abs=1e-6)


def test_measures_are_those_of_the_definition():
    s = constrained(hs71, ONE_TO_FOUR, HS71, bounds=(1.0, 5.0))
    x = s.x.clone().requires_grad_()
    (g,) = torch.autograd.grad(hs71(x), x)
    (a,) = torch.autograd.grad(x.prod(), x)
    (b,) = torch.autograd.grad(x @ x, x)
    r = g + s.multipliers[0] * a + s.multipliers[1] * b + s.bound_multipliers
    assert float(r.abs().max()) == pytest.approx(s.residual, abs=1e-13)
    assert max(float(25 - s.x.prod()), abs(float(s.x @ s.x - 40)), 0.0) == pytest.approx(s.infeasibility, abs=1e-13)
    assert torch.allclose(s.gradient, g)


def test_nothing_is_evaluated_outside_of_the_bounds_and_logarithms_are_safe():
    seen = []

    def f(x):
        seen.append(x.detach().clone())
        return (x * x.log()).sum()

    s = constrained(f, torch.full((4,), 2.0, dtype=F64), lambda x: x.sum() - 1, bounds=(0.0, 0.4))
    assert s.converged
    assert torch.allclose(s.x, torch.full((4,), 0.25, dtype=F64), atol=1e-8)
    assert all(bool(((x >= 0) & (x <= 0.4)).all()) for x in seen)


def test_redundant_and_repeated_constraints_change_nothing():
    a = vector(1.0, 2.0, 3.0)
    plane = lambda x: x.sum() - 1  # noqa: E731
    twice = lambda x: torch.stack([x.sum() - 1, 2 * x.sum() - 2])  # noqa: E731
    s = constrained(lambda x: ((x - a) ** 2).sum(), torch.zeros(3, dtype=F64), [plane, twice])
    assert s.converged
    assert torch.allclose(s.x, a - 5 / 3, atol=1e-8)


def test_more_equalities_than_variables_are_solved_where_they_agree():
    points = gaussian(12).reshape(6, 2)
    target = vector(0.3, -0.2)
    distances = ((points - target) ** 2).sum(1)
    s = constrained(lambda x: (x**4).sum(), torch.zeros(2, dtype=F64), lambda x: ((points - x) ** 2).sum(1) - distances)
    assert s.converged
    assert torch.allclose(s.x, target, atol=1e-7)


@pytest.mark.parametrize("method", ["composite", "augmented"])
def test_constraints_without_a_solution_end_as_infeasible(method):
    s = constrained(lambda x: x.sum(), vector(0.5, 2.0), lambda x: (x @ x + 1).reshape(1), method=method)
    assert s.status is Status.INFEASIBLE
    assert s.infeasibility == pytest.approx(1.0, abs=1e-4)
    assert "stationary" in s.message
    with pytest.raises(NotConverged, match="stationary"):
        s.checked()


def test_inequalities_that_contradict_each_other_end_as_infeasible():
    s = constrained(
        lambda x: (x**2).sum(), vector(3.0), [Constraint(lambda x: x, 1.0, INF), Constraint(lambda x: x, -INF, 0.0)]
    )
    assert s.status is Status.INFEASIBLE
    assert s.infeasibility >= 0.5 - 1e-6


@pytest.mark.parametrize("kind", ["equality", "bounds"])
def test_values_without_end_below_end_as_unbounded(kind):
    more = {"constraints": lambda x: x[0] - 1} if kind == "equality" else {"bounds": (vector(0.0, -INF), INF)}
    s = constrained(lambda x: x[0] ** 2 + x[1], vector(2.0, 2.0), **more)
    assert s.status is Status.UNBOUNDED
    assert "without end" in s.message


def test_trial_points_that_are_not_finite_are_refused():
    # the step of least norm to x0 + x1 = 0.2 leads from (5, 3) to (1.1, -0.9), where the logarithm is undefined
    refused = []

    def f(x):
        value = (x.log() ** 2).sum()
        refused.append(bool(value.isnan()))
        return value

    s = constrained(f, vector(5.0, 3.0), lambda x: x.sum() - 0.2)
    assert any(refused)
    assert s.converged
    assert s.x.tolist() == pytest.approx([0.1, 0.1], abs=1e-7)


def test_a_discontinuous_function_is_not_called_converged():
    s = constrained(lambda x: x[0] + torch.floor(3 * x[0]), vector(2.0, 1.0), lambda x: x[1] - 1, max_iterations=60)
    assert not s.converged
    assert s.message


def test_parameters_may_be_a_dict_and_come_back_as_one():
    x0 = {"a": torch.ones(2, 2, dtype=F64), "b": torch.zeros(3, dtype=F64)}
    s = constrained(
        lambda p: (p["a"] ** 2).sum() + ((p["b"] - 1) ** 2).sum(),
        x0,
        [lambda p: p["a"].sum(1) - 4, Constraint(lambda p: p["b"].sum(), -INF, 1.5)],
        bounds=({"a": 0.0}, {"b": 0.9}),
    )
    assert s.converged
    assert torch.allclose(s.x["a"], torch.full((2, 2), 2.0, dtype=F64), atol=1e-7)
    assert torch.allclose(s.x["b"], torch.full((3,), 0.5, dtype=F64), atol=1e-7)
    assert [tuple(y.shape) for y in s.multipliers] == [(2,), ()]


def test_single_precision_meets_its_own_tolerance():
    s = constrained(
        hs71, ONE_TO_FOUR.float(), [Constraint(c.function, c.lower, c.upper) for c in HS71], bounds=(1.0, 5.0)
    )
    assert s.converged
    assert s.x.dtype == torch.float32
    assert s.value == pytest.approx(17.0140173, abs=1e-3)


def test_products_are_all_counted():
    calls = {"f": 0}

    def f(x):
        calls["f"] += 1
        return hs71(x)

    s = constrained(f, ONE_TO_FOUR, HS71, bounds=(1.0, 5.0))
    assert calls["f"] == s.evaluations
    assert s.gradients <= s.evaluations
    assert 0 < s.products <= 60 * s.iterations


def test_one_variable_no_constraints_and_fixed_variables_are_edges_that_work():
    s = constrained(lambda x: (x - 1) ** 2, torch.tensor(3.0, dtype=F64), bounds=(2.0, INF))
    assert s.converged
    assert float(s.x) == pytest.approx(2.0, abs=1e-8)
    free = constrained(lambda x: ((x - 1) ** 2).sum(), vector(3.0, 4.0))
    assert free.converged
    fixed = constrained(
        lambda x: ((x - 1) ** 2).sum(),
        vector(3.0, 4.0),
        lambda x: x[0] - x[1],
        bounds=(vector(2.0, -INF), vector(2.0, INF)),
    )
    assert fixed.converged
    assert fixed.x.tolist() == pytest.approx([2.0, 2.0])
    assert constrained(lambda x: (x**2).sum(), vector(0.0, 0.0), lambda x: x[:0]).converged


def test_open_rows_do_not_count():
    s = constrained(lambda x: (x**2).sum(), vector(1.0, 1.0), Constraint(lambda x: x - 5, -INF, vector(INF, -5.0)))
    assert s.converged
    assert s.x.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_a_run_is_watched_and_stopped_and_its_states_are_pickled():
    states = []
    s = constrained(
        hs71, ONE_TO_FOUR, HS71, bounds=(1.0, 5.0), observe=lambda t: bool(states.append(t)) or len(states) == 3
    )
    assert s.status is Status.STOPPED
    assert "observe returned True" in s.message
    assert [t.iteration for t in states] == [0, 1, 2]
    assert pickle.loads(pickle.dumps(states[1])).barrier > 0
    limited = constrained(hs71, ONE_TO_FOUR, HS71, bounds=(1.0, 5.0), max_iterations=0)
    assert limited.status is Status.MAX_ITERATIONS
    assert "limit of 0 iterations" in limited.message


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"f": 3}, TypeError, "f must be a function of x, got int"),
        ({"f": lambda x: x}, TypeError, r"f must return a scalar tensor, got shape \(2,\)"),
        ({"x0": [1.0]}, TypeError, "x0 must be a tensor or a dict"),
        ({"x0": torch.ones(2, dtype=torch.int64)}, TypeError, "x0 must have a floating-point dtype, got torch.int64"),
        ({"x0": vector(1.0, math.nan)}, ValueError, "x0 must be finite, got nan"),
        ({"constraints": 3}, TypeError, "constraint 0 must be a Constraint or a function, got int"),
        ({"constraints": Constraint(3)}, TypeError, "constraint 0 must have a function of x, got int"),
        ({"constraints": lambda x: 1.0}, TypeError, "constraint 0 must return a tensor, got float"),
        ({"constraints": Constraint(lambda x: x, torch.zeros(3))}, ValueError, r"lower of constraint 0 .* got \(3,\)"),
        ({"constraints": Constraint(lambda x: x, math.nan)}, ValueError, "lower of constraint 0 must be numbers"),
        ({"constraints": Constraint(lambda x: x, 1.0, 0.0)}, ValueError, "leave a value between its sides"),
        ({"bounds": 1.0}, TypeError, "bounds must be a pair"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds must leave a point between them"),
        ({"bounds": (math.nan, 0.0)}, ValueError, "lower bounds must be numbers, got NaN"),
        ({"bounds": (torch.zeros(3), 0.0)}, ValueError, "must be numbers or have the shape of x0"),
        ({"bounds": ({"c": 0.0}, INF)}, ValueError, "lower bounds must name blocks of x0"),
        ({"method": "simplex"}, ValueError, "method must be one of 'auto', 'composite'"),
        ({"method": "augmented", "bounds": (0.0, 9.0)}, ValueError, "must be 'composite' with bounds"),
        ({"method": "augmented", "constraints": Constraint(lambda x: x, 0.0, 9.0)}, ValueError, "with inequalities"),
        ({"gtol": 0.0}, ValueError, r"gtol must lie in \(0, 1\), got 0"),
        ({"ctol": 2.0}, ValueError, r"ctol must lie in \(0, 1\), got 2"),
        ({"max_iterations": -1}, ValueError, "max_iterations must be >= 0, got -1"),
        ({"f": lambda x: x.sum() / 0}, NonFinite, "f and the constraints must be finite at x0"),
        ({"f": lambda x: (x - 1).abs().sqrt().sum()}, NonFinite, "the gradient of f must be finite at x0"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments, error, words):
    given = {"f": lambda x: (x**2).sum(), "x0": vector(1.0, 1.0), "constraints": lambda x: x[0] - 1, **arguments}
    with pytest.raises(error, match=words):
        constrained(given.pop("f"), given.pop("x0"), given.pop("constraints"), **given)


@pytest.mark.parametrize("method", ["composite", "augmented"])
def test_the_least_violation_where_f_is_not_defined_is_no_result(method):
    f, never = (lambda x: x.sum() - x.log().sum()), (lambda x: x @ x + 1.0)
    s = constrained(f, torch.ones(5, dtype=F64), never, method=method, max_iterations=60)
    assert not s.converged
    assert math.isfinite(s.value)
    assert bool((s.x > 0).all())


@pytest.mark.parametrize("start", [0.1, 0.3])
def test_a_side_whose_gradient_vanishes_where_it_is_active_makes_no_solution(start):
    """Composite steps end at 0, where the side is active, and say so; the line search of the plain call goes past."""

    def f(x):
        return torch.sin(3 * x).sum()

    x0 = torch.full((2,), start, dtype=torch.float64)
    always = Constraint(lambda x: x @ x, 0.0, 1.0)  # 0 <= |x|^2 always holds, and stops a barrier at 0
    s = constrained(f, x0, always, method="composite")
    assert s.status is Status.STAGNATED
    assert "multipliers grow without bound" in s.message
    assert constrained(f, x0, always).checked().value == pytest.approx(-2, abs=1e-12)
    free = constrained(f, x0, Constraint(lambda x: x @ x, -math.inf, 1.0)).checked()
    assert free.value == pytest.approx(-2, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_a_vertex_has_all_its_digits(n, seed, unit):
    """A linear program over the simplex: the best vertex, where as many sides are active as there are variables."""
    g = torch.Generator().manual_seed(seed)
    gains = torch.randn(n, generator=g, dtype=F64)
    s = constrained(
        lambda x: -unit * (gains @ x), torch.full((n,), 1 / n, dtype=F64), lambda x: x.sum() - 1, bounds=(0.0, 1.0)
    )
    assert s.converged
    best = torch.zeros(n, dtype=F64)
    best[gains.argmax()] = 1.0
    assert torch.allclose(s.x, best, rtol=0, atol=1e-13)
    assert s.value == pytest.approx(-unit * float(gains.max()), rel=1e-13)


CUT = {
    "detached": lambda x: x.detach().sum(),
    "a Python number": lambda x: torch.tensor(x.detach().sum().item(), dtype=torch.float64),
    "NumPy": lambda x: torch.from_numpy(np.asarray(x.detach().numpy().sum())),
    "no_grad": lambda x: torch.no_grad()(torch.sum)(x),
}


@pytest.mark.parametrize("method", ["auto", "composite"])
@pytest.mark.parametrize("name", CUT)
def test_functions_that_leave_no_graph_are_refused(name, method):
    x0, square, line = torch.ones(2, dtype=torch.float64), lambda x: x.square().sum(), lambda x: x.sum() - 1
    with pytest.raises(NotDifferentiable, match="minimize: f must depend on x through torch operations"):
        minimize(CUT[name], x0, constraints=[line], method=method)
    with pytest.raises(NotDifferentiable, match="minimize: constraint 1 must depend on x through torch operations"):
        minimize(square, x0, constraints=[line, CUT[name]], method=method)


@pytest.mark.parametrize("method", ["auto", "composite"])
def test_constants_are_no_functions_without_a_graph(method):
    zero = torch.zeros((), dtype=torch.float64)
    s = minimize(lambda x: zero, torch.ones(2, dtype=torch.float64), constraints=[lambda x: x.sum() - 1], method=method)
    assert s.converged
    assert float(s.x.sum()) == pytest.approx(1)
