"""Small problems by the line search: each kind of trouble with problems written out, and answers known by hand."""

import math

import pytest
import torch

from frechet.linalg._result import Status
from frechet.optimize import Constraint
from frechet.optimize._constrained.constrained import constrained

F64, INF = torch.float64, math.inf


def vector(*entries):
    return torch.tensor(entries, dtype=F64)


def solved(f, x0, rows=(), **options):
    return constrained(f, torch.as_tensor(x0, dtype=F64), rows, method="interior", **options)


# --- trial points where f or a row is NaN -----------------------------------------------------------------------------


@pytest.mark.parametrize("start", [(0.01, 16.0), (1e-6, 1e4), (4.0, 0.25), (1e-3, 1.0)])
@pytest.mark.parametrize("method", ["auto", "interior"])
def test_a_trial_outside_of_the_domain_shortens_the_step(start, method):
    """min -sqrt(a) - sqrt(b) with a + b = 1: a = b = 1/2; NaN beyond either axis, and no bound says so."""
    x0 = vector(*start)
    s = constrained(lambda x: -x.sqrt().sum(), x0, lambda x: x[0] + x[1] - 1, method=method)
    assert s.converged
    assert torch.allclose(s.x, vector(0.5, 0.5), atol=1e-8)
    assert float(s.multipliers[0]) == pytest.approx(math.sqrt(0.5), abs=1e-7)


@pytest.mark.parametrize(
    ("f", "row", "start", "best"),
    [  # the domain of f, of a row, and a pole
        (lambda x: x[1] - x[0].log(), lambda x: x[0] - 2 * x[1], (0.01, 16.0), (2.0, 1.0)),
        (lambda x: x.sum(), lambda x: x[0].sqrt() * x[1] - 2, (0.01, 16.0), (1.0, 2.0)),
        (lambda x: (1 / x).sqrt().sum(), lambda x: x.sum() - 4, (0.1, 0.2), (2.0, 2.0)),
        (lambda x: (x - 3).square().sum(), lambda x: x.log().sum(), (0.01, 16.0), None),
    ],
    ids=["logarithm", "row with a root", "pole", "row with logarithms"],
)
def test_domains_without_bounds(f, row, start, best):
    s = solved(f, start, row)
    assert s.converged
    assert s.infeasibility <= 1e-8
    if best is not None:
        assert torch.allclose(s.x, vector(*best), atol=1e-6)


# --- constraints that cannot be met, and those that nearly cannot -----------------------------------------------------


@pytest.mark.parametrize(
    ("row", "least"),
    [
        (lambda x: x @ x + 1, 1.0),
        (lambda x: torch.stack([x.sum() - 1, x.sum() - 3]), 1.0),
        (lambda x: (x[0] - x[1]).exp() + 0.5 + x[0] ** 2, None),
    ],
    ids=["sphere of negative square", "parallel planes", "positive function"],
)
@pytest.mark.parametrize("start", [(0.5, 2.0), (-3.0, 1.0)])
def test_contradicting_equalities_are_infeasible(row, least, start):
    s = constrained(lambda x: x.sum(), vector(*start), row, max_iterations=200)  # the third falls for ever
    assert s.status is Status.INFEASIBLE or (least is None and not s.converged)
    if least is not None:
        assert s.infeasibility == pytest.approx(least, abs=1e-5)


@pytest.mark.parametrize("gap", [1e-3, 1.0, 1e3])
def test_contradicting_sides_are_infeasible(gap):
    rows = [Constraint(lambda x: x.sum(), -INF, -gap), Constraint(lambda x: x[0] - x[1], 0.0, 1.0)]
    s = constrained(lambda x: x @ x, vector(1.0, 1.0), rows, bounds=(0.0, INF))
    assert s.status is Status.INFEASIBLE


@pytest.mark.parametrize("start", [(3.0, 3.0), (-3.0, 5.0), (0.0, 0.0), (10.0, -10.0)])
def test_restoration_leads_to_a_curved_thin_set(start):
    """The set between two parabolas 1e-3 apart, on a circle."""
    rows = [
        Constraint(lambda x: x[1] - x[0] ** 2, 0.0, 1e-3),
        Constraint(lambda x: x @ x, -INF, 2.0),
    ]
    s = solved(lambda x: -x[0], start, rows)
    assert s.converged
    assert float(s.x @ s.x) <= 2 + 1e-8
    t = (math.sqrt(1 + 4 * 2.0) - 1) / 2  # x1 = x0^2 on the circle: the farthest point
    assert torch.allclose(s.x, vector(math.sqrt(t), t), atol=1e-7)


# --- dependent rows, vertices with more sides than variables ----------------------------------------------------------


@pytest.mark.parametrize("copies", [2, 3, 6])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_repeated_equalities_change_nothing(copies, unit):
    a = vector(1.0, 2.0, 3.0)
    rows = lambda x: unit * torch.stack([k * (x.sum() - 1) for k in range(1, copies + 1)])  # noqa: E731
    s = solved(lambda x: ((x - a) ** 2).sum(), (0.0, 0.0, 0.0), rows)
    assert s.converged
    assert torch.allclose(s.x, a - 5 / 3, atol=1e-8)
    assert float(s.multipliers[0].abs().max()) < 1e4 / unit


