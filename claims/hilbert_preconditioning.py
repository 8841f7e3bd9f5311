"""T. Marwah, Z. Lipton, J. Lu, A. Risteski (2022), Neural network approximations of PDEs beyond linearity,
arXiv 2210.12101.

Claim (the proof's algorithm): for E(u) = int L(Du) - f u with D^2 L between a and b, gradient descent preconditioned by
the inverse Laplacian converges exponentially, by (b - a) / (b + a) a step, whatever the resolution is.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.calculus.functionals import sobolev

STEPS, A, B = 25, 1.0, 2.0  # L = |p|^2 / 2 + sqrt(1 + |p|^2) has D^2 L in [1, 2]


def energy(n):
    """E on the nodes inside of the unit square, and the spacing."""
    h = 1 / (n + 1)
    x = torch.linspace(h, 1 - h, n, dtype=torch.float64)
    f = 10 * torch.sin(3 * x[:, None]) * torch.exp(x)

    def E(v):
        u = torch.nn.functional.pad(v.view(n, n), (1, 1, 1, 1))
        total = 0.0
        for dx, dy in (
            (u[1:, :-1] - u[:-1, :-1], u[:-1, 1:] - u[:-1, :-1]),
            (u[1:, 1:] - u[:-1, 1:], u[1:, 1:] - u[1:, :-1]),
        ):
            p = (dx**2 + dy**2) / h**2
            total = total + 0.5 * h**2 * (p / 2 + (1 + p).sqrt()).sum()
        return total - h**2 * (f.reshape(-1) * v).sum()

    return E, h


def rate(n, preconditioned):
    """The mean factor of the gradient's norm over the last steps."""
    E, h = energy(n)
    R = sobolev((n, n), h, mass=0.0).inverse
    v, norms = torch.zeros(n * n, dtype=torch.float64), []
    for _ in range(STEPS):
        g = torch.func.grad(E)(v)
        step = R @ g
        norms.append(float(g @ step) ** 0.5)
        v = v - 2 / (A + B) * (step if preconditioned else g / 8)  # 8 bounds the eigenvalues of the Laplacian times h^2
    return (norms[-1] / norms[-11]) ** 0.1


def measure() -> Claim:
    """Contraction on three grids, with and without the Riesz map."""
    grids = (15, 31, 63)
    with_map, plain = ([rate(n, p) for n in grids] for p in (True, False))
    bound = (B - A) / (B + A)
    good = max(with_map) <= bound * 1.02 and max(with_map) - min(with_map) < 0.02
    return Claim(
        paper="Marwah, Lipton, Lu, Risteski 2022, arXiv 2210.12101",
        claim="gradient descent in a Hilbert space of functions converges at a rate that no resolution changes",
        theirs=f"at most (b - a) / (b + a) = {bound:.3f} a step",
        ours=(
            f"on 15^2, 31^2, 63^2 nodes {', '.join(f'{r:.3f}' for r in with_map)}; without the map "
            f"{', '.join(f'{r:.3f}' for r in plain)}"
        ),
        verdict="holds" if good else "does not hold here",
        why="the second variation lies between a and b times the Laplacian, the metric of the gradient",
        name="sobolev",
    )
