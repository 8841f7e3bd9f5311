"""Problems with something wrong with them: a status and a sentence that says what, or a raise for a wrong argument."""

import math
from functools import partial

import pytest
import torch

from frechet.errors import NonFinite
from frechet.linalg._result import Status
from frechet.optimize import studies
from frechet.optimize._equations.fixed_point import fixed_point
from frechet.optimize._equations.root import root
from frechet.optimize._least_squares.flat_model import ran_away
from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._least_squares.least_squares_batch import least_squares_batch
from frechet.optimize._least_squares.residual import Residual
from frechet.optimize._least_squares.start import begin, first_linearization
from frechet.optimize._smooth.minimize import minimize
from frechet.space import euclidean
from nist import load
from spectra import F64

METHODS = ["levenberg-marquardt", "adaptive-damping", "gauss-newton", "dogleg", "interior"]
ONE, TWO = torch.ones(1, dtype=F64), torch.ones(2, dtype=F64)


def both(residual, x0, **options):
    """The solution by least_squares, and by the batch of two copies."""
    alone = least_squares(residual, x0, **options)
    many = least_squares_batch(residual, x0.expand(2, -1), **options)
    return alone, many


# --- singular and rank-deficient --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_deficient_jacobian_converges_and_is_told(method):
    s = least_squares(lambda x: torch.stack([x[0] + x[1] - 3, 2 * (x[0] + x[1]) - 6.5]), TWO, method=method)
    assert s.converged
    assert s.rank == 1
    assert s.null_directions.shape == (2, 1)


def test_a_zero_column_everywhere_is_a_null_direction_and_no_failure():
    s, many = both(lambda x: torch.stack([x[0] - 3, x[0] - 4 + 0 * x[1]]), TWO)
    assert s.converged
    assert torch.isinf(s.standard_errors[1])
    assert bool(many.converged.all())
    assert bool(torch.isinf(many.standard_errors[:, 1]).all())


def test_a_singular_root_is_found_or_refused_and_never_a_failure_of_lapack():
    s = root(lambda x: torch.stack([x[0] + x[1] - 1, x[0] + x[1] - 2]), TWO)  # no root: parallel lines
    assert s.status not in (Status.CONVERGED, Status.MAX_ITERATIONS)
    assert s.message
    s = root(lambda x: x**2, ONE)  # a double root
    assert s.converged
    assert abs(float(s.x)) < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_jacobian_with_a_residual_is_no_solution(method):
    s = least_squares(lambda x: 1 + 0 * x, ONE, method=method)
    assert s.status is Status.STAGNATED
    assert "the Jacobian is zero" in s.message
    many = least_squares_batch(lambda x: 1 + 0 * x, ONE.expand(2, 1))
    assert set(many.status) == {Status.STAGNATED}
    assert "the model is flat there" in many.message(0)


# --- flat at infinity -------------------------------------------------------------------------------------------------


def test_parameters_that_ran_to_infinity_are_not_called_converged():
    regression = load("MGH17")
    s = least_squares(regression.residual, regression.starts[0], method="gauss-newton")
    assert regression.digits(s.x) < 4
    assert s.status is Status.STAGNATED
    assert "the residual no longer depends on parameter" in s.message
    assert "3 (at " in s.message


@pytest.mark.parametrize("method", METHODS)
def test_an_exponential_that_has_died_out_is_not_called_converged(method):
    t = torch.arange(1.0, 6.0, dtype=F64)
    # the best rate is infinite: the data are below zero
    s = least_squares(lambda x: torch.exp(-x * t) + 1, ONE, method=method, max_evaluations=400)
    assert not s.converged
    assert s.message


