"""The linear systems behind the derivative of a solution: A = dF/dx at the solution, and A' for reverse mode.

    unknowns of a problem <= 64      the dense matrix, by as many products, and its inverse ("dense")
    A positive definite              cg
    A symmetric                      minres
    else                             gmres
    asked for by name                lsmr: of least norm where A is singular

chosen by facts, never on how a run went, and said in the message of the solution. A system that is not solved raises
`NotConverged`, since its solution would be a wrong derivative that nothing shows. Where A is singular the solution is
not isolated. Reverse mode then gives the derivative if the right side lies in the range of A' (a solution set with a
symmetry, and a function that does not see it), else it is refused. Forward mode asks for the motion itself, which
nothing determines, and is refused. lsmr takes the motion of least norm in both.

**Cost.** A keeps one graph of F: a product with A' is one backward of it, with A two, with a symmetric one one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from frechet.linalg._result import Solution, Status
from frechet.linalg.systems._arguments import check_numbers
from frechet.linalg.systems._cg import cg
from frechet.linalg.systems._gmres import gmres
from frechet.linalg.systems._lsmr import lsmr
from frechet.linalg.systems._minres import minres
from frechet.operators._operator import NONE, Fact, LinearOperator
from frechet.operators.derivatives._products import grads
from frechet.space import Space

Method = Literal["auto", "cg", "minres", "gmres", "lsmr", "dense"]
Preconditioner = LinearOperator | Callable[[LinearOperator], LinearOperator]
OPEN = (
    "singular, the solution is not isolated and moves into a direction that the conditions leave open; method='lsmr' "
    "gives the derivative of least norm"
)
DENSE = 64  # unknowns of a problem whose matrix is made


@dataclass(frozen=True, eq=False)
class Rules:
    """How systems are solved."""

    method: Method = "auto"
    preconditioner: Preconditioner | None = None
    rtol: float | None = None
    max_iterations: int | None = None
    batch: bool = False
    strict: bool = True
    observe: Callable[[Solution], object] | None = None

    def checked(self, caller: str) -> Rules:
        if self.method not in Method.__args__:
            raise ValueError(
                f"{caller}: method must be one of {', '.join(map(repr, Method.__args__))}, got {self.method!r}"
            )
        check_numbers(caller, rtol=self.rtol or 0.0, max_iterations=self.max_iterations)
        if self.preconditioner is not None and self.method in ("lsmr", "dense"):
            raise ValueError(f"{caller}: preconditioner must be None with method='{self.method}', got one")
        return self


@dataclass(frozen=True, eq=False, repr=False)
class GraphJacobian(LinearOperator):
    """The Jacobian of outputs with respect to leaves of a graph that is kept."""

    ys: list[Tensor]
    leaves: list[Tensor]
    domain: Space
    codomain: Space
    facts: frozenset[Fact] = NONE

    def _matmat(self, V: Tensor) -> Tensor:
        if Fact.SYMMETRIC in self.facts:
            return self._rmatmat(V)
        with torch.enable_grad():
            u = [torch.zeros_like(y).requires_grad_() for y in self.ys]
            pulled = grads(self.ys, self.leaves, u, create_graph=True)
            rows = [self.codomain.join(grads(pulled, u, self.domain.split(v), retain_graph=True)) for v in V.T]
        return torch.stack(rows).detach().T

    def _rmatmat(self, U: Tensor) -> Tensor:
        return torch.stack(
            [self.domain.join(grads(self.ys, self.leaves, self.codomain.split(u), retain_graph=True)) for u in U.T]
        ).T


def solved(A: LinearOperator, B: Tensor, rules: Rules, what: str, *, transposed: bool = False) -> Tensor:
    """X ``(n, k)`` with A X = B, or A'X = B; raises `NotConverged` for a column that is not solved."""
    rtol = A.domain.eps**0.6 if rules.rtol is None else rules.rtol
    problems = A.domain.shapes[0][0] if rules.batch else 1
    unknowns = A.domain.dim // max(problems, 1)
    method, why = _chosen(A, rules, unknowns)
    if method == "dense":
        found = _dense(A, B, problems, rtol, transposed)
    else:
        M = rules.preconditioner
        M = M if M is None or isinstance(M, LinearOperator) else M(A)
        operator, M = (A.T, None if M is None else M.T) if transposed else (A, M)
        most = rules.max_iterations
        runs = {
            "cg": lambda b: cg(operator, b, preconditioner=M, rtol=rtol, max_iterations=most),
            "minres": lambda b: minres(operator, b, preconditioner=M, rtol=rtol, max_iterations=most),
            "gmres": lambda b: gmres(operator, b, preconditioner=M, rtol=rtol, restart=50, max_iterations=most),
            "lsmr": lambda b: lsmr(operator, b, rtol=rtol, max_iterations=most),
        }
        open_ended = not transposed and method in ("minres", "gmres") and _has_null_vector(operator, M, method)
        found = [_open(runs[method](b)) if open_ended else runs[method](b) for b in B.T]
    X = A.domain.zeros(B.shape[1])
    for j, s in enumerate(found):
        detail = s.message.partition(":")[2]
        said = replace(s, message=f"{what} by {method} ({why}){':' if detail else ''}{detail}")
        if rules.observe is not None:
            rules.observe(said)
        X[:, j] = said.checked().x if rules.strict else said.x
    return X


