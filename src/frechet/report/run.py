"""One run of a report: what is done, what it cost, what may still be spent, and the file from which it can go on.

Work is cut into stages. A finished stage is kept in the checkpoint file; of the running one the last state that its
algorithm showed to `observe` is kept, at most every few seconds. So a run that is killed loses seconds. The budget is
shared out: a stage may spend its part of what is left, by the weights of the stages to come, so that a small budget
gives a coarser report and not half of one.

On several processes rank 0 alone looks at the clock, writes and reads the file, and the others do as it does; Ctrl-C on
any of them stops all at the same place.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from frechet.recording import peak_above, start_peak
from frechet.report.files import write_atomic
from frechet.report.metered import Meter
from frechet.report.schema import Cost, LeftOut
from frechet.space import Group

SAVE_EVERY = 3.0  # seconds
PLENTY = 1 << 30

T = TypeVar("T")
Observe = Callable[[Any], bool]


class ResumeMismatch(ValueError):
    """A checkpoint of another run."""


@dataclass
class Run:
    """The mutable state of one report being made. `weights` name the stages in order and share out the budget."""

    device: torch.device
    weights: dict[str, float]
    checkpoint: Path | None = None
    fingerprint: str = ""
    products: int | None = None  # budget
    seconds: float | None = None  # budget
    show: Callable[[str, int, int | None], None] = lambda stage, done, limit: None
    meter: Meter = field(default_factory=Meter)
    results: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    partial: dict[str, Any] = field(default_factory=dict)
    spent_before: float = 0.0  # seconds of earlier sittings
    group: Group | None = None
    interrupted: bool = False
    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    # --- budget ---------------------------------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        return self.spent_before + time.monotonic() - self.began

    def allowance(self, stage: str) -> int:
        """Products that `stage` may spend: its share of what is left; a large number without a budget."""
        names = list(self.weights)
        to_come = [self.weights[n] for n in names[names.index(stage) :]]
        share, left = self.weights[stage] / sum(to_come), float(PLENTY)
        if self.products is not None:
            left = min(left, max(0.0, self.products - self.meter.products) * share)
        if self.seconds is not None:
            remaining = max(0.0, self.seconds - self.elapsed) * share
            rate = self._seconds_per_product()
            left = min(left, remaining / rate if rate > 0 else (PLENTY if remaining > 0 else 0))
        return int(left) if self.group is None else self.group.exchange([0, int(left)])[0][1]

    def _seconds_per_product(self) -> float:
        products = sum(c.products for c in self.costs.values())
        return sum(c.seconds for c in self.costs.values() if c.products) / products if products else 0.0

    # --- several processes ----------------------------------------------------------------------------------------

    @property
    def writes(self) -> bool:
        return self.checkpoint is not None and (self.group is None or self.group.rank == 0)

    def interrupt(self) -> bool:
        """Note that a stop is wished, at the next place where all processes meet; False if it was already."""
        self.interrupted, before = True, self.interrupted
        return not before

    def _agreed(self, stop: bool, failure: OSError | None = None) -> tuple[bool, bool]:
        """Whether all processes stop here, by rank 0's word, and whether any of them was interrupted."""
        if self.group is None:
            return stop, False
        rows = self.group.exchange([failure is not None, stop, self.interrupted])
        if any(row[0] for row in rows):
            self.group.fail(failure)
        return bool(rows[0][1]), any(row[2] for row in rows)

    # --- stages ---------------------------------------------------------------------------------------------------

    def stage(self, name: str, compute: Callable[[Observe, Any], T], *, limit: int | None = None) -> T:
        """The result of a stage: kept from before, or computed by ``compute(observe, resume)`` and then kept."""
        if name in self.results:
            return self.results[name]
        earlier = self.partial.get(name)
        products, passes, spent = earlier["cost"] if earlier else (0, 0, 0.0)
        mark, before, start = Meter(self.meter.products, self.meter.passes), start_peak(self.device), time.monotonic()

        def cost() -> tuple[int, int, float]:
            made, read = self.meter.products - mark.products, self.meter.passes - mark.passes
            return products + made, passes + read, spent + time.monotonic() - start

        def observe(state: Any) -> bool:
            self.show(name, cost()[0], limit)
            failure = None
            if time.monotonic() - self.saved > SAVE_EVERY and self.writes:
                self.partial[name] = {"state": state, "cost": cost()}
                failure = self._save()
            stop, interrupted = self._agreed(self.seconds is not None and self.elapsed > self.seconds, failure)
            if interrupted:
                self.partial[name] = {"state": state, "cost": cost()}
                self._save()
                raise KeyboardInterrupt
            return stop

        self.show(name, products, limit)
        if self._agreed(False)[1]:
            raise KeyboardInterrupt
        result = compute(observe, earlier["state"] if earlier else None)
        made, read, seconds = cost()
        self.costs[name] = Cost(made, read, seconds, peak_above(before, self.device))
        self.results[name] = result
        self.partial.pop(name, None)
        self._agreed(False, self._save())
        return result

    def leave_out(self, what: str, why: str) -> None:
        self.left_out.append(LeftOut(what, why))

    def total(self) -> Cost:
        peaks = [c.peak_bytes for c in self.costs.values() if c.peak_bytes is not None]
        return Cost(self.meter.products, self.meter.passes, self.elapsed, max(peaks) if peaks else None)

    # --- checkpoint -----------------------------------------------------------------------------------------------

    def _save(self) -> OSError | None:
        """Write the checkpoint; on several processes a failure is returned, so that all can raise it."""
        if not self.writes or self.checkpoint is None:
            return None
        buffer = io.BytesIO()
        torch.save(
            {
                "fingerprint": self.fingerprint,
                "results": self.results,
                "costs": self.costs,
                "partial": self.partial,
                "left_out": self.left_out,
                "meter": self.meter,
                "elapsed": self.elapsed,
            },
            buffer,
        )
        try:
            write_atomic(self.checkpoint, buffer.getvalue())
        except OSError as error:
            if self.group is None:
                raise
            return error
        self.saved = time.monotonic()
        return None

    def _content(self) -> bytes | None:
        if not self.writes or self.checkpoint is None or not self.checkpoint.exists():
            return None
        return self.checkpoint.read_bytes()

    def load(self) -> bool:
        """Continue from the checkpoint file, if there is one. Raises `ResumeMismatch` if it is of another run."""
        content = self._content() if self.group is None else self.group.first(self.group.together(self._content))
        if content is None:
            return False
        try:
            # written by this program beside its own report
            kept = torch.load(io.BytesIO(content), weights_only=False, map_location=self.device)
        except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, ImportError) as error:
            raise ResumeMismatch(
                f"resume: {self.checkpoint} is no checkpoint that this version can read; start again without --resume"
            ) from error
        if kept["fingerprint"] != self.fingerprint:
            raise ResumeMismatch(
                f"resume: {self.checkpoint} belongs to another run (other model, data source, seed, settings, number "
                "of processes or version); repeat the command that began it, or start again without --resume"
            )
        self.results, self.costs, self.partial = kept["results"], kept["costs"], kept["partial"]
        self.left_out, self.meter, self.spent_before = kept["left_out"], kept["meter"], kept["elapsed"]
        # what the unfinished stage had counted after its last saved state is done again
        self.meter.products = sum(c.products for c in self.costs.values())
        self.meter.passes = sum(c.data_passes for c in self.costs.values())
        for unfinished in self.partial.values():
            self.meter.products += unfinished["cost"][0]
            self.meter.passes += unfinished["cost"][1]
        return True
