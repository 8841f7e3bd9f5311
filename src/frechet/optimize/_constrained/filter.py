"""Which trial points of a line search are taken: those that no earlier point beats in violation and in value at once.

**Source.** Waechter and Biegler (2006), doi 10.1007/s10107-004-0559-y, section 2.3, with its constants.
"""

from __future__ import annotations

from dataclasses import dataclass, field

GAMMA_THETA, GAMMA_PHI = 1e-5, 1e-8
DELTA, POWER_THETA, POWER_PHI = 1.0, 1.1, 2.3
ARMIJO = 1e-8
GAMMA_ALPHA = 0.05
WIDEST, SMALL = 1e4, 1e-4  # of the violation, relative to max(1, that of the start)


@dataclass
class Filter:
    """Pairs of a violation and a value of the barrier problem that new points have to beat in one of the two."""

    theta_start: float
    wide: float = WIDEST
    pairs: list[tuple[float, float]] = field(default_factory=list)

    @property
    def widest(self) -> float:
        return self.wide * max(1.0, self.theta_start)

    def allows(self, theta: float, phi: float, noise: float = 0.0) -> bool:
        if theta > self.widest:
            return False
        return all(theta < t or phi <= p + noise for t, p in self.pairs)

    def add(self, theta: float, phi: float) -> None:
        corner = ((1 - GAMMA_THETA) * theta, phi - GAMMA_PHI * theta)
        kept = [(t, p) for t, p in self.pairs if t < corner[0] or p < corner[1]]
        self.pairs[:] = [*kept, corner]

    def descends(self, alpha: float, theta: float, slope: float) -> bool:
        """Whether a step of this size is judged by the value alone: it promises more than the violation is worth."""
        if slope >= 0 or theta > SMALL * max(1.0, self.theta_start):
            return False
        return alpha * (-slope) ** POWER_PHI > DELTA * theta**POWER_THETA

    def least(self, theta: float, slope: float) -> float:
        """The step below which the search gives up."""
        bound = GAMMA_THETA
        if slope < 0:
            bound = min(bound, GAMMA_PHI * theta / -slope)
            if theta <= SMALL * max(1.0, self.theta_start):
                bound = min(bound, DELTA * theta**POWER_THETA / (-slope) ** POWER_PHI)
        return GAMMA_ALPHA * bound
