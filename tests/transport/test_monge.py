import math

import pytest
import torch

from frechet.errors import NonFinite
from frechet.transport._monge import monge_gap, squared_distance
from transport_problems import F64, assignment, uniform

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch's own forward mode
X = torch.randn(40, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)

# gradients of x'Ax/2, log cosh, a translation and a norm to the fourth
CONVEX = {
    "linear": lambda x: x @ torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64),
    "kinked": lambda x: x + torch.tanh(3 * x),
    "translation": lambda x: x + 3.0,
    "quartic": lambda x: x * (x * x).sum(1, keepdim=True),
}


@pytest.mark.parametrize("name", list(CONVEX))
def test_gradients_of_convex_functions_have_none(name):
    y = CONVEX[name](X)
    small = float(monge_gap(X, y, epsilon=1e-5))
    assert -1e-14 < small < 1e-4
    assert 0 <= float(monge_gap(X, y, epsilon=0.1)) <= 0.1 * math.log(40)


def test_a_rotation_has_that_of_the_assignment():
    y = X @ TURN
    C = squared_distance(X, y)
    expected = float(C.diagonal().mean()) - assignment(C)
    assert expected > 0.5
    assert float(monge_gap(X, y, epsilon=1e-5)) == pytest.approx(expected, abs=1e-4)
    assert float(monge_gap(X, y, epsilon=0.1)) > 0.5


@pytest.mark.parametrize("epsilon", [10.0, 1.0, 0.1])
def test_debiased_it_vanishes_for_translations_at_every_epsilon(epsilon):
    assert float(monge_gap(X, X + 3, epsilon=epsilon, debiased=True)) == pytest.approx(0, abs=1e-9)
    assert float(monge_gap(X, X, epsilon=epsilon, debiased=True)) == pytest.approx(0, abs=1e-12)
    assert float(monge_gap(X, X + 3, epsilon=epsilon)) > 0.01
    assert float(monge_gap(X, X @ TURN, epsilon=epsilon, debiased=True)) > 0.3


@pytest.mark.parametrize("debiased", [False, True])
def test_its_gradient_is_that_of_differences_and_training_lessens_it(debiased):
    y = (X @ TURN).requires_grad_()
    gap = monge_gap(X, y, epsilon=0.2, debiased=debiased, rtol=1e-13)
    (gradient,) = torch.autograd.grad(gap, y)
    d = uniform(40, 2, seed=4)
    ends = [float(monge_gap(X, y.detach() + h * d, epsilon=0.2, debiased=debiased, rtol=1e-13)) for h in (1e-5, -1e-5)]
    assert float((gradient * d).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)
    for _ in range(8):
        (gradient,) = torch.autograd.grad(monge_gap(X, y, epsilon=0.2, debiased=debiased), y)
        y = (y.detach() - 10 * gradient).requires_grad_()
    assert float(monge_gap(X, y, epsilon=0.2, debiased=debiased).detach()) < 0.5 * float(gap.detach())


def test_another_cost_and_one_point():
    def city(x, y):
        return (x.unsqueeze(1) - y).abs().sum(-1)

    assert float(monge_gap(X, X + 1.0, epsilon=1e-3, cost=city)) == pytest.approx(0, abs=1e-2)
    assert float(monge_gap(X[:1], X[1:2], epsilon=0.1)) == pytest.approx(0, abs=1e-15)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="monge_gap: y must be a tensor, got list"):
        monge_gap(X, [1.0], epsilon=1.0)
    with pytest.raises(ValueError, match=r"monge_gap: x must be points \(n, d\) with n >= 1, got \(40,\)"):
        monge_gap(X[:, 0], X, epsilon=1.0)
    with pytest.raises(ValueError, match="monge_gap: y must have one point for each of x, got 39 for 40"):
        monge_gap(X, X[1:], epsilon=1.0)
    with pytest.raises(NonFinite, match="monge_gap: y must be finite"):
        monge_gap(X, X / 0, epsilon=1.0)
    with pytest.raises(ValueError, match=r"monge_gap: cost must return shape \(40, 40\), got \(40,\)"):
        monge_gap(X, X, epsilon=1.0, cost=lambda x, y: (x - y).sum(1))


def test_it_goes_through_transforms_of_torch_func():
    x = uniform(2, 4, 2)
    gap = lambda z: monge_gap(z, z @ TURN, epsilon=0.5)  # noqa: E731
    assert torch.allclose(torch.func.vmap(gap)(x), torch.stack([gap(z) for z in x]))
    each = torch.stack([torch.autograd.functional.jacobian(gap, z) for z in x])
    assert torch.allclose(torch.func.vmap(torch.func.grad(gap))(x), each)
    assert torch.allclose(torch.func.jacfwd(gap)(x[0]), each[0])
    with pytest.raises(NonFinite, match="monge_gap: x must be finite"):
        torch.func.vmap(gap)(x * math.nan)
