"""Whether f and the constraints depend on x through operations that autograd follows.

A function whose value has no graph is taken for a constant: its derivatives are zero. So it is evaluated at a second
point, between the bounds, and refused where its value changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frechet.objective import Objective
from frechet.operators.derivatives._graphs import STEP, refuse_cut
from frechet.operators.derivatives._products import second_order
from frechet.optimize._constrained.program import Program
from frechet.space import Variables


def require_graphs(program: Program, x: Tensor) -> None:
    """Raise for a function that changes with x, from the point `x` of the program on, and leaves no graph."""
    if program.small and not program.raw(x).cut:  # kept from the evaluation at the start
        return
    variables = Variables(program.space, program.single)
    named = [(f"constraint {i}", c) for i, c in enumerate(program.functions)]
    if not isinstance(program.f, Objective):
        named.append(("f", program.f))
    with second_order("minimize", program.space.device), torch.enable_grad():
        leaves = variables.leaves(program.blocks(x))[1]
        cut = [(name, function, y) for name, function in named if not (y := function(leaves)).requires_grad]
        if not cut:
            return
        beside = variables.leaves(program.blocks(_beside(program, x)))[1]
        for name, function, y in cut:
            refuse_cut("minimize", name, y, function(beside))


def _beside(program: Program, x: Tensor) -> Tensor:
    step = STEP * (1 + x.abs())
    up = torch.minimum(x + step, program.upper)
    return torch.where(up > x, up, torch.maximum(x - step, program.lower))
