"""M. Blondel et al. (2022), Efficient and modular implicit differentiation, arXiv 2105.15183.

Claim: the derivative of what any solver returns follows from its optimality conditions alone, and agrees with the
closed form. Two solvers that know nothing of derivatives: SciPy's BFGS on ridge regression (conditions: the gradient
vanishes), and projected gradients on a quadratic program in a box (conditions: a fixed point).
"""

from __future__ import annotations

import torch
from claim import Claim
from scipy.optimize import minimize as scipy_minimize

from frechet import implicit
from frechet.calculus import fixed_point_conditions, stationary_conditions


def ridge(draw: torch.Generator) -> float:
    """The error of d w / d theta, relative."""
    X, y = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((40, 8), (40,)))

    def loss(w, theta):
        return (X @ w - y).square().sum() / 2 + theta * w.square().sum() / 2

    def solver(theta):
        value = lambda w: float(loss(torch.from_numpy(w), theta))  # noqa: E731
        slope = lambda w: (X.T @ (X @ torch.from_numpy(w) - y) + theta * torch.from_numpy(w)).numpy()  # noqa: E731
        w = scipy_minimize(value, torch.zeros(8).double().numpy(), jac=slope, method="BFGS", options={"gtol": 1e-10}).x
        return torch.from_numpy(w)

    theta = torch.tensor(2.0, dtype=torch.float64)
    found = torch.func.jacrev(implicit(solver, stationary_conditions(loss)))(theta)
    exact = -torch.linalg.solve(X.T @ X + theta * torch.eye(8, dtype=torch.float64), solver(theta))
    return float((found - exact).norm() / exact.norm())


def box(draw: torch.Generator) -> float:
    """The error of d sum(x) / d b, with x the minimum of x'Qx/2 - b'x in a box; on free variables Q_ff^-1."""
    Q = torch.randn(12, 12, generator=draw, dtype=torch.float64)
    Q, b = Q @ Q.T / 12 + torch.eye(12, dtype=torch.float64), torch.randn(12, generator=draw, dtype=torch.float64)
    step = 1 / float(torch.linalg.matrix_norm(Q, 2))

    def move(x, b):
        return (x - step * (Q @ x - b)).clamp(-0.3, 0.3)

    def solver(b):
        x = torch.zeros_like(b)
        for _ in range(3000):
            x = move(x, b)
        return x

    found = torch.func.grad(lambda b: implicit(solver, fixed_point_conditions(move))(b).sum())(b)
    free = solver(b).abs() < 0.3
    exact = torch.zeros_like(b)
    exact[free] = torch.linalg.solve(Q[free][:, free], torch.ones(int(free.sum()), dtype=torch.float64))
    return float((found - exact).norm() / exact.norm())


def measure() -> Claim:
    """Both errors, relative to the closed forms."""
    draw = torch.Generator().manual_seed(0)
    errors = ridge(draw), box(draw)
    return Claim(
        paper="Blondel et al. 2022, arXiv 2105.15183",
        claim="implicit differentiation is added on top of any solver, from its optimality conditions",
        theirs="the error of the derivative is of the order of the solver's own error (their figure 3)",
        ours=f"ridge by SciPy's BFGS: {errors[0]:.0e}; a box by projected gradients: {errors[1]:.0e} (relative)",
        verdict="holds" if max(errors) < 1e-6 else "does not hold here",
        why="the linear system is solved by products, and the conditions are checked at the solution first",
        name="implicit",
    )
