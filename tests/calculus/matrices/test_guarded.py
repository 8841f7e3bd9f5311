"""Factors with guards: right derivatives where these exist, a sentence where they do not."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from frechet.calculus.matrices import cholesky, eigh, matrix_function, qr, svd
from frechet.errors import NotDifferentiable

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def sym(A):
    return (A + A.mT) / 2


def signed_svd(a):
    U, s, V = svd(a)
    sign = U[..., :1, :].detach().sign()
    return U * sign, s, V * sign


FACTORS = {
    "eigh": (lambda a: (eigh(sym(a))[0], eigh(sym(a))[1].abs()), (4, 4)),
    "svd tall": (signed_svd, (5, 3)),
    "svd wide": (signed_svd, (3, 5)),
    "svd square": (signed_svd, (4, 4)),
    "svd batch": (signed_svd, (2, 3, 2)),
    "qr": (qr, (5, 3)),
    "qr square": (qr, (3, 3)),
    "cholesky": (lambda a: cholesky(a @ a.mT), (3, 4)),
}


@pytest.mark.parametrize("name", FACTORS)
def test_first_and_second_derivatives_are_those_of_differences(name):
    f, shape = FACTORS[name]
    A = randn(*shape).requires_grad_()
    assert gradcheck(f, (A,), check_forward_ad=True)
    assert gradgradcheck(f, (A,), fast_mode=True)


@pytest.mark.parametrize("name", FACTORS)
def test_transforms_agree_with_a_loop(name):
    f, shape = FACTORS[name]
    X = randn(2, *shape, seed=1)

    def loss(a):
        found = f(a)
        return sum(x.pow(3).sum() for x in (found if isinstance(found, tuple) else (found,)))

    go = torch.func.grad(loss)
    torch.testing.assert_close(torch.func.vmap(go)(X), torch.stack([go(x) for x in X]), rtol=1e-10, atol=1e-10)


EYE = torch.eye(3, dtype=F64)
C = sym(randn(3, 3, seed=4))
NO_GRADIENT = {
    "largest eigenvalue": lambda a: eigh(a)[0][-1],
    "tr(A C) by eigenvectors": lambda a: (lambda lam, V: ((V * lam) @ V.mT * C).sum())(*eigh(a)),
    "one eigenvector": lambda a: (eigh(a)[1][:, 0] * C[0]).sum(),
    "projector by eigenvectors": lambda a: (eigh(a)[1] @ eigh(a)[1].mT * C).sum() + eigh(a)[1][0, 0] ** 2,
    "one singular vector": lambda a: (svd(a)[0][:, 0] * C[0]).sum(),
    "largest singular value": lambda a: svd(a)[1][0],
    "singular values at zero": lambda a: svd(a - a.detach())[1].sum(),
    "a dependent column": lambda a: qr(a @ torch.ones(3, 3, dtype=F64))[1].sum(),
    "a pivot at zero": lambda a: cholesky(a * torch.tensor([1.0, 1.0, 1e-18], dtype=F64).diag()).sum(),
}
GRADIENT = {
    "tr f(A)": (lambda a: eigh(a)[0].exp().sum(), EYE.exp() * EYE),
    "nuclear norm": (lambda a: svd(a)[1].sum(), EYE),
    "Frobenius norm": (lambda a: svd(a)[1].square().sum(), 2 * EYE),
    "log determinant": (lambda a: 2 * cholesky(a).diagonal().log().sum(), EYE),
}


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_a_loss_without_gradient_at_equal_values_is_refused(name):
    A = EYE.clone().requires_grad_()
    with pytest.raises(NotDifferentiable):
        NO_GRADIENT[name](A).backward()


@pytest.mark.parametrize("name", GRADIENT)
def test_an_invariant_loss_has_its_gradient_at_equal_values(name):
    f, right = GRADIENT[name]
    A = EYE.clone().requires_grad_()
    f(A).backward()
    torch.testing.assert_close(A.grad, right)


def test_the_gradient_that_is_refused_differs_from_the_one_that_eigenvectors_show():
    """tr(A C) and tr(C) written with eigenvectors have equal derivatives in them at A = I, where V = I and C_ii = 0."""
    off = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=F64)
    A = torch.eye(2, dtype=F64).requires_grad_()
    with pytest.raises(NotDifferentiable, match="matrix_function or spectral_projector"):
        (lambda lam, V: ((V * lam) @ V.mT * off).sum())(*eigh(A)).backward()
    (matrix_function(lambda x: x)(A) * off).sum().backward()
    torch.testing.assert_close(A.grad, off)


def test_a_second_derivative_of_an_invariant_loss_is_right_or_refused():
    A = EYE.clone().requires_grad_()
    (g,) = torch.autograd.grad(eigh(A)[0].exp().sum(), A, create_graph=True)
    with pytest.raises(NotDifferentiable):
        torch.autograd.grad((g * C).sum(), A)


@pytest.mark.parametrize("gap", [0.0, -1.0, 1.0, 2.0])
def test_a_gap_lies_between_zero_and_one(gap):
    for f in (eigh, svd, qr, cholesky):
        with pytest.raises(ValueError, match="gap must lie between 0 and 1"):
            f(EYE, gap=gap)


def test_forward_mode_refuses_vectors_of_equal_values():
    for f in (eigh, svd):
        with pytest.raises(NotDifferentiable):
            torch.func.jvp(f, (EYE,), (C,))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: cholesky(-EYE), "cholesky: A must be positive definite"),
        (lambda: cholesky(randn(3, 3)), "cholesky: A must be symmetric"),
        (lambda: qr(randn(2, 3)), "qr: A must have shape"),
        (lambda: svd(randn(3)), "svd: A must have shape"),
        (lambda: eigh(randn(3, 3)), "eigh: A must be symmetric"),
    ],
)
def test_wrong_matrices_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("factor", [1.0, 1e12])
def test_a_large_gradient_of_another_matrix_of_the_batch_hides_nothing(factor):
    A = torch.stack([EYE, torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=F64))]).requires_grad_()
    weights = torch.tensor([[1.0, 0.0, 0.0], [factor, 0.0, 0.0]], dtype=F64)
    for values in (lambda a: eigh(a)[0], lambda a: svd(a)[1]):
        with pytest.raises(NotDifferentiable):
            (values(A) * weights).sum().backward()
    with pytest.raises(ValueError, match="A must be symmetric"):
        eigh(torch.stack([randn(3, 3), factor * 1e9 * EYE]))
