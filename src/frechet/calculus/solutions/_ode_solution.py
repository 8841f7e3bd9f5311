"""Derivatives of solutions of ordinary differential equations, y' = f(t, y): the exact adjoint of the discrete
solution.

The accepted steps of SciPy's explicit Runge-Kutta methods are run again in torch, with the same coefficients: the
values are SciPy's to rounding. Their graph is the discrete adjoint. The step sizes are held fixed, so that derivatives
are exact for the numbers that come back, and differ from those of the flow by the order of the tolerance. A stepper of
one's own is differentiated in the same way. Nothing is integrated backwards.

**Source.** Hairer, Nørsett and Wanner, "Solving Ordinary Differential Equations I" (1993), section II.6. **Differs from
continuous adjoints:** no second integration whose error is not that of the first. **Cost:** a backward pass costs two
forward passes through the accepted steps. With checkpoints it keeps one state for each step, and without all stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import scipy
import torch
import torch.utils.checkpoint
from torch import Tensor

from frechet.errors import NonFinite, NotConverged
from frechet.objective._torch_internals import in_transform

RightSide = Callable[[Tensor, Tensor], Tensor]
Stepper = Callable[[RightSide, Tensor, Tensor, Tensor], Tensor]
METHODS = ("RK23", "RK45", "DOP853")


def ode_solution(
    f: RightSide,
    y0: Tensor,
    times: Tensor,
    *,
    method: Literal["RK23", "RK45", "DOP853"] = "DOP853",
    rtol: float = 1e-8,
    atol: float = 1e-10,
    stepper: Stepper | None = None,
    steps: int = 1,
    checkpoint: bool = True,
) -> Tensor:
    """Return the solution of y' = f(t, y), y(times[0]) = y0, differentiable to any order in y0 and in what f reads.

    Args:
        f: the right side, a torch function of the time, a scalar tensor, and of y.
        y0: the state at ``times[0]``, of any shape, in float32 or float64.
        times: ascending or descending times ``(T,)``.
        method: the explicit Runge-Kutta method of `scipy.integrate.solve_ivp` that chooses the steps. Inside of
            `torch.func` transforms values cannot be looked at; give a stepper there.
        rtol: its relative tolerance, > 0.
        atol: its absolute tolerance, > 0.
        stepper: a step of your own, ``stepper(f, t, y, h)`` to the state at t + h, in place of `method`.
        steps: how many equal steps the stepper takes between two times, >= 1.
        checkpoint: whether a step's stages are computed again in the backward, so that one state is kept for each step;
            `torch.func` transforms keep all.

    Returns:
        The states ``(T, ...)``, the first of which is y0.

    Raises:
        NotConverged: SciPy's integration failed, as for a solution that goes to infinity.

    Example:
        >>> import torch
        >>> from frechet.calculus import ode_solution
        >>> k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        >>> times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> y = ode_solution(lambda t, y: -k * y, torch.ones(1, dtype=torch.float64), times)
        >>> y[-1].sum().backward()
        >>> bool((k.grad + torch.exp(-k)).abs() < 1e-7)  # d exp(-k) / dk
        True
    """
    _check(f, y0, times, method, rtol, atol, steps, stepper)
    keep = checkpoint and not in_transform() and torch.is_grad_enabled()
    y, found = y0, [y0]
    for start, end in pairwise(times):
        if stepper is None:
            grid = _accepted(f, y, start, end, method, rtol, atol)
            step = partial(_runge_kutta, getattr(scipy.integrate, method), f)
        else:
            grid = [start + (end - start) * (k / steps) for k in range(steps)] + [end]
            step = partial(stepper, f)
        for t, after in pairwise(grid):
            args = (t, y, after - t)
            y = torch.utils.checkpoint.checkpoint(step, *args, use_reentrant=False) if keep else step(*args)
            assert isinstance(y, Tensor)
            if y.shape != y0.shape:
                raise ValueError(
                    f"ode_solution: f and stepper must keep the shape {tuple(y0.shape)}, got {tuple(y.shape)}"
                )
        found.append(y)
    return torch.stack(found)


def _runge_kutta(table: Any, f: RightSide, t: Tensor, y: Tensor, h: Tensor) -> Tensor:
    """One explicit step with SciPy's coefficients."""
    slopes: list[Tensor] = []
    for i in range(table.n_stages):
        inside = _combined(y, h, table.A[i, :i], slopes)
        slopes.append(f(t + float(table.C[i]) * h, inside))
    return _combined(y, h, table.B, slopes)


