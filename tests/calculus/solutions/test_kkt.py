import math

import numpy as np
import pytest
import torch
from scipy import optimize

from frechet import NotConverged, implicit
from frechet.calculus import kkt_conditions, solution_jacobian
from frechet.operators.derivatives._products import dual_numbers

F64 = torch.float64
with dual_numbers():  # at their first use torch warns of itself
    pass


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def distance(x, y):
    return ((x - y) ** 2).sum() / 2


def jacobian(f, y):
    return torch.autograd.functional.jacobian(f, y)


def differences(f, y, h=1e-6):
    eye = torch.eye(y.numel(), dtype=y.dtype)
    return torch.stack([(f(y + h * e) - f(y - h * e)) / (2 * h) for e in eye], -1)


def test_an_equality_constrained_quadratic_has_the_derivatives_of_its_kkt_matrix():
    Q = draw(6, 6, seed=1)
    Q = Q @ Q.T + torch.eye(6, dtype=F64)
    A, b, c = draw(2, 6, seed=2), draw(2, seed=3), draw(6, seed=4)

    def exact(Q, A, b, c):
        K = torch.cat([torch.cat([Q, A.T], 1), torch.cat([A, torch.zeros(2, 2, dtype=F64)], 1)])
        return torch.linalg.solve(K, torch.cat([-c, b]))[:6]

    conditions = kkt_conditions(lambda x, Q, A, b, c: x @ Q @ x / 2 + c @ x, equality=lambda x, Q, A, b, c: A @ x - b)
    inputs = [t.clone().requires_grad_() for t in (Q, A, b, c)]
    u = draw(6, seed=5)
    want = torch.autograd.grad(exact(*inputs) @ u, inputs)
    # a symmetric Q in one parameter: the derivative of f sees Q + Q' only
    want = [(want[0] + want[0].T) / 2, *want[1:]]
    for method in ("auto", "minres", "gmres"):
        found = list(torch.autograd.grad(implicit(exact, conditions, method=method, rtol=1e-13)(*inputs) @ u, inputs))
        assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(found, want, strict=True))


def simplex(y):
    ordered, _ = y.sort(descending=True)
    tops = (ordered.cumsum(0) - 1) / torch.arange(1, len(y) + 1)
    k = int((ordered > tops).sum())
    return (y - tops[k - 1]).clamp(min=0)


def test_the_projection_onto_the_simplex_shares_within_its_support():
    y = torch.tensor([0.9, 0.5, -0.4, 0.3, 0.05], dtype=F64)
    support = (simplex(y) > 0).double()
    exact = torch.diag(support) - torch.outer(support, support) / support.sum()
    by_bound = kkt_conditions(distance, equality=lambda x, y: x.sum() - 1, bounds=(0.0, None))
    by_inequality = kkt_conditions(distance, equality=lambda x, y: x.sum() - 1, inequality=lambda x, y: -x)
    for conditions in (by_bound, by_inequality):
        assert torch.allclose(jacobian(implicit(simplex, conditions), y), exact, atol=1e-12)


def test_the_projection_onto_a_ball_turns_and_does_not_stretch():
    y = torch.tensor([3.0, 4.0, 12.0], dtype=F64)
    ball = kkt_conditions(distance, inequality=lambda x, y: x @ x - 1)
    x = y / 13
    exact = (torch.eye(3, dtype=F64) - torch.outer(x, x)) / 13
    assert torch.allclose(jacobian(implicit(lambda y: y / y.pow(2).sum().sqrt(), ball), y), exact, atol=1e-12)
    inside = torch.tensor([0.3, 0.1, 0.2], dtype=F64)
    assert torch.allclose(jacobian(implicit(lambda y: y, ball), inside), torch.eye(3, dtype=F64))


def test_sides_of_a_box_that_are_inputs_get_derivatives():
    y = torch.tensor([-1.0, 0.5, 3.0], dtype=F64)
    low, high = torch.zeros(3, dtype=F64), torch.tensor([1.0, 1.0, 2.0], dtype=F64)
    box = kkt_conditions(
        lambda x, y, low, high: distance(x, y), bounds=(lambda y, low, high: low, lambda y, low, high: high)
    )
    clip = implicit(lambda y, low, high: y.clamp(low, high), box)
    found = torch.autograd.functional.jacobian(clip, (y, low, high))
    for J, held in zip(found, ([0, 1, 0], [1, 0, 0], [0, 0, 1]), strict=True):
        assert torch.equal(J, torch.diag(torch.tensor(held, dtype=F64)))


