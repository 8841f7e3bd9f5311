import pytest
import torch

from frechet.operators._check import check_operator
from frechet.transport import _reduced_hessian as module
from frechet.transport._dual_hessian import dual_hessian
from frechet.transport._reduced_hessian import reduced_hessian
from frechet.transport._sinkhorn import sinkhorn
from transport_problems import F64, problem, uniform


def solved(n=30, m=20, epsilon=0.02):
    cost, a, b = problem(n, m)
    s = sinkhorn(cost, a, b, epsilon=epsilon).checked()
    P = s.plan()
    return P * (a / P.sum(1)).unsqueeze(1), a, b


def schur(P):
    """The Schur complement of the exact dual Hessian, times epsilon."""
    n = P.shape[0]
    H = dual_hessian(P, 1.0).dense()
    return H[n:, n:] - H[n:, :n] @ torch.linalg.solve(H[:n, :n], H[:n, n:])


@pytest.mark.parametrize("filled", [0.0, 1.0], ids=["dense", "sparse"])
def test_with_nothing_dropped_it_is_the_schur_complement(filled, monkeypatch):
    monkeypatch.setattr(module, "FILLED", filled)
    P, a, b = solved()
    S = reduced_hessian(P, a, b, 0.0, 0.0)
    assert torch.allclose(S.dense(), schur(P), atol=1e-14)
    assert torch.allclose(S.diagonal(), schur(P).diagonal(), atol=1e-14)
    assert torch.allclose(S @ torch.ones(20, dtype=F64), torch.zeros(20, dtype=F64), atol=1e-16)
    assert S.kept == int((P > 0).sum())


@pytest.mark.parametrize("filled", [0.0, 1.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("drop", [1e-6, 1e-2, 0.3])
def test_whatever_is_dropped_it_is_diagonally_dominant_and_near(filled, drop, monkeypatch):
    monkeypatch.setattr(module, "FILLED", filled)
    P, a, b = solved()
    S, exact = reduced_hessian(P, a, b, drop, 0.0), schur(P)
    D = S.dense()
    assert not check_operator(S, seed=0).failed
    away = D - torch.diag(D.diagonal())
    assert bool((away <= 0).all())
    assert bool((D.sum(1) > 0).all())
    assert torch.allclose(S.diagonal(), D.diagonal(), atol=1e-15)
    assert float(torch.linalg.eigvalsh(D)[0]) > 0
    # what a column has lost stays on its diagonal, so no row is off by more than twice that
    lost = (D - exact).abs().sum(1)
    reach = torch.where(S.dense() != 0, P.T @ (P / a.unsqueeze(1)), 0)
    assert bool((lost <= 2 * (D - exact).sum(1) + 1e-14).all())
    assert reach.shape == D.shape
    assert S.kept < int((P > 0).sum()) or drop < 1e-5


def test_near_a_permutation_no_digits_are_lost():
    # two columns joined by 1e-20 of the mass: the difference P'1 - P' diag(1/a) P would be rounding
    P = torch.tensor([[0.5, 1e-20], [1e-20, 0.5]], dtype=F64)
    a = b = torch.tensor([0.5, 0.5], dtype=F64)
    S = reduced_hessian(P, a, b, 0.0, 0.0)
    v = S @ torch.tensor([1.0, 0.0], dtype=F64)
    assert torch.allclose(v, torch.tensor([2e-20, -2e-20], dtype=F64), rtol=1e-12, atol=0)
    assert S.diagonal().tolist() == pytest.approx([2e-20, 2e-20], rel=1e-12)


def test_the_shift_is_added_in_proportion_to_the_masses():
    P, a, b = solved()
    V = uniform(20, 3)
    difference = reduced_hessian(P, a, b, 0.01, 0.5) @ V - reduced_hessian(P, a, b, 0.01, 0.0) @ V
    assert torch.allclose(difference, 0.5 * b.unsqueeze(1) * V, atol=1e-15)
