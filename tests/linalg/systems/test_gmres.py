import pickle
from itertools import pairwise

import pytest
import torch
from scipy.sparse.linalg import gmres as scipy_gmres

from counting import counting
from frechet.linalg._result import Status
from frechet.linalg.systems._gmres import gmres
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix
from spectra import F64, gaussian, geometric

M = 2 * torch.eye(80, dtype=F64) + gaussian(80, 80) / 80**0.5


def cyclic_shift(n):
    return torch.roll(torch.eye(n, dtype=F64), 1, 0)


def size(v):
    return float(torch.linalg.vector_norm(v))


@pytest.mark.parametrize("restart", [4, 30, 200])
def test_residual_is_the_true_one_and_meets_the_tolerance(restart):
    b = gaussian(80)
    s = gmres(from_matrix(M), b, restart=restart, rtol=1e-9)
    assert s.converged
    assert s.residual == pytest.approx(size(b - M @ s.x), rel=1e-3)
    assert s.residual <= 1e-9 * size(b)
    assert torch.allclose(s.x, torch.linalg.solve(M, b), atol=1e-7)


def test_recurrence_is_the_least_residual_over_the_krylov_space():
    b = gaussian(80)
    s, K = gmres(from_matrix(M), b, max_iterations=8), b.unsqueeze(1)
    for j in range(1, 9):
        Q, _ = torch.linalg.qr(K)
        best = b - M @ Q @ torch.linalg.lstsq(M @ Q, b).solution
        assert s.history[j] == pytest.approx(size(best), rel=1e-9)
        K = torch.cat([Q, M @ Q[:, -1:]], dim=1)


def test_agrees_with_scipy():
    b, theirs = gaussian(80), []
    scipy_gmres(
        M.numpy(), b.numpy(), rtol=1e-8, restart=10, maxiter=50, callback=theirs.append, callback_type="pr_norm"
    )
    ours = gmres(from_matrix(M), b, rtol=1e-8, restart=10).history
    assert len(ours) - 1 == len(theirs)
    assert [h / size(b) for h in ours[1:]] == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("restart", [5, 100])
def test_residual_never_grows(restart):
    s = gmres(from_matrix(M), gaussian(80), restart=restart, rtol=1e-10)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(s.history))


def test_cyclic_shift_needs_all_n_iterations_and_stagnates_when_restarted():
    A, e = from_matrix(cyclic_shift(12)), torch.eye(12, dtype=F64)[0]
    s = gmres(A, e, restart=12)
    assert (s.status, s.iterations) == (Status.CONVERGED, 12)
    s = gmres(A, e, restart=11)
    assert (s.status, s.iterations) == (Status.STAGNATED, 11)
    assert "the last cycle brought nothing" in s.message


def test_singular_system_is_a_breakdown():
    N = torch.diag(torch.ones(3, dtype=F64), 1)
    s = gmres(from_matrix(N), torch.ones(4, dtype=F64))
    assert s.status is Status.BREAKDOWN
    assert "the Krylov space is exhausted, A is singular" in s.message
    assert s.residual == pytest.approx(1.0)
    assert gmres(from_matrix(torch.zeros(2, 2)), torch.ones(2)).status is Status.BREAKDOWN


def test_orthogonality_survives_an_ill_conditioned_matrix():
    values = geometric(60, 1e8)
    s = gmres(from_diagonal(values), gaussian(60), restart=60, rtol=1e-7)
    assert (s.status, s.iterations) == (Status.CONVERGED, 60)


def test_exact_solution_in_a_small_krylov_space_ends_early():
    s = gmres(from_diagonal(torch.tensor([1.0, 2.0], dtype=F64).repeat(10)), torch.ones(20, dtype=F64), rtol=1e-12)
    assert (s.status, s.iterations) == (Status.CONVERGED, 2)


def test_zero_right_hand_side_one_unknown_and_start():
    A = from_matrix(M)
    s = gmres(A, torch.zeros(80, dtype=F64), x0=gaussian(80))
    assert (s.status, s.iterations, s.products) == (Status.CONVERGED, 0, 0)
    assert not s.x.any()
    assert float(gmres(from_matrix(torch.tensor([[-4.0]])), torch.ones(1)).x) == -0.25
    b = gaussian(80)
    near = torch.linalg.solve(M, b) + 1e-5 * gaussian(80, seed=2)
    assert gmres(A, b, x0=near, rtol=1e-8).iterations < gmres(A, b, rtol=1e-8).iterations


def test_float32_reaches_float32_and_says_where_it_does_not():
    A, b = from_matrix(M.float()), gaussian(80).float()
    s = gmres(A, b, rtol=1e-6)
    assert s.converged
    assert size(b.double() - M.float().double() @ s.x.double()) <= 2e-6 * size(b)
    assert gmres(A, b, rtol=1e-10).status is Status.STAGNATED


def test_right_preconditioner_solves_the_composed_system():
    d = torch.logspace(0, 3, 80, dtype=F64)
    A, P, b = from_matrix(M * d), from_diagonal(1 / d), gaussian(80)
    s, composed = gmres(A, b, preconditioner=P, rtol=1e-9), gmres(A @ P, b, rtol=1e-9)
    assert s.converged
    assert s.iterations == composed.iterations
    assert torch.allclose(s.x, P @ composed.x, rtol=1e-9)
    assert s.iterations < gmres(A, b, rtol=1e-9, max_iterations=200).iterations
    assert gmres(A, b, preconditioner=from_matrix(torch.linalg.inv(M * d))).iterations == 1


def test_nan_limit_and_stop():
    s = gmres(from_callable(lambda V: V * float("nan"), 3), torch.ones(3))
    assert s.status is Status.NONFINITE
    assert s.message == "gmres: a product in iteration 1 is not finite"
    assert s.x.isfinite().all()
    assert "after 0 iterations is not finite" in gmres(from_matrix(M), gaussian(80) / 0).message
    s = gmres(from_matrix(M), gaussian(80), restart=5, max_iterations=7)
    assert (s.status, s.iterations, len(s.history)) == (Status.MAX_ITERATIONS, 7, 8)
    s = gmres(from_matrix(M), gaussian(80), restart=5, observe=lambda s: s.iteration == 7)
    assert (s.status, s.iterations) == (Status.STOPPED, 7)
    with pytest.raises(ValueError, match="gmres: restart must be >= 1, got 0"):
        gmres(from_matrix(M), gaussian(80), restart=0)


@pytest.mark.parametrize("options", [{}, {"restart": 5}, {"x0": torch.ones(80, dtype=F64)}, {"max_iterations": 8}])
def test_products_are_counted(options):
    A, count = counting(from_matrix(M))
    assert gmres(A, gaussian(80), **options).products == count.total


@pytest.mark.parametrize("stop_at", [3, 5, 13])
def test_resumed_run_equals_the_uninterrupted_one(stop_at):
    A, b, kept = from_matrix(M), gaussian(80), []
    whole = gmres(A, b, restart=5)
    gmres(A, b, restart=5, observe=lambda s: bool(kept.append(s)) or s.iteration == stop_at)
    seen = []
    s = gmres(A, b, restart=5, resume=pickle.loads(pickle.dumps(kept[-1])), observe=lambda s: seen.append(s.iteration))
    assert torch.equal(s.x, whole.x)
    assert (s.iterations, s.products, s.history) == (whole.iterations, whole.products, whole.history)
    assert seen == list(range(stop_at + 1, whole.iterations + 1))
    with pytest.raises(ValueError, match=r"gmres: resume must be a state of the same problem, got .* restart = 5;"):
        gmres(A, b, restart=6, resume=kept[-1])
