"""How far the conditions of a problem pull the parameters in different directions.

With v_k = J_k'r_k, the gradient of the cost of condition k, and K conditions

    A = 2 norm(mean_k v_k / norm(v_k))^2 - 1

is 1 where all gradients point in one direction; for two conditions it is the cosine between them. It is near 2 / K - 1
for gradients without relation, and -1 where they cancel: then no step helps all conditions at once.

**Source.** S. Wang, A. K. Bhartari, B. Li and P. Perdikaris (2025), Gradient alignment in physics-informed neural
networks, definition of the alignment score, arXiv 2502.00604.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.physics._collocation import Collocation
from frechet.space import Point


@dataclass(frozen=True, eq=False)
class Conflict:
    """The alignment `score` in [-1, 1], and what it is made of, by the names of the conditions.

    `cosine` is that between the gradient of a condition and the sum of all others', `size` the norm of its gradient,
    `residual` the root of the mean square of its weighted residuals. A condition with a zero gradient takes no part.
    """

    score: float
    cosine: dict[str, float]
    size: dict[str, float]
    residual: dict[str, float]

    def __str__(self) -> str:
        lines = [f"alignment score {self.score:+.3f}"]
        lines += [
            f"  {name}: cosine with the others {self.cosine[name]:+.3f}, gradient {self.size[name]:.3g}, residual "
            f"{self.residual[name]:.3g}"
            for name in self.size
        ]
        return "\n".join(lines)


def conflict(residual: Collocation, parameters: Point) -> Conflict:
    """Return the alignment score of the conditions of a residual at some parameters.

    Args:
        residual: from `collocation`, with two conditions or more.
        parameters: a tensor or a dict of tensors.

    Example:
        >>> import torch
        >>> from frechet.physics import collocation, conflict
        >>> def asks(p, x):  # p = x
        ...     return p - x
        >>> x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        >>> residual = collocation(asks, {"one": x[:1], "other": x[1:]})
        >>> conflict(residual, torch.zeros(1, dtype=torch.float64)).score
        -1.0
    """
    if len(residual.conditions) < 2:
        raise ValueError(f"conflict: residual must have two conditions or more, got {list(residual.names)}")
    with torch.no_grad():
        values = residual(parameters)
    gradients, sizes = {}, {}
    for name, r in values.items():
        J = residual.only(name).operator(parameters)
        v = J.T @ r.reshape(-1)
        gradients[name], sizes[name] = v, float(J.domain.norm(v))
    live = {name: v / sizes[name] for name, v in gradients.items() if sizes[name] > 0}
    score = 2 * float(torch.stack(list(live.values())).mean(0).square().sum()) - 1 if live else 1.0
    whole = torch.stack(list(gradients.values())).sum(0)
    cosines = {name: _cosine(v, whole - v) for name, v in gradients.items()}
    return Conflict(score, cosines, sizes, {n: float(r.square().mean().sqrt()) for n, r in values.items()})


def _cosine(a: Tensor, b: Tensor) -> float:
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else 0.0
