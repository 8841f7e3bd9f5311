import math
from itertools import pairwise

import pytest
import torch

from frechet.operators.derivatives._hessian import hessian
from frechet.optimize._constrained.constrained import constrained
from spectra import F64

START = torch.tensor([1.2, 0.7, -0.4, 0.5, 0.3, -0.2, 0.6, 0.1], dtype=F64)


def f(x):
    return ((x - 2) ** 4).sum() + (x[1:] * x[:-1]).sum() + torch.exp(x).sum() + 3 * x[::2].square().sum()


def c(x):
    return torch.stack([x @ x - 4.0, x[0] - x[1] * x[2] - 1.0])


def residuals(method):
    sizes = []
    s = constrained(
        f,
        START,
        c,
        method=method,
        gtol=1e-13,
        ctol=1e-13,
        max_iterations=30,
        observe=lambda t: bool(sizes.append(max(t.residual, t.infeasibility))),
    )
    return s, sizes


@pytest.mark.parametrize("method", ["augmented", "composite"])
def test_the_order_of_convergence_is_above_one(method):
    s, sizes = residuals(method)
    assert s.residual < 1e-9
    assert s.infeasibility < 1e-9
    tail = [r for r in sizes if 1e-12 < r < 1e-1]
    orders = [math.log(b) / math.log(a) for a, b in pairwise(tail)]
    assert len(orders) >= 1
    assert max(orders) > 1.4
    assert orders[-1] > 1.2


def test_both_methods_find_the_same_solution():
    one, other = residuals("augmented")[0], residuals("composite")[0]
    assert torch.allclose(one.x, other.x, atol=1e-7)
    assert torch.allclose(one.multipliers[0], other.multipliers[0], atol=1e-6)


def test_second_order_conditions_hold_where_the_start_is_a_maximum():
    # on the circle, -x has its maximum at (-1, 0), where the first steps have no positive curvature
    s = constrained(lambda x: -x[0], torch.tensor([-1.0, 1e-3], dtype=F64), lambda x: x @ x - 1, method="augmented")
    assert s.converged
    assert s.x.tolist() == pytest.approx([1.0, 0.0], abs=1e-7)
    y = s.multipliers[0]
    W = hessian(lambda x: -x[0] + y * (x @ x - 1), s.x).dense()
    assert float(W[1, 1]) > 0  # along the tangent
