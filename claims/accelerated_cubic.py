"""A. Agafonov et al. (2024), Advancing the lower bounds: an accelerated, stochastic, second-order method with optimal
adaptation to inexactness, ICLR, arXiv 2309.01570; without noise it is Nesterov's accelerated cubic method (2008).

Claim: acceleration improves the rate of the cubic method on convex functions from k^-2 to k^-3. Tried on the functions
on which second-order methods are slowest, f = sum |x_i - x_{i+1}|^q / q - x_1, and compared with the plain call.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet import minimize
from frechet.optimize import studies


def hard(x):
    """Nesterov's function with q = 3."""
    return torch.cat([x[:-1] - x[1:], x[-1:]]).abs().pow(3).sum() / 3 - x[0]


def measure() -> Claim:
    """Evaluations until the gradient is 1e-9, for 20 and 40 variables."""
    counts = []
    for n in (20, 40):
        x0 = 1e-3 * torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        accelerated = studies.cubic_newton(hard, x0, gtol=1e-9, max_iterations=2000)
        plain = minimize(hard, x0, gtol=1e-9, max_iterations=2000)
        counts.append((n, accelerated.evaluations, plain.evaluations, accelerated.converged and plain.converged))
    told = ", ".join(f"n = {n}: {a} and {p}" for n, a, p, _ in counts)
    pays = all(a < p for _, a, p, ok in counts if ok)
    return Claim(
        paper="Agafonov et al. 2024, arXiv 2309.01570; Nesterov 2008",
        claim="accelerated cubic Newton needs fewer iterations on convex functions",
        theirs="f - f* of order k^-3 where the plain cubic method has k^-2",
        ours=f"evaluations of `cubic_newton` and of the plain call: {told}",
        verdict="holds" if pays else "does not hold here",
        why="the rate is that of the worst case; methods that adapt are faster than the bound on these functions. No "
        "class of problems was found on which acceleration pays; the method is for study",
        name="optimize.studies.cubic_newton",
    )
