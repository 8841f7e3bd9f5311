"""The largest learning rate at which a minimum is stable, for gradient descent and for SGD.

Gradient descent: 2 / lambda_max(H). SGD with batches of B of N examples drawn without replacement, at a minimum of all
f_i at once (every g_i = 0): its mean square stays bounded up to the rate 2 / lambda_max(C^+ D), with
C[M] = (H M + M H)/2 and D[M] = (1 - p) H M H + p/N sum_i H_i M H_i on symmetric matrices M, p = (N - B)/(B (N - 1)).
Those are n^2 x n^2 matrices; but every single M gives an upper bound of the rate, 2 <M, C[M]> / <M, D[M]>:

    M = I:    2 tr H / ((1 - p) ||H||_F^2 + p/N sum_i ||H_i||_F^2)
    M = vv':  2 v'Hv / ((1 - p) (v'Hv)^2 + p/N sum_i (v'H_i v)^2)        v the top eigenvector, |v| = 1

A minimum is unstable above the smaller one; below both it may still be. ||H_i||_F^2 is E (z'H_i w)^2 for all examples
at once, after the largest eigenvectors Q have been taken out: ||Q'H_i Q||^2 is exact, and random probes see the rest.

**Source.** Mulayoff and Michaeli, "Exact mean square linear stability analysis for SGD" (2023), arXiv 2306.07850: the
threshold. Wu and Su, "The implicit regularization of dynamical stability in SGD" (2023), arXiv 2305.17490: M = I for
batches of one.
**Differs from the source.** (1) The two cheap conditions at any B. (2) The interval of the mean of ||H_i||_F^2 is
symmetric in its logarithm: few products of two quadratic forms are far too skewed for the usual one.
**Cost.** One pass; with q = deflate + probes about 3 q^2 gradients and q vectors, no operator product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import scipy
import torch
from torch import Tensor
from torch.optim import Optimizer

from frechet.analyze._examples import ExampleGradients, example_curvatures
from frechet.analyze._run.step_rule import StepRule, step_rule
from frechet.linalg._result import Estimate, Spectrum
from frechet.linalg._shown import Result
from frechet.objective import Objective
from frechet.operators._structured import refuse_sharded

GRADIENT_DESCENT = StepRule("gradient descent")


@dataclass(frozen=True)
class Range(Result):
    """A number and the ends of its interval."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class SgdBounds(Result):
    """Upper bounds of the stable learning rate at one batch size; None where H has no positive trace or eigenvalue."""

    batch_size: int
    identity: Range | None
    top: Range | None  # exact for the vector at hand: any unit vector gives a valid bound


@dataclass(frozen=True)
class Stability(Result):
    """Learning rates. `gradient_descent` is None where no eigenvalue is positive: then no rate is too large for it."""

    gradient_descent: Range | None
    sgd: tuple[SgdBounds, ...]  # in increasing batch size
    mean_square_norm: Range  # (1/N) sum_i ||H_i||_F^2
    top_curvature: float  # v'Hv
    top_mean_square: float  # (1/N) sum_i (v'H_i v)^2
    level: float  # of the intervals of `sgd`; the interval of gradient_descent is a bound of the eigenvalue's residual
    examples: int
    seed: int
    probes: int
    passes: int
    products: int = 0


@dataclass(frozen=True)
class Interpolation(Result):
    """How far a point is from a minimum of every example's loss at once, where all of these but the shares vanish."""

    loss: float  # the objective's value
    gradient_norm: float
    example_gradient_norm: float  # root mean square of |g_i|
    near_zero: float
    near_zero_share: float  # of the examples with a loss of at most near_zero; 1 at an interpolating minimum
    active_share: float  # of the examples with |g_i|^2 above a hundredth of the mean: who still pulls


