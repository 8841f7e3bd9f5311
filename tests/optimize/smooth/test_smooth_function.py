import math

import pytest
import torch

from frechet import Objective, from_diagonal, from_matrix, squared_error
from frechet.operators._operator import Fact
from frechet.optimize._counts import Counts
from frechet.optimize._smooth.smooth_function import SmoothFunction
from frechet.space import Space, euclidean
from smooth_problems import rosenbrock

X = torch.tensor([-1.2, 1.0, 0.5], dtype=torch.float64)


def of(f, x, curvature=None, single=True):
    return SmoothFunction(f, Space.of({"": x} if single else x), single, curvature, Counts())


def test_value_gradient_and_products_agree_with_torch_func_and_are_counted():
    f = of(rosenbrock, X)
    point = f.differentiated(f.at(X))
    assert point.value == float(rosenbrock(X))
    torch.testing.assert_close(point.gradient, torch.func.grad(rosenbrock)(X))
    H = f.hessian(point)
    torch.testing.assert_close(H @ torch.eye(3, dtype=torch.float64), torch.func.jacrev(torch.func.grad(rosenbrock))(X))
    torch.testing.assert_close(H @ X, torch.func.jacrev(torch.func.grad(rosenbrock))(X) @ X)
    assert (f.counts.evaluations, f.counts.gradients, f.counts.products) == (1, 1, 4)
    assert Fact.SYMMETRIC in H.facts


def test_a_dict_is_flat_inside_and_a_dict_outside():
    x = {"a": torch.ones(2, 2), "b": torch.tensor(3.0)}
    f = of(lambda p: (p["a"] ** 2).sum() * p["b"], x, single=False)
    flat = f.space.flatten(x)
    point = f.differentiated(f.at(flat))
    assert point.value == 12
    torch.testing.assert_close(point.gradient, torch.tensor([6.0, 6, 6, 6, 4]))
    assert f.structured(flat)["a"].shape == (2, 2)


def test_an_objective_gives_its_own_value_gradient_and_hessian():
    model = torch.nn.Linear(2, 1, dtype=torch.float64)
    data = [(torch.eye(2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64))]
    objective = Objective(model, squared_error(), data)
    f = SmoothFunction(objective, objective.space, True, None, Counts())
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    point = f.differentiated(f.at(x))
    assert point.value == float(objective.value(x))
    torch.testing.assert_close(point.gradient, objective.gradient(x))
    torch.testing.assert_close(f.hessian(point) @ x, torch.func.jacrev(torch.func.grad(objective.value))(x) @ x)
    assert f.structured(x) is x
    bad = f.at(torch.full((3,), math.inf, dtype=torch.float64))
    assert math.isnan(bad.value)
    assert f.differentiated(bad) is None


def test_what_is_not_finite_has_no_gradient():
    f = of(lambda x: x.log().sum(), X)
    assert f.differentiated(f.at(X)) is None
    g = of(lambda x: x.sqrt().sum(), torch.zeros(1))
    assert g.differentiated(g.at(torch.zeros(1))) is None


def test_a_constant_has_the_gradient_zero():
    f = of(lambda x: torch.tensor(2.0), torch.ones(2))
    assert f.differentiated(f.at(torch.ones(2))).gradient.tolist() == [0, 0]


def test_a_given_curvature_is_asked_at_the_point_and_checked():
    seen = []

    def curvature(x):
        seen.append(x)
        return from_diagonal(torch.ones(3, dtype=torch.float64))

    f = of(rosenbrock, X, curvature)
    point = f.differentiated(f.at(X))
    torch.testing.assert_close(f.hessian(point) @ X, X)
    assert torch.equal(seen[0], X)
    for wrong, error, sentence in (
        (torch.eye(3), TypeError, "hessian must return a LinearOperator, got Tensor"),
        (from_diagonal(torch.ones(2)), ValueError, "hessian must return an operator on R\\^3"),
        (from_matrix(torch.ones(3, 3, dtype=torch.float64)), ValueError, "hessian must return a symmetric operator"),
    ):
        other = of(rosenbrock, X, lambda x, w=wrong: w)
        with pytest.raises(error, match=sentence):
            other.hessian(point)


def test_f_must_return_a_scalar():
    with pytest.raises(ValueError, match=r"f must return a scalar tensor, got shape \(3,\)"):
        of(lambda x: x, X).at(X)
    with pytest.raises(ValueError, match="f must return a scalar tensor, got float"):
        of(lambda x: 1.0, X).at(X)


def test_a_point_with_no_entries_has_no_slope():
    f = SmoothFunction(lambda x: x.sum(), euclidean(0), True, None, Counts())
    assert f.differentiated(f.at(torch.zeros(0))).largest == 0.0
