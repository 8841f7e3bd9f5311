"""When to measure: at fixed steps, or within a share of the run's time.

    spent + need <= share * elapsed

`need` is what the next reading will take: what the last one took, twice that where it had to end before its tolerance,
and before the first one a number of forward passes, of which one batch is timed. A reading may use half as much again
as was foreseen. What is overspent is waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# in steps of training: what the forward pass of one batch of the probe, which is timed first, is taken for
FIRST = 4.0
NOISE = 1.25  # of a reading's seconds, by which the next one may differ on a busy machine
SLACK = 1.5  # of what was foreseen, that a reading may take
# In forward passes: a gradient takes 3, a Hessian product up to 3 gradients, and a first reading two products
PRIOR = {"sharpness": 20.0, "stability": 20.0, "batch_sharpness": 14.0, "critical_rate": 12.0, "trace": 80.0}


@dataclass
class Pace:
    """The seconds of a run and of its measurements, and what follows for the next one."""

    every: int | None
    share: float
    clock: Callable[[], float]
    elapsed: float = 0.0
    spent: float = 0.0
    steps: int = 0
    need: float | None = None  # seconds; None: not known yet
    last: float | None = None  # the clock at the last step

    def tick(self, now: float) -> None:
        """Count the time since the last step of this process."""
        if self.last is not None:
            self.elapsed += now - self.last
            self.steps += 1
        self.last = now

    def due(self, step: int) -> bool:
        """Whether something is to be measured now."""
        if self.every is not None:
            return step % self.every == 0
        if self.steps < 2:
            return False
        need = FIRST * (self.elapsed - self.spent) / self.steps if self.need is None else self.need
        return self.spent + need <= self.share * self.elapsed

    def calibrate(self, begun: float, batches: int, quantities: tuple[str, ...]) -> None:
        """Foresee a first reading by the forward pass of one of `batches` batches that has run since `begun`."""
        self.need = batches * self.take(begun) * sum(PRIOR[name] for name in quantities if name in PRIOR)

    def take(self, begun: float) -> float:
        """Count the seconds since `begun` as measured; returns them."""
        taken = self.clock() - begun
        self.spent += taken
        return taken

    def products(self, allowed: float, seconds: float | None) -> int | None:
        """How many products of `seconds` each fit into `allowed` seconds; None where nothing limits them."""
        if self.every is not None:
            return None
        return 2 if seconds is None or seconds <= 0 else max(2, int(SLACK * allowed / seconds))

    def foresee(self, taken: float, complete: bool) -> None:
        """Plan the next reading by what this one took."""
        self.need = NOISE * taken if complete else 2 * taken

    @property
    def realised(self) -> float:
        """The share of the run's time that measuring has taken."""
        total = self.elapsed + (self.clock() - self.last if self.last is not None else 0.0)
        return self.spent / total if total > 0 else 0.0
