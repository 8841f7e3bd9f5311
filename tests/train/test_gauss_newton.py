import itertools
import math

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, gauss_newton, squared_error
from frechet.linalg import jacobi
from frechet.objective.criteria import gaussian, huber, poisson
from frechet.operators import identity, inverse
from frechet.operators.derivatives import kfac
from frechet.train import GaussNewtonState, gauss_newton_init, gauss_newton_step
from frechet.train._gauss_newton import slow

F64 = torch.float64
CRITERIA = {
    "cross_entropy": (cross_entropy(), 3),
    "squared_error": (squared_error(), 2),
    "poisson": (poisson(), 2),
    "huber": (huber(0.1), 1),  # has no curvature where its slope is not zero
}


def problem(name="cross_entropy", n=7, seed=0):
    criterion, C = CRITERIA[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, C)).double()
    g = torch.Generator().manual_seed(1 + seed)
    X = torch.randn(n, 5, generator=g, dtype=F64)
    y = torch.randint(0, C, (n,), generator=g) if name == "cross_entropy" else torch.rand(n, C, generator=g, dtype=F64)
    return Objective(model, criterion, [(X[:4], y[:4]), (X[4:], y[4:])])


def dense_direction(objective, damping, g=None, D=None):
    G = gauss_newton(objective).dense()
    D = torch.ones(len(G), dtype=F64) if D is None else D
    return -torch.linalg.solve(G + damping * torch.diag(D), objective.gradient() if g is None else g)


@pytest.mark.parametrize("name", list(CRITERIA))
@pytest.mark.parametrize("solver", ["cg", "gram"])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_an_unjudged_step_is_the_dense_damped_solution(name, solver, own, weighted):
    objective = problem(name)
    x, n = objective.point, objective.space.dim
    g = None if own else torch.linspace(-1, 1, n, dtype=F64)
    D = torch.linspace(0.5, 2, n, dtype=F64) if weighted else None
    options = {"solver": solver, "adapt": False, "gradient": g, "scale": D, "stop": None, "rtol": 1e-13}
    moved, state, info = gauss_newton_step(objective, x, gauss_newton_init(x, damping=0.03), lr=0.7, max_iterations=500,
                                           **options)  # fmt: skip
    d = dense_direction(objective, 0.03, g, D)
    torch.testing.assert_close(moved - x, 0.7 * d, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(state.direction, d, rtol=1e-9, atol=1e-11)
    G, true = gauss_newton(objective).dense(), objective.gradient()
    # without judging, the prediction is that of the right-hand side
    if own:
        assert info.predicted == pytest.approx(-float(0.7 * true @ d + 0.49 * d @ G @ d / 2), rel=1e-9)


@pytest.mark.parametrize("solver", ["cg", "gram"])
@pytest.mark.parametrize("clipped", [1.0, 0.01])
def test_predictions_are_those_of_the_objective_whatever_the_right_hand_side(solver, clipped):
    objective = problem()
    x = objective.point
    _, _, info = gauss_newton_step(
        objective, x, gauss_newton_init(x, damping=0.1), gradient=clipped * objective.gradient(), solver=solver
    )
    d = clipped * dense_direction(objective, 0.1)
    G, g = gauss_newton(objective).dense(), objective.gradient()
    tolerance = 1e-9 if solver == "gram" else 1e-3
    assert info.predicted == pytest.approx(-float(g @ d + d @ G @ d / 2), rel=tolerance)
    assert info.gain == pytest.approx((info.loss - info.after) / info.predicted, rel=1e-6)


def test_some_parameters_move_alone():
    objective = problem()
    x = objective.point
    for solver in ("cg", "gram"):
        moved, _, _ = gauss_newton_step(
            objective, x, gauss_newton_init(x, damping=0.1), restrict=["2.weight", "2.bias"], solver=solver
        )
        changed = {n for n, block in objective.space.unflatten(moved - x).items() if bool(block.any())}
        assert changed == {"2.weight", "2.bias"}


@pytest.mark.parametrize("solver", ["cg", "gram"])
def test_parameters_with_rates_of_their_own_move_by_them_and_the_prediction_follows(solver):
    objective = problem()
    x = objective.point
    rates = objective.space.vector({"*": 1.0, "0.*": 0.25, "0.bias": 0.0})
    options = {"solver": solver, "stop": None, "rtol": 1e-13, "max_iterations": 500}
    moved, _, info = gauss_newton_step(objective, x, gauss_newton_init(x, damping=0.5), lr=rates, **options)
    d = rates * dense_direction(objective, 0.5)
    torch.testing.assert_close(moved - x, d, rtol=1e-8, atol=1e-11)
    G, g = gauss_newton(objective).dense(), objective.gradient()
    assert info.predicted == pytest.approx(-float(g @ d + d @ G @ d / 2), rel=1e-8)


def test_damping_follows_the_gain_and_a_second_batch_is_what_judges():
    objective, other = problem(), problem(seed=5)
    x = objective.point
    _, same, own = gauss_newton_step(objective, x, gauss_newton_init(x, damping=1e-3))
    _, state, info = gauss_newton_step(objective, x, gauss_newton_init(x, damping=1e-3), judge=other)
    assert info.loss == pytest.approx(float(other.value(x)))
    assert info.gain < 0.25 < own.gain or info.length < own.length or info.gain < own.gain
    assert state.damping > 1e-3 or info.gain >= 0.25
    good = gauss_newton_step(objective, x, gauss_newton_init(x, damping=10.0))
    assert good[2].gain > 0.75
    assert good[1].damping == pytest.approx(10.0 / 1.5)
    del same


def test_a_step_that_never_lowers_the_judged_loss_is_refused():
    objective = problem()
    x = objective.point
    moved, state, info = gauss_newton_step(objective, x, gauss_newton_init(x), judge=-1.0 * objective)
    assert torch.equal(moved, x)
    assert info.length == 0
    assert state.damping == 4.0
    assert not state.direction.any()


def test_a_criterion_that_is_not_convex_moves_downhill_or_not_at_all():
    torch.manual_seed(0)
    model = nn.Linear(4, 2).double()
    objective = Objective(model, gaussian(), [(torch.randn(9, 4, dtype=F64), 3 * torch.randn(9, 1, dtype=F64))])
    x, losses = objective.point, []
    state = gauss_newton_init(x, damping=1e-3)
    for _ in range(25):
        x, state, info = gauss_newton_step(objective, x, state)
        losses.append(info.after)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["kfac", "diagonal"])
