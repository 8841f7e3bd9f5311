"""The Laplace approximation of an objective: the point, the data's part of the log density, and the default prior.

A penalty c / 2 |x - m|^2 of a mean over M terms is the logarithm of a normal prior with precision c M (over the mean of
squared errors c M s): its Hessian is tested to be diagonal and constant, by gradients at three random points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from frechet.analyze._examples import _one_part
from frechet.analyze._laplace.curvature import Asked, Kind, curvature_of
from frechet.analyze._laplace.posterior import Mean, Posterior, Problem, is_squared_error, posterior_at
from frechet.analyze._single_examples import refuse_group
from frechet.objective import Objective, Part, Snapshot
from frechet.objective.criteria._criterion import Criterion
from frechet.operators.derivatives._kfac_sums import Sharing
from frechet.operators.derivatives._products import grads
from frechet.space import Space

WHAT = "laplace"
ROUNDING = 1e-4  # of the gradient of a penalty in single precision, divided by small numbers
Prior = float | Mapping[str, float] | Tensor


def laplace(
    objective: Objective,
    *,
    structure: Kind = "kron",
    prior_precision: Prior | None = None,
    prior_mean: float | Tensor = 0.0,
    noise: float = 1.0,
    mean: Mean = "point",
    rank: int = 50,
    sharing: Sharing = "expand",
    joint: bool = True,
    samples: int | None = None,
    seed: int = 0,
    x: Tensor | None = None,
    restrict: str | list[str] | None = None,
) -> Posterior:
    """Return the Laplace approximation of the posterior of a model's parameters.

    The criterion is the likelihood: `squared_error` a normal one with standard deviation `noise`; `cross_entropy`,
    `binary_cross_entropy`, `poisson` and `gaussian` their own. The objective's penalties do not enter but by the
    default of `prior_precision`.

    Args:
        objective: the objective, with one data term of weight 1, at the point where the model was trained.
        structure: ``"full"`` (at most 10 000 parameters), ``"kron"`` (`kfac`), ``"ekfac"`` (the same with exact second
            moments), ``"diagonal"`` or ``"low_rank"``.
        prior_precision: the inverse variance of the normal prior: a number, a dict of glob patterns as in
            `Space.vector`, or a vector ``(n,)``. Default: the one of which the objective's l2 penalty is the logarithm,
            or 1 without a penalty.
        prior_mean: the prior's mean, a number or a vector ``(n,)``. Default: 0.
        noise: the standard deviation of the observations, for `squared_error`. Default: 1.
        mean: ``"point"`` or ``"newton"``, see the module. Default: the point.
        rank: how many eigenpairs ``"low_rank"`` keeps. Default: 50.
        sharing: how ``"kron"`` and ``"ekfac"`` treat positions of an example, as in `kfac`.
        joint: whether the weight and the bias of a layer are one block of ``"kron"`` and ``"ekfac"``.
        samples: how many sets of labels ``"kron"`` and ``"ekfac"`` draw, for models with many outputs. Default: none,
            the exact expectation over labels, with a backward pass for each output of an example.
        seed: of the labels, and of the first vector of the eigenvalue solver of ``"low_rank"``.
        x: the point ``(n,)``. Default: the model's present parameters.
        restrict: a glob pattern, or several, of the parameters that have a posterior, such as ``"head.*"``. The others
            are taken for known. Default: all trainable ones.

    Returns:
        A `Posterior`. `tune_evidence` chooses its prior and noise, `predict` and `draw` use it.

    Raises:
        ValueError: the criterion is no likelihood, the objective has several data terms or a weight, or the prior does
            not fit.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import laplace
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> X = torch.tensor([[1.0], [2.0]])
        >>> found = laplace(Objective(model, squared_error(), [(X, X)]), structure="full", mean="newton")
        >>> found.mean, found.variance  # X'y / (X'X + 1), 1 / (X'X + 1)
        (tensor([0.8333], dtype=torch.float64), tensor([0.1667], dtype=torch.float64))
    """
    snapshot, part = _one_part(WHAT, objective, x)
    refuse_group(snapshot, WHAT)
    _require_likelihood(part.criterion)
    if snapshot.dropout_seed is not None:
        raise ValueError("laplace: examples must not depend on their batch, got dropout_seed; call model.eval()")
    if part.weight != 1.0:
        raise ValueError(
            f"laplace: the objective's weight must be 1, got {part.weight:.4g}: a likelihood has none; divide it out"
        )
    if not (noise > 0 and math.isfinite(noise)):
        raise ValueError(f"laplace: noise must be a positive number, got {noise}")
    if not is_squared_error(part.criterion) and noise != 1.0:
        raise ValueError(f"laplace: noise is a parameter of squared_error alone, got {noise} with another criterion")
    if mean not in ("point", "newton"):
        raise ValueError(f"laplace: mean must be 'point' or 'newton', got {mean!r}")
    space = snapshot.space if restrict is None else snapshot.space.restrict(restrict)
    plain = objective._with(objective.parts, ())
    terms, examples = _counted(snapshot, part)
    grown = 1.0 if objective.population is None else objective.population / examples
    at = snapshot.space.indices(space)
    total = float(plain.value(snapshot.x)) * terms * grown
    slope = plain.gradient(snapshot.x)[at].double() * terms * grown
    asked = Asked(structure, rank, sharing, joint, samples, seed)
    H = curvature_of(WHAT, plain, snapshot, space, asked, terms, grown)
    problem = Problem(plain, snapshot, part, space, H, snapshot.x[at].double(), total, slope, terms * grown)
    sigma = noise if problem.normal else None
    prior = _prior(objective, problem, prior_precision, at, 1.0 if sigma is None else 1 / (2 * sigma**2))
    center = torch.as_tensor(prior_mean, dtype=torch.float64, device=space.device).expand(space.dim)
    return posterior_at(problem, structure, prior, sigma, center, mean)


def _counted(snapshot: Snapshot, part: Part) -> tuple[float, int]:
    """The terms and the examples of the data."""
    terms, examples = 0.0, 0
    for batch in part.batches(snapshot.space.device):
        terms += float(snapshot.count(part, batch))
        examples += batch.examples
    return terms, examples


def _prior(objective: Objective, problem: Problem, given: Prior | None, at: Tensor, scale: float) -> Tensor:
    """The prior precision ``(n,)``."""
    space = problem.curvature.domain
    if given is None:
        prior = _of_penalty(problem.snapshot)
        prior = space.zeros() + 1.0 if prior is None else prior[at] * problem.terms * scale
    elif isinstance(given, Mapping):
        prior = space.vector(given)
    else:
        prior = torch.as_tensor(given, dtype=torch.float64, device=space.device)
        if prior.ndim > 1 or (prior.ndim and len(prior) != space.dim):
            raise ValueError(
                f"laplace: prior_precision must be a number, a dict or a vector ({space.dim},), got shape "
                f"{tuple(prior.shape)}"
            )
        prior = prior.expand(space.dim).clone()
    if not bool(((prior > 0) & prior.isfinite()).all()):
        told = "got one that is 0, negative or not finite"
        if given is None:
            told = "the objective's penalty leaves some parameters free; pass prior_precision="
        raise ValueError(f"laplace: prior_precision must be positive on every parameter, {told}")
    return prior


def _of_penalty(snapshot: Snapshot) -> Tensor | None:
    """The diagonal of the penalties' Hessian, float64, where that is diagonal and constant; None without penalties."""
    if not snapshot.penalties:
        return None
    space = snapshot.space

    def slope(v: Tensor) -> Tensor:
        leaves, blocks = replace(snapshot, x=v).leaves(space)
        with torch.enable_grad():
            return space.join(grads(snapshot.penalty(blocks), leaves, None)).double()

    V = space.random(range(2), 0, "gaussian")
    zero = slope(space.zeros())
    rows = [(slope(v) - zero) / v.double() for v in V.T]
    together = (slope(V.sum(1)) - zero) / V.sum(1).double()
    size = float(rows[0].abs().max())
    off = max(float((row - together).abs().max()) for row in rows)
    if float(zero.abs().max()) > ROUNDING * size or not off <= ROUNDING * max(size, 1e-300):
        raise ValueError(
            "laplace: the default of prior_precision needs a penalty sum_i c_i x_i^2 / 2 such as l2(c), got another "
            "one; pass prior_precision="
        )
    return _without_rounding(space, (rows[0] + rows[1]) / 2)


def _without_rounding(space: Space, diagonal: Tensor) -> Tensor:
    """One number for each block whose entries differ by rounding alone, and for blocks whose numbers do."""
    found, kept = diagonal.clone(), []
    for name in space.names:
        block = diagonal[space.block(name)]
        middle = float(block.median())
        if float((block - middle).abs().max()) <= ROUNDING * abs(middle):
            middle = next((c for c in kept if abs(c - middle) <= ROUNDING * abs(c)), middle)
            kept.append(middle)
            found[space.block(name)] = middle
    return found


def _require_likelihood(criterion: Criterion) -> None:
    try:
        criterion.require_likelihood()
    except ValueError as error:
        raise ValueError(
            "laplace: the criterion must be a likelihood, such as squared_error or cross_entropy without class "
            f"weights and smoothing, got {getattr(criterion, 'name', type(criterion).__name__)}"
        ) from error
