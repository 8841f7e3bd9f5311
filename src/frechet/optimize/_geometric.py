"""Steps that shrink by a constant factor: the limit of the sequence that they belong to.

Where the Hessian or the Jacobian is singular at the solution, Newton's steps shrink by a constant factor: by 2/3 at the
minimum of x^4, by 1/2 at the double root of x^2. A solver that goes on until rounding leaves nothing to gain would need
a hundred of them, and a thousand where the solution is x = 0. Once s_k = q s_(k-1) with a q that stays, the limit is
x + s_k q / (1 - q), and is tried. It is taken only where it is a much better point; else the next tries are put off.

**Source.** G. W. Reddien (1978), On Newton's method for singular problems, doi 10.1137/0715064; the extrapolation is
Aitken's. **Cost.** One evaluation per try.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

LEAST, MOST = 0.3, 0.99  # of q: below, steps are no burden; above, its error decides
PARALLEL, STEADY = 0.2, 0.05  # relative differences of steps, and of 1 - q, in a row
BETTER = 0.1  # the gradient or residual at the limit, of that before
WAIT = 8  # steps after a try in vain
ROW = 12  # steps in a row before the first limit: from far away a polynomial shows the same, and the limit is no basin


class Geometric:
    """The last step and the factor from the one before."""

    def __init__(self, inner: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.inner = inner
        self.last: Tensor | None = None
        self.q = 0.0
        self.wait = 0
        self.row, self.most = 0, ROW

    def multiple(self, s: Tensor) -> float:
        """The t for which x + t s is the limit after the step s to x; 0 where no limit shows."""
        last, before, row = self.last, self.q, self.row
        self.last, self.q, self.row, self.wait = s, 0.0, 0, max(0, self.wait - 1)
        square = 0.0 if last is None else float(self.inner(last, last))
        if last is None or not 0 < square < math.inf:
            return 0.0
        q = float(self.inner(s, last)) / square
        miss = s - q * last
        if not LEAST <= q <= MOST or float(self.inner(miss, miss)) > PARALLEL**2 * float(self.inner(s, s)):
            return 0.0
        self.q, self.row = q, row + 1
        if self.wait or self.row < self.most or not abs(q - before) <= STEADY * (1 - q):
            return 0.0
        return q / (1 - q)

    def tried(self, taken: bool) -> None:
        """Note whether the limit was taken."""
        if taken:
            self.last, self.q, self.row, self.most = None, 0.0, 0, 2
        else:
            self.wait = WAIT
