"""The equations of Karush, Kuhn and Tucker, with the constraints that hold at a given solution.

    min f(x)  such that  h(x) = 0,  g(x) <= 0,  l <= x <= u        (all may depend on the inputs, too)

    d/dx [ f + y'h + z'g + s'x ] = 0,    h = 0,    g_i = 0 where active, else z_i = 0,
    x_i = l_i or u_i where held, else s_i = 0

in the unknowns x, y, z and s. With the active set fixed these are smooth equations with a symmetric Jacobian, and as
many as unknowns. The multipliers at x are those of least squares on the gradient of f. Complementarity must be strict:
where a constraint holds without a force (z_i = 0) the solution has a kink, and no derivative.

**Source.** A. V. Fiacco and G. P. McCormick (1968), Nonlinear programming, theorem 6, doi 10.1137/1.9781611971316
(sensitivity); J. Nocedal and S. J. Wright (2006), Numerical optimization, equation 18.21 (multipliers), doi
10.1007/978-0-387-40065-5.

**Differs from the source.** Inactive constraints keep their unknowns, with the equation that says that they are zero:
shapes do not depend on the active set, which may then differ between the problems of a batch.

**Cost.** Of the multipliers: `lsmr` on the Jacobian of the constraints, or its dense matrix where that is small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from frechet.calculus.solutions._conditions import Blocks, Conditions, gradient_of
from frechet.linalg.systems._lsmr import lsmr
from frechet.operators._operator import SYMMETRIC
from frechet.operators.derivatives._function import function_jacobian
from frechet.space import Point, Space, like, named

Side = float | Tensor | Mapping[str, Tensor] | Callable[..., object] | None
DENSE = 1 << 18  # entries of a Jacobian that is made dense


def kkt_conditions(
    f: Callable[..., Tensor],
    *,
    equality: Callable[..., Tensor] | None = None,
    inequality: Callable[..., Tensor] | None = None,
    bounds: tuple[Side, Side] | None = None,
    multipliers: Callable[[object], Mapping[str, Tensor]] | None = None,
    active_tolerance: float | None = None,
    weakly_active: Literal["raise", "hold", "free"] = "raise",
) -> Conditions:
    """Return the conditions of a minimum of f(x, *inputs) under equalities, inequalities and bounds.

    An inequality g_i <= 0 is active where ``g_i >= -active_tolerance * max(1, max |x|)``, a bound likewise. A violation
    by more raises, and so does a multiplier of the wrong sign. Where an active constraint's multiplier is zero, by ``<=
    active_tolerance * max(1, largest)``, the solution has a kink.

    Args:
        f: the function of x and the inputs that is minimal.
        equality: equality(x, *inputs) = 0, a tensor of any shape. Concatenate several.
        inequality: inequality(x, *inputs) <= 0, a tensor of any shape.
        bounds: a pair (lower, upper), each None, a number, a tensor or dict shaped like x, or a function of the inputs
            that returns one. Only a function has derivatives.
        multipliers: a function that takes the multipliers out of what the solver returned, as a dict with the keys
            "equality", "inequality" and "bounds" ("bounds.name" for each block of a dict x; positive at upper sides,
            negative at lower ones). Default: they follow from least squares.
        active_tolerance: see above. Default: eps^0.4, which is 5e-7 in float64.
        weakly_active: what to do at a kink. ``"raise"``; or take the one-sided derivative with the constraint held
            (``"hold"``) or without it (``"free"``).

    Example:
        >>> import torch
        >>> from frechet import implicit
        >>> from frechet.calculus import kkt_conditions
        >>> project = implicit(
        ...     lambda y: y / y.pow(2).sum().sqrt(),  # onto the unit ball, from outside
        ...     kkt_conditions(lambda x, y: ((x - y) ** 2).sum(), inequality=lambda x, y: x @ x - 1),
        ... )
        >>> torch.autograd.functional.jacobian(project, torch.tensor([0.0, 2.0]))  # (I - x x') / 2
        tensor([[0.5000, 0.0000],
                [0.0000, 0.0000]])
    """
    if weakly_active not in ("raise", "hold", "free"):
        raise ValueError(f"kkt_conditions: weakly_active must be 'raise', 'hold' or 'free', got {weakly_active!r}")

    constraints = _constraints(equality, inequality, bounds)

    def equations(x: Point, m: Blocks, fixed: Blocks, inputs: Sequence[object]) -> tuple[Point, Blocks]:
        def lagrangian(x: Point) -> Tensor:
            value = f(x, *inputs).sum()
            for constraint in constraints:
                for term in constraint.terms(x, m, fixed, inputs):
                    value = value + term
            return value

        rows = {n: row for c in constraints for n, row in c.rows(x, m, fixed, inputs).items()}
        return gradient_of(lagrangian, x), rows

    def complete(x: Point, inputs: Sequence[object], returned: object) -> tuple[Blocks, Blocks]:
        blocks = _named(x)
        space = Space.of(blocks)
        tolerance = space.eps**0.4 if active_tolerance is None else active_tolerance
        near = tolerance * _size(blocks)
        fixed = {n: mask for c in constraints for n, mask in c.active(x, inputs, near).items()}
        if multipliers is None:
            m = _least_squares(f, constraints, x, inputs, fixed)
        else:
            m = {n: t.detach().to(space.device, space.dtype) for n, t in multipliers(returned).items()}
        wanted = {n for c in constraints for n in c.multipliers(x)}
        if set(m) != wanted:
            raise ValueError(f"kkt_conditions: multipliers must return {sorted(wanted)}, got {sorted(m)}")
        return m, _with_force(m, fixed, tolerance * _size(m), weakly_active)

    return Conditions("constrained minimum", equations, SYMMETRIC, complete)


# --- the constraints --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Equality:
    """h(x) = 0.

    Each constraint has `terms` of the Lagrangian, `rows` of the equations, the masks of what is `active` at a
    solution, the names of its `multipliers`, and the rows that are `held` there.
    """

    h: Callable[..., Tensor]

    def multipliers(self, x: Point) -> list[str]:
        return ["equality"]

    def active(self, x: Point, inputs: Sequence[object], near: float) -> Blocks:
        return {}

    def terms(self, x: Point, m: Blocks, fixed: Blocks, inputs: Sequence[object]) -> list[Tensor]:
        return [(m["equality"] * self.h(x, *inputs)).sum()]

    def rows(self, x: Point, m: Blocks, fixed: Blocks, inputs: Sequence[object]) -> Blocks:
        return {"equality": self.h(x, *inputs)}

    def held(self, x: Point, fixed: Blocks, inputs: Sequence[object]) -> Blocks:
        return {"equality": self.h(x, *inputs)}


@dataclass(frozen=True, eq=False)
class _Inequality:
    """g(x) <= 0."""

    g: Callable[..., Tensor]

    def multipliers(self, x: Point) -> list[str]:
        return ["inequality"]

    def active(self, x: Point, inputs: Sequence[object], near: float) -> Blocks:
        g = self.g(x, *inputs).detach()
        _refuse_violated("inequality(x) must be <= 0", g, near)
        return {"inequality": g >= -near}

    def terms(self, x: Point, m: Blocks, fixed: Blocks, inputs: Sequence[object]) -> list[Tensor]:
        return [(fixed["inequality"] * m["inequality"] * self.g(x, *inputs)).sum()]

    def rows(self, x: Point, m: Blocks, fixed: Blocks, inputs: Sequence[object]) -> Blocks:
        return {"inequality": torch.where(fixed["inequality"], self.g(x, *inputs), m["inequality"])}

    def held(self, x: Point, fixed: Blocks, inputs: Sequence[object]) -> Blocks:
        g = self.g(x, *inputs)
        return {"inequality": torch.where(fixed["inequality"], g, torch.zeros_like(g))}


@dataclass(frozen=True, eq=False)
class _Bounds:
    """l <= x <= u, with one multiplier for both sides of a block."""

    sides: tuple[Side, Side]

    def at(self, x: Point, inputs: Sequence[object]) -> tuple[Blocks, Blocks]:
        return _side(self.sides[0], x, inputs, -1), _side(self.sides[1], x, inputs, 1)

    def multipliers(self, x: Point) -> list[str]:
        return ["bounds" + name for name in _named(x)]

    def active(self, x: Point, inputs: Sequence[object], near: float) -> Blocks:
        fixed: Blocks = {}
        low, high = self.at(x, inputs)
        for name, b in _named(x).items():
            _refuse_violated("lower - x must be <= 0", low[name].detach() - b, near)
            _refuse_violated("x - upper must be <= 0", b - high[name].detach(), near)
            fixed["lower" + name] = b <= low[name].detach() + near
            fixed["upper" + name] = b >= high[name].detach() - near
        return fixed

    def terms(self, x: Point, m: Blocks, fixed: Blocks, inputs: Sequence[object]) -> list[Tensor]:
        return [
            ((fixed["lower" + name] | fixed["upper" + name]) * m["bounds" + name] * b).sum()
            for name, b in _named(x).items()
        ]

    def rows(self, x: Point, m: Blocks, fixed: Blocks, inputs: Sequence[object]) -> Blocks:
        found: Blocks = {}
        low, high = self.at(x, inputs)
        for name, b in _named(x).items():
            free = torch.where(fixed["upper" + name], b - high[name], m["bounds" + name])
            found["bounds" + name] = torch.where(fixed["lower" + name], b - low[name], free)
        return found

    def held(self, x: Point, fixed: Blocks, inputs: Sequence[object]) -> Blocks:
        return {
            "bounds" + name: torch.where(fixed["lower" + name] | fixed["upper" + name], b, torch.zeros_like(b))
            for name, b in _named(x).items()
        }


_Constraint = _Equality | _Inequality | _Bounds


def _constraints(
    equality: Callable[..., Tensor] | None,
    inequality: Callable[..., Tensor] | None,
    bounds: tuple[Side, Side] | None,
) -> list[_Constraint]:
    if equality is None and inequality is None and bounds is None:
        raise ValueError(
            "kkt_conditions: needs equality=, inequality= or bounds=, got none; use stationary_conditions(f)"
        )
    if bounds is not None and (not isinstance(bounds, tuple) or len(bounds) != 2):
        raise TypeError(f"kkt_conditions: bounds must be a pair (lower, upper), got {type(bounds).__name__}")
    given = (
        None if equality is None else _Equality(equality),
        None if inequality is None else _Inequality(inequality),
        None if bounds is None else _Bounds(bounds),
    )
    return [c for c in given if c is not None]


def _least_squares(
    f: Callable[..., Tensor], constraints: list[_Constraint], x: Point, inputs: Sequence[object], fixed: Blocks
) -> Blocks:
    """The multipliers that minimize the gradient of the Lagrangian; zero where inactive, of least norm if many."""

    def held(x: Point) -> Blocks:
        return {n: row for c in constraints for n, row in c.held(x, fixed, inputs).items()}

    plain = like(x, [b.detach() for b in named(x).values()])
    J = function_jacobian(held, plain, None)
    slope = gradient_of(lambda x: f(x, *inputs), plain)
    b = -J.domain.join([t.detach() for t in _named(slope).values()])
    if J.shape[0] * J.shape[1] <= DENSE:
        found = (torch.linalg.pinv(J.dense().T.double()) @ b.double()).to(b)
    else:
        found = lsmr(J.T, b, rtol=10 * J.domain.eps).x
    return J.codomain.unflatten(found)


def _with_force(m: Blocks, fixed: Blocks, weak: float, weakly_active: Literal["raise", "hold", "free"]) -> Blocks:
    """What is held fixed, less what has no force where that is to be free; raises where a force has the wrong sign."""
    kept = dict(fixed)
    for mask in fixed:
        name = mask if mask == "inequality" else "bounds" + mask[5:]
        lower = mask[:5] == "lower"
        twin = kept.get(("upper" if lower else "lower") + mask[5:])
        single = kept[mask] if twin is None else kept[mask] & ~twin  # a fixed variable has a force of any sign
        force = torch.where(single, (-1.0 if lower else 1.0) * m[name], torch.inf)
        if bool((force < -weak).any()):
            raise ValueError(
                f"kkt_conditions: the multiplier of an active {_title(mask)} must be >= 0, got "
                f"{float(force.min()):.3g} in entry {int(force.argmin())}: x is no minimum, or the constraint is "
                "meant the other way; write inequality(x) <= 0"
            )
        kink = force <= weak
        if bool(kink.any()) and weakly_active == "raise":
            raise ValueError(
                f"kkt_conditions: an active {_title(mask)} must have a multiplier > {weak:.3g}, got "
                f"{float(force.min()):.3g} in entry {int(force.argmin())}: the solution has a kink there and no "
                "derivative; choose weakly_active='hold' or 'free', or a smaller active_tolerance"
            )
        if weakly_active == "free":
            kept[mask] = kept[mask] & ~kink
    return kept


def _size(blocks: Blocks) -> float:
    """The largest entry, 1 at least."""
    return max([1.0, *(float(b.abs().max()) for b in blocks.values() if b.numel())])


def _named(x: Point) -> Blocks:
    """The blocks of x by the ending that their multipliers' names have: none for a tensor, .name for a dict."""
    return named(x) if isinstance(x, Tensor) else {"." + n: b for n, b in x.items()}


def _side(side: Side, x: Point, inputs: Sequence[object], sign: int) -> Blocks:
    value = side(*inputs) if callable(side) else side
    found: Blocks = {}
    for name, b in _named(x).items():
        one = value.get(name[1:]) if isinstance(value, Mapping) else value
        t = torch.as_tensor(sign * torch.inf if one is None else one, dtype=b.dtype, device=b.device)
        if t.ndim and t.shape != b.shape:
            raise ValueError(
                f"kkt_conditions: bounds must be numbers or have the shape of x {tuple(b.shape)}, got {tuple(t.shape)}"
            )
        found[name] = t.expand(b.shape)
    return found


def _refuse_violated(what: str, excess: Tensor, near: float) -> None:
    # not (excess <= near): also NaN
    if excess.numel() and not bool((excess <= near).all()):
        worst = float(excess.max())
        raise ValueError(
            f"kkt_conditions: {what} at the solution, got {worst:.3g} in entry {int(excess.argmax())}; solve more "
            "exactly, or raise active_tolerance"
        )


def _title(mask: str) -> str:
    return "inequality" if mask == "inequality" else f"{mask[:5]} bound"
