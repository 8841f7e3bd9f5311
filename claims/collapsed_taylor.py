"""F. Dangel, T. Siebert, M. Zeinhofer, A. Walther (2025), Collapsing Taylor mode automatic differentiation, arXiv
2505.13644.

Claim: sums of directional derivatives, such as the Laplacian, need one propagated sum of second coefficients in place
of one for each direction, and are faster and leaner than nested first-order derivatives. Tried on the Laplacian of a
tanh network in 50 dimensions at 64 points, beside forward over reverse mode of torch.func, in one run.
"""

from __future__ import annotations

import time

import torch
from claim import Claim
from torch import nn

from frechet.calculus.taylor import laplacian

D, POINTS = 50, 64


def measure() -> Claim:
    """Median processor times of five interleaved rounds, and the relative difference in float32."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(D, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 1)
    )
    x = torch.randn(POINTS, D)

    def f(x: torch.Tensor) -> torch.Tensor:
        return net(x).squeeze(-1)

    def nested() -> torch.Tensor:
        H = torch.func.vmap(torch.func.jacfwd(torch.func.jacrev(f)))(x)
        return H.diagonal(dim1=1, dim2=2).sum(1)

    collapsed = laplacian(f)
    acts = {"ours": lambda: collapsed(x), "nested": nested}
    times: dict[str, list[float]] = {name: [] for name in acts}
    with torch.no_grad():
        found = {name: act() for name, act in acts.items()}
        for _ in range(5):
            for name, act in acts.items():
                start = time.process_time()
                act()
                times[name].append(time.process_time() - start)
    ratio = sorted(times["nested"])[2] / sorted(times["ours"])[2]
    off = float((found["ours"] - found["nested"]).norm() / found["nested"].norm())
    return Claim(
        paper="Dangel et al. 2025, arXiv 2505.13644",
        claim="collapsed Taylor mode computes a Laplacian faster than nested first-order derivatives",
        theirs="in 50 dimensions 0.29 ms a point, nested 0.61 ms (PyTorch, a GPU); memory a half",
        ours=f"{ratio:.1f} times faster than forward over reverse mode, relative difference {off:.0e} in float32",
        verdict="holds" if ratio > 1.5 and off < 1e-5 else "does not hold here",
        why="one second coefficient for all directions; on a processor the sums are matrix products too",
        name="calculus.taylor.laplacian",
    )
