import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frechet import Objective, gauss_newton, hessian, linearize, squared_error
from frechet.calculus.taylor import jet, laplacian
from frechet.errors import NotDifferentiable

F64 = torch.float64


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def slope(h):
    return lambda t: torch.func.jvp(h, (t,), (torch.ones_like(t),))[1]


def nested(f, curve, order):
    """Derivatives of t -> f(curve(t)) at 0 by nested forward mode."""
    g, found = lambda t: f(curve(t)), []
    for _ in range(order):
        g = slope(g)
        found.append(g(torch.zeros((), dtype=F64)))
    return found


def network(inputs=3, outputs=2, dtype=F64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(inputs, 8),
        nn.Tanh(),
        nn.Linear(8, 8),
        nn.Softplus(),
        nn.Linear(8, 8),
        nn.GELU(),
        nn.Linear(8, outputs),
    ).to(dtype)


def close(a, b, rtol=1e-11):
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


# --- what it returns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", range(1, 8))
def test_the_exponential_along_a_line(order):
    x, v = torch.tensor(0.3, dtype=F64), torch.tensor(1.5, dtype=F64)
    value, derivatives = jet(torch.exp, x, v, order)
    close(value, x.exp())
    assert len(derivatives) == order
    for k, d in enumerate(derivatives, 1):
        close(d, v**k * x.exp())


def test_a_curve_with_all_coefficients():
    net, x = network(), randn(4, 3)
    c = [randn(4, 3, seed=k) for k in range(1, 5)]

    def curve(t):
        return x + sum(a * t**k / math.factorial(k) for k, a in enumerate(c, 1))

    value, derivatives = jet(net, x, c)
    close(value, net(x))
    for d, e in zip(derivatives, nested(net, curve, 4), strict=True):
        close(d, e)


def test_many_curves_are_the_single_ones():
    net, x, v = network(), randn(4, 3), randn(5, 4, 3, seed=1)
    value, derivatives = jet(net, x, v, 3)
    for r in range(5):
        alone, each = jet(net, x, v[r], 3)
        close(value, alone)
        for d, e in zip(derivatives, each, strict=True):
            close(d[r], e)


