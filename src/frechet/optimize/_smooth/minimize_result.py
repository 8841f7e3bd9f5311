"""The result of minimization, with and without constraints, and a page that says how it went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from frechet.errors import NotConverged
from frechet.linalg._result import Status

ROWS = 20  # of multipliers in the report


@dataclass(frozen=True, eq=False)
class MinimizeSolution:
    """Where `minimize` ended. Everything but `history` is recomputed at `x`, from the definition.

    With the Lagrangian f(x) + sum_i y_i'c_i(x) + z'x, `multipliers` has one tensor y_i per constraint, in the order and
    shape in which the constraints were given, and `bound_multipliers` z ``(n,)`` is flat: positive where an upper side
    holds, negative where a lower one does. `residual` is the largest entry of the gradient of the Lagrangian (of f,
    without constraints; in a metric its dual norm), `infeasibility` the largest violation of a constraint or a bound,
    `complementarity` the largest |multiplier| times distance from the side that it belongs to. `curvature` is a
    direction ``(n,)`` along which f bends downwards at x, where one was met.
    """

    x: Tensor | dict[str, Tensor]
    status: Status
    message: str
    value: float
    gradient: Tensor  # (n,), of f, flat
    residual: float
    iterations: int
    evaluations: int  # of f
    gradients: int
    products: int  # with the Hessian and with the Jacobian of the constraints, each
    method: str
    infeasibility: float = 0.0
    complementarity: float = 0.0
    multipliers: tuple[Tensor, ...] = ()
    bound_multipliers: Tensor | None = None
    history: tuple[float, ...] = field(default=(), repr=False)  # f, per iteration
    curvature: Tensor | None = None

    @property
    def converged(self) -> bool:
        return self.status is Status.CONVERGED

    def checked(self) -> MinimizeSolution:
        """This solution if it converged; raises `NotConverged` otherwise."""
        if self.converged:
            return self
        raise NotConverged(f"minimize: {self.message} (status '{self.status}', f = {self.value:.6g})", self)

    def report(self) -> str:
        """How it went, as a page of text."""
        n = sum(b.numel() for b in self.x.values()) if isinstance(self.x, Mapping) else self.x.numel()
        lines = [
            f"minimize: {n} variables, {sum(y.numel() for y in self.multipliers)} constraints",
            f"  status      {self.status}: {self.message}",
            f"  method      {self.method}",
            f"  value       {self.history[0] if self.history else self.value:.6g} -> {self.value:.6g} in "
            f"{self.iterations} iterations",
            f"  residual    {self.residual:.3g} (largest entry of the gradient of the Lagrangian)",
        ]
        if self.multipliers or self.bound_multipliers is not None:
            lines.append(f"  feasible    to {self.infeasibility:.3g}; complementarity {self.complementarity:.3g}")
        lines.append(f"  spent       {self.evaluations} values, {self.gradients} gradients, {self.products} products")
        for i, y in enumerate(self.multipliers):
            flat = y.reshape(-1).tolist()
            more = f" and {len(flat) - ROWS} more" if len(flat) > ROWS else ""
            lines.append(f"  multipliers of constraint {i}: {', '.join(f'{v:.6g}' for v in flat[:ROWS])}{more}")
        return "\n".join(lines)
