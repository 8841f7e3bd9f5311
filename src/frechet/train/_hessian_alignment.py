"""Alignment of a classifier head's gradients and Hessians between environments, as a penalty for domain generalization.

With l_e the mean cross entropy of the head's parameters on environment e, g_e its gradient and H_e its Hessian,

    penalty = 1/E sum_e ( hessian |d_e - mean d|^2 + gradient |g_e - mean g|^2 )

where d_e is H_e g_e (``by="product"``), diag H_e (``"diagonal"``) or H_e itself (``"matrix"``), and the means over the
environments are constants for the gradient. For a linear head, logits W h + b, probabilities p and S = diag p - p p',

    H_e g_e = mean_n (S_n G h_n) h_n'     diag H_e = mean_n p_n (1 - p_n) (h_n^2)'     G the gradient as a matrix
    <H_e, H_f> = mean_nm tr(S_n S_m) (h_n'h_m)^2

with h extended by 1 for the bias, as far as weight and bias are trainable: closed forms, without probes or second
derivatives. Other heads take `product` by double backward.

**Source.** S. Hemati, G. Zhang, A. Estiri, X. Chen (2023), Understanding Hessian alignment for domain generalization,
arXiv 2308.11778.
**Differs from the source.** (1) The closed forms take the place of the 300 probes of its diagonal, and of the norm's
gradient that gives its product. (2) The matrix, whose distance bounds that of the source's theorem, without forming it.
**Cost.** Linear heads: about a forward pass of the head; `matrix` the products of all pairs of examples. Others: two
backward passes of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frechet.objective._kernels import unfused_attention
from frechet.operators.derivatives._products import grads

By = Literal["product", "diagonal", "matrix"]


def hessian_alignment(
    head: nn.Module,
    features: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    by: By = "product",
    hessian: float = 1e-4,
    gradient: float = 5e-3,
) -> Tensor:
    """Return how much a head's gradients and Hessians differ between environments.

    Add it to the mean of the environments' losses. The gradient reaches the features too, where they have a graph.

    Args:
        head: the last layers, from features to logits ``(m, classes)``; `torch.nn.Linear` for all but ``"product"``.
        features: for each environment what goes into the head ``(m_e, ...)``.
        targets: for each environment the class indices ``(m_e,)``.
        by: what of the Hessians is compared: ``"product"`` with the gradient, ``"diagonal"`` or ``"matrix"``.
        hessian: the weight of the Hessians. Default: 1e-4, the source's for products.
        gradient: the weight of the gradients. Default: 5e-3, the source's.

    Returns:
        A scalar tensor.

    Raises:
        ValueError: there are fewer than two environments, or the head is not linear where it has to be.

    Example:
        >>> import torch
        >>> from frechet.train import hessian_alignment
        >>> head, h = torch.nn.Linear(3, 2), torch.randn(6, 3)
        >>> y = torch.tensor([0, 1, 0, 1, 0, 1])
        >>> float(hessian_alignment(head, [h, h], [y, y]).detach()) < 1e-12  # two times the same environment
        True
    """
    if len(features) != len(targets) or len(features) < 2:
        raise ValueError(
            "hessian_alignment: there must be at least two environments, each with features and targets, got "
            f"{len(features)} and {len(targets)}"
        )
    for h, y in zip(features, targets, strict=True):
        if len(h) == 0 or y.shape != h.shape[:1] or y.is_floating_point():
            raise ValueError(
                f"hessian_alignment: targets must be class indices ({len(h)},) of at least one example, got "
                f"{y.dtype} of shape {tuple(y.shape)}"
            )
        if int(y.min()) < 0:
            raise ValueError(
                f"hessian_alignment: targets must be class indices from 0 on, got {int(y.min())}; leave out examples "
                "without a label"
            )
    if by not in ("product", "diagonal", "matrix"):
        raise ValueError(f"hessian_alignment: by must be 'product', 'diagonal' or 'matrix', got {by!r}")
    if type(head) is not nn.Linear:
        if by != "product":
            raise ValueError(
                f"hessian_alignment: by={by!r} needs a head that is torch.nn.Linear, got {type(head).__name__}; use "
                "by='product'"
            )
        pairs = [_by_autograd(head, h, y) for h, y in zip(features, targets, strict=True)]
        return gradient * _spread([g for g, _ in pairs]) + hessian * _spread([d for _, d in pairs])
    environments = [_Linear.of(head, h, y) for h, y in zip(features, targets, strict=True)]
    slopes = gradient * _spread([e.gradient.reshape(-1) for e in environments])
    if by == "matrix":
        return slopes + hessian * _spread_of_matrices(environments)
    compared = [e.product() if by == "product" else e.diagonal() for e in environments]
    return slopes + hessian * _spread([d.reshape(-1) for d in compared])


def _spread(vectors: list[Tensor]) -> Tensor:
    """The mean squared distance from the mean, which is a constant for the gradient."""
    V = torch.stack(vectors)
    return (V - V.mean(0).detach()).square().sum(1).mean()


class _Linear:
    """A linear head on one environment: probabilities p ``(m, classes)`` and inputs h ``(m, width)`` with the bias."""

    def __init__(self, p: Tensor, h: Tensor, gradient: Tensor) -> None:
        self.p, self.h, self.gradient = p, h, gradient

    @classmethod
    def of(cls, head: nn.Linear, h: Tensor, y: Tensor) -> _Linear:
        """Raises where the features are not rows of the head's width."""
        if h.ndim != 2 or h.shape[1] != head.in_features:
            raise ValueError(
                f"hessian_alignment: features must be (examples, {head.in_features}) for this head, got shape "
                f"{tuple(h.shape)}"
            )
        p = head(h).softmax(1)
        parts = [h] if head.weight.requires_grad else []  # what is frozen has no gradient to align
        if head.bias is not None and head.bias.requires_grad:
            parts.append(torch.ones_like(h[:, :1]))
        if not parts:
            raise ValueError("hessian_alignment: the head must have trainable parameters, got none")
        h = torch.cat(parts, 1)
        return cls(p, h, (p - F.one_hot(y, p.shape[1]).to(p)).T @ h / len(h))

    def product(self) -> Tensor:
        """H g."""
        u = self.h @ self.gradient.T
        rows = self.p * u
        return (rows - self.p * rows.sum(1, keepdim=True)).T @ self.h / len(self.h)

    def diagonal(self) -> Tensor:
        """diag H."""
        return (self.p * (1 - self.p)).T @ self.h.square() / len(self.h)

    def inner(self, other: _Linear) -> Tensor:
        """<H, H of the other>, the sum of the products of their entries."""
        p, q = self.p, other.p
        # tr (diag p - p p')(diag q - q q') = p'q - (p*p)'q - p'(q*q) + (p'q)^2
        both = p @ q.T
        traces = both - p.square() @ q.T - p @ q.square().T + both.square()
        return (traces * (self.h @ other.h.T).square()).mean()

    def detached(self) -> _Linear:
        """The same as a constant."""
        return _Linear(self.p.detach(), self.h.detach(), self.gradient.detach())


def _spread_of_matrices(environments: list[_Linear]) -> Tensor:
    """1/E sum_e |H_e - mean H|_F^2 with the mean as a constant, by inner products alone."""
    fixed, E = [e.detached() for e in environments], len(environments)
    mean = sum((a.inner(b) for a in fixed for b in fixed), start=torch.zeros_like(fixed[0].p[0, 0])) / E**2
    total = torch.zeros_like(mean)
    for e in environments:
        cross = sum((e.inner(f) for f in fixed), start=torch.zeros_like(mean)) / E
        total = total + e.inner(e) - 2 * cross + mean
    return total / E


def _by_autograd(head: nn.Module, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(g, H g) of the head's parameters, with their graphs."""
    leaves = [p for p in head.parameters() if p.requires_grad]
    if not leaves:
        raise ValueError("hessian_alignment: the head must have trainable parameters, got none")
    kept = torch.is_grad_enabled()
    with torch.enable_grad(), unfused_attention():
        slopes = grads(F.cross_entropy(head(h), y), leaves, None, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in slopes])
        products = grads(flat.square().sum() / 2, leaves, None, create_graph=kept, retain_graph=True)
    return flat, torch.cat([p.reshape(-1) for p in products])
