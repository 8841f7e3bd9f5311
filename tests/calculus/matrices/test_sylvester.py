import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from frechet.calculus.matrices import kronecker_solve, lyapunov, sylvester

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


SOLVES = {
    "sylvester": (sylvester, [(4, 4), (3, 3), (4, 3)]),
    "sylvester broadcast": (sylvester, [(2, 2), (3, 3), (2, 2, 3)]),
    "sylvester one right side": (sylvester, [(2, 2, 2), (3, 3), (2, 3)]),
    "lyapunov": (lyapunov, [(3, 3), (3, 3)]),
    "kronecker": (kronecker_solve, [(2, 3, 3), (2, 2), (3, 2)]),
}


@pytest.mark.parametrize("name", SOLVES)
def test_solutions_are_differentiable_twice_in_all_that_is_given(name):
    f, shapes = SOLVES[name]
    given = tuple(randn(*s, seed=i).requires_grad_() for i, s in enumerate(shapes))
    assert gradcheck(f, given, check_forward_ad=True)
    assert gradgradcheck(f, given, fast_mode=True)


def test_solutions_solve():
    A, B, C = randn(4, 4), randn(3, 3, seed=1), randn(2, 4, 3, seed=2)
    X = sylvester(A, B, C)
    torch.testing.assert_close(A @ X + X @ B, C, rtol=1e-11, atol=1e-11)
    X = lyapunov(A, C @ C.mT)
    torch.testing.assert_close(A @ X + X @ A.mT, C @ C.mT, rtol=1e-11, atol=1e-11)
    X = kronecker_solve(A, B, C)
    torch.testing.assert_close(torch.kron(A, B) @ X[0].reshape(-1), C[0].reshape(-1), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("solve", [sylvester, kronecker_solve])
@pytest.mark.parametrize("leading", [(), (4,)])
def test_vmap_agrees_with_a_loop(solve, leading):
    A, B, C = randn(2, 3, 3), randn(2, 2), randn(2, *leading, 3, 2, seed=2)

    def loss(a, b, c):
        return solve(a, b, c).pow(2).sum()

    go = torch.func.grad(loss, argnums=(0, 1))
    found = torch.func.vmap(go, in_dims=(0, None, 0))(A, B, C)
    for i in range(2):
        for f, r in zip(found, go(A[i], B, C[i]), strict=True):
            torch.testing.assert_close(f[i], r)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sylvester(torch.eye(2), -torch.eye(2), torch.ones(2, 2)), "no eigenvalue in common"),
        (lambda: lyapunov(torch.diag(torch.tensor([1.0, -1.0])), torch.eye(2)), "no eigenvalue in common"),
        (lambda: sylvester(torch.eye(2), torch.eye(3), torch.ones(3, 2)), r"C must have shape \(..., 2, 3\)"),
        (lambda: sylvester(torch.eye(2), torch.ones(2, 3), torch.ones(2, 3)), r"shape \(..., n, n\)"),
        (lambda: sylvester(torch.eye(2), torch.eye(2), torch.full((2, 2), torch.nan)), "must be finite"),
        (lambda: kronecker_solve(torch.eye(2), torch.eye(2), torch.ones(3, 2)), "C must have shape"),
    ],
)
def test_what_has_no_unique_solution_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    "shapes", [((0, 0), (2, 2), (0, 2)), ((2, 2), (0, 0), (2, 0)), ((3, 2, 2), (2, 2), (0, 1, 2, 2))]
)
def test_empty_equations_have_empty_solutions(shapes):
    assert sylvester(*(torch.zeros(s) for s in shapes)).numel() == 0
