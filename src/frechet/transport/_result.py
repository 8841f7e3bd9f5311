"""What `sinkhorn` returns and what it shows while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.errors import NotConverged
from frechet.linalg._result import Status
from frechet.transport._certificate import transport_bounds
from frechet.transport._dual_hessian import DualHessian, dual_hessian


@dataclass(frozen=True, eq=False)
class TransportState:
    """One moment of `sinkhorn`, to watch it or to `resume` from it.

    `f` and `g` are potentials of all rows and columns at `epsilon`, which falls to the one that was asked for; `kind`
    says what led here.
    """

    fingerprint: tuple[str, ...]
    iteration: int
    kind: str  # "start", "sweeps" or "newton"
    epsilon: float
    marginal_error: float
    f: Tensor
    g: Tensor


@dataclass(frozen=True, eq=False)
class TransportSolution:
    """A transport plan, by its potentials: P = a b'/m exp((f + g - C) / epsilon), with m the mass.

    All numbers are recomputed at exit from f and g as they are here. The regularized problem is

        min <C, P> + epsilon KL(P | a b'/m),    KL(P | R) = sum P log(P / R)

    `value` is <C, P>; `regularized_value` adds epsilon KL at P; `dual_value` is a'f + b'g - epsilon (sum(P) - m), which
    no plan's regularized value can be below; `gap` is the distance from it to the regularized value of a plan with
    exactly the marginals a and b, made from P: a bound on what is lost. It is inf where making one needs a forbidden
    pair. `marginal_error` is sum |P 1 - a| + sum |P' 1 - b|. The potentials have sum a f = sum b g (in each component,
    where forbidden pairs split the problem).
    """

    f: Tensor  # (n,)
    g: Tensor  # (m,)
    cost: Tensor = field(repr=False)  # (n, m), inf also on pairs that no plan can use
    a: Tensor = field(repr=False)
    b: Tensor = field(repr=False)
    epsilon: float
    status: Status
    message: str
    value: float
    regularized_value: float
    dual_value: float
    gap: float
    marginal_error: float
    sweeps: int  # of Sinkhorn
    newton_steps: int
    products: int  # with the Hessian of the dual function, in Newton's steps
    method: str
    history: tuple[float, ...] = field(default=(), repr=False)  # marginal error after each round of sweeps or step

    @property
    def iterations(self) -> int:
        return self.sweeps + self.newton_steps

    @property
    def converged(self) -> bool:
        return self.status is Status.CONVERGED

    def plan(self) -> Tensor:
        """P ``(n, m)``, computed anew."""
        mass = self.a.sum()
        return torch.exp(exponent(self.f, self.g, self.cost, self.a, self.b, self.epsilon, mass))

    def barycentric(self, y: Tensor) -> Tensor:
        """Where each row goes on average: P y / (P 1) for the points y ``(m, d)`` of the columns; ``(n, d)``.

        Rows without mass go where the formula of the potentials sends them.
        """
        if y.ndim != 2 or y.shape[0] != self.g.shape[0]:
            raise ValueError(f"barycentric: y must have shape ({self.g.shape[0]}, d), got {tuple(y.shape)}")
        weights = torch.softmax((self.g - self.cost) / self.epsilon + self.b.log(), 1)
        return weights @ y

    def hessian(self) -> DualHessian:
        """The Hessian of the negative dual function at (f, g), an operator."""
        return dual_hessian(self.plan(), self.epsilon)

    def unregularized_bounds(self) -> tuple[float, float]:
        """A lower and an upper bound on min <C, P> without entropy. The upper one is inf if a forbidden pair is met."""
        return transport_bounds(self.plan(), self.f, self.a, self.b, self.cost)

    def checked(self) -> TransportSolution:
        """This solution if it converged; raises `NotConverged` otherwise."""
        if self.converged:
            return self
        raise NotConverged(
            f"sinkhorn: {self.message} (status '{self.status}', marginal error {self.marginal_error:.3g})", self
        )


def exponent(f: Tensor, g: Tensor, cost: Tensor, a: Tensor, b: Tensor, epsilon: float, mass: Tensor) -> Tensor:
    """log P, from potentials; -inf where there is no mass."""
    return (f.unsqueeze(1) + g - cost) / epsilon + a.log().unsqueeze(1) + (b / mass).log()
