import itertools

import pytest
import torch
from torch import nn

from frechet.calculus.taylor import bilaplacian, differential_operator, jet, laplacian
from frechet.calculus.taylor._operator import passes_of
from frechet.calculus.taylor._symbol import powers_of, symbol_of

F64 = torch.float64


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def network(d, outputs=1, width=12, dtype=F64):
    torch.manual_seed(0)
    layers = nn.Linear(d, width), nn.Tanh(), nn.Linear(width, width), nn.Sigmoid(), nn.Linear(width, outputs)
    return nn.Sequential(*layers).to(dtype)


def derivative(h, e):
    return lambda q: torch.func.jvp(h, (q,), (e,))[1]


def partial(f, letters, x):
    """A mixed derivative of f at points x, one nested forward derivative for each letter."""

    def single(p):
        g = f
        for j in letters:
            e = torch.eye(x.shape[-1], dtype=x.dtype)[j]
            g = derivative(g, e)
        return g(p)

    return torch.func.vmap(single)(x)


def close(a, b, rtol=1e-11):
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


# --- Laplacians -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 3])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_laplacian_is_the_trace_of_the_hessian(outputs, chunk):
    net, x = network(4, outputs), randn(5, 4)
    found = laplacian(net, lower=True, chunk=chunk)(x)
    hessian = torch.func.vmap(torch.func.hessian(net))(x)
    close(found.value, net(x))
    close(found.gradient, torch.func.vmap(torch.func.jacrev(net))(x))
    close(found.laplacian, hessian.diagonal(dim1=-2, dim2=-1).sum(-1))
    close(laplacian(net, chunk=chunk)(x), found.laplacian)


def test_points_of_any_shape():
    net, x = network(3), randn(2, 4, 3)
    together = laplacian(net)(x)
    assert together.shape == (2, 4, 1)
    close(together[1, 2], laplacian(net)(x[1, 2]))


def test_directions_give_a_weighted_trace():
    net, x, S = network(3), randn(5, 3), randn(2, 3, seed=1)
    H = torch.func.vmap(torch.func.hessian(lambda p: net(p).squeeze(-1)))(x)
    close(laplacian(net, directions=S)(x).squeeze(-1), torch.einsum("ri,nij,rj->n", S, H, S))
    slope = laplacian(net, directions=S, lower=True)(x).gradient
    close(slope.squeeze(1), torch.func.vmap(torch.func.jacrev(net))(x).squeeze(1) @ S.T)


@pytest.mark.parametrize("d", [10, 100, 1000])
def test_the_laplacian_in_single_precision(d):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(d, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    x = randn(8, d, dtype=torch.float32)
    found = laplacian(net)(x).double()
    exact = laplacian(net.double())(x.double())
    assert float((found - exact).detach().norm() / exact.detach().norm()) <= (1e-6 if d < 1000 else 5e-6)


def test_harmonic_functions():
    x = randn(20, 3)
    assert float(laplacian(lambda x: 1 / x.norm(dim=-1))(x).abs().max()) < 1e-9 * float((1 / x.norm(dim=-1) ** 3).max())
    assert not laplacian(lambda x: x[..., 0] * x[..., 1])(x).any()
    assert not laplacian(lambda x: torch.ones(20, dtype=F64))(x).any()


def test_the_biharmonic_operator_in_five_dimensions_is_exact():
    net, x = network(5), randn(3, 5)

    def one(p):
        return net(p).squeeze(-1)

    def nested(g):
        return lambda p: torch.func.hessian(g)(p).diagonal().sum()

    expected = torch.func.vmap(nested(nested(one)))(x)
    found = bilaplacian(net)(x).squeeze(-1)
    assert float(((found - expected).abs() / expected.abs()).detach().max()) <= 1e-10
    close(bilaplacian(net, chunk=4)(x).squeeze(-1), expected)
    close(laplacian(laplacian(net))(x).squeeze(-1), expected)


def test_the_biharmonic_operator_takes_a_line_for_each_pair_of_coordinates():
    from frechet.calculus.taylor._operator import squared_laplacian

    (only,) = passes_of([powers_of(squared_laplacian(5))])
    assert (only.order, len(only.lines)) == (4, 25)


# --- any operator -----------------------------------------------------------------------------------------------------

OPERATORS = {
    "u": [(1.0, "")],
    "u_x": [(1.0, "x")],
    "u_xx + u_yyyy": [(1.0, "xx"), (1.0, "yyyy")],
    "u_xy - 2*u_t": [(1.0, "xy"), (-2.0, "t")],
    "u_t - u_xx - u_yy + 3u": [(1.0, "t"), (-1.0, "xx"), (-1.0, "yy"), (3.0, "")],
    "u_xxy + u_yyt - 1/2 u_xyt": [(1.0, "xxy"), (1.0, "yyt"), (-0.5, "xyt")],
    "u_ty + u_xxxy + u_xx": [(1.0, "ty"), (1.0, "xxxy"), (1.0, "xx")],
    "u_xxxxx - 4*u_xxyyt": [(1.0, "xxxxx"), (-4.0, "xxyyt")],
    "u_xxxyyt": [(1.0, "xxxyyt")],
}


@pytest.mark.parametrize("text", OPERATORS)
def test_operators_are_sums_of_nested_derivatives(text):
    net, x = network(3, 2), randn(4, 3)
    expected = sum(c * partial(net, ["xyt".index(v) for v in letters], x) for c, letters in OPERATORS[text])
    close(differential_operator(net, text, variables="xyt")(x), expected)
    close(differential_operator(net, text, variables="xyt", chunk=2)(x), expected)


def test_several_operators_share_passes():
    net, x = network(3), randn(4, 3)
    found = differential_operator(net, list(OPERATORS), variables="xyt")(x)
    for text, y in zip(OPERATORS, found, strict=True):
        close(y, differential_operator(net, text, variables="xyt")(x))
    shared = passes_of([powers_of(symbol_of(t, "xy")) for t in ("u_x", "u_xx", "u_xx + u_yy", "u")])
    assert [(p.order, len(p.lines), sorted(p.weights)) for p in shared] == [(2, 2, [1, 2])]


def test_multi_indices_are_the_text():
    net, x = network(2), randn(4, 2)
    close(
        differential_operator(net, {(2, 0): 1.0, (1, 1): -3.0, (0, 0): 0.5})(x),
        differential_operator(net, "u_xx - 3*u_xy + 0.5u", variables="xy")(x),
    )


@pytest.mark.parametrize("index", [i for i in itertools.product(range(4), repeat=2) if 0 < sum(i) <= 5])
def test_monomials(index):
    x = randn(6, 2)
    for powers in itertools.product(range(5), repeat=2):
        found = differential_operator(lambda p, n=powers: p[..., 0] ** n[0] * p[..., 1] ** n[1], {index: 1.0})(x)
        expected = torch.ones(6, dtype=F64)
        for j, (i, n) in enumerate(zip(index, powers, strict=True)):
            factor = 1.0
            for m in range(i):
                factor *= n - m
            expected = expected * (factor * x[:, j] ** max(n - i, 0))
        close(found, expected, 1e-9)


def test_solutions_of_equations_have_no_residual():
    p = randn(10, 2)

    def heat(p):
        x, t = p.unbind(-1)
        return torch.exp(-4 * t) * torch.sin(2 * x)

    def plate(p):
        x, t = p.unbind(-1)
        return torch.cos(9 * t) * torch.sin(3 * x)

    close(differential_operator(heat, "u_t - u_xx", variables="xt")(p), torch.zeros(10, dtype=F64), 1e-10)
    close(differential_operator(plate, "u_tt + u_xxxx", variables="xt")(p), torch.zeros(10, dtype=F64), 1e-10)


# --- derivatives and transforms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [laplacian, bilaplacian, lambda f: differential_operator(f, "u_x + u_xxy", variables="xyz")]
)
def test_gradients_of_operators(make):
    net, x = network(3), randn(2, 3).requires_grad_()
    parameters = list(net.parameters())[:-1]
    A = make(net)
    assert torch.autograd.gradcheck(A, (x,))

    def loss():
        return (A(x) ** 2).sum()

    gradients = torch.autograd.grad(loss(), parameters)
    for p, g in zip(parameters, gradients, strict=True):
        v, h = randn(*p.shape, seed=5), 1e-5
        with torch.no_grad():
            p += h * v
            up = float(loss())
            p -= 2 * h * v
            down = float(loss())
            p += h * v
        assert abs((up - down) / (2 * h) - float((g * v).sum())) <= 1e-6 * (1 + abs(float((g * v).sum())))


