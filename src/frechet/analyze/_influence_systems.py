"""The linear systems of influence functions: (H + damping I) u = v, exactly or by an approximation of H.

    gauss_newton, hessian    solved by products to a tolerance
    kfac, ekfac              closed form, layer by layer, penalties left out
    arnoldi                  H restricted to its `rank` largest eigenpairs: u = U diag(1 / (values + damping)) U'v
    nystrom                  a random low-rank approximation of H, inverted by Woodbury's identity

For all of them the relative residual with the exact damped Gauss-Newton matrix tells what the approximation is worth.

**Source.** R. Grosse et al. (2023), Studying large language model generalization with influence functions, arXiv
2308.03296 (EK-FAC); A. Schioppa, P. Zablotskaia, D. Vilar, A. Sokolov (2022), Scaling up influence functions, arXiv
2112.03052 (Arnoldi); R. Hataya, M. Yamada (2023), Nyström method for accurate and scalable implicit differentiation,
arXiv 2302.09726.
**Differs from the source.** (1) Eigenpairs by Lanczos with restarts, each with a residual. (2) Damping in the subspace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from frechet.linalg import Status, eigsh, nystrom, solve
from frechet.objective import Objective
from frechet.operators import Fact, LinearOperator, from_factors, identity, inverse
from frechet.operators.derivatives import gauss_newton, hessian
from frechet.operators.derivatives._kfac import kfac

Curvature = Literal["gauss_newton", "hessian", "kfac", "ekfac", "arnoldi", "nystrom"]
CURVATURES = ("gauss_newton", "hessian", "kfac", "ekfac", "arnoldi", "nystrom")


@dataclass(frozen=True, eq=False)
class Solved:
    """The solutions ``(n, k)`` and how they were found."""

    U: Tensor
    residual: float  # largest relative one, with the curvature that was asked for
    status: Status
    message: str
    products: int


@dataclass(frozen=True, eq=False)
class Systems:
    """A curvature with its damping: the operator itself, or an approximate inverse of it."""

    name: str
    forward: LinearOperator | None  # H + damping I
    backward: LinearOperator | None  # an inverse
    exact: LinearOperator  # the damped Gauss-Newton matrix
    products: int  # spent on the approximation

    def solve(self, V: Tensor, rtol: float, max_iterations: int | None) -> Solved:
        """The solutions for the columns of V."""
        if self.backward is not None:
            return Solved(self.backward @ V, 0.0, Status.CONVERGED, "closed form", self.products)
        A, space = self.forward, self.exact.domain
        assert A is not None  # one of the two is there
        together = Fact.POSITIVE_DEFINITE in A.facts
        given = [V] if together else list(V.T)
        found = [solve(A, v, rtol=rtol, max_iterations=max_iterations) for v in given]
        U = found[0].x if together else torch.stack([s.x for s in found]).T
        worst = max(s.residual / max(float(space.norm(v).max()), 1e-300) for s, v in zip(found, given, strict=True))
        return Solved(U, worst, found[0].status, found[0].message, sum(s.products for s in found))

    def exact_residuals(self, V: Tensor, U: Tensor) -> Tensor:
        """|v - (G + damping I) u| / |v| for each column, float64."""
        space = self.exact.domain
        return (space.norm(V - self.exact @ U).double() / space.norm(V).double().clamp_min(1e-300)).cpu()


def systems_of(
    what: str,
    objective: Objective,
    curvature: Curvature | LinearOperator,
    damping: float,
    x: Tensor,
    rank: int | None,
    seed: int | None,
) -> Systems:
    """The systems with a curvature; raises for one that is not known, or whose rank or seed is missing."""
    G = gauss_newton(objective, x=x)
    exact = G + damping * identity(G.domain) if damping else G
    if isinstance(curvature, LinearOperator):
        return Systems("the given operator", _damped(curvature, damping), None, exact, 0)
    if curvature in ("arnoldi", "nystrom"):
        if rank is None or seed is None:
            raise ValueError(f"{what}: curvature={curvature!r} needs rank= and seed=, got rank={rank} and seed={seed}")
        if not damping > 0:
            raise ValueError(f"{what}: curvature={curvature!r} needs damping > 0, got {damping}")
        if curvature == "nystrom":
            return Systems("Nyström", None, nystrom(G, rank=rank, damping=damping, seed=seed), exact, rank)
        pairs = eigsh(G, rank, seed=seed)
        scaled = pairs.vectors / (pairs.values.clamp_min(0) + damping).sqrt().to(pairs.vectors)
        return Systems("Arnoldi", None, from_factors(scaled, domain=G.domain), exact, pairs.products)
    match curvature:
        case "gauss_newton":
            return Systems("Gauss-Newton", exact, None, exact, 0)
        case "hessian":
            return Systems("Hessian", _damped(hessian(objective, x=x), damping), None, exact, 0)
        case "kfac" | "ekfac":
            K = kfac(objective, kind="gauss_newton", corrected=curvature == "ekfac", x=x)
            return Systems(curvature.upper(), None, inverse(_damped(K, damping)), exact, 0)
        case _:
            known = ", ".join(map(repr, CURVATURES))
            raise ValueError(f"{what}: curvature must be {known} or an operator, got {curvature!r}")


def _damped(H: LinearOperator, damping: float) -> LinearOperator:
    return H + damping * identity(H.domain) if damping else H
