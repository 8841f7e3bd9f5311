import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from frechet.calculus.matrices import polar, spectral_projector
from frechet.errors import NotDifferentiable

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def sym(A):
    return (A + A.mT) / 2


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("lam", [[3.0, 3.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0], [1.0, 1.0, -1.0, -1.0]])
def test_a_projector_has_derivatives_where_its_groups_have_equal_eigenvalues(lam, largest):
    Q, _ = torch.linalg.qr(randn(4, 4))
    A = sym((Q * torch.tensor(lam, dtype=F64)) @ Q.T).requires_grad_()

    def P(a):
        return spectral_projector(sym(a), 2, largest=largest)

    V = Q[:, :2] if largest else Q[:, 2:]
    torch.testing.assert_close(P(A), V @ V.T, rtol=1e-13, atol=1e-13)
    assert gradcheck(P, (A,), check_forward_ad=True)
    assert gradgradcheck(P, (A,), fast_mode=True)


def test_a_projector_without_a_gap_is_refused():
    with pytest.raises(NotDifferentiable, match="there must be a gap at count = 1"):
        spectral_projector(torch.eye(3), 1)
    with pytest.raises(ValueError, match="count must be an int between 1 and 2"):
        spectral_projector(torch.eye(3), 3)


@pytest.mark.parametrize("kind", ["tall", "square", "equal singular values", "batch"])
def test_a_polar_factor_is_orthonormal_and_twice_differentiable(kind):
    A = {
        "tall": randn(5, 3),
        "square": randn(3, 3),
        "equal singular values": torch.linalg.qr(randn(4, 2))[0] * 2,
        "batch": randn(2, 3, 2),
    }[kind].requires_grad_()
    U, P = polar(A)
    torch.testing.assert_close(U @ P, A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(U.mT @ U, torch.eye(A.shape[-1], dtype=F64).expand(P.shape), rtol=1e-12, atol=1e-12)
    assert bool((torch.linalg.eigvalsh(P) > 0).all())
    assert gradcheck(polar, (A,), check_forward_ad=True)
    assert gradgradcheck(polar, (A,), fast_mode=True)


def test_a_polar_factor_without_rank_is_refused():
    with pytest.raises(NotDifferentiable, match="polar: A must have full rank"):
        polar(torch.ones(3, 2))
    with pytest.raises(ValueError, match="polar: A must have shape"):
        polar(torch.ones(2, 3))


def test_a_matrix_without_columns_has_its_factors():
    U, P = polar(torch.zeros(3, 0))
    assert (U.shape, P.shape) == ((3, 0), (0, 0))
