import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg as scipy_cg

from counting import counting
from frechet.linalg._result import Status
from frechet.linalg.systems._cg import cg
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix, identity
from frechet.space import Space
from spectra import F64, gaussian, geometric, with_eigenvalues


def definite(M):
    return from_matrix(M, facts="positive_definite")


def test_two_by_two_closed_form():
    s = cg(definite(torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=F64)), torch.tensor([1.0, 2.0], dtype=F64), rtol=1e-14)
    assert torch.allclose(s.x, torch.tensor([1.0, 7.0], dtype=F64) / 11, atol=1e-14)
    assert (s.status, s.iterations) == (Status.CONVERGED, 2)


@pytest.mark.parametrize("condition", [10, 1e3, 1e6])
def test_residual_is_the_true_one_and_meets_the_tolerance(condition):
    M, b = with_eigenvalues(geometric(60, condition)), gaussian(60)
    s = cg(definite(M), b, rtol=1e-8)
    true = torch.linalg.vector_norm(b - M @ s.x)
    assert s.converged
    assert s.residual == pytest.approx(float(true), rel=1e-3)
    assert true <= 1e-8 * torch.linalg.vector_norm(b)


def test_agrees_with_scipy_iteration_by_iteration():
    M, b = with_eigenvalues(geometric(50, 100)), gaussian(50)
    theirs, ours = [], []
    scipy_cg(M.numpy(), b.numpy(), rtol=1e-8, callback=lambda x: theirs.append(x.copy()))
    cg(definite(M), b, rtol=1e-8, observe=lambda state: bool(ours.append(state.x.numpy())))
    assert len(ours) == len(theirs)
    assert np.abs(np.array(ours[:20]) - np.array(theirs[:20])).max() < 1e-9


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_distinct_eigenvalues_bound_the_iterations(distinct):
    values = torch.arange(1, distinct + 1).repeat(40)[:40].double()
    assert cg(definite(with_eigenvalues(values)), gaussian(40), rtol=1e-10).iterations == distinct


def test_energy_error_decreases_in_every_iteration():
    M, b = with_eigenvalues(geometric(80, 1e4)), gaussian(80)
    exact, errors = torch.linalg.solve(M, b), []

    def observe(state):
        e = state.x - exact
        errors.append(float(e @ M @ e))
        return False

    cg(definite(M), b, rtol=1e-6, observe=observe)
    assert len(errors) > 50
    assert all(later < earlier for earlier, later in pairwise(errors))


def test_float32_says_stagnated_where_the_recurrence_claims_success():
    M, b = with_eigenvalues(geometric(200, 1e4)).float(), gaussian(200).float()
    s = cg(definite(M), b, rtol=1e-6)
    true = torch.linalg.vector_norm(b.double() - M.double() @ s.x.double()) / torch.linalg.vector_norm(b.double())
    assert s.status is Status.STAGNATED
    assert s.history[-1] <= 1e-6 * float(torch.linalg.vector_norm(b))  # the recurrence is content
    assert true > 1e-5
    assert s.residual == pytest.approx(float(true * torch.linalg.vector_norm(b.double())), rel=0.2)
    assert "times the tolerance" in s.message


def test_restart_from_the_true_residual_reaches_what_one_run_misses():
    M, b = with_eigenvalues(geometric(60, 1e3)), gaussian(60)
    calls = []

    def drifting(V):  # the first products are wrong, so that the recurrence drifts off
        calls.append(1)
        return M @ V * (1.001 if len(calls) == 3 else 1.0)

    s = cg(from_callable(drifting, 60, facts="positive_definite", dtype=F64), b, rtol=1e-8)
    assert s.converged
    assert torch.linalg.vector_norm(b - M @ s.x) <= 1e-8 * torch.linalg.vector_norm(b)
    assert s.products == s.iterations + 2


def test_indefinite_hands_out_the_direction():
    M = with_eigenvalues([3.0, 2.0, 1.0, -1.0])
    s = cg(definite(M), gaussian(4))
    d = s.direction
    assert s.status is Status.INDEFINITE
    assert d @ M @ d <= 0
    assert f"d'Ad/d'd = {float(d @ M @ d / (d @ d)):.3g}" in s.message
    assert s.x.isfinite().all()


