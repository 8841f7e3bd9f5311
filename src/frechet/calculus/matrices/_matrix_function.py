"""Functions of matrices: any f of symmetric ones, and exp, log and square root of general ones too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from frechet.calculus.matrices._divided_differences import Scalar, smooth, square_root
from frechet.calculus.matrices._general import Evaluator, GeneralFunction, exponential, logarithm, root
from frechet.calculus.matrices._schur_parlett import analytic
from frechet.calculus.matrices._symmetric import SymmetricFunction
from frechet.errors import NotDifferentiable

MatrixMap = Callable[[Tensor], Tensor]
Named = Literal["exp", "log", "sqrt"]
SCALARS: dict[str, Scalar] = {
    "exp": smooth("expm", torch.exp),
    "log": smooth("logm", torch.log),
    "sqrt": square_root(),
}
EVALUATORS: dict[str, Evaluator] = {"exp": exponential(), "log": logarithm(), "sqrt": root()}


def matrix_function(f: Callable[[Tensor], Tensor] | Named, *, symmetric: bool = True) -> MatrixMap:
    """Return the function A -> f(A) of matrices, differentiable in reverse and forward mode and under vmap.

    First and second derivatives are exact where eigenvalues are repeated or close; a general matrix has all orders. A
    symmetric matrix may lie where f has no derivative, as the square root at eigenvalue 0. Losses that leave this block
    alone then have their gradient, and others are refused.

    Args:
        f: a function of a tensor, entry by entry, that is smooth on the eigenvalues and between those that are close;
            or ``"exp"``, ``"log"``, ``"sqrt"``. For general matrices a function must be analytic around the eigenvalues
            and take complex tensors.
        symmetric: whether A is symmetric. The derivative is then along symmetric matrices, and the gradient symmetric.

    Returns:
        A function of real matrices ``(..., n, n)`` in float32 or float64.

    Example:
        >>> import torch
        >>> from frechet.calculus.matrices import matrix_function
        >>> A = torch.eye(3, dtype=torch.float64).requires_grad_()  # three equal eigenvalues
        >>> matrix_function(torch.sin)(A).sum().backward()
        >>> torch.allclose(A.grad, torch.tensor(1.0, dtype=torch.float64).cos())
        True
    """
    if isinstance(f, str) and f not in SCALARS:
        raise ValueError(f"matrix_function: f must be 'exp', 'log', 'sqrt' or a function, got {f!r}")
    if not isinstance(f, str) and not callable(f):
        raise TypeError(f"matrix_function: f must be a function of a tensor, got {type(f).__name__}")
    scalar = SCALARS[f] if isinstance(f, str) else smooth("matrix_function", f)
    evaluator = EVALUATORS[f] if isinstance(f, str) else analytic("matrix_function", f)

    def applied(A: Tensor) -> Tensor:
        require_square("matrix_function", A)
        _require_pointwise(scalar.value, A if symmetric else A.to(torch.complex128))
        return SymmetricFunction.apply(scalar, A)[0] if symmetric else GeneralFunction.apply(evaluator, A)

    return applied


def expm(A: Tensor, *, symmetric: bool = False) -> Tensor:
    """Return the exponential of matrices, differentiable to any order, or twice where `symmetric`.

    Args:
        A: real matrices ``(..., n, n)``.
        symmetric: whether A is symmetric; one eigendecomposition then serves value and derivatives.

    Example:
        >>> import torch
        >>> from frechet.calculus.matrices import expm
        >>> expm(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        tensor([[1., 1.],
                [0., 1.]])
    """
    return _named("exp", "expm", A, symmetric)


def logm(A: Tensor, *, symmetric: bool = False) -> Tensor:
    """Return the principal logarithm of matrices, differentiable to any order, or twice where `symmetric`.

    Args:
        A: real matrices ``(..., n, n)`` without eigenvalues at 0 and on the negative half line.
        symmetric: whether A is symmetric (positive definite).

    Example:
        >>> import torch
        >>> from frechet.calculus.matrices import expm, logm
        >>> A = torch.tensor([[0.1, 1.0], [-1.0, 0.1]], dtype=torch.float64)
        >>> torch.allclose(logm(expm(A)), A)
        True
    """
    return _named("log", "logm", A, symmetric)


def sqrtm(A: Tensor, *, symmetric: bool = True) -> Tensor:
    """Return the principal square root of matrices, differentiable twice, or to any order where not `symmetric`.

    A semidefinite matrix has a root. Its derivative exists along E where V'E V = 0 for the vectors V of eigenvalue 0,
    and a gradient exists where the loss does not move the root on that block. Others are refused.

    Args:
        A: real matrices ``(..., n, n)``.
        symmetric: whether A is symmetric (positive semidefinite).

    Raises:
        NotDifferentiable: in the backward, at a singular A, for a loss that depends on the root of the block of zeros.

    Example:
        >>> import torch
        >>> from frechet.calculus.matrices import sqrtm
        >>> A = torch.diag(torch.tensor([4.0, 0.0])).requires_grad_()
        >>> sqrtm(A)[0, 0].backward()
        >>> A.grad
        tensor([[0.2500, 0.0000],
                [0.0000, 0.0000]])
    """
    return _named("sqrt", "sqrtm", A, symmetric)


def _named(key: str, name: str, A: Tensor, symmetric: bool) -> Tensor:
    require_square(name, A)
    return SymmetricFunction.apply(SCALARS[key], A)[0] if symmetric else GeneralFunction.apply(EVALUATORS[key], A)


def _require_pointwise(f: Callable[[Tensor], Tensor], like: Tensor) -> None:
    """Refuse an f that is no function of each entry alone, or that reads tensors whose gradient would be lost."""
    found = f(torch.ones(2, dtype=like.dtype, device=like.device))
    if not isinstance(found, Tensor) or found.shape != (2,):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"matrix_function: f must map each entry to a number, got {got} for two; give one as torch.exp"
        )
    if found.requires_grad:
        raise NotDifferentiable(
            "matrix_function: f must be a fixed function, got one that reads a tensor which requires a gradient, and "
            "this would be lost; move the parameter out, as in f(t * A) or t * f(A)"
        )


def require_square(name: str, A: Tensor) -> None:
    """Refuse what is no batch of real square matrices."""
    if not isinstance(A, Tensor):
        raise TypeError(f"{name}: A must be a tensor, got {type(A).__name__}")
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"{name}: A must have shape (..., n, n), got {tuple(A.shape)}")
    require_real(name, "A", A)


def require_real(name: str, what: str, A: Tensor) -> None:
    """Refuse dtypes in which no decomposition is right."""
    if A.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: {what} must be float32 or float64, got {A.dtype}; convert it with {what}.double()")
