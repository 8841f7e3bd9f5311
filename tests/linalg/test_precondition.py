import math

import pytest
import torch

from counting import counting
from frechet.linalg._precondition import jacobi, nystrom, pivoted_cholesky
from frechet.linalg._result import Estimate
from frechet.linalg.systems._cg import cg
from frechet.linalg.systems._minres import minres
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix, identity
from frechet.operators._operator import Fact
from frechet.space import Space
from spectra import F64, gaussian, with_eigenvalues

DECAYING = torch.cat([torch.logspace(3, 0, 15, dtype=F64), torch.logspace(-4, -6, 85, dtype=F64)])


def semidefinite(M):
    return from_matrix(M, facts="positive_semidefinite")


def condition(P, M, damping):
    """Of the preconditioned matrix."""
    root = torch.linalg.cholesky(P.dense().double())
    values = torch.linalg.eigvalsh(root.T @ (M + damping * torch.eye(len(M), dtype=F64)) @ root)
    return float(values[-1] / values[0])


def test_jacobi_inverts_the_diagonal():
    M = with_eigenvalues(DECAYING[:20])
    expected = torch.diag(1 / (M.diagonal() + 0.5))
    assert torch.allclose(jacobi(semidefinite(M), damping=0.5).dense(), expected)
    assert torch.allclose(jacobi(M.diagonal(), damping=0.5).dense(), expected)
    estimate = Estimate(M.diagonal(), torch.zeros(20), 3, 3, 0)
    space = Space(("a", "b"), ((5,), (15,)), F64)
    P = jacobi(estimate, damping=0.5, domain=space)
    assert torch.allclose(P.dense(), expected)
    assert P.domain == space
    assert Fact.POSITIVE_DEFINITE in P.facts


def test_jacobi_makes_a_scaled_system_easy():
    d = torch.logspace(0, 3, 60, dtype=F64)
    M = d[:, None] * with_eigenvalues(torch.linspace(1, 2, 60)) * d
    A, b = from_matrix(M, facts="positive_definite"), gaussian(60)
    assert cg(A, b, preconditioner=jacobi(A), rtol=1e-8).iterations < cg(A, b, rtol=1e-8).iterations / 5


def test_jacobi_floor_saves_a_noisy_estimate():
    d = torch.tensor([4.0, 2.0, -0.1, 2.1])
    with pytest.raises(
        ValueError, match=r"jacobi: diag A \+ damping must be positive .* 1 entries .* least -0.1; raise"
    ):
        jacobi(d)
    assert torch.allclose(jacobi(d, floor=0.1).dense().diagonal(), 1 / torch.tensor([4.0, 2.0, 0.2, 2.1]))
    with pytest.raises(ValueError, match="1 entries that are not"):
        jacobi(torch.tensor([1.0, math.nan]))


def test_nystrom_of_full_rank_is_the_inverse():
    M = with_eigenvalues(torch.logspace(1, -1, 12))
    P = nystrom(semidefinite(M), rank=12, damping=0.3, seed=0)
    assert torch.allclose(P.dense(), torch.linalg.inv(M + 0.3 * torch.eye(12, dtype=F64)), rtol=1e-8)


