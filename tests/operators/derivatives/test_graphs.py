"""Functions of x that autograd cannot follow have no derivatives here; constants have zero."""

import numpy as np
import pytest
import torch

from frechet import hessian, jacobian, least_squares, root
from frechet.errors import NotDifferentiable
from frechet.optimize import least_squares_batch, prox_linear

F64 = torch.float64
CUT = {
    "detached": lambda x: x.detach() ** 2 - 2,
    "no_grad": lambda x: torch.no_grad()(torch.square)(x) - 2,
    "NumPy": lambda x: torch.from_numpy(np.square(x.detach().numpy())) - 2,
    "Python numbers": lambda x: torch.tensor([v**2 - 2 for v in x.detach().tolist()], dtype=F64),
    "undefined beside": lambda x: torch.log(1.0005 - x.detach()),
}
SENTENCE = "f must depend on x through torch operations"


def at():
    return torch.ones(3, dtype=F64)


@pytest.mark.parametrize("name", CUT)
def test_the_derivatives_of_a_function_without_a_graph_are_refused(name):
    J = jacobian(CUT[name], at())
    with pytest.raises(NotDifferentiable, match=f"jacobian: {SENTENCE}"):
        J @ at()
    with pytest.raises(NotDifferentiable, match=f"jacobian: {SENTENCE}"):
        J.T @ at()
    with pytest.raises(NotDifferentiable, match=f"hessian: {SENTENCE}"):
        hessian(lambda x: CUT[name](x).sum(), at()) @ at()


@pytest.mark.parametrize("route", ["forward", "reverse"])
def test_in_both_modes(route):
    with pytest.raises(NotDifferentiable, match=SENTENCE):
        jacobian(CUT["detached"], at(), route=route) @ at()
    with pytest.raises(NotDifferentiable, match=SENTENCE):
        hessian(lambda x: CUT["detached"](x).sum(), at(), route=route) @ at()


@pytest.mark.parametrize("route", ["forward", "reverse"])
def test_constants_have_zero_derivatives(route):
    three = torch.full((3,), 3.0, dtype=F64)
    J = jacobian(lambda x: three, at(), route=route)
    assert torch.equal(J @ at(), torch.zeros(3, dtype=F64))
    assert torch.equal(J.T @ at(), torch.zeros(3, dtype=F64))
    assert torch.equal(hessian(lambda x: three.sum(), at(), route=route) @ at(), torch.zeros(3, dtype=F64))


def test_solvers_by_products_refuse_it_too():
    with pytest.raises(NotDifferentiable, match="must depend on x through torch operations"):
        least_squares(CUT["detached"], at(), jacobian="products")
    with pytest.raises(NotDifferentiable, match="must depend on x through torch operations"):
        root(CUT["detached"], at(), jacobian="products")
    with pytest.raises(NotDifferentiable, match="must depend on x through torch operations"):
        prox_linear("l1", CUT["detached"], at())
    with pytest.raises(NotDifferentiable, match="must depend on x through torch operations"):
        least_squares_batch(CUT["detached"], at()[None])
