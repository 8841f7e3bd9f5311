"""The Hessian of the dual function of both potentials, exact, as an operator.

    phi(f, g) = epsilon sum(P) - a'f - b'g,    Hessian = [diag(P1) P; P' diag(P'1)] / epsilon

It is positive semidefinite; (1, -1) is in its null space, and with forbidden pairs one such vector per component.

**Cost.** A product: one with P and one with P'. The plan is held.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.operators._operator import PSD, Fact, LinearOperator
from frechet.space import Space


@dataclass(frozen=True, eq=False, repr=False)
class DualHessian(LinearOperator):
    """On pairs (f, g) of potentials, as two blocks of one space."""

    plan: Tensor  # (n, m)
    rows: Tensor  # (n,), its sums
    columns: Tensor
    epsilon: float

    @property
    def domain(self) -> Space:
        n, m = self.plan.shape
        return Space(("f", "g"), ((n,), (m,)), self.plan.dtype, self.plan.device)

    @property
    def codomain(self) -> Space:
        return self.domain

    @property
    def facts(self) -> frozenset[Fact]:
        return PSD

    def _matmat(self, V: Tensor) -> Tensor:
        n = self.plan.shape[0]
        F, G = V.T[:, :n], V.T[:, n:]
        top = self.rows * F + G @ self.plan.T
        bottom = F @ self.plan + self.columns * G
        return torch.cat([top, bottom], 1).T / self.epsilon

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self._matmat(U)


def dual_hessian(plan: Tensor, epsilon: float) -> DualHessian:
    """The Hessian at the potentials of `plan`."""
    return DualHessian(plan, plan.sum(1), plan.sum(0), epsilon)
