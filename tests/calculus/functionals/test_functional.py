"""Functional derivatives beside SymPy's Euler-Lagrange equations, and the laws of first and second variation."""

import pytest
import sympy
import torch
from sympy.calculus.euler import euler_equations

from frechet.calculus.functionals import (
    box,
    composed_functional,
    functional_derivative,
    local_functional,
    nonlocal_functional,
)

F64 = torch.float64


def u(x):
    return torch.sin(2 * x[..., 0]) + 0.3 * x[..., 0] ** 2 + 1.5


def h(x):
    return torch.cos(x[..., 0]) + x[..., 0]


def k(x):
    return torch.exp(-x[..., 0])


LINE = box(0.0, 1.0, pieces=2)
X = sympy.symbols("x")
U = sympy.Function("u")
AT = sympy.sin(2 * X) + sympy.Rational(3, 10) * X**2 + sympy.Rational(3, 2)

# (order, density in torch, density in SymPy)
ANALYTIC = {
    "Dirichlet energy": (1, lambda x, u, p: p[..., 0] ** 2 / 2, lambda x, u, p, q: p**2 / 2),
    "brachistochrone": (
        1,
        lambda x, u, p: ((1 + p[..., 0] ** 2) / (2 * 9.81 * u)).sqrt(),
        lambda x, u, p, q: sympy.sqrt((1 + p**2) / (2 * sympy.Float(9.81, 30) * u)),
    ),
    "surface of revolution": (
        1,
        lambda x, u, p: u * (1 + p[..., 0] ** 2).sqrt(),
        lambda x, u, p, q: u * sympy.sqrt(1 + p**2),
    ),
    "double well": (
        1,
        lambda x, u, p: 0.05 * p[..., 0] ** 2 + (u**2 - 1) ** 2 / 4,
        lambda x, u, p, q: sympy.Rational(1, 20) * p**2 + (u**2 - 1) ** 2 / 4,
    ),
    "bending with tension": (
        2,
        lambda x, u, p, q: q[..., 0, 0] ** 2 * (1 + x[..., 0]) + p[..., 0] ** 2 - x[..., 0] * u,
        lambda x, u, p, q: q**2 * (1 + x) + p**2 - x * u,
    ),
    "a coupling of all": (
        2,
        lambda x, u, p, q: torch.exp(-u) * q[..., 0, 0] ** 2 + p[..., 0] ** 3 * q[..., 0, 0] + torch.sin(x[..., 0] * u),
        lambda x, u, p, q: sympy.exp(-u) * q**2 + p**3 * q + sympy.sin(x * u),
    ),
    "exchange of a density": (
        0,
        lambda x, u: u ** (4 / 3),
        lambda x, u, p, q: u ** sympy.Rational(4, 3),
    ),
}


def from_sympy(name):
    f = U(X)
    (equation,) = euler_equations(ANALYTIC[name][2](X, f, f.diff(X), f.diff(X, 2)), f, X)
    return sympy.lambdify(X, equation.lhs.subs(f, AT).doit(), "mpmath")


@pytest.mark.parametrize("name", ANALYTIC)
def test_the_derivative_is_the_euler_lagrange_expression(name):
    order, density, _ = ANALYTIC[name]
    x = torch.linspace(0.05, 0.95, 4, dtype=F64)[:, None]
    right = torch.tensor([float(from_sympy(name)(float(v))) for v in x[:, 0]], dtype=F64)
    found = functional_derivative(local_functional(density, LINE, order=order), u)(x)
    torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


PLANE = box([0.0, 0.0], [1.0, 2.0], nodes=8, pieces=2)


def v(x):
    return torch.sin(x[..., 0]) * x[..., 1] + 0.2 * x[..., 1] ** 3 + 1.5


def w(x):
    return torch.cos(x[..., 0]) + x[..., 0] * x[..., 1]


def displacement(x):
    return torch.stack([v(x), torch.exp(x[..., 0]) * x[..., 1] ** 2], -1)


def strain(p):
    return (p + p.mT) / 2