def test_a_preconditioner_saves_iterations(kind):
    torch.manual_seed(0)
    # a linear layer and the squared error: K-FAC is the Gauss-Newton matrix itself
    X = torch.randn(300, 8, dtype=F64) * torch.logspace(0, -2, 8, dtype=F64)
    objective = Objective(nn.Linear(8, 3).double(), squared_error(), [(X, torch.randn(300, 3, dtype=F64))])

    def near(objective, x, damping):
        if kind == "kfac":
            A = kfac(objective, x=x)
            return inverse(A + damping * identity(A.domain))
        G = gauss_newton(objective, x=x)
        return jacobi(G.dense().diagonal(), damping=damping, domain=G.domain)

    counts = []
    for preconditioner in (None, near):
        _, _, info = _step(objective, stop=None, rtol=1e-10, preconditioner=preconditioner, solver="cg",
                           damping=1e-6, max_iterations=400)  # fmt: skip
        counts.append(info.iterations)
    assert counts[1] <= (3 if kind == "kfac" else 0.7 * counts[0]), counts


def test_conjugate_gradients_end_where_little_is_gained():
    quick = [-(1 - 0.5**i) for i in range(1, 40)]
    ends = next(i for i in range(1, 40) if slow(quick[:i], "martens"))
    # Martens: i > 10 and (phi_i - phi_{i-10}) / phi_i < 10 * 5e-4
    assert ends == next(i for i in range(11, 40) if (quick[i - 1] - quick[i - 11]) / quick[i - 1] < 5e-3)
    ends = next(i for i in range(1, 40) if slow(quick[:i], "decrease"))
    assert ends == next(i for i in range(2, 40) if i * (1 - quick[i - 2] / quick[i - 1]) <= 0.5)
    assert not slow([0.0, 0.1], "martens")


def test_a_start_from_the_last_direction_is_dropped_where_the_model_rises():
    objective = problem()
    x = objective.point
    bad = GaussNewtonState(0.1, 1e6 * objective.gradient(), iteration=3)
    moved, _, info = gauss_newton_step(objective, x, bad, solver="cg", max_iterations=3)
    fresh, _, expected = gauss_newton_step(objective, x, gauss_newton_init(x, damping=0.1), solver="cg",
                                           max_iterations=3)  # fmt: skip
    torch.testing.assert_close(moved, fresh)
    assert info.products == expected.products


def test_the_small_batch_is_solved_exactly_by_itself_and_the_large_one_is_not():
    _, _, info = _step(problem("huber"))
    assert info.iterations == 0
    _, _, info = _step(problem(n=60))
    assert info.iterations > 0


def test_a_model_that_vmap_cannot_go_through_is_solved_by_products():
    class Branches(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if float(x.sum().detach()) < 1e9 else 1.0)

    objective = Objective(Branches(9, 1).double(), squared_error(), [(torch.ones(2, 9, dtype=F64), torch.zeros(2, 1))])
    _, _, info = _step(objective)
    assert info.iterations > 0
    with pytest.raises(Exception, match="solver='gram' needs a model that vmap can go through"):
        _step(objective, solver="gram")


def _step(objective, damping=0.1, **options):
    x = objective.point
    return gauss_newton_step(objective, x, gauss_newton_init(x, damping=damping), **options)


def test_wrong_arguments_are_named():
    objective = problem()
    x = objective.point
    for options, sentence in (
        ({"lr": -1.0}, "gauss_newton_step: lr must be a number >= 0, got -1.0"),
        ({"lr": math.nan}, "gauss_newton_step: lr must be a number >= 0"),
        ({"solver": "lu"}, "gauss_newton_step: solver must be 'auto', 'cg' or 'gram', got 'lu'"),
        ({"stop": "never"}, "gauss_newton_step: stop must be 'martens', 'decrease' or None, got 'never'"),
        ({"scale": torch.zeros(len(x), dtype=F64)}, "gauss_newton_step: scale must be positive, got 0.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            _step(objective, **options)
    with pytest.raises(ValueError, match=r"gauss_newton_init: damping must be a number > 0, got 0.0"):
        gauss_newton_init(x, damping=0.0)
    bent = Objective(nn.Linear(2, 2).double(), gaussian(), [(torch.ones(3, 2, dtype=F64), torch.ones(3, 1, dtype=F64))])
    with pytest.raises(ValueError, match="solver='gram' needs a convex criterion"):
        _step(bent, solver="gram")
