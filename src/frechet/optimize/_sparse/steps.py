"""Damped and undamped steps min norm(r + J p)^2 + mu norm(D p)^2 of a block Jacobian, by factors or by LSMR.

Everything happens in units in which the columns of J have norm one. An undamped step by factors takes those of a tiny
mu as preconditioner of conjugate gradients on J'J, which need few iterations and leave alone what J does not see.
Without factors the preconditioner of LSMR is the Cholesky factor of each diagonal block of J'J + mu D^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.linalg.systems._lsmr import lsmr
from frechet.operators._constructors import from_callable
from frechet.optimize._least_squares.residual import Route
from frechet.optimize._sparse.block_jacobian import BlockJacobian
from frechet.optimize._sparse.schur import NormalFactor, factored_normal
from frechet.optimize._sparse.structure import WIDEST, Blocks, Structure
from frechet.optimize._sparse.symbolic import Elimination, elimination
from frechet.space import euclidean

LEAST = 1e-10  # mu of the preconditioner: far above the rounding of J'J, whose columns have norm one
BLURRED = {"2-point": 1e-6, "3-point": 1e-9}  # the same for differences: J'J of errors of J is 1e-15, 1e-19
RAISES = 4  # times that it is raised a hundredfold where rounding leaves J'J + mu indefinite
REFINED = 30  # iterations of conjugate gradients, of which a well-conditioned J needs two
SEEN = 1e-3  # of mu: the square of a singular value below which A is taken not to see a direction
EXACT = 1e-6  # the part of the gain that the last of them adds

Chord = Callable[[Tensor, bool], Tensor]


@dataclass(frozen=True, eq=False)
class Steps:
    """How steps are computed for one structure: by the factors of `plan`, or without.

    `least` is the mu of undamped steps. It is larger for a J by differences, whose errors look like directions that r
    depends on a little, and such steps are not refined.
    """

    structure: Structure
    plan: Elimination | None
    least: float = LEAST

    @classmethod
    def of(cls, structure: Structure, factors: bool, route: Route = "columns") -> Steps:
        plan = elimination(structure) if factors else None
        return cls(structure, plan, BLURRED.get(route, LEAST))

    @property
    def name(self) -> str:
        if self.plan is None:
            return "lsmr with the diagonal blocks as preconditioner"
        kind = "dense" if self.plan.dense else "sparse"
        gone = ", ".join(f"'{e.blocks.name}'" if e.blocks.name else "x" for e in self.plan.eliminated)
        if not gone:
            return f"{kind} factors of {self.plan.size} columns"
        return f"{kind} factors of {self.plan.size} columns after elimination of {gone}"

    def solve(
        self, J: BlockJacobian, r: Tensor, D: Tensor, free: Tensor, mu: float, rtol: float
    ) -> tuple[Tensor, int] | None:
        """The step ``(n,)`` on the host in the free columns, and the products of LSMR; None where rounding forbids."""
        inverse = torch.where(free, 1 / D, 0.0).to(r)
        A = J.scaled(inverse)
        if self.plan is None:
            found = _by_lsmr(A, r, free.to(r.device), max(mu, self.least), rtol)
        elif mu > 0:
            factor = factored_normal(self.plan, A, torch.where(free.to(r.device), mu, 1.0).to(r))
            found = None if factor is None else (factor.solve(-A.transposed_times(r)), 0)
        else:
            factor, b = self._least_damped(A, free.to(r.device)), -A.transposed_times(r)
            found = None if factor is None else (_refined(A, factor, b) if self.refines else factor.solve(b), 0)
        if found is None or not bool(found[0].isfinite().all()):
            return None
        return (found[0] * inverse).cpu(), found[1]

    def chord(self, J: BlockJacobian, D: Tensor, free: Tensor) -> Chord | None:
        """The undamped step as a function of the gradient ``(n,)``, by one factorization; None without factors.

        The function is told whether to refine: where steps are repeated, they refine themselves.
        """
        if self.plan is None:
            return None
        inverse = torch.where(free, 1 / D, 0.0).to(J.structure.colors.device)
        A = J.scaled(inverse)
        factor = self._least_damped(A, free.to(inverse.device))

        def step(g: Tensor, refine: bool) -> Tensor:
            assert factor is not None  # by the return below
            b = -g.to(inverse) * inverse
            return ((_refined(A, factor, b) if refine and self.refines else factor.solve(b)) * inverse).cpu()

        return None if factor is None else step

    @property
    def refines(self) -> bool:
        return self.least <= LEAST

    def _least_damped(self, A: BlockJacobian, free: Tensor) -> NormalFactor | None:
        """The factors of A'A + mu for the least mu that rounding allows."""
        assert self.plan is not None  # by the callers
        for k in range(RAISES):
            factor = factored_normal(self.plan, A, torch.where(free, self.least * 100.0**k, 1.0).to(A.values[0]))
            if factor is not None:
                return factor
        return None