VECTOR = {
    "elasticity": local_functional(
        lambda x, u, p: 0.7 * strain(p).square().sum((-1, -2)) + 0.65 * p.diagonal(dim1=-2, dim2=-1).sum(-1) ** 2,
        PLANE,
        order=1,
    ),
    "a coupling of components": local_functional(
        lambda x, u, p, q: u[..., 0] * q[..., 1, :, :].square().sum((-1, -2)) + p[..., 0, 1] * q[..., 0, 0, 1],
        PLANE,
        order=2,
    ),
    "repulsion of components": nonlocal_functional(
        lambda x, y, s, t: torch.exp(-(s - t).square().sum(-1)) * (1 + x[..., 0]), box([0.0, 0.0], [1.0, 2.0], nodes=4)
    ),
}
ON_THE_PLANE = ("minimal surface", "plate", "elasticity", "a coupling of components")


def cases():
    found = {name: (local_functional(d, LINE, order=o), u, h, k) for name, (o, d, _) in ANALYTIC.items()}
    found["minimal surface"] = (
        local_functional(lambda x, u, p: (1 + (p * p).sum(-1)).sqrt(), PLANE, order=1),
        v,
        w,
        lambda x: x[..., 1] ** 2,
    )
    found["plate"] = (
        local_functional(
            lambda x, u, p, q: (
                u * (q * q).sum((-1, -2)) + p[..., 0] * p[..., 1] ** 2 + q[..., 0, 1] * x[..., 0] * p[..., 0]
            ),
            PLANE,
            order=2,
        ),
        v,
        w,
        lambda x: x[..., 1] ** 2,
    )
    found["repulsion"] = (
        nonlocal_functional(lambda x, y, s, t: s * t**2 * torch.exp(-((x - y) ** 2).sum(-1)) + s, LINE),
        u,
        h,
        k,
    )
    for name, F in VECTOR.items():
        found[name] = (F, displacement, lambda x: torch.stack([w(x), v(x) ** 2], -1), lambda x: x.flip(-1) ** 2)
    bending = local_functional(lambda x, u, p: p[..., 0] ** 2, LINE, order=1)
    mass = local_functional(lambda x, u: u**2, LINE, order=0)
    found["Rayleigh quotient"] = (composed_functional(lambda a, b: a / b, bending, mass), u, h, k)
    return found


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_the_first_variation_is_the_derivative_plus_the_boundary(name):
    F, at, test, _ = CASES[name]
    D = functional_derivative(F, at)
    domain = PLANE if name in ON_THE_PLANE else getattr(F, "domain", LINE)
    whole = D.along(test)
    product = (D(domain.points) * test(domain.points)).reshape(len(domain.points), -1).sum(1)
    torch.testing.assert_close(domain.integral(product) + D.boundary(test), whole)
    if name not in ("repulsion", "repulsion of components", "exchange of a density"):
        assert abs(float(D.boundary(test))) > 1e-3  # which a rule without boundary terms loses


@pytest.mark.parametrize("name", CASES)
def test_remainders_fall_with_the_square_of_the_step(name):
    F, at, test, _ = CASES[name]
    slope = float(functional_derivative(F, at).along(test))

    def remainder(t):
        return abs(float(F(lambda x: at(x) + t * test(x)) - F(at)) - t * slope)

    assert remainder(1e-3) < 0.3 * remainder(2e-3) + 1e-13


@pytest.mark.parametrize("name", CASES)
def test_the_second_variation_is_symmetric_and_the_derivative_of_the_first(name):
    F, at, test, other = CASES[name]
    D = functional_derivative(F, at)
    torch.testing.assert_close(D.second(test, other), D.second(other, test), rtol=1e-11, atol=1e-12)
    e = 1e-5
    ends = [functional_derivative(F, lambda x, s=s: at(x) + s * e * other(x)).along(test) for s in (1, -1)]
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * e), D.second(test, other), rtol=1e-6, atol=1e-7)


def test_the_derivative_of_elastic_energy_is_the_operator_of_lame():
    """mu |strain|^2 + lambda / 2 (div u)^2 has the derivative -mu Laplacian u - (lambda + mu) grad div u."""
    x = PLANE.points[::37].requires_grad_()
    rows = [torch.autograd.grad(displacement(x)[:, i].sum(), x, create_graph=True)[0] for i in range(2)]
    second = torch.stack(
        [torch.stack([torch.autograd.grad(g[:, j].sum(), x, retain_graph=True)[0] for j in range(2)], 1) for g in rows],
        1,
    )  # (N, component, j, k)
    right = -0.7 * second.diagonal(dim1=2, dim2=3).sum(-1) - 2.0 * torch.einsum("niij->nj", second)
    found = functional_derivative(VECTOR["elasticity"], displacement)(x.detach())
    torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