def test_bounds_of_a_dict_name_its_blocks_and_a_fixed_variable_takes_any_force():
    conditions = kkt_conditions(
        lambda x, y: distance(x["a"], y) + distance(x["b"], 2 * y) + x["a"].sum() * x["b"].sum() / 10,
        bounds=({"a": torch.zeros(2).double()}, {"a": torch.tensor([0.0, math.inf]).double()}),
    )
    y = torch.tensor([0.7, 0.9], dtype=F64)

    def solver(y):
        # a_0 = 0: a_1 + sum(b) / 10 = y_1 and b + a_1 / 10 = 2 y
        a1 = (y[1] - y.sum() / 5) / (1 - 0.02)
        return {"a": torch.stack([0 * a1, a1]), "b": 2 * y - a1 / 10}

    found = torch.func.jacrev(implicit(solver, conditions))(y)
    exact = torch.func.jacrev(solver)(y)
    assert torch.allclose(found["a"], exact["a"], atol=1e-12)
    assert torch.allclose(found["b"], exact["b"], atol=1e-12)


def test_slsqp_of_scipy_becomes_differentiable():
    returns = np.array([0.08, 0.12, 0.05, 0.1])
    S = draw(4, 4, seed=6).numpy()
    S = S @ S.T / 50 + 0.02 * np.eye(4)

    def solver(mean, caution):
        mean, caution = mean.numpy(), float(caution)
        return optimize.minimize(
            lambda x: caution * x @ S @ x - mean @ x,
            np.full(4, 0.25),
            jac=lambda x: 2 * caution * S @ x - mean,
            method="SLSQP",
            bounds=[(0, 1)] * 4,
            constraints=[{"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: np.ones(4)}],
            options={"ftol": 1e-15, "maxiter": 300},
        )

    conditions = kkt_conditions(
        lambda x, mean, caution: caution * x @ torch.from_numpy(S) @ x - mean @ x,
        equality=lambda x, mean, caution: x.sum() - 1,
        bounds=(0.0, 1.0),
    )
    mean, caution = torch.from_numpy(returns), torch.tensor(0.5, dtype=F64)
    portfolio = implicit(solver, conditions)
    x = portfolio(mean, caution)
    assert int((x > 1e-6).sum()) in (2, 3)  # some are held at zero
    found = jacobian(lambda m: portfolio(m, caution), mean)
    assert torch.allclose(found, differences(lambda m: torch.from_numpy(solver(m, caution).x), mean, 1e-4), atol=1e-4)
    found = jacobian(lambda c: portfolio(mean, c), caution)
    step = [torch.from_numpy(solver(mean, caution + s * 1e-4).x) for s in (1, -1)]
    assert torch.allclose(found, (step[0] - step[1]) / 2e-4, atol=1e-4)


def test_a_curved_problem_agrees_with_differences_of_its_full_solve_to_second_order():
    def f(x, t):
        return (x[0] - t[0]) ** 2 + (x[1] - t[1]) ** 4 + x[0] * x[1] / 3

    def circle(x, t):
        return x @ x - 1 - t[0] ** 2 / 10

    conditions = kkt_conditions(f, inequality=circle)

    def solver(t):
        # Newton on the equations themselves, to rounding
        z = torch.tensor([0.8, 0.6, 1.0], dtype=F64)

        def F(z):
            gradient = torch.func.grad(lambda x: f(x, t) + z[2] * circle(x, t))(z[:2])
            return torch.cat([gradient, circle(z[:2], t)[None]])

        for _ in range(30):
            z = z - torch.linalg.solve(torch.func.jacrev(F)(z), F(z))
        assert float(z[2]) > 0.1
        return z[:2]

    t = torch.tensor([1.5, 1.2], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(implicit(solver, conditions), t, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(implicit(solver, conditions), t)


def test_multipliers_may_come_from_the_solver():
    y = torch.tensor([3.0, 4.0], dtype=F64)

    class Answer:
        def __init__(self, y):
            self.x, self.force = y / 5, torch.tensor(2.0)  # y - x = 2 force x

    ball = kkt_conditions(distance, inequality=lambda x, y: x @ x - 1, multipliers=lambda s: {"inequality": s.force})
    x = y / 5
    assert torch.allclose(jacobian(implicit(Answer, ball), y), (torch.eye(2).double() - torch.outer(x, x)) / 5)
    wrong = kkt_conditions(distance, inequality=lambda x, y: x @ x - 1, multipliers=lambda s: {"z": s.force})
    with pytest.raises(ValueError, match=r"multipliers must return \['inequality'\], got \['z'\]"):
        implicit(Answer, wrong)(y)


def test_a_constraint_given_twice_leaves_x_unique_and_is_solved():
    y = torch.tensor([3.0, 1.0, 0.0], dtype=F64)
    twice = kkt_conditions(distance, equality=lambda x, y: torch.stack([x.sum() - 1, 2 * x.sum() - 2]))
    exact = torch.eye(3, dtype=F64) - 1 / 3
    assert torch.allclose(jacobian(implicit(lambda y: y - (y.sum() - 1) / 3, twice), y), exact, atol=1e-9)


def test_a_kink_is_refused_or_taken_from_one_side():
    y = torch.tensor([0.0, 1.0], dtype=F64)

    def clip(**more):
        return jacobian(implicit(lambda y: y.clamp(min=0), kkt_conditions(distance, bounds=(0.0, None), **more)), y)

    with pytest.raises(ValueError, match=r"lower bound must have a multiplier > .*, got .*0 in entry 0: .* kink"):
        clip()
    assert clip(weakly_active="hold").diagonal().tolist() == [0, 1]
    assert clip(weakly_active="free").diagonal().tolist() == [1, 1]


def test_a_batch_has_an_active_set_for_each_problem():
    Y = draw(30, 5, seed=7)
    conditions = kkt_conditions(
        lambda x, y: ((x - y) ** 2).sum(1) / 2, equality=lambda x, y: x.sum(1, keepdim=True) - 1, bounds=(0.0, None)
    )

    def solver(Y):
        return torch.stack([simplex(y) for y in Y])

    U = draw(30, 5, seed=8)
    Y.requires_grad_()
    seen = []
    found = torch.autograd.grad((implicit(solver, conditions, batch=True, observe=seen.append)(Y) * U).sum(), Y)[0]
    support = (solver(Y.detach()) > 0).double()
    exact = support * (U - (U * support).sum(1, keepdim=True) / support.sum(1, keepdim=True))
    assert len(set(support.sum(1).tolist())) > 1
    assert torch.allclose(found, exact, atol=1e-12)
    assert "11 unknowns in each problem" in seen[0].message


def test_large_constraint_matrices_are_not_made_dense():
    n = 3000
    y = draw(n, seed=9)
    conditions = kkt_conditions(distance, equality=lambda x, y: x.view(-1, 10).sum(1) - 1)

    def solver(y):
        return (y.view(-1, 10) - (y.view(-1, 10).sum(1, keepdim=True) - 1) / 10).reshape(-1)

    u = draw(n, seed=10)
    y.requires_grad_()
    found = torch.autograd.grad(implicit(solver, conditions)(y) @ u, y)[0]
    assert torch.allclose(found, (u.view(-1, 10) - u.view(-1, 10).mean(1, keepdim=True)).reshape(-1), atol=1e-8)


def test_points_that_are_no_minima_are_refused():
    y = torch.tensor([3.0, 4.0], dtype=F64)
    ball = kkt_conditions(distance, inequality=lambda x, y: x @ x - 1)
    with pytest.raises(ValueError, match=r"inequality\(x\) must be <= 0 at the solution, got 3 in entry 0"):
        implicit(lambda y: 2 * y / 5, ball)(y)
    with pytest.raises(ValueError, match=r"of an active inequality must be >= 0, got -3 in entry 0: x is no"):
        implicit(lambda y: -y / 5, ball)(y)
    with pytest.raises(ValueError, match="conditions of a constrained minimum must hold at the solution"):
        implicit(lambda y: torch.tensor([1.0, 0.0], dtype=F64), ball)(y)
    with pytest.raises(ValueError, match="x - upper must be <= 0 at the solution, got 2 in entry 0"):
        implicit(lambda y: y, kkt_conditions(distance, bounds=(None, 1.0)))(y[:1])


def test_a_minimum_that_is_not_isolated_has_no_derivative():
    y = torch.tensor([1.0, 2.0], dtype=F64)
    flat = kkt_conditions(lambda x, y: 0 * x.sum() + y.sum(), equality=lambda x, y: x.sum() - y.sum())
    with pytest.raises(NotConverged, match="not isolated"):
        jacobian(implicit(lambda y: y, flat), y)
    least = solution_jacobian(flat, y, y, method="lsmr").dense()
    assert torch.allclose(least, torch.full((2, 2), 0.5, dtype=F64))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({}, ValueError, "needs equality=, inequality= or bounds=, got none"),
        ({"bounds": 3}, TypeError, r"bounds must be a pair \(lower, upper\), got int"),
        ({"bounds": (0, 1), "weakly_active": "drop"}, ValueError, "weakly_active must be 'raise', 'hold' or 'free'"),
    ],
)
def test_bad_arguments_are_named(given, error, match):
    with pytest.raises(error, match=f"kkt_conditions: {match}"):
        kkt_conditions(distance, **given)


def test_bounds_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"bounds must be numbers or have the shape of x \(2,\), got \(3,\)"):
        implicit(lambda y: y, kkt_conditions(distance, bounds=(torch.zeros(3), None)))(torch.ones(2))
