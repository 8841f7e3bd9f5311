"""Descent in a metric: rates that no grid changes, energies that never rise, momentum that pays."""

import math
from itertools import pairwise

import pytest
import torch

from frechet.calculus.functionals import sobolev
from frechet.errors import NonFinite
from frechet.linalg import Status
from frechet.operators import Metric, from_diagonal, from_matrix
from frechet.physics import metric_descent

F64 = torch.float64


def elliptic(n):
    """int |Du|^2 / 2 + sqrt(1 + |Du|^2) - f u on n^2 nodes: second variations lie between 1 and 2."""
    h = 1 / (n + 1)
    x = h * torch.arange(1, n + 1, dtype=F64)
    f = 100 * torch.sin(math.pi * x[:, None]) * torch.sin(2 * math.pi * x)

    def energy(u):
        v, total = torch.nn.functional.pad(u, (1, 1, 1, 1)), 0.0
        dx, dy = (v[1:] - v[:-1]) / h, (v[:, 1:] - v[:, :-1]) / h
        for p in (dx[:, :-1] ** 2 + dy[:-1] ** 2, dx[:, 1:] ** 2 + dy[1:] ** 2):
            total = total + h * h / 2 * (p / 2 + (1 + p).sqrt()).sum()
        return total - h * h * (f * u).sum()

    return energy, h


@pytest.mark.parametrize("n", [15, 31, 63])
def test_the_error_falls_by_a_third_of_itself_on_every_grid(n):
    energy, h = elliptic(n)
    metric = sobolev((n, n), h, mass=0.0)
    s = metric_descent(energy, torch.zeros(n, n, dtype=F64), metric=metric, step=2 / 3, gtol=0.0, max_iterations=22)
    rates = [(s.slopes[k + 5] / s.slopes[k]) ** 0.2 for k in (6, 10, 16)]
    assert all(abs(rate - 1 / 3) <= 0.005 for rate in rates), rates
    assert all(b < a for a, b in pairwise(s.energies[:12]))


def disc(n=64, eps=0.04, radius=0.35):
    """The Ginzburg-Landau energy on a periodic square, and the profile of a disc."""
    h = 1 / n
    x = (torch.arange(n, dtype=F64) + 0.5) * h - 0.5

    def energy(u):
        d = ((u.roll(-1, 0) - u).square() + (u.roll(-1, 1) - u).square()).sum()
        return eps / 2 * d + h * h * (u * u - 1).square().sum() / (4 * eps)

    return energy, -torch.tanh(((x[:, None] ** 2 + x**2).sqrt() - radius) / (math.sqrt(2) * eps)), h, eps


def shrunk(tau, momentum):
    """Steps until the disc has half its radius, and the energies."""
    energy, u0, h, eps = disc()
    metric = sobolev(u0.shape, h, mass=1 / tau + 2 / eps, length=math.sqrt(eps), boundary="periodic")

    def half(now):
        return math.sqrt(float((now.x > 0).sum()) * h * h / math.pi) < 0.175

    s = metric_descent(energy, u0, metric=metric, momentum=momentum, gtol=0.0, max_iterations=600, observe=half)
    assert s.status is Status.STOPPED
    return s.iterations, s.energies


@pytest.mark.parametrize("tau", [0.02, 0.2])
def test_the_energy_never_rises_and_momentum_takes_a_third_of_the_steps(tau):
    (plain, energies), (fast, others) = shrunk(tau, False), shrunk(tau, True)
    for E in (energies, others):
        assert all(b <= a + 1e-12 for a, b in pairwise(E))
    assert fast <= 0.35 * plain
    assert energies[0] == pytest.approx(2 * math.pi * 0.35 * 2 * math.sqrt(2) / 3, rel=0.01)


def test_a_large_time_step_of_the_split_is_a_flow_of_the_effective_one():
    eps = disc()[3]
    steps = {tau: shrunk(tau, False)[0] for tau in (0.005, 0.05, 5.0)}
    effective = {tau: tau / (1 + 2 * tau / eps) for tau in steps}
    times = [steps[tau] * effective[tau] for tau in steps]
    assert max(times) <= 1.35 * min(times)  # the time to shrink is that of the flow
    assert steps[5.0] * 5.0 >= 50 * times[0]  # and not that of tau


def test_labels_of_a_graph_come_from_few_of_them():
    t = torch.linspace(0, math.pi, 60, dtype=F64)
    moons = torch.cat([torch.stack([t.cos(), t.sin()], 1), torch.stack([1 - t.cos(), 0.4 - t.sin()], 1)])
    near = torch.cdist(moons, moons).square()
    W = torch.exp(-near / 0.02) * (1 - torch.eye(120, dtype=F64))
    L, eps = torch.diag(W.sum(1)) - W, 0.3
    truth = torch.cat([torch.ones(60, dtype=F64), -torch.ones(60, dtype=F64)])
    known = torch.tensor([5, 50, 65, 110])

    def energy(u):
        return (
            eps / 2 * u @ L @ u + (u * u - 1).square().sum() / (4 * eps) + 10 * (u[known] - truth[known]).square().sum()
        )

    mass = from_matrix(eps * L + (2 / eps + 21) * torch.eye(120, dtype=F64), facts="positive_definite")
    s = metric_descent(energy, torch.zeros(120, dtype=F64), metric=Metric(mass), momentum=True, gtol=1e-6)
    assert s.converged
    assert bool((s.x.sign() == truth).all())


def test_what_is_not_finite_or_no_energy_is_told():
    metric = Metric(from_diagonal(torch.ones(2, dtype=F64)))
    x0 = torch.ones(2, dtype=F64)
    with pytest.raises(NonFinite, match="energy must be finite, got inf in iteration"):
        metric_descent(lambda u: (u**4).sum().exp(), 3 * x0, metric=metric)
    with pytest.raises(ValueError, match="energy must return a scalar tensor"):
        metric_descent(lambda u: u, x0, metric=metric)
    with pytest.raises(ValueError, match="step must be > 0"):
        metric_descent(lambda u: u.sum(), x0, metric=metric, step=0.0)
    with pytest.raises(ValueError, match="metric must be one on"):
        metric_descent(lambda u: u.sum(), torch.ones(3, dtype=F64), metric=metric)
    s = metric_descent(lambda u: (u["a"] ** 2).sum(), {"a": x0}, metric=metric, step=0.25, max_iterations=3)
    assert s.status is Status.MAX_ITERATIONS
    torch.testing.assert_close(s.x["a"], x0 / 8)


@pytest.mark.parametrize("momentum", [False, True])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(momentum):
    metric, x0 = sobolev(20, 0.05, mass=0.0), torch.linspace(0, 1, 20, dtype=torch.float64)
    seen = []

    def energy(u):
        p = torch.nn.functional.pad(u, (1, 1)).diff() * 20
        return ((1 + p**2).sqrt().sum() - u.sum()) / 20

    def run(**options):
        return metric_descent(energy, x0, metric=metric, momentum=momentum, gtol=0.0, max_iterations=12, **options)

    whole = run()
    stopped = run(observe=lambda s: seen.append(s) or s.iteration == 5)
    assert (stopped.iterations, stopped.status.value) == (5, "stopped")
    again = run(resume=seen[-1], observe=lambda s: s.iteration <= 5)  # which has been seen
    assert torch.equal(again.x, whole.x)
    assert (again.energies, again.slopes, again.iterations) == (whole.energies, whole.slopes, 12)