def test_semidefinite_consistent_system_is_solved():
    M = with_eigenvalues([4.0, 3.0, 2.0, 1.0, 0.0, 0.0])
    s = cg(definite(M), M @ gaussian(6), rtol=1e-10)
    assert s.converged
    assert s.iterations <= 4


def test_semidefinite_inconsistent_system_is_not_called_solved():
    M = with_eigenvalues([4.0, 3.0, 2.0, 1.0, 0.0, 0.0])
    s = cg(definite(M), gaussian(6), rtol=1e-10)
    assert not s.converged
    assert s.residual > 0.1


def test_zero_right_hand_side_needs_no_iteration_and_forgets_the_start():
    A = definite(with_eigenvalues([1.0, 2.0]))
    for start in (None, torch.ones(2, dtype=F64)):
        s = cg(A, torch.zeros(2, dtype=F64), x0=start)
        assert (s.status, s.iterations, s.residual) == (Status.CONVERGED, 0, 0.0)
        assert not s.x.any()


def test_one_unknown():
    s = cg(definite(torch.tensor([[4.0]], dtype=F64)), torch.tensor([2.0], dtype=F64))
    assert (float(s.x), s.iterations) == (0.5, 1)


def test_nan_products_keep_x_finite():
    A = from_callable(lambda V: V * float("nan"), 3, facts="positive_definite", dtype=F64)
    s = cg(A, torch.ones(3, dtype=F64))
    assert s.status is Status.NONFINITE
    assert s.message == "cg: A @ p in iteration 1 is not finite"
    assert s.x.isfinite().all()


def test_nan_right_hand_side_and_preconditioner_are_named():
    A = identity(from_diagonal(torch.ones(2)).domain)
    s = cg(A, torch.tensor([1.0, float("nan")]))
    assert (s.status, s.iterations) == (Status.NONFINITE, 0)
    assert "b or A @ x0 is not finite" in s.message
    M = from_callable(lambda V: V * float("nan"), 2, facts="positive_definite")
    assert "preconditioned residual" in cg(A, torch.ones(2), preconditioner=M).message


def test_indefinite_preconditioner_is_a_breakdown():
    A, M = definite(with_eigenvalues([1.0, 2.0])), from_diagonal(torch.tensor([-1.0, -1.0], dtype=F64))
    s = cg(A, torch.ones(2, dtype=F64), preconditioner=M)
    assert s.status is Status.BREAKDOWN
    assert "r'Mr = -2" in s.message


def test_limit_and_stop_are_told_apart():
    A, b = definite(with_eigenvalues(geometric(30, 1e3))), gaussian(30)
    s = cg(A, b, max_iterations=5)
    assert (s.status, s.iterations, len(s.history)) == (Status.MAX_ITERATIONS, 5, 6)
    s = cg(A, b, observe=lambda state: state.iteration == 3)
    assert (s.status, s.iterations) == (Status.STOPPED, 3)


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("check_every", [1, 4])
def test_products_are_counted(k, check_every):
    A, count = counting(definite(with_eigenvalues(geometric(40, 100))))
    b = gaussian(40) if k is None else gaussian(40, k)
    for start in (None, torch.ones_like(b)):
        count.products = 0
        s = cg(A, b, x0=start, check_every=check_every)
        assert s.products == count.total
        assert s.products == (s.iterations + 1 + (start is not None)) * (k or 1)


def test_check_every_saves_decisions_and_changes_no_digit():
    A, B = definite(with_eigenvalues(geometric(40, 100))), gaussian(40, 3)
    B[:, 1] = 0
    reference = cg(A, B)
    for check_every in (2, 7, 1000):
        s = cg(A, B, check_every=check_every)
        assert torch.equal(s.x, reference.x)
        assert s.converged
        assert reference.iterations <= s.iterations < reference.iterations + min(check_every, 361)
    bent = definite(with_eigenvalues([3.0, 2.0, 1.0, -1.0]))
    first, late = cg(bent, gaussian(4)), cg(bent, gaussian(4), check_every=10)
    assert late.status is Status.INDEFINITE
    assert torch.equal(first.direction, late.direction)


