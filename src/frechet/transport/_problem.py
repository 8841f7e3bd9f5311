"""The problem of entropic transport as the algorithms see it: masses positive, with sum one, cost inf where forbidden.

    min <C, P> + epsilon KL(P | a b'/m)    over P >= 0 with P 1 = a, P' 1 = b, m = sum(a) = sum(b)

Rows and columns without mass are left out here and get their potentials back at the end, by the same formula as all
others: f_i = -epsilon log(sum_j b_j exp((g_j - C_ij) / epsilon) / m), which asks for no mass in row i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.transport._feasible import Pattern, pattern

SEEN_THROUGH = (
    "the result carries no graph; use transport_value or transport_plan, which autograd and torch.func see through"
)


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows and columns with mass. `cost` is inf on pairs without mass in every plan."""

    cost: Tensor  # (n, m)
    a: Tensor  # (n,), positive, sum one
    b: Tensor  # (m,)
    epsilon: float
    pattern: Pattern | None  # None where every pair is allowed
    rounding: float  # of a marginal error, relative to the mass: what the dtype can tell at this epsilon

    @property
    def T(self) -> Problem:
        pattern = None if self.pattern is None else self.pattern.T
        return Problem(self.cost.T.contiguous(), self.b, self.a, self.epsilon, pattern, self.rounding)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the user gave, checked; b has exactly the sum of a."""

    cost: Tensor
    a: Tensor
    b: Tensor
    epsilon: float
    mass: float
    rows: Tensor  # indices with mass
    columns: Tensor


def checked(
    method: str, cost: Tensor, a: Tensor | None, b: Tensor | None, epsilon: float, *, graph: bool = False
) -> Inputs:
    """The arguments of `method`, or the error that says what is wrong with them."""
    _check_cost(method, cost)
    if not 0 < epsilon < math.inf:
        raise ValueError(f"{method}: epsilon must be a number > 0, got {epsilon}")
    if not graph:
        for name, x in (("cost", cost), ("a", a), ("b", b)):
            if isinstance(x, Tensor):
                check_plain(method, name, x)
    n, m = cost.shape
    masses = [_mass(method, name, x, cost, k) for name, x, k in (("a", a, n), ("b", b, m))]
    cost, (a, b) = cost.detach(), masses
    bad = torch.isnan(cost) | (cost == -math.inf)
    if bool(bad.any()):
        i, j = (int(k) for k in bad.nonzero()[0])
        raise NonFinite(
            f"{method}: cost must be finite, or inf where a pair is forbidden, got {float(cost[i, j])} at ({i}, {j})"
        )
    total, other = float(a.sum()), float(b.sum())
    if abs(total - other) > math.sqrt(torch.finfo(cost.dtype).eps) * max(total, other):
        raise ValueError(
            f"{method}: a and b must have the same sum, got {total:.9g} and {other:.9g}; divide each by its sum"
        )
    if total <= 0:
        raise ValueError(f"{method}: a must have a positive sum, got {total:.9g}")
    rows, columns = (x.nonzero()[:, 0] for x in (a, b))
    return Inputs(cost, a, b * (total / other), epsilon, total, rows, columns)


def _check_cost(method: str, cost: Tensor) -> None:
    if not isinstance(cost, Tensor):
        raise TypeError(f"{method}: cost must be a tensor, got {type(cost).__name__}")
    if cost.ndim != 2 or not cost.numel():
        raise ValueError(f"{method}: cost must have shape (n, m) with n, m >= 1, got {tuple(cost.shape)}")
    if not cost.dtype.is_floating_point:
        raise TypeError(f"{method}: cost must be of a floating-point type, got {cost.dtype}")


def check_plain(method: str, name: str, x: Tensor) -> None:
    """Raise where autograd or a transform of `torch.func` follows x, since what is made of it would not be followed."""
    if x.requires_grad:
        raise ValueError(f"{method}: {name} must not require grad: {SEEN_THROUGH}")
    _Plain.apply(method, name, x)


class _Plain(torch.autograd.Function):
    """The identity on plain tensors."""

    @staticmethod
    def forward(method: str, name: str, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.method, ctx.name = inputs[:2]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise ValueError(f"{ctx.method}: {ctx.name} must not be a dual number: {SEEN_THROUGH}")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        method, name = args[:2]
        raise ValueError(f"{method}: {name} must not be under vmap: {SEEN_THROUGH}")


def _mass(method: str, name: str, x: Tensor | None, cost: Tensor, k: int) -> Tensor:
    if x is None:
        return torch.full((k,), 1.0 / k, dtype=cost.dtype, device=cost.device)
    if not isinstance(x, Tensor):
        raise TypeError(f"{method}: {name} must be a tensor, got {type(x).__name__}")
    if x.shape != (k,):
        raise ValueError(
            f"{method}: {name} must have shape ({k},) for a cost {tuple(cost.shape)}, got {tuple(x.shape)}"
        )
    if x.dtype != cost.dtype or x.device != cost.device:
        raise TypeError(
            f"{method}: {name} must be {cost.dtype} on {cost.device} as cost is, got {x.dtype} on {x.device}"
        )
    if not bool((x >= 0).all() & torch.isfinite(x).all()):
        raise ValueError(f"{method}: {name} must be finite and >= 0, got {float(x.min()):.3g} to {float(x.max()):.3g}")
    return x.detach()


def reduced(given: Inputs) -> Problem | str:
    """The problem on rows and columns with mass; a sentence where no plan exists."""
    cost = given.cost[given.rows][:, given.columns]
    a, b = given.a[given.rows] / given.mass, given.b[given.columns] / given.mass
    allowed = torch.isfinite(cost)
    found = None
    if not bool(allowed.all()):
        found = pattern(allowed, a, b)
        if isinstance(found, str):
            return found
        cost = torch.where(found.allowed, cost, math.inf)
    size = float(torch.where(torch.isfinite(cost), cost, 0).abs().max())
    rounding = torch.finfo(cost.dtype).eps * (4 + 4 * size / given.epsilon)
    return Problem(cost.contiguous(), a, b, given.epsilon, found, rounding)


def spread(problem: Problem) -> float:
    """Largest minus smallest finite cost."""
    finite = problem.cost[torch.isfinite(problem.cost)] if problem.pattern is not None else problem.cost
    return float(finite.max() - finite.min())


def expanded(given: Inputs, problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials of all rows and columns, in the gauge sum a f = sum b g of each component."""
    f, g = balanced(problem, f, g)
    return all_potentials(given, problem.a, problem.b, f, g)


