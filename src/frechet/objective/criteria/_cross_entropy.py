"""Softmax cross entropy: torch's conventions for ignored targets, smoothing, class weights and probabilities.

With p the softmax of one position's logits and q its effective target distribution (smoothed, weighted; zero where
ignored) the score is (sum q) p - q and the Hessian (sum q)(diag p - p p'); products with it work in chunks of
positions, so that a huge vocabulary costs no second copy of the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from frechet.objective.criteria._criterion import Criterion, Rows, uniform

ROWS = 1 << 24  # entries of the outputs handled at once by the Hessian product


@dataclass(frozen=True, eq=False)
class CrossEntropy(Criterion):
    """-log softmax(outputs)[target], one term per position that is not ignored."""

    ignore_index: int
    label_smoothing: float
    weight: Tensor | None
    class_dim: int
    convex = True

    def _rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(positions, classes)`` and targets ``(positions,)`` or, soft, ``(positions, classes)``."""
        if not -outputs.ndim < self.class_dim < outputs.ndim or self.class_dim == 0:
            raise ValueError(
                f"cross_entropy: outputs must have an example axis and class_dim={self.class_dim}, "
                f"got shape {tuple(outputs.shape)}"
            )
        logits = outputs.movedim(self.class_dim, -1)
        soft = targets.is_floating_point()
        expected = tuple(outputs.shape) if soft else tuple(logits.shape[:-1])
        if tuple(targets.shape) != expected:
            raise ValueError(
                f"cross_entropy: targets must have shape {expected} for outputs {tuple(outputs.shape)} with "
                f"class_dim={self.class_dim}, got {tuple(targets.shape)}; "
                + ("class indices must be integers" if soft else "set class_dim to the class axis")
            )
        rows = logits.reshape(-1, logits.shape[-1])
        if soft:
            return rows, targets.movedim(self.class_dim, -1).reshape(rows.shape).to(rows.dtype)
        return rows, targets.reshape(-1).long()

    def _weight(self, like: Tensor) -> Tensor | None:
        return None if self.weight is None else self.weight.to(like.device, like.dtype)

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits, labels = self._rows(outputs, targets)
        try:
            values = F.cross_entropy(
                logits,
                labels,
                weight=self._weight(logits),
                ignore_index=self.ignore_index,
                reduction="none",
                label_smoothing=self.label_smoothing,
            )
        except IndexError as error:
            raise self._outside(labels, logits.shape[1]) from error
        return values if values.shape[0] == outputs.shape[0] else values.view(outputs.shape[0], -1).sum(1)

    def _outside(self, labels: Tensor, classes: int) -> ValueError:
        kept = labels[labels != self.ignore_index]
        return ValueError(
            f"cross_entropy: targets must lie between 0 and {classes - 1} or be ignore_index={self.ignore_index}, got "
            f"{int(kept.min())} to {int(kept.max())}"
        )

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits, labels = self._rows(outputs, targets)
        weight, smoothing, classes = self._weight(logits), self.label_smoothing, logits.shape[1]
        try:
            s, scale = logits.softmax(1), self._scale(logits, labels).unsqueeze(1)
            s = s * scale if s.requires_grad else s.mul_(scale)
            if labels.is_floating_point():
                q = labels * (1 - smoothing) + smoothing / classes
                s = s - (q if weight is None else q * weight)
            else:
                kept = (labels != self.ignore_index).to(s.dtype).unsqueeze(1)
                index = labels.where(labels != self.ignore_index, 0).unsqueeze(1)
                if smoothing:
                    s = s - kept * (smoothing / classes * (1.0 if weight is None else weight))
                hard = kept if weight is None else kept * weight[index]
                s.scatter_add_(1, index, (smoothing - 1) * hard)
        except (RuntimeError, IndexError) as error:
            if labels.is_floating_point() or not bool(((labels < 0) | (labels >= classes)).any()):
                raise
            raise self._outside(labels, classes) from error
        return s.view(outputs.movedim(self.class_dim, -1).shape).movedim(-1, self.class_dim)

    def rows(self, shape: tuple[int, ...], targets: Tensor) -> Rows:
        if self.class_dim not in (-1, len(shape) - 1):
            raise ValueError(
                f"Objective: head= needs the classes on the last axis of the outputs {shape}, where the head puts "
                f"them, got cross_entropy with class_dim={self.class_dim}; use cross_entropy(class_dim=-1)"
            )
        soft = targets.is_floating_point()
        expected = shape if soft else shape[:-1]
        if tuple(targets.shape) != expected:
            raise ValueError(
                f"cross_entropy: targets must have shape {expected} for outputs {shape}, got {tuple(targets.shape)}"
            )
        alone = replace(self, class_dim=-1)
        if soft:
            return Rows(alone, targets.reshape(-1, shape[-1]), None)
        labels = targets.reshape(-1)
        kept = (labels != self.ignore_index).nonzero().squeeze(1)
        return Rows(alone, labels, None) if len(kept) == len(labels) else Rows(alone, labels[kept], kept)

    def count(self, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            classes = targets.shape[self.class_dim]
            return targets.new_tensor(targets.numel() / classes, dtype=torch.float64)
        kept = targets != self.ignore_index
        if self.weight is None:
            return kept.sum().double()
        return self.weight.to(targets.device).double()[targets[kept].long()].sum()

    def _scale(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over the classes of the effective target distribution, per position: the Hessian's factor."""
        weight = self._weight(logits)
        if labels.is_floating_point():
            q = labels * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
            return (q if weight is None else q * weight).sum(1)
        kept = labels != self.ignore_index
        if weight is None:
            return kept.to(logits.dtype)
        hard = weight[labels.where(kept, 0)]  # ignore_index may be no class at all
        return kept * ((1 - self.label_smoothing) * hard + self.label_smoothing * weight.mean())

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        logits, labels = self._rows(outputs, targets)
        direction = u.movedim(self.class_dim, -1)
        rows = direction.reshape(logits.shape)
        step = max(1, ROWS // max(1, logits.shape[1]))
        parts = []
        for a in range(0, logits.shape[0], step):
            p = logits[a : a + step].softmax(1)
            pu = p * rows[a : a + step]
            pu -= p.mul(pu.sum(1, keepdim=True)) if pu.requires_grad else p.mul_(pu.sum(1, keepdim=True))
            pu *= self._scale(logits[a : a + step], labels[a : a + step]).unsqueeze(1)
            parts.append(pu)
        product = torch.cat(parts) if len(parts) > 1 else parts[0] if parts else torch.zeros_like(rows)
        return product.view(direction.shape).movedim(-1, self.class_dim)

    def fisher_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        self.require_likelihood()
        if targets.is_floating_point():  # one label per position, whatever the probabilities add up to
            targets = torch.full_like(outputs, 1 / outputs.shape[self.class_dim])
        return self.hessian_product(outputs, targets, u)

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        self.require_likelihood()
        logits, labels = self._rows(outputs, targets)
        if labels.is_floating_point():  # probabilities: one label each, nothing is ignored
            labels = torch.zeros(len(labels), dtype=torch.long, device=labels.device)
            targets = targets.select(self.class_dim, 0)
        kept = labels != self.ignore_index
        # the generator moves once per term that counts, so padding does not move the stream
        u = uniform((int(kept.sum()),), generator).to(logits.device)
        cumulative = logits[kept].double().softmax(1).cumsum(1)
        drawn = labels.clone()
        drawn[kept] = (cumulative < u.unsqueeze(1)).sum(1).clamp_(max=logits.shape[1] - 1)
        return drawn.view(targets.shape)

    def project(self, score: Tensor, u: Tensor) -> Tensor:
        return score * (score * u).sum(self.class_dim, keepdim=True)

    def require_likelihood(self) -> None:
        if self.label_smoothing or self.weight is not None:
            raise ValueError(
                "fisher: cross_entropy must be a likelihood, got "
                + ("label_smoothing" if self.label_smoothing else "class weights")
                + "; the Fisher uses the score of the model's own distribution: drop it, or use gauss_newton(objective)"
            )


def cross_entropy(
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    class_dim: int = -1,
) -> Criterion:
    """Return the softmax cross entropy of logits as a criterion. Targets are class indices or probabilities.

    There is one term for each position whose target is not `ignore_index`. With class weights the mean divides by the
    sum of the targets' weights, as `torch.nn.CrossEntropyLoss` does.

    Args:
        ignore_index: the class index that marks a position as left out.
        label_smoothing: the share of each target that is spread over all classes.
        weight: a weight for each class, ``(C,)``. Default: ones.
        class_dim: the axis of the classes. It is never guessed: torch's own losses have it at 1.

    Example:
        >>> import torch
        >>> from frechet import cross_entropy
        >>> criterion = cross_entropy()
        >>> criterion.terms(torch.zeros(2, 4), torch.tensor([1, -100])) / torch.tensor(4.0).log()
        tensor([1., 0.])
        >>> int(criterion.count(torch.tensor([1, -100])))
        1
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"cross_entropy: label_smoothing must lie in [0, 1), got {label_smoothing}")
    if weight is not None and (weight.ndim != 1 or bool((weight < 0).any())):
        raise ValueError(f"cross_entropy: weight must be (classes,) and non-negative, got shape {tuple(weight.shape)}")
    return CrossEntropy(ignore_index, label_smoothing, None if weight is None else weight.detach().clone(), class_dim)
