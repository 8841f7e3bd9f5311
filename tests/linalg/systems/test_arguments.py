import numpy as np
import pytest
import torch

from frechet.linalg.systems._cg import cg
from frechet.linalg.systems._gmres import gmres
from frechet.linalg.systems._lsmr import lsmr
from frechet.linalg.systems._minres import minres
from frechet.linalg.systems._solve import solve
from frechet.operators._constructors import from_diagonal, from_matrix, identity

SOLVERS = [cg, minres, gmres, lsmr]
SYMMETRIC = [cg, minres]
A, b = from_diagonal(torch.tensor([1.0, 2.0, 3.0])), torch.ones(3)
wide = from_matrix(torch.ones(2, 3))


@pytest.mark.parametrize("solver", [*SOLVERS, solve])
def test_a_matrix_is_not_an_operator(solver):
    with pytest.raises(TypeError, match=rf"{solver.__name__}: A must be a LinearOperator, got Tensor; wrap a matrix"):
        solver(torch.eye(3), b)


@pytest.mark.parametrize("solver", SYMMETRIC)
def test_symmetry_must_be_a_fact(solver):
    with pytest.raises(
        ValueError, match=r"A must be symmetric, got Matrix R\^3 .* -> R\^2; for least squares use lsmr"
    ):
        solver(wide, torch.ones(2))
    with pytest.raises(
        ValueError, match=r"without that fact; declare facts='symmetric' where it is made, or use gmres"
    ):
        solver(from_matrix(torch.eye(3)), b)


def test_gmres_needs_a_square_operator():
    with pytest.raises(ValueError, match=r"gmres: A must be square on one space, got Matrix .*; for least squares use"):
        gmres(wide, torch.ones(2))


@pytest.mark.parametrize("solver", SOLVERS)
def test_right_hand_sides_are_checked(solver):
    name = solver.__name__
    with pytest.raises(TypeError, match=f"{name}: b must be a tensor or a dict of tensors, got ndarray"):
        solver(A, np.ones(3))
    with pytest.raises(ValueError, match=rf"{name}: b must have shape \(3,\).*, got \(4,\)"):
        solver(A, torch.ones(4))
    with pytest.raises(TypeError, match=rf"{name}: b must be torch.float32, got torch.float64; convert with .to"):
        solver(A, b.double())
    with pytest.raises(ValueError, match=rf"{name}: b must be on cpu, got meta; move it"):
        solver(A, b.to("meta"))


@pytest.mark.parametrize("solver", [minres, gmres, lsmr])
def test_blocks_are_refused_with_the_way_out(solver):
    with pytest.raises(ValueError, match=r"b must be one vector \(3,\), got a block \(3, 2\); loop over its columns"):
        solver(A, torch.ones(3, 2))


@pytest.mark.parametrize("solver", SYMMETRIC)
def test_preconditioners_are_checked(solver):
    name = solver.__name__
    with pytest.raises(TypeError, match=f"{name}: preconditioner must be a LinearOperator, got Tensor"):
        solver(A, b, preconditioner=torch.eye(3))
    with pytest.raises(ValueError, match=rf"{name}: preconditioner must map R\^3 .* to itself, got Identity R\^2"):
        solver(A, b, preconditioner=identity(wide.codomain))
    with pytest.raises(ValueError, match=f"{name}: preconditioner must be symmetric positive definite, got Matrix .*"):
        solver(A, b, preconditioner=from_matrix(torch.eye(3)))


@pytest.mark.parametrize("solver", SOLVERS)
def test_numbers_are_checked(solver):
    name = solver.__name__
    with pytest.raises(ValueError, match=f"{name}: rtol must be a number >= 0, got -1"):
        solver(A, b, rtol=-1)
    with pytest.raises(ValueError, match=f"{name}: atol must be a number >= 0, got nan"):
        solver(A, b, atol=float("nan"))
    with pytest.raises(ValueError, match=f"{name}: max_iterations must be >= 0, got -1"):
        solver(A, b, max_iterations=-1)
    with pytest.raises(ValueError, match="cg: check_every must be >= 1, got 0"):
        cg(A, b, check_every=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_iterations_allowed_still_recomputes_the_residual(solver):
    s = solver(A, b, max_iterations=0)
    assert (s.status, s.iterations) == ("max_iterations", 0)
    assert s.residual == pytest.approx(3**0.5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_start_and_atol(solver):
    s = solver(A, b, x0=torch.tensor([1.0, 0.5, 0.25]), rtol=0.0, atol=0.5)
    assert (s.status, s.iterations) == ("converged", 0)
    assert s.residual == pytest.approx(0.25)
