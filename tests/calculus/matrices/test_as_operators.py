"""Derivatives of matrix functions as linear operators: both routes, linearized, and second derivatives of losses."""

import pytest
import torch

from frechet import check_operator, hessian, jacobian, linearize
from frechet.calculus.distances import frechet_distance
from frechet.calculus.matrices import polar, sqrtm, svd, sylvester

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


B = randn(3, 3)
START = B @ B.T + torch.eye(3, dtype=F64)
MAPS = {
    "root": lambda a: sqrtm((a + a.mT) / 2),
    "polar": lambda a: polar(a)[0],
    "singular values": lambda a: svd(a)[1],
    "sylvester": lambda a: sylvester(a, a, a @ a),
    "distance": lambda a: frechet_distance(a, B + 1),
}


@pytest.mark.parametrize("name", MAPS)
def test_products_obey_the_laws_of_operators(name):
    f = MAPS[name]
    for route in ("forward", "reverse"):
        J = jacobian(f, START, route=route)
        assert check_operator(J, seed=0).failed == ()
        torch.testing.assert_close(linearize(J).dense(), J.dense())
    assert check_operator(hessian(lambda a: (f(a) ** 3).sum(), START), seed=0).failed == ()
