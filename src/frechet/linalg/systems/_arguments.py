"""The arguments of a linear system A x = b, checked in one wording for every solver.

Only `b` and `x0` are converted: a dict shaped like the space's blocks becomes the flat vector ``(n,)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from frechet.operators._operator import Fact, LinearOperator
from frechet.space import Space

Fingerprint = tuple[str, ...]


def check_operator_type(method: str, A: LinearOperator) -> None:
    """A must be an operator, not a matrix."""
    if not isinstance(A, LinearOperator):
        raise TypeError(
            f"{method}: A must be a LinearOperator, got {type(A).__name__}; wrap a matrix with from_matrix(A)"
        )


def check_square(method: str, A: LinearOperator) -> None:
    """A must map a space to itself."""
    check_operator_type(method, A)
    if A.domain != A.codomain:
        raise ValueError(f"{method}: A must be square on one space, got {A!r}; for least squares use lsmr(A, b)")


def check_symmetric(method: str, A: LinearOperator) -> None:
    """A must carry the fact `symmetric`."""
    check_operator_type(method, A)
    if Fact.SYMMETRIC in A.facts:
        return
    if A.domain != A.codomain:
        raise ValueError(f"{method}: A must be symmetric, got {A!r}; for least squares use lsmr(A, b)")
    raise ValueError(
        f"{method}: A must be symmetric, got {A!r} without that fact; declare facts='symmetric' where it is made, "
        "or use gmres(A, b)"
    )


def check_preconditioner(method: str, A: LinearOperator, M: LinearOperator | None, *, symmetric: bool) -> None:
    """A preconditioner must be an operator on the domain of A."""
    if M is None:
        return
    if not isinstance(M, LinearOperator):
        raise TypeError(f"{method}: preconditioner must be a LinearOperator, got {type(M).__name__}")
    if M.domain != A.domain or M.codomain != A.domain:
        raise ValueError(f"{method}: preconditioner must map {A.domain!r} to itself, got {M!r}")
    if symmetric and Fact.SYMMETRIC not in M.facts:
        raise ValueError(
            f"{method}: preconditioner must be symmetric positive definite, got {M!r} without that fact; declare "
            "facts='positive_definite' where it is made"
        )


def check_numbers(
    method: str, *, rtol: float, atol: float = 0.0, max_iterations: int | None = None, check_every: int = 1
) -> None:
    """Tolerances must be non-negative numbers, counts whole numbers."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{method}: {name} must be a number >= 0, got {value}")
    if max_iterations is not None and max_iterations < 0:
        raise ValueError(f"{method}: max_iterations must be >= 0, got {max_iterations}")
    if check_every < 1:
        raise ValueError(f"{method}: check_every must be >= 1, got {check_every}")


def check_start(method: str, x0: object) -> None:
    """A start must be a tensor, or a dict of tensors, of one floating-point dtype."""
    blocks = {"": x0} if isinstance(x0, Tensor) else x0
    if not isinstance(blocks, Mapping):
        named = isinstance(x0, nn.Module) or (isinstance(x0, list | tuple) and any(isinstance(v, Tensor) for v in x0))
        instead = "dict(model.named_parameters())" if named else "torch.tensor(x0)"
        raise TypeError(f"{method}: x0 must be a tensor or a dict of tensors, got {type(x0).__name__}; write {instead}")
    first: tuple[object, torch.dtype] | None = None
    for name, block in blocks.items():
        where = "" if isinstance(x0, Tensor) else f" in block '{name}'"
        if not isinstance(block, Tensor):
            raise TypeError(
                f"{method}: x0 must be a tensor or a dict of tensors, got {type(block).__name__}{where}; write "
                f"torch.tensor({block!r:.20}, dtype=torch.float64)"
            )
        if not block.dtype.is_floating_point:
            raise TypeError(
                f"{method}: x0 must have a floating-point dtype, got {block.dtype}{where}; "
                + ("split it into torch.view_as_real(x0)" if block.is_complex() else "write x0.double()")
            )
        first = first or (name, block.dtype)
        if block.dtype != first[1]:
            raise TypeError(
                f"{method}: x0 must have one dtype, got {first[1]} in block '{first[0]}' and {block.dtype}{where}; "
                "write .double() or .float() on each"
            )


def vector(method: str, name: str, space: Space, v: Tensor | Mapping[str, Tensor], *, block: bool = False) -> Tensor:
    """`v` as a flat vector ``(n,)`` of `space`, or as a block ``(n, k)`` where `block` allows one."""
    if isinstance(v, Mapping):
        v = space.flatten(v)
    if not isinstance(v, Tensor):
        raise TypeError(f"{method}: {name} must be a tensor or a dict of tensors, got {type(v).__name__}")
    if v.ndim == 2 and not block and v.shape[0] == space.length:
        raise ValueError(
            f"{method}: {name} must be one vector ({space.length},), got a block {tuple(v.shape)}; loop over its "
            "columns"
        )
    wanted = f"({space.length},)" if not block else f"({space.length},) or ({space.length}, k)"
    if v.ndim not in (1, 2) or v.shape[0] != space.length:
        raise ValueError(f"{method}: {name} must have shape {wanted}, got {tuple(v.shape)}")
    if v.dtype != space.dtype:
        raise TypeError(f"{method}: {name} must be {space.dtype}, got {v.dtype}; convert with .to({space.dtype})")
    if v.device != space.device:
        raise ValueError(f"{method}: {name} must be on {space.device}, got {v.device}; move it with .to(...)")
    return v.detach()


def check_resume(method: str, found: Fingerprint, expected: Fingerprint) -> None:
    """A state may only continue the run that it was taken from."""
    if found != expected:
        raise ValueError(
            f"{method}: resume must be a state of the same problem, got one of {' / '.join(found)}; "
            f"this one is {' / '.join(expected)}"
        )


def fingerprint(
    method: str, A: LinearOperator, norm_b: list[float], M: LinearOperator | None, *more: str
) -> Fingerprint:
    """What a state shares with the run that resumes it: the method, the spaces, the size of b, the preconditioner."""
    sizes = ", ".join(f"{s:.6e}" for s in norm_b)
    kind = "plain" if M is None else f"preconditioned by {type(M).__name__}"
    return (method, f"{A.domain!r} -> R^{A.codomain.dim}", f"norm(b) = {sizes}", kind, *more)
