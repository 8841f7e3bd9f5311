"""Metrics beside dense matrices, and the mesh independence that Riesz maps give."""

import math

import pytest
import torch

from frechet import check_operator, minimize
from frechet.calculus.functionals import box, difference_operator, integral_operator, sobolev

F64 = torch.float64


def laplacian(n, h, boundary):
    """The matrix of the difference Laplacian, with the sign that makes it semidefinite."""
    A = torch.diag(torch.full((n,), 2.0, dtype=F64))
    A -= torch.diag(torch.ones(n - 1, dtype=F64), 1) + torch.diag(torch.ones(n - 1, dtype=F64), -1)
    if boundary == "neumann":
        A[0, 0] = A[-1, -1] = 1.0
    if boundary == "periodic":
        A[0, -1] = A[-1, 0] = -1.0
    return A / h**2


def power(A, p):
    lam, V = torch.linalg.eigh(A)
    return (V * lam.clamp(min=1e-300) ** p) @ V.T


@pytest.mark.parametrize("boundary", ["dirichlet", "neumann", "periodic"])
@pytest.mark.parametrize("order", [0.0, 1.0, 2.0, -1.0, 0.5])
def test_a_metric_is_the_power_of_the_laplacian(boundary, order):
    n, h = 9, 0.1
    metric = sobolev(n, h, order=order, boundary=boundary, length=0.3, mass=2.0)
    M, R = metric.mass, metric.inverse
    right = h * power(2.0 * torch.eye(n, dtype=F64) + 0.09 * laplacian(n, h, boundary), order)
    torch.testing.assert_close(M.dense(), right, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(R.dense() @ right, torch.eye(n, dtype=F64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("boundary", ["dirichlet", "neumann", "periodic"])
@pytest.mark.parametrize("weights", ["sobolev", "besov"])
def test_maps_in_two_dimensions_are_symmetric_definite_and_inverse(boundary, weights):
    metric = sobolev((4, 6), (0.2, 0.1), boundary=boundary, weights=weights)
    R, M = metric.inverse, metric.mass
    for A in (R, M):
        assert check_operator(A, seed=0).failed == ()
    torch.testing.assert_close((R @ M).dense(), torch.eye(24, dtype=F64), rtol=1e-10, atol=1e-10)
    if weights == "sobolev":
        A, B = laplacian(4, 0.2, boundary), laplacian(6, 0.1, boundary)
        eye = torch.eye(24, dtype=F64)
        whole = torch.kron(A, torch.eye(6, dtype=F64)) + torch.kron(torch.eye(4, dtype=F64), B)
        torch.testing.assert_close(M.dense(), 0.02 * (eye + whole), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
def test_besov_weights_are_equivalent_to_sobolev_ones(order):
    M, B = (sobolev(40, 0.05, order=order, weights=w).mass.dense() for w in ("sobolev", "besov"))
    ratios = torch.linalg.eigvals(torch.linalg.solve(B, M)).real
    assert float(ratios.min()) > 1 - 1e-9
    assert float(ratios.max()) < 4**order + 1e-9


def test_the_metric_is_the_integral():
    x = torch.linspace(0, 1, 402, dtype=F64)[1:-1]
    value = torch.sin(math.pi * x)
    h = float(x[1] - x[0])
    for order, right in ((0.0, 0.5), (1.0, math.pi**2 / 2), (2.0, math.pi**4 / 2)):
        M = sobolev(400, h, order=order, mass=0.0).mass
        assert float(value @ (M @ value)) == pytest.approx(right, rel=1e-4)


def brachistochrone(n, speed=0.1, end=0.6):
    """The time of descent of a polygon, in its n inner nodes, and a straight start."""
    h = 1 / (n + 1)

    def time_of_descent(y):
        full = torch.cat([y.new_zeros(1), y, y.new_full((1,), end)])
        slope, middle = (full[1:] - full[:-1]) / h, (full[1:] + full[:-1]) / 2
        return (h * ((1 + slope**2) / (2 * 9.81 * (middle + speed))).sqrt()).sum()

    return time_of_descent, torch.linspace(0, end, n + 2, dtype=F64)[1:-1], h


def cycloid(speed, end):
    """The time along the cycloid x = a + r (t - sin t), y = r (1 - cos t) - speed through both ends, by bisection."""

    def width(r):
        t0, t1 = (math.acos(1 - (y + speed) / r) for y in (0.0, end))
        return r * ((t1 - math.sin(t1)) - (t0 - math.sin(t0))), t1 - t0

    low, high = (end + speed) / 2 * (1 + 1e-12), 100.0
    for _ in range(200):  # the width falls with r
        middle = (low + high) / 2
        low, high = (middle, high) if width(middle)[0] > 1.0 else (low, middle)
    return width(low)[1] * math.sqrt(low / 9.81)


def test_the_brachistochrone_takes_as_many_products_on_each_grid():
    products, values = [], []
    for n in (100, 400):
        f, y0, h = brachistochrone(n)
        found = minimize(f, y0, preconditioner=sobolev(n, h, mass=0.0).inverse)
        assert found.status.value == "converged"
        products.append(found.products)
        values.append(float(found.value))
    assert products[1] <= 1.2 * products[0]
    errors = [abs(value - cycloid(0.1, 0.6)) for value in values]
    assert errors[1] < errors[0] / 12  # of second order: 1/16
    assert errors[1] < 1e-5
    f, y0, _ = brachistochrone(100)
    assert minimize(f, y0).products > 5 * products[0]


@pytest.mark.parametrize("boundary", ["dirichlet", "free", "periodic"])
def test_differences_have_their_exact_transpose_and_make_the_laplacian(boundary):
    D = difference_operator(7, 0.1, boundary=boundary)
    assert check_operator(D, seed=0).failed == ()
    like = {"free": "neumann"}.get(boundary, boundary)
    torch.testing.assert_close((D.T @ D).dense(), laplacian(7, 0.1, like))


def test_an_integral_operator_has_its_exact_transpose_and_its_adjoint():
    domain, codomain = box(0.0, 1.0, nodes=5, pieces=2), box(0.0, 2.0, nodes=6, pieces=1)
    A = integral_operator(lambda x, y: torch.exp(-x[..., 0] * y[..., 0]), domain, codomain)
    assert check_operator(A, seed=0).failed == ()
    y, x = domain.points[:, 0], codomain.points[:, 0]
    torch.testing.assert_close(A @ torch.ones_like(y), (1 - torch.exp(-x)) / x, rtol=1e-9, atol=0.0)
    adjoint = integral_operator(lambda y, x: torch.exp(-x[..., 0] * y[..., 0]), codomain, domain)
    torch.testing.assert_close((A.T @ codomain.weights) / domain.weights, adjoint @ torch.ones_like(x))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sobolev(0, 0.1), "shape and spacing must be positive"),
        (lambda: sobolev((3, 3), (0.1,)), "shape and spacing must be positive"),
        (lambda: sobolev(3, 0.1, boundary="robin"), "boundary must be"),
        (lambda: sobolev(3, 0.1, weights="hilbert"), "weights must be"),
        (lambda: sobolev(3, 0.1, mass=-1.0), "mass >= 0"),
        (lambda: sobolev(3, 0.1, mass=0.0, boundary="periodic"), "mass must be > 0"),
        (lambda: sobolev(3, 0.1, mass=2.0, weights="besov"), "mass must be 1 for Besov"),
        (lambda: difference_operator(1, 0.1), "nodes must be at least 2"),
        (lambda: difference_operator(3, 0.1, boundary="robin"), "boundary must be"),
        (lambda: integral_operator(lambda x, y: x.sum(), box(0.0, 1.0)), "a value for each pair"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, match):
    with pytest.raises(ValueError, match=match):
        call()
