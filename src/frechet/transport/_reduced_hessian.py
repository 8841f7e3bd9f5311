"""The Hessian of the dual function of g alone, from a plan without its small entries.

With f eliminated the Hessian is S = diag(P'1) - P' diag(1/a) P, a weighted graph Laplacian on the columns: columns j
and k are joined by sum_i P_ij P_ik / a_i. Dropping entries of P from the product but keeping the full sums P1 and P'1
on the diagonal leaves the mass that was dropped there as an excess, so the matrix stays diagonally dominant: it is
positive definite as soon as there is an excess or a shift, whatever was dropped.

Near a permutation almost all of diag(P'1) cancels against P' diag(1/a) P, and a difference computed as written has no
digits left; iterations with it stall at an error of 1e-9. Here every product is a sum of differences y_j - y_k with
positive weights: the largest entry of each row is held apart, and the diagonal is known by what joins the columns.

**Source.** X. Tang, M. Shavlovsky, H. Rahmanian, E. Tardini, K. K. Thekumparampil, T. Xiao and L. Ying (2024),
Accelerating Sinkhorn algorithms with sparse Newton iterations, arXiv 2401.12253; Z. Tang and Y. Qiu (2024), Safe and
sparse Newton method for entropic-regularized optimal transport, NeurIPS 2024 (which entries may go).

**Differs from the sources.** 1. f is eliminated. 2. The products without cancellation. 3. Entries below one threshold
per column are dropped, so that a column loses at most the mass allowed; the source sorts.

**Cost.** A product: two with the entries that are kept, beside O(n + m).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.operators._operator import PD, Fact, LinearOperator
from frechet.space import Space, euclidean

FILLED = 0.2  # of the entries kept: above this the rest is a dense matrix


@dataclass(frozen=True, eq=False, repr=False)
class ReducedHessian(LinearOperator):
    """epsilon times the Hessian in g, on R^m, sparsified and shifted."""

    rest: Tensor  # (n, m), what is kept beside the largest entry of each row; dense, or sparse by rows
    rest_transposed: Tensor
    largest: Tensor  # (n,), of each row
    at: Tensor  # (n,), its column
    a: Tensor  # (n,), the row sums of the whole plan
    sums: Tensor  # (n,), of the rows of `rest`
    excess: Tensor  # (m,), >= 0
    degree: Tensor  # (m,)
    own: Tensor  # (m,), what of the degree joins a column to itself
    kept: int  # entries

    @property
    def domain(self) -> Space:
        return euclidean(self.excess.shape[0], self.excess.dtype, self.excess.device)

    @property
    def codomain(self) -> Space:
        return self.domain

    @property
    def facts(self) -> frozenset[Fact]:
        return PD

    def _matmat(self, V: Tensor) -> Tensor:
        V = V.contiguous()
        top, inner = V[self.at], self.rest @ V
        share = (self.largest / self.a).unsqueeze(1)
        lost = self.rest_transposed @ (share * top + inner / self.a.unsqueeze(1))
        product = (self.excess + self.degree).unsqueeze(1) * V - lost
        return product.index_add_(0, self.at, share * (self.sums.unsqueeze(1) * top - inner))

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self._matmat(U)

    def diagonal(self) -> Tensor:
        """The diagonal ``(m,)``, as the sum of what joins each column to the others."""
        diagonal = self.excess + self.degree - self.own
        return diagonal.index_add_(0, self.at, self.largest * self.sums / self.a)


def reduced_hessian(P: Tensor, a: Tensor, b: Tensor, drop: float, shift: float) -> ReducedHessian:
    """S for a plan P with row sums a, plus shift diag(b); a column j drops entries of at most ``drop * b_j`` in sum."""
    n, m = P.shape
    largest, at = P.max(1)
    mask = (P * n > drop * b) & (P > 0)
    mask.scatter_(1, at.unsqueeze(1), True)
    small = torch.where(mask, 0.0, P)
    dropped_rows, dropped_columns = small.sum(1), small.sum(0)
    mask.scatter_(1, at.unsqueeze(1), False)
    kept = int(mask.sum())
    if kept > FILLED * n * m:
        rest = torch.where(mask, P, 0.0)
        transposed = rest.T.contiguous()
        own = (rest * rest).T @ (1 / a)
    else:
        rest, transposed = by_rows(P, mask), by_rows(P.T, mask.T)
        i, j = mask.nonzero(as_tuple=True)
        own = torch.zeros_like(b).index_add_(0, j, P[i, j].square() / a[i])
    # the largest entry is P's own, so that rows of which nothing else is left have no rounding in their sums
    sums = (rest @ torch.ones(m, 1, dtype=P.dtype, device=P.device))[:, 0]
    ends = torch.stack([dropped_rows / a, (largest + sums) / a], 1)
    both = transposed @ ends
    excess = dropped_columns + shift * b + both[:, 0]
    excess = excess.index_add(0, at, largest * dropped_rows / a)
    return ReducedHessian(rest, transposed, largest, at, a, sums, excess, both[:, 1], own, kept + n)


def by_rows(P: Tensor, mask: Tensor) -> Tensor:
    """The entries of P in the mask as a sparse tensor."""
    where = mask.nonzero()
    starts = torch.zeros(P.shape[0] + 1, dtype=torch.long, device=P.device)
    starts[1:] = mask.sum(1).cumsum(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse tensors a beta
        return torch.sparse_csr_tensor(starts, where[:, 1], P[mask], P.shape, check_invariants=False)