def test_a_minimum_at_which_the_jacobian_vanishes_is_one_where_equations_are_fewer_than_parameters():
    s = least_squares(lambda x: (x.square().sum() + 1.0).reshape(1), torch.tensor([1.0, 0.5, 2.0], dtype=F64))
    assert s.converged
    assert s.cost == 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_root_in_a_narrow_valley_is_converged_only_where_it_is_reached(method):
    def residual(x):
        a, b, c = x.unbind()
        return torch.stack([a**2 + b**3 - c**4, 2 * a * b * c, 2 * a * b - 3 * b * c + a * c])

    s = least_squares(residual, torch.tensor([10.0, 10.0, 10.0], dtype=F64), method=method)
    assert s.residual < 1e-20
    assert not s.converged or float(s.x.abs().max()) < 1e-7
    assert s.message


@pytest.mark.parametrize("method", METHODS)
def test_a_column_that_vanishes_at_a_true_minimum_is_no_reason_to_refuse(method):
    s = least_squares(lambda x: torch.stack([(x[0] - 5) ** 2, 1 + 0 * x[0]]), ONE, method=method)
    assert s.converged
    assert float(s.x) == pytest.approx(5, abs=1e-3)


def test_a_problem_of_many_that_ran_to_infinity_is_not_called_converged():
    t = torch.arange(1.0, 6.0, dtype=F64)
    y = torch.stack([torch.exp(-0.5 * t), -torch.ones(5, dtype=F64)])  # the best rate of the second is infinite
    many = least_squares_batch(lambda x, y: torch.exp(-x * t) - y, ONE, y)
    assert many.converged.tolist() == [True, False]
    assert many.message(0).startswith("no step can reduce the cost by more than rounding errors")
    assert many.message(1)


def test_a_rank_that_falls_on_the_way_is_told():
    regression = load("Rat43")
    s = least_squares(regression.residual, regression.starts[0], method="adaptive-damping")
    assert regression.digits(s.x) > 4 or "rank 2 there and had 4 at the start" in s.message


# --- badly scaled -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1e-150, 1e-8, 1e8, 1e150])
def test_units_of_parameters_and_residuals_do_not_matter(unit):
    t = torch.linspace(0, 3, 9, dtype=F64)
    y = 2 * torch.exp(-0.7 * t) + 0.05 * torch.cos(9 * t)

    def r(x):
        return x[0] * torch.exp(-x[1] * t) - y

    start, scale = torch.tensor([1.0, 0.1], dtype=F64), torch.tensor([unit, 1 / unit], dtype=F64)
    plain, plain_many = both(r, start)
    s, many = both(lambda x: r(x / scale), start * scale)
    assert s.converged
    assert torch.allclose(s.x / scale, plain.x, rtol=1e-9)
    assert bool(many.converged.all())
    assert torch.allclose(many.x / scale, plain_many.x, rtol=1e-9)


# --- infeasible and unbounded -----------------------------------------------------------------------------------------


def test_crossed_bounds_are_a_wrong_argument():
    for solver in (least_squares, lambda r, x, **o: least_squares_batch(r, x[None], **o), root):
        with pytest.raises(ValueError, match="bounds"):
            solver(lambda x: x, ONE, bounds=(2.0, 1.0))


def test_what_cannot_be_met_within_the_bounds_ends_on_them():
    s, many = both(lambda x: x - 5, ONE, bounds=(0.0, 2.0))
    assert s.converged
    assert s.active.tolist() == [1]
    assert s.residual == pytest.approx(3)
    assert bool(many.converged.all())
    found = root(lambda x: x - 5, ONE, bounds=(0.0, 2.0))
    assert not found.converged
    assert found.message


@pytest.mark.parametrize("method", METHODS)
def test_a_cost_that_falls_for_ever_is_never_converged(method):
    s = least_squares(lambda x: 1 / x, ONE, method=method, max_evaluations=200)
    assert not s.converged or s.residual < 1e-100
    assert s.message


