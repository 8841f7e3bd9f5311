"""Self-distillation of a kernel ridge regression: each student learns from the targets and from its teacher's answers.

    f_0 = S y,   f_t = S (a y + (1 - a) f_t-1),   S = K (K + c I)^-1

In the eigenvectors of K this multiplies y by numbers, so the whole path has a closed form, and its limit is the ridge
regression with c / a in place of c: targets of weight a dampen the regularization that distillation adds.

**Source.** Borup and Andersen, "Even your teacher needs guidance: ground-truth targets dampen regularization imposed by
self-distillation" (2021), NeurIPS, arXiv 2102.13088.

**Cost.** One eigendecomposition of K ``(n, n)``, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.linalg._shown import Result


@dataclass(frozen=True, eq=False)
class SelfDistillation(Result):
    """The students' coefficients over the kernel: predictions at x are K(x, X) `coefficients` [t].

    `coefficients` is ``(steps + 1, n, k)``, the first row the teacher's; `limit` is that of infinitely many steps. The
    effective numbers of parameters are traces of the maps from y to the fitted values.
    """

    coefficients: Tensor = field(repr=False)
    limit: Tensor = field(repr=False)
    parameters: Tensor  # (steps + 1,), effective
    ridge: float
    limit_ridge: float  # c / a; infinite for a = 0


def self_distillation(K: Tensor, y: Tensor, *, ridge: float, weight: float, steps: int = 10) -> SelfDistillation:
    """Return the path of self-distillation of a kernel ridge regression in closed form.

    Args:
        K: the kernel matrix ``(n, n)`` of the training points, such as a neural tangent kernel; positive semidefinite.
        y: targets ``(n,)`` or ``(n, k)``.
        ridge: c > 0 above.
        weight: a above, between 0 and 1.
        steps: how many students follow the teacher.

    Example:
        >>> import torch
        >>> from frechet.analyze import self_distillation
        >>> K = torch.diag(torch.tensor([1.0, 4.0]))
        >>> self_distillation(K, torch.ones(2), ridge=1.0, weight=0.5, steps=2).parameters  # ever fewer
        tensor([1.3000, 1.0950, 1.0318], dtype=torch.float64)
    """
    n = K.shape[0] if K.ndim == 2 else -1
    if K.shape != (n, n) or y.ndim not in (1, 2) or y.shape[0] != n:
        raise ValueError(
            f"self_distillation: K must be (n, n) and y (n,) or (n, k), got {tuple(K.shape)} and {tuple(y.shape)}"
        )
    if not 0 < ridge < math.inf or not 0 <= weight <= 1 or steps < 1:
        raise ValueError(
            "self_distillation: needs ridge > 0, a weight between 0 and 1 and steps >= 1, got "
            f"{ridge}, {weight} and {steps}"
        )
    A = K.detach().double()
    if float((A - A.T).abs().max()) > 1e-5 * float(A.abs().max()):
        raise ValueError("self_distillation: K must be symmetric")
    d, V = torch.linalg.eigh((A + A.T) / 2)
    if float(d[0]) < -1e-5 * float(d[-1].abs()):
        raise ValueError(f"self_distillation: K must be positive semidefinite, got the eigenvalue {float(d[0]):.3g}")
    m = d.clamp(min=0) / (d.clamp(min=0) + ridge)
    powers = ((1 - weight) * m) ** torch.arange(steps + 1, dtype=torch.float64)[:, None]
    # the weight that the t-th student's target gives to y: (1 - a)^t m^t plus a times the sum of the lower powers
    seen = powers + weight * torch.cat([torch.zeros_like(powers[:1]), powers.cumsum(0)[:-1]])
    last = weight / (1 - (1 - weight) * m)
    Y = V.T @ (y if y.ndim == 2 else y[:, None]).detach().double()
    scaled = seen / (d.clamp(min=0) + ridge)
    return SelfDistillation(
        torch.einsum("ij,tj,jk->tik", V, scaled, Y), V @ ((last / (d.clamp(min=0) + ridge))[:, None] * Y),
        (seen * m).sum(1), ridge, ridge / weight if weight else math.inf,
    )  # fmt: skip