def stability(
    objective: Objective,
    *,
    batch_sizes: Sequence[int],
    trace: Estimate,
    frobenius: Estimate,
    top: Spectrum,
    seed: int,
    probes: int = 8,
    deflate: int = 3,
    x: Tensor | None = None,
    level: float = 0.95,
) -> Stability:
    """Return the largest stable learning rate of gradient descent, and upper bounds of that of SGD.

    The bounds for SGD are statements about a minimum at which every example's gradient vanishes: see `interpolation`.
    The intervals of `sgd` hold together with probability `level`, whatever the dependence between the estimates: each
    gets its share of 1 - level. `top` is taken as it is.

    Args:
        objective: the objective.
        batch_sizes: the batch sizes of SGD, in examples.
        trace: the trace of the objective's Hessian.
        frobenius: its Frobenius norm.
        top: its largest eigenpair, or several.
        seed: the seed of the random probes.
        probes: probes x probes random pairs estimate what is left of the mean of ||H_i||_F^2.
        deflate: how many of the largest eigenpairs of `top` are taken out first.
        x: the point ``(n,)``. Default: the model's present parameters.
        level: the probability with which the intervals cover.

    Example:
        >>> import torch
        >>> from frechet import Objective, hessian, squared_error, trace, eigsh
        >>> from frechet.analyze import stability
        >>> from frechet.linalg import frobenius_norm
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> X = torch.eye(2)  # H_i = 2 x_i x_i', H = I
        >>> objective = Objective(model, squared_error(), [(X, torch.zeros(2, 1))])
        >>> H = hessian(objective)
        >>> found = stability(objective, batch_sizes=[1, 2], trace=trace(H, products=2),
        ...     frobenius=frobenius_norm(H, products=2), top=eigsh(H, 2, seed=0), seed=0)
        >>> round(found.gradient_descent.value, 3), [round(b.identity.value, 3) for b in found.sgd]
        (2.0, [1.0, 2.0])
    """
    space = objective.space
    refuse_sharded("stability", space)
    if not 0 < level < 1:
        raise ValueError(f"stability: level must lie between 0 and 1, got {level}")
    if probes < 2 or deflate < 0:
        raise ValueError(f"stability: probes must be at least 2 and deflate at least 0, got {probes} and {deflate}")
    if top.values.numel() == 0 or top.vectors.shape[0] != space.dim:
        raise ValueError(f"stability: top must hold eigenpairs of {space!r}, got vectors {tuple(top.vectors.shape)}")
    best = int(top.values.argmax())
    v = top.vectors[:, best]
    v = v / space.norm(v).to(v)
    largest = top.values.abs().argsort(descending=True)[:deflate].to(v.device)
    Q = space.orthonormalize(top.vectors[:, largest])[0] if deflate else space.zeros(0)
    Z, W = (_without(Q, space.random(range(j, 2 * probes, 2), seed), objective) for j in (0, 1))
    left, right = torch.cat([v[None], Q.T, Z.T]).T, torch.cat([v[None], Q.T, W.T]).T
    found = example_curvatures(objective, left, right, x=x)
    n = found.examples
    sizes = sorted(set(batch_sizes))
    if not sizes or not 1 <= sizes[0] <= sizes[-1] <= n:
        raise ValueError(f"stability: batch_sizes must lie between 1 and the {n} examples, got {list(batch_sizes)}")
    curvature, square = float(found.values[:, 0, 0].mean()), float(found.values[:, 0, 0].square().mean())
    share = (1 - level) / (1 + sum(not e.exact for e in (trace, frobenius)))
    norms = _mean_square_norm(found.values[:, 1:, 1:].square().mean(0), Q.shape[1], 1 - share, Q.shape[1] == space.dim)
    traced, frobenius_square = _range(trace, share), _range(frobenius, share)
    frobenius_square = Range(*(max(end, 0.0) ** 2 for end in vars(frobenius_square).values()))
    bounds = []
    for size in sizes:
        p = (n - size) / (size * (n - 1)) if n > 1 else 0.0
        second = (1 - p) * curvature**2 + p * square
        bounds.append(
            SgdBounds(
                size,
                _identity_bound(p, traced, frobenius_square, norms),
                Range(*(3 * (2 * curvature / second,))) if curvature > 0 else None,
            )
        )
    descent = stable_learning_rate(float(top.values[best]), float(top.residuals[best]))
    return Stability(descent, tuple(bounds), norms, curvature, square, level, n, seed, probes, found.passes)


def stable_learning_rate(
    eigenvalue: float, residual: float = 0.0, *, optimizer: Optimizer | StepRule = GRADIENT_DESCENT
) -> Range | None:
    """Return the largest stable learning rate of an optimizer, or None where no rate is too large.

    That of gradient descent is 2 / lambda, in the interval [2 / (lambda + residual), 2 / (lambda - residual)], without
    an upper end where lambda <= residual. `StepRule` has the formula of all others.

    Args:
        eigenvalue: lambda, the largest eigenvalue of the Hessian. For an optimizer with a preconditioner P, such as
            Adam, that of P^-1/2 H P^-1/2: see `optimizer_metric`.
        residual: how far the eigenvalue may be off.
        optimizer: a torch optimizer, of whose first parameter group momentum and weight decay are read, or a
            `StepRule`. Default: gradient descent.

    Example:
        >>> from frechet.analyze import stable_learning_rate
        >>> stable_learning_rate(4.0, residual=1.0)
        Range(value=0.5, lower=0.4, upper=0.66667)
    """
    if not residual >= 0:
        raise ValueError(f"stable_learning_rate: residual must be non-negative, got {residual}")
    rule = optimizer if isinstance(optimizer, StepRule) else step_rule(optimizer)
    if not eigenvalue > 0:
        return None
    upper = rule.largest_rate(eigenvalue - residual) if eigenvalue > residual else math.inf
    return Range(rule.largest_rate(eigenvalue), rule.largest_rate(eigenvalue + residual), upper)


