"""Newton's method on an exact augmented Lagrangian, with the Newton system solved by randomized sketches.

The outer iteration is that of `minimize(method="augmented")`: see `_constrained/augmented.py` for the function and the
search. The system K z = -(grad_x L, c), with K = [W + t I, J'; J, 0], is solved by block sketch-and-project (see
`_sketch_and_project.py`). The curvature is judged by the test of descent alone.

**Source.** Hong, Na, Mahoney and Kolar (2023), Constrained optimization via exact augmented Lagrangian and randomized
iterative sketching, ICML, arXiv 2305.18379, algorithm 1.

**Differs from the source.** Blocks of vectors in place of single ones; see also `_constrained/augmented.py`.

**Cost** per iteration: one gradient per trial step; `block` + 1 products with K per step of the inner iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.objective import Objective
from frechet.operators._constructors import from_callable
from frechet.optimize._constrained.augmented import Moment, Step, augmented
from frechet.optimize._constrained.constrained import (
    AUGMENTED,
    Way,
    minimized,
    problem_of,
    require_equalities,
    tolerances,
)
from frechet.optimize._constrained.constraint import Constraints
from frechet.optimize._constrained.program import Parameters, Point, Program
from frechet.optimize._constrained.run import Observe, Rules, Run
from frechet.optimize._smooth.minimize_result import MinimizeSolution
from frechet.optimize.studies._sketch_and_project import sketch_and_project
from frechet.space import euclidean


def sketched_lagrangian(
    f: Callable[..., Tensor] | Objective,
    x0: Parameters,
    constraints: Constraints,
    *,
    seed: int,
    block: int = 32,
    gtol: float | None = None,
    ctol: float | None = None,
    max_iterations: int = 1000,
    observe: Observe | None = None,
) -> MinimizeSolution:
    """Find a minimum of f under equality constraints, by sketches of the Newton system.

    The method is here to be studied: no class of problems was found on which it is faster than `minimize`, and it is
    slower by far where the system is larger than a block or ill-conditioned. See `claims/sketched_lagrangian.py`.

    Args:
        f: as in `minimize`.
        x0: as in `minimize`.
        constraints: as in `minimize`, equalities alone.
        seed: the seed of the random blocks.
        block: how many vectors a sketch has.
        gtol: as in `minimize`.
        ctol: as in `minimize`.
        max_iterations: as in `minimize`.
        observe: as in `minimize` under constraints.

    Returns:
        A `MinimizeSolution` with the statuses of `minimize`.

    Raises:
        NonFinite: f or a constraint is not finite at x0.
        ValueError: a constraint is an inequality, or `block` is not positive.

    Example:
        >>> import torch
        >>> from frechet.optimize import studies
        >>> x0 = torch.ones(2, dtype=torch.float64)
        >>> s = studies.sketched_lagrangian(lambda x: (x**4).sum() - x.sum(), x0, lambda x: x[0] - 2 * x[1], seed=0)
        >>> s.x
        tensor([0.7067, 0.3533], dtype=torch.float64)
    """
    if block < 1:
        raise ValueError(f"sketched_lagrangian: block must be >= 1, got {block}")
    program, x, shapes = problem_of(f, x0, constraints, None)
    require_equalities(program, "sketched_lagrangian: constraints must be equalities, got {met}; take minimize")

    def loop(program: Program, start: Point, rules: Rules, observe: Observe | None) -> Run:
        return augmented(program, start, rules, observe, system=Sketches(seed, block))

    rules = tolerances(program, gtol, ctol, max_iterations)
    return minimized(program, x, shapes, rules, Way(f"{AUGMENTED}, by sketches", loop), observe)


@dataclass
class Sketches:
    """The step by sketches of the whole system, `drawn` of which were solved."""

    seed: int
    block: int
    drawn: int = 0
    projects: bool = False

    def step(self, at: Moment, t: float, rtol: float) -> Step:
        J, W, n = at.point.J, at.W, len(at.gradient)

        def product(V: Tensor) -> Tensor:
            X, Y = V[:n], V[n:]
            return torch.cat([W @ X + t * X + J.T @ Y, J @ X])

        K = from_callable(product, euclidean(n + len(at.c), torch.float64, at.c.device), facts="symmetric")
        rhs, seed = -torch.cat([at.gradient, at.c]), self.seed + self.drawn
        self.drawn += 1
        z = sketch_and_project(K, rhs, seed=seed, block=self.block, rtol=rtol).x
        return Step(z[:n], z[n:], None)

    def bends(self, at: Moment, t: float, step: Step) -> bool:
        return float(at.point.J.domain.inner(step.dx, at.W @ step.dx + t * step.dx)) <= 0