def test_nystrom_is_exact_on_a_low_rank_matrix():
    M = with_eigenvalues([5.0, 2.0, 1.0] + [0.0] * 17)
    for rank in (3, 4, 10):
        P = nystrom(semidefinite(M), rank=rank, damping=0.1, seed=1)
        s = 1.0 if rank == 3 else 0.0  # a rank without slack takes its least eigenvalue for the rest
        replaced = M + s * (torch.eye(20, dtype=F64) - M @ torch.linalg.pinv(M, rtol=1e-10))
        assert torch.allclose(P.dense(), torch.linalg.inv(replaced + 0.1 * torch.eye(20, dtype=F64)), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("seed", range(3))
def test_nystrom_bounds_the_condition_number_where_the_rank_exceeds_twice_the_effective_dimension(dtype, seed):
    M, damping = with_eigenvalues(DECAYING), 1e-2
    effective = float((DECAYING / (DECAYING + damping)).sum())
    P = nystrom(semidefinite(M.to(dtype)), rank=2 * math.ceil(effective), damping=damping, seed=seed)
    assert Fact.POSITIVE_DEFINITE in P.facts
    assert condition(P, M, damping) < 30  # it is 1e5 without; theorem 5.1 of the source promises 28 on average


def test_nystrom_cuts_the_iterations():
    M, b = with_eigenvalues(DECAYING), gaussian(100)
    A = semidefinite(M) + 1e-3 * identity(semidefinite(M).domain)
    P = nystrom(semidefinite(M), rank=30, damping=1e-3, seed=0)
    plain, quick = cg(A, b, rtol=1e-8), cg(A, b, preconditioner=P, rtol=1e-8)
    assert quick.converged
    assert quick.iterations <= 10
    assert plain.iterations >= 30
    assert minres(A, b, preconditioner=P, rtol=1e-8).iterations <= 10


def test_nystrom_depends_on_the_seed_only_and_counts_its_rank():
    A, count = counting(semidefinite(with_eigenvalues(DECAYING)))
    first = nystrom(A, rank=7, damping=1.0, seed=3).dense()
    assert count.total == 7
    assert torch.equal(first, nystrom(A, rank=7, damping=1.0, seed=3).dense())
    assert not torch.allclose(first, nystrom(A, rank=7, damping=1.0, seed=4).dense())


def test_nystrom_of_zero_and_without_damping():
    Z = semidefinite(torch.zeros(4, 4))
    assert torch.allclose(nystrom(Z, rank=2, damping=0.5, seed=0).dense(), 2 * torch.eye(4))
    with pytest.raises(ValueError, match="nystrom: damping must be > 0 for A = 0, got 0"):
        nystrom(Z, rank=2, damping=0.0, seed=0)
    P = nystrom(semidefinite(with_eigenvalues([5.0, 2.0, 0.0, 0.0])), rank=4, damping=0.0, seed=0)
    assert torch.allclose(torch.linalg.eigvalsh(P.dense()), torch.tensor([0.2, 0.5, 0.5, 0.5], dtype=F64))


def test_nystrom_notices_what_it_cannot_use():
    indefinite = from_matrix(with_eigenvalues([3.0, 1.0, -2.0, -3.0]), facts="symmetric")
    with pytest.raises(ValueError, match="nystrom: A must be positive semidefinite, got the eigenvalue -"):
        nystrom(indefinite, rank=4, damping=1.0, seed=0)
    with pytest.raises(ValueError, match=r"nystrom: A must be symmetric, got Matrix .* without that fact"):
        nystrom(from_matrix(torch.eye(3)), rank=2, damping=1.0, seed=0)
    A = semidefinite(torch.eye(3))
    with pytest.raises(ValueError, match="nystrom: rank must lie between 1 and 3, got 4"):
        nystrom(A, rank=4, damping=1.0, seed=0)
    with pytest.raises(ValueError, match="nystrom: damping must be a number >= 0, got -1"):
        nystrom(A, rank=2, damping=-1, seed=0)
    nan = from_callable(lambda V: V * math.nan, 3, facts="positive_semidefinite")
    with pytest.raises(ValueError, match="nystrom: A @ W must be finite, got a NaN or an infinity"):
        nystrom(nan, rank=2, damping=1.0, seed=0)


def kernel(n=80):
    t = torch.linspace(0, 2, n, dtype=F64) ** 2  # uneven and scaled, so that no two pivots tie
    a = torch.linspace(1, 1.2, n, dtype=F64)
    return a[:, None] * torch.exp(-((t[:, None] - t) ** 2)) * a


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_pivoted_cholesky_takes_the_exact_schur_complements(dtype):
    M, damping = kernel(), 1e-2
    P = pivoted_cholesky(semidefinite(M.to(dtype)), rank=6, damping=damping)
    low_rank = torch.linalg.inv(P.dense().double()) - damping * torch.eye(80, dtype=F64)
    rest, pivots = M.clone(), []
    for _ in range(6):
        i = int(rest.diagonal().argmax())
        pivots.append(i)
        rest = rest - torch.outer(rest[i], rest[i]) / rest[i, i]
    assert torch.allclose(low_rank, M - rest, atol=1e-8 if dtype == F64 else 2e-2)
    assert (low_rank - M)[pivots].abs().max() < (1e-8 if dtype == F64 else 2e-2)  # interpolates its pivot rows


def test_pivoted_cholesky_makes_a_kernel_system_easy():
    A = semidefinite(kernel())
    damped, b = A + 1e-3 * identity(A.domain), gaussian(80)
    P = pivoted_cholesky(A, rank=15, damping=1e-3)
    assert Fact.POSITIVE_DEFINITE in P.facts
    assert condition(P, kernel(), 1e-3) < 1.1
    assert cg(damped, b, preconditioner=P, rtol=1e-8).iterations <= 4 < cg(damped, b, rtol=1e-8).iterations


def test_pivoted_cholesky_ends_when_nothing_remains_and_counts_products():
    M = with_eigenvalues([5.0, 2.0] + [0.0] * 10)
    A, count = counting(semidefinite(M))
    P = pivoted_cholesky(A, rank=8, damping=0.1, diagonal=M.diagonal())
    assert count.total == 2
    assert torch.allclose(P.dense(), torch.linalg.inv(M + 0.1 * torch.eye(12, dtype=F64)))
    zero = pivoted_cholesky(from_diagonal(torch.zeros(3)), rank=2, damping=0.5)
    assert torch.allclose(zero.dense(), 2 * torch.eye(3))


def test_pivoted_cholesky_notices_what_it_cannot_use():
    A = from_callable(lambda V: V, 3, facts="positive_semidefinite")
    with pytest.raises(ValueError, match=r"pivoted_cholesky: A must show its diagonal, got FromCallable .*; pass one"):
        pivoted_cholesky(A, rank=2, damping=1.0)
    with pytest.raises(ValueError, match=r"pivoted_cholesky: the diagonal must have shape \(3,\), got \(2,\)"):
        pivoted_cholesky(A, rank=2, damping=1.0, diagonal=torch.ones(2))
    with pytest.raises(ValueError, match="pivoted_cholesky: damping must be > 0, got 0"):
        pivoted_cholesky(A, rank=2, damping=0)
    with pytest.raises(ValueError, match="pivoted_cholesky: A must be finite, got a NaN"):
        pivoted_cholesky(A, rank=2, damping=1.0, diagonal=torch.tensor([1.0, math.nan, 1.0]))
    bent = from_matrix(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), facts="symmetric")
    with pytest.raises(ValueError, match="got the remaining diagonal entry -3 after 1 columns; the largest of A is 1"):
        pivoted_cholesky(bent, rank=2, damping=1.0)


@pytest.mark.parametrize("rank", [1, 2])
def test_one_unknown_and_named_blocks(rank):
    space = Space(("w", "b"), ((rank,), (1,)), F64)
    A = from_diagonal(torch.ones(rank + 1, dtype=F64), domain=space)
    for P in (nystrom(A, rank=rank, damping=1.0, seed=0), pivoted_cholesky(A, rank=rank, damping=1.0), jacobi(A)):
        assert P.domain == space
    one = from_diagonal(torch.tensor([3.0], dtype=F64))
    assert float(nystrom(one, rank=1, damping=1.0, seed=0) @ torch.ones(1, dtype=F64)) == pytest.approx(0.25)
