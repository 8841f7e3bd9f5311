"""The Gaussian posterior of an inverse problem at its solution, from a few eigenpairs of products.

With the prior N(m, M^-1), R R' = M^-1, and residuals r(x) of unit noise, the Gauss-Newton matrix of the negative log
posterior is J'J + M. In the variables of the prior it is I + R'J'J R = I + W L W' + (what is small), so that

    covariance = M^-1 - V D V',  V = R W,  D = L / (1 + L)
    sample     = x + R (z + W ((1 + L)^-1/2 - 1) W'z),  z normal

Data inform few directions: those with eigenvalues above 1. Left out eigenvalues, all <= l, change a variance by at most
l / (1 + l) times what the directions that were found leave of the prior's.

**Source.** T. Bui-Thanh, O. Ghattas, J. Martin and G. Stadler (2013), A computational framework for
infinite-dimensional Bayesian inverse problems, section 5.2, doi 10.1137/12089586X.
**Cost.** About 2 rank products with J and J' each and twice as many vectors. Variances cost n Riesz maps of the prior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotConverged
from frechet.linalg import Spectrum, eigsh
from frechet.operators import LinearOperator, Metric, from_callable
from frechet.operators.derivatives import jacobian
from frechet.space import Point, Variables

BLOCK = 64  # unit vectors at once


@dataclass(frozen=True, eq=False, repr=False)
class Posterior:
    """A Gaussian N(mean, M^-1 - V D V').

    Attributes:
        mean: the point of linearization ``(n,)``, flat.
        prior: the metric M, the precision of the prior.
        values: eigenvalues ``(rank,)`` of the prior-preconditioned Gauss-Newton matrix, descending: how many times more
            the data know of a direction than the prior.
        vectors: V ``(n, rank)``, the directions, orthonormal in M.
        left_out: a bound of the eigenvalues that were left out: the next one that was found, with its residual. Zero
            where none is left out.
        spectrum: the result of `eigsh`.
    """

    mean: Tensor
    prior: Metric
    values: Tensor
    vectors: Tensor
    left_out: float
    spectrum: Spectrum

    def __repr__(self) -> str:
        told = f"{len(self.values)} directions, those left out at most {self.left_out:.3g} times as sure as the prior"
        return f"Posterior({self.prior.space!r}, {told})"

    @property
    def covariance(self) -> LinearOperator:
        """The covariance as an operator, that of the Gauss-Newton matrix up to `left_out`."""
        V, d, inverse = self.vectors, self._shrunk, self.prior.inverse
        return from_callable(
            lambda U: inverse @ U - V @ (d[:, None] * (V.T @ U)), self.prior.space, facts="positive_semidefinite"
        )

    def variance(self) -> tuple[Tensor, Tensor]:
        """Return the variances ``(n,)`` and their errors: the true ones lie between value - error and value."""
        before = _diagonal(self.prior)
        squares = self.vectors.square()
        share = self.left_out / (1 + self.left_out)
        error = share * (before - squares.sum(1)).clamp(min=0)
        return before - squares @ self._shrunk, error

    def samples(self, count: int, *, seed: int) -> Tensor:
        """Return draws ``(n, count)``.

        Args:
            count: how many.
            seed: of the draws; more draws extend the first ones.
        """
        R, space = self._factor, self.prior.space
        Z = space.random(range(count), seed, "gaussian")
        W = R.T @ (self.prior.mass @ self.vectors)
        Z = Z + W @ (((1 + self.values).rsqrt() - 1)[:, None] * space.gram(W, Z).to(Z))
        return self.mean[:, None] + R @ Z

    @property
    def _factor(self) -> LinearOperator:
        assert self.prior.factor is not None  # checked where this was made
        return self.prior.factor

    @property
    def _shrunk(self) -> Tensor:
        return self.values / (1 + self.values)


def low_rank_posterior(
    residual: Callable[..., Tensor], x: Point, prior: Metric, *, rank: int, seed: int, rtol: float = 1e-6
) -> Posterior:
    """Return the posterior at x of a prior of precision `prior` and of data with these residuals.

    Args:
        residual: a function of what x is to the residuals, each divided by the standard deviation of its noise.
        x: the point of linearization, as a rule the most probable one.
        prior: the precision of the prior, with a factor.
        rank: how many directions are kept, >= 1.
        seed: of the start vector of `eigsh`.
        rtol: that of `eigsh`.

    Raises:
        NotConverged: an eigenpair was not found to `rtol`.

    Example:
        >>> import torch
        >>> from frechet.calculus.functionals import sobolev
        >>> from frechet.physics import low_rank_posterior
        >>> prior = sobolev(50, 0.02, boundary="neumann")
        >>> data = torch.tensor([0.2, 0.4], dtype=torch.float64)
        >>> def misfit(u):
        ...     return (u[[10, 40]] - data) / 0.1
        >>> p = low_rank_posterior(misfit, torch.zeros(50, dtype=torch.float64), prior, rank=2, seed=0)
        >>> value, error = p.variance()
        >>> round(float(value[10]), 4), float(error.max()) < 1e-10  # a datum of variance 0.01, and the prior
        (0.0098, True)
    """
    if not isinstance(prior, Metric) or prior.factor is None:
        got = repr(prior) if isinstance(prior, Metric) else type(prior).__name__
        raise ValueError(f"low_rank_posterior: prior must be a Metric with a factor, got {got}")
    variables, n = Variables.of(x), prior.space.dim
    if variables.space.dim != n:
        raise ValueError(f"low_rank_posterior: x must have the {n} entries of the prior, got {variables.space.dim}")
    if not 1 <= rank <= n:
        raise ValueError(f"low_rank_posterior: rank must lie between 1 and {n}, got {rank}")
    if not bool(residual(x).isfinite().all()):
        raise NonFinite("low_rank_posterior: residual must be finite at x, got NaN or infinity; start from a solution")
    J, R = jacobian(residual, x), prior.factor
    G = from_callable(lambda Z: R.T @ (J.T @ (J @ (R @ Z))), R.domain, facts="positive_semidefinite")
    kept = min(rank + 1, n)
    found = eigsh(G, kept, which="largest", seed=seed, rtol=rtol)
    if not bool(found.converged[:rank].all()):
        raise NotConverged(
            f"low_rank_posterior: {rank} eigenpairs must converge, got {int(found.converged.sum())} ({found.status}); "
            "take a smaller rank or a larger rtol",
            found,
        )
    values = found.values[:rank].clamp(min=0).to(R.domain.dtype)
    left_out = float(found.values[rank].clamp(min=0) + found.residuals[rank]) if kept > rank else 0.0
    flat = variables.flatten(x)
    return Posterior(flat, prior, values, R @ found.vectors[:, :rank], left_out, found)


def _diagonal(prior: Metric) -> Tensor:
    """The variances of the prior."""
    space, parts = prior.space, []
    for a in range(0, space.dim, BLOCK):
        E = space.units(range(a, min(a + BLOCK, space.dim)))
        parts.append((prior.inverse @ E)[a : a + BLOCK].diagonal())
    return torch.cat(parts)