def test_any_structure_of_outputs():
    x = randn(3)
    value, (first, second) = jet(
        lambda x: {"a": (x**2, x.sum()), "b": torch.ones(2, dtype=F64)}, x, torch.ones_like(x), 2
    )
    close(value["a"][0], x**2)
    close(first["a"][0], 2 * x)
    close(second["a"][0], torch.full((3,), 2.0, dtype=F64))
    close(second["a"][1], torch.tensor(0.0, dtype=F64))
    close(first["b"], torch.zeros(2, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    net, x = network(dtype=dtype), randn(4, 3, dtype=dtype)
    value, derivatives = jet(net, x, torch.ones_like(x), 3)
    assert {value.dtype, *(d.dtype for d in derivatives)} == {dtype}


# --- modules ----------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(4, 5, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0]


MODULES = {
    "layer norm": lambda: nn.LayerNorm(4),
    "rms norm": lambda: nn.RMSNorm(4),
    "group norm": lambda: nn.Sequential(nn.Conv1d(5, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.SiLU()),
    "batch norm": lambda: nn.Sequential(nn.Conv1d(5, 6, 3), nn.BatchNorm1d(6), nn.Mish()).eval(),
    "circular convolution": lambda: nn.Sequential(nn.Conv1d(5, 6, 3, padding=1, padding_mode="circular"), nn.Tanh()),
    "transposed convolution": lambda: nn.Sequential(nn.ConvTranspose1d(5, 3, 2), nn.Tanh()),
    "pooling": lambda: nn.Sequential(nn.Conv1d(5, 6, 1), nn.Sigmoid(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 3)),
    "attention": Attention,
    "encoder layer": lambda: nn.TransformerEncoderLayer(
        4, 2, 8, dropout=0.0, batch_first=True, activation="gelu"
    ).eval(),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh()),
    "in place": lambda: nn.Sequential(nn.Linear(4, 4), nn.Mish(inplace=True), nn.Linear(4, 4), nn.SiLU(inplace=True)),
    "bilinear": lambda: nn.Bilinear(4, 4, 3),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_along_a_curve(name):
    torch.manual_seed(0)
    module, x, v = MODULES[name]().double(), randn(2, 5, 4), randn(2, 5, 4, seed=1)

    def f(x):
        return module(x, x * x) if name == "bilinear" else module(x)

    _, derivatives = jet(f, x, v, 4)
    # two derivatives by differences of the plain function, the fourth by differences of the third
    h = 0.05
    for k, d in enumerate(derivatives[:2], 1):
        close(d, differences(lambda t: f(x + t * v), h, k), rtol=2e-7)
    lower = [jet(f, x + s * v, v, 3)[1][2] for s in (-2e-3, -1e-3, 1e-3, 2e-3)]
    fourth = (lower[0] - 8 * lower[1] + 8 * lower[2] - lower[3]) / 12e-3
    torch.testing.assert_close(derivatives[3], fourth, rtol=1e-5, atol=1e-5 * float(fourth.detach().abs().max()) + 1e-9)


def differences(f, h, k):
    """First and second derivative at 0 by central differences of order eight."""
    one = (4 / 5, -1 / 5, 4 / 105, -1 / 280)
    two = (8 / 5, -1 / 5, 8 / 315, -1 / 560)
    h = h / 5
    if k == 1:
        return sum(c * (f(h * (i + 1)) - f(-h * (i + 1))) for i, c in enumerate(one)) / h
    total = sum(c * (f(h * (i + 1)) + f(-h * (i + 1))) for i, c in enumerate(two))
    return (total - 205 / 72 * f(0.0)) / h**2


def test_layer_norm_where_nested_autograd_is_wrong():
    # the double backward of torch's kernel takes mean and deviation for constants
    x, v = randn(3, 4), randn(3, 4, seed=1)

    def plain(x):
        centered = x - x.mean(-1, keepdim=True)
        return centered / ((centered**2).mean(-1, keepdim=True) + 1e-5).sqrt()

    _, ours = jet(lambda x: F.layer_norm(x, (4,)), x, v, 4)
    for d, e in zip(ours, nested(plain, lambda t: x + t * v, 4), strict=True):
        close(d, e, 1e-9)


def test_attention_of_moderate_scores():
    q = randn(2, 3, 5, 4)

    def fused(x):
        return F.scaled_dot_product_attention(x, 2 * x, x.sin(), is_causal=True)

    def plain(x):
        scores = (x @ (2 * x).transpose(-2, -1) / 2).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        return torch.softmax(scores, -1) @ x.sin()

    v = randn(2, 3, 5, 4, seed=1)
    for d, e in zip(jet(fused, q, v, 5)[1], nested(plain, lambda t: q + t * v, 5), strict=True):
        close(d, e, 1e-9)


def test_a_saturated_softmax_keeps_its_digits():
    x, v = torch.tensor([5000.0, 4980.0, 0.0], dtype=F64), torch.tensor([900.0, 899.0, -300.0], dtype=F64)
    _, derivatives = jet(lambda x: torch.softmax(x, -1), x, v, 4)
    # two entries remain: a sigmoid of their difference
    for d, e in zip(derivatives, jet(torch.sigmoid, x[1] - x[0], v[1] - v[0], 4)[1], strict=True):
        torch.testing.assert_close(d[1], e, rtol=1e-9, atol=0.0)


# --- derivatives of it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivatives_flow_through_the_coefficients(order):
    net, x, v = network(), randn(4, 3), randn(4, 3, seed=1)
    weights = [randn(4, 2, seed=k) for k in range(9, 9 + order)]

    def loss(derivatives):
        return sum((w * d**2).sum() for w, d in zip(weights, derivatives, strict=True))

    ours = torch.autograd.grad(loss(jet(net, x, v, order)[1]), list(net.parameters())[:-1])
    theirs = torch.autograd.grad(loss(nested(net, lambda t: x + t * v, order)), list(net.parameters())[:-1])
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-9)


def test_gradients_in_point_and_direction():
    net = network(outputs=1)
    inputs = randn(2, 3).requires_grad_(), randn(2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, v: jet(net, x, v, 3)[1][2], inputs)
    assert torch.autograd.gradgradcheck(lambda x, v: jet(net, x, v, 2)[1][1], inputs)


def test_it_goes_through_the_transforms_of_torch():
    net, x, v = network(), randn(4, 3), randn(4, 3, seed=1)

    def second(x):
        return jet(net, x, v[0].expand_as(x), 2)[1][1]

    close(torch.func.vmap(second)(x), second(x))
    close(torch.func.jvp(second, (x,), (v,))[1], (second(x + 1e-6 * v) - second(x - 1e-6 * v)) / 2e-6, 1e-7)
    close(torch.func.grad(lambda x: second(x).sum())(x).sum(), torch.func.jacrev(lambda x: second(x).sum())(x).sum())


def test_a_function_may_take_jets_itself():
    x, v = randn(3), randn(3, seed=1)

    def speed(x):  # directional derivative of sin along x
        return jet(torch.sin, x, x, 1)[1][0]

    for d, e in zip(jet(speed, x, v, 3)[1], jet(lambda x: x * torch.cos(x), x, v, 3)[1], strict=True):
        close(d, e)


def test_an_inner_jet_does_not_see_an_outer_variable_as_its_own():
    # d/dx (x d/dy (x y)) = 2 x
    x = torch.tensor(3.0, dtype=F64)

    def outer(x):
        y = torch.ones((), dtype=F64)
        return x * jet(lambda y: x * y, y, torch.ones_like(y), 1)[1][0]

    close(jet(outer, x, torch.ones_like(x), 2)[1][0], 2 * x)
    close(jet(outer, x, torch.ones_like(x), 2)[1][1], torch.tensor(2.0, dtype=F64))


# --- inside an objective ----------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """The residual of a differential equation as a model."""

    def __init__(self):
        super().__init__()
        self.net = network(2, 1)

    def forward(self, x):
        return laplacian(self.net)(x) + self.net(x) ** 3


def test_the_model_of_an_objective_may_contain_it():
    data = [(randn(6, 2, seed=k), randn(6, 1, seed=10 + k)) for k in range(2)]
    objective = Objective(Residual(), squared_error(), data)
    found = objective.check()  # raises where a derivative differs from its difference
    assert found.proved
    assert all(claim.proved for claim in found.proved)
    assert found.unreached == ()
    H = hessian(objective)
    v = H.domain.random(0, 0)
    x = objective.point
    step = 1e-5
    difference = (objective.gradient(x + step * v) - objective.gradient(x - step * v)) / (2 * step)
    torch.testing.assert_close(H @ v, difference, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(linearize(H) @ v, H @ v, rtol=1e-10, atol=1e-10)
    G = gauss_newton(objective)
    torch.testing.assert_close(G @ v, gauss_newton(objective, route="forward") @ v, rtol=1e-9, atol=1e-9)


# --- writing, values, randomness --------------------------------------------------------------------------------------


def written(x):
    y = torch.zeros_like(x)
    y[..., 0] = x[..., 1] ** 2
    y[..., 1:] = x[..., :-1].sin()
    y += x
    y.mul_(x)
    y[x > 0.5] = 1.0
    return y.clamp_(min=-2.0)


def returned(x):
    y = torch.cat([x[..., 1:2] ** 2, x[..., :-1].sin()], -1)
    y = (y + x) * x
    return torch.where(x > 0.5, torch.ones_like(y), y).clamp(min=-2.0)


def test_functions_that_write_into_their_own_tensors():
    x, v = randn(4, 3), randn(2, 4, 3, seed=1)
    for d, e in zip(jet(written, x, v, 3)[1], jet(returned, x, v, 3)[1], strict=True):
        close(d, e)


def test_branches_and_constants_are_those_of_the_value():
    x = torch.tensor(2.0, dtype=F64)

    def f(x):
        return x**3 * x.detach() if x > 1 else x

    close(jet(f, x, torch.ones_like(x), 2)[1][0], 2 * 3 * x**2)


def test_dropout_draws_one_mask():
    x = torch.ones(1000, dtype=F64)
    torch.manual_seed(0)
    value, (first,) = jet(lambda x: F.dropout(x, 0.5), x, torch.ones_like(x), 1)
    close(first, value)
    assert set(value.tolist()) == {0.0, 2.0}


def test_the_point_is_not_written_to():
    x = randn(3)
    before = x.clone()
    jet(lambda x: x.add_(1.0).square(), x, torch.ones_like(x), 2)
    close(x, before)


# --- refusals ---------------------------------------------------------------------------------------------------------


def into_plain(x):
    buffer = torch.zeros(3, dtype=F64)
    buffer[0] = x.sum()
    return buffer


def into_view(x):
    y = x.clone()
    z = y[1:]
    z += 1.0
    return y


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0]


def without_grad(x):
    with torch.no_grad():
        scale = x.abs().max()
    return x / scale


@pytest.mark.parametrize(
    ("f", "told"),
    [
        (StraightThrough.apply, "in a custom torch.autograd.Function"),
        (without_grad, "under torch.no_grad"),
        (lambda x: torch.linalg.svdvals(x.reshape(3, 1)), "aten._linalg_svd.default has no rule"),
        (lambda x: torch.special.i0(x), "bessel_i0"),
        (into_plain, "torch.zeros_like"),
        (into_view, "shares its memory"),
        (lambda x: torch.func.grad(lambda y: y.square().sum())(x), "below the level of torch functions"),
        (lambda x: torch.autograd.grad(x.sum(), x)[0], "write derivatives inside f by jet"),
        (lambda x: torch.bernoulli(x.sigmoid()) * x, "draws random numbers that depend on x"),
        (lambda x: x.clone().unsqueeze_(0), "changes the shape"),
    ],
)
def test_what_has_no_derivative_is_refused_in_a_sentence(f, told):
    with pytest.raises(NotDifferentiable, match="jet: ") as error:
        jet(f, randn(3), torch.ones(3, dtype=F64), 2)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        ((torch.sin, 1.0, torch.ones(())), TypeError, "x must be a tensor of real numbers, got float"),
        ((torch.sin, torch.ones(2, dtype=torch.int64), torch.ones(2)), TypeError, "got torch.int64"),
        ((torch.sin, torch.ones(2), []), ValueError, "at least x_1, got none"),
        ((torch.sin, torch.ones(2), [1.0]), TypeError, "coefficient 1 must be a tensor, got float"),
        ((torch.sin, torch.ones(2), torch.ones(2, dtype=F64)), TypeError, "must be torch.float32"),
        ((torch.sin, torch.ones(2), torch.ones(3)), ValueError, "shape \\(2,\\) of x"),
        ((torch.sin, torch.ones(2), torch.ones(2), 0), ValueError, "order must be an integer >= 1, got 0"),
        ((torch.sin, torch.ones(2), torch.ones(2), 2.0), ValueError, "order must be an integer >= 1, got 2.0"),
        ((torch.sin, torch.ones(2), [torch.ones(2)] * 3, 2), ValueError, "at least the number of coefficients 3"),
        ((lambda x: x.sum().item(), torch.ones(2), torch.ones(2)), TypeError, "f must return tensors, got float"),
    ],
)
def test_wrong_calls(arguments, kind, told):
    with pytest.raises(kind, match=told) as error:
        jet(*arguments)
    assert str(error.value).startswith("jet: ")
