"""Which training examples made a prediction: what a function of the parameters gains when an example is left out.

With the objective's curvature H at its minimum x, g_i the gradient of example i's term (of the sum over N examples
divided by N, penalties apart) and v the gradient of the function,

    x without i  =  x + (H + damping I)^-1 g_i / N + ...        change of the function  =  v'(H + damping I)^-1 g_i / N

One linear system with v serves all examples. Its residual is part of the result. The second function corrects for the
curvature that leaves with the example, and is exact where the loss is quadratic in the parameters:

    outputs of i without i  =  f_i + K_i (I - C_i K_i)^-1 s_i,   K_i = J_i (H + damping I)^-1 J_i' / N

with s_i the score and C_i the Hessian of example i's term in its outputs, J_i their Jacobian.

The other terms keep their denominator: the objective without i is L - f_i / N, penalties unchanged.

**Source.** F. Hampel (1974), The influence curve and its role in robust estimation, JASA 69; P. W. Koh, P. Liang
(2017), Understanding black-box predictions via influence functions, arXiv 1703.04730; leaving out with correction: K.
Rahnama Rad, A. Maleki (2020), A scalable estimate of the out-of-sample prediction error via approximate leave-one-out
cross-validation, JRSS B 82, arXiv 1801.10243.
**Cost.** `influence`: a linear system for each function, and one pass over the data. `leave_one_out`: the dense matrix,
n products, and a system with as many right-hand sides as the data have outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from frechet.analyze._example_slopes import _slopes
from frechet.analyze._examples import _one_part
from frechet.analyze._influence_systems import Curvature, systems_of
from frechet.analyze._single_examples import refuse_group
from frechet.errors import NonFinite
from frechet.linalg import Status
from frechet.linalg._shown import Result, Rows
from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective._coupling import check_additive
from frechet.operators import LinearOperator
from frechet.operators.derivatives import gauss_newton, hessian, jacobian
from frechet.operators.derivatives._modes import Way, chosen

MOST = 4000  # parameters of which the dense matrix is formed


@dataclass(frozen=True, eq=False)
class Influence(Result):
    """`scores` ``(N,)`` or ``(N, k)``: the change of each function when an example is left out, by its first order.

    ``residual`` is the largest relative residual of the linear systems with the curvature that was asked for, and
    ``gauss_newton_residual`` with the exact damped Gauss-Newton matrix: 1 where an approximation is no better than 0.
    """

    scores: Tensor  # float64
    damping: float
    curvature: str
    residual: float
    gauss_newton_residual: float
    status: Status
    message: str
    products: int

    def _line(self) -> str:
        shape = " x ".join(map(str, self.scores.shape))
        return f"{shape}, {self.curvature} + {self.damping:.3g}, residual {self.residual:.2g}"

    def top(self, k: int = 10, function: int = 0) -> list[tuple[int, float]]:
        """The k examples whose absence raises the function most, with the changes: the most helpful ones for a loss."""
        column = self.scores if self.scores.ndim == 1 else self.scores[:, function]
        return [(int(i), float(column[i])) for i in column.argsort(descending=True)[:k]]

    def grouped(self, groups: Tensor) -> Tensor:
        """The change of each function when a group is left out, ``(groups,)`` or ``(groups, k)``: its first order.

        `groups` ``(N,)`` holds the number of each example's group, from 0.
        """
        if groups.shape != self.scores.shape[:1] or groups.is_floating_point() or bool((groups < 0).any()):
            raise ValueError(
                f"Influence.grouped: groups must be numbers >= 0 for the {len(self.scores)} examples, got "
                f"{groups.dtype} of shape {tuple(groups.shape)}"
            )
        total = self.scores.new_zeros(int(groups.max()) + 1, *self.scores.shape[1:])
        return total.index_add_(0, groups.to(total.device).long(), self.scores)

    def _table(self) -> Rows:
        return ("example", "change when left out"), [(str(i), f"{c:.4g}") for i, c in self.top()]


def influence(
    objective: Objective,
    functions: Objective | Tensor,
    *,
    damping: float,
    curvature: Curvature | LinearOperator = "gauss_newton",
    rank: int | None = None,
    seed: int | None = None,
    rtol: float = 1e-6,
    max_iterations: int | None = None,
    x: Tensor | None = None,
) -> Influence:
    """Estimate what a function of the parameters gains when each example is left out of the training data.

    Args:
        objective: the objective that was minimized, with its penalties.
        functions: an objective whose loss is the function, such as one on the test data; or gradients of functions, a
            vector ``(n,)`` or columns ``(n, k)``.
        damping: what is added to the curvature, >= 0. Give the one that makes the solution well defined.
        curvature: ``"gauss_newton"`` or ``"hessian"`` with the penalties, ``"kfac"`` or ``"ekfac"`` without,
            ``"arnoldi"`` or ``"nystrom"`` of low rank, see `_influence_systems.py`; or a symmetric operator.
        rank: how many eigenpairs ``"arnoldi"``, or random vectors ``"nystrom"``, takes.
        seed: of their first or of all their vectors.
        rtol: ``norm(v - (H + damping I) u) <= rtol norm(v)`` for each system.
        max_iterations: the most iterations of a system.
        x: the point ``(n,)``. Default: the model's present parameters.

    Returns:
        An `Influence`. The first order holds for examples with little weight: compare with `leave_one_out` or by
            training again.

    Raises:
        NotConverged: a linear system did not reach `rtol`.
        ValueError: damping is negative, or `functions` are not on the objective's parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, l2, minimize, squared_error
        >>> from frechet.analyze import influence
        >>> _ = torch.manual_seed(0)
        >>> X, y = torch.randn(30, 3, dtype=torch.float64), torch.randn(30, 1, dtype=torch.float64)
        >>> model = torch.nn.Linear(3, 1).double()
        >>> objective = Objective(model, squared_error(), [(X, y)], penalty=l2(1e-2))
        >>> at = minimize(objective).x
        >>> influence(objective, objective, damping=0.0, x=at).scores.shape
        torch.Size([30])
    """
    if not damping >= 0:
        raise ValueError(f"influence: damping must be a number >= 0, got {damping}")
    space = objective.space
    snapshot, part = _one_part("influence", objective, x)
    refuse_group(snapshot, "influence")
    if isinstance(functions, Objective):
        if functions.space != space:
            raise ValueError(f"influence: functions must be on {space!r}, got an objective on {functions.space!r}")
        V = functions.gradient(snapshot.x)
    else:
        V = functions.detach().to(space.dtype)
    if V.shape[0] != space.dim or V.ndim > 2:
        n = space.dim
        raise ValueError(f"influence: functions must be gradients ({n},) or ({n}, k), got {tuple(V.shape)}")
    if not space.finite(V if V.ndim == 2 else V[:, None]):
        raise NonFinite("influence: functions must have finite gradients, got NaN or infinity")
    columns = V if V.ndim == 2 else V[:, None]
    systems = systems_of("influence", objective, curvature, damping, snapshot.x, rank, seed)
    solved = systems.solve(columns, rtol, max_iterations)
    U = solved.U
    way = Way(chosen(None, snapshot.model, "influence", gauss_newton=True), False)
    plain = replace(snapshot, penalties=())
    slopes = way.along(lambda: _slopes(objective, plain, part, U, way.route))
    scores = slopes.values / slopes.examples
    return Influence(
        scores=scores if V.ndim == 2 else scores[:, 0],
        damping=damping,
        curvature=systems.name,
        residual=solved.residual,
        gauss_newton_residual=float(systems.exact_residuals(columns, U).max()),
        status=solved.status,
        message=solved.message,
        products=solved.products,
    )


@dataclass(frozen=True, eq=False)
class LeaveOneOut(Result):
    """Outputs and losses of each example by the model that was trained without it. `loss` is their mean."""

    outputs: Tensor  # like the model's outputs
    losses: Tensor  # (N,) float64: each example's term, times N / count
    loss: float
    trained: float  # the mean of the same terms with all examples
    damping: float


def leave_one_out(
    objective: Objective,
    *,
    damping: float = 0.0,
    curvature: Literal["gauss_newton", "hessian"] = "gauss_newton",
    x: Tensor | None = None,
) -> LeaveOneOut:
    """Estimate each example's outputs and loss by the model trained without it.

    It is exact for linear models with a squared error and any l2 penalty, and one Newton step else.

    Args:
        objective: the objective, at its minimum.
        damping: what is added to the curvature, >= 0.
        curvature: ``"gauss_newton"`` or ``"hessian"``, with the penalties. It is formed: at most 4 000 parameters.
        x: the point ``(n,)``. Default: the model's present parameters.

    Returns:
        A `LeaveOneOut`.

    Raises:
        ValueError: there are too many parameters, or the matrix is singular.

    Example:
        >>> import torch
        >>> from frechet import Objective, l2, minimize, squared_error
        >>> from frechet.analyze import leave_one_out
        >>> _ = torch.manual_seed(0)
        >>> X, y = torch.randn(30, 3, dtype=torch.float64), torch.randn(30, 1, dtype=torch.float64)
        >>> objective = Objective(torch.nn.Linear(3, 1).double(), squared_error(), [(X, y)], penalty=l2(1e-2))
        >>> found = leave_one_out(objective, x=minimize(objective).x)
        >>> found.loss > found.trained
        True
    """
    space = objective.space
    if space.dim > MOST:
        raise ValueError(f"leave_one_out: at most {MOST} parameters are served, got {space.dim}; use influence")
    snapshot, part = _one_part("leave_one_out", objective, x)
    refuse_group(snapshot, "leave_one_out")
    snapshot.refuse_coupled("leave_one_out")
    if curvature not in ("gauss_newton", "hessian"):
        raise ValueError(f"leave_one_out: curvature must be 'gauss_newton' or 'hessian', got {curvature!r}")
    A = (gauss_newton if curvature == "gauss_newton" else hessian)(objective, x=snapshot.x)
    M = A.dense().double() + damping * torch.eye(space.dim, dtype=torch.float64, device=space.device)
    factor, info = torch.linalg.ldl_factor((M + M.T) / 2)
    values = torch.linalg.eigvalsh((M + M.T) / 2).abs()
    if float(values.min()) <= space.dim * torch.finfo(torch.float64).eps * float(values.max()):
        raise ValueError("leave_one_out: the curvature must be regular, got a singular matrix; give damping=")
    J = jacobian(objective, x=snapshot.x).dense().double()
    outputs: list[Tensor] = []
    scores: list[Tensor] = []
    seconds: list[Tensor] = []

    def visit(p: Part, batch: Batch) -> None:
        _, blocks = snapshot.leaves(space)
        with torch.no_grad():
            y = snapshot.forward(blocks, batch)
        criterion = snapshot.criterion(p, batch)
        check_additive("leave_one_out", criterion, y, batch.targets, space.eps, 0)
        size = y[0].numel()
        rows = []
        for d in range(size):
            unit = torch.zeros_like(y).reshape(len(y), size)
            unit[:, d] = 1.0
            rows.append(criterion.hessian_product(y, batch.targets, unit.view_as(y)).reshape(len(y), size))
        outputs.append(y.detach())
        scores.append(criterion.score(y, batch.targets).reshape(len(y), size).double())
        seconds.append(torch.stack(rows, 2).double())

    snapshot.sweep(visit)
    y, s, C = torch.cat(outputs), torch.cat(scores), torch.cat(seconds)
    count = float(sum(float(snapshot.count(part, b)) for b in part.batches(space.device)))
    n, size = s.shape
    J = J.view(n, size, space.dim)
    K = torch.einsum("nap,nbp->nab", J, torch.linalg.ldl_solve(factor, info, J.reshape(-1, space.dim).T).T.view_as(J))
    K = K * (part.weight / count)
    eye = torch.eye(size, dtype=torch.float64, device=space.device)
    moved = (K @ torch.linalg.solve(eye - C @ K, s.unsqueeze(2))).squeeze(2)
    left = y + moved.view_as(y).to(y)
    return _judged(snapshot, part, y, left, damping, n / count)


def _judged(snapshot: Snapshot, part: Part, y: Tensor, left: Tensor, damping: float, scale: float) -> LeaveOneOut:
    """The losses of the outputs as they are and with each example left out."""
    found: list[Tensor] = []
    for outputs in (left, y):
        at, terms = 0, []
        for batch in part.batches(snapshot.space.device):
            rows = outputs[at : at + batch.examples]
            terms.append(snapshot.criterion(part, batch).terms(rows, batch.targets).double() * scale)
            at += batch.examples
        found.append(torch.cat(terms))
    return LeaveOneOut(left, found[0], float(found[0].mean()), float(found[1].mean()), damping)