def _has_null_vector(A: LinearOperator, M: LinearOperator | None, method: str) -> bool:
    """Whether A x = A v has another solution than a random v: then motions of the solution are not determined."""
    space = A.domain
    v = space.random(0, 1)
    b, tight = A @ v, space.eps**0.75
    options = {"preconditioner": M, "rtol": tight, "max_iterations": 4 * space.dim + 100}
    s = minres(A, b, **options) if method == "minres" else gmres(A, b, restart=50, **options)
    if s.status is not Status.CONVERGED:
        return False  # which the solve itself tells
    return float(space.norm(s.x - v)) > space.eps**0.25 * float(space.norm(v))


def _open(s: Solution) -> Solution:
    return replace(s, status=Status.SINGULAR, message=f"{s.message}: {OPEN}")


def _chosen(A: LinearOperator, rules: Rules, unknowns: int) -> tuple[str, str]:
    if rules.method != "auto":
        return rules.method, "asked for"
    if unknowns <= DENSE and rules.preconditioner is None:
        return "dense", f"{unknowns} unknowns" + (" in each problem" if rules.batch else "")
    if Fact.POSITIVE_DEFINITE in A.facts:
        return "cg", "positive definite"
    return ("minres", "symmetric") if Fact.SYMMETRIC in A.facts else ("gmres", "not symmetric")


# --- dense ------------------------------------------------------------------------------------------------------------


def _dense(A: LinearOperator, B: Tensor, problems: int, rtol: float, transposed: bool) -> list[Solution]:
    """By the inverse of each problem's matrix; where that is singular by its pseudo-inverse, if B is in its range."""
    space = A.domain
    if not space.dim:
        return [Solution(b, Status.CONVERGED, 0.0, 0, 0, (), "dense: nothing to solve") for b in B.T]
    K, products = _matrices(A, problems)
    K = K.mT if transposed else K
    inverse, info = torch.linalg.inv_ex(K)
    condition = K.abs().sum(-2).amax(-1) * inverse.abs().sum(-2).amax(-1)
    n = K.shape[-1]
    singular = (info != 0) | ~(condition * n * space.eps < 1)
    if bool(singular.any()):
        inverse = inverse.clone()
        inverse[singular] = _pseudo_inverse(K[singular], n * space.eps)
    found = []
    for b in B.T:
        rhs = _rows(space, b, problems).to(K).unsqueeze(-1)
        X = inverse @ rhs
        X = X + inverse @ (rhs - K @ X)
        left = float((rhs - K @ X).square().sum().sqrt())
        size = float(rhs.square().sum().sqrt())
        worst = float(condition.max()) if condition.numel() else 1.0
        note = f"dense: condition number {worst:.3g}"
        status = Status.CONVERGED
        if not math.isfinite(left):
            status, note = Status.NONFINITE, "dense: the matrix or the right side is not finite"
        elif bool(singular.any()) and not transposed:
            status, note = Status.SINGULAR, f"dense: {OPEN}"
        elif not left <= max(rtol, 1e3 * n * space.eps) * size:
            status = Status.SINGULAR if bool(singular.any()) else Status.STAGNATED
            note = f"dense: {OPEN}" if bool(singular.any()) else f"{note}, too ill-conditioned for rtol"
        elif bool(singular.any()):
            note = "dense: singular, but the right side lies in the range"
        x = _vector(space, X.squeeze(-1).to(B), problems)
        found.append(Solution(x, status, left, 0, products, (), note))
    return found


def _pseudo_inverse(K: Tensor, rtol: float) -> Tensor:
    finite = K.isfinite().all(-1).all(-1)
    found = torch.full_like(K, math.nan)
    found[finite] = torch.linalg.pinv(K[finite], rtol=10 * rtol)
    return found


def _matrices(A: LinearOperator, problems: int) -> tuple[Tensor, int]:
    """The matrix of each problem ``(problems, n, n)`` in float64, all by n products, and the number of products."""
    space = A.domain
    n = space.dim // problems
    units = torch.eye(n, dtype=space.dtype, device=space.device)
    U = torch.stack([_vector(space, e.expand(problems, n), problems) for e in units]).T
    R = A.T @ U
    K = torch.stack([_rows(space, r, problems) for r in R.T], 1)
    K = (K.cpu() if space.device.type == "mps" else K).double()
    if problems > 1:
        v = space.random(0, 0)
        together, alone = (
            A @ v,
            _vector(space, (K @ _rows(space, v, problems).to(K).unsqueeze(-1))[..., 0].to(v), problems),
        )
        if float(space.norm(together - alone)) > 1e3 * n * space.eps * float(space.norm(together)):
            raise ValueError(
                "implicit: the problems of a batch must be independent, got conditions in which one row of axis 0 "
                "depends on another; leave batch out"
            )
    return K, n + (problems > 1)


def _rows(space: Space, v: Tensor, problems: int) -> Tensor:
    """A vector as one row per problem."""
    return torch.cat([b.reshape(problems, -1) for b in space.split(v)], 1)


def _vector(space: Space, rows: Tensor, problems: int) -> Tensor:
    """The vector of one row per problem."""
    sizes = [size // problems for size in space.sizes]
    return space.join(rows.split(sizes, 1))
