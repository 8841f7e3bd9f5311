import pickle
from itertools import pairwise

import pytest
import torch
from scipy.sparse.linalg import lsmr as scipy_lsmr

from counting import counting
from frechet.linalg._result import Status
from frechet.linalg.systems._lsmr import lsmr
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix
from frechet.space import Space, euclidean
from spectra import F64, gaussian, geometric, with_singular_values

TALL = with_singular_values(60, 25, geometric(25, 100))


def size(v):
    return float(torch.linalg.vector_norm(v))


def test_mean_is_the_closed_form_of_a_column_of_ones():
    s = lsmr(from_matrix(torch.ones(3, 1, dtype=F64)), torch.tensor([1.0, 2.0, 6.0], dtype=F64))
    assert float(s.x) == pytest.approx(3.0)
    assert s.residual == pytest.approx(14**0.5)
    assert s.iterations == 1


@pytest.mark.parametrize("damping", [0.0, 0.05, 2.0])
def test_agrees_with_the_normal_equations(damping):
    b = gaussian(60)
    s = lsmr(from_matrix(TALL), b, damping=damping, rtol=1e-12)
    exact = torch.linalg.solve(TALL.T @ TALL + damping**2 * torch.eye(25, dtype=F64), TALL.T @ b)
    assert s.converged
    assert torch.allclose(s.x, exact, rtol=1e-6)
    assert s.residual == pytest.approx(size(b - TALL @ s.x), rel=1e-9)


@pytest.mark.parametrize("damping", [0.0, 0.05])
def test_stopping_rule_holds_for_the_recomputed_residuals(damping):
    b = gaussian(60)
    s = lsmr(from_matrix(TALL), b, damping=damping, rtol=1e-5)
    r = b - TALL @ s.x
    normal = size(TALL.T @ r - damping**2 * s.x)
    total = (size(r) ** 2 + damping**2 * size(s.x) ** 2) ** 0.5
    assert normal <= 1e-5 * (1 + damping**2) ** 0.5 * total  # the largest singular value is 1
    assert f"norm(A'r) = {normal:.3g}" in s.message


def test_estimates_of_the_residual_are_those_of_the_definition():
    b, damping, states = gaussian(60), 0.1, []
    lsmr(from_matrix(TALL), b, damping=damping, observe=lambda s: bool(states.append(s)), max_iterations=15)
    for s in states:
        r = b - TALL @ s.x
        assert s.residual == pytest.approx((size(r) ** 2 + damping**2 * size(s.x) ** 2) ** 0.5, rel=1e-9)
        assert s.normal == pytest.approx(size(TALL.T @ r - damping**2 * s.x), rel=1e-6)


def test_normal_residual_and_residual_never_grow():
    residuals = []
    s = lsmr(from_matrix(TALL), gaussian(60), rtol=1e-10, observe=lambda s: bool(residuals.append(s.residual)))
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(s.history))
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(residuals))


def test_takes_about_as_many_iterations_as_scipy():
    b = gaussian(60)
    theirs = scipy_lsmr(TALL.numpy(), b.numpy(), atol=1e-8, btol=1e-8, maxiter=500)[2]
    assert abs(lsmr(from_matrix(TALL), b, rtol=1e-8).iterations - theirs) <= 5


@pytest.mark.parametrize("distinct", [1, 3])
def test_distinct_singular_values_bound_the_iterations(distinct):
    M = with_singular_values(30, 12, torch.arange(1, distinct + 1).repeat(12)[:12])
    assert lsmr(from_matrix(M), gaussian(30), rtol=1e-10).iterations == distinct


@pytest.mark.parametrize("shape", [(12, 30), (30, 20)])
def test_least_norm_solution_of_a_rank_deficient_problem(shape):
    M, b = with_singular_values(*shape, torch.linspace(1, 3, 8)), gaussian(shape[0])
    s = lsmr(from_matrix(M), b, rtol=1e-12)
    assert s.converged
    assert torch.allclose(s.x, torch.linalg.pinv(M, rtol=1e-10) @ b, atol=1e-9)


def test_symmetric_inconsistent_system_gets_the_pseudo_inverse():
    M = with_singular_values(8, 8, [3.0, 2.0, 1.0])
    M = M @ M.T
    s = lsmr(from_matrix(M, facts="symmetric"), gaussian(8), rtol=1e-12)
    assert torch.allclose(s.x, torch.linalg.pinv(M, rtol=1e-10) @ gaussian(8), atol=1e-9)


def test_start_is_used_and_refused_with_damping():
    A, b = from_matrix(TALL), gaussian(60)
    exact = torch.linalg.lstsq(TALL, b).solution
    assert lsmr(A, b, x0=exact).iterations <= 1  # one, to learn the size of A
    s = lsmr(A, b, x0=gaussian(25, seed=5), rtol=1e-12)
    assert torch.allclose(s.x, exact, rtol=1e-6)
    with pytest.raises(ValueError, match="lsmr: x0 must be None where damping > 0, got a tensor"):
        lsmr(A, b, x0=exact, damping=1.0)
    with pytest.raises(ValueError, match="lsmr: damping must be a number >= 0, got -1"):
        lsmr(A, b, damping=-1)


