import pytest
import torch

from counting import counting
from frechet.errors import NotConverged
from frechet.linalg._result import Status
from frechet.linalg.systems._solve import solve
from frechet.operators._constructors import from_callable, from_diagonal, from_factors, from_matrix, identity, kronecker
from frechet.space import Space
from spectra import F64, gaussian, geometric, with_eigenvalues, with_singular_values


def hidden(M, facts=()):
    """A matrix that shows no structure."""
    return from_callable(lambda V: M @ V, M.shape[1], M.shape[0], rmatmat=lambda U: M.T @ U, facts=facts, dtype=M.dtype)


PD = with_eigenvalues(geometric(30, 100))
INDEFINITE = with_eigenvalues(torch.linspace(-2, 3, 30))
SQUARE = 2 * torch.eye(30, dtype=F64) + gaussian(30, 30) / 30**0.5
TALL = with_singular_values(40, 30, geometric(30, 10))


@pytest.mark.parametrize(
    ("A", "message"),
    [
        (hidden(PD, ["positive_definite"]), "solve by cg (A is positive definite)"),
        (hidden(PD, ["symmetric"]), "solve by minres (A is symmetric)"),
        (hidden(SQUARE), "solve by gmres (A is square)"),
        (hidden(TALL), "solve by lsmr (A is rectangular: least squares): norm(A'r) = "),
        (from_matrix(PD, facts="positive_definite"), "solve by a closed form"),
        (from_matrix(SQUARE), "solve by a closed form"),
        (from_diagonal(torch.linspace(1, 3, 30, dtype=F64)), "solve by a closed form"),
        (from_factors(gaussian(30, 2)) + 0.5 * identity(from_matrix(PD).domain), "solve by a closed form"),
    ],
)
def test_the_facts_choose_and_the_message_says_so(A, message):
    b = gaussian(A.shape[0])
    s = solve(A, b, rtol=1e-9)
    assert s.message.startswith(message)
    assert s.converged
    assert torch.allclose(s.x, torch.linalg.lstsq(A.dense(), b).solution, atol=1e-6)


def test_semidefinite_plus_identity_is_definite_by_its_facts():
    A = hidden(TALL)
    s = solve(A.T @ A + 0.1 * identity(A.domain), gaussian(30))
    assert s.message == "solve by cg (A is positive definite)"


def test_failure_raises_and_carries_the_solution():
    with pytest.raises(NotConverged, match=r"solve by cg .*: stopped with status 'max_iterations' after 2 iter") as e:
        solve(hidden(PD, ["positive_definite"]), gaussian(30), max_iterations=2)
    assert e.value.result.iterations == 2
    with pytest.raises(NotConverged, match=r"solve by minres .*b outside its range, norm\(Ar\) = .* 'singular'") as e:
        solve(hidden(with_eigenvalues([2.0, 1.0, 0.0]), ["symmetric"]), gaussian(3))
    assert e.value.result.status is Status.SINGULAR
    with pytest.raises(NotConverged, match=r"solve by cg .*A is not positive definite, d'Ad/d'd = -"):
        solve(hidden(INDEFINITE, ["positive_definite"]), gaussian(30))


def test_singular_structure_is_solved_iteratively_and_says_why():
    A, b = from_diagonal(torch.tensor([2.0, 1.0, 0.0], dtype=F64)), torch.tensor([2.0, 3.0, 0.0], dtype=F64)
    s = solve(A, b)
    assert torch.allclose(s.x, torch.tensor([1.0, 3.0, 0.0], dtype=F64))
    assert "minres (A is symmetric; no closed form, inverse: A must be nonsingular" in s.message
    with pytest.raises(NotConverged, match="singular"):
        solve(A, torch.ones(3, dtype=F64))


def test_closed_form_residual_is_recomputed_and_counted():
    A = kronecker(from_matrix(PD[:3, :3], facts="positive_definite"), from_matrix(SQUARE[:4, :4]))
    b = gaussian(12, 5)
    s = solve(A, b, rtol=1e-12)
    assert s.residual == pytest.approx(float(torch.linalg.vector_norm(b - A @ s.x, dim=0).max()))
    assert s.products == 5 * len(s.history)


def test_closed_form_is_refined_in_float32():
    M = with_eigenvalues(geometric(30, 1e4)).float()
    A, b = from_matrix(M, facts="positive_definite"), M @ torch.ones(30)
    s = solve(A, b, rtol=1e-6)
    size = float(torch.linalg.vector_norm(b))
    assert s.history[0] > 1e-5 * size  # the rounded inverse alone
    assert s.residual <= 1e-6 * size
    assert s.iterations == 1
    with pytest.raises(NotConverged, match="solve by a closed form: stopped with status 'stagnated'"):
        solve(A, b, rtol=1e-9)


def test_nan_in_a_closed_form_is_nonfinite():
    with pytest.raises(NotConverged, match="nonfinite"):
        solve(from_diagonal(torch.ones(2)), torch.tensor([1.0, float("nan")]))


def test_start_or_preconditioner_asks_for_iterations():
    A, b = from_matrix(PD, facts="positive_definite"), gaussian(30)
    for options in ({"x0": torch.zeros(30, dtype=F64)}, {"preconditioner": from_diagonal(1 / PD.diagonal())}):
        assert solve(A, b, **options).message == "solve by cg (A is positive definite)"
    assert solve(hidden(SQUARE), b, preconditioner=from_matrix(torch.linalg.inv(SQUARE))).iterations == 1
    with pytest.raises(ValueError, match="solve: preconditioner must be None for a rectangular A, got Identity"):
        solve(hidden(TALL), gaussian(40), preconditioner=identity(hidden(TALL).domain))


def test_blocks_zero_and_dicts():
    assert solve(hidden(PD, ["positive_definite"]), gaussian(30, 3)).x.shape == (30, 3)
    assert not solve(from_matrix(PD), torch.zeros(30, dtype=F64)).x.any()
    space = Space(("w", "b"), ((2,), (1,)), F64)
    A = from_diagonal(torch.tensor([1.0, 2.0, 4.0], dtype=F64), domain=space)
    s = solve(A, {"w": torch.ones(2, dtype=F64), "b": torch.ones(1, dtype=F64)})
    assert torch.equal(s.x, torch.tensor([1.0, 0.5, 0.25], dtype=F64))


@pytest.mark.parametrize("facts", [["positive_definite"], ["symmetric"], []])
def test_products_are_counted(facts):
    A, count = counting(hidden(PD, facts))
    assert solve(A, gaussian(30)).products == count.total
