import itertools

import pytest
import torch

from frechet.train import _complementarity
from frechet.train._complementarity import complementary

F64 = torch.float64


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """J J' of any rank with rows of very different lengths, and right sides in its range."""
    g = torch.Generator().manual_seed(seed)
    m, d = (int(torch.randint(1, most, (1,), generator=g)) for most in (10, 12))
    J = torch.randn(m, d, generator=g, dtype=F64) * 10 ** (4 * torch.randn(m, 1, generator=g, dtype=F64).clamp(-1, 1))
    return J @ J.T, J @ torch.randn(d, 4, generator=g, dtype=F64)


def by_enumeration(M, q):
    """The solution of a regular M: the one set of positive entries with the right signs."""
    m = len(q)
    for chosen in itertools.product([False, True], repeat=m):
        P = torch.tensor(chosen)
        s = torch.zeros_like(q)
        s[P] = -torch.linalg.solve(M[P][:, P], q[P])
        if bool((s >= -1e-12).all()) and bool(((M @ s + q)[~P] >= -1e-12).all()):
            return s
    raise AssertionError("no set has the right signs")


def test_signs_and_products_of_s_and_y_are_those_of_the_solution():
    for seed in range(150):
        M, q = drawn(seed)
        unit = M.diagonal().sqrt()[:, None]
        s = complementary(M, q)
        y = (M @ s + q) / unit / (q / unit).abs().amax(0)
        assert float(s.min()) >= 0
        assert float(y.min()) >= -1e-12
        scaled = s * unit / (q / unit).abs().amax(0)
        assert float((scaled * y).abs().max()) <= 1e-10 * (1 + float(scaled.max()))


@pytest.mark.parametrize("seed", range(20))
def test_a_regular_problem_has_the_solution_that_enumeration_finds(seed):
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(5, 7, generator=g, dtype=F64)
    M, q = A @ A.T, torch.randn(5, 3, generator=g, dtype=F64)
    expected = torch.stack([by_enumeration(M, column) for column in q.T], 1)
    torch.testing.assert_close(complementary(M, q), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", ["products", "factors", "nnls"])
def test_all_ways_lead_to_one_solution(way, monkeypatch):
    g = torch.Generator().manual_seed(3)
    A = torch.randn(40, 400, generator=g, dtype=F64)
    M, q = A @ A.T, A @ torch.randn(400, 15, generator=g, dtype=F64)
    expected = complementary(M, q)
    if way != "products":
        monkeypatch.setattr(_complementarity, "CONDITION", 0.0)
    if way == "nnls":
        monkeypatch.setattr(_complementarity, "ROUNDS", 1)
    torch.testing.assert_close(complementary(M, q), expected, rtol=1e-9, atol=1e-14)


def test_a_zero_row_stays_zero_and_a_product_of_ones_is_divided():
    M, q = torch.zeros(3, 3, dtype=F64), torch.zeros(3, 1, dtype=F64)
    M[:2, :2] = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    q[:2, 0] = torch.tensor([-2.0, 1.0])
    assert complementary(M, q)[:, 0].tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_derivatives_of_both_orders_are_those_of_the_positive_entries():
    A = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=F64, requires_grad=True)
    b = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=F64, requires_grad=True)

    def solution(A, b):
        return complementary(A @ A.T, A @ b)

    with torch.no_grad():
        assert 0 < int((solution(A, b) > 0).sum()) < 8
    assert torch.autograd.gradcheck(solution, (A, b))
    assert torch.autograd.gradgradcheck(solution, (A, b))