def test_right_preconditioning_by_composition():
    scale = torch.logspace(0, 4, 25, dtype=F64)
    A, P, b = from_matrix(TALL * scale), from_diagonal(1 / scale), gaussian(60)
    plain, s = lsmr(A, b, rtol=1e-8), lsmr(A @ P, b, rtol=1e-8)
    assert s.iterations < plain.iterations / 2
    assert size(P @ s.x - torch.linalg.lstsq(TALL * scale, b).solution) < 1e-4


def test_zero_cases():
    A = from_matrix(TALL)
    s = lsmr(A, torch.zeros(60, dtype=F64), x0=torch.ones(25, dtype=F64))
    assert (s.status, s.iterations) == (Status.CONVERGED, 0)
    assert not s.x.any()
    s = lsmr(from_matrix(torch.zeros(4, 2)), torch.ones(4), damping=0.5)
    assert (s.status, s.residual) == (Status.CONVERGED, 2.0)
    s = lsmr(from_matrix(torch.tensor([[2.0]])), torch.ones(1))
    assert (float(s.x), s.iterations) == (0.5, 1)


def test_right_hand_side_orthogonal_to_the_range_has_the_solution_zero():
    s = lsmr(from_matrix(torch.tensor([[1.0], [1.0]], dtype=F64)), torch.tensor([1.0, -1.0], dtype=F64))
    assert (s.status, float(s.x), s.iterations) == (Status.CONVERGED, 0.0, 0)


def test_condition_limit_is_singular():
    s = lsmr(from_matrix(TALL), gaussian(60), rtol=1e-12, condition_limit=5.0)
    assert s.status is Status.SINGULAR
    assert "the condition number reached its limit 5" in s.message


def test_unreachable_tolerance_is_stagnated():
    A = from_matrix(with_singular_values(60, 25, geometric(25, 3)).float())
    s = lsmr(A, gaussian(60).float(), rtol=1e-9)
    assert s.status is Status.STAGNATED
    assert "the recomputed residuals are" in s.message


def test_nan_limit_and_stop():
    A = from_callable(lambda V: V * float("nan"), 3, rmatmat=lambda U: U)
    s = lsmr(A, torch.ones(3))
    assert s.status is Status.NONFINITE
    assert "a product in iteration 1 is not finite" in s.message
    assert s.x.isfinite().all()
    assert "b, A @ x0 or A'b is not finite" in lsmr(A, torch.full((3,), float("nan"))).message
    assert lsmr(from_matrix(TALL), gaussian(60), max_iterations=4).status is Status.MAX_ITERATIONS
    s = lsmr(from_matrix(TALL), gaussian(60), observe=lambda s: s.iteration == 4)
    assert (s.status, s.iterations) == (Status.STOPPED, 4)


@pytest.mark.parametrize("options", [{}, {"damping": 0.3}, {"x0": torch.ones(25, dtype=F64)}, {"max_iterations": 3}])
def test_products_are_counted(options):
    A, count = counting(from_matrix(TALL))
    s = lsmr(A, gaussian(60), **options)
    assert s.products == count.total
    assert count.transposed == s.iterations + 2


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_resumed_run_equals_the_uninterrupted_one(damping):
    A, b, kept = from_matrix(TALL), gaussian(60), []
    whole = lsmr(A, b, damping=damping)
    lsmr(A, b, damping=damping, observe=lambda s: bool(kept.append(s)) or s.iteration == 6)
    s = lsmr(A, b, damping=damping, resume=pickle.loads(pickle.dumps(kept[-1])))
    assert torch.equal(s.x, whole.x)
    assert (s.iterations, s.products, s.history) == (whole.iterations, whole.products, whole.history)
    assert s.message == whole.message
    with pytest.raises(ValueError, match=r"lsmr: resume must be a state of the same problem, got .* damping = "):
        lsmr(A, b, damping=damping + 1, resume=kept[-1])


def test_dict_right_hand_side():
    image = Space(("p", "q"), ((1,), (2,)), F64)
    A = from_matrix(torch.ones(3, 1, dtype=F64), domain=euclidean(1, F64), codomain=image)
    assert float(lsmr(A, {"p": torch.ones(1, dtype=F64), "q": torch.tensor([2.0, 6.0], dtype=F64)}).x) == pytest.approx(
        3
    )


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e-150])
def test_an_exhausted_space_ends_the_run_at_the_least_norm_solution(scale):
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        m, n, r = 2 + seed % 4, 1 + seed % 5, seed % 3
        A = torch.randn(m, r, generator=draw, dtype=F64) @ torch.randn(r, n, generator=draw, dtype=F64)
        b = torch.randn(m, generator=draw, dtype=F64)
        tight, usual = (lsmr(from_matrix(scale * A), b, rtol=rtol) for rtol in (0.0, 1e-10))
        assert tight.status in (Status.CONVERGED, Status.STAGNATED, Status.SINGULAR, Status.MAX_ITERATIONS)
        assert usual.converged
        expected = torch.linalg.pinv(A, rtol=1e-12) @ b
        assert torch.allclose(scale * usual.x, expected, rtol=1e-6, atol=1e-8)
