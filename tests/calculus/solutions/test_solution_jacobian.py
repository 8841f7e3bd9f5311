import pytest
import torch

from frechet import NotConverged, check_operator, implicit, svds
from frechet.calculus import kkt_conditions, root_conditions, solution_jacobian, stationary_conditions

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


X, Y = draw(20, 5, seed=1), draw(20, seed=2)
PENALTY = torch.tensor(0.4, dtype=F64)
W = torch.linalg.solve(X.T @ X + 0.4 * torch.eye(5, dtype=F64), X.T @ Y)
RIDGE = stationary_conditions(
    lambda w, X, y, c: ((X @ w - y) ** 2).sum() / 2 + c * w @ w / 2, facts="positive_definite"
)


@pytest.mark.parametrize("method", ["auto", "cg", "minres", "gmres", "lsmr"])
def test_the_response_of_ridge_regression_to_its_targets(method):
    D = solution_jacobian(RIDGE, W, X, Y, PENALTY, wrt=1, method=method, rtol=1e-13)
    exact = torch.linalg.solve(X.T @ X + 0.4 * torch.eye(5, dtype=F64), X.T)
    assert D.shape == (5, 20)
    assert torch.allclose(D.dense(), exact, atol=1e-11)
    assert torch.allclose(D @ torch.eye(20, dtype=F64), exact, atol=1e-11)
    check_operator(D, seed=0)


def test_every_input_has_its_operator_and_it_agrees_with_implicit():
    inputs = (X, Y, PENALTY)
    solve = implicit(lambda X, y, c: W, RIDGE)
    for i, t in enumerate(inputs):
        D = solution_jacobian(RIDGE, W, *inputs, wrt=i)
        exact = torch.func.jacrev(solve, argnums=i)(*inputs).reshape(5, -1)
        assert D.domain.shapes == (tuple(t.shape),)
        assert torch.allclose(D.dense(), exact, atol=1e-12)


def test_dicts_of_inputs_and_unknowns_name_the_blocks():
    theta = {"k": torch.tensor([3.0]).double(), "c": torch.tensor([8.0]).double()}
    F = root_conditions(lambda x, s, theta: {"a": x["a"] ** 3 - theta["c"], "b": x["b"] - s * theta["k"] * x["a"]})
    x = {"a": torch.tensor([2.0]).double(), "b": torch.tensor([12.0]).double()}
    D = solution_jacobian(F, x, torch.tensor(2.0).double(), theta, wrt=1)
    assert (D.domain.names, D.codomain.names) == (("k", "c"), ("a", "b"))
    moved = D @ {"k": torch.ones(1).double(), "c": torch.ones(1).double()}
    assert moved["a"].tolist() == pytest.approx([1 / 12])
    assert moved["b"].tolist() == pytest.approx([4 + 6 / 12])


def test_multipliers_are_solved_for_and_left_out():
    y = draw(6, seed=3)
    conditions = kkt_conditions(lambda x, y: ((x - y) ** 2).sum(), equality=lambda x, y: x.sum() - 1)
    D = solution_jacobian(conditions, y - (y.sum() - 1) / 6, y)
    assert torch.allclose(D.dense(), torch.eye(6, dtype=F64) - 1 / 6, atol=1e-12)
    assert svds(D, 2, seed=0).values.tolist() == pytest.approx([1, 1])


def test_it_is_a_fact_about_one_moment():
    a = torch.tensor([4.0], dtype=F64)
    x = a.sqrt()
    D = solution_jacobian(lambda x, a: x**2 - a, x, a)
    a.fill_(100.0)
    x.fill_(10.0)
    assert float(D @ torch.ones(1, dtype=F64)) == 0.25


def test_no_columns_are_no_solve():
    D = solution_jacobian(RIDGE, W, X, Y, PENALTY, wrt=1)
    assert (D @ D.domain.zeros(0)).shape == (5, 0)


def test_a_gauss_newton_matrix_through_a_solver_is_semidefinite():
    D = solution_jacobian(RIDGE, W, X, Y, PENALTY, wrt=1)
    G = D.T @ D
    assert "positive_semidefinite" in G.facts
    assert torch.allclose(G.dense(), D.dense().T @ D.dense(), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"wrt": 3}, ValueError, "wrt must be the number of one of 3 inputs, got 3"),
        ({"inputs": (X, Y, 0.4), "wrt": 2}, TypeError, r"inputs\[2\] must be a tensor or a dict of tensors, got float"),
        ({"x": W.clone().requires_grad_()}, ValueError, "must not require grad: an operator carries no graph"),
        ({"x": W + 1}, ValueError, "conditions of a stationary point must hold at the solution"),
        ({"method": "qr"}, ValueError, "method must be one of"),
    ],
)
def test_bad_arguments_are_named(change, error, match):
    given = {"x": W, "inputs": (X, Y, PENALTY), **change}
    with pytest.raises(error, match=f"solution_jacobian: .*{match}"):
        solution_jacobian(RIDGE, given.pop("x"), *given.pop("inputs"), **given)


def test_a_product_that_is_not_solved_raises():
    D = solution_jacobian(RIDGE, W, X, Y, PENALTY, wrt=1, method="cg", max_iterations=1)
    with pytest.raises(NotConverged, match="solution_jacobian by cg"):
        D @ torch.ones(20, dtype=F64)
    with pytest.raises(NotConverged, match="solution_jacobian transposed by cg"):
        D.T @ torch.ones(5, dtype=F64)
