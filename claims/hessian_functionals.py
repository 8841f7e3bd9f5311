"""A. Bhattacharya, A. Skorobogatova (2023), Variational integrals on Hessian spaces, arXiv 2307.01191.

Claim: critical points of the integral of F(D^2 u) solve an equation in double divergence form, sum_ij (F_ij(D^2 u))_ij
= 0, so that this is the functional's derivative. Here: F(H) = sqrt(1 + |H|^2), against the derivative of the integral.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.calculus.taylor import differential_operator


def field(p: torch.Tensor) -> torch.Tensor:
    x, y = p.unbind(-1)
    return torch.sin(2 * x + y) + 0.5 * x * y * y + torch.cos(x) * y


def bump(p: torch.Tensor) -> torch.Tensor:
    """Zero with three derivatives on the border of the square."""
    return (1 - p.square()).pow(5).prod(-1) * (1 + p[..., 0])


def hessian_of(u):
    return differential_operator(u, ["u_xx", "u_xy", "u_yy"], variables="xy")


def density(u):
    def F(p):
        a, b, c = hessian_of(u)(p)
        return (1 + a * a + 2 * b * b + c * c).sqrt()

    return F


def double_divergence(p: torch.Tensor) -> torch.Tensor:
    """sum_ij d_ij (H_ij / F(H))."""
    total = torch.zeros(len(p), dtype=p.dtype)
    for k, symbol in enumerate(("u_xx", "2u_xy", "u_yy")):
        part = lambda p, k=k: hessian_of(field)(p)[k] / density(field)(p)  # noqa: E731
        total = total + differential_operator(part, symbol, variables="xy")(p)
    return total


def measure() -> Claim:
    """Both sides by Gauss-Legendre quadrature on the square."""
    import numpy as np

    t, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(80))
    p, weight = torch.cartesian_prod(t, t), torch.outer(w, w).flatten()

    def integral(s):
        return (weight * density(lambda p: field(p) + s * bump(p))(p)).sum()

    step = 1e-4
    varied = (integral(step) - integral(-step)) / (2 * step)
    strong = (weight * double_divergence(p) * bump(p)).sum()
    off = float((varied - strong).abs() / strong.abs())
    return Claim(
        paper="Bhattacharya, Skorobogatova 2023, arXiv 2307.01191",
        claim="the derivative of the integral of F(D^2 u) is the double divergence of F'(D^2 u)",
        theirs="the Euler-Lagrange equation (1.2)",
        ours=f"variation along a bump {float(varied):.8f}, double divergence against it {float(strong):.8f}: {off:.0e}",
        verdict="holds" if off < 1e-6 else "does not hold here",
        why="two integrations by parts, whose border terms vanish with the bump; derivatives of order four are exact",
        name="differential_operator",
    )
