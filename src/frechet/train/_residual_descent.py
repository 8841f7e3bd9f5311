"""Natural gradients of residual losses: L = r'r / 2 with the residuals r of a differential equation at points.

With J ``(m, n)`` the Jacobian of r,

    ENGD      d = -J'(J J' + damping I)^-1 r
    SPRING    d = mu d_last - J'(J J' + damping I)^-1 (r + mu J d_last)

ENGD is a Gauss-Newton step in function space, SPRING keeps of the last direction what the present points do not see.
The step is the best of d, d/2, d/4, ..., or has a fixed rate and a bound of its length, where points change each time.

**Source.** J. Mueller, M. Zeinhofer (2023), Achieving high accuracy with PINNs via energy natural gradient descent,
arXiv 2302.13163; G. Goldshlager, N. Abrahamsen, L. Lin (2024), A Kaczmarz-inspired approach to accelerate the
optimization of neural network wavefunctions, arXiv 2401.10190; both for PINNs: arXiv 2505.12149.
**Differs from the source.** (1) Singular values of J in the place of J'J or J J', whose rounding hides those below 1e-8
of the largest; those below `cut` are left out. (2) The line search halves the step until the loss rises again, instead
of evaluating thirty steps.
**Cost.** The Jacobian of the residuals; the singular values of an m x n matrix; a few evaluations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.optimize._least_squares.own_jacobian import OwnJacobian
from frechet.space import Point, Variables, named

HALVINGS = 30
CUT = 1e-10  # of singular values: equations of a network of 32 to 64 tanh units then end at 1e-10 relative and below


@dataclass(frozen=True, eq=False)
class ResidualState:
    """The last direction ``(n,)`` and the number of steps."""

    direction: Tensor
    steps: int = 0


@dataclass(frozen=True)
class ResidualStep:
    """The loss before and after a step, the factor of its direction, and how many singular values were kept."""

    loss: float
    after: float
    length: float
    rank: int
    values: int


def spring_init(x: Point) -> ResidualState:
    """Return the state before the first step from `x`, a tensor or a dict of tensors."""
    return ResidualState(torch.zeros_like(Variables.of(x).flatten(x)))


@torch.no_grad()
def spring_step(
    residual: OwnJacobian,
    x: Point,
    state: ResidualState,
    *,
    damping: float = 0.0,
    momentum: float = 0.0,
    lr: float | None = None,
    longest: float = math.inf,
    cut: float = CUT,
) -> tuple[Any, ResidualState, ResidualStep]:
    """Return the parameters after one step of SPRING, or of energy natural gradient descent where momentum is 0.

    Args:
        residual: the residuals at the points of this step, such as a `frechet.physics.collocation`, whose ``at`` and
            ``sample`` change the points.
        x: the parameters, a tensor or a dict of tensors.
        state: of `spring_init`, or of the last step.
        damping: is added to J J'.
        momentum: mu, in [0, 1). With points that change 0.9 to 0.99, and an lr of a few times 1 - mu at most; with
            fixed points 0.
        lr: a fixed rate. Default: the step is halved until the loss at the points rises again.
        longest: the bound of the length of a step of fixed rate, such as sqrt(1e-3).
        cut: singular values below it times the largest are left out.

    Returns:
        The parameters in the form of x, the next state, and how the step went.

    Raises:
        NonFinite: a residual or its derivative is not finite.

    Example:
        >>> import torch
        >>> from frechet.physics import collocation
        >>> from frechet.train import spring_init, spring_step
        >>> t = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
        >>> fit = collocation(lambda x, t: (x[0] * torch.exp(x[1] * t) - 2 * torch.exp(-t))[0], t)
        >>> x = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> state = spring_init(x)
        >>> for _ in range(8):
        ...     x, state, info = spring_step(fit, x, state)
        >>> x.round(decimals=9)
        tensor([ 2., -1.], dtype=torch.float64)
    """
    _check(damping, momentum, lr, longest, cut)
    if not isinstance(residual, OwnJacobian):
        raise TypeError(
            f"spring_step: residual must bring its Jacobian, as a frechet.physics.collocation does, got "
            f"{type(residual).__name__}"
        )
    variables = Variables.of(x)
    space, flat = variables.space, variables.flatten(x)
    r, J = _rows(residual, x), residual.jacobian(x)
    if not bool(r.isfinite().all()) or not bool(J.isfinite().all()):
        raise NonFinite("spring_step: residuals and their derivatives must be finite, got NaN or infinity")
    kept = momentum * state.direction
    pulled, rank = filtered(J, r + J @ kept if momentum else r, damping, cut)
    d = kept - pulled
    loss = float(r.square().sum()) / 2
    if lr is not None:
        size = float(space.norm(d))
        length = min(lr, longest / size) if size > 0 else 0.0
        moved, after, values = flat + length * d, math.nan, 0
    else:
        length, after, values = _searched(residual, variables, flat, d, loss)
        moved = flat + length * d
    info = ResidualStep(loss, after, length, rank, values)
    return variables.unflatten(moved), ResidualState(d, state.steps + 1), info


def filtered(J: Tensor, r: Tensor, damping: float, cut: float) -> tuple[Tensor, int]:
    """J'(J J' + damping I)^-1 r by the singular values of J, and how many count."""
    U, S, Vh = torch.linalg.svd(J, full_matrices=False)
    counted = cut * S.max() < S if S.numel() else S > 0
    factor = torch.where(counted, S / (S.square() + damping), 0.0)
    return Vh.T @ (factor * (U.T @ r)), int(counted.sum())


def _rows(residual: OwnJacobian, x: Point) -> Tensor:
    """r ``(m,)``, in the order of the rows of J."""
    return torch.cat([block.reshape(-1) for block in named(residual(x)).values()])  # type: ignore[arg-type]


def _searched(
    residual: OwnJacobian, variables: Variables, flat: Tensor, d: Tensor, loss: float
) -> tuple[float, float, int]:
    """The factor 1, 1/2, 1/4, ... of d after which the loss rises again, its loss, and how many were evaluated."""
    best, least = 0.0, loss
    for k in range(HALVINGS + 1):
        value = float(_rows(residual, variables.unflatten(flat + 2.0**-k * d)).square().sum()) / 2
        if value < least:
            best, least = 2.0**-k, value
        elif best > 0:
            return best, least, k + 1
    return best, least, HALVINGS + 1


def _check(damping: float, momentum: float, lr: float | None, longest: float, cut: float) -> None:
    for name, value in (("damping", damping), ("lr", 0.0 if lr is None else lr), ("cut", cut)):
        if not 0 <= value < math.inf:
            raise ValueError(f"spring_step: {name} must be a number >= 0, got {value}")
    if not 0 <= momentum < 1:
        raise ValueError(f"spring_step: momentum must lie in [0, 1), got {momentum}")
    if not longest > 0:
        raise ValueError(f"spring_step: longest must be > 0, got {longest}")