def interpolation(gradients: ExampleGradients, *, near_zero: float = 0.01) -> Interpolation:
    """Tell how far a point is from an interpolating minimum, which the bounds for SGD suppose.

    Args:
        gradients: the examples' gradients at the point.
        near_zero: an example whose loss is at most this counts as fitted. Unit: the loss.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import example_gradients, interpolation
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [(torch.ones(4, 1), torch.tensor([[0.0], [0.0], [0.0], [2.0]]))]
        >>> found = interpolation(example_gradients(Objective(model, squared_error(), data)))
        >>> found.loss, found.near_zero_share, found.active_share
        (1.0, 0.75, 0.25)
    """
    squares = gradients.squared_norms
    mean = float(squares.mean())
    active = float((squares > 0.01 * mean).double().mean())
    fitted = float((gradients.losses <= near_zero).double().mean())
    loss = float(gradients.losses.mean()) + gradients.penalty
    return Interpolation(loss, math.sqrt(gradients.squared_gradient), math.sqrt(mean), near_zero, fitted, active)


def exact_mean_square_limit(hessians: Tensor, batch_size: int) -> float:
    """Return SGD's exact mean-square limit of the learning rate, 2 / lambda_max(C^+ D). For at most 40 parameters.

    Args:
        hessians: all H_i as a stack ``(N, n, n)``. Their mean must be positive semidefinite (a minimum), and is
            inverted on its range. Where the mean is 0 the limit is infinite.
        batch_size: the batch size of SGD, in examples.

    Example:
        >>> import torch
        >>> from frechet.analyze import exact_mean_square_limit
        >>> round(exact_mean_square_limit(torch.tensor([[[1.0]], [[3.0]]]), 1), 6)  # 2 mean h / mean h^2
        0.8
    """
    if hessians.ndim != 3 or hessians.shape[1] != hessians.shape[2] or hessians.shape[1] > 40:
        raise ValueError(
            f"exact_mean_square_limit: hessians must have shape (N, n, n), n <= 40, got {tuple(hessians.shape)}"
        )
    N, n = hessians.shape[:2]
    if not 1 <= batch_size <= N:
        raise ValueError(f"exact_mean_square_limit: batch_size must lie between 1 and {N}, got {batch_size}")
    p = (N - batch_size) / (batch_size * (N - 1)) if N > 1 else 0.0
    values, basis = torch.linalg.eigh(hessians.double().mean(0))
    rotated = basis.T @ hessians.double() @ basis
    floor = n * torch.finfo(hessians.dtype).eps * float(values.abs().max())
    if float(values.min()) < -10 * floor:
        raise ValueError(
            f"exact_mean_square_limit: the mean Hessian must be positive semidefinite, got eigenvalue "
            f"{float(values.min()):.3g}; the theory is one of minima"
        )
    D = (1 - p) * torch.kron(torch.diag(values), torch.diag(values))
    D += p / N * torch.einsum("iac,ibd->abcd", rotated, rotated).reshape(n * n, n * n)
    C = (values[:, None] + values[None, :]).reshape(-1) / 2
    kept = floor < C
    if not bool(kept.any()):
        return math.inf
    root = C[kept].rsqrt()
    return 2 / float(torch.linalg.eigvalsh(root[:, None] * D[kept][:, kept] * root).max())


def _without(Q: Tensor, Z: Tensor, objective: Objective) -> Tensor:
    """Z less its projection on the orthonormal Q."""
    return Z - Q @ objective.space.gram(Q, Z).to(Z) if Q.shape[1] else Z


def _mean_square_norm(squares: Tensor, k: int, level: float, whole: bool) -> Range:
    """mean ||H_i||_F^2 from mean (v'H_i w)^2 with k orthonormal vectors first, then equally many probes each."""
    exact = float(squares[:k, :k].sum())
    if whole:
        return Range(exact, exact, exact)
    inside = squares[k:, k:]
    across = squares[:k, k:].sum(0), squares[k:, :k].sum(1)
    probes = inside.shape[0]
    random = float(inside.mean() + across[0].mean() + across[1].mean())
    if random <= 0:
        return Range(exact, exact, exact)
    # a probe on one side moves a row or a column of the products and what it shares with the exact vectors
    spread = (inside.mean(0) + across[0]).var() + (inside.mean(1) + across[1]).var()
    width = float(scipy.stats.t.ppf(0.5 + level / 2, probes - 1)) * math.sqrt(float(spread) / probes) / random
    # the exact part is a lower bound; exp() of more than 700 is no number
    return Range(exact + random, exact + random * math.exp(-width), exact + random * math.exp(min(width, 700.0)))


def _range(estimate: Estimate, share: float) -> Range:
    low, high = estimate.interval(1 - share)
    return Range(float(estimate.value), float(low), float(high))


def _identity_bound(p: float, trace: Range, square: Range, norms: Range) -> Range | None:
    """The bound of M = I, by the ends of the three intervals."""
    if trace.value <= 0 or (1 - p) * square.value + p * norms.value <= 0:
        return None
    low = 2 * max(trace.lower, 0.0) / ((1 - p) * square.upper + p * norms.upper)
    least = (1 - p) * square.lower + p * norms.lower
    return Range(
        2 * trace.value / ((1 - p) * square.value + p * norms.value),
        low,
        2 * trace.upper / least if least > 0 else math.inf,
    )