def _combined(y: Tensor, h: Tensor, weights: np.ndarray, slopes: list[Tensor]) -> Tensor:
    """y + h sum_j w_j k_j."""
    terms = [float(w) * k for w, k in zip(weights, slopes, strict=True) if w]
    return y + h * torch.stack(terms).sum(0) if terms else y


@torch.no_grad()
def _accepted(
    f: RightSide, y: Tensor, start: Tensor, end: Tensor, method: str, rtol: float, atol: float
) -> list[Tensor]:
    """The times of the steps that SciPy accepts between two times."""

    def right_side(t: float, flat: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(flat).to(y).reshape(y.shape)
        slope = f(torch.tensor(t, dtype=y.dtype, device=y.device), state)
        if not isinstance(slope, Tensor) or slope.shape != y.shape:
            got = tuple(slope.shape) if isinstance(slope, Tensor) else type(slope).__name__
            raise ValueError(f"ode_solution: f must return a tensor like y, {tuple(y.shape)}, got {got}")
        return slope.detach().double().cpu().reshape(-1).numpy()

    flat = y.detach().double().cpu().reshape(-1).numpy()
    if not np.isfinite(flat).all():
        raise NonFinite("ode_solution: the state must be finite, got NaN or infinite entries")
    span = (float(start), float(end))
    with np.errstate(over="ignore", invalid="ignore"):
        run = scipy.integrate.solve_ivp(right_side, span, flat, method=method, rtol=rtol, atol=atol)
    if run.status != 0 or not np.isfinite(run.y).all():
        raise NotConverged(f"ode_solution: {method} failed at t = {run.t[-1]:.6g}: {run.message}", run)
    return list(torch.from_numpy(run.t).to(y))


def _check(
    f: object,
    y0: Tensor,
    times: Tensor,
    method: str,
    rtol: float,
    atol: float,
    steps: int,
    stepper: object,
) -> None:
    if not callable(f):
        raise TypeError(f"ode_solution: f must be a function of t and y, got {type(f).__name__}")
    if y0.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"ode_solution: y0 must be float32 or float64, got {y0.dtype}")
    if times.ndim != 1 or len(times) < 1:
        raise ValueError(f"ode_solution: times must have shape (T,), got {tuple(times.shape)}")
    if steps < 1:
        raise ValueError(f"ode_solution: steps must be at least 1, got {steps}")
    if stepper is None:
        _check_method(times, method, rtol, atol)


def _check_method(times: Tensor, method: str, rtol: float, atol: float) -> None:
    """What SciPy's methods need."""
    if in_transform():
        raise ValueError(
            "ode_solution: method must see values, which torch.func transforms hide; give stepper=, or use "
            "torch.autograd.grad"
        )
    if method not in METHODS:
        raise ValueError(
            f"ode_solution: method must be 'RK23', 'RK45' or 'DOP853', got {method!r}; give a stepper for others"
        )
    gaps = times.diff()
    if not bool((gaps > 0).all() | (gaps < 0).all()):
        raise ValueError("ode_solution: times must be ascending or descending, got some that are not")
    if not 0 < rtol < math.inf or not 0 < atol < math.inf:
        raise ValueError(f"ode_solution: rtol and atol must be > 0, got {rtol} and {atol}")
    if times.requires_grad:
        raise ValueError("ode_solution: times must not require a gradient under a method; give stepper=, which has it")
