"""Results of this library in the form that SciPy's optimizers return, for code that reads that form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.linalg._result import Solution, Status
from frechet.optimize._least_squares.least_squares_result import LeastSquaresSolution
from frechet.optimize._smooth.minimize_result import MinimizeSolution

# numbers of scipy.optimize: below zero where it ended early, 0 where a limit was reached
CODES = {
    Status.CONVERGED: 1,
    Status.MAX_ITERATIONS: 0,
    Status.STOPPED: -2,
    Status.NONFINITE: -3,
    Status.STAGNATED: -4,
    Status.SINGULAR: -5,
    Status.BREAKDOWN: -6,
    Status.INDEFINITE: -7,
    Status.INFEASIBLE: -8,
    Status.UNBOUNDED: -9,
}


def to_optimize_result(solution: LeastSquaresSolution | MinimizeSolution | Solution) -> scipy.optimize.OptimizeResult:
    """Return the solution as a `scipy.optimize.OptimizeResult` with arrays of NumPy. x is flat, in the order of blocks.

    All have `x`, `success`, `status`, `message`, `nit` and `nfev`. `status` is that of SciPy's function of the same
    purpose where it says success (1 for least squares and roots, 0 for `minimize`) or a limit (0, and 1 for
    `minimize`), and a negative number of its own otherwise. Least squares adds `cost`, `fun` (the residuals), `grad`,
    `optimality` (the largest entry of the gradient that no bound holds, as in SciPy), `active_mask` and `njev`.
    `minimize` adds `fun`, `jac` (the gradient), `njev`, `nhev` (products), `optimality`, `maxcv` (the violation of
    constraints) and `v` (the multipliers). Other solutions add `residual`, the norm of what is left.

    Example:
        >>> import torch
        >>> from frechet import least_squares
        >>> from frechet.interop import to_optimize_result
        >>> found = to_optimize_result(least_squares(lambda x: x - 3, torch.zeros(2, dtype=torch.float64)))
        >>> found.success, found.x.tolist(), found.status
        (True, [3.0, 3.0], 1)
    """
    if not isinstance(solution, LeastSquaresSolution | MinimizeSolution | Solution):
        raise TypeError(
            "to_optimize_result: solution must be one of least_squares, minimize, root or a linear solver, got "
            f"{type(solution).__name__}"
        )
    shared = {"x": _flat(solution.x), "success": solution.converged, "nit": solution.iterations}
    match solution:
        case LeastSquaresSolution():
            free = solution.gradient[solution.active == 0]
            return scipy.optimize.OptimizeResult(
                **shared,
                status=CODES[solution.status],
                message=solution.message,
                cost=solution.cost,
                fun=_array(solution.residuals),
                grad=_array(solution.gradient),
                optimality=float(free.abs().max()) if len(free) else 0.0,
                active_mask=_array(solution.active).astype(int),
                nfev=solution.residual_evaluations,
                njev=solution.jacobian_evaluations,
            )
        case MinimizeSolution():
            code = CODES[solution.status]
            return scipy.optimize.OptimizeResult(
                **shared,
                status=1 - code if code in (0, 1) else code,  # minimize counts success as 0
                message=solution.message,
                fun=solution.value,
                jac=_array(solution.gradient),
                optimality=solution.residual,
                maxcv=solution.infeasibility,
                v=[_array(y) for y in solution.multipliers],
                nfev=solution.evaluations,
                njev=solution.gradients,
                nhev=solution.products,
            )
        case Solution():
            return scipy.optimize.OptimizeResult(
                **shared,
                status=CODES[solution.status],
                message=solution.message or str(solution.status),
                residual=solution.residual,
                nfev=solution.products if solution.evaluations is None else solution.evaluations,
            )


def _array(t: Tensor) -> np.ndarray:
    return t.detach().cpu().numpy().copy()


def _flat(x: Tensor | Mapping[str, Tensor]) -> np.ndarray:
    blocks = [x] if isinstance(x, Tensor) else list(x.values())
    return _array(torch.cat([b.reshape(-1) for b in blocks])) if blocks else np.zeros(0)
