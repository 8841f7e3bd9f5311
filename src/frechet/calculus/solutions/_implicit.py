"""Derivatives of a solution x(inputs) from conditions F(x, inputs) = 0 that hold at it, whatever found it.

    dx = -(dF/dx)^{-1} (dF/dinputs) dinputs                 forward mode: one solve with dF/dx
    d(inputs) = -(dF/dinputs)' w,   (dF/dx)' w = dx         reverse mode: one solve with its transpose

Nothing of the solver's work is kept, only x and the inputs. The solution of the linear equations is put into the graph
as the solution of conditions of its own, so derivatives of any order, in both modes, are exact.

**Source.** M. Blondel, Q. Berthet, M. Cuturi, R. Frostig, S. Hoyer, F. Llinares-Lopez, F. Pedregosa and J.-P. Vert
(2022), Efficient and modular implicit differentiation, equation 2, arXiv 2105.15183.

**Differs from the source.**
1. The conditions are checked at the solution, and what they use beyond their arguments is refused.
2. Linear solves are checked against their residual, and raise.
3. Multipliers and active sets are found at the solution (`kkt_conditions`), not asked of the solver.

**Cost** of the forward: the solver's, one evaluation of F with its gradient, one product. Of a derivative: one solve
(`_sensitivity.py`) and one gradient of F. Memory of one graph of F, while it lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.calculus.solutions._conditions import Conditions, as_conditions
from frechet.calculus.solutions._equations import (
    Equations,
    Layout,
    at_solution,
    check_solution,
    check_status,
    complete,
    tensors_among,
)
from frechet.calculus.solutions._plain_function import Nested, Pulled, one_by_one
from frechet.calculus.solutions._sensitivity import Method, Preconditioner, Rules
from frechet.linalg._result import Solution
from frechet.space import Point


class Solved(torch.autograd.Function):
    """``Solved.apply(equations, *p)`` is z(p) and what was held fixed, differentiable."""

    @staticmethod
    def forward(equations: Equations, *p: Tensor) -> tuple[Tensor, ...]:
        return tuple(equations.find([t.detach() for t in p]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.equations = inputs[0]
        ctx.mark_non_differentiable(*[t for t in output if not t.is_floating_point()])
        ctx.save_for_backward(*output, *inputs[1:])
        ctx.save_for_forward(*output, *inputs[1:])
        ctx.n = sum(t.is_floating_point() for t in output)
        ctx.found = len(output)

    @staticmethod
    def backward(ctx: Any, *us: Tensor) -> tuple[Tensor | None, ...]:
        args, equations, n = ctx.saved_tensors, ctx.equations, ctx.n
        wanted = tuple(i for i in range(ctx.found, len(args)) if ctx.needs_input_grad[i - ctx.found + 1])
        w = Solved.apply(equations.adjoint(n, len(args)), *args, *us[:n])
        pulled = Nested.apply(Pulled(equations.residual, wanted, len(args)), *args, *w)
        found: list[Tensor | None] = [None] * (len(args) - ctx.found + 1)
        for i, gradient in zip(wanted, pulled, strict=True):
            found[i - ctx.found + 1] = -gradient
        return tuple(found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        args, n = ctx.saved_tensors, ctx.n  # no arithmetic here, see `Nested`
        given = {i + ctx.found: t for i, t in enumerate(tangents[1:]) if t is not None}
        d = Solved.apply(ctx.equations.tangent(n, len(args), tuple(given)), *args, *given.values())
        return (*d, *[None] * (ctx.found - n))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return one_by_one(info.batch_size, in_dims[1:], args[1:], lambda *row: Solved.apply(args[0], *row))


def implicit(
    solver: Callable[..., object],
    conditions: Conditions | Callable[..., Point],
    *,
    method: Method = "auto",
    preconditioner: Preconditioner | None = None,
    rtol: float | None = None,
    max_iterations: int | None = None,
    tolerance: float = 1e-3,
    batch: bool = False,
    strict: bool = True,
    observe: Callable[[Solution], object] | None = None,
) -> Callable[..., Any]:
    """Return `solver` with derivatives: ``implicit(solver, conditions)(*inputs)`` is its x, as a node of the graph.

    There are derivatives in every floating tensor among the inputs, of any order, by ``backward``, ``autograd.grad``,
    dual numbers and `torch.func`. There are none in what a function closes over: conditions that use such a tensor that
    requires grad raise. For gradients in a model's parameters pass ``dict(model.named_parameters())`` as an input, and
    call the model by ``torch.func.functional_call``. Derivatives are as wrong as x is.

    A solution that is not isolated raises, unless what is asked for does not depend on the open directions.
    ``method="lsmr"`` then takes the derivative of least norm.

    Args:
        solver: a black box. It gets plain tensors, and returns x (a tensor, a dict of tensors, an array or a number,
            which is converted to the dtype of the first floating input) or a result with the attribute ``x``.
        conditions: F(x, *inputs) with F = 0 at the solution, or what `fixed_point_conditions`, `stationary_conditions`,
            `least_squares_conditions` or `kkt_conditions` return.
        method: the solver of the linear systems. ``"auto"`` chooses by the facts of dF/dx.
        preconditioner: an operator near the inverse of dF/dx, or a function that makes it from dF/dx.
        rtol: a system is solved to ``norm(residual) <= rtol * norm(right side)``; `lsmr` has its own rules. Default:
            eps^0.6.
        max_iterations: the limit of each system's iterations. Default: that of the method.
        tolerance: the conditions hold at x if ``norm(F) <= tolerance * norm(dF/dx v)``, where v has the entries of x in
            root mean square. So a residual raises that is larger than a change of x by the fraction `tolerance` makes.
        batch: with True, axis 0 of all unknowns counts independent problems, whose small systems are solved one by one.
        strict: with True, a result of `solver` that says that it is not converged (``converged`` or ``success`` is
            false) raises `NotConverged`, and so does a linear system that does not converge. False takes what was
            reached.
        observe: called with the `Solution` of each linear system.

    Example:
        >>> import torch
        >>> from scipy.optimize import brentq
        >>> from frechet import implicit
        >>> root = implicit(lambda a: brentq(lambda x: x**3 - float(a), 0, 9), lambda x, a: x**3 - a)
        >>> a = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
        >>> round(float(torch.autograd.grad(root(a), a)[0]), 9)  # 1 / (3 x^2) at x = 2
        0.083333333
    """
    if not callable(solver):
        raise TypeError(f"implicit: solver must be a function of the inputs, got {type(solver).__name__}")
    if not tolerance > 0:
        raise ValueError(f"implicit: tolerance must be > 0, got {tolerance}")
    given = as_conditions("implicit", conditions)
    rules = Rules(method, preconditioner, rtol, max_iterations, batch, strict, observe).checked("implicit")

    def solution(*inputs: object) -> Any:
        tensors, rebuilt = tensors_among(inputs)
        if not any(t.is_floating_point() for t in tensors):
            raise TypeError("implicit: inputs must hold a floating tensor, got none; there is nothing to differentiate")
        layout = Layout()
        equations = at_solution(given, rules, rebuilt, layout)

        def find(p: Sequence[Tensor]) -> list[Tensor]:
            with torch.enable_grad():
                returned = solver(*rebuilt(p))
            if rules.strict:
                check_status("implicit", returned)
            x = _solution_of(returned, next(t for t in p if t.is_floating_point()))
            z = complete(given, x, rebuilt(p), returned, layout, batch)
            check_solution("implicit", equations, [*z, *p], layout, given.name, tolerance)
            return z

        found = Solved.apply(replace(equations, find=find), *tensors)
        return layout.point(found[: len(layout.names)])

    return solution


def _solution_of(returned: object, like: Tensor) -> Point:
    """x as tensors: what a solver returned, or the attribute x of it."""
    plain = Tensor | Mapping | np.ndarray | np.generic | float | int
    if isinstance(returned, scipy.optimize.OptimizeResult) or (
        not isinstance(returned, plain) and hasattr(returned, "x")
    ):
        returned = returned.x  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(returned, Mapping):
        return {str(n): _tensor(b, like) for n, b in returned.items()}
    return _tensor(returned, like)


def _tensor(value: object, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        found = value.detach()
    elif isinstance(value, np.ndarray | np.generic | float | int):
        found = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    else:
        raise TypeError(f"implicit: solver must return tensors, arrays or a result with .x, got {type(value).__name__}")
    if not found.is_floating_point():
        raise TypeError(f"implicit: solver must return floating numbers, got {found.dtype}")
    if not bool(found.isfinite().all()):
        raise ValueError("implicit: solver must return finite numbers, got NaN or infinity")
    return found
