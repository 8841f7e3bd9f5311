"""Gaussian processes that meet linear equations: means, variances and evidence beside dense formulas."""

import math

import pytest
import torch

from frechet.errors import NonFinite, NotConverged
from frechet.physics import operator_collocation

F64 = torch.float64


def value(u):
    return u


def laplacian(u):
    return lambda x: torch.func.hessian(u)(x).trace()


def derivative(u):
    return lambda x: torch.func.grad(u)(x)[0]


def second(u):
    along = lambda u: lambda x: torch.func.jvp(u, (x,), (torch.ones_like(x),))[1]  # noqa: E731
    return along(along(u))


def gauss(width):
    return lambda x, y: torch.exp(-width * (x - y).square().sum())


def line(n):
    return torch.linspace(0, 1, n, dtype=F64)[:, None]


def test_a_fast_sine_comes_to_seven_digits_and_more_from_400_points():
    x, fine = line(400), line(1001)
    u = lambda x: torch.sin(100 * x[:, 0])  # noqa: E731
    ends = x[[0, -1]]
    s = operator_collocation(gauss(400.0), [(second, x, -1e4 * u(x)), (value, ends, u(ends))])
    assert float((s(fine) - u(fine)).norm() / u(fine).norm()) <= 1e-7
    assert s.misfit <= 1e-4


def test_means_and_variances_are_those_of_the_conditioned_process():
    x, kernel = line(5), gauss(3.0)
    data = torch.tensor([0.3, -0.2, 0.5, 0.1, 0.4], dtype=F64)
    s = operator_collocation(kernel, [(value, x, data)], jitter=1e-10)
    at = torch.tensor([[0.1], [0.33], [0.9]], dtype=F64)
    gram = lambda a, b: torch.exp(-3.0 * (a - b.T) ** 2)  # noqa: E731
    G = gram(x, x) + 1e-10 * torch.eye(5, dtype=F64)
    torch.testing.assert_close(s(at), gram(at, x) @ torch.linalg.solve(G, data), rtol=1e-6, atol=1e-8)
    right = 1 - (gram(at, x) @ torch.linalg.solve(G, gram(x, at))).diagonal()
    torch.testing.assert_close(s.variance(at), right, rtol=1e-5, atol=1e-9)
    density = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=F64), G)
    assert s.log_evidence == pytest.approx(float(density.log_prob(data)), rel=1e-6)


def test_evidence_counts_the_scale_of_each_condition():
    x, kernel = line(4), lambda x, y: 9.0 * gauss(2.0)(x, y)
    s = operator_collocation(kernel, [(value, x, x[:, 0]), (derivative, x[:1], torch.ones(1, dtype=F64))], jitter=1e-9)
    d = x - x.T
    K = 9 * torch.exp(-2 * d**2)
    cross = (4 * d * K)[:, :1]  # d/dy k(x, y) at y = x_0
    G = torch.cat([torch.cat([K, cross], 1), torch.cat([cross.T, torch.full((1, 1), 36.0, dtype=F64)], 1)])
    G = G + 1e-9 * torch.diag(G.diagonal())
    data = torch.cat([x[:, 0], torch.ones(1, dtype=F64)])
    density = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=F64), G)
    assert s.log_evidence == pytest.approx(float(density.log_prob(data)), rel=1e-6)


def test_the_evidence_prefers_the_length_of_the_solution():
    x = line(60)
    f = -400 * torch.sin(20 * x[:, 0])
    ends = (value, x[[0, -1]], torch.sin(20 * x[[0, -1], 0]))
    found = {w: operator_collocation(gauss(w), [(second, x, f), ends], jitter=1e-10) for w in (2.0, 50.0, 5000.0)}
    assert max(found, key=lambda w: found[w].log_evidence) == 50.0
    u = torch.sin(20 * line(200)[:, 0])
    errors = {w: float((s(line(200)) - u).norm()) for w, s in found.items()}
    assert min(errors, key=errors.get) == 50.0


def test_poisson_in_two_dimensions():
    t = torch.linspace(0, 1, 9, dtype=F64)
    X = torch.stack(torch.meshgrid(t, t, indexing="ij"), -1).reshape(-1, 2)
    edge = X[((X == 0) | (X == 1)).any(1)]
    u = lambda x: torch.sin(math.pi * x[:, 0]) * torch.sin(math.pi * x[:, 1])  # noqa: E731
    zero = torch.zeros(len(edge), dtype=F64)
    s = operator_collocation(gauss(3.0), [(laplacian, X, -2 * math.pi**2 * u(X)), (value, edge, zero)], jitter=1e-11)
    at = torch.rand(50, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert float((s(at) - u(at)).abs().max()) <= 1e-4


def test_what_cannot_be_solved_is_told():
    x, zeros = line(4), torch.zeros(4, dtype=F64)
    with pytest.raises(NotConverged, match="the Gram matrix must have a Cholesky factor"):
        operator_collocation(lambda x, y: 1 - (x - y).square().sum(), [(value, line(9), torch.zeros(9, dtype=F64))])
    with pytest.raises(NonFinite, match="the kernel and its derivatives must be finite"):
        operator_collocation(lambda x, y: torch.exp(-(x - y).square().sum().sqrt()), [(second, x, zeros)])
    with pytest.raises(ValueError, match="the variances of what conditions ask for must be positive"):
        operator_collocation(lambda x, y: torch.exp(-(x - y).norm()), [(second, x, zeros)])  # at the kink torch says 0
    with pytest.raises(ValueError, match=r"condition 1 must have points \(N, d\) of one d and values"):
        operator_collocation(gauss(1.0), [(value, x, zeros), (value, x, zeros[:3])])
    with pytest.raises(ValueError, match=r"condition 0 must have points \(N, d\) of one d"):
        operator_collocation(gauss(1.0), [(value, x, zeros), (value, torch.zeros(4, 2, dtype=F64), zeros)])
    with pytest.raises(ValueError, match="conditions must be given and jitter > 0, got 0"):
        operator_collocation(gauss(1.0), [])
