"""The evidence's gradient in prior precision and noise, and the hyperparameters of largest evidence.

With the variance v_i of parameter i, the mean's distance d from the prior's mean, and S(mean) the sum of the terms at
the mean (of the linearized model with ``mean="newton"``):

    d / d log prior_i   =  1/2 (1 - prior_i (d_i^2 + v_i))
    d / d log noise     =  2 s S(mean) + tr(s H P^-1) - M,      tr(s H P^-1) = n - sum_i prior_i v_i

so that the diagonal of the covariance gives all. The logarithms are found by L-BFGS-B between 1e-8 and 1e8 times where
they start: a group whose parameters the data do not need goes to the upper end.

**Source.** D. MacKay (1992), Bayesian interpolation, Neural Computation 4, equations 2.20 and 2.23; R. H. Byrd, P.
Lu, J. Nocedal, C. Zhu (1995), A limited memory algorithm for bound constrained optimization, SIAM J. Sci. Comput. 16.
**Cost.** An evaluation is a determinant and a diagonal in closed form; no pass over the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.analyze._laplace.posterior import Posterior, posterior_at
from frechet.linalg._shown import Result
from frechet.space import Space

By = Literal["one", "block", "entry"] | Sequence[str]
REACH = 1e8  # from the start, down and up


@dataclass(frozen=True, eq=False)
class EvidenceGradient(Result):
    """Derivatives of the log evidence in the logarithm of each entry of the prior precision, and of the noise."""

    prior_precision: Tensor  # (n,) float64
    noise: float | None


def evidence_gradient(posterior: Posterior) -> EvidenceGradient:
    """Return the gradient of the log evidence in the logarithms of prior precision and noise.

    The derivative in one precision that several parameters share is the sum over them.

    Args:
        posterior: the Laplace approximation.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import evidence_gradient, laplace
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> X = torch.tensor([[1.0], [2.0]])
        >>> found = laplace(Objective(model, squared_error(), [(X, X)]), structure="full", mean="newton")
        >>> evidence_gradient(found).prior_precision  # (1 - (0.8333^2 + 0.1667)) / 2
        tensor([0.0694], dtype=torch.float64)
    """
    p, prior = posterior.problem, posterior.prior_precision
    space = p.curvature.domain
    away = posterior.mean - posterior.prior_mean
    by_entry = (1 - prior * (away.square() + posterior.variance)) / 2
    if posterior.noise is None:
        return EvidenceGradient(by_entry, None)
    s, d = 1 / (2 * posterior.noise**2), posterior.mean - p.point
    total = p.total + float(space.inner(p.slope, d)) if posterior.about == "newton" else p.total
    if posterior.about == "newton":  # s d'H d = d'(P - diag(prior)) d
        total += float(space.inner(d, posterior.precision @ d - prior * d)) / (2 * s)
    return EvidenceGradient(by_entry, 2 * s * total + posterior.effective_parameters - p.terms)


def with_prior(
    posterior: Posterior, *, prior_precision: float | Tensor | None = None, noise: float | None = None
) -> Posterior:
    """Return the posterior for another prior precision or noise, without a pass over the data.

    Args:
        posterior: the Laplace approximation.
        prior_precision: a number or a vector ``(n,)``. Default: as it was.
        noise: the standard deviation of the observations. Default: as it was.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import laplace, with_prior
        >>> X = torch.tensor([[1.0], [2.0]])
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> found = laplace(Objective(model, squared_error(), [(X, X)]), structure="full")
        >>> with_prior(found, prior_precision=5.0).variance  # 1 / (X'X + 5)
        tensor([0.1000], dtype=torch.float64)
    """
    space = posterior.problem.curvature.domain
    prior = posterior.prior_precision
    if prior_precision is not None:
        given = torch.as_tensor(prior_precision, dtype=torch.float64, device=space.device)
        if given.ndim > 1 or (given.ndim and len(given) != space.dim) or not bool((given > 0).all()):
            raise ValueError(
                f"with_prior: prior_precision must be a positive number or vector ({space.dim},), got shape "
                f"{tuple(given.shape)}"
            )
        prior = given.expand(space.dim)
    if noise is not None and (posterior.noise is None or not noise > 0):
        raise ValueError(f"with_prior: noise must be positive, and there must be one, got {noise} for {posterior!r}")
    sigma = posterior.noise if noise is None else noise
    return posterior_at(
        posterior.problem, posterior.structure, prior, sigma, posterior.prior_mean, posterior.about, posterior.message
    )


def tune_evidence(
    posterior: Posterior, *, by: By = "one", noise: bool = True, gtol: float = 1e-5, max_iterations: int = 200
) -> Posterior:
    """Find the prior precision, and the noise, of largest evidence.

    With ``mean="point"`` the trained parameters stay the mean; with ``"newton"`` the mean follows the prior.

    Args:
        posterior: the Laplace approximation to start at.
        by: one precision for all parameters, for each ``"block"`` (with K-FAC each layer), for each ``"entry"``, or for
            each group of parameters, by a list of glob patterns; the first pattern that matches a name counts.
        noise: whether the noise is chosen too, where there is one.
        gtol: the largest derivative in a logarithm at the end.
        max_iterations: of L-BFGS-B.

    Returns:
        A `Posterior`, whose `message` says how the search ended.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import evidence_gradient, laplace, tune_evidence
        >>> _ = torch.manual_seed(0)
        >>> X, y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
        >>> objective = Objective(torch.nn.Linear(3, 1).double(), squared_error(), [(X, y)])
        >>> found = tune_evidence(laplace(objective, structure="full", mean="newton"))
        >>> abs(float(evidence_gradient(found).prior_precision.sum())) < 1e-5
        True
    """
    if isinstance(by, str) and by not in ("one", "block", "entry"):
        raise ValueError(f"tune_evidence: by must be 'one', 'block', 'entry' or a list of patterns, got {by!r}")
    group = _groups(posterior, by)
    k = int(group.max()) + 1
    noisy = noise and posterior.noise is not None
    prepared = (
        posterior.problem
        if by != "one"
        else replace(posterior.problem, curvature=posterior.problem.curvature.for_many_priors())
    )
    first = torch.zeros(k, dtype=torch.float64).scatter_reduce(
        0, group.cpu(), posterior.prior_precision.log().cpu(), "mean", include_self=False
    )
    start = np.append(first.numpy(), [math.log(posterior.noise)] if noisy and posterior.noise else [])

    def made(logs: np.ndarray, message: str = "") -> Posterior:
        prior = torch.from_numpy(np.exp(logs[:k])).to(group.device)[group]
        sigma = math.exp(logs[k]) if noisy else posterior.noise
        return posterior_at(prepared, posterior.structure, prior, sigma, posterior.prior_mean, posterior.about, message)

    def evaluate(logs: np.ndarray) -> tuple[float, np.ndarray]:
        here = made(logs)
        found = evidence_gradient(here)
        summed = torch.zeros(k, dtype=torch.float64, device=group.device).index_add_(0, group, found.prior_precision)
        return -here.evidence, -np.append(
            summed.cpu().numpy(), [] if found.noise is None or not noisy else [found.noise]
        )

    return _searched(evaluate, made, start, gtol, max_iterations)


def _searched(
    evaluate: Callable[[np.ndarray], tuple[float, np.ndarray]],
    made: Callable[[np.ndarray, str], Posterior],
    start: np.ndarray,
    gtol: float,
    max_iterations: int,
) -> Posterior:
    reach = math.log(REACH)
    run = scipy.optimize.minimize(
        evaluate, start, jac=True, method="L-BFGS-B", bounds=[(v - reach, v + reach) for v in start],
        options={"gtol": gtol, "ftol": 0.0, "maxiter": max_iterations},
    )  # fmt: skip
    ends = int(np.sum(np.abs(run.x - start) >= reach))
    at_ends = f", {ends} of {len(start)} at the end of their range" if ends else ""
    return made(run.x, f"{run.message}, {run.nfev} evaluations{at_ends}")


def _groups(posterior: Posterior, by: By) -> Tensor:
    """The number of each parameter's group ``(n,)``."""
    space = posterior.problem.curvature.domain
    if by == "one":
        return space.zeros().long()
    if by == "entry":
        return torch.arange(space.dim, device=space.device)
    if by != "block":
        return _by_patterns(space, by)
    group, together = space.zeros().long(), {n: names for names in posterior.problem.curvature.groups for n in names}
    seen: dict[tuple[str, ...], int] = {}
    for name in space.names:
        group[space.block(name)] = seen.setdefault(together.get(name, (name,)), len(seen))
    return group


def _by_patterns(space: Space, patterns: Sequence[str]) -> Tensor:
    """The number of each parameter's group, by the first pattern that matches its name."""
    group, used = space.zeros().long(), set()
    for name in space.names:
        first = next((i for i, pattern in enumerate(patterns) if fnmatchcase(name, pattern)), None)
        if first is None:
            raise ValueError(
                f"tune_evidence: by must match every parameter, got {list(patterns)} without '{name}'; end with '*'"
            )
        group[space.block(name)] = first
        used.add(first)
    if len(used) < len(patterns):
        idle = next(p for i, p in enumerate(patterns) if i not in used)
        raise ValueError(f"tune_evidence: each pattern of by must be the first to match a parameter, got '{idle}'")
    return group
