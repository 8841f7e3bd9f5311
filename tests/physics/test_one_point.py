"""What is refused at the first evaluation, with the name of the condition."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jvp

from frechet import least_squares
from frechet.calculus.taylor import differential_operator, laplacian
from frechet.errors import NonFinite, NotDifferentiable
from frechet.physics import collocation
from pinns import F64, heat, network, parameters_of, poisson, square, value

P = {"a": torch.tensor([1.0, 2.0], dtype=F64)}
X = torch.rand(6, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) + 0.1


def refused(error, text, at, points=X, p=P, **options):
    residual = collocation({"inner": at}, {"inner": points}, **options)
    with pytest.raises(error, match=text) as caught:
        residual(p)
    assert "inner" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    return caught.value


# --- couples points, or is no function --------------------------------------------------------------------------------


def remembers():
    seen = []

    def at(p, x):
        seen.append(x)
        return (p["a"] * x).sum() * len(seen)

    return at


def draws(p, x):
    return (p["a"] * x).sum() + torch.randn((), dtype=F64, generator=DRAW)


DRAW = torch.Generator().manual_seed(0)


class Centred(torch.autograd.Function):
    """x less the mean over all points that are computed together: under `vmap` it sees them all."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, u):
        return u

    @staticmethod
    def vmap(info, axes, x):
        return x - x.mean(axes[0], keepdim=True), axes[0]


@pytest.mark.parametrize("at", [remembers(), lambda p, x: (p["a"] * Centred.apply(x)).sum()])
def test_a_residual_that_couples_points(at):
    refused(NotDifferentiable, "must not depend on other points", at)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2), nn.Dropout(0.5)])
def test_layers_in_training_mode(layer):
    net = nn.Sequential(nn.Linear(2, 2), layer, nn.Tanh(), nn.Linear(2, 1)).to(F64)
    at = lambda p, x: functional_call(net, p, (x[None],)).sum()  # noqa: E731
    residual = collocation({"inner": at}, {"inner": X})
    with pytest.raises((ValueError, RuntimeError)) as caught:
        residual({n: t.detach() for n, t in net.named_parameters()})
    assert "inner" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


def test_a_function_of_many_points():
    error = refused(IndexError, "too many indices", lambda p, x: p["a"][0] * x[:, 0])
    assert "write x[0] for x[:, 0]" in error.__notes__[0]


def test_derivatives_by_autograd():
    def at(p, x):
        y = (p["a"] * x**2).sum()
        return torch.autograd.grad(y, x, create_graph=True)[0].sum()

    error = refused(RuntimeError, "grad", at)
    assert "not by torch.autograd.grad" in error.__notes__[0]


@pytest.mark.parametrize("value", [1.0, None, torch.ones(2, dtype=torch.complex128), torch.ones(0), torch.arange(2)])
def test_what_is_no_real_tensor(value):
    refused(TypeError, "must return a real tensor", lambda p, x: value)


# --- not finite -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [lambda p, x: p["a"][0] / (x[0] - 0.5), lambda p, x: p["a"][0] * torch.log(x[0] - 0.4)])
def test_a_residual_that_is_not_finite(at):
    points = torch.tensor([[0.9, 0.1], [0.5, 0.1], [0.4, 0.1], [0.7, 0.2]], dtype=F64)
    middle = at(P, torch.tensor([0.5, 0.1], dtype=F64))
    first = r"\[0.4, 0.1\]" if middle.isfinite() else r"\[0.5, 0.1\]"
    refused(NonFinite, f"finite at the start.* 1 of 4 points, the first of them {first}", at, points)


def test_a_residual_that_becomes_not_finite_refuses_the_step():
    x = torch.linspace(0.1, 1, 8, dtype=F64)[:, None]
    residual = collocation(lambda p, x: torch.sqrt(p[0] + 1) * x[0] - 0.1 * x[0], {"data": x})
    s = least_squares(residual, torch.tensor([2.0], dtype=F64))
    assert s.converged
    assert float(s.x[0]) == pytest.approx(0.01 - 1, abs=1e-12)


# --- derivatives that are not there -----------------------------------------------------------------------------------


def by_taylor(u):
    return lambda x: laplacian(u)(x)


def by_hessian(u):
    return lambda x: hessian(u)(x).diagonal().sum()


