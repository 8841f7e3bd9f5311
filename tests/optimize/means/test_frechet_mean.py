"""Fréchet means by their gradient, by closed forms, by invariances, and where they are not unique."""

import math

import pytest
import torch

from frechet import implicit
from frechet.calculus import fixed_point_conditions
from frechet.errors import NotDifferentiable
from frechet.linalg import Status
from frechet.optimize import (
    Geometry,
    affine_invariant,
    bures_wasserstein,
    frechet_mean,
    hyperbolic,
    karcher_step,
    sphere,
)

F64 = torch.float64


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def definite(count, n=3, seed=0):
    A = randn(count, n, n, seed=seed)
    return A @ A.mT + 0.1 * torch.eye(n, dtype=F64)


def on_sphere(count, d=3, spread=0.4, seed=0):
    p = torch.tensor([1.0] + [0.0] * (d - 1), dtype=F64) + spread * randn(count, d, seed=seed)
    return p / p.square().sum(-1, keepdim=True).sqrt()


def on_hyperboloid(count, d=2, spread=1.0, seed=0):
    p = spread * randn(count, d, seed=seed)
    return torch.cat([(1 + p.square().sum(-1, keepdim=True)).sqrt(), p], -1)


SPACES = {
    "sphere": (sphere(), on_sphere(7)),
    "hyperbolic": (hyperbolic(), on_hyperboloid(7)),
    "hyperbolic, far apart": (hyperbolic(), on_hyperboloid(7, spread=20.0)),
    "affine invariant": (affine_invariant(), definite(6)),
    "affine invariant, far apart": (
        affine_invariant(),
        torch.diag_embed(torch.tensor([[1e-4, 1.0], [1e4, 3.0], [2.0, 1e6]]).double()),
    ),
    "Bures-Wasserstein": (bures_wasserstein(), definite(6)),
    "Bures-Wasserstein, singular": (
        bures_wasserstein(),
        torch.stack([*definite(3), torch.diag(torch.tensor([1.0, 0, 0]).double())]),
    ),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_mean_converges_is_proved_unique_and_no_point_around_is_better(name, weighted):
    geometry, points = SPACES[name]
    w = torch.arange(1.0, len(points) + 1, dtype=F64) if weighted else torch.ones(len(points), dtype=F64)
    found = frechet_mean(points, geometry, weights=w)
    assert found.converged
    assert found.unique
    assert found.residual <= 1e-10

    def variance(x):
        logs = geometry.log(x, points)
        return float((w / w.sum() * geometry.inner(x, logs, logs)).sum())

    assert variance(found.x) == pytest.approx(found.variance)
    for seed in range(5):  # towards points, so that the direction is tangent
        v = geometry.log(found.x, points)[seed % len(points)] * 0.05 * (-1) ** seed
        assert variance(geometry.exp(found.x, v)) > found.variance


@pytest.mark.parametrize("name", SPACES)
def test_exponential_and_logarithm_are_inverse_and_measure_distance(name):
    geometry, points = SPACES[name]
    x, others = points[0], points[1:4] if "singular" not in name else points[1:3]
    for y in others:
        v = geometry.log(x, y[None])[0]
        torch.testing.assert_close(geometry.exp(x, v), y, rtol=1e-6, atol=1e-6 * float(y.abs().max()))
        back = geometry.log(y, x[None])
        one, other = geometry.inner(x, v[None], v[None]), geometry.inner(y, back, back)
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_commuting_matrices_have_geometric_and_root_means():
    lam = torch.tensor([[1.0, 2.0], [4.0, 9.0], [0.5, 3.0]], dtype=F64)
    p = torch.diag_embed(lam)
    geometric = frechet_mean(p, affine_invariant()).x.diagonal()
    torch.testing.assert_close(geometric, lam.log().mean(0).exp(), rtol=1e-9, atol=0.0)
    by_roots = frechet_mean(p, bures_wasserstein()).x.diagonal()
    torch.testing.assert_close(by_roots, lam.sqrt().mean(0) ** 2, rtol=1e-9, atol=0.0)


def test_two_matrices_have_the_geometric_mean_of_ando():
    A, B = definite(2)
    lam, V = torch.linalg.eigh(A)
    root, inverse = (V * lam.sqrt()) @ V.T, (V / lam.sqrt()) @ V.T
    mu, U = torch.linalg.eigh(inverse @ B @ inverse)
    right = root @ ((U * mu.sqrt()) @ U.T) @ root
    torch.testing.assert_close(frechet_mean(torch.stack([A, B]), affine_invariant()).x, right, rtol=1e-8, atol=1e-9)


def test_means_move_with_the_space():
    p, G = definite(5), randn(3, 3, seed=9)
    x = frechet_mean(p, affine_invariant()).x
    torch.testing.assert_close(frechet_mean(G @ p @ G.T, affine_invariant()).x, G @ x @ G.T, rtol=1e-7, atol=1e-8)
    q, Q = on_sphere(5), torch.linalg.qr(G)[0]
    torch.testing.assert_close(frechet_mean(q @ Q.T, sphere()).x, Q @ frechet_mean(q, sphere()).x, rtol=1e-8, atol=1e-9)


def test_equal_points_and_one_point_are_their_own_mean():
    for geometry, points in SPACES.values():
        one = frechet_mean(points[:1], geometry)
        assert one.converged
        torch.testing.assert_close(one.x, points[0], rtol=1e-9, atol=1e-9)
        weights = torch.zeros(len(points), dtype=F64)
        weights[1] = 3.0
        torch.testing.assert_close(frechet_mean(points, geometry, weights=weights).x, points[1], rtol=1e-9, atol=1e-9)


AROUND = {
    "antipodes": torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], dtype=F64),
    "three on a circle": torch.tensor([[math.cos(t), math.sin(t)] for t in (0.0, 2.1, 4.2)], dtype=F64),
    "a cross": torch.cat([torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64)]),
}


