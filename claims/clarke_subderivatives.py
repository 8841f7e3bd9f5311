"""W. Lee, S. Park, A. Aiken (2023), Correctness of automatic differentiation, arXiv 2301.13370.

Claim: for networks with biases autograd returns a Clarke subderivative everywhere, kinks included, and without biases
it may be wrong even where the network is differentiable. Here: units put at their kinks.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.calculus.kinks import clarke_check


def with_biases(seed: int) -> bool:
    torch.manual_seed(seed)
    W, w, x = torch.randn(4, 3).double(), torch.randn(4).double(), torch.randn(3).double()
    at = -(W @ x)  # every unit is at its kink
    return clarke_check(lambda b: w @ torch.relu(W @ x + b), at, seed=0, samples=200).passed


def without_biases(seed: int) -> tuple[bool, bool]:
    """f(w) = relu(w x) - relu(-w x) = w x at w = 0."""
    x = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double()
    found = clarke_check(lambda w: torch.relu(w @ x) - torch.relu(-(w @ x)), torch.zeros(3).double(), seed=0)
    return found.passed, found.kink


def measure() -> Claim:
    """How often autograd's gradient is Clarke's."""
    right = sum(with_biases(s) for s in range(20))
    without = [without_biases(s) for s in range(20)]
    wrong = sum(not passed and not kink for passed, kink in without)
    return Claim(
        paper="Lee, Park, Aiken 2023, arXiv 2301.13370",
        claim="autograd is a Clarke subderivative for networks with biases, and may be wrong without",
        theirs="the incorrect set is empty with biases; relu(w x) - relu(-w x) is incorrect at 0 without",
        ours=f"{right} of 20 points with all units at kinks right; {wrong} of 20 smooth points without biases wrong",
        verdict="holds" if right == 20 and wrong == 20 else "does not hold here",
        why="a bias moves each unit alone, so that each choice of slopes is a limit",
        name="clarke_check",
    )
