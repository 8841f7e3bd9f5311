import math

import pytest
import torch

from frechet.optimize import Constraint
from frechet.optimize._constrained.constrained import constrained
from frechet.optimize._constrained.raw import Functions
from frechet.space import euclidean
from spectra import F64, gaussian

A = gaussian(12).reshape(3, 4)
X = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)

AFFINE = {
    "matrix": lambda x: A @ x - 1.0,
    "sum": lambda x: x.sum(),
    "entries": lambda x: x[1:] - 2 * x[:-1],
    "blocks": lambda x: torch.cat([x[:2].flip(0), (x * 3).sum().reshape(1)]),
    "layer": lambda x: torch.nn.functional.linear(x, A, torch.ones(3, dtype=F64)),
}
CURVED = {
    "square": lambda x: x @ x,
    "product": lambda x: x.prod(),
    "one of many": lambda x: torch.cat([A @ x, (x[0] * x[1]).reshape(1)]),
    "exponential": lambda x: x.exp(),
}
BRANCHED = {
    "absolute": lambda x: x.abs().sum(),
    "relu": lambda x: torch.relu(x).sum(),
    "python branch": lambda x: x.sum() if bool(x[0] > 0) else 2 * x.sum(),
    "largest": lambda x: x.max(),
    "another slope of the same value": lambda x: torch.where(x > 0, x, -x),
}


def asked(c, x=X):
    functions = Functions(lambda x: (x**2).sum(), (c,), euclidean(len(x), F64, torch.device("cpu")), True)
    point = functions.at(x)[0]
    _ = point.J
    return functions, point


@pytest.mark.parametrize("name", AFFINE)
def test_affine_constraints_are_found_and_differentiated_once(name):
    functions, point = asked(AFFINE[name])
    assert list(functions.seen.affine) == [0]
    right = torch.autograd.functional.jacobian(AFFINE[name], X).reshape(-1, 4)
    torch.testing.assert_close(point.J, right)
    there = functions.at(X * 1e3 + 7)[0]
    assert there.J.data_ptr() == functions.seen.affine[0].J.data_ptr()
    torch.testing.assert_close(there.J, right)


@pytest.mark.parametrize("name", CURVED)
def test_curved_constraints_are_not(name):
    assert not asked(CURVED[name])[0].seen.affine


@pytest.mark.parametrize("name", BRANCHED)
def test_a_function_that_branches_is_curved_from_where_its_values_differ(name):
    functions, _ = asked(BRANCHED[name])
    c = BRANCHED[name]
    for x in (X + 1e-3, -X, X.flip(0) * -0.3, X):
        right = torch.autograd.functional.jacobian(c, x).reshape(-1, 4)
        torch.testing.assert_close(functions.at(x)[0].J, right)
    assert not functions.seen.affine


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_the_comparison_is_relative_to_the_terms(size):
    functions, _ = asked(lambda x: size * (A @ x) - 5 * size)
    for k in range(6):
        functions.at(X * 10.0**k)
    assert functions.seen.affine
    functions.at(X + 0.1 * gaussian(4))
    assert functions.seen.affine


def test_a_branch_inside_of_a_run_is_met_with_the_right_derivatives():
    # on one side of x_0 = 0 the row is affine, on the other it is another one
    row = Constraint(lambda x: x[1] - torch.where(x[0] > 0, 0.5 * x[0], -3 * x[0]), 0.0, math.inf)
    s = constrained(lambda x: (x[0] + 1) ** 2 + x[1] ** 2, torch.tensor([1.0, 2.0], dtype=F64), row)
    plain = constrained(
        lambda x: (x[0] + 1) ** 2 + x[1] ** 2,
        torch.tensor([-1.0, 4.0], dtype=F64),
        Constraint(lambda x: x[1] + 3 * x[0], 0.0, math.inf),
    )
    assert s.converged
    assert torch.allclose(s.x, plain.x, atol=1e-7)