def test_a_map_without_fixed_point_and_an_equation_without_root_are_told():
    found = fixed_point(lambda x: x + 1, ONE, max_iterations=50)
    assert not found.converged
    assert found.message
    found = root(lambda x: x**2 + 1, ONE)
    assert not found.converged
    assert found.message
    found = root(lambda x: torch.exp(-x), ONE, max_iterations=20)  # the root is at infinity
    assert not found.converged or float(torch.exp(-found.x)) < 1e-6


# --- not finite -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_nan_on_the_way_refuses_the_step(method):
    s = least_squares(lambda x: torch.sqrt(x) - 0.1, ONE, method=method)
    assert s.converged
    assert float(s.x) == pytest.approx(0.01, rel=1e-9)


def test_nan_at_the_start_is_named():
    with pytest.raises(NonFinite, match="residual must be finite at x0, got nan in entry 0"):
        least_squares(lambda x: torch.sqrt(x - 2), ONE)
    with pytest.raises(NonFinite, match="the Jacobian must be finite at x0"):
        least_squares(lambda x: torch.sqrt(x - 1) + x, ONE)
    with pytest.raises(NonFinite, match="must be finite at the starts, got NaN or infinity in problem 1"):
        least_squares_batch(lambda x: torch.sqrt(x - 2), torch.tensor([[3.0], [1.0]], dtype=F64))
    with pytest.raises(ValueError, match="x0 must be finite, got nan"):
        least_squares(lambda x: x, ONE * math.nan)


def test_nan_at_the_start_of_roots_and_fixed_points_is_named():
    with pytest.raises(NonFinite, match=r"root: F must be finite at x0, got nan in entry 0 .*; start where F is"):
        root(lambda x: torch.log(x - 2), ONE)
    try:
        status = fixed_point(lambda x: torch.log(x - 2), ONE).status
    except NonFinite:
        status = Status.NONFINITE
    assert status is Status.NONFINITE


def test_nan_everywhere_but_at_the_start_is_not_converged():
    def r(x):
        return torch.where(x == 1, x, x * math.nan)

    s, many = both(r, ONE)
    assert not s.converged
    assert s.message
    assert not bool(many.converged.any())


# --- discontinuous ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_jump_is_not_a_solution(method):
    s = least_squares(lambda x: torch.where(x < 0.3, x + 2, x - 0.1), ONE, method=method)
    assert s.status is Status.STAGNATED
    assert "discontinuous" in s.message


def test_a_jump_is_not_a_solution_for_many_problems_or_roots():
    def jump(x):
        return torch.where(x < 0.3, x + 2, x - 0.1)

    many = least_squares_batch(jump, ONE.expand(2, 1))
    assert not bool(many.converged.any())
    assert set(many.status) == {Status.STAGNATED}
    assert "discontinuous" in many.message(0)
    found = root(jump, ONE)
    assert not found.converged
    assert found.message


# --- refused down to nothing ------------------------------------------------------------------------------------------


class WrongSlope(torch.autograd.Function):
    """abs(x), with the derivative -1: every step is refused."""

    @staticmethod
    def forward(ctx, x):
        return x.abs()

    @staticmethod
    def backward(ctx, grad):
        return -grad


def wrong(x):
    return WrongSlope.apply(x)


