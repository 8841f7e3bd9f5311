"""A. F. T. Martins, R. F. Astudillo (2016), From softmax to sparsemax, arXiv 1602.02068.

Claim: sparsemax has zeros, a Jacobian that costs as little as softmax's, and a loss that is Huber's in two classes; it
does as well as softmax. Here: identities, and label proportions of which most are zero.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.objective.criteria import entmax_loss, sparsemax


def identities() -> tuple[float, float]:
    z = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)).double()
    v = torch.randn(200, 8, generator=torch.Generator().manual_seed(1)).double()
    p, pull = torch.func.vjp(sparsemax, z)
    S = (p > 0).double()
    closed = S * (v - (S * v).sum(1, keepdim=True) / S.sum(1, keepdim=True))
    t = torch.linspace(-3, 3, 601).double()
    loss = entmax_loss(2.0).terms(torch.stack([t, 0 * t], 1), torch.zeros(601, dtype=torch.long))
    huber = torch.where(t >= 1, 0.0, torch.where(t <= -1, -t, (t - 1) ** 2 / 4))
    return float((pull(v)[0] - closed).abs().max()), float((loss - huber).abs().max())


def fitted(sparse: bool) -> tuple[float, float]:
    """Divergence to the true proportions of new documents, and the share of zeros that are found."""
    draw = torch.Generator().manual_seed(2)
    W = torch.randn(20, 10, generator=draw).double()
    X = torch.randn(600, 20, generator=draw).double()
    Y = sparsemax(X @ W)
    V = torch.zeros(20, 10, dtype=torch.float64, requires_grad=True)
    loss = entmax_loss(2.0)
    for _ in range(300):
        z = X[:300] @ V
        value = loss.terms(z, Y[:300]).mean() if sparse else -(Y[:300] * z.log_softmax(1)).sum(1).mean()
        (g,) = torch.autograd.grad(value, V)
        V = (V - 0.5 * g).detach().requires_grad_()
    z = (X[300:] @ V).detach()
    p, q = (sparsemax(z) if sparse else z.softmax(1)), Y[300:]
    m = (p + q) / 2
    parts = [torch.where(a > 0, a * (a / m).clamp(min=1e-300).log(), 0.0).sum(1).mean() / 2 for a in (p, q)]
    return float(sum(parts)), float((p[q == 0] == 0).double().mean())


def measure() -> Claim:
    """Identities to rounding, and both fits."""
    jacobian, huber = identities()
    (ours, zeros), (softmax, _) = fitted(True), fitted(False)
    good = max(jacobian, huber) < 1e-12 and ours <= softmax
    return Claim(
        paper="Martins, Astudillo 2016, arXiv 1602.02068",
        claim="sparsemax is sparse, has a closed Jacobian and a Huber-like loss, and fits sparse proportions as well",
        theirs="lower divergences than softmax on sparse label proportions",
        ours=f"Jacobian off by {jacobian:.0e}, loss by {huber:.0e} from Huber's; divergence to sparse proportions "
        f"{ours:.1e} against softmax {softmax:.1e}; {zeros:.0%} of zeros found",
        verdict="holds" if good else "holds in part",
        why="the loss is zero exactly where the projection is the target; the proportions here are a sparsemax's own",
        name="sparsemax",
    )