@pytest.mark.parametrize("name", AROUND)
def test_points_all_around_a_sphere_have_no_proof_of_uniqueness(name):
    found = frechet_mean(AROUND[name], sphere())
    assert found.converged
    assert found.unique is not True
    if name != "three on a circle":
        assert found.unique is False
        assert "not unique" in found.message


def test_the_best_of_several_stationary_points_is_taken():
    """Three points on a circle, not quite even: a stationary point lies between each two of them."""
    t = torch.tensor([0.0, 2.0, 4.3], dtype=F64)
    p = torch.stack([t.cos(), t.sin()], -1)
    x = frechet_mean(p, sphere())
    grid = torch.linspace(0, 2 * math.pi, 20001, dtype=F64)
    gaps = torch.remainder(grid[:, None] - t + math.pi, 2 * math.pi) - math.pi
    assert x.variance <= float(gaps.square().mean(1).min()) + 1e-7


def test_a_geometry_of_ones_own_and_its_statuses():
    flat = Geometry(exp=lambda x, v: x + v, log=lambda x, p: p - x)
    found = frechet_mean(randn(9, 4), flat)
    torch.testing.assert_close(found.x, randn(9, 4).mean(0))
    assert found.unique is None
    seen = []
    stopped = frechet_mean(on_sphere(5), sphere(), observe=lambda x: bool(seen.append(x)) or len(seen) > 1)
    assert stopped.status is Status.STOPPED
    assert frechet_mean(on_sphere(5), sphere(), max_iterations=0).status is Status.MAX_ITERATIONS
    wrong = Geometry(exp=lambda x, v: x - v, log=lambda x, p: p - x)
    assert frechet_mean(randn(9, 4), wrong).status is Status.STAGNATED
    broken = Geometry(exp=lambda x, v: x + v, log=lambda x, p: (p - x) / 0.0)
    assert frechet_mean(randn(9, 4), broken).status is Status.NONFINITE
    assert "unique" in repr(frechet_mean(on_sphere(5), sphere()))


def differentiable(geometry):
    return implicit(
        lambda p, w: frechet_mean(p, geometry, weights=w, rtol=1e-12).x,
        fixed_point_conditions(lambda x, p, w: karcher_step(x, p, geometry, weights=w)),
    )


EQUAL = {
    "sphere, equal points": (sphere(), on_sphere(1).expand(4, 3).clone()),
    "hyperbolic, equal points": (hyperbolic(), on_hyperboloid(1).expand(4, 3).clone()),
    "affine invariant, equal eigenvalues": (
        affine_invariant(),
        torch.tensor([1.0, 4.0, 2.0], dtype=F64)[:, None, None] * torch.eye(3, dtype=F64),
    ),
    "Bures-Wasserstein, equal eigenvalues": (
        bures_wasserstein(),
        torch.tensor([1.0, 4.0, 2.0], dtype=F64)[:, None, None] * torch.eye(3, dtype=F64),
    ),
}