@pytest.mark.parametrize("start", [0.0, 1e-200, 1e-300])
@pytest.mark.parametrize(
    "method", ["trust-region", "gradient-regularized", "stepsized", "cubic", "projected-newton", "composite"]
)
@pytest.mark.parametrize("size", [2, 70])
def test_steps_of_minimize_that_are_refused_until_they_vanish_are_a_status(method, start, size):
    studied = {"stepsized": studies.stepsized_newton, "cubic": studies.cubic_newton}
    options = {
        "projected-newton": {"bounds": (-1.0, 1.0)},
        "composite": {"constraints": lambda x: x[:1] - x[1:2]},
    }.get(method, {})
    found = studied.get(method, partial(minimize, method=method))
    x0 = torch.full((size,), start, dtype=F64)
    s = found(lambda x: wrong(x).sum(), x0, max_iterations=200, **options)
    assert s.status in (Status.STAGNATED, Status.MAX_ITERATIONS)  # steps below the rounding of f reduce its gradient
    assert s.message
    assert float(s.x.abs().max()) <= 1e-15


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("start", [0.0, 1e-300])
@pytest.mark.parametrize("method", [*METHODS, "products"])
def test_steps_of_least_squares_that_are_refused_until_they_vanish_are_a_status(method, start, bounds):
    options = {"jacobian": "products"} if method == "products" else {"method": method}
    s = least_squares(
        lambda x: 1 + wrong(x), torch.full((2,), start, dtype=F64), bounds=bounds, max_evaluations=10**5, **options
    )
    assert s.status is Status.STAGNATED
    assert s.message
    found = root(lambda x: 1 + wrong(x), torch.full((2,), start, dtype=F64), bounds=bounds, max_iterations=10**4)
    assert found.status is Status.STAGNATED


@pytest.mark.parametrize("upper", [2.0, 3.0, math.inf])
def test_a_move_that_a_bound_holds_back_is_no_sign_of_a_flat_model(upper):
    """J has a null space, and twice the first parameter may lie outside of the box, where r is not seen to change."""

    def r(x):
        return torch.stack([x[0] - x[1] - 1, 2 * (x[0] - x[1]) - 3])

    low, high = torch.full((2,), -5.0, dtype=F64), torch.tensor([upper, 5.0], dtype=F64)
    residual = Residual(r, euclidean(2, F64), True, low, high, torch.ones(2, dtype=F64))
    residual, start = begin(residual, torch.tensor([2.0, 0.6], dtype=F64))
    residual, linear = first_linearization(residual, start)
    assert ran_away(residual, linear, torch.ones(2, dtype=torch.bool)) == []


# --- from far away ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [5.0, 20.0, 40.0, 200.0, 400.0])
@pytest.mark.parametrize("method", [*METHODS, "root", "many"])
def test_converged_is_a_root_from_any_start(method, start):
    def F(x):
        return torch.exp(x) - 2

    x0 = torch.tensor([start], dtype=F64)
    if method == "many":
        s = least_squares_batch(F, x0.expand(2, 1))
        found, converged = s.x[0], bool(s.converged[0])
    else:
        s = root(F, x0) if method == "root" else least_squares(F, x0, method=method)
        found, converged = s.x, s.converged
    assert converged or (method == "adaptive-damping" and start >= 200)  # which creeps, and says so
    if not converged:
        return
    assert float(found) == pytest.approx(math.log(2), rel=1e-9)


