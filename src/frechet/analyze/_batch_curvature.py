"""The largest eigenvalue of a batch's Hessian: predicted from single examples, beside the measurement.

A batch of B of N examples sees H_B = H + noise, whose largest eigenvalue is larger on average than l_1, that of all
data. Second-order perturbation theory with the variance of each direction, u_j the eigenvectors of H, b = B/(1 - B/N):

    E l_1(H_B) = l_1 + S/b + O(b^-2),    S = sum_{j > 1} Var_i(u_j' H_i u_1) / (l_1 - l_j)

Only H_i u_1 is needed. The leading eigenvectors are taken one by one, and the rest as one eigenvalue, their mean. Where
S/b exceeds 2 l_1 the second order says nothing any more. Below the batch size at which S/b = l_1 the largest rate of
SGD grows in proportion to B, above it saturates.

**Source.** Granziol, Zohren and Roberts, "Learning rates as a function of batch size: a random matrix theory approach
to neural network training", JMLR 23 (2022), arXiv 2006.09092.
**Differs from the source.** (1) Per-direction variances replace one variance for all entries of the noise: that rule is
too low by half on softmax regression. (2) The measurement, with an error bar, stands beside the prediction.
**Cost.** One `eigsh` of all data, one per drawn batch, and one pass with 2 + 2 + 3 (top + probes) gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.analyze._examples import example_curvatures
from frechet.analyze._run.batch_sharpness import drawn
from frechet.analyze._run.step_rule import StepRule
from frechet.analyze._stability import GRADIENT_DESCENT, Range, stable_learning_rate
from frechet.linalg._eigsh import eigsh
from frechet.linalg._result import Estimate
from frechet.linalg._shown import Result, Rows
from frechet.linalg._trace import trace
from frechet.objective import Objective
from frechet.operators._operator import LinearOperator
from frechet.operators._structured import refuse_sharded
from frechet.operators.derivatives._hessian import hessian

RTOL = 1e-3  # of eigenvalues: far below the spread between batches


@dataclass(frozen=True, eq=False)
class BatchTop(Result):
    """The largest eigenvalue of the Hessian of a batch of one size: the mean over batches, and its prediction.

    `valid` says that the second-order term is at most twice the eigenvalue of all data.
    """

    batch_size: int
    measured: Estimate
    predicted: float
    valid: bool

    def largest_rate(self, rule: StepRule = GRADIENT_DESCENT) -> Range | None:
        """The largest stable learning rate on such a batch, by the measurement and its interval of 95 %."""
        low, high = (float(end) for end in self.measured.interval())
        value = float(self.measured)
        return stable_learning_rate(value, max(high - value, value - low, 0.0), optimizer=rule)

    def least_damping(self, rate: float) -> float:
        """The damping d at which a step rate / (curvature estimate + d) is stable whatever the estimate, rate l_1 / 2.

        In the linear region it is proportional to rate / batch size.
        """
        return rate * float(self.measured) / 2


@dataclass(frozen=True, eq=False)
class BatchCurvature(Result):
    """Curvature of batches, in increasing size; `critical` is the batch size at which noise doubles the eigenvalue.

    Much below `critical` the largest rate of SGD is proportional to the batch size, and that of Adam, whose
    preconditioner falls as the root of the batch size, to its root. Above it batches buy no rate.
    """

    batches: tuple[BatchTop, ...]
    full: float  # the largest eigenvalue on all data
    spread: float  # S
    critical: float
    examples: int
    seed: int
    products: int

    def _table(self) -> Rows:
        rows = []
        for b in self.batches:
            low, high = (float(end) for end in b.measured.interval())
            told = f"{b.predicted:.4g}" if b.valid else f"({b.predicted:.3g})"
            rows.append((str(b.batch_size), f"{float(b.measured):.4g} [{low:.4g}, {high:.4g}]", told))
        return ("batch size", "measured", "predicted"), rows


def batch_curvature(
    objective: Objective,
    batch_sizes: Sequence[int],
    *,
    seed: int,
    batches: int = 16,
    top: int = 10,
    probes: int = 8,
    x: Tensor | None = None,
) -> BatchCurvature:
    """Estimate the largest Hessian eigenvalue of batches of several sizes, and predict it from single examples.

    Args:
        objective: the objective on all data, a list of batches.
        batch_sizes: numbers of examples.
        seed: of batches and probes.
        batches: how many are drawn for each size.
        top: how many leading eigenvectors the prediction takes one by one.
        probes: random vectors for the rest.
        x: the point ``(n,)``. Default: the model's present parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import batch_curvature
        >>> X = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> objective = Objective(torch.nn.Linear(2, 1, bias=False), squared_error(), [(X, torch.zeros(4, 1))])
        >>> found = batch_curvature(objective, [4], seed=0, batches=2)
        >>> round(found.full, 4), round(found.batches[0].predicted, 4)
        (4.0, 4.0)
    """
    space = objective.space
    refuse_sharded("batch_curvature", space)
    if batches < 2 or top < 1 or probes < 1:
        raise ValueError(
            f"batch_curvature: batches must be at least 2, top and probes at least 1, got {batches}, {top} and {probes}"
        )
    x = objective.point if x is None else x
    H = hessian(objective, x)
    found = eigsh(H, min(top, space.dim), seed=seed, rtol=RTOL)
    products, values, U = found.products, found.values.tolist(), found.vectors
    first, examples, spread = values[0], *_spread(objective, H, values, U, probes, seed, x)
    rows = []
    for size in sorted(set(batch_sizes)):
        tops = []
        for one in drawn(objective, size, batches, seed):
            pair = eigsh(hessian(one, x), 1, seed=seed, rtol=RTOL)
            tops.append(float(pair.values[0]))
            products += pair.products
        t = torch.tensor(tops, dtype=torch.float64)
        measured = Estimate(
            t.mean(), t.std() / math.sqrt(batches), batches, products, seed, degrees_of_freedom=batches - 1,
            method="drawn batches",
        )  # fmt: skip
        excess = spread * (1 - size / examples) / size
        rows.append(BatchTop(size, measured, first + excess, excess <= 2 * first))
    critical = spread / first if first > 0 else math.inf
    return BatchCurvature(
        tuple(rows), first, spread, critical / (1 + critical / examples) if math.isfinite(critical) else math.inf,
        examples, seed, products,
    )  # fmt: skip


def _spread(
    objective: Objective, H: LinearOperator, values: list[float], U: Tensor, probes: int, seed: int, x: Tensor
) -> tuple[int, float]:
    """The number of examples, and S."""
    space, k, first = objective.space, len(values), values[0]
    Z = space.random(range(probes), seed) if k < space.dim else space.zeros(0)
    Z = Z - U @ space.gram(U, Z).to(Z) if Z.shape[1] else Z
    curvatures = example_curvatures(objective, torch.cat([U.T, Z.T]).T, U[:, :1], x=x)
    images = curvatures.values[:, :, 0]
    n = curvatures.examples
    if n < 2:
        raise ValueError(f"batch_curvature: needs at least 2 examples, got {n}")
    variances = images.var(0).tolist()
    total = sum(v / (first - value) for v, value in zip(variances[1:k], values[1:], strict=True) if first > value)
    if Z.shape[1]:
        rest = (float(trace(H, products=probes, seed=seed, method="hutchinson")) - sum(values)) / (space.dim - k)
        total += sum(variances[k:]) / probes / max(first - rest, first - values[-1])
    return n, total
