"""S. Hanzely, F. Abdukhakimov, M. Takac (2024), Newton method revisited: global convergence rates up to O(k^-3) for
stepsize schedules and linesearch procedures, arXiv 2405.18926.

Claim: on convex functions f - f* falls at least like k^-3, without known constants. Tried on Nesterov's function,
f = sum |x_i - x_{i+1}|^4 / 4 - x_1, from far away, with the rate of the part before it becomes linear. Beside that the
evaluations on a logistic regression whose columns are scaled over six orders, and those of the plain call.
"""

from __future__ import annotations

import math

import torch
from claim import Claim

from frechet import minimize
from frechet.optimize.studies import stepsized_newton

N = 30


def hard(x):
    """Nesterov's function with q = 4; its minimum is x_i = N + 1 - i."""
    return torch.cat([x[:-1] - x[1:], x[-1:]]).pow(4).sum() / 4 - x[0]


def scaled():
    """A logistic regression with 20 parameters whose columns have sizes from 1 to 1e-6."""
    draw = torch.Generator().manual_seed(0)
    sizes = torch.logspace(0, -6, 20, dtype=torch.float64)
    A = torch.randn(80, 20, generator=draw, dtype=torch.float64) * sizes
    y = torch.where(torch.rand(80, generator=draw, dtype=torch.float64) < 0.5, 1.0, -1.0)
    damping = 1e-4 * (A * A).mean(0)
    return lambda x: torch.nn.functional.softplus(-y * (A @ x)).mean() + 0.5 * (damping * x * x).sum()


def measure() -> Claim:
    """The exponent p of f - f* <= C k^-p over all iterations, and evaluations on a scaled problem."""
    lowest = float(hard(torch.arange(N, 0, -1, dtype=torch.float64)))
    x0 = 100 * torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slopes, counts = [], []
    for rule in ("universal", "greedy"):
        values: list[float] = []
        found = stepsized_newton(
            hard, x0, rule=rule, max_iterations=300,
            observe=lambda state, values=values: bool(values.append(float(hard(state.x)) - lowest)),
        )  # fmt: skip
        gaps = [v for v in values if v > 1e-12 * values[0]]
        k = len(gaps) - 1
        slopes.append(math.log(gaps[0] / gaps[-1]) / math.log(1 + k))
        counts.append(found.iterations)
    f, start = scaled(), torch.zeros(20, dtype=torch.float64)
    spent = [minimize(f, start).evaluations]
    spent += [stepsized_newton(f, start, rule=rule).evaluations for rule in ("universal", "greedy")]
    return Claim(
        paper="Hanzely, Abdukhakimov, Takac 2024, arXiv 2405.18926",
        claim="Newton's method with step sizes converges like k^-3 on convex functions, constants unknown",
        theirs="O(k^-3); the lower bound of second-order methods is k^-3.5",
        ours=f"exponents {slopes[0]:.1f} (universal rule) and {slopes[1]:.1f} (greedy), "
        f"{counts[0]} and {counts[1]} iterations; on a scaled logistic regression {spent[1]} and {spent[2]} "
        f"evaluations, {spent[0]} of the plain call",
        verdict="holds" if min(slopes) >= 3 else "does not hold here",
        why="measured between the start and 1e-12 of its gap; the rate is a bound for the worst function, and no "
        "saving of evaluations follows: a trust region in scaled variables does not depend on scales either",
        name="optimize.studies.stepsized_newton",
    )