@pytest.mark.parametrize("rate", [0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("method", [*METHODS, "many"])
def test_an_overflowing_start_is_never_a_fit_of_nothing(method, rate):
    t = torch.linspace(50, 590, 10, dtype=F64)
    y = 4000 * torch.exp(-0.005 * t) + 30

    def r(p, y=y):
        return p[0] * torch.exp(p[1] * t) + p[2] - y

    x0 = torch.tensor([1.0, rate, 1.0], dtype=F64)
    if method == "many":
        s = least_squares_batch(r, x0, y[None], max_evaluations=400)
        x, cost, converged, cosine = s.x[0], float(s.cost[0]), bool(s.converged[0]), float(s.optimality[0])
    else:
        s = least_squares(r, x0, method=method, max_evaluations=400)
        x, cost, converged, cosine = s.x, s.cost, s.converged, s.optimality
    true = 0.5 * float(r(x).square().sum())
    assert cost == pytest.approx(true, rel=1e-9)
    if converged:
        assert cosine <= 1e-6 or cost <= 1e-12


def test_a_pole_that_was_crossed_to_infinity_is_told():
    t = torch.tensor([0.5, 1, 2, 4, 8, 16, 32], dtype=F64)
    y = 10 * t / (5 + t) + 0.1 * torch.cos(7 * t)
    for x0 in ([0.01, 10.0], [0.01, 5.0], [0.001, 5.0], [0.1, 1.0]):
        s = least_squares(lambda b: b[0] * t / (b[1] + t) - y, torch.tensor(x0, dtype=F64))
        assert not s.converged or float(s.x.abs().max()) < 100


def sums(*powers):
    """A residual whose entries are powers of the entries of x, plus constants."""
    return lambda x: torch.stack([(x[i] - root) ** power + 0 * x.sum() for i, (root, power) in enumerate(powers)])


# roots and minima at which the Jacobian vanishes in part or whole: r, the solution, a start
VANISHING = {
    "one square": (lambda x: x**2, [0.0], [3.0]),
    "two squares": (lambda x: x**2, [0.0, 0.0], [3.0, -7.0]),
    "squares elsewhere": (sums((5.0, 2), (-1e3, 2)), [5.0, -1e3], [3.0, -7.0]),
    "cubes": (lambda x: x**3, [0.0, 0.0], [2.0, -1.0]),
    "a fourth power": (lambda x: x**4, [0.0], [1.3]),
    "a square and a line": (sums((0.0, 2), (1.0, 1)), [0.0, 1.0], [3.0, 4.0]),
    "a square and a constant": (lambda x: torch.stack([(x[0] - 5) ** 2, 1 + 0 * x[0]]), [5.0], [1.0]),
    "Powell": (
        lambda x: torch.stack(
            [x[0] + 10 * x[1], 5**0.5 * (x[2] - x[3]), (x[1] - 2 * x[2]) ** 2, 10**0.5 * (x[0] - x[3]) ** 2]
        ),
        [0.0] * 4,
        [3.0, -1.0, 0.0, 1.0],
    ),
    "a minimum above zero": (lambda x: x**2 + 5, [0.0], [-10.0]),
    "two minima above zero": (lambda x: x**2 + 5, [0.0, 0.0], [1.0, -2.0]),
}


@pytest.mark.parametrize(
    ("method", "unit"),
    [(METHODS[0], 1e-12), (METHODS[0], 1e12), ("many", 1e-12), *((m, 1.0) for m in (*METHODS, "products", "many"))],
)
@pytest.mark.parametrize("name", VANISHING)
def test_solutions_where_the_jacobian_vanishes_are_converged(name, method, unit):
    if method == "products" and name in ("two squares", "a fourth power", "two minima above zero"):
        pytest.skip("hundreds of steps until rounding, which one square, cubes and one minimum take as well")
    r, solution, start = VANISHING[name]
    x0 = torch.tensor(start, dtype=F64)

    def scaled(x):
        return unit * r(x)

    if method == "many":
        s = least_squares_batch(scaled, x0.expand(2, -1))
        x, status = s.x[0], s.status[0]
    elif method == "products":
        s = least_squares(scaled, x0, jacobian="products", max_evaluations=100 if "above" in name else None)
        x, status = s.x, s.status
    else:
        s = least_squares(scaled, x0, method=method)
        x, status = s.x, s.status
    # without second derivatives nothing tells a minimum above zero from a slow valley, and some methods creep
    assert status is Status.CONVERGED or method == "adaptive-damping" or (method == "products" and "above" in name)
    if status is Status.CONVERGED:
        assert float((x - torch.tensor(solution, dtype=F64)).abs().max()) < 1e-6 * max(1.0, abs(solution[-1]))


@pytest.mark.parametrize("start", [0.0, 1e-3, 2.0, -1e3])
@pytest.mark.parametrize("method", [*METHODS, "many"])
def test_a_minimum_where_the_cost_bends_upwards_is_solved_and_a_maximum_is_left(method, start):
    x0 = torch.tensor([start], dtype=F64)
    if method == "many":
        s = least_squares_batch(lambda x: x**2 + 5, x0.expand(2, 1))
        assert bool(s.converged.all())
        assert float(s.x.abs().max()) < 1e-5
        return
    s = least_squares(lambda x: x**2 + 5, x0, method=method)
    assert s.converged or (method == "adaptive-damping" and start != 0)  # which creeps
    if s.converged:
        assert float(s.x.abs()) < 1e-5
    if start == 0:
        s = least_squares(lambda x: 5 - x**2, x0, method=method)
        assert not s.converged or float(s.x.abs()) == pytest.approx(5**0.5)


@pytest.mark.parametrize(
    ("start", "jacobian", "bounds"),
    [
        *((start, "auto", bounds) for start in (1.0, 40.0, 300.0, 600.0) for bounds in (None, (-5.0, 700.0))),
        # a step of one for each unit of the start, of many products each: 360 is where the cost overflows
        *((start, "products", None) for start in (1.0, 40.0, 360.0)),
        (40.0, "products", (-5.0, 700.0)),
    ],
)
def test_a_cost_that_underflows_in_the_unit_of_the_start_is_no_solution(start, jacobian, bounds):
    x0 = torch.tensor([start], dtype=F64)
    s = least_squares(lambda x: torch.exp(x) - 2, x0, jacobian=jacobian, bounds=bounds)
    assert s.converged
    assert float(s.x) == pytest.approx(math.log(2), rel=1e-14)
    assert s.residual <= 1e-14


# --- starts and bounds of the wrong kind ------------------------------------------------------------------------------

SOLVERS = {
    "minimize": lambda x0, **options: minimize(lambda d: sum((v - 1).square().sum() for v in _parts(d)), x0, **options),
    "least_squares": lambda x0, **options: least_squares(
        lambda d: torch.cat([v.reshape(-1) - 1 for v in _parts(d)]), x0, **options
    ),
    "root": lambda x0, **options: root(lambda d: torch.cat([v.reshape(-1) - 1 for v in _parts(d)]), x0, **options),
    "minimize with constraints": lambda x0, **options: minimize(
        lambda d: sum((v - 1).square().sum() for v in _parts(d)),
        x0,
        constraints=lambda d: _parts(d)[0].reshape(-1)[:1] - 1,
        **options,
    ),
}


def _parts(d):
    return list(d.values()) if isinstance(d, dict) else [d]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("x0", "sentence"),
    [
        ({"a": 3.0, "b": 1.0}, "x0 must be a tensor or a dict of tensors, got float in block 'a'; write torch.tensor"),
        ({"a": ONE, "b": 1}, "x0 must be a tensor or a dict of tensors, got int in block 'b'; write torch.tensor"),
        ([1.0, 2.0], "x0 must be a tensor or a dict of tensors, got list; write torch.tensor"),
        ([ONE, ONE], r"x0 must be .*, got list; write dict\(model.named_parameters\(\)\)"),
        (torch.nn.Linear(1, 1), r"x0 must be .*, got Linear; write dict\(model.named_parameters\(\)\)"),
        (torch.tensor([1, 2]), "x0 must have a floating-point dtype, got torch.int64; write x0.double"),
        (torch.tensor([1j]), "x0 must have a floating-point dtype, got torch.complex64; split it"),
        ({"a": ONE, "b": torch.ones(1)}, "x0 must have one dtype, got torch.float64 in block 'a' and torch.float32"),
    ],
)
def test_a_start_of_the_wrong_kind_has_a_sentence(solver, x0, sentence):
    with pytest.raises(TypeError, match=f"^{solver.split()[0]}: {sentence}"):
        SOLVERS[solver](x0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_bounds_may_be_a_list_of_two_sides(solver):
    s = SOLVERS[solver](3 * TWO, bounds=[0.0, 5.0])
    assert s.converged
    assert torch.allclose(s.x, TWO, atol=1e-6)
    with pytest.raises(TypeError, match=r"bounds must be a pair \(.*\), each a number.* got a tuple in the pair"):
        SOLVERS[solver](3 * TWO, bounds=[(0.0, 5.0), (0.0, 5.0)])
