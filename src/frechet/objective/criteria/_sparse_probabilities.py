"""Probabilities of which some are zero: sparsemax, entmax, and their losses.

    p = argmax over the simplex of p . z + H(p),    H(p) = sum_j (p_j - p_j^a) / (a (a - 1)),    1 < a <= 2,

which is p = [(a - 1) z - t]_+^(1/(a - 1)) with t such that p sums to one. a = 2 is the projection on the simplex
(sparsemax), a -> 1 is the softmax. The loss max_p (p . z + H(p)) - q . z - H(q) is convex in z, zero where p is the
target q, with the gradient p - q and the Hessian

    diag(s) - s s' / sum s,    s_j = p_j^(2 - a) where p_j > 0, else 0.

The threshold is found without a graph, by sorting (a = 2 and 1.5) or bisection; then p is written as a function of z on
its support, so that autograd, forward mode and higher derivatives see formulas. Where an entry is just at the
threshold, p has a kink, and the derivative is the one without that entry.

**Source.** Martins and Astudillo, "From softmax to sparsemax" (2016), arXiv 1602.02068; Blondel, Martins and Niculae,
"Learning with Fenchel-Young losses" (2020); Peters, Niculae and Martins, "Sparse sequence-to-sequence models" (2019).
**Differs from the source:** derivatives of all orders for a = 2 and 1.5, to the third for others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from frechet.objective.criteria._criterion import Criterion, Rows


def sparsemax(z: Tensor, dim: int = -1) -> Tensor:
    """Return the nearest probabilities to z: its projection on the simplex, with exact zeros.

    Args:
        z: scores.
        dim: the axis that sums to one.

    Example:
        >>> import torch
        >>> from frechet.objective.criteria import sparsemax
        >>> sparsemax(torch.tensor([1.0, 0.8, -1.0]))
        tensor([0.6000, 0.4000, 0.0000])
    """
    return entmax(z, 2.0, dim)


def entmax(z: Tensor, alpha: float = 1.5, dim: int = -1) -> Tensor:
    """Return probabilities between softmax (alpha = 1) and sparsemax (alpha = 2), with exact zeros for alpha > 1.

    Args:
        z: scores; -inf gives zero.
        alpha: in [1, 2].
        dim: the axis that sums to one.

    Example:
        >>> import torch
        >>> from frechet.objective.criteria import entmax
        >>> entmax(torch.tensor([1.0, 0.0, -1.0]))
        tensor([0.8307, 0.1693, 0.0000])
    """
    if not z.is_floating_point() or z.ndim == 0:
        raise TypeError(f"entmax: z must be real scores with an axis, got {z.dtype} {tuple(z.shape)}")
    if not 1 <= alpha <= 2:
        raise ValueError(f"entmax: alpha must lie in [1, 2], got {alpha}")
    if alpha == 1:
        return z.softmax(dim)
    rows = z.movedim(dim, -1)
    # the largest score at zero: no overflow, and the same probabilities
    x = (rows - rows.detach().amax(-1, keepdim=True)) * (alpha - 1)
    power = 1 / (alpha - 1)
    t = _threshold(x.detach(), power)
    S = x.detach() > t
    base = torch.where(S, x, 0.0)
    if alpha == 2:
        t = ((base.sum(-1, keepdim=True) - 1) / S.sum(-1, keepdim=True)).to(x.dtype)
    elif alpha == 1.5:
        n = S.sum(-1, keepdim=True).to(x.dtype)
        mean = base.sum(-1, keepdim=True) / n
        spread = torch.where(S, base - mean, 0.0).square().sum(-1, keepdim=True)
        t = mean - ((1 - spread) / n).sqrt()
    else:
        for _ in range(2):  # each step of Newton doubles the order to which derivatives are right
            above = torch.where(S, base - t, 1.0)
            total = torch.where(S, above**power, 0.0).sum(-1, keepdim=True)
            slope = torch.where(S, above ** (power - 1), 0.0).sum(-1, keepdim=True) * power
            t = t + (total - 1) / slope
    above = torch.where(S, base - t, 1.0)
    p = torch.where(S, above if alpha == 2 else above**power, 0.0)
    return p.movedim(-1, dim)


def _threshold(x: Tensor, power: float) -> Tensor:
    """t with sum [x - t]_+^power = 1, for rows x whose largest entry is zero."""
    if power in (1.0, 2.0):
        return _by_sorting(x, power)
    low, high = torch.full_like(x[..., :1], -1.0), torch.zeros_like(x[..., :1])
    for _ in range(2 + torch.finfo(x.dtype).bits):
        middle = (low + high) / 2
        full = (x - middle).clamp(min=0.0).pow(power).sum(-1, keepdim=True) >= 1
        low, high = torch.where(full, middle, low), torch.where(full, high, middle)
    return low


def _by_sorting(x: Tensor, power: float) -> Tensor:
    s = x.sort(-1, descending=True).values
    s = s.where(s > -2.0, -2.0)  # entries below -1 are zero; -inf would spoil the sums
    k = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    mean = s.cumsum(-1) / k
    if power == 1:
        candidates = mean - 1 / k
    else:
        spread = (s.square().cumsum(-1) - k * mean.square()).clamp(min=0.0)
        candidates = mean - ((1 - spread) / k).clamp(min=0.0).sqrt()
    # the support is the longest prefix whose last entry is above its threshold
    size = (s > candidates).sum(-1, keepdim=True).clamp(min=1)
    return candidates.gather(-1, size - 1)


class Entmax(nn.Module):
    """`entmax` as a module; alpha = 2 is sparsemax."""

    def __init__(self, alpha: float = 1.5, dim: int = -1) -> None:
        super().__init__()
        self.alpha, self.dim = alpha, dim

    def forward(self, z: Tensor) -> Tensor:
        """The probabilities."""
        return entmax(z, self.alpha, self.dim)

    def extra_repr(self) -> str:
        """What torch prints."""
        return f"alpha={self.alpha}, dim={self.dim}"


@dataclass(frozen=True, eq=False)
class EntmaxLoss(Criterion):
    """One term for each position whose target is not ignored."""

    alpha: float
    ignore_index: int
    class_dim: int
    convex = True

    def _rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (positions, classes), target probabilities, and which positions count."""
        if not -outputs.ndim < self.class_dim < outputs.ndim or self.class_dim == 0:
            raise ValueError(
                f"entmax_loss: outputs must have an example axis and class_dim={self.class_dim}, got shape "
                f"{tuple(outputs.shape)}"
            )
        z = outputs.movedim(self.class_dim, -1)
        soft = targets.is_floating_point()
        expected = tuple(outputs.shape) if soft else tuple(z.shape[:-1])
        if tuple(targets.shape) != expected:
            raise ValueError(
                f"entmax_loss: targets must have shape {expected} for outputs {tuple(outputs.shape)}, got "
                f"{tuple(targets.shape)}"
            )
        rows = z.reshape(-1, z.shape[-1])
        if soft:
            q = targets.movedim(self.class_dim, -1).reshape(rows.shape).to(rows.dtype)
            return rows, q, torch.ones(len(rows), 1, dtype=rows.dtype, device=rows.device)
        labels = targets.reshape(-1).long()
        kept = labels != self.ignore_index
        if bool(((labels[kept] < 0) | (labels[kept] >= rows.shape[1])).any()):
            raise ValueError(f"entmax_loss: targets must lie between 0 and {rows.shape[1] - 1}, or be ignore_index")
        q = torch.zeros_like(rows, requires_grad=False).scatter(1, labels.where(kept, 0).unsqueeze(1), 1.0)
        return rows, q, kept.to(rows.dtype).unsqueeze(1)

    def _entropy(self, p: Tensor) -> Tensor:
        inside = p.detach() > 0
        powers = torch.where(inside, torch.where(inside, p, 1.0) ** self.alpha, 0.0)
        return (p - powers).sum(1) / (self.alpha * (self.alpha - 1))

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        z, q, kept = self._rows(outputs, targets)
        p = entmax(z, self.alpha)
        values = ((p - q) * z).sum(1) + self._entropy(p) - self._entropy(q)
        values = values * kept.squeeze(1)
        return values if values.shape[0] == outputs.shape[0] else values.view(outputs.shape[0], -1).sum(1)

    def _back(self, rows: Tensor, outputs: Tensor) -> Tensor:
        return rows.view(outputs.movedim(self.class_dim, -1).shape).movedim(-1, self.class_dim)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        z, q, kept = self._rows(outputs, targets)
        return self._back((entmax(z, self.alpha) - q) * kept, outputs)

    def count(self, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return targets.new_tensor(targets.numel() / targets.shape[self.class_dim], dtype=torch.float64)
        return (targets != self.ignore_index).sum().double()

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        z, _, kept = self._rows(outputs, targets)
        v = u.movedim(self.class_dim, -1).reshape(z.shape)
        p = entmax(z, self.alpha)
        inside = p.detach() > 0
        s = torch.where(inside, torch.where(inside, p, 1.0) ** (2 - self.alpha), 0.0)
        sv = s * v
        return self._back((sv - s * (sv.sum(1, keepdim=True) / s.sum(1, keepdim=True))) * kept, outputs)

    def rows(self, shape: tuple[int, ...], targets: Tensor) -> Rows:
        if self.class_dim not in (-1, len(shape) - 1):
            raise ValueError("Objective: head= needs the classes on the last axis, use entmax_loss(class_dim=-1)")
        soft = targets.is_floating_point()
        return Rows(replace(self, class_dim=-1), targets.reshape(-1, shape[-1]) if soft else targets.reshape(-1), None)

    def project(self, score: Tensor, u: Tensor) -> Tensor:
        return score * (score * u).sum(self.class_dim, keepdim=True)

    def fisher_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        self.require_likelihood()
        raise AssertionError

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        self.require_likelihood()
        raise AssertionError

    def require_likelihood(self) -> None:
        raise ValueError(
            "fisher: entmax_loss must be a likelihood, got a loss under which a class may have the probability zero; "
            "use gauss_newton"
        )


def entmax_loss(alpha: float = 1.5, *, ignore_index: int = -100, class_dim: int = -1) -> Criterion:
    """Return the convex loss of `entmax` as a criterion. Targets are class indices or probabilities.

    It is zero as soon as the target's score is ahead by 1/(alpha - 1).

    Args:
        alpha: in (1, 2]; 2 is the loss of sparsemax, 1 would be `cross_entropy`.
        ignore_index: the class index that marks a position as left out.
        class_dim: the axis of the classes.

    Example:
        >>> import torch
        >>> from frechet.objective.criteria import entmax_loss
        >>> entmax_loss(2.0).terms(torch.tensor([[1.5, 0.0], [0.0, 0.0]]), torch.tensor([0, 0]))
        tensor([0.0000, 0.2500])
    """
    if not 1 < alpha <= 2:
        raise ValueError(f"entmax_loss: alpha must lie in (1, 2], got {alpha}; for 1 use cross_entropy")
    return EntmaxLoss(alpha, ignore_index, class_dim)
