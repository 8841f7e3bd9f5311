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
    constraints = _Constraints(equality, inequality, bounds)
    if weakly_active not in ("raise", "hold", "free"):
        raise ValueError(f"kkt_conditions: weakly_active must be 'raise', 'hold' or 'free', got {weakly_active!r}")

    def equations(x: Point, m: Blocks, fixed: Blocks, inputs: Sequence[object]) -> tuple[Point, Blocks]:
        def lagrangian(x: Point) -> Tensor:
            value = f(x, *inputs).sum()
            for name, row in constraints.held(x, fixed, inputs).items():
                value = value + (m[name] * row).sum()
            return value

        return gradient_of(lagrangian, x), constraints.rows(x, m, fixed, inputs)

    def complete(x: Point, inputs: Sequence[object], returned: object) -> tuple[Blocks, Blocks]:
        blocks = _named(x)
        space = Space.of(blocks)
        tolerance = space.eps**0.4 if active_tolerance is None else active_tolerance
        fixed = constraints.active(x, inputs, tolerance * _size(blocks))
        if multipliers is None:
            m = _least_squares(f, constraints, x, inputs, fixed)
        else:
            m = {n: t.detach().to(space.device, space.dtype) for n, t in multipliers(returned).items()}
        wanted = {_multiplier(mask) for mask in fixed} | ({"equality"} if equality is not None else set())
        if set(m) != wanted:
            raise ValueError(f"kkt_conditions: multipliers must return {sorted(wanted)}, got {sorted(m)}")
        return m, _with_force(m, fixed, tolerance * _size(m), weakly_active)

    return Conditions("constrained minimum", equations, SYMMETRIC, complete)


@dataclass(frozen=True, eq=False)
class _Constraints:
    """h(x) = 0, g(x) <= 0 and l <= x <= u, with one multiplier for both bounds of a block."""

    equality: Callable[..., Tensor] | None
    inequality: Callable[..., Tensor] | None
    bounds: tuple[Side, Side] | None

    def __post_init__(self) -> None:
        if self.equality is None and self.inequality is None and self.bounds is None:
            raise ValueError(
                "kkt_conditions: needs equality=, inequality= or bounds=, got none; use stationary_conditions(f)"
            )
        if self.bounds is not None and (not isinstance(self.bounds, tuple) or len(self.bounds) != 2):
            raise TypeError(f"kkt_conditions: bounds must be a pair (lower, upper), got {type(self.bounds).__name__}")

    def bounded(self, x: Point, inputs: Sequence[object]) -> list[tuple[str, Tensor, Tensor, Tensor]]:
        """The name of each block of x, the block, and its bounds."""
        if self.bounds is None:
            return []
        low, high = (_side(side, x, inputs, sign) for side, sign in zip(self.bounds, (-1, 1), strict=True))
        return [(name, b, low[name], high[name]) for name, b in _named(x).items()]

    def active(self, x: Point, inputs: Sequence[object], near: float) -> Blocks:
        """Masks of the inequalities and bounds that are active at x; raises where one is violated."""
        fixed: Blocks = {}
        if self.inequality is not None:
            g = self.inequality(x, *inputs).detach()
            _refuse_violated("inequality(x) must be <= 0", g, near)
            fixed["inequality"] = g >= -near
        for name, b, low, high in self.bounded(x, inputs):
            _refuse_violated("lower - x must be <= 0", low.detach() - b, near)
            _refuse_violated("x - upper must be <= 0", b - high.detach(), near)
            fixed["lower" + name] = b <= low.detach() + near
            fixed["upper" + name] = b >= high.detach() - near
        return fixed

    def held(self, x: Point, fixed: Blocks, inputs: Sequence[object]) -> Blocks:
        """What each multiplier is for, less constants: h, g and x where active, else 0."""
        found: Blocks = {}
        if self.equality is not None:
            found["equality"] = self.equality(x, *inputs)
        if self.inequality is not None:
            g = self.inequality(x, *inputs)
            found["inequality"] = torch.where(fixed["inequality"], g, torch.zeros_like(g))
        for name, b in _named(x).items() if self.bounds is not None else ():
            held = fixed["lower" + name] | fixed["upper" + name]
            found["bounds" + name] = torch.where(held, b, torch.zeros_like(b))
        return found

    def rows(self, x: Point, m: Blocks, fixed: Blocks, inputs: Sequence[object]) -> Blocks:
        """The equation that belongs to each multiplier."""
        found: Blocks = {}
        if self.equality is not None:
            found["equality"] = self.equality(x, *inputs)
        if self.inequality is not None:
            found["inequality"] = torch.where(fixed["inequality"], self.inequality(x, *inputs), m["inequality"])
        for name, b, low, high in self.bounded(x, inputs):
            free = torch.where(fixed["upper" + name], b - high, m["bounds" + name])
            found["bounds" + name] = torch.where(fixed["lower" + name], b - low, free)
        return found


def _least_squares(
    f: Callable[..., Tensor], constraints: _Constraints, x: Point, inputs: Sequence[object], fixed: Blocks
) -> Blocks:
    """The multipliers that minimize the gradient of the Lagrangian; zero where inactive, of least norm if many."""
    plain = like(x, [b.detach() for b in named(x).values()])
    J = function_jacobian(lambda x: constraints.held(x, fixed, inputs), plain, None)
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
        lower = mask[:5] == "lower"
        twin = kept.get(("upper" if lower else "lower") + mask[5:])
        single = kept[mask] if twin is None else kept[mask] & ~twin  # a fixed variable has a force of any sign
        force = torch.where(single, (-1.0 if lower else 1.0) * m[_multiplier(mask)], torch.inf)
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


def _multiplier(mask: str) -> str:
    """The name of the multiplier of what a mask says is active."""
    return mask if mask == "inequality" else "bounds" + mask[5:]


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
