"""B. Woodworth, K. Mishchenko, F. Bach (2023), Two losses are better than one: faster optimization using a cheaper
proxy, arXiv 2302.03542.

Claim: where the Hessians of objective and proxy are delta-close, steps depend on delta and not on the curvature of the
objective. Tried on softmax regression of 1 300 digits with a tenth of them as the proxy: gradients of the dear
objective until its gradient is a hundredth of the first, against gradient descent with the rate 1 / curvature and
Nesterov's method.
"""

from __future__ import annotations

import torch
from claim import Claim
from sklearn.datasets import load_digits
from torch import nn

from frechet import Objective, cross_entropy, eigsh, hessian, l2
from frechet.train import ProxyState, hessian_similarity, proxy_step

MOST, SHARE, DECAY = 2000, 1e-2, 1e-3


def descent(f: Objective, rate: float, target: float, momentum: float) -> int:
    """Gradients until the norm is at the target."""
    x = last = f.point
    for step in range(1, MOST + 1):
        ahead = x + momentum * (x - last)
        g = f.gradient(ahead)
        if float(g.norm()) <= target:
            return step
        last, x = x, ahead - rate * g
    return MOST


def measure() -> Claim:
    """Dear gradients of each method."""
    images, labels = load_digits(return_X_y=True)
    X, y = torch.from_numpy(images[:1300]).double() / 16, torch.from_numpy(labels[:1300])
    model = nn.Linear(64, 10).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    f = Objective(model, cross_entropy(), [(X, y)], penalty=l2(DECAY))
    h = Objective(model, cross_entropy(), [(X[::10], y[::10])], penalty=l2(DECAY))
    L, target = float(eigsh(hessian(f), 1, seed=0).values[0]), SHARE * float(f.gradient().norm())
    delta = float(hessian_similarity(f, h, seed=0, rtol=1e-2).values.abs().max())
    plain, fast = descent(f, 1 / L, target, 0.0), descent(f, 1 / L, target, 0.9)
    x, state, ours = f.point, ProxyState(), 0
    while ours < MOST:
        x, state, info = proxy_step(f, h, x, state, eta=0.5 / delta, steps=30)
        ours += 1
        if info.gradient_norm <= target:
            break
    expected = L / (2 * delta)
    return Claim(
        paper="Woodworth, Mishchenko, Bach 2023, arXiv 2302.03542",
        claim="steps on a proxy depend on the difference of the Hessians, and not on the curvature of the objective",
        theirs="the rate of gradient descent on a delta-smooth objective",
        ours=f"curvature {L:.2g}, delta {delta:.2g}: {ours} dear gradients; gradient descent {plain}, "
        f"Nesterov's method {fast}",
        verdict="holds" if ours < 2 * plain / expected else "holds in part" if ours < plain else "does not hold here",
        why=f"curvature over 2 delta is {expected:.1f}, about what is saved; a step has up to 30 gradients of a proxy "
        "with a tenth of the data, so that it pays where dear gradients are dear",
        name="train.proxy_step",
    )
