import pickle
from itertools import pairwise

import pytest
import torch
from scipy.sparse.linalg import minres as scipy_minres

from counting import counting
from frechet.linalg._result import Status
from frechet.linalg.systems._minres import minres
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix
from spectra import F64, gaussian, geometric, with_eigenvalues

INDEFINITE = torch.cat([torch.linspace(-3, -0.1, 20, dtype=F64), torch.linspace(0.1, 5, 60, dtype=F64)])
SINGULAR = torch.cat([INDEFINITE[:10], torch.zeros(15, dtype=F64), INDEFINITE[40:]])


def symmetric(M):
    return from_matrix(M, facts="symmetric")


def size(v):
    return float(torch.linalg.vector_norm(v))


@pytest.mark.parametrize("values", [INDEFINITE, INDEFINITE.abs(), -INDEFINITE.abs()])
def test_residual_is_the_true_one_and_meets_the_tolerance(values):
    M, b = with_eigenvalues(values), gaussian(80)
    s = minres(symmetric(M), b, rtol=1e-9)
    assert s.converged
    assert s.residual == pytest.approx(size(b - M @ s.x), rel=1e-3)
    assert size(b - M @ s.x) <= 1e-9 * size(b)


def test_every_iterate_minimizes_the_residual_over_the_krylov_space():
    M, b, iterates = with_eigenvalues(INDEFINITE), gaussian(80), []
    minres(symmetric(M), b, max_iterations=8, observe=lambda s: bool(iterates.append(s)))
    K = b.unsqueeze(1)
    for state in iterates:
        Q, _ = torch.linalg.qr(K)
        best = b - M @ Q @ torch.linalg.lstsq(M @ Q, b).solution
        assert size(b - M @ state.x) == pytest.approx(size(best), rel=1e-9)
        assert state.residual == pytest.approx(size(best), rel=1e-9)
        K = torch.cat([Q, M @ Q[:, -1:]], dim=1)


def test_residual_never_grows():
    s = minres(symmetric(with_eigenvalues(INDEFINITE)), gaussian(80), rtol=1e-10)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(s.history))


def test_takes_about_as_many_iterations_as_scipy():
    M, b, theirs = with_eigenvalues(INDEFINITE), gaussian(80), []
    scipy_minres(M.numpy(), b.numpy(), rtol=1e-9, callback=lambda x: theirs.append(1))
    assert abs(minres(symmetric(M), b, rtol=1e-8).iterations - len(theirs)) <= 5


@pytest.mark.parametrize("values", [[2.0], [2.0, -1.0], [3.0, 1.0, -2.0]])
def test_distinct_eigenvalues_bound_the_iterations(values):
    M = with_eigenvalues(torch.tensor(values).repeat(10))
    assert minres(symmetric(M), gaussian(10 * len(values)), rtol=1e-10).iterations == len(values)


def test_negative_curvature_is_found_and_true():
    M, b = with_eigenvalues(INDEFINITE), gaussian(80)
    s = minres(symmetric(M), b, rtol=1e-8)
    assert s.converged  # the direction does not keep it from solving
    assert s.direction @ M @ s.direction < 0
    stopped = minres(symmetric(M), b, rtol=1e-8, stop_at_negative_curvature=True)
    d = stopped.direction
    assert stopped.status is Status.INDEFINITE
    assert torch.equal(d, s.direction)
    assert f"A is indefinite, d'Ad/d'd = {float(d @ M @ d / (d @ d)):.3g}" in stopped.message


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("seed", range(5))
def test_semidefinite_matrices_are_not_called_indefinite(dtype, seed):
    M = with_eigenvalues(SINGULAR.abs(), seed).to(dtype)
    s = minres(symmetric(M), M @ gaussian(65, seed=seed).to(dtype), stop_at_negative_curvature=True)
    assert s.direction is None
    assert s.status is not Status.INDEFINITE


@pytest.mark.parametrize("seed", range(5))
def test_rounding_of_a_zero_curvature_costs_no_product(seed):
    M = with_eigenvalues(SINGULAR.abs(), seed)
    s = minres(symmetric(M), gaussian(65, seed=seed), rtol=1e-13)
    assert s.status is Status.SINGULAR
    assert s.products == s.iterations + 3  # the last step is not taken; two products confirm


