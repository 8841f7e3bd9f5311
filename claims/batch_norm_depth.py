"""A. Meterez, A. Joudaki, F. Orabona, A. Immer, G. Raetsch, H. Daneshmand (2023), Towards training without depth
limits: batch normalization without gradient explosion, arXiv 2310.02012.

Claim: gradients of linear networks with batch normalization do not grow with the depth where weights are orthogonal,
and explode where they are Gaussian.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet import Objective, cross_entropy
from frechet.analyze import fit_power_law


def first_gradient(depth: int, orthogonal: bool, seed: int) -> float:
    """The norm of the gradient in the first layer, over that in the last."""
    torch.manual_seed(seed)
    n, layers = 24, []
    for _ in range(depth):
        layer = torch.nn.Linear(n, n, bias=False).double()
        if orthogonal:
            torch.nn.init.orthogonal_(layer.weight)
        else:
            torch.nn.init.normal_(layer.weight, std=n**-0.5)
        layers += [layer, torch.nn.BatchNorm1d(n, affine=False, eps=1e-12).double()]
    model = torch.nn.Sequential(*layers)
    X, y = torch.randn(n, n, dtype=torch.float64), torch.randint(0, n, (n,))
    objective = Objective(model, cross_entropy(), [(X, y)])
    blocks = objective.space.unflatten(objective.gradient())
    names = list(blocks)
    return float(blocks[names[0]].norm() / blocks[names[-1]].norm())


def measure() -> Claim:
    """Depths 4 to 64, six seeds: the growth of the log gradient norm per layer."""
    depths, rates = (4, 8, 16, 32, 64), {}
    for orthogonal in (True, False):
        values = torch.tensor(
            [[first_gradient(d, orthogonal, s) for s in range(6)] for d in depths], dtype=torch.float64
        )
        x = torch.tensor(depths, dtype=torch.float64).exp().clamp(max=1e300)  # a power of exp(depth): a rate per layer
        law = fit_power_law(x[:, None].expand(-1, 6).reshape(-1), values.reshape(-1))
        rates[orthogonal] = law.exponents[0], *law.interval()
    told = {k: f"{v:.3f} [{a:.3f}, {b:.3f}]" for k, (v, a, b) in rates.items()}
    flat, grows = rates[True][2] < 0.02, rates[False][1] > 0.05
    return Claim(
        paper="Meterez, Joudaki, Orabona, Immer, Raetsch, Daneshmand 2023, arXiv 2310.02012",
        claim="batch normalization without exploding gradients, by orthogonal weights and linear layers",
        theirs="bounded at any depth; Gaussian weights explode exponentially",
        ours="growth of the log of the first layer's gradient over the last's, per layer: orthogonal "
        f"{told[True]}, Gaussian {told[False]}",
        verdict="holds" if flat and grows else "holds in part" if flat or grows else "does not hold here",
        why="width and batch 24, depth up to 64, no scale and shift",
        name="Objective",
    )
