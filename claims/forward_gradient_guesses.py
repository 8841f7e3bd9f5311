"""L. Fournier et al. (2023), Can forward gradient match backpropagation?, arXiv 2306.06968.

Claim: gradients of local losses are far better directions for forward gradients than random noise. Here: three layers
on digits; the guess is the gradient of a linear classifier on each hidden layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from claim import Claim
from sklearn.datasets import load_digits

from frechet.calculus.estimated import bias_and_variance, forward_gradient

WIDTHS = ((64, 24), (24, 24), (24, 10))


def parts(p: torch.Tensor) -> list[torch.Tensor]:
    sizes = [a * b for a, b in WIDTHS]
    return [t.view(s) for t, s in zip(p.split(sizes), WIDTHS, strict=True)]


def measure() -> Claim:
    """Cosines with the gradient, and the variance, at a network after some training."""
    X, y = (torch.as_tensor(t) for t in load_digits(return_X_y=True))
    X, y, draw = X[:400].double() / 16, y[:400], torch.Generator().manual_seed(0)

    def loss(p):
        A, B, C = parts(p)
        return F.cross_entropy(torch.relu(torch.relu(X @ A) @ B) @ C, y)

    p = torch.cat([(torch.randn(a, b, generator=draw) * (2 / a) ** 0.5).flatten() for a, b in WIDTHS]).double()
    for _ in range(30):
        p = p - 0.3 * torch.func.grad(loss)(p)
    g = torch.func.grad(loss)(p)
    A, B, _ = parts(p.clone())
    hidden = torch.relu(X @ A)
    heads = [torch.linalg.lstsq(h, F.one_hot(y, 10).double()).solution for h in (hidden, torch.relu(hidden @ B))]
    local = lambda p: F.cross_entropy(torch.relu(X @ parts(p)[0]) @ (5 * heads[0]), y)  # noqa: E731
    later = lambda p: F.cross_entropy(torch.relu(hidden @ parts(p)[1]) @ (5 * heads[1]), y)  # noqa: E731
    guesses = torch.stack([torch.func.grad(local)(p), torch.func.grad(later)(p)])
    run = lambda **kind: bias_and_variance(  # noqa: E731
        lambda s: forward_gradient(loss, p, seed=s, **kind), g, repeats=40, seed=0
    )
    noise, guided = run(probes=4), run(probes=4, guesses=guesses)
    alone = forward_gradient(loss, p, probes=0, seed=0, guesses=guesses, complement=False).value
    cosine = float(alone @ g / (alone.square().sum() * g.square().sum()).sqrt())
    return Claim(
        paper="Fournier et al. 2023, arXiv 2306.06968",
        claim="gradients of local losses are far better guesses than isotropic noise",
        theirs="large gains in accuracy over random directions, a gap to backpropagation remains",
        ours=f"cosine with the gradient: 4 random directions {float(noise.cosine):.3f}, projection on the local "
        f"gradients {cosine:.3f}; unbiased with guesses {float(guided.cosine):.3f}, variance "
        f"{float(guided.variance) / float(noise.variance):.2f} of noise alone",
        verdict="holds" if cosine > 3 * float(noise.cosine) else "does not hold here",
        why="a local loss sees the same labels, so its gradient shares directions with the true one",
        name="forward_gradient",
    )