@pytest.mark.parametrize("sides", [3, 6, 12])
def test_vertex_of_more_sides_than_variables(sides):
    """min -y below the lines y <= 1 + k x and y <= 1 - k x, which all meet at (0, 1)."""
    slopes = torch.linspace(-1.0, 1.0, sides, dtype=F64)
    s = solved(lambda x: -x[1], (0.3, -2.0), Constraint(lambda x: x[1] - slopes * x[0], -INF, 1.0))
    assert s.converged
    assert float(s.x[1]) == pytest.approx(1.0, abs=1e-8)
    assert float(s.multipliers[0].sum()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("rows", [50, 400, 1500])
def test_many_more_rows_than_variables(rows):
    """Semi-infinite: the least disk around points of the unit circle, by tangents."""
    t = torch.arange(rows, dtype=F64) * (2 * math.pi / rows)
    N = torch.stack([t.cos(), t.sin()], 1)
    c = vector(0.6, 0.8)
    s = solved(lambda x: -(c @ x), (0.1, -0.3), Constraint(lambda x: N @ x, -INF, 1.0))
    assert s.converged
    assert float(c @ s.x) == pytest.approx(1 / math.cos(math.pi / rows), abs=2e-2 / rows)
    assert float((N @ s.x).max()) <= 1 + 1e-8


# --- curvature: saddle points, and rows that bend ---------------------------------------------------------------------


@pytest.mark.parametrize("start", [(0.5, 0.1), (0.1, 0.9), (-0.7, 0.2)])
def test_negative_curvature_is_left_for_the_sides(start):
    s = solved(lambda x: -(x[0] ** 2) - 2 * x[1] ** 2, start, bounds=(-1.0, 1.0))
    assert s.converged
    assert s.value == pytest.approx(-3.0, abs=1e-8)


@pytest.mark.parametrize("angle", [0.1, 1.0, 2.0, 3.0])
def test_second_order_corrections_keep_full_steps_on_a_circle(angle):
    """Maratos: f = 2 (x'x - 1) - x0 on the circle; full Newton steps raise both f and the violation."""
    x0 = (math.cos(angle), math.sin(angle))
    s = solved(lambda x: 2 * (x @ x - 1) - x[0], x0, lambda x: x @ x - 1)
    assert s.converged
    assert torch.allclose(s.x, vector(1.0, 0.0), atol=1e-7)
    assert s.iterations <= 15
    assert float(s.multipliers[0]) == pytest.approx(-1.5, abs=1e-6)


# --- starts, fixed variables, forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [(-5.0, 9.0), (0.0, 1.0), (1.0, 0.0), (1e6, -1e6)])
def test_starts_on_and_outside_of_bounds(start):
    seen = []

    def f(x):
        seen.append(x.detach().clone())
        return (x.log() * x).sum() + (1 - x).square().sum()

    s = solved(f, start, lambda x: x.sum() - 1, bounds=(0.0, 1.0))
    assert s.converged
    assert torch.allclose(s.x, vector(0.5, 0.5), atol=1e-8)
    assert all(bool(((x >= 0) & (x <= 1)).all()) for x in seen)


def test_fixed_variables_and_open_rows():
    lower, upper = vector(2.0, -INF, 0.0), vector(2.0, INF, 1.0)
    open_row = Constraint(lambda x: x.exp(), -INF, INF)
    s = solved(
        lambda x: (x - 5).square().sum(), (0.0, 0.0, 0.5), [open_row, lambda x: x[0] + x[1] - 3], bounds=(lower, upper)
    )
    assert s.converged
    assert torch.allclose(s.x, vector(2.0, 1.0, 1.0), atol=1e-8)


def test_dicts_of_parameters():
    x0 = {"a": torch.zeros(2, dtype=F64), "b": torch.ones(1, 1, dtype=F64)}
    s = constrained(
        lambda p: (p["a"] - 1).square().sum() + p["b"].square().sum(),
        x0,
        lambda p: p["a"].sum() + p["b"].sum() - 4,
        method="interior",
    )
    assert s.converged
    assert torch.allclose(s.x["a"], vector(5 / 3, 5 / 3), atol=1e-8)
    assert s.x["b"].shape == (1, 1)


def test_the_run_is_watched_and_stopped():
    states = []
    s = solved(
        lambda x: x[0] ** 4 + x[1] ** 2,
        (3.0, 4.0),
        Constraint(lambda x: x.sum(), 1.0, INF),
        observe=lambda state: states.append(state) or len(states) == 4,
    )
    assert s.status is Status.STOPPED
    assert [state.iteration for state in states] == [0, 1, 2, 3]
    assert all(state.barrier > 0 for state in states)


def test_a_point_is_evaluated_once():
    """Every accepted trial keeps its graph: f is asked once at each point."""
    asked = []

    def f(x):
        asked.append(tuple(x.detach().tolist()))
        return (x - 3).square().sum() + x.prod()

    s = solved(f, (1.0, 2.0), Constraint(lambda x: x.sum(), -INF, 2.0))
    assert s.converged
    assert len(set(asked)) >= len(asked) - 1  # the start is asked once more, before its kind is known


def test_unbounded_is_named():
    s = solved(lambda x: -x[0] - x[1] ** 2, (1.0, 1.0), Constraint(lambda x: x[0] - x[1], 0.0, INF))
    assert s.status is Status.UNBOUNDED
