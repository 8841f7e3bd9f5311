"""The cost that a step is compared with: the last one, or in a long curved valley a mean of those before.

The residuals of differential equations, and of networks that fit data exactly, have valleys in which a monotone search
takes ever shorter steps: the linear model says that nearly all of the cost could go, and each step takes a few percent.
There a step may raise the cost, if it stays below a reference that forgets earlier costs by the factor `MEMORY` a step.
The steps across the walls of the valley are then long enough to follow it.

Such a valley shows in the Jacobian, and not in the size of the problem: fewer than half of its singular values are
within half of the digits, and the undamped step of the linear model would take off more than half of the cost. Where
one of the two does not hold, as in a fit of noisy data or with parameters that the data tell apart, the search is
monotone. Where the reference has come down to the cost and the cost stays, the reference is raised.

**Source.** H. Zhang and W. W. Hager (2004), A nonmonotone line search technique and its application to unconstrained
optimization, doi 10.1137/S1052623403428208. **Differs from the source:** the weight of the earlier costs is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

from frechet.optimize._least_squares.damped_step import Factor

# from a prototype without `ROW`: 0.7 took all of eleven small networks below 1e-10, also those it was chosen on; 0.1,
# 0.3, 0.5 and 0.85 failed on some of nine, but not all with the same other constants. No fresh ones were tried.
MEMORY = 0.7
CONSISTENT = 0.5  # of the cost, that the undamped step takes off
LIVELY, SHARE = 1e-8, 0.5  # singular values of the largest; the part of the parameters with such
ROW, RAISED = 10, 100.0  # steps without a cost that is less by `MEMORY`; the reference after them, of the cost
NEAR = 2.0  # times the cost: the reference has come down to it


@dataclass(frozen=True)
class ReferenceCost:
    """What the next cost is compared with; `least` is the last cost that was clearly less, `row` the steps since."""

    value: float
    least: float
    row: int = 0

    def after(self, cost: float) -> ReferenceCost:
        """The reference after a step to a point with `cost`."""
        value = (1 - MEMORY) * cost + MEMORY * max(self.value, cost)
        if cost <= MEMORY * self.least:
            return ReferenceCost(value, cost)
        if self.row + 1 >= ROW and value <= NEAR * cost:
            return ReferenceCost(RAISED * cost, self.least)
        return ReferenceCost(value, self.least, self.row + 1)


def in_valley(model: Factor, cost: float) -> bool:
    """Whether the model shows a long curved valley, in which the cost may rise."""
    if not len(model.s) or int((model.s > LIVELY * model.s[0]).sum()) >= SHARE * int(model.free.sum()):
        return False
    return model.reduction > CONSISTENT * cost
