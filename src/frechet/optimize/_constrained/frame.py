"""The variables w = (x, s) of a problem with slacks, their sides, and the rows that join them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.operators._constructors import from_callable
from frechet.operators._operator import LinearOperator
from frechet.optimize._constrained.program import Point, Program
from frechet.optimize._constrained.raw import DenseRows
from frechet.space import Space, euclidean


@dataclass(frozen=True, eq=False)
class Frame:
    """The variables w = (x, s): their sides, the rows that are equalities and those that have slacks."""

    program: Program
    equal: Tensor  # numbers of rows
    slack: Tensor
    L: Tensor
    U: Tensor
    fixed: Tensor  # entries of w whose sides are the same
    space: Space
    codomain: Space

    def C(self, w: Tensor, c: Tensor) -> Tensor:
        n = self.program.space.dim
        return torch.cat([c[self.equal] - self.program.low[self.equal], c[self.slack] - w[n:]])

    def jacobian(self, J: LinearOperator | DenseRows, D: Tensor) -> LinearOperator:
        """dC D."""
        n, order = self.program.space.dim, torch.cat([self.equal, self.slack])
        tail = len(self.slack)

        def push(V: Tensor) -> Tensor:
            V = (V.T * D).T
            out = (J @ V[:n])[order] if len(order) else J.codomain.zeros(V.shape[1])[order]
            if tail:
                out = out.clone()
                out[len(self.equal) :] -= V[n:]
            return out

        def pull(W: Tensor) -> Tensor:
            whole = J.codomain.zeros(W.shape[1])
            whole[order] = W
            out = torch.cat([J.T @ whole, -W[len(self.equal) :]])
            return (out.T * D).T

        return from_callable(push, self.space, self.codomain, rmatmat=pull)

    def whole(self, y: Tensor) -> Tensor:
        """Multipliers of C as multipliers of all rows ``(m,)``."""
        out = torch.zeros_like(self.program.low)
        out[torch.cat([self.equal, self.slack])] = y
        return out


def framed(program: Program) -> Frame:
    open_row = (program.low == -math.inf) & (program.high == math.inf)
    equal = program.low == program.high
    slack = (~equal & ~open_row).nonzero()[:, 0]
    L = torch.cat([program.lower, program.low[slack]])
    U = torch.cat([program.upper, program.high[slack]])
    kept = equal.nonzero()[:, 0]
    device = program.domain.device
    space = euclidean(len(L), torch.float64, device)
    image = euclidean(len(kept) + len(slack), torch.float64, device)
    return Frame(program, kept, slack, L, U, L == U, space, image)


def pushed_inside(v: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`v` moved off its sides: by 1e-2 max(1, |side|), at most by 1e-2 of the width."""
    width = torch.where((low > -math.inf) & (high < math.inf), 1e-2 * (high - low), math.inf)
    from_low = torch.minimum(1e-2 * low.abs().clamp_min(1.0), width)
    from_high = torch.minimum(1e-2 * high.abs().clamp_min(1.0), width)
    above = torch.where(low > -math.inf, low + from_low, -math.inf)
    below = torch.where(high < math.inf, high - from_high, math.inf)
    return torch.minimum(torch.maximum(v, above), below)


def tried(frame: Frame, w: Tensor, step: Tensor) -> tuple[Tensor, float, Tensor] | None:
    """w + step as it is evaluated, f and C there; None where they are not finite."""
    program, n = frame.program, frame.program.space.dim
    x = program.rounded(w[:n] + step[:n], strict=True)
    s = w[n:] + step[n:]
    tail = slice(n, None)
    inside = torch.nextafter(frame.L[tail], frame.U[tail]), torch.nextafter(frame.U[tail], frame.L[tail])
    s = torch.minimum(torch.maximum(s, inside[0]), inside[1])
    values = program.values(x)
    if values is None:
        return None
    moved = torch.cat([x, s])
    return moved, values.f, frame.C(moved, values.c)


def slack_reset(frame: Frame, w: Tensor, point: Point) -> Tensor:
    """Slacks with one side follow their rows inwards: the barrier and norm(C) both fall."""
    n = frame.program.space.dim
    c, s, L, U = point.c[frame.slack], w[n:], frame.L[n:], frame.U[n:]
    s = torch.where(U.isinf(), torch.maximum(s, c), torch.where(L.isinf(), torch.minimum(s, c), s))
    return torch.cat([w[:n], s])


def row_multipliers(frame: Frame, y: Tensor, zL: Tensor, zU: Tensor) -> Tensor:
    """Multipliers of all rows: of those with slacks, by the multipliers of their sides."""
    e, n = len(frame.equal), frame.program.space.dim
    return frame.whole(torch.cat([y[:e], (zU - zL)[n:]]))


def pulled_back(frame: Frame, J: LinearOperator | DenseRows, y: Tensor) -> Tensor:
    """dC' y."""
    whole = frame.whole(y)
    return torch.cat([J.T @ whole, -y[len(frame.equal) :]])
