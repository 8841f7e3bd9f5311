"""What a constraint is: a function of x between two sides, and all constraints of a problem as one list of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Constraint:
    """lower <= function(x) <= upper, entry by entry; an equality where both sides are the same.

    `function` takes what x is, a tensor or a dict of tensors, and returns a tensor of any shape. `lower` and `upper`
    are numbers or tensors that broadcast to that shape; -inf and inf leave a side open.

    Example:
        >>> import math, torch
        >>> from frechet.optimize import Constraint
        >>> ball = Constraint(lambda x: (x * x).sum(), upper=1.0, lower=-math.inf)
        >>> float(ball.function(torch.tensor([0.6, 0.8]))) <= ball.upper + 1e-6
        True
    """

    function: Function
    lower: float | Tensor = 0.0
    upper: float | Tensor = 0.0


Constraints = Constraint | Function | Sequence[Constraint | Function]


def as_list(constraints: Constraints) -> tuple[Constraint, ...]:
    """One item or many, with plain functions as equalities."""
    items = constraints if isinstance(constraints, Sequence) else [constraints]
    found = []
    for i, item in enumerate(items):
        if isinstance(item, Constraint):
            if not callable(item.function):
                raise TypeError(
                    f"minimize: constraint {i} must have a function of x, got {type(item.function).__name__}"
                )
            found.append(item)
        elif callable(item):
            found.append(Constraint(item))
        else:
            raise TypeError(
                f"minimize: constraint {i} must be a Constraint or a function, got {type(item).__name__}; write "
                "Constraint(function, lower, upper)"
            )
    return tuple(found)


def sides(constraints: Sequence[Constraint], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Lower and upper sides of all rows ``(m,)`` in float64, shaped by the values of the constraints at a point."""
    low, high = [], []
    for i, (item, value) in enumerate(zip(constraints, values, strict=True)):
        for name, side, into in (("lower", item.lower, low), ("upper", item.upper, high)):
            t = torch.as_tensor(side, dtype=torch.float64).to(value.device)
            try:
                into.append(t.expand(value.shape).reshape(-1))
            except RuntimeError:
                raise ValueError(
                    f"minimize: {name} of constraint {i} must be a number or broadcast to its values "
                    f"{tuple(value.shape)}, got {tuple(t.shape)}"
                ) from None
            if bool(t.isnan().any()):
                raise ValueError(
                    f"minimize: {name} of constraint {i} must be numbers, got NaN; leave a side open with infinity"
                )
        empty = ((low[-1] > high[-1]) | (low[-1] == math.inf) | (high[-1] == -math.inf)).nonzero()
        if empty.numel():
            j = int(empty[0])
            raise ValueError(
                f"minimize: constraint {i} must leave a value between its sides, got lower {float(low[-1][j]):.6g} "
                f"and upper {float(high[-1][j]):.6g} in entry {j}"
            )
    nothing = torch.zeros(0, dtype=torch.float64)
    return (torch.cat(low), torch.cat(high)) if low else (nothing, nothing)
