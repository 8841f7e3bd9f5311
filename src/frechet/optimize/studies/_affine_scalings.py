"""Bounded least squares strictly inside the box, by one affine scaling of choice.

The method is that of `least_squares(method="interior")`: see `_least_squares/interior.py` for the steps, and
`_least_squares/affine_scaling.py` for the scalings. `least_squares` takes the mean of the four.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from frechet.optimize._box import Bound
from frechet.optimize._least_squares.affine_scaling import SCALINGS, Scaling
from frechet.optimize._least_squares.interior import interior
from frechet.optimize._least_squares.least_squares import by_factors, problem_of
from frechet.optimize._least_squares.least_squares_result import LeastSquaresSolution
from frechet.optimize._least_squares.optimality import Rules
from frechet.optimize._least_squares.residual import Parameters
from frechet.optimize._least_squares.run import LeastSquaresState, sizes
from frechet.optimize._least_squares.start import begin, first_linearization


def interior_least_squares(
    residual: Callable[..., object],
    x0: Parameters,
    *,
    bounds: tuple[Bound, Bound],
    scaling: Scaling = "combined",
    max_evaluations: int | None = None,
    observe: Callable[[LeastSquaresState], bool] | None = None,
) -> LeastSquaresSolution:
    """Minimize norm(residual(x))^2 / 2 strictly between bounds, in the metric of one affine scaling.

    The function is here to be studied: `least_squares(method="interior")` takes the combination, which was the best of
    the five. See `claims/scaling_matrices.py`.

    Args:
        residual: as in `least_squares`.
        x0: as in `least_squares`.
        bounds: as in `least_squares`.
        scaling: ``"coleman-li"``, ``"heinkenschloss-ulbrich"``, ``"kanzow-klug"``, ``"hager-mair-zhang"`` or
            ``"combined"``, the mean of the four.
        max_evaluations: the most residuals. Default: 100 (n + 10).
        observe: as in `least_squares`.

    Returns:
        A `LeastSquaresSolution` with the statuses of `least_squares`.

    Raises:
        NonFinite: the residual is not finite at x0.
        ValueError: `scaling` is not one of the five.

    Example:
        >>> import torch
        >>> from frechet.optimize import studies
        >>> x0 = torch.tensor([0.2, 0.2], dtype=torch.float64)
        >>> s = studies.interior_least_squares(lambda x: x - 2.0, x0, bounds=(0.0, 1.0), scaling="coleman-li")
        >>> s.x
        tensor([1., 1.], dtype=torch.float64)
    """
    known = (*SCALINGS, "combined")
    if scaling not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"interior_least_squares: scaling must be one of {names}, got {scaling!r}")
    if max_evaluations is not None and max_evaluations < 1:
        raise ValueError(f"interior_least_squares: max_evaluations must be >= 1, got {max_evaluations}")
    problem, x = problem_of(residual, x0, bounds, None, 1.0, "auto")
    problem, start = begin(problem, x)
    most = 100 * (len(x) + 10) if max_evaluations is None else max_evaluations
    rules = Rules(problem.eps, problem.eps, 0.0, most, sizes(start.x), tight=True)
    problem, linear = first_linearization(problem, start)
    return by_factors(problem, linear, rules, partial(interior, scaling=scaling), f"interior, {scaling}", observe)
