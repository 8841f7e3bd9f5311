"""The Laplace approximation: a normal posterior of a model's parameters around the point where it was trained.

With S(x) the sum of the criterion's terms over the data, s = 1 (s = 1 / (2 noise^2) for squared errors), a normal prior
N(m, diag(prior)^-1) and H the Fisher matrix of S, which is its Gauss-Newton matrix for the usual likelihoods,

    log p(data, x)  =  -s S(x) + M/2 log(s / pi) - 1/2 (x - m)' diag(prior) (x - m) + 1/2 log det(diag(prior) / 2 pi)
    posterior       ~  N(mean, P^-1),      P = s H + diag(prior)

M counts the observed numbers; its term is there for squared errors alone. `mean` is the point itself, or, with
``mean="newton"``, x + P^-1 g with g the gradient of the log joint density: the mean of the linearized model, which is
the posterior's in linear-Gaussian models at any point.

    log evidence  =  log p(data, x) + n/2 log 2 pi - 1/2 log det P  [ + 1/2 g'P^-1 g with mean="newton" ]

`decrement` is the last term: how much log evidence the linearized model has more than the point shows. It is large
where the point is not a minimum for this prior.

**Source.** D. MacKay (1992), A practical Bayesian framework for backpropagation networks, Neural Computation 4; E.
Daxberger et al. (2021), Laplace Redux, arXiv 2106.14806; J. Antorán et al. (2022), Adapting the linearised Laplace
model evidence for modern deep learning, arXiv 2206.08900 (the point and the mean).
**Cost.** full: an example's gradient for each example and output, and n^2 numbers; diagonal, kron: as `kfac`; low rank:
as `eigsh`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import Tensor

from frechet.analyze._laplace.curvature import Kind
from frechet.analyze._laplace.structures import Structure
from frechet.linalg import diagonal, log_determinant
from frechet.linalg._shown import Result
from frechet.objective import Objective, Part, Snapshot
from frechet.objective.criteria import Criterion
from frechet.objective.criteria._criterion import Elementwise
from frechet.operators import LinearOperator, inverse
from frechet.space import Space

Mean = Literal["point", "newton"]


@dataclass(frozen=True, eq=False)
class Problem:
    """What is the same for all priors: the data's part of the log joint density around the point."""

    objective: Objective  # without penalties
    snapshot: Snapshot
    part: Part
    space: Space  # of the parameters with a posterior, in the model's dtype
    curvature: Structure
    point: Tensor  # (n,) float64
    total: float  # S
    slope: Tensor  # (n,) float64, the gradient of S
    terms: float  # M

    @property
    def normal(self) -> bool:
        """Whether there is a noise."""
        return is_squared_error(self.part.criterion)


def is_squared_error(criterion: Criterion) -> bool:
    """Whether a criterion is the squared error, whose likelihood has a noise."""
    return isinstance(criterion, Elementwise) and criterion.name == "squared_error"


@dataclass(frozen=True, eq=False)
class Posterior(Result):
    """A normal posterior. `precision` and `covariance` are operators in float64 on the parameters' blocks."""

    structure: Kind
    mean: Tensor  # (n,) float64
    prior_precision: Tensor  # (n,) float64
    noise: float | None  # standard deviation of the observations; None where the likelihood has none
    evidence: float  # log p(data), natural logarithm
    decrement: float
    effective_parameters: float  # n - tr(diag(prior) P^-1): how many the data determine
    message: str = ""  # how hyperparameters were chosen
    precision: LinearOperator = field(repr=False, kw_only=True)
    prior_mean: Tensor = field(repr=False, kw_only=True)
    about: Mean = field(repr=False, kw_only=True)
    problem: Problem = field(repr=False, kw_only=True)

    def _line(self) -> str:
        low, high = float(self.prior_precision.min()), float(self.prior_precision.max())
        prior = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        noise = "" if self.noise is None else f", noise {self.noise:.4g}"
        return (
            f"{self.structure}, {len(self.mean)} parameters, prior precision {prior}{noise}, "
            f"log evidence {self.evidence:.5g}, {self.effective_parameters:.4g} effective parameters"
        )

    @cached_property
    def covariance(self) -> LinearOperator:
        """P^-1."""
        return inverse(self.precision)

    @cached_property
    def variance(self) -> Tensor:
        """The variance of each parameter ``(n,)``."""
        return diagonal(self.covariance).value


def posterior_at(
    problem: Problem, kind: Kind, prior: Tensor, noise: float | None, center: Tensor, about: Mean, message: str = ""
) -> Posterior:
    """The posterior for a prior N(center, diag(prior)^-1) and a noise, and its evidence."""
    s = 1.0 if noise is None else 1 / (2 * noise**2)
    space, x = problem.curvature.domain, problem.point
    problem.curvature.refuse_prior("laplace", prior)
    P = problem.curvature.precision(s, prior)
    g = -s * problem.slope - prior * (x - center)
    step = inverse(P) @ g
    decrement = float(space.inner(g, step)) / 2
    joint = -s * problem.total - float(space.inner(x - center, prior * (x - center))) / 2 + float(prior.log().sum()) / 2
    if noise is not None:
        joint += problem.terms / 2 * math.log(s / math.pi)
    evidence = joint - float(log_determinant(P).value) / 2 + (decrement if about == "newton" else 0.0)
    found = Posterior(
        structure=kind,
        mean=x + step if about == "newton" else x,
        prior_precision=prior,
        noise=noise,
        evidence=evidence,
        decrement=decrement,
        effective_parameters=math.nan,
        message=message,
        precision=P,
        prior_mean=center,
        about=about,
        problem=problem,
    )
    return replace(found, effective_parameters=float((1 - prior * found.variance).sum()))
