from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from frechet.errors import NotDifferentiable
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._jacobian import jacobian
from laws import LAWS, close
from objective_cases import plain_attention, randn

F64 = torch.float64
routes = pytest.mark.parametrize("route", ["reverse", "forward"])
X = randn(2, 3)


def scalar(x):
    return (x.sin() * x.roll(1) ** 2).sum() + (x[0] * x[-1]).exp().sum()


def vector(x):
    return torch.stack([x.sin().sum(), x.prod(), x.flatten()[0] ** 2])


@routes
def test_a_hessian_obeys_every_law(route):
    expected = torch.autograd.functional.hessian(lambda x: scalar(x.view(2, 3)), X.flatten())
    for law in LAWS:
        law(hessian(scalar, X, route=route), SimpleNamespace(dense=expected))


@routes
def test_a_jacobian_obeys_every_law(route):
    expected = torch.autograd.functional.jacobian(lambda x: vector(x.view(2, 3)), X.flatten())
    for law in LAWS:
        law(jacobian(vector, X, route=route), SimpleNamespace(dense=expected))


@routes
def test_dicts_of_blocks_go_in_and_out(route):
    x = {"a": randn(2), "b": randn(1, 2)}
    J = jacobian(lambda d: {"sum": d["a"].sum() + d["b"].sum(), "product": d["a"] * d["b"]}, x, route=route)
    assert J.codomain.names == ("sum", "product")
    result = J @ {"a": torch.ones(2, dtype=F64), "b": torch.zeros(1, 2, dtype=F64)}
    assert float(result["sum"]) == 2.0
    close(result["product"], x["b"])
    H = hessian(lambda d: (d["a"] * d["b"]).sum(), x, route=route)
    eye = torch.eye(2, dtype=F64)
    close(H.dense(), torch.kron(torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=F64), eye))


@routes
def test_affine_layer_norm_agrees_with_double_backward(route):
    def f(x):
        return F.layer_norm(randn(4, 3), (3,), x[:3], x[3:6]).mul(x[6:]).sin().sum()

    x = randn(9)
    close(hessian(f, x, route=route).dense(), torch.autograd.functional.hessian(f, x))


def test_fused_attention_and_weight_norm_inside_a_function():
    def attention(q):
        return F.scaled_dot_product_attention(q, q, q).square().sum()

    q = randn(1, 1, 2, 2)
    expected = plain_attention(torch.autograd.functional.hessian)(attention, q).view(4, 4)
    close(hessian(attention, q).dense(), expected)

    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)).double()
    name = "parametrizations.weight.original1"
    v, g = (layer.get_parameter(f"parametrizations.weight.original{i}").detach().clone() for i in (1, 0))

    def by_torch(v):
        return functional_call(layer, {name: v}, (X[:, :2],)).sin().sum()

    def by_formula(v):
        return (X[:, :2] @ (g * v / v.square().sum(1, keepdim=True).sqrt()).T + layer.bias.detach()).sin().sum()

    expected = torch.autograd.functional.hessian(by_formula, v).view(4, 4)
    close(hessian(by_torch, v).dense(), expected)


@routes
def test_what_does_not_depend_on_x_has_a_zero_derivative(route):
    zero = torch.zeros(2, 2, dtype=F64)
    x = randn(2)
    for f in (lambda x: torch.ones((), dtype=F64), lambda x: x.sum(), lambda x: (x > 0).double().sum()):
        assert torch.equal(hessian(f, x, route=route).dense(), zero)
    assert torch.equal(jacobian(lambda x: torch.ones(2, dtype=F64), x, route=route).dense(), zero)
    assert torch.equal(jacobian(lambda x: x[:0], x, route=route) @ x, x[:0])


def test_the_point_is_copied():
    x = randn(3)
    H, J = hessian(lambda x: (x**3).sum(), x), jacobian(lambda x: x**2, x)
    expected = torch.diag(6 * x), torch.diag(2 * x)
    x += 1.0
    close(H.dense(), expected[0])
    close(J.dense(), expected[1])
    assert not x.requires_grad


@routes
def test_inference_mode_no_grad_and_autocast_change_nothing(route):
    W, x, v = randn(3, 3).float(), randn(3).float(), randn(3).float()

    def products():
        H = hessian(lambda x: (W @ x.view(3, 1)).pow(3).sum(), x * 1, route=route)
        J = jacobian(lambda x: (W @ x.view(3, 1)).pow(2).view(-1), x * 1, route=route)
        return H, J, (H @ (v * 1), J @ (v * 1), J.T @ (v * 1))

    expected = products()[2]
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with context:
            H, J, inside = products()
        for a, b in zip((*inside, H @ v, J @ v, J.T @ v), (*expected, *expected), strict=True):
            assert torch.equal(a, b)


def test_a_missing_derivative_says_which_and_what_to_try():
    x = randn(2, 2)
    with pytest.raises(NotDifferentiable, match=r"hessian: an operation .*cdist.*is not implemented.*other route="):
        hessian(lambda x: torch.cdist(x, x + 1).sum(), x).dense()
    with pytest.raises(NotDifferentiable, match=r"hessian: an operation .* ZeroTensors.*try the other route="):
        hessian(lambda x: F.mse_loss(x**2, torch.zeros_like(x)), x, route="forward").dense()


def test_wrong_arguments_are_named():
    x = randn(2)
    with pytest.raises(ValueError, match=r"hessian: f must return a scalar tensor, got shape \(2,\); for more outputs"):
        hessian(lambda x: x, x).dense()
    with pytest.raises(ValueError, match="hessian: f must return a scalar tensor, got float"):
        hessian(lambda x: 1.0, x).dense()
    with pytest.raises(TypeError, match="jacobian: f must return a tensor or a dict of tensors, got tuple"):
        jacobian(lambda x: (x, x), x)
    with pytest.raises(TypeError, match="jacobian: x must be a tensor or a dict of tensors, got list"):
        jacobian(lambda x: x, [1.0])
    with pytest.raises(TypeError, match="hessian: x must be a tensor or a dict of tensors, got float"):
        hessian(lambda x: x, 1.0)
    with pytest.raises(ValueError, match=r"hessian: x must not require grad.*use hessian_product\(f, x, v\)"):
        hessian(scalar, x.clone().requires_grad_())
    with pytest.raises(TypeError, match="dtype must be real"):
        jacobian(lambda x: x, torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="floating-point"):
        jacobian(lambda x: x, torch.ones(2, dtype=torch.long))
    with pytest.raises(TypeError, match="one dtype, got 'a' is float32, 'b' is float64"):
        hessian(lambda d: d["a"].sum(), {"a": torch.ones(1), "b": x})