def _refined(A: BlockJacobian, factor: NormalFactor, b: Tensor) -> Tensor:
    """A'A s = b by conjugate gradients from the damped step, as long as s'b grows in directions that A sees."""
    s = factor.solve(b)
    As = A.times(s)
    residual = b - A.transposed_times(As)
    total = float((b * s).sum()) - 0.5 * float(As.square().sum())
    z = factor.solve(residual)
    d, rho = z, float((residual * z).sum())
    for _ in range(REFINED):
        Ad = A.times(d)
        curvature = float(Ad.square().sum())
        if not (rho > 0 and curvature > SEEN * rho):
            break
        s = s + rho / curvature * d
        total += (gain := 0.5 * rho / curvature * rho)
        if gain <= EXACT * total:
            break
        residual = residual - rho / curvature * A.transposed_times(Ad)
        z = factor.solve(residual)
        rho, before = float((residual * z).sum()), rho
        d = z + rho / before * d
    return s


def _by_lsmr(A: BlockJacobian, r: Tensor, free: Tensor, mu: float, rtol: float) -> tuple[Tensor, int] | None:
    """LSMR on [A; sqrt(mu) I] R^-1 with R'R the diagonal blocks of A'A + mu.

    Without any mu LSMR would follow, near a solution, directions that A does not see but for rounding.
    """
    m, n, root = A.structure.m, A.structure.n, mu**0.5
    halves = _diagonal_halves(A, torch.where(free, mu, 1.0).to(r))
    if halves is None:
        return None
    domain, image = euclidean(n, torch.float64, r.device), euclidean(m + n, torch.float64, r.device)

    def unscaled(v: Tensor, transposed: bool) -> Tensor:
        """R^-1 v, or R^-T v."""
        out = torch.zeros_like(v)
        for b, half in halves:
            part = slice(b.start, b.start + b.count * b.width)
            block = v[part].view(b.count, b.width, 1)
            out[part] = ((half if transposed else half.mT) @ block).reshape(-1)
        return torch.where(free, out, 0.0)

    def times(V: Tensor) -> Tensor:
        parts = [unscaled(v, False) for v in V.T]
        return torch.stack([torch.cat([A.times(x), root * x]) for x in parts], 1)

    def transposed(U: Tensor) -> Tensor:
        return torch.stack([unscaled(A.transposed_times(u[:m]) + root * u[m:], True) for u in U.T], 1)

    operator = from_callable(times, domain, image, rmatmat=transposed)
    right = torch.cat([-r, r.new_zeros(n)])
    s = lsmr(operator, right, rtol=rtol, max_iterations=4 * min(m, n) + 100)
    return None if s.status is Status.NONFINITE else (unscaled(s.x, False), s.products)


def _diagonal_halves(A: BlockJacobian, shift: Tensor) -> list[tuple[Blocks, Tensor]] | None:
    """L^-1 of the diagonal blocks L L' of A'A + diag(shift); of wide blocks the diagonal alone."""
    structure, found = A.structure, []
    squares = A.squares() + shift
    for i, b in enumerate(structure.blocks):
        part = slice(b.start, b.start + b.count * b.width)
        if not 1 < b.width <= WIDEST:
            narrow = Blocks(b.name, b.start, b.count * b.width, 1, b.rows)
            found.append((narrow, squares[part].rsqrt()[:, None, None]))
            continue
        V = torch.diag_embed(shift[part].view(b.count, b.width))
        for group, values in zip(structure.groups, A.values, strict=True):
            for number, at in group.slots:
                if number == i:
                    J = values[:, :, at : at + b.width]
                    block = (group.columns[:, at].clamp(min=b.start) - b.start) // b.width
                    V.index_add_(0, block, J.mT @ J)
        L, info = torch.linalg.cholesky_ex(V)
        if bool(info.any()):
            return None
        eye = torch.eye(b.width, dtype=V.dtype, device=V.device).expand_as(V)
        found.append((b, torch.linalg.solve_triangular(L, eye, upper=False)))
    return found
