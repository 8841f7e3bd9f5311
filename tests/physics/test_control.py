"""Controls of marched states: exact derivatives, gradients in the metric, as many products on every grid."""

import pytest
import torch

from frechet.calculus.functionals import sobolev
from frechet.errors import NonFinite, NotDifferentiable
from frechet.linalg import cg
from frechet.operators import Metric, from_diagonal, product_metric
from frechet.physics import Control, march
from spectra import gaussian
from stefan import stefan_cost, stefan_point

F64 = torch.float64


def heat(M, n=16):
    """The temperature of a bar after M implicit steps to time 1, of the heat flux at one end."""
    h, dt = 1 / n, 1 / M
    K = torch.diag(torch.full((n,), 2.0, dtype=F64)) - torch.diag(torch.ones(n - 1, dtype=F64), 1)
    K -= torch.diag(torch.ones(n - 1, dtype=F64), -1)
    K[-1, -2] = -2.0
    S = torch.linalg.inv(torch.eye(n, dtype=F64) + dt * K / h**2)
    end = torch.zeros(n, dtype=F64)
    end[-1] = 2 * dt / h
    return lambda q: march(lambda y, u: S @ (y + end * u), torch.zeros(n, dtype=F64), q, output=lambda y: y[-1]).final


def controlled(M, metric, weight=1e-2):
    H1, state = sobolev(M, 1 / M, boundary="neumann"), heat(M)
    t = (torch.arange(M, dtype=F64) + 0.5) / M
    wanted = state(torch.sin(2 * torch.pi * t) + 0.5 * t)
    return Control(state, lambda y, q: (y - wanted).square().sum() / 32 + weight * H1.inner(q, q) / 2, metric=metric(M))


def h1(M):
    return sobolev(M, 1 / M, boundary="neumann")


def euclidean(M):
    return Metric(from_diagonal(torch.ones(M, dtype=F64)))


def test_products_do_not_depend_on_the_grid_in_the_metric_of_the_penalty():
    counts = {"h1": [], "euclidean": []}
    for metric in (h1, euclidean):
        for M in (16, 48):
            control, q = controlled(M, metric), torch.zeros(M, dtype=F64)
            H = control.hessian(q)
            s = cg(H, -control.derivative(q), metric=control.metric, rtol=1e-4).checked()
            counts[metric.__name__].append(s.iterations)
            m = control.minimize(q, ftol=1e-6)
            assert m.converged
            h = h1(M)
            assert float(h.norm(m.x - s.x)) <= 2e-2 * float(h.norm(s.x))
    assert max(counts["h1"]) <= 6
    assert counts["euclidean"][1] >= 2.5 * counts["euclidean"][0]
    assert counts["euclidean"][0] >= 3 * counts["h1"][0]


def test_the_gradient_is_the_riesz_representative_of_the_derivative():
    control, q, v = controlled(20, h1), gaussian(20), gaussian(20, seed=1)
    slope = (control(q + 1e-5 * v) - control(q - 1e-5 * v)) / 2e-5
    assert float(control.derivative(q) @ v) == pytest.approx(float(slope), rel=1e-8)
    assert float(control.metric.inner(control.gradient(q), v)) == pytest.approx(float(slope), rel=1e-8)
    torch.testing.assert_close(controlled(20, euclidean).gradient(q), control.derivative(q))
    H = control.hessian(q)
    torch.testing.assert_close(
        H @ v, (control.derivative(q + v) - control.derivative(q - v)) / 2, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("metric", [h1, euclidean])
def test_bounds_hold_and_the_multipliers_have_the_right_signs(metric):
    free = controlled(24, metric, 1e-4)
    low, high = -0.06, 0.05
    control = Control(free.state, free.cost, metric=free.metric, bounds=(low, high))
    s = control.minimize(torch.zeros(24, dtype=F64))
    assert s.converged
    g = control.derivative(s.x)
    at_low, at_high = s.x <= low, s.x >= high
    inside = ~at_low & ~at_high
    assert bool(at_low.any() | at_high.any())
    assert float(g[inside].abs().max()) <= 1e-10
    assert bool((g[at_low] >= -1e-12).all())
    assert bool((g[at_high] <= 1e-12).all())


@pytest.mark.slow
def test_the_inverse_stefan_problem_is_solved_in_the_metrics_of_its_controls():
    M, dt = 12, 1 / 12
    cost = stefan_cost(nodes=8, M=M)
    metric = product_metric({
        "s": Metric(from_diagonal(torch.full((M + 1,), dt, dtype=F64))),
        "g": sobolev(M, dt, boundary="neumann", length=0.2),
        "f": sobolev(M, dt, boundary="neumann", length=0.2),
    })  # fmt: skip
    s0, g0, f0 = stefan_point(M)

    def penalized(state, x):
        return state + 1e-3 * metric.inner(*[metric.space.flatten(x)] * 2) / 2

    control = Control(lambda x: cost(x["s"], x["g"], x["f"]), penalized, metric=metric)
    x0 = {"s": s0, "g": g0, "f": f0}
    s = control.minimize(x0, gtol=1e-7, max_iterations=40)
    assert s.converged
    assert s.value < 0.3 * float(control(x0))
    assert float(metric.dual_norm(control.derivative(s.x))) <= 1e-7


def test_wrong_arguments_are_told():
    with pytest.raises(TypeError, match="state must be a function"):
        Control(None, lambda y, u: y)
    with pytest.raises(TypeError, match="metric must be a Metric"):
        Control(lambda u: u, lambda y, u: y.sum(), metric=from_diagonal(torch.ones(3)))
    with pytest.raises(ValueError, match="prior must be given with a mean"):
        Control(lambda u: u, lambda y, u: y.sum(), mean=torch.ones(3))
    with pytest.raises(TypeError, match="cost must return a tensor, got float"):
        Control(lambda u: u, lambda y, u: float(y.sum()))(torch.ones(3))
    with pytest.raises(ValueError, match="metric must be one on"):
        controlled(20, h1).minimize(torch.zeros(21, dtype=F64))


def test_costs_without_derivative_means_of_another_form_and_complex_costs_are_told():
    z = torch.zeros(3, dtype=F64)
    cut = Control(lambda u: u.detach(), lambda y, u: y.square().sum())
    for call in (cut.derivative, cut.gradient, cut.minimize):
        with pytest.raises(NotDifferentiable, match=r"got a value without a graph; write .*without \.detach\(\)"):
            call(z)
    prior = sobolev(3, 0.1)
    with pytest.raises(ValueError, match=r"mean must have the form of the control, got \(\(4,\),\) for"):
        Control(lambda u: u, lambda y, u: y.sum(), prior=prior, mean=torch.zeros(4, dtype=F64))(z)
    with pytest.raises(TypeError, match=r"cost must be real, got torch\.complex128"):
        Control(lambda u: u, lambda y, u: (1j * y).sum())(z)
    with pytest.raises(NonFinite, match="residual must be finite at x"):
        Control(lambda u: u, lambda y, u: y / 0, prior=prior).posterior(z, rank=1, seed=0)