def by_jvp_of_grad(u):
    e = torch.tensor([1.0, 0.0], dtype=F64)
    return lambda x: jvp(grad(u), (x,), (e,))[1][0]


RELU = [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.PReLU]


@pytest.mark.parametrize("activation", RELU)
@pytest.mark.parametrize("operator", [by_taylor, by_hessian, by_jvp_of_grad])
def test_second_derivatives_of_a_piecewise_linear_network(activation, operator):
    net = network(2, 5, 1, activation=activation)
    u = value(net)
    refused(NotDifferentiable, "tanh, sin", lambda p, x: operator(u(p))(x) + 1, p=parameters_of(net))


@pytest.mark.parametrize("activation", RELU)
def test_a_second_derivative_beside_a_first(activation):
    """The heat equation of a ReLU network would be u_t = 0."""
    net = network(2, 5, 1, activation=activation)
    refused(NotDifferentiable, "which are zero everywhere", heat(net)["equation"], p=parameters_of(net))


@pytest.mark.parametrize("activation", RELU)
def test_first_derivatives_of_a_piecewise_linear_network_are_right(activation):
    net = network(2, 5, 1, activation=activation)
    u = value(net)
    residual = collocation(
        {"inner": lambda p, x: differential_operator(u(p), "u_x + u_y", variables="xy")(x) - 1}, {"inner": X}
    )
    assert bool(residual.jacobian(parameters_of(net)).any())


def test_a_residual_without_parameters():
    refused(NotDifferentiable, "must change with the parameters", lambda p, x: x.sum())


# --- conditions that contradict each other ----------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, -3.0])
def test_two_values_at_one_corner(factor):
    net = network(2, 5, 1)
    u = value(net)
    left = torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.0, 1.0]], dtype=F64)
    lid = torch.tensor([[0.3, 1.0], [0.0, 1.0]], dtype=F64)
    conditions = {"left": lambda p, x: u(p)(x), "lid": lambda p, x: factor * (u(p)(x) - 1)}
    with pytest.raises(ValueError, match=r"'left' and 'lid' must agree.*\[0.0, 1.0\].*leave the point out"):
        collocation(conditions, {"left": left, "lid": lid})(parameters_of(net))
    collocation(conditions, {"left": left[:2], "lid": lid})(parameters_of(net))


def test_one_corner_with_one_value_is_no_contradiction():
    net = network(2, 5, 1)
    u = value(net)
    corner = torch.tensor([[0.0, 1.0]], dtype=F64)
    conditions = {
        "left": lambda p, x: u(p)(x) - x[1],
        "lid": lambda p, x: 2 * (u(p)(x) - 1),
        "slope": lambda p, x: grad(u(p))(x)[0] - 5,
    }
    collocation(conditions, dict.fromkeys(conditions, corner))(parameters_of(net))


# --- the proofs themselves --------------------------------------------------------------------------------------------


def test_the_first_call_alone_pays_for_the_proofs():
    calls = []

    def at(p, x):
        calls.append(1)
        return (p["a"] * x).sum() ** 2

    residual = collocation({"inner": at}, {"inner": X})
    residual(P)
    calls.clear()
    residual(P)
    assert len(calls) == 1
    residual.at({"inner": X + 1})(P)
    assert len(calls) == 2


def test_a_first_call_inside_of_a_transform():
    residual = collocation(poisson(network(2, 3, 1)), dict(zip(("equation", "boundary"), square(4, 4), strict=True)))
    p = parameters_of(network(2, 3, 1))
    with pytest.raises(ValueError, match="called once with plain tensors"):
        torch.func.jacrev(lambda p: residual(p)["equation"])(p)


def test_a_solved_start_passes():
    """Where the residual is the difference of large numbers, rounding is no coupling."""
    x = torch.linspace(0, 1, 9, dtype=F64)[:, None]
    residual = collocation(lambda p, x: 1e8 * (p[0] * torch.exp(x[0]) - math.e * torch.exp(x[0])), {"data": x})
    residual(torch.tensor([math.e * (1 + 1e-15)], dtype=F64))


def test_other_dtypes_are_refused_by_name():
    residual = collocation({"inner": lambda p, x: (p["a"] * x).sum()}, {"inner": X.float()})
    with pytest.raises(TypeError, match=r"points of 'inner' must be torch\.float64"):
        residual(P)