def test_the_derivative_of_length_is_the_curvature_of_the_curve():
    """A circle of radius 2 run through once has length 4 pi, and dF/du = curvature times speed, towards outside."""
    circle = box(0.0, 2 * torch.pi)
    length = local_functional(lambda x, u, p: p[..., 0].square().sum(-1).sqrt(), circle, order=1)

    def curve(x):
        return 2 * torch.cat([x.cos(), x.sin()], -1)

    assert float(length(curve)) == pytest.approx(4 * torch.pi, rel=1e-13)
    x = circle.points
    torch.testing.assert_close(functional_derivative(length, curve)(x), curve(x) / 2)


def test_one_component_equals_a_function_without_components():
    x = LINE.points
    one = local_functional(lambda x, u, p, q: u[..., 0] * q[..., 0, 0, 0] ** 2 + p[..., 0, 0] ** 3, LINE, order=2)
    none = local_functional(lambda x, u, p, q: u * q[..., 0, 0] ** 2 + p[..., 0] ** 3, LINE, order=2)
    D, E = functional_derivative(one, lambda x: u(x)[..., None]), functional_derivative(none, u)
    torch.testing.assert_close(D(x)[:, 0], E(x), rtol=1e-12, atol=1e-12)
    for f in ("along", "boundary"):
        torch.testing.assert_close(getattr(D, f)(lambda x: h(x)[..., None]), getattr(E, f)(h))


def test_a_network_learns_through_a_functional():
    """The residual of the Euler-Lagrange equation is differentiable in the parameters of u."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()

    def model(x):
        return net(x)[..., 0]

    F = local_functional(lambda x, u, p: p[..., 0] ** 2 / 2 - u, LINE, order=1)
    for loss in (lambda: F(model), lambda: functional_derivative(F, model)(LINE.points).square().mean()):
        net.zero_grad()
        loss().backward()
        weight = net[0].weight
        e = 1e-6
        with torch.no_grad():
            weight[0, 0] += e
            up = loss()
            weight[0, 0] -= 2 * e
            down = loss()
            weight[0, 0] += e
        assert float(weight.grad[0, 0]) == pytest.approx(float((up - down) / (2 * e)), rel=1e-5)


def test_boxes_integrate_polynomials_and_their_faces():
    domain = box([0.0, -1.0, 2.0], [1.0, 1.0, 3.0], nodes=3, pieces=2)
    x = domain.points
    assert float(domain.integral(x[:, 0] ** 5 * x[:, 1] ** 4 * x[:, 2])) == pytest.approx(1 / 6 * 2 / 5 * 5 / 2)
    flux = sum(float((weights * (p @ n)).sum()) for p, weights, n in domain.faces())
    assert flux == pytest.approx(3 * 2)  # the divergence of x times the volume
    ends = [(p.tolist(), weights.tolist(), n.tolist()) for p, weights, n in box(1.0, 4.0).faces()]
    assert ends == [([[1.0]], [1.0], [-1.0]), ([[4.0]], [1.0], [1.0])]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: box(1.0, 1.0), ValueError, "low must lie below high"),
        (lambda: box([0.0], [1.0, 2.0]), ValueError, "low must lie below high"),
        (lambda: box(0.0, 1.0, nodes=0), ValueError, "at least 1"),
        (lambda: local_functional(3, LINE, order=1), TypeError, "density must be a function"),
        (lambda: local_functional(lambda x, u: u, LINE, order=3), ValueError, "order must be 0, 1 or 2"),
        (lambda: local_functional(lambda x, u: u.sum(), LINE, order=0)(u), ValueError, "a value for each point"),
        (lambda: local_functional(lambda x, u: u, LINE, order=0)(lambda x: x), ValueError, "a value for each point"),
        (
            lambda: local_functional(lambda x, u: u, LINE, order=0)(lambda x: x[None]),
            ValueError,
            r"to values \(N,\), or \(N, m\)",
        ),
        (lambda: nonlocal_functional(lambda x, y, s, t: s.sum(), LINE)(u), ValueError, "a value for each pair"),
        (lambda: nonlocal_functional(3, LINE), TypeError, "kernel must be a function"),
        (lambda: composed_functional(lambda: 0.0), ValueError, "at least one functional"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, error, match):
    with pytest.raises(error, match=match):
        call()
