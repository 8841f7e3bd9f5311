"""Which weights can go: those whose removal is predicted to raise the loss least, level by level of sparsity.

At each level the weights that are left, or groups of them, are ranked by their `saliency`, the least go, and, where an
inverse of the curvature is given, those that stay are moved (`compensated`).

Each level starts from the weights of the level before, with the curvature made anew, so that many small levels follow
the loss further than one large one. For each the increase is predicted, g'd + d'G d / 2 with the Gauss-Newton matrix G
at the weights before, and measured.

**Source.** E. Frantar, E. Kurtic, D. Alistarh (2021), M-FAC, arXiv 2107.03356, section 4.1.
**Differs from the source.** (1) Sets are compensated together (`compensated`). (2) Predicted beside measured losses.
**Cost.** For each level the inverse, the saliencies, a product, a gradient and a pass without derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor

from frechet.compress._removal import compensated
from frechet.compress._saliency import RANKINGS, Ranking, checked_groups, saliency
from frechet.linalg._shown import Result, Rows
from frechet.objective import Objective
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives import gauss_newton
from frechet.space import Space

MakeInverse = Callable[[Objective, Tensor, Tensor], LinearOperator]


@dataclass(frozen=True, eq=False)
class Pruned(Result):
    """A pruned point, and for each level what was predicted and what was measured, as increases of the first loss."""

    x: Tensor  # (n,), at the last level
    kept: Tensor  # (n,) bool
    sparsities: tuple[float, ...]  # of the weights that may go
    predicted: tuple[float, ...]  # from the measured loss of the level before
    measured: tuple[float, ...]
    loss: float  # before
    ranking: str
    space: Space | None = field(default=None, repr=False)

    @property
    def masks(self) -> dict[str, Tensor]:
        """For each parameter that has zeros, the mask of the entries that are kept."""
        assert self.space is not None
        return {n: m for n, m in self.space.unflatten(self.kept).items() if not bool(m.all())}

    def _line(self) -> str:
        return f"{self.ranking}, {self.sparsities[-1]:.0%} of the weights gone, loss {self.measured[-1]:+.4g}"

    def _table(self) -> Rows:
        rows = [
            (f"{s:.2%}", f"{p:.4g}", f"{m:.4g}")
            for s, p, m in zip(self.sparsities, self.predicted, self.measured, strict=True)
        ]
        return ("sparsity", "predicted increase", "measured increase"), rows

    def plot(self, axes: Any) -> Any:
        """Draw both increases over the sparsity into matplotlib's `axes`; returns them."""
        axes.plot(self.sparsities, self.measured, "o-", label="measured")
        axes.plot(self.sparsities, self.predicted, "x--", label="predicted")
        axes.set_xlabel("sparsity")
        axes.set_ylabel("increase of the loss")
        axes.legend()
        return axes


def prune(
    objective: Objective,
    sparsities: float | Sequence[float],
    *,
    ranking: Ranking = "obs",
    inverse: MakeInverse | None = None,
    compensate: bool = True,
    slope: bool = False,
    weights: str | Iterable[str] | None = None,
    groups: Sequence[Tensor] | None = None,
    x: Tensor | None = None,
    observe: Callable[[Tensor, float], Any] | None = None,
) -> Pruned:
    """Return the point with the weights removed that are predicted to raise the loss least.

    Args:
        objective: the objective, best in evaluation and near a minimum. The model is not changed.
        sparsities: which part of the weights is gone at the end, or at each of several growing levels.
        ranking: ``"magnitude"``, ``"obd"``, ``"obs"``, ``"apoptosis"``, or ``"quadratic"`` of groups, see `saliency`.
        inverse: ``(objective, x, kept) -> operator``, the inverse of the damped curvature at x among the weights that
            are kept, such as ``lambda o, x, kept: inverse_curvature(o, "fisher", damping=1e-4, x=x, kept=kept)``.
            Needed for ``"obs"``, and for others where the weights that stay are to be moved.
        compensate: whether the weights that stay are moved, where there is an inverse. All trainable parameters are.
        slope: whether the gradient enters the moves: then each level is also a damped Newton step.
        weights: glob patterns of the parameters whose entries may go. Default: all with at least two axes.
        groups: the indices, or masks, of weights that go together, no weight in two of them: channels, neurons or
            heads, as by `groups_along`. Sparsities are then parts of the groups. Default: each of `weights` alone.
        x: the point ``(n,)``. Default: the model's present parameters.
        observe: is called with the point and the sparsity after each level, as to fine-tune elsewhere or to measure
            accuracy. Where it returns a point ``(n,)``, that one is taken, its removed weights at 0.

    Raises:
        ValueError: sparsities are not growing numbers in [0, 1), no parameter matches, or the inverse is missing.

    Example:
        >>> import torch
        >>> from frechet import Objective, cross_entropy
        >>> from frechet.compress import inverse_curvature, prune
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> objective = Objective(model, cross_entropy(), [(torch.randn(64, 8), torch.randint(0, 3, (64,)))])
        >>> def inverse(objective, x, kept):
        ...     return inverse_curvature(objective, damping=1e-2, x=x, kept=kept)
        >>> found = prune(objective, [0.25, 0.5], inverse=inverse)
        >>> int((found.x == 0).sum()), found.masks["0.weight"].shape
        (88, torch.Size([16, 8]))
    """
    levels = _levels(sparsities)
    if ranking not in RANKINGS:
        raise ValueError(f"prune: ranking must be one of {', '.join(RANKINGS)}, got {ranking!r}")
    if ranking == "obs" and inverse is None:
        raise ValueError("prune: inverse must be given for ranking='obs', such as one of inverse_curvature")
    if inverse is not None and not callable(inverse):
        raise TypeError(
            f"prune: inverse must be a function (objective, x, kept) -> operator, which every level calls anew, got "
            f"{type(inverse).__name__}; write lambda o, x, kept: inverse_curvature(o, x=x, kept=kept)"
        )
    space, point = objective.space, (objective.point if x is None else x).clone()
    groups = None if groups is None else checked_groups("prune", groups, space.dim)
    unit = _units(space, weights, groups)  # of each weight
    may_go = unit >= 0
    count = int(unit.max()) + 1
    present = torch.ones(count, dtype=torch.bool, device=space.device)
    kept = torch.ones_like(may_go)
    loss = now = float(objective.value(point))
    predicted, measured = [], []
    for level in levels:
        B = None if inverse is None else inverse(objective, point, kept)
        scores = saliency(objective, ranking, inverse=B, groups=groups, x=point).to(space.device)
        scores = scores[may_go] if groups is None else scores
        present &= ~_least(scores, present, round(level * count) - int((~present).sum()))
        gone = may_go & ~present[unit.clamp_min(0)]
        g, G = objective.gradient(point), gauss_newton(objective, x=point)
        if compensate and B is not None:
            moved = compensated(point, B, gone, gradient=g * ~gone if slope else None).x
        else:
            moved = torch.where(gone, torch.zeros_like(point), point)
        d = moved - point
        predicted.append(now - loss + float(space.inner(g, d)) + float(space.inner(d, G @ d)) / 2)
        point, kept = moved, ~gone
        other = None if observe is None else observe(point.clone(), level)
        if isinstance(other, Tensor):
            point = torch.where(kept, other, torch.zeros_like(other))
        now = float(objective.value(point))
        measured.append(now - loss)
    told = ranking + (" with compensation" if compensate and inverse is not None else "")
    return Pruned(point, kept, levels, tuple(predicted), tuple(measured), loss, told, space)