def test_a_laplacian_of_a_derivative():
    net, x = network(3), randn(4, 3)

    def slope(x):
        return jet(net, x, torch.eye(3, dtype=F64)[0].expand_as(x), 1)[1][0]

    close(laplacian(slope)(x), differential_operator(net, "u_xxx + u_xyy + u_xzz", variables="xyz")(x))


def test_operators_go_through_vmap():
    net, x = network(3), randn(4, 3)
    for A in (laplacian(net), bilaplacian(net), laplacian(lambda x: torch.softmax(net[0](x), -1)[..., :2])):
        close(torch.func.vmap(A)(x), A(x))


# --- wrong calls ------------------------------------------------------------------------------------------------------

NET = network(3)


@pytest.mark.parametrize(
    ("call", "kind", "told"),
    [
        (lambda: laplacian(3), TypeError, "laplacian: f must be a function of points, got int"),
        (lambda: laplacian(NET, chunk=0), ValueError, "laplacian: chunk must be an integer >= 1 or None, got 0"),
        (
            lambda: laplacian(NET, directions=torch.ones(3)),
            ValueError,
            "laplacian: directions must be a tensor of shape",
        ),
        (
            lambda: laplacian(NET, directions=torch.ones(1, 3))(randn(2, 3)),
            TypeError,
            "directions must be torch.float64",
        ),
        (lambda: laplacian(NET, directions=torch.ones(1, 2))(randn(2, 3)), ValueError, "x must have 2 coordinates"),
        (lambda: laplacian(NET)([1.0]), TypeError, "laplacian: x must be a tensor of real points"),
        (lambda: laplacian(NET)(torch.tensor(1.0)), TypeError, "of shape \\(\\)"),
        (lambda: laplacian(NET)(torch.ones(3, dtype=torch.int64)), TypeError, "got torch.int64"),
        (lambda: differential_operator(NET, "u_xx", variables="xy")(randn(2, 3)), ValueError, "2 coordinates"),
        (lambda: differential_operator(NET, {(1, 0): 1.0})(randn(2, 3)), ValueError, "2 coordinates"),
        (lambda: differential_operator(NET, "u_xx", variables="xyz", chunk=1.5), ValueError, "chunk must be"),
        (lambda: differential_operator(NET, []), ValueError, "at least one operator"),
        (lambda: bilaplacian("f"), TypeError, "bilaplacian: f must be a function of points, got str"),
    ],
)
def test_wrong_calls(call, kind, told):
    with pytest.raises(kind, match=told):
        call()
