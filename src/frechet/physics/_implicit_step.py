"""A step that solves an equation: F(y_{k+1}, y_k, u_k) = 0, differentiated as the solution that it is.

The root is found by Newton's method from y_k; derivatives come from the equation at the root, by one linear solve,
whatever the iterations were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from frechet.calculus.solutions import implicit
from frechet.optimize import root
from frechet.space import Point, Variables


def implicit_step(
    equation: Callable[..., Point],
    *,
    start: Callable[..., Point] | None = None,
    rtol: float | None = None,
    max_iterations: int = 50,
) -> Callable[..., Any]:
    """Return the step (y, ...) -> the root of ``equation(next, y, ...)``, for `march`.

    Args:
        equation: a function of the next state and of what `march` gives to a step, to as many numbers as a state has.
        start: a function of what `march` gives to a step, to where Newton's method starts. Default: the state.
        rtol: that of `root`. Default: eps^(3/4) of the dtype.
        max_iterations: Newton steps. A step that needs more raises `NotConverged`, and `march` names it.

    Example:
        >>> import torch
        >>> from frechet.physics import implicit_step, march
        >>> euler = implicit_step(lambda z, y, u: z - y + 0.1 * (z**3 - u))  # y' = u - y^3, by the implicit method
        >>> u = torch.ones(20, dtype=torch.float64)
        >>> march(euler, torch.zeros(1, dtype=torch.float64), u[:, None]).final
        tensor([0.9837], dtype=torch.float64)
    """
    if not callable(equation):
        raise TypeError(f"implicit_step: equation must be a function of two states, got {type(equation).__name__}")

    def solver(*arguments: Any) -> Any:
        y0 = arguments[0] if start is None else start(*arguments)
        found = root(lambda z: equation(z, *arguments), y0, rtol=rtol, max_iterations=max_iterations).checked()
        return found.x if Variables.of(y0).single else Variables.of(y0).unflatten(found.x)

    return implicit(solver, equation)
