import pytest
import torch

from frechet import implicit
from frechet.calculus import (
    Conditions,
    fixed_point_conditions,
    kkt_conditions,
    least_squares_conditions,
    root_conditions,
    solution_jacobian,
    stationary_conditions,
)
from frechet.operators import Fact

F64 = torch.float64
A = torch.tensor([[2.0, 0.3], [0.1, 1.5]], dtype=F64)
B = torch.tensor([1.0, 2.0], dtype=F64)
X = torch.linalg.solve(A, B)
SYM = A @ A.T

# all of them say A x = b, or A A' x = b for the symmetric kinds
KINDS = {
    "root": (root_conditions(lambda x, b: A @ x - b), X, torch.linalg.inv(A)),
    "plain function": (lambda x, b: A @ x - b, X, torch.linalg.inv(A)),
    "fixed point": (fixed_point_conditions(lambda x, b: x - (A @ x - b) / 3), X, torch.linalg.inv(A)),
    "least squares": (least_squares_conditions(lambda x, b: A @ x - b), X, torch.linalg.inv(A)),
    "gauss newton": (least_squares_conditions(lambda x, b: A @ x - b, gauss_newton=True), X, torch.linalg.inv(A)),
    "stationary": (
        stationary_conditions(lambda x, b: x @ SYM @ x / 2 - b @ x),
        torch.linalg.solve(SYM, B),
        torch.linalg.inv(SYM),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["auto", "gmres", "lsmr"])
def test_every_kind_of_conditions_says_the_same(kind, method):
    conditions, x, exact = KINDS[kind]
    D = solution_jacobian(conditions, x, B, method=method, rtol=1e-13)
    assert torch.allclose(D.dense(), exact, atol=1e-11)
    assert torch.allclose(torch.stack([D.T @ e for e in torch.eye(2, dtype=F64)]), exact, atol=1e-11)
    f = implicit(lambda b: x, conditions)
    assert torch.allclose(torch.func.jacrev(f)(B), exact, atol=1e-11)
    assert torch.allclose(torch.func.jacfwd(f)(B), exact, atol=1e-11)


def test_facts_are_those_of_the_kind():
    assert root_conditions(lambda x: x).facts == frozenset()
    assert Fact.POSITIVE_DEFINITE in root_conditions(lambda x: x, facts="positive_definite").facts
    assert stationary_conditions(lambda x: x).facts == {Fact.SYMMETRIC}
    assert Fact.SYMMETRIC in stationary_conditions(lambda x: x, facts=()).facts
    assert fixed_point_conditions(lambda x: x, facts="symmetric").facts == {Fact.SYMMETRIC}
    assert least_squares_conditions(lambda x: x).facts == {Fact.SYMMETRIC}
    assert Fact.POSITIVE_SEMIDEFINITE in least_squares_conditions(lambda x: x, gauss_newton=True).facts
    assert kkt_conditions(lambda x: x, bounds=(0, 1)).facts == {Fact.SYMMETRIC}
    assert isinstance(root_conditions(lambda x: x), Conditions)


def test_residuals_and_points_may_be_dicts():
    def r(x, b):
        return {"first": A @ x["x"] - b, "second": x["x"] - torch.linalg.solve(A, b)}

    D = solution_jacobian(least_squares_conditions(r), {"x": X}, B)
    assert torch.allclose(D.dense(), torch.linalg.inv(A), atol=1e-12)
    g = fixed_point_conditions(lambda x, b: {"x": x["x"] - (A @ x["x"] - b) / 3})
    assert torch.allclose(solution_jacobian(g, {"x": X}, B).dense(), torch.linalg.inv(A), atol=1e-12)


@pytest.mark.parametrize(
    ("conditions", "error", "match"),
    [
        (fixed_point_conditions(lambda x, b: x.sum()), ValueError, r"g must return what x is, \(2,\), got \(\)"),
        (fixed_point_conditions(lambda x, b: {"x": x}), ValueError, r"what x is, \(2,\), got \{'x': \(2,\)\}"),
        (stationary_conditions(lambda x, b: 3.0), TypeError, "f must return a scalar tensor, got float"),
        (root_conditions(lambda x, b: [x]), TypeError, "functions must return a tensor or a dict of tensors, got list"),
        (3, TypeError, "conditions must be a function .* got int"),
    ],
)
def test_what_conditions_return_is_checked(conditions, error, match):
    with pytest.raises(error, match=match):
        solution_jacobian(conditions, X, B)


def test_unknown_facts_are_named():
    with pytest.raises(ValueError, match="facts: must be among"):
        root_conditions(lambda x: x, facts="orthogonal")
