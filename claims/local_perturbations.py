"""T. Deliot, E. Heitz, L. Belcour (2024), Transforming a non-differentiable rasterizer into a differentiable one,
arXiv 2404.09758.

Claim: perturbing all parameters at once, and crediting each pixel's change to its own parameters alone, bounds the
dimension of the estimate, so that it scales. Here: a renderer of soft discs, of which a pixel sees few.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.calculus.estimated import bias_and_variance, local_perturbation_gradient, zeroth_order_gradient


def scene(n: int):
    """n discs in a row with three pixels each; a pixel sees its own disc and the next ones."""
    places = torch.arange(3 * n) / 3.0
    target = torch.rand(3 * n, generator=torch.Generator().manual_seed(0)).double()

    def errors(x):
        off = (places[:, None] - torch.arange(n) - x[None]) / 0.3
        image = torch.exp(-off.square()) * (off.abs() < 4)
        return (image.sum(1) - target).square()

    sees = (places[:, None] - torch.arange(n)).abs() < 1.3
    return errors, sees


def measure() -> Claim:
    """The ratio of variances for two sizes of the scene."""
    ratios, share = [], []
    for n in (20, 80):
        errors, sees = scene(n)
        x = torch.zeros(n, dtype=torch.float64)
        exact = torch.func.grad(lambda x, e=errors: e(x).sum())(x)
        near = bias_and_variance(
            lambda s, e=errors, k=sees, x=x: local_perturbation_gradient(e, x, k, probes=2, width=1e-3, seed=s),
            exact, repeats=60, seed=0,
        )  # fmt: skip
        far = bias_and_variance(
            lambda s, e=errors, x=x: zeroth_order_gradient(
                lambda x: e(x).sum(), x, probes=2, width=1e-3, seed=s, law="rademacher"
            ),
            exact, repeats=60, seed=0,
        )  # fmt: skip
        ratios.append(float(far.variance) / float(near.variance))
        share.append(float(near.bias_squared) / float(exact.square().sum()))
    return Claim(
        paper="Deliot, Heitz, Belcour 2024, arXiv 2404.09758",
        claim="credit to each pixel's own parameters bounds the dimension of the estimate",
        theirs="optimizes millions of parameters; the dimension is that of one pixel",
        ours=f"variance without over with local credit: {ratios[0]:.1f} for 20 parameters, {ratios[1]:.1f} for 80; "
        f"squared bias {max(share):.0e} of the gradient's square",
        verdict="holds" if ratios[1] > 2.5 * ratios[0] and ratios[0] > 1 else "does not hold here",
        why="the variance of an entry counts the other parameters of its pixels, not all parameters",
        name="local_perturbation_gradient",
    )
