"""Move limits: a step keeps the sign of each parameter, until the parameter has asked for the other sign twice.

Sizes such as rates, widths and concentrations have a model on one side of zero alone: the poles of a rational model a x
/ (b + x) lie at b = -x, and a power of a negative number is no number. The linear model of a poor start does not see
them. A radius in the units of J does not either: where an amplitude is small the columns of the other parameters are
small as well. So each step takes at most nine tenths of a parameter's size from it, and the others are solved for
again. A parameter that steps took to this limit `TWICE` in a row, a hundredth of where it began, is a number without a
sign of its own, such as an offset: from then on it may pass zero. Growth is left to the radius.

The limits ask nothing of a parameter that is zero. A refused point, where r is not finite, shrinks the radius only for
what such an edge at zero does not explain. A run that would end as stagnated goes on once without limits. Problems of
more than `MOST` parameters have no limits: the weights of a network pass zero all the time, and each that is held costs
a factorization.

**Source.** The idea of a limit in units of the parameters for the first steps is from structural optimization; see K.
Svanberg (1987), The method of moving asymptotes, doi 10.1002/nme.1620240207. ``python benchmarks/rational.py`` measures
what the limits are worth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# the factor by which one step may make a parameter smaller; 4 and 10 do alike on Hill and Michaelis-Menten
SHRINK = 10.0
TWICE = 2  # steps in a row to the limit; 3 is no better
MOST = 32  # parameters


@dataclass(frozen=True, eq=False)
class MoveLimits:
    """The sides for the next step; `asked` ``(n,)`` counts the steps in a row that ended at the limit."""

    lower: Tensor  # (n,), of the problem
    upper: Tensor
    asked: Tensor
    once: bool = False  # whether a run that would stagnate has begun anew without limits

    @classmethod
    def of(cls, lower: Tensor, upper: Tensor) -> MoveLimits:
        limited = len(lower) <= MOST
        return cls(lower, upper, torch.full_like(lower, 0.0 if limited else float(TWICE)), once=not limited)

    def released(self) -> MoveLimits:
        """No limits but those of the problem."""
        return MoveLimits(self.lower, self.upper, torch.full_like(self.asked, float(TWICE)), once=True)

    def around(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest values ``(n,)`` that a step from `x` may reach."""
        limited, least = self.asked < TWICE, x / SHRINK
        low = torch.where(limited & (x > 0), torch.maximum(self.lower, least), self.lower)
        return low, torch.where(limited & (x < 0), torch.minimum(self.upper, least), self.upper)

    def after(self, x: Tensor, moved: Tensor) -> MoveLimits:
        """The limits after a step from `x` to `moved`."""
        released, reached = self.asked >= TWICE, moved.abs() <= x.abs() / SHRINK * (1 + 1e-3)
        asked = torch.where(released, self.asked, torch.where(reached & (x != 0), self.asked + 1, 0.0))
        return replace(self, asked=asked)