def test_block_columns_are_independent_systems():
    A, B = definite(with_eigenvalues(geometric(40, 100))), gaussian(40, 4)
    B[:, 2] *= 1e-6
    s = cg(A, B, rtol=1e-9)
    assert s.converged
    assert ((B - A @ s.x).square().sum(0) <= 1e-18 * B.square().sum(0)).all()
    early = cg(A, B, max_iterations=8)
    for j in range(4):
        assert torch.allclose(early.x[:, j], cg(A, B[:, j], max_iterations=8).x, rtol=1e-9)
    assert cg(A, B[:, :0]).x.shape == (40, 0)


def test_preconditioning_is_the_transformed_problem():
    M, b = with_eigenvalues(geometric(30, 1e3)), gaussian(30)
    d = torch.linspace(1, 3, 30, dtype=F64)
    plain, preconditioned = [], []
    cg(definite(d[:, None] * M * d), d * b, observe=lambda s: bool(plain.append(d * s.x)), max_iterations=6)
    precondition = from_diagonal(d**2)
    cg(
        definite(M), b, preconditioner=precondition,
        observe=lambda s: bool(preconditioned.append(s.x)), max_iterations=6,
    )  # fmt: skip
    assert torch.allclose(torch.stack(plain), torch.stack(preconditioned), rtol=1e-8)


def test_exact_inverse_as_preconditioner_takes_one_iteration():
    M = with_eigenvalues(geometric(20, 1e4))
    assert cg(definite(M), gaussian(20), preconditioner=definite(torch.linalg.inv(M))).iterations == 1


@pytest.mark.parametrize("check_every", [1, 3])
def test_resumed_run_equals_the_uninterrupted_one(check_every):
    A, b = definite(with_eigenvalues(geometric(40, 1e3))), gaussian(40)
    whole, kept = cg(A, b, check_every=check_every), []
    cg(A, b, check_every=check_every, observe=lambda s: bool(kept.append(s)) or s.iteration >= 9)
    s = cg(A, b, check_every=check_every, resume=pickle.loads(pickle.dumps(kept[-1])))
    assert torch.equal(s.x, whole.x)
    assert (s.iterations, s.products, s.history) == (whole.iterations, whole.products, whole.history)


def test_resume_refuses_another_problem():
    A, b = definite(with_eigenvalues(geometric(10, 10))), gaussian(10)
    kept = []
    cg(A, b, observe=lambda s: bool(kept.append(s)))
    with pytest.raises(ValueError, match=r"cg: resume must be a state of the same problem, got one of cg / R\^10"):
        cg(A, 2 * b, resume=kept[0])


def test_dict_in_flat_vector_out():
    space = Space(("w", "b"), ((2,), (1,)), F64)
    A = from_diagonal(torch.tensor([1.0, 2.0, 4.0], dtype=F64), domain=space)
    b = {"w": torch.tensor([1.0, 2.0], dtype=F64), "b": torch.tensor([2.0], dtype=F64)}
    s = cg(A, b, rtol=1e-12)
    assert torch.allclose(s.x, torch.tensor([1.0, 1.0, 0.5], dtype=F64))
    assert torch.equal(cg(A, b, x0=space.unflatten(s.x)).x, s.x)


def test_start_must_have_the_shape_of_b():
    A = definite(torch.eye(3))
    with pytest.raises(ValueError, match=r"cg: x0 must have the shape of b \(3,\), got \(3, 1\)"):
        cg(A, torch.ones(3), x0=torch.ones(3, 1))


def test_inputs_are_left_alone():
    A, b, start = definite(with_eigenvalues(geometric(10, 10))), gaussian(10), gaussian(10, seed=1)
    copies = b.clone(), start.clone()
    cg(A, b, x0=start)
    assert torch.equal(b, copies[0])
    assert torch.equal(start, copies[1])
