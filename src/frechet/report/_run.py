"""One run of a report: what is done, what it cost, what may still be spent, and the file from which it can go on.

Work is cut into stages. A finished stage is kept in the file; of the running one the last state that its algorithm
showed to `observe` is kept, every few seconds. So a run that is killed loses seconds. A stage may be worked on again,
to make its numbers finer, as long as it is `open`.

A budget is shared out among the open stages, by their weights, each time that one of them begins: from what is left,
at the speed of the products that were just measured. What a stage does not use goes to the others.

On several processes rank 0 alone looks at the clock, writes and reads the file, and the others do as it does; Ctrl-C on
any of them stops all at the same place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from frechet.recording import peak_above, start_peak
from frechet.report._files import write_atomic
from frechet.report._metered import Meter
from frechet.report._schema import Cost, LeftOut
from frechet.report._state import Damaged, packed, unpacked
from frechet.space import Group, Space

SAVE_EVERY = 3.0  # seconds
SAVE_SHARE = 20.0  # a file that took t seconds to write is written again after this many t: a twentieth of the time
PLENTY = 1 << 30
PAGE_SECONDS = 0.02  # the part of a budget of time that is left for the page itself

T = TypeVar("T")
Observe = Callable[[Any], bool]


class ResumeMismatch(ValueError):
    """A file of another run, or one that is damaged."""


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
    space: Space | None = None  # of the vectors in the file
    interrupted: bool = False
    watching: bool = False  # whether a stage is running that looks at `interrupted`
    open: set[str] = field(default_factory=set)
    tight: bool = False  # whether stages were worked on once
    leasts: dict[str, int] = field(default_factory=dict)  # products without which a stage has no result
    users: dict[str, str] = field(default_factory=dict)  # the operator of a stage
    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    saving: float = 0.0  # seconds that writing the file took last
    unsaved: str = ""  # why the file could not be written, once that happened
    kept: int = 0  # finished stages in the file

    def __post_init__(self) -> None:
        self.open = self.open or set(self.weights)

    # --- budget ---------------------------------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        return self.spent_before + time.monotonic() - self.began

    @property
    def bounded(self) -> bool:
        return self.products is not None or self.seconds is not None

    def remaining(self) -> float:
        """The part of the budget that is left, of time or of products, whichever is less; 1 without a budget."""
        parts = [1.0]
        if self.products is not None:
            parts.append(1 - self.meter.products / self.products)
        if self.seconds is not None:
            parts.append(1 - PAGE_SECONDS - self.elapsed / self.seconds)
        left = max(0.0, min(parts))
        return left if self.group is None else self.group.objects(left)[0]

    def allowance(self, stage: str, operator: str = "", least: int = 0) -> int:
        """Products that `stage` may spend; a large number without a budget.

        It is the stage's share of what is left, less if the `leasts` of stages without a result would not be left for
        them, and its own `least` in any case, if there is so much at all. A bound of time becomes products at the rate
        of the last products with `operator`, or of all where it is new.
        """
        others = [n for n in self.open if n != stage and n not in self.results and n in self.leasts]
        given = float(PLENTY)
        if self.products is not None:
            left = max(0.0, self.products - self.meter.products)
            given = self._given(stage, left, least, sum(self.leasts[n] for n in others))
        if self.seconds is not None:
            left = max(0.0, self.seconds * (1 - PAGE_SECONDS) - self.elapsed)
            rate = self.seconds_per_product(operator)
            reserved = sum(self.leasts[n] * self.seconds_per_product(self.users.get(n, "")) for n in others)
            if rate > 0:
                given = min(given, self._given(stage, left, least * rate, reserved) / rate)
            elif left == 0:
                given = 0.0
        found = min(PLENTY, int(given * (1 + 1e-9)))  # a least that went through seconds and back
        return found if self.group is None else self.group.exchange([0, found])[0][1]

    def _given(self, stage: str, left: float, least: float, reserved: float) -> float:
        """The stage's part of what is left."""
        if left < least:
            return left
        return max(least, min(left * self.share(stage), left - reserved))

    def share(self, stage: str) -> float:
        """The part of what is left that `stage` may spend, by the weights of the open stages."""
        return self.weights[stage] / sum(self.weights[n] for n in self.open | {stage})

    def seconds_per_product(self, operator: str = "") -> float:
        """The seconds that a product takes now, with the work around it; 0 where none was timed."""
        rate = self.meter.rate(operator)
        if rate is None:
            known = [r for r in map(self.meter.rate, self.meter.times) if r is not None]
            # a Hessian product costs 1.5 to 2 times what a Gauss-Newton product does
            rate = max(known, default=0.0) * (2.0 if operator == "Hessian" else 1.0)
        return rate * self.overhead(operator)

    def overhead(self, operator: str) -> float:
        """How much longer the finished stages of `operator` took than their products at its rate, at least 1."""
        rate, spent = (
            self.meter.rate(operator),
            [c for n, c in self.costs.items() if operator and n.startswith(operator)],
        )
        made = sum(c.products for c in spent)
        if rate is None or made == 0:
            return 1.0
        # recording and the first product are paid once; a factor above 3 would come from those alone
        return min(3.0, max(1.0, sum(c.seconds for c in spent) / made / rate))

    # --- several processes ----------------------------------------------------------------------------------------

    @property
    def writes(self) -> bool:
        return self.checkpoint is not None and (self.group is None or self.group.rank == 0)

    def interrupt(self) -> bool:
        """Note that a stop is wished, at the next state of the running stage; False if nothing would look at the note.

        On several processes it is looked at wherever all of them meet.
        """
        if self.group is None and not self.watching:
            return False
        self.interrupted, before = True, self.interrupted
        return not before

    def _agreed(self, stop: bool) -> tuple[bool, bool]:
        """Whether all processes stop here, by rank 0's word, and whether any of them was interrupted."""
        if self.group is None:
            return stop, self.interrupted
        rows = self.group.exchange([stop, self.interrupted])
        return bool(rows[0][0]), any(row[1] for row in rows)

    # --- stages ---------------------------------------------------------------------------------------------------

    def stage(self, name: str, compute: Callable[[Observe, Any], T], *, limit: int | None = None) -> T:
        """Return the result of ``compute(observe, resume)``, kept from now on under `name`, its cost added there.

        A kept result is returned as it is, unless the stage is open.
        """
        if name in self.results and name not in self.open:
            return self.results[name]
        earlier, spent = self.partial.get(name), self.costs.get(name, Cost(0, 0, 0.0))
        end = math.inf  # of this stage's time: half as much again as its share, should products become slower
        if self.seconds is not None:
            left = max(0.0, self.seconds - self.elapsed)
            end = min(self.seconds * (1 - PAGE_SECONDS), self.elapsed + 1.5 * left * self.share(name))
        mark, before, start = (self.meter.products, self.meter.passes), start_peak(self.device), time.monotonic()

        def cost() -> Cost:
            made, read = self.meter.products - mark[0], self.meter.passes - mark[1]
            past = earlier["cost"] if earlier else spent
            seconds = past.seconds + time.monotonic() - start
            return Cost(past.products + made, past.data_passes + read, seconds, past.peak_bytes)

        def observe(state: Any) -> bool:
            self.show(name, cost().products, limit)
            if time.monotonic() - self.saved > max(SAVE_EVERY, SAVE_SHARE * self.saving) and self.writes:
                self.partial[name] = {"state": state, "cost": cost()}
                self._save()
            stop, interrupted = self._agreed(self.elapsed > end)
            if interrupted:
                self.partial[name] = {"state": state, "cost": cost()}
                self._save()
                raise KeyboardInterrupt
            return stop

        self.show(name, spent.products, limit)
        if self._agreed(False)[1]:
            raise KeyboardInterrupt
        self.watching = True
        try:
            result = compute(observe, earlier["state"] if earlier else None)
        finally:
            self.watching = False
        made, peak = cost(), peak_above(before, self.device)
        peaks = [p for p in (spent.peak_bytes, peak) if p is not None]
        self.costs[name] = Cost(made.products, made.data_passes, made.seconds, max(peaks, default=None))
        self.results[name] = result
        self.partial.pop(name, None)
        self._save()
        return result

    def leave_out(self, what: str, why: str) -> None:
        """Say why `what` is missing; a later reason takes the place of an earlier one."""
        self.left_out = [x for x in self.left_out if x.what != what]
        self.left_out.append(LeftOut(what, why))

    def put_in(self, what: str) -> None:
        """Take back that `what` is missing."""
        self.left_out = [x for x in self.left_out if x.what != what]

    def total(self) -> Cost:
        peaks = [c.peak_bytes for c in self.costs.values() if c.peak_bytes is not None]
        return Cost(self.meter.products, self.meter.passes, self.elapsed, max(peaks) if peaks else None)

    # --- the file -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write the file. Where that fails the run goes on without one and says so in the report."""
        if not self.writes or self.checkpoint is None or self.unsaved:
            return
        start = time.monotonic()
        content = {
            "results": self.results,
            "costs": self.costs,
            "partial": self.partial,
            "left_out": self.left_out,
            "open": sorted(self.open),
            "elapsed": self.elapsed,
        }
        try:
            write_atomic(self.checkpoint, packed({"fingerprint": self.fingerprint, **content}))
        except OSError as error:
            self.unsaved = str(error)
            self.leave_out("unfinished results", f"they could not be kept while the run went on: {error}")
            self.checkpoint.unlink(missing_ok=True)
            return
        self.saved, self.kept = time.monotonic(), len(self.results)
        self.saving = self.saved - start

    def said_kept(self) -> str:
        """What Ctrl-C leaves behind, in words."""
        if self.checkpoint is None or self.unsaved or not self.checkpoint.exists() or not (self.kept or self.partial):
            return "interrupted before a stage was finished: nothing is kept"
        stages = f"{self.kept} finished stage{'' if self.kept == 1 else 's'}"
        if self.partial:
            stages += f" and the state of '{next(iter(self.partial))}'"
        are = "is" if self.kept == 1 and not self.partial else "are"
        return f"interrupted; {stages} {are} kept in {self.checkpoint}: repeat the command with --resume to go on"

    def _content(self) -> bytes | None:
        if not self.writes or self.checkpoint is None or not self.checkpoint.exists():
            return None
        return self.checkpoint.read_bytes()

    def load(self) -> bool:
        """Continue from the file, if there is one. Raises `ResumeMismatch` if it is damaged or of another run."""
        content = self._content() if self.group is None else self.group.first(self.group.together(self._content))
        if content is None:
            return False
        try:
            kept = unpacked(content, self.space, self.device)
            mine = kept["fingerprint"] == self.fingerprint
        except (Damaged, KeyError, TypeError) as error:
            raise ResumeMismatch(
                f"resume: {self.checkpoint} cannot be used, {error}; start again without --resume"
            ) from error
        if not mine:
            raise ResumeMismatch(
                f"resume: {self.checkpoint} belongs to another run (the model, its code, the data, the criterion, the "
                "settings, the number of processes or a version differ); repeat the command that began it, or start "
                "again without --resume"
            )
        self.results, self.costs, self.partial = kept["results"], kept["costs"], kept["partial"]
        self.left_out, self.spent_before, self.open = kept["left_out"], kept["elapsed"], set(kept["open"])
        self.kept = len(self.results)
        # what the unfinished stage had counted after its last saved state is done again
        counted = {**self.costs, **{name: unfinished["cost"] for name, unfinished in self.partial.items()}}
        self.meter.products = sum(c.products for c in counted.values())
        self.meter.passes = sum(c.data_passes for c in counted.values())
        return True