def test_restart_from_the_true_residual_reaches_what_one_run_misses():
    M, b, calls = with_eigenvalues(geometric(60, 100)), gaussian(60), []

    def drifting(V):
        calls.append(1)
        return M @ V * (1.001 if len(calls) == 3 else 1.0)

    s = minres(from_callable(drifting, 60, facts="symmetric", dtype=F64), b, rtol=1e-8)
    assert s.converged
    assert size(b - M @ s.x) <= 1e-8 * size(b)
    assert s.products > s.iterations + 1


def test_one_negative_eigenvalue_in_a_hundred_is_met():
    values = torch.cat([torch.linspace(0.5, 2, 99, dtype=F64), torch.tensor([-0.5], dtype=F64)])
    M = with_eigenvalues(values)
    s = minres(symmetric(M), gaussian(100), stop_at_negative_curvature=True)
    assert s.status is Status.INDEFINITE
    assert s.direction @ M @ s.direction < 0


def test_singular_consistent_system_is_solved():
    M = with_eigenvalues(SINGULAR)
    s = minres(symmetric(M), M @ gaussian(65), rtol=1e-9)
    assert s.converged


@pytest.mark.parametrize(("dtype", "rtol"), [(F64, 1e-6), (F64, 1e-9), (F64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize("seed", range(4))
def test_singular_inconsistent_system_ends_at_a_least_squares_solution(dtype, rtol, seed):
    M, b = with_eigenvalues(SINGULAR, seed), gaussian(65, seed=seed)
    s = minres(symmetric(M.to(dtype)), b.to(dtype), rtol=rtol)
    r = b - M @ s.x.double()
    least = b - M @ (torch.linalg.pinv(M, rtol=1e-10) @ b)
    floor = 4 * torch.finfo(dtype).eps ** 0.5
    assert s.status is Status.SINGULAR
    assert size(M @ r) <= 1.1 * max(rtol, floor) * 5 * size(r)
    assert size(r) == pytest.approx(size(least), rel=1e-4)
    assert s.residual == pytest.approx(size(r), rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_ill_conditioned_consistent_float32_system_is_not_called_singular(seed):
    values = geometric(60, 2e3) * torch.where(torch.arange(60) % 2 == 0, 1.0, -1.0)
    M, x = with_eigenvalues(values, seed), gaussian(60, seed=seed)
    s = minres(symmetric(M.float()), (M @ x).float(), rtol=1e-4, max_iterations=2000)
    assert s.converged
    assert size((M @ x).float() - M.float() @ s.x) <= 1.01e-4 * size(M @ x)


def test_an_eigenvalue_near_sqrt_eps_is_resolved_and_not_taken_for_zero():
    A = from_diagonal(torch.tensor([7.3e-3, 0.75, 3.0e-4, 1.1e-3, 7.3e-4]))
    s = minres(A, torch.tensor([-1.27e-2, 6.67e-3, -6.35e-6, -1.54e-4, -4.54e-4]), rtol=1e-3)
    assert s.converged


def test_zero_matrix_and_one_unknown():
    assert minres(symmetric(torch.zeros(3, 3)), torch.ones(3)).status is Status.SINGULAR
    assert float(minres(symmetric(torch.tensor([[-2.0]])), torch.ones(1)).x) == -0.5
    assert minres(symmetric(torch.zeros(1, 1)), torch.ones(1)).status is Status.SINGULAR


def test_zero_right_hand_side_needs_no_iteration_and_forgets_the_start():
    for start in (None, torch.ones(3)):
        s = minres(symmetric(torch.eye(3)), torch.zeros(3), x0=start)
        assert (s.status, s.iterations, s.products) == (Status.CONVERGED, 0, 1)
        assert not s.x.any()


def test_start_is_used():
    M, b = with_eigenvalues(INDEFINITE), gaussian(80)
    exact = torch.linalg.solve(M, b)
    assert minres(symmetric(M), b, x0=exact).iterations == 0
    s = minres(symmetric(M), b, x0=exact + 1e-4 * gaussian(80, seed=3), rtol=1e-9)
    assert s.converged
    assert s.iterations < minres(symmetric(M), b, rtol=1e-9).iterations


def test_unreachable_tolerance_is_stagnated():
    M = with_eigenvalues(geometric(60, 1e3)).float()
    s = minres(symmetric(M), gaussian(60).float(), rtol=1e-8)
    assert s.status is Status.STAGNATED
    assert "times the tolerance" in s.message
    assert s.residual > 1e-8 * size(gaussian(60))


def test_nonfinite_values_are_named():
    A = from_callable(lambda V: V * float("nan"), 3, facts="symmetric")
    s = minres(A, torch.ones(3))
    assert s.status is Status.NONFINITE
    assert s.message == "minres: a product in iteration 1 is not finite"
    assert s.x.isfinite().all()
    s = minres(A, torch.tensor([1.0, 2.0, float("inf")]))
    assert s.message == "minres: b - A @ x0 is not finite"


def test_indefinite_preconditioner_is_a_breakdown():
    A = from_diagonal(torch.tensor([1.0, 2.0]))
    s = minres(A, torch.ones(2), preconditioner=from_diagonal(torch.tensor([-1.0, -1.0])))
    assert s.status is Status.BREAKDOWN
    assert "the preconditioner M is not positive definite, r'Mr = -2" in s.message


def test_preconditioning_is_the_transformed_problem():
    M, b, d = with_eigenvalues(INDEFINITE), gaussian(80), torch.linspace(1, 3, 80, dtype=F64)
    plain, preconditioned = [], []
    minres(symmetric(d[:, None] * M * d), d * b, max_iterations=8, observe=lambda s: bool(plain.append(d * s.x)))
    keep = preconditioned.append
    s = minres(symmetric(M), b, preconditioner=from_diagonal(d**2), max_iterations=8, observe=lambda s: keep(s.x))
    assert torch.allclose(torch.stack(plain), torch.stack(preconditioned), rtol=1e-7)
    assert s.direction @ M @ s.direction < 0


def test_preconditioned_inconsistent_system_solves_its_weighted_least_squares():
    M, b, d = with_eigenvalues(SINGULAR), gaussian(65), torch.linspace(1, 3, 65, dtype=F64)
    s = minres(symmetric(M), b, preconditioner=from_diagonal(d**2))
    assert s.status is Status.SINGULAR
    assert size(d * (M @ (d**2 * (b - M @ s.x)))) <= 1e-6 * 50 * size(d * (b - M @ s.x))


@pytest.mark.parametrize("case", ["indefinite", "singular", "start", "stop", "limit"])
def test_products_are_counted(case):
    values = SINGULAR if case == "singular" else INDEFINITE
    A, count = counting(symmetric(with_eigenvalues(values)))
    n = values.numel()
    options = {
        "start": {"x0": torch.ones(n, dtype=F64)},
        "stop": {"stop_at_negative_curvature": True},
        "limit": {"max_iterations": 7},
    }.get(case, {})
    s = minres(A, gaussian(n), **options)
    assert s.products == count.total


@pytest.mark.parametrize("values", [INDEFINITE, SINGULAR])
def test_resumed_run_equals_the_uninterrupted_one(values):
    A, b, kept = symmetric(with_eigenvalues(values)), gaussian(values.numel()), []
    whole = minres(A, b)
    part = minres(A, b, observe=lambda s: bool(kept.append(s)) or s.iteration == 11)
    assert (part.status, part.iterations) == (Status.STOPPED, 11)
    s = minres(A, b, resume=pickle.loads(pickle.dumps(kept[-1])))
    assert torch.equal(s.x, whole.x)
    assert (s.status, s.iterations, s.products) == (whole.status, whole.iterations, whole.products)
    assert s.history == whole.history
    with pytest.raises(ValueError, match=r"minres: resume must be a state of the same problem"):
        minres(A, 2 * b, resume=kept[-1])
