import math
from functools import partial

import numpy as np
import pytest
import torch

from frechet import (
    Objective,
    cross_entropy,
    from_callable,
    from_diagonal,
    from_matrix,
    gauss_newton,
    hessian,
    l2,
    minimize,
)
from frechet.errors import NonFinite, NotConverged, NotDifferentiable
from frechet.linalg._result import Status
from frechet.optimize import Constraint, studies
from s2mpj import problem
from smooth_problems import far_logistic, rosenbrock

METHODS = {
    "trust-region": partial(minimize, method="trust-region"),
    "gradient-regularized": partial(minimize, method="gradient-regularized"),
    "stepsized": studies.stepsized_newton,
    "stepsized, greedy": partial(studies.stepsized_newton, rule="greedy"),
    "cubic": studies.cubic_newton,
}
START = torch.tensor([-1.2, 1.0], dtype=torch.float64)

# f* as the collection or its literature gives it; None where only the KKT conditions are checked
FREE = {
    "BEALE": 0.0, "BOX3": 0.0, "BRKMCC": 0.16904267, "BROWNBS": 0.0,
    "BROWNDEN": 8.58222016e4, "CLIFF": 0.19978661, "CUBE": 0.0, "DENSCHND": 0.0, "DENSCHNF": 0.0, "ENGVAL2": 0.0,
    "EXPFIT": 0.24051059, "HAIRY": 20.0, "HELIX": 0.0,
    "KOWOSB": 3.07505604e-4, "ROSENBR": 0.0, "SNAIL": 0.0, "ZANGWIL2": -18.2,
}  # fmt: skip
BOUNDED = {
    "CAMEL6": None, "HART6": -3.32288689, "HATFLDA": 0.0, "HIMMELP1": None, "HS1": 0.0, "HS2": None,
    "HS3": 0.0, "HS4": 2.66666667, "HS5": -1.91322296, "HS45": 1.0, "LOGROS": 0.0,
    "MDHOLE": 0.0, "PSPDOC": 2.41421356, "SIMBQP": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_method_minimizes_in_both_dtypes(method, dtype):
    x0 = {"a": torch.tensor([[-1.2, 1.0]], dtype=dtype), "b": torch.tensor(3.0, dtype=dtype)}
    s = METHODS[method](lambda x: rosenbrock(x["a"][0]) + torch.cosh(x["b"] - 1), x0).checked()
    tolerance = 1e-9 if dtype is torch.float64 else 1e-3
    assert s.x["a"].shape == (1, 2)
    assert s.x["a"].dtype == dtype
    assert float((s.x["a"] - 1).abs().max()) <= tolerance
    assert float((s.x["b"] - 1).abs()) <= tolerance
    assert s.method.startswith(method)
    assert x0["b"] == 3


def whole_matrices(p):
    """The collection's Hessian, which costs as much as a product with it."""
    return lambda x: from_matrix(torch.from_numpy(np.array(p.raw.hess(x.numpy()), dtype=float)), facts="symmetric")


@pytest.mark.parametrize("name", FREE)
def test_problems_of_the_cutest_collection_reach_their_known_values(name):
    p = problem(name)
    # DENSCHND creeps through a narrow valley to x = 0, where no step is small beside x
    enough = (lambda now: now.value < 1e-20) if name == "DENSCHND" else None
    s = minimize(p.f, p.x0, hessian=whole_matrices(p), observe=enough)
    assert s.converged or (name == "DENSCHND" and s.value < 1e-20), s.message
    assert s.value <= FREE[name] + 1e-6 * max(1.0, abs(FREE[name]))


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_problems_of_the_collection_meet_their_kkt_conditions(name):
    p = problem(name)
    s = minimize(p.f, p.x0, bounds=(p.lower, p.upper), hessian=whole_matrices(p))
    assert s.converged, s.message
    assert bool(((s.x >= p.lower) & (s.x <= p.upper)).all())
    at_side = torch.where(
        s.bound_multipliers > 0, s.x - p.upper, torch.where(s.bound_multipliers < 0, s.x - p.lower, 0.0)
    )
    assert float(at_side.abs().max()) == 0
    assert (
        float((s.gradient + s.bound_multipliers).abs().max())
        == s.residual
        <= 1e-6 * max(1, float(s.gradient.abs().max()))
    )
    if BOUNDED[name] is not None:
        assert s.value <= BOUNDED[name] + 1e-6 * max(1.0, abs(BOUNDED[name]))


def test_rosenbrock_in_a_hundred_thousand_dimensions_needs_products_alone():
    n = 100_000
    x0 = START.repeat(n // 2)
    s = minimize(lambda x: (100 * (x[1::2] - x[::2] ** 2) ** 2 + (1 - x[::2]) ** 2).sum(), x0).checked()
    assert float((s.x - 1).abs().max()) <= 1e-9
    assert s.products <= 100
    assert "Krylov" in s.method


def test_a_small_network_is_trained_to_a_gradient_of_1e8():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    g = torch.Generator().manual_seed(1)
    X = torch.randn(60, 3, generator=g, dtype=torch.float64)
    y = (X @ torch.randn(3, 3, generator=g, dtype=torch.float64)).argmax(1)
    objective = Objective(model, cross_entropy(), [(X, y)], penalty=l2(1e-2))
    before = objective.point
    s = minimize(objective, gtol=1e-8).checked()
    assert s.residual <= 1e-8
    assert s.value == pytest.approx(float(objective.value(s.x)))
    assert torch.equal(objective.point, before)
    named = minimize(objective, objective.space.unflatten(s.x), gtol=1e-8)
    assert set(named.x) == set(objective.space.names)
    assert named.iterations == 0
    fitted = minimize(objective, gtol=1e-6, hessian=lambda x: gauss_newton(objective, x=x), max_iterations=4)
    assert fitted.value < 0.9 * fitted.history[0]
    assert "given curvature" in fitted.method


def test_a_preconditioner_saves_products():
    d = torch.logspace(0, 5, 200, dtype=torch.float64)
    x0 = torch.ones(200, dtype=torch.float64)

    def f(x):
        return (d * (x * x + 0.1 * x**4)).sum()

    plain, helped = minimize(f, x0, gtol=1e-6), minimize(f, x0, gtol=1e-6, preconditioner=from_diagonal(1 / d))
    assert plain.converged
    assert helped.converged
    assert helped.products < plain.products / 3


def test_a_saddle_is_left_and_reported_where_that_is_not_wanted():
    def f(x):
        return x[0] ** 2 - 2 * x[1] ** 2 + x[1] ** 4

    zero = torch.zeros(2, dtype=torch.float64)
    s = minimize(f, zero).checked()
    assert s.x.abs().tolist() == pytest.approx([0, 1])
    assert "1 saddle points were left" in s.message
    stay = minimize(f, zero, escape=False)
    assert stay.x.tolist() == [0, 0]
    assert "the point is no minimum" in stay.message
    assert stay.curvature.abs().tolist() == pytest.approx([0, 1])
    top = minimize(lambda x: -(x * x).sum(), zero)
    assert top.status is Status.UNBOUNDED


def test_values_without_end_below_are_unbounded():
    for method in METHODS:
        s = METHODS[method](lambda x: x[0] - 1e-3 * x[1] ** 3, START)
        assert s.status is Status.UNBOUNDED, (method, s.message)
        with pytest.raises(NotConverged, match=r"minimize: .*unbounded"):
            s.checked()


def test_a_wrong_gradient_stagnates_and_a_limit_is_a_limit():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x * x).sum()

        @staticmethod
        def backward(ctx, *us):
            (x,) = ctx.saved_tensors
            return -2 * us[0] * x

    for method in METHODS:
        s = METHODS[method](Wrong.apply, START, hessian=lambda x: from_diagonal(torch.ones(2).double()))
        assert s.status is Status.STAGNATED, method
        assert "not have this gradient" in s.message
    assert minimize(rosenbrock, START, max_iterations=3).status is Status.MAX_ITERATIONS
    stopped = minimize(rosenbrock, START, observe=lambda s: s.iteration == 3)
    assert (stopped.status, stopped.iterations) == (Status.STOPPED, 3)


class Scaled(torch.autograd.Function):
    """sum x^2 + sum x^4 / 4 whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return (x * x).sum() + (x**4).sum() / 4

    @staticmethod
    def backward(ctx, *us):
        (x,) = ctx.saved_tensors
        return us[0] * ctx.factor * (2 * x + x**3), None


@pytest.mark.parametrize("factor", [5.0, 30.0, 1e3, 1e6])
@pytest.mark.parametrize("method", ["trust-region", "gradient-regularized", "projected-newton"])
def test_a_gradient_that_is_too_long_is_said_to_be_wrong(method, factor):
    x0 = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
    s = minimize(
        lambda x: Scaled.apply(x, factor),
        x0,
        method=method,
        bounds=(-5.0, 5.0) if method == "projected-newton" else None,
        hessian=lambda x: from_diagonal(factor * (2 + 3 * x * x)),
        max_iterations=60,
    )
    right = s.x.abs().max() <= 1e-6  # steps as long as those of f itself find the minimum all the same
    assert s.converged if right else s.status is Status.STAGNATED
    assert right or "its gradient" in s.message or "not have this gradient" in s.message


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_limit_of_iterations_is_no_wrong_gradient(method, limit):
    for x0 in (START, 1e3 * START, 1e-3 * START):
        s = METHODS[method](rosenbrock, x0, max_iterations=limit)
        assert s.status is Status.MAX_ITERATIONS, s.message


def test_larger_tolerances_end_the_run_earlier():
    tight, loose, few = (
        minimize(rosenbrock, START),
        minimize(rosenbrock, START, gtol=1e-3),
        minimize(rosenbrock, START, ftol=0.3),
    )
    assert tight.iterations > loose.iterations > few.iterations
    assert loose.residual <= 1e-3


def test_products_are_those_with_the_hessian():
    count = [0]

    def curvature(x):
        H = hessian(rosenbrock, x)

        def product(V):
            count[0] += V.shape[1]
            return H @ V

        return from_callable(product, H.domain, facts="symmetric")

    s = minimize(rosenbrock, torch.full((5,), -1.2, dtype=torch.float64), hessian=curvature)
    assert s.products == count[0] > 0
    assert s.evaluations >= s.gradients


def test_the_logistic_problem_is_solved_by_all_from_where_newton_fails():
    f, x0 = far_logistic()
    for method in METHODS:
        s = METHODS[method](f, x0, gtol=1e-11)
        assert float(s.gradient.norm()) <= 1e-10, method
        assert s.iterations <= 40, method


def test_one_dimension_and_a_start_at_the_solution():
    assert float(minimize(lambda x: (x - 2) ** 4, torch.tensor(0.0).double()).x) == pytest.approx(2, abs=1e-3)
    done = minimize(lambda x: (x * x).sum(), torch.zeros(3))
    assert (done.converged, done.iterations, done.value) == (True, 0, 0.0)
    constant = minimize(lambda x: 0 * x.sum() + 2, torch.ones(2))
    assert constant.converged


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"f": 3}, TypeError, "f must be a function of x or an Objective, got int"),
        ({"x0": None}, TypeError, "x0 must be given for a function, got None"),
        ({"x0": [1.0]}, TypeError, "minimize: x0 must be a tensor or a dict of tensors, got list"),
        ({"x0": torch.zeros(0)}, ValueError, "x0 must have at least one entry, got none"),
        ({"x0": torch.tensor([math.nan])}, ValueError, "x0 must be finite, got nan in an entry"),
        ({"method": "newton"}, ValueError, "method must be one of 'auto'.*got 'newton'"),
        (
            {"method": "trust-region", "bounds": (0, 1)},
            ValueError,
            "method must be 'projected-newton' between bounds, got 'trust-region'",
        ),
        ({"method": "projected-newton"}, ValueError, "bounds must be given for method='projected-newton', got None"),
        ({"gtol": -1.0}, ValueError, "gtol must be a number >= 0, got -1.0"),
        ({"ftol": math.nan}, ValueError, "ftol must be a number >= 0, got nan"),
        ({"max_iterations": -1}, ValueError, "max_iterations must be an int >= 0, got -1"),
        ({"max_basis": 0}, ValueError, "max_basis must be an int >= 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be an int >= 0, got -1"),
        ({"hessian": 3}, TypeError, "hessian must be a function of x, got int"),
        ({"preconditioner": 3}, TypeError, "preconditioner must be a LinearOperator, got int"),
        (
            {"preconditioner": from_diagonal(-torch.ones(2).double())},
            ValueError,
            "preconditioner must be positive definite",
        ),
        ({"f": lambda x: x.sum().log(), "x0": -START}, NonFinite, "f must be finite at x0, got f = -1.609"),
        ({"f": lambda x: (x - x).sqrt().sum()}, NonFinite, "the gradient of f must be finite at x0"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, sentence):
    given = {"f": rosenbrock, "x0": START, **arguments}
    if sentence.startswith("f must be finite"):
        given["f"], sentence = (lambda x: (x - 5).log().sum()), "f must be finite at x0, got f = nan"
    with pytest.raises(error, match=sentence):
        minimize(given.pop("f"), given.pop("x0"), **given)


def test_an_objective_takes_flat_points_or_dicts():
    model = torch.nn.Linear(2, 2)
    objective = Objective(model, cross_entropy(), [(torch.eye(2), torch.tensor([0, 1]))], penalty=l2(0.1))
    with pytest.raises(
        ValueError, match=r"x0 must be torch.float32 of shape \(6,\) or a dict, got torch.float32 of shape \(2,\)"
    ):
        minimize(objective, torch.zeros(2))
    assert minimize(objective, torch.zeros(6)).converged


@pytest.mark.parametrize("method", ["auto", "composite", "augmented"])
def test_constraints_are_met_with_their_multipliers(method):
    a, seen = torch.tensor([3.0, 4.0], dtype=torch.float64), []

    def observe(now):
        seen.append(now.infeasibility)
        return False

    f, sphere = (lambda x: (x - a).square().sum()), (lambda x: x @ x - 1.0)
    s = minimize(f, torch.ones_like(a), method=method, constraints=sphere, observe=observe)
    assert s.converged
    assert torch.allclose(s.x, a / 5, atol=1e-8)
    assert float(s.multipliers[0]) == pytest.approx(4.0, abs=1e-6)
    assert len(seen) >= s.iterations


def test_constraints_and_bounds_together():
    s = minimize(
        lambda x: x.square().sum(), torch.zeros(3, dtype=torch.float64), bounds=(-1.0, 0.5),
        constraints=Constraint(lambda x: x.sum(), 1.2, math.inf),
    )  # fmt: skip
    assert s.converged
    assert torch.allclose(s.x, torch.full((3,), 0.4, dtype=torch.float64), atol=1e-8)
    assert float(s.multipliers[0]) == pytest.approx(-0.8, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"method": "trust-region"},
            "must be one of 'auto', 'interior', 'composite', 'augmented' under constraints",
        ),
        ({"ftol": 1e-3}, "ftol must be left out under constraints"),
        ({"hessian": lambda x: from_matrix(torch.eye(2))}, "hessian must be left out under constraints"),
        ({"constraints": None, "ctol": 1e-3}, "ctol belongs to constraints, got none"),
        ({"constraints": None, "method": "augmented"}, "method 'augmented' belongs to constraints, got none"),
    ],
)
def test_what_has_no_place_under_constraints_is_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        minimize(lambda x: x.square().sum(), START, **{"constraints": lambda x: x[0] - 1.0, **options})


@pytest.mark.parametrize("method", ["composite", "augmented"])
@pytest.mark.parametrize("by_name", [False, True])
def test_an_objective_under_constraints_is_its_loss_under_constraints(method, by_name):
    g = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(20, k, generator=g, dtype=torch.float64) for k in (3, 2))
    model = torch.nn.Linear(3, 2).double()
    objective = Objective(model, torch.nn.MSELoss(), [(X[:11], Y[:11]), (X[11:], Y[11:])], penalty=l2(0.01))
    x0 = {n: p.detach().clone() for n, p in model.named_parameters()}

    def loss(p):
        penalty = 0.005 * sum(b.square().sum() for b in p.values())
        return torch.nn.functional.mse_loss(X @ p["weight"].T + p["bias"], Y) + penalty

    def rows(p):
        return p["weight"].square().sum(1)

    def flat_rows(x):
        return rows(objective.space.unflatten(x))

    sides = (0.0, 0.04) if method == "composite" else (0.04, 0.04)  # equalities alone for the other
    expected = minimize(loss, x0, constraints=Constraint(rows, *sides), method=method).checked()
    start, row = (x0, rows) if by_name else (None, flat_rows)
    s = minimize(objective, start, constraints=Constraint(row, *sides), method=method).checked()
    x = s.x if by_name else objective.space.unflatten(s.x)
    assert float(expected.multipliers[0].abs().max()) > 1e-3  # a row is as long as it may be
    for name, block in x.items():
        assert torch.allclose(block, expected.x[name], atol=1e-8)
    assert torch.allclose(s.multipliers[0], expected.multipliers[0], atol=1e-7)
    assert s.value == pytest.approx(float(objective.value(x)), rel=1e-12)


def test_an_objective_that_is_not_finite_at_a_trial_point_refuses_the_step():
    class Root(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.x = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, one):
            return one * self.x.sqrt().sum()

    data = [(torch.ones(1, 1).double(), torch.full((1, 1), 3.0).double())]
    objective = Objective(Root(), torch.nn.MSELoss(), data)
    start = torch.tensor([1.0, 16.0], dtype=torch.float64)
    s = minimize(objective, start, constraints=lambda x: x[0] - 2 * x[1] - 1).checked()
    t = float(s.x[1])
    assert float(s.x[0]) == pytest.approx(1 + 2 * t, abs=1e-8)
    assert math.sqrt(1 + 2 * t) + math.sqrt(t) == pytest.approx(3, abs=1e-6)


@pytest.mark.parametrize("unit", [1e-300, 1e-100, 1e100, 1e300])
@pytest.mark.parametrize("method", METHODS)
def test_units_of_f_do_not_matter(method, unit):
    s = METHODS[method](lambda x: unit * rosenbrock(x), START)
    assert s.converged
    assert torch.allclose(s.x, torch.ones(2, dtype=torch.float64), atol=1e-6)
    assert s.history[0] == pytest.approx(24.2 * unit)
    assert s.value <= 1e-12 * unit


@pytest.mark.parametrize("unit", [1e-100, 1e100])
def test_units_do_not_matter_to_a_given_curvature_an_objective_or_a_tolerance(unit):
    def f(x):
        return unit * rosenbrock(x)

    given = minimize(f, START, hessian=lambda x: hessian(f, x))
    own = minimize(f, START)
    assert given.converged
    assert given.iterations <= own.iterations + 2
    early = minimize(f, START, gtol=unit)
    assert 1e-3 * unit < early.residual <= unit
    model = torch.nn.Linear(2, 1).double()
    x, y = torch.eye(2, dtype=torch.float64), torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    objective = unit * Objective(model, torch.nn.MSELoss(), [(x, y)], penalty=l2(0.1))
    s, plain = minimize(objective), minimize(Objective(model, torch.nn.MSELoss(), [(x, y)], penalty=l2(0.1)))
    assert s.converged
    assert s.iterations <= plain.iterations + 2
    assert torch.allclose(s.x, plain.x, atol=1e-8)
    assert s.value == pytest.approx(unit * plain.value)


KINKS = {
    "abs": lambda x: x.abs().sum(),
    "max": lambda x: (torch.arange(1.0, 6.0, dtype=x.dtype) * x).max(),
    "step": lambda x: (x > 0).to(x.dtype).sum() + x.square().sum(),
    "root": lambda x: x.abs().sqrt().sum(),
    "noise": lambda x: x.square().sum() + 1e-9 * torch.sin(1e9 * x).sum(),
    "line": lambda x: x.sum(),
    "saddle": lambda x: x[0] * x[1] + x[2] ** 2 - x[3] * x[4],
    "flat": lambda x: (x**40).sum(),
}


@pytest.mark.parametrize("name", KINKS)
@pytest.mark.parametrize("method", [*METHODS, "projected-newton"])
def test_trouble_ends_with_a_status_and_a_sentence(method, name):
    bounds = (-2.0, 3.0) if method == "projected-newton" else None
    for start in (1.0, 0.3, 1e5):
        x0 = torch.full((5,), start, dtype=torch.float64)
        most = 300 if name in ("line", "saddle") else 60
        s = (
            minimize(KINKS[name], x0, bounds=bounds, max_iterations=most)
            if bounds
            else METHODS[method](KINKS[name], x0, max_iterations=most)
        )
        assert s.message
        if name in ("line", "saddle") and bounds is None:
            assert s.status is Status.UNBOUNDED


def test_a_function_without_a_graph_is_refused():
    with pytest.raises(NotDifferentiable, match="f must depend on x through torch operations"):
        minimize(lambda x: x.detach().square().sum(), START)


def test_a_long_history_is_kept_and_not_printed():
    s = minimize(lambda x: rosenbrock(x), torch.full((4,), -1.2, dtype=torch.float64))
    assert len(s.history) == s.iterations + 1
    assert "history" not in repr(s)
