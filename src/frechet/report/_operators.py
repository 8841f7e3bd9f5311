"""The operators of a report: made once, recorded where many products are planned, one recording at a time."""

from __future__ import annotations

import math
import time
from typing import Any

from frechet.errors import LostRank
from frechet.objective import Objective
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._gauss_newton import gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._modes import Route
from frechet.recording import Linearized, free_memory, linearize
from frechet.report._metered import metered
from frechet.report._run import Run
from frechet.report._schema import Cost

WORTH = 12  # products; recording costs about as much as six, and saves about half of each
TIMED = 6  # products; of fewer, two to learn their time are too many
BASES = 0.25  # of the memory that is free: Krylov vectors, beside a recording that may take half


class Operators:
    """Gauss-Newton and Hessian of an objective by name. Use it as a context manager: leaving frees the recording."""

    def __init__(self, objective: Objective, run: Run, route: str, plain: bool) -> None:
        self.objective, self.run, self.plain = objective, run, plain
        self.route: Route = "forward" if route == "forward" else "reverse"
        self.held: tuple[str, Linearized] | None = None
        self.refused: set[str] = set()

    def __enter__(self) -> Operators:
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()

    def forget(self) -> None:
        """Free the recording."""
        if self.held is not None:
            self.held[1].release()
            self.held = None

    def get(self, name: str, planned: int) -> LinearOperator:
        """Return the operator, its products counted; recorded where `planned` products make that worth while."""
        A = hessian(self.objective) if name == "Hessian" else gauss_newton(self.objective, route=self.route)
        return metered(self._fastest(name, A, planned), self.run.meter, alone=self.run.group is None, name=name)

    def timed(self, name: str, planned: int) -> None:
        """Know the time of a product, where a budget of time depends on it: one that warms up, and one that counts."""
        if self.run.seconds is None or self.run.meter.rate(name) is not None or planned < TIMED:
            return
        A = self.get(name, planned)
        for _ in range(2 - (self.run.meter.times.get(name) is not None)):
            _ = A @ A.domain.random(0, 0)

    def together(self, name: str, vectors: int) -> int:
        """How many Krylov spaces of `vectors` vectors fit into memory at once, 1 to 8."""
        space = self.objective.space
        size = max(1, vectors * space.length * space.zeros(1).element_size())
        fit = 1 if self.run.group is not None else int(BASES * free_memory(space.device) / size)
        return max(1, min(8, fit))

    def _fastest(self, name: str, A: LinearOperator, planned: int) -> LinearOperator:
        if self.held is not None and self.held[0] == name:
            return self.held[1]
        # several processes would have to agree on what each can record
        if planned < WORTH or self.plain or name in self.refused or self.run.group is not None:
            return A
        self.forget()
        start = time.monotonic()
        L = self._recorded(A)
        seconds = time.monotonic() - start
        self._account(name, seconds)
        if L is None or L.pays_after == math.inf:  # it cannot be recorded, or a product is no faster
            self.refused.add(name)
            if L is not None:
                L.release()
            return A
        self.held = (name, L)
        self.run.meter.forget(name)
        return L

    @staticmethod
    def _recorded(A: LinearOperator) -> Linearized | None:
        try:
            return linearize(A)
        except LostRank:
            raise
        except Exception:  # whatever it is: plain products are right, only slower, and are all that is lost
            return None

    def _account(self, name: str, seconds: float) -> None:
        stage, costs = f"{name} recording", self.run.costs
        before: Any = costs.get(stage, Cost(0, 0, 0.0))
        costs[stage] = Cost(before.products, before.data_passes + 4, before.seconds + seconds, before.peak_bytes)
        self.run.meter.passes += 4  # recorded, compared, timed
