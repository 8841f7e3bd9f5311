"""Levenberg-Marquardt for small models: a squared error taken to machine precision, on all data at once.

The objective sum_j w_j (mean over the elements of part j of (f - y)^2) + weight_decay |x|^2 / 2 is r'r / 2 with

    r = (sqrt(2 w_j / count_j) (f - y) for all elements of all parts,  sqrt(weight_decay) x)

which `frechet.optimize.least_squares` minimizes, with its stop and its status.

**Cost.** Each step takes the Jacobian of all outputs, formed: for up to some thousand parameters and rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from frechet.objective import Objective
from frechet.objective.criteria._criterion import Elementwise
from frechet.optimize import LeastSquaresSolution, LeastSquaresState, least_squares


def levenberg_marquardt(
    objective: Objective,
    *,
    weight_decay: float = 0.0,
    max_evaluations: int | None = None,
    ftol: float = 0.0,
    observe: Callable[[LeastSquaresState], bool] | None = None,
) -> LeastSquaresSolution:
    """Fit a small model by least squares to the last digit, from where the model is.

    The model itself stays as it is; ``model.load_state_dict(solution.x, strict=False)`` moves it. Data are read once
    for every evaluation. Take float64 where digits count.

    Args:
        objective: the objective, whose criterion is `squared_error` and which has no penalty.
        weight_decay: c of a penalty ``c |x|^2 / 2``.
        max_evaluations: the most evaluations of the residual. Default: that of `least_squares`.
        ftol: as in `least_squares`; larger values end earlier.
        observe: as in `least_squares`.

    Returns:
        A `LeastSquaresSolution`, whose `cost` is the objective, and whose `x` has the parameters by name.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.train import levenberg_marquardt
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).double()
        >>> t = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        >>> s = levenberg_marquardt(Objective(model, squared_error(), [(t, torch.sin(2 * t))]), max_evaluations=200)
        >>> s.cost < 1e-5
        True
    """
    _check(objective, weight_decay)
    snapshot = objective.snapshot()

    def residual(x: Mapping[str, Tensor]) -> Tensor:
        blocks, rows = dict(x), []
        for part in snapshot.parts:
            found, terms = [], 0
            with snapshot.running():
                for batch in part.batches(snapshot.space.device):
                    y = snapshot.forward(blocks, batch)
                    if y.shape != batch.targets.shape:
                        raise ValueError(
                            f"levenberg_marquardt: targets must have the outputs' shape {tuple(y.shape)}, got "
                            f"{tuple(batch.targets.shape)}; reshape one of them"
                        )
                    found.append((y - batch.targets.to(y.dtype)).reshape(-1))
                    terms += y.numel()
            rows += [math.sqrt(2 * part.weight / max(1, terms)) * r for r in found]
        if weight_decay:
            rows += [math.sqrt(weight_decay) * b.reshape(-1) for b in blocks.values()]
        return torch.cat(rows)

    x0 = {n: b.clone() for n, b in snapshot.space.unflatten(snapshot.x).items()}
    return least_squares(residual, x0, max_evaluations=max_evaluations, ftol=ftol, observe=observe)


def _check(objective: Objective, weight_decay: float) -> None:
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"levenberg_marquardt: weight_decay must be a number >= 0, got {weight_decay}")
    if objective.penalties:
        raise ValueError(
            "levenberg_marquardt: the objective must have no penalty, whose square root is not known, got one; give "
            "weight_decay=c for l2(c)"
        )
    if objective.group is not None:
        raise ValueError("levenberg_marquardt: must be an objective of one process, got one with group=")
    for part in objective.parts:
        if not isinstance(part.criterion, Elementwise) or part.criterion.name != "squared_error" or part.weight < 0:
            raise ValueError(
                "levenberg_marquardt: the criterion must be squared_error, with a weight >= 0, got "
                f"{getattr(part.criterion, 'name', type(part.criterion).__name__)}; take GaussNewton or minimize"
            )