def all_potentials(given: Inputs, a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The potentials with those of rows and columns without mass; differentiable. a, b are those with mass."""
    eps, cost = given.epsilon, given.cost
    whole = []
    for potential, other, mass, kept, rest, C in (
        (f, g, b, given.rows, given.columns, cost),
        (g, f, a, given.columns, given.rows, cost.T),
    ):
        without = torch.ones(C.shape[0], dtype=torch.bool, device=C.device)
        without[kept] = False
        if not bool(without.any()):
            whole.append(potential)
            continue
        empty = -eps * torch.logsumexp((other - C[without][:, rest]) / eps + (mass / mass.sum()).log(), 1)
        found = torch.zeros(C.shape[0], dtype=C.dtype, device=C.device)
        whole.append(found.index_put((kept,), potential).index_put((without.nonzero()[:, 0],), empty))
    return whole[0], whole[1]


def balanced(problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """f + t, g - t with sum a f = sum b g in each component; differentiable."""
    if problem.pattern is None:
        t = ((problem.b * g).sum() - (problem.a * f).sum()) / 2
        return f + t, g - t
    row, column, count = problem.pattern.row, problem.pattern.column, problem.pattern.count
    zero = problem.a.new_zeros(count)
    mass = zero.index_add(0, row, problem.a) + zero.index_add(0, column, problem.b)
    t = (zero.index_add(0, column, problem.b * g) - zero.index_add(0, row, problem.a * f)) / mass
    return f + t[row], g - t[column]