@pytest.mark.parametrize("name", [n for n in SPACES if "singular" not in n] + list(EQUAL))
def test_means_have_derivatives_in_points_and_weights(name):
    geometry, points = (SPACES | EQUAL)[name]
    mean, n = differentiable(geometry), len(points)
    w = torch.arange(1.0, n + 1, dtype=F64)
    p, weights = points.clone().requires_grad_(), w.clone().requires_grad_()
    x = mean(p, weights)
    c = randn(*x.shape, seed=3) / (1 + x.detach().abs())
    in_points, in_weights = torch.autograd.grad((c * x).sum(), (p, weights))
    # along the space: a point moves on a geodesic, and one weight grows with another
    velocity = 0.3 * geometry.log(points[1], points[2:3])[0] if "equal points" not in name else None

    def moved(s):
        q, v = points.clone(), w.clone()
        if velocity is not None:
            q[1] = geometry.exp(points[1], s * velocity)
        v[0] += s
        return q, v

    e = 1e-5
    (ahead, more), (behind, less) = moved(e), moved(-e)
    right = float((c * (mean(ahead, more) - mean(behind, less))).sum() / (2 * e))
    dp, dw = (ahead - behind) / (2 * e), (more - less) / (2 * e)
    assert float((in_points * dp).sum() + (in_weights * dw).sum()) == pytest.approx(right, rel=1e-6, abs=1e-9)
    forward = torch.func.jvp(mean, (points, w), (dp, dw))[1]
    assert float((c * forward).sum()) == pytest.approx(right, rel=1e-6, abs=1e-9)
    assert float((in_weights * w).sum()) == pytest.approx(0.0, abs=1e-12)  # weights count by their ratios


def test_singular_covariances_have_derivatives_in_weights_alone():
    geometry, points = SPACES["Bures-Wasserstein, singular"]
    w = torch.arange(1.0, len(points) + 1, dtype=F64).requires_grad_()
    with pytest.raises(NotDifferentiable, match="a singular matrix has no derivative"):
        differentiable(geometry)(points, w).sum().backward()
    mean = implicit(
        lambda w: frechet_mean(points, geometry, weights=w, rtol=1e-12).x,
        fixed_point_conditions(lambda x, w: karcher_step(x, points, geometry, weights=w)),
    )
    assert torch.autograd.gradcheck(mean, (w,), eps=1e-5, atol=1e-7)


def test_float32_points_have_a_mean_to_their_digits():
    for geometry, points in SPACES.values():
        if float(points.abs().max()) > 100:
            continue
        found = frechet_mean(points.float(), geometry, rtol=1e-5)
        assert found.converged
        torch.testing.assert_close(found.x.double(), frechet_mean(points, geometry).x, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: frechet_mean(2 * on_sphere(3), sphere()), "unit vectors"),
        (lambda: frechet_mean(on_sphere(3), hyperbolic()), "hyperboloid"),
        (lambda: frechet_mean(-definite(2), affine_invariant()), "positive definite matrices"),
        (lambda: frechet_mean(-definite(2), bures_wasserstein()), "positive semidefinite matrices"),
        (lambda: frechet_mean(randn(2, 3, 3), bures_wasserstein()), "positive semidefinite matrices"),
        (lambda: frechet_mean(on_sphere(3), sphere(), weights=torch.tensor([1.0, -1.0, 1.0])), "weights must be"),
        (lambda: frechet_mean(on_sphere(3), sphere(), weights=torch.ones(2)), "weights must be"),
        (lambda: frechet_mean(on_sphere(3), sphere(), rtol=0.0), "rtol must be"),
        (lambda: frechet_mean(on_sphere(3)[:0], sphere()), "points must be"),
        (lambda: frechet_mean(on_sphere(3) * torch.nan, sphere()), "points must be finite"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_what_is_no_geometry_is_refused():
    with pytest.raises(TypeError, match="geometry must be a Geometry, got str"):
        frechet_mean(on_sphere(3), "sphere")
