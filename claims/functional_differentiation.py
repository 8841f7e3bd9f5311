"""M. Lin (2023), Automatic functional differentiation in JAX, arXiv 2311.18727.

Claim: functionals and operators on functions are differentiated like functions of numbers, and the functional gradient
comes back as a function. Compared with the Euler-Lagrange expressions by hand, and with what is lost at the boundary.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.calculus.functionals import box, functional_derivative, local_functional, nonlocal_functional

LINE = box(0.0, 1.0)
G = 9.81


def u(x):
    return torch.sin(2 * x[..., 0]) + 2


def h(x):
    return 1 + x[..., 0] ** 2


def slope(x, n):
    """n-th derivative of u."""
    t = 2 * x[..., 0]
    return 2**n * [torch.sin(t), torch.cos(t), -torch.sin(t), -torch.cos(t), torch.sin(t)][n]


def measure() -> Claim:
    """The largest relative error of six derivatives, and the boundary part of the first variation."""
    x = LINE.points
    u0, u1, u2, u4 = u(x), slope(x, 1), slope(x, 2), slope(x, 4)
    w = LINE.weights
    cases = [
        (local_functional(lambda x, u, p: p[..., 0] ** 2 / 2, LINE, order=1), -u2),
        (local_functional(lambda x, u, p: (1 + p[..., 0] ** 2).sqrt(), LINE, order=1), -u2 / (1 + u1**2) ** 1.5),
        (
            local_functional(lambda x, u, p: ((1 + p[..., 0] ** 2) / (2 * G * u)).sqrt(), LINE, order=1),
            -(1 + u1**2 + 2 * u0 * u2) / (2 * u0 * (2 * G * u0).sqrt() * (1 + u1**2) ** 1.5),
        ),
        (local_functional(lambda x, u, p, q: q[..., 0, 0] ** 2 / 2, LINE, order=2), u4),
        (local_functional(lambda x, u: -0.75 * u ** (4 / 3), LINE, order=0), -(u0 ** (1 / 3))),
        (nonlocal_functional(lambda x, y, s, t: s * t * (x - y)[..., 0] ** 2, LINE), 2 * (x - x.T) ** 2 @ (w * u0)),
    ]
    errors = [float((functional_derivative(F, u)(x) - right).abs().max() / right.abs().max()) for F, right in cases]
    D = functional_derivative(cases[0][0], u)
    whole, inside = float(D.along(h)), float(LINE.integral(D(x) * h(x)))
    explained = abs(whole - inside - float(D.boundary(h))) < 1e-10
    good = max(errors) < 1e-10
    return Claim(
        paper="Lin 2023, arXiv 2311.18727",
        claim="functional derivatives by automatic differentiation, as functions",
        theirs="the gradient of a functional is a function; the transpose of nabla drops boundary terms",
        ours=(
            f"six derivatives within {max(errors):.0e} of the analytic ones; of a first variation {whole:.3f} the "
            f"boundary is {whole - inside:.3f}, which we give apart"
        ),
        verdict="holds" if good and explained else "does not hold here",
        why="Euler-Lagrange expressions are products of the density's derivatives with those of u",
        name="functional_derivative",
    )
