import pytest
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from frechet.errors import NotDifferentiable
from frechet.operators.derivatives._products import gauss_newton_product, hessian_product, jacobian_product
from laws import close
from objective_cases import (
    causal_attention_with_affine_layer_norm,
    hessian_of,
    penalized_sum,
    prepared,
    randn,
    weight_norm,
)

F64 = torch.float64
A, x, v, z = randn(3, 3), randn(3, seed=1), randn(3, seed=2), randn(3, seed=3)


def cubic(x):
    return ((A @ x) ** 3).sum() / 6


def squares(x):
    return (A @ x) ** 2


def test_a_hessian_product_has_its_closed_form():
    close(hessian_product(cubic, x, v).detach(), A.T @ torch.diag(A @ x) @ A @ v)


def test_a_jacobian_product_has_its_closed_form():
    close(jacobian_product(squares, x, v).detach(), 2 * torch.diag(A @ x) @ A @ v)


def test_a_gauss_newton_product_has_its_closed_form():
    J = 2 * torch.diag(A @ x) @ A
    H = torch.diag(12 * ((A @ x) ** 2) ** 2)
    close(gauss_newton_product(squares, lambda y: (y**4).sum(), x, v).detach(), J.T @ H @ J @ v)


def test_dicts_of_blocks_go_in_and_out():
    point, direction = {"a": x[:1], "b": x[1:]}, {"a": v[:1], "b": v[1:]}

    def joined(d):
        return torch.cat([d["a"], d["b"]])

    Hv = hessian_product(lambda d: cubic(joined(d)), point, direction)
    close(joined(Hv).detach(), hessian_product(cubic, x, v).detach())
    close(
        jacobian_product(lambda d: squares(joined(d)), point, direction).detach(),
        jacobian_product(squares, x, v).detach(),
    )
    Gv = gauss_newton_product(lambda d: squares(joined(d)), lambda y: y.exp().sum(), point, direction)
    close(joined(Gv).detach(), gauss_newton_product(squares, lambda y: y.exp().sum(), x, v).detach())


def test_the_derivative_of_a_curvature_has_its_closed_form():
    p = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(z @ hessian_product(cubic, p, z), p)
    close(slope, A.T @ (A @ z) ** 2)


@pytest.mark.parametrize("product", ["jacobian", "gauss_newton"])
def test_derivatives_of_products_agree_with_finite_differences(product):
    def norm(p, u):
        if product == "jacobian":
            return jacobian_product(lambda x: squares(x).sin(), p, u).square().sum()
        return z @ gauss_newton_product(squares, lambda y: y.sin().sum(), p, u)

    assert torch.autograd.gradcheck(norm, (x.clone().requires_grad_(), v.clone().requires_grad_()))


def test_they_differentiate_in_what_the_function_closes_over():
    w = torch.tensor(2.0, dtype=F64, requires_grad=True)
    y = hessian_product(lambda x: w**2 * (x**2).sum(), x, v)
    (slope,) = torch.autograd.grad(y.sum(), w)
    close(slope, 8 * v.sum())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_context_without_gradients_does_not_make_them_constant(context):
    p = x.clone().requires_grad_()
    with context():
        inside = v * 1
        products = hessian_product(cubic, p, inside), jacobian_product(squares, p, inside)
    close(products[0].detach(), hessian_product(cubic, x, v).detach())
    assert all(y.requires_grad for y in products)
    (slope,) = torch.autograd.grad(products[1].sum(), p)
    close(slope, 2 * A.T @ A @ v)


def test_autocast_does_not_round_them():
    W, u = A.float(), v.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = jacobian_product(lambda x: (W @ x.view(3, 1)).view(-1), x.float(), u)
    assert torch.allclose(y.detach(), W @ u, rtol=1e-5, atol=1e-6)


def test_what_does_not_depend_on_x_is_zero():
    one = torch.ones((), dtype=F64)
    assert not bool(hessian_product(lambda x: one, x, v).any())
    assert not bool(hessian_product(lambda x: x.sum(), x, v).any())
    assert not bool(jacobian_product(lambda x: one.view(1), x, v).any())
    assert not bool(gauss_newton_product(lambda x: one.view(1), lambda y: (y**2).sum(), x, v).any())
    assert not bool(gauss_newton_product(squares, lambda y: y.sum(), x, v).any())


@pytest.mark.parametrize("make", [penalized_sum, causal_attention_with_affine_layer_norm, weight_norm])
def test_the_value_of_an_objective_can_be_differentiated_so(make):
    case, point = prepared(make)
    direction = case.space.random(0, 1, "gaussian")
    Hv = hessian_product(case.objective.value, point, direction)
    close(Hv.detach(), hessian_of(make) @ direction)
    assert Hv.requires_grad


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * 2


def test_a_function_marked_once_differentiable_is_no_silent_constant():
    for product in (
        lambda: hessian_product(lambda x: Once.apply(x**2).sum(), x, v),
        lambda: jacobian_product(lambda x: Once.apply(x**2), x, v),
        lambda: gauss_newton_product(squares, lambda y: Once.apply(y**2).sum(), x, v),
    ):
        with pytest.raises(NotDifferentiable, match=r"_product: the backward of Once is marked once_differentiable"):
            product()


def test_an_operation_without_a_derivative_is_named():
    with pytest.raises(NotDifferentiable, match=r"jacobian_product: an operation .*is not implemented"):
        jacobian_product(lambda x: torch.cdist(x.view(1, 3), x.view(1, 3) + 1), x, v)


def test_attention_settings_are_restored_after_an_error():
    def fails(x):
        assert not torch.backends.mha.get_fastpath_enabled()
        raise RuntimeError("mine")

    flash = torch.backends.cuda.flash_sdp_enabled()
    with pytest.raises(RuntimeError, match=r"^mine$"):
        hessian_product(fails, x, v)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() == flash


def test_fused_attention_is_differentiated_twice():
    q = randn(1, 1, 3, 2)
    y = hessian_product(lambda q: F.scaled_dot_product_attention(q, q, q).square().sum(), q, torch.ones_like(q))
    assert y.shape == q.shape


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"hessian_product: f must return a scalar, got shape \(3,\)"):
        hessian_product(squares, x, v)
    with pytest.raises(ValueError, match=r"jacobian_product: v must have the shape of x, got \(2,\) for \(3,\)"):
        jacobian_product(squares, x, v[:2])
    for wrong in ({"a": v}, v):
        with pytest.raises(TypeError, match="gauss_newton_product: v must be structured like x"):
            gauss_newton_product(squares, cubic, {"b": x}, wrong)