def _least(scores: Tensor, among: Tensor, number: int) -> Tensor:
    """The mask of so many least scores; the first ones of equals."""
    order = torch.where(among, scores.double(), torch.inf).argsort(stable=True)
    found = torch.zeros_like(among)
    found[order[: max(0, number)]] = True
    return found


def _units(space: Space, patterns: str | Iterable[str] | None, groups: Sequence[Tensor] | None) -> Tensor:
    """The number of the group ``(n,)`` that each weight goes with, -1 for those that stay."""
    found = torch.full((space.dim,), -1, dtype=torch.long, device=space.device)
    if groups is not None:
        whole = torch.cat([found[:0], *groups])
        if patterns is not None or not len(groups) or len(whole.unique()) < len(whole):
            raise ValueError("prune: groups must be given without weights, one or more, with no weight in two of them")
        for i, c in enumerate(groups):
            found[c] = i
        return found
    globs = None if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)
    for name, shape in zip(space.names, space.shapes, strict=True):
        if len(shape) > 1 if globs is None else any(fnmatchcase(name, g) for g in globs):
            found[space.block(name)] = 0
    if not bool((found == 0).any()):
        raise ValueError(f"prune: weights must match a trainable parameter, got {patterns!r}")
    found[found == 0] = torch.arange(int((found == 0).sum()), device=space.device)
    return found


def _levels(sparsities: float | Sequence[float]) -> tuple[float, ...]:
    levels = (float(sparsities),) if isinstance(sparsities, int | float) else tuple(float(s) for s in sparsities)
    if not levels or not all(0 <= a < 1 for a in levels) or list(levels) != sorted(levels):
        raise ValueError(f"prune: sparsities must be growing numbers in [0, 1), got {levels}")
    return levels


def sparsity_schedule(
    final: float, levels: int, *, first: float = 0.0, law: Literal["geometric", "cubic"] = "geometric"
) -> tuple[float, ...]:
    """Return growing sparsities that end at `final`.

    Args:
        final: the last one, in (0, 1).
        levels: how many.
        first: the sparsity before the first of them.
        law: ``"geometric"``: each level keeps the same part of the weights that are left (M-FAC). ``"cubic"``: large
            steps first, ``final + (first - final) (1 - i / levels)^3`` (M. Zhu, S. Gupta, 2017, arXiv 1710.01878).

    Example:
        >>> from frechet.compress import sparsity_schedule
        >>> [round(s, 4) for s in sparsity_schedule(0.75, 2)]
        [0.5, 0.75]
    """
    if not 0 <= first < final < 1:
        raise ValueError(f"sparsity_schedule: 0 <= first < final < 1 must hold, got {first} and {final}")
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
        raise ValueError(f"sparsity_schedule: levels must be an int >= 1, got {levels!r}")
    if law == "geometric":
        part = (1 - final) / (1 - first)
        found = [1 - (1 - first) * part ** (i / levels) for i in range(1, levels + 1)]
    elif law == "cubic":
        found = [final + (first - final) * (1 - i / levels) ** 3 for i in range(1, levels + 1)]
    else:
        raise ValueError(f"sparsity_schedule: law must be 'geometric' or 'cubic', got {law!r}")
    return (*found[:-1], final)
