"""What stands for the curvature H of the log-likelihood, and the precision s H + diag(prior) in each structure.

    full         H, dense                                          Cholesky, or eigenvectors where many priors are tried
    diagonal     the exact diagonal of H
    kron         B kron A for each layer, or EK-FAC                eigenvectors Q of all layers: Q (s values + prior) Q'
    low rank     U diag(values) U', the largest eigenpairs of H    Woodbury's identity

The precision is an operator whose inverse, root, determinant and diagonal have closed forms, in float64. In `kron` a
prior must be constant on each layer, where Q diag(prior) Q' = diag(prior).

**Source.** H. Ritter, A. Botev, D. Barber (2018), A scalable Laplace approximation for neural networks (the factors);
E. Daxberger et al. (2021), Laplace Redux, arXiv 2106.14806.
**Differs from the source.** (1) The prior of `kron` is added to the eigenvalues of the product, not to the factors. (2)
Low rank keeps the prior in all directions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from frechet.operators import (
    LinearOperator,
    block_diagonal,
    from_diagonal,
    from_matrix,
    identity,
    inverse,
    square_root,
)
from frechet.operators._eigendecomposition import eigendecomposition, spectral
from frechet.operators._structured import Permuted
from frechet.operators.derivatives._kfac import Kfac
from frechet.operators.derivatives._kfac_blocks import basis_of, block_of, corrected_block
from frechet.space import Space


class Structure(ABC):
    """H on the parameters that have a posterior; `domain` is in float64."""

    domain: Space
    groups: tuple[tuple[str, ...], ...]  # the blocks on which a prior must be constant together

    @abstractmethod
    def precision(self, scale: float, prior: Tensor) -> LinearOperator: ...  # s H + diag(prior)

    @abstractmethod
    def root(self, scale: float, prior: Tensor) -> LinearOperator: ...  # R with R R' = precision^-1

    def for_many_priors(self) -> Structure:
        """The same curvature, prepared so that one more prior costs little."""
        return self

    def refuse_prior(self, what: str, prior: Tensor) -> None:
        """Raise for a prior that this structure cannot have."""
        for names in self.groups:
            values = torch.cat([prior[self.domain.block(n)] for n in names])
            if len(names) and not bool((values == values[0]).all()):
                raise ValueError(
                    f"{what}: with structure='kron' the prior precision must be one number on the parameters "
                    f"{', '.join(names)} of a layer, got {float(values.min()):.4g} to {float(values.max()):.4g}; "
                    "use joint=False to separate weights from biases, or structure='diagonal'"
                )


def _constant(prior: Tensor) -> bool:
    return bool((prior == prior[0]).all())


@dataclass(frozen=True, eq=False)
class Full(Structure):
    """H as a matrix ``(n, n)``."""

    H: Tensor
    domain: Space
    groups = ()

    def precision(self, scale: float, prior: Tensor) -> LinearOperator:
        if _constant(prior) and "_eigenvectors" in self.__dict__:
            return self._eigenvectors.precision(scale, prior)
        P = scale * self.H + prior.diag()
        if int(torch.linalg.cholesky_ex(P)[1]):
            raise ValueError(
                "laplace: the precision must be positive definite to working precision, got a prior precision of "
                f"{float(prior.min()):.3g} beside curvatures up to {float(P.diagonal().max()):.3g}; raise "
                "prior_precision"
            )
        return from_matrix(P, domain=self.domain, facts="positive_definite")

    def root(self, scale: float, prior: Tensor) -> LinearOperator:
        triangle = torch.linalg.cholesky(scale * self.H + prior.diag(), upper=True)  # P = U'U
        eye = torch.eye(len(prior), dtype=triangle.dtype, device=triangle.device)
        return from_matrix(torch.linalg.solve_triangular(triangle, eye, upper=True), domain=self.domain)

    @cached_property
    def _eigenvectors(self) -> Spectral:
        E = eigendecomposition(from_matrix(self.H, domain=self.domain, facts="positive_semidefinite"), "laplace")
        return Spectral(E.Q, E.values, self.domain, ())

    def for_many_priors(self) -> Structure:
        assert self._eigenvectors is not None  # computed here, once
        return self


@dataclass(frozen=True, eq=False)
class Spectral(Structure):
    """Q diag(values) Q', where Q mixes only the parameters of a group."""

    Q: LinearOperator
    values: Tensor
    domain: Space
    groups: tuple[tuple[str, ...], ...]

    def precision(self, scale: float, prior: Tensor) -> LinearOperator:
        return spectral(self.Q, scale * self.values + prior)

    def root(self, scale: float, prior: Tensor) -> LinearOperator:
        return spectral(self.Q, (scale * self.values + prior).rsqrt())


@dataclass(frozen=True, eq=False)
class OnDiagonal(Structure):
    """diag(values)."""

    values: Tensor
    domain: Space
    groups = ()

    def precision(self, scale: float, prior: Tensor) -> LinearOperator:
        return from_diagonal(scale * self.values + prior, domain=self.domain)

    def root(self, scale: float, prior: Tensor) -> LinearOperator:
        return from_diagonal((scale * self.values + prior).rsqrt(), domain=self.domain)


@dataclass(frozen=True, eq=False)
class OfLowRank(Structure):
    """U diag(values) U' with U ``(n, k)`` orthonormal."""

    U: Tensor
    values: Tensor
    domain: Space
    groups = ()

    def _scaled(self, scale: float, prior: Tensor) -> LinearOperator:
        """s D^-1/2 U diag(values) U' D^-1/2 + I."""
        V = self.U * (scale * self.values).sqrt() * prior.rsqrt()[:, None]
        columns = from_matrix(V, codomain=self.domain)
        return columns @ columns.T + identity(self.domain)

    def precision(self, scale: float, prior: Tensor) -> LinearOperator:
        columns = from_matrix(self.U * (scale * self.values).sqrt(), codomain=self.domain)
        shift = (
            float(prior[0]) * identity(self.domain) if _constant(prior) else from_diagonal(prior, domain=self.domain)
        )
        return columns @ columns.T + shift

    def root(self, scale: float, prior: Tensor) -> LinearOperator:
        inner = square_root(inverse(self._scaled(scale, prior)))
        return from_diagonal(prior.rsqrt(), domain=self.domain) @ inner


def of_kfac(K: Kfac, corrected: bool, count: float, domain: Space) -> Spectral:
    """count K in float64, by its eigenvectors."""
    if corrected:
        sizes = [sum(domain.sizes[domain.names.index(n)] for n in f.names) for f in K.layers]
        moments = eigendecomposition(K, "laplace").values[K.order].split(sizes)
        pairs = [(f, basis_of(f), m) for f, m in zip(K.layers, moments, strict=True)]
        blocks = [block_of(f, domain) if b is None else corrected_block(f, b, m.double(), domain) for f, b, m in pairs]
    else:
        blocks = [block_of(f, domain) for f in K.layers]
    E = eigendecomposition(Permuted(block_diagonal(*blocks), K.order, domain), "laplace")
    groups = tuple(f.names for f in K.layers if f.diagonal is None)
    return Spectral(E.Q, count * E.values, domain, groups)
