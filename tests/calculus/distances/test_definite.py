"""Distances of definite matrices: values, laws of their geometry, derivatives at repeated eigenvalues."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from frechet.calculus.distances import affine_invariant_distance, bures_distance, log_euclidean_distance
from frechet.errors import NotDifferentiable

F64 = torch.float64
DISTANCES = [log_euclidean_distance, affine_invariant_distance, bures_distance]


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def definite(n=3, seed=0, batch=()):
    A = randn(*batch, n, n, seed=seed)
    return A @ A.mT + 0.5 * torch.eye(n, dtype=F64)


def sym(A):
    return (A + A.mT) / 2


def slope(g):
    return lambda s: torch.func.jvp(g, (s,), (torch.ones_like(s),))[1]


def power(A, p):
    lam, V = torch.linalg.eigh(A)
    return (V * lam**p) @ V.mT


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("at", ["separate", "repeated eigenvalues", "equal matrices"])
def test_squares_have_first_and_second_derivatives(distance, at):
    starts = {
        "separate": definite(),
        "repeated eigenvalues": torch.eye(3, dtype=F64),
        "equal matrices": definite(seed=1),
    }
    A, B = starts[at].clone().requires_grad_(), definite(seed=1).requires_grad_()

    def f(a, b):
        return distance(sym(a), sym(b), squared=True)

    assert gradcheck(f, (A, B), check_forward_ad=True)
    assert gradgradcheck(f, (A, B), fast_mode=True)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_are_metrics(distance):
    A, B, C = (definite(seed=s) for s in range(3))
    torch.testing.assert_close(distance(A, B), distance(B, A))
    assert distance(A, C) <= distance(A, B) + distance(B, C)
    assert float(distance(A, A)) < 1e-6
    batch = definite(seed=5, batch=(2, 4))
    torch.testing.assert_close(distance(batch, A)[1, 2], distance(batch[1, 2], A))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("modes", ["ff", "fr", "rf", "rr"])
def test_second_derivatives_do_not_depend_on_the_modes(distance, modes):
    A, B = definite(), definite(seed=1)
    g = along = lambda t: distance(A + t * B, B)
    t = torch.tensor(0.3, dtype=F64)
    for mode in modes:
        g = slope(g) if mode == "f" else torch.func.grad(g)
    right = torch.func.grad(torch.func.grad(along))(t)
    torch.testing.assert_close(g(t), right, rtol=1e-10, atol=1e-13)


def test_the_affine_invariant_distance_is_invariant():
    A, B, G = definite(), definite(seed=1), randn(3, 3, seed=2)
    right = affine_invariant_distance(A, B)
    moved = sym(G @ A @ G.T), sym(G @ B @ G.T)
    torch.testing.assert_close(affine_invariant_distance(*moved), right, rtol=1e-9, atol=0.0)
    inverses = sym(torch.linalg.inv(A)), sym(torch.linalg.inv(B))
    torch.testing.assert_close(affine_invariant_distance(*inverses), right, rtol=1e-9, atol=0.0)
    C = sym(power(A, -0.5) @ B @ power(A, -0.5))
    torch.testing.assert_close(torch.linalg.eigvalsh(C).log().square().sum().sqrt(), right)


def test_the_bures_distance_is_its_formula():
    A, B = definite(), definite(seed=1)
    R = power(A, 0.5)
    right = A.trace() + B.trace() - 2 * power(sym(R @ B @ R), 0.5).trace()
    torch.testing.assert_close(bures_distance(A, B, squared=True), right)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_distance_at_equal_matrices_has_no_gradient(distance):
    A = torch.eye(2, dtype=F64).requires_grad_()
    with pytest.raises(NotDifferentiable, match="give squared=True"):
        distance(A, torch.eye(2, dtype=F64)).backward()


@pytest.mark.parametrize("distance", DISTANCES)
def test_wrong_matrices_are_refused(distance):
    with pytest.raises(ValueError, match="same size, got 2 and 3"):
        distance(torch.eye(2), torch.eye(3))
    with pytest.raises((ValueError, ArithmeticError)):
        distance(torch.eye(2), -torch.eye(2))
