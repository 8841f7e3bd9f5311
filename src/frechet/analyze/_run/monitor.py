"""Curvature while a model trains, within a share of the run's time, and without a trace in the run.

At a reading the model's point is copied and everything is measured on a probe: a few fixed batches, the data of an
objective. Weights, gradients, buffers, training flags, random generators and the optimizer are as they were before,
bit for bit, so a run with a monitor is the run without it. What cannot be measured is a note in the reading; nothing
that goes wrong here stops a training run.

During a reading every module is in eval mode, except those that normalize by the statistics of a batch. So the
curvature is that of the loss that is trained, without the noise of dropout. An objective with `dropout_seed` is
measured in the model's own mode.

**Source.** Cohen et al. (2021), arXiv 2103.00065: the sharpness against its limit. The files of this folder name those
of the single quantities.
**Cost.** See `pace.py`: as many readings as fit into `share` of the time, or one every `every` steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from frechet.analyze._run.measurement import Measurement, Warm, warnings
from frechet.analyze._run.pace import Pace
from frechet.analyze._run.reading import FILE, Reading, header_line, line_of, read_history, rewrite
from frechet.analyze._run.step_rule import rate_of, unwrapped
from frechet.errors import NonFinite
from frechet.objective import Objective
from frechet.objective._data import untouched_generators
from frechet.objective._kernels import ordinary_mode
from frechet.objective._torch_internals import AnyNorm

QUANTITIES = ("sharpness", "stability", "batch_sharpness", "noise", "critical_rate", "trace")
WARM = "warm.pt"
Write = Callable[[str, float, int], object]


class Monitor:
    """What limits a training run, measured while it goes on: call `step` after each step of the optimizer.

    | quantity | what it is | its limit |
    | --- | --- | --- |
    | ``"sharpness"`` | the largest eigenvalue of the Hessian on the probe, with its residual | the largest stable |
    | ``"stability"`` | the same in the metric of the optimizer, `optimizer_metric`: rate over largest stable rate | 1 |
    | ``"batch_sharpness"`` | the curvature along each probe batch's own gradient | as for the sharpness |
    | ``"noise"`` | the gradient noise scale, in examples, from the probe's batches | |
    | ``"critical_rate"`` | the rate at which the optimizer's own next step raises the probe's loss | |
    | ``"trace"`` | the Hessian's trace, by 8 random vectors | |

    Give either `share`, at most that share of the run's time, or `every`, a number of steps, which makes readings that
    do not depend on the machine. Under DistributedDataParallel only rank 0 measures, on its own replica; an objective
    with ``group=`` is measured by all ranks together, and needs `every`.

    Args:
        objective: the loss on the probe: ``Objective(model, cross_entropy(), probe_batches(loader, 4, seed=0))``.
            Batches of the size that is trained with make batch sharpness and noise those of the run.
        quantities: what is measured at each reading.
        share: the largest share of the run's time, training included. Default: 0.01, unless `every` is given.
        every: the steps between two readings.
        seed: of random vectors.
        optimizer: whose limit counts; `step` takes one too.
        folder: where ``readings.jsonl`` is written, a line for each reading. A file that is there is gone on with.
        write: is called with (name, value, step) for every number, as ``SummaryWriter(...).add_scalar`` wants it, or
            "tensorboard" for one in `folder`, where TensorBoard is installed.
        rtol: the residual of an eigenvalue relative to it. See `tracking.py` for why it is not larger.
        clock: tells the seconds.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import Monitor
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, squared_error(), [(torch.eye(2), torch.zeros(2, 1))])  # H = I
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> monitor = Monitor(objective, seed=0, every=10, optimizer=optimizer)
        >>> reading = monitor.step(0)
        >>> round(reading["sharpness"].value, 4), reading["sharpness"].limit, round(reading["stability"].value, 4)
        (1.0, 4.0, 0.25)
        >>> monitor.step(1) is None
        True
    """

    def __init__(
        self,
        objective: Objective,
        *,
        quantities: Sequence[str] = ("sharpness", "stability", "critical_rate"),
        share: float | None = None,
        every: int | None = None,
        seed: int,
        optimizer: Optimizer | None = None,
        folder: str | os.PathLike[str] | None = None,
        write: Write | Literal["tensorboard"] | None = None,
        rtol: float = 0.02,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        _check(objective, quantities, share, every, rtol)
        self.objective, self.optimizer, self.seed, self.rtol = objective, optimizer, seed, rtol
        self.quantities = tuple(quantities)
        self.readings: list[Reading] = []
        self.problems: list[str] = []  # what went wrong beside the readings: a full disk, a missing package
        self._pace = Pace(every, 0.01 if share is None else share, clock)
        self._warm = Warm()
        self._seen: float | None = None  # a number of the last reading's point
        self._names: tuple[str, ...] = objective.space.names
        self._folder = None if folder is None else Path(folder)
        self._write = write
        if self._folder is not None:
            self._begin_file()

    def step(self, step: int, optimizer: Optimizer | None = None) -> Reading | None:
        """Return a reading where one is due at this step, and None otherwise. Call it after each optimizer step.

        Args:
            step: the number of optimizer steps that were taken.
            optimizer: whose limit counts. Default: the one that the monitor was made with.
        """
        begun, before = self._pace.clock(), self._pace.spent
        if self._silent:
            return None
        self._pace.tick(begun)
        try:
            return self._stepped(step, optimizer or self.optimizer, begun)
        finally:  # all of it counts, files too, and the steps at which nothing is due
            self._pace.spent = before + self._pace.clock() - begun

    def _stepped(self, step: int, optimizer: Optimizer | None, begun: float) -> Reading | None:
        self._take_back(step)
        if not self._pace.due(step):
            return None
        reading = None
        try:
            with self._aside():
                if self._pace.every is None and self._pace.need is None:
                    self._calibrate(begun)
                    return None
                reading = self._read(step, optimizer, begun)
        except Exception as error:  # whatever it is, training goes on
            self._failed(step, error, begun)
        if reading is not None:
            self._keep(reading)
        return reading

    @property
    def _silent(self) -> bool:
        """Whether another process measures for this one: a replica's curvature is that of rank 0."""
        if self.objective.group is not None:
            return False
        ready = dist.is_available() and dist.is_initialized()
        return (dist.get_rank() if ready else int(os.environ.get("RANK", "0"))) > 0

    @property
    def _writes(self) -> bool:
        group = self.objective.group
        return not self._silent if group is None else group.rank == 0

    @property
    def share(self) -> float:
        """The share of the run's time that was spent here so far."""
        return self._pace.realised

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on later needs: the time spent, and what the next reading starts from."""
        p, w = self._pace, self._warm
        return {
            "elapsed": p.elapsed, "spent": p.spent, "steps": p.steps, "need": p.need, "blocks": dict(w.blocks),
            "seconds": dict(w.seconds), "length": w.length, "names": list(self._names), "seen": self._seen,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        p, device = self._pace, self.objective.space.device
        p.elapsed, p.spent, p.steps, p.need = state["elapsed"], state["spent"], state["steps"], state["need"]
        blocks = {name: block.to(device) for name, block in state["blocks"].items()}
        self._warm = Warm(blocks, dict(state["seconds"]), state["length"])
        self._names, self._seen = tuple(state["names"]), state["seen"]

    def save(self) -> None:
        """Write the state beside the readings, so that a monitor of the same folder goes on from it."""
        if self._folder is None or not self._writes:
            return
        part = self._folder / f".{WARM}.{os.getpid()}.part"
        try:
            torch.save(self.state_dict(), part)
            os.replace(part, self._folder / WARM)
        except OSError as error:
            self._problem(f"monitor: cannot write {self._folder / WARM}: {error}")

    # --- a reading ----------------------------------------------------------------------------------------------------

    def _read(self, step: int, optimizer: Optimizer | None, begun: float) -> Reading:
        pace = self._pace
        allowed = pace.share * pace.elapsed - pace.spent
        objective = 1.0 * self.objective  # of the parameters that are trainable now, where they are now
        if not objective.space.finite(objective.point):
            raise NonFinite("the parameters hold a NaN or an infinity: the run has diverged")
        at = Measurement(
            objective, optimizer, self.seed, self.rtol, self._warm, lambda s: pace.products(allowed, s), pace.clock
        )
        self._note_changes(at)
        for take, name in [(at.take_metric, "stability"), *((None, q) for q in self.quantities)]:
            self._try(at, take, name)
        if at.loss is None:
            self._try(at, lambda: setattr(at, "loss", float(objective.value(at.x))), "loss")
        rate = None if optimizer is None else rate_of(unwrapped(optimizer).param_groups[0])
        if objective.space.device.type == "cuda":
            torch.cuda.synchronize(objective.space.device)
        taken = pace.take(begun)
        pace.foresee(taken, at.complete)
        products = sum(q.products for q in at.found.values())
        return Reading(
            step, at.loss, rate, at.rule, at.found, tuple(at.notes), warnings(at.found, rate), products, taken,
            pace.realised,
        )  # fmt: skip

    def _calibrate(self, begun: float) -> None:
        """Time the forward pass of one batch of the probe, from which the cost of a first reading is foreseen."""
        objective = 1.0 * self.objective
        first = next(iter(objective.parts[0].data))
        alone = objective.on(first) if len(objective.parts) == 1 else objective
        float(alone.value())
        number = len(objective.parts[0].data) if isinstance(objective.parts[0].data, Sized) else 1
        self._pace.calibrate(begun, number, self.quantities)

    def _try(self, at: Measurement, take: Callable[[], None] | None, name: str) -> None:
        """Measure one quantity, or note why it cannot be."""
        try:
            at.measure(name) if take is None else take()
        except Exception as error:  # a quantity that fails costs itself alone
            at.notes.append(_told(name, error))

    def _note_changes(self, at: Measurement) -> None:
        space = at.objective.space
        if space.names != self._names:
            at.notes.append("the trainable parameters are others than at the last reading: nothing is carried over")
            self._warm.blocks.clear()
            self._names = space.names
        seen = float(space.inner(at.x, space.random(0, self.seed)))
        if seen == self._seen:
            at.notes.append(
                "the parameters are where they were at the last reading: a step that a scaler skips, or a frozen model"
            )
        self._seen = seen

    def _failed(self, step: int, error: Exception, begun: float) -> None:
        taken = self._pace.take(begun)
        self._pace.foresee(max(taken, self._pace.need or 0.0), complete=False)  # waits longer each time
        self._keep(Reading(step, None, None, None, {}, (_told("reading", error),), (), 0, taken, self._pace.realised))

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Generators and training flags put back; see the module's first lines for the mode in between."""
        flags = [(m, m.training) for m in self.objective.model.modules()]
        try:
            with untouched_generators(), ordinary_mode(self.objective.space.device):
                if self.objective.dropout_seed is None:
                    for m, training in flags:
                        m.training = training and isinstance(m, AnyNorm)
                yield
        finally:
            for m, training in flags:
                m.training = training

    # --- files --------------------------------------------------------------------------------------------------------

    @property
    def _header(self) -> dict[str, Any]:
        p, space = self._pace, self.objective.space
        return {
            "quantities": list(self.quantities), "share": None if p.every else p.share, "every": p.every,
            "seed": self.seed, "rtol": self.rtol, "model": type(self.objective.model).__name__, "parameters": space.dim,
        }  # fmt: skip

    def _begin_file(self) -> None:
        """Make the folder and its file, or go on with what is there."""
        assert self._folder is not None
        path = self._folder / FILE
        if path.is_file():
            found = read_history(path)
            for name in ("model", "parameters"):
                if found.header.get(name) != self._header[name]:
                    raise ValueError(
                        f"Monitor: folder '{self._folder}' must be new or of the same run, got readings of another "
                        f"{name}: {found.header.get(name)}, not {self._header[name]}"
                    )
            self.readings = list(found.readings)
            if (self._folder / WARM).is_file():
                self.load_state_dict(torch.load(self._folder / WARM, weights_only=True))
            if self._writes:
                rewrite(path, found.header, found.readings)  # without a line that was cut off
        elif self._writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_text(header_line(self._header), "utf-8")

    def _take_back(self, step: int) -> None:
        """Drop the readings at or after a step from which training goes on again."""
        if not self.readings or self.readings[-1].step < step:
            return
        self.readings = [r for r in self.readings if r.step < step]
        if self._folder is not None and self._writes:
            try:
                rewrite(self._folder / FILE, self._header, self.readings)
            except OSError as error:
                self._problem(f"monitor: cannot write {self._folder / FILE}: {error}")

    def _keep(self, reading: Reading) -> None:
        self.readings.append(reading)
        if not self._writes:
            return
        if self._folder is not None:
            try:
                with open(self._folder / FILE, "a", encoding="utf-8") as file:
                    file.write(line_of(reading))
            except (OSError, ValueError) as error:
                self._problem(f"monitor: cannot write {self._folder / FILE}: {error}")
        try:
            self._tell(reading)
        except Exception as error:  # of somebody's writer
            self._problem(_told("write", error))

    def _tell(self, reading: Reading) -> None:
        if self._write == "tensorboard":
            self._write = self._tensorboard()
        if self._write is None or isinstance(self._write, str):
            return
        for name, q in reading.quantities.items():
            self._write(f"curvature/{name}", q.value, reading.step)
            if q.limit is not None:
                self._write(f"curvature/{name}_limit", q.limit, reading.step)

    def _tensorboard(self) -> Write | None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._problem("monitor: write='tensorboard' needs the package tensorboard, which is not installed")
            return None
        return SummaryWriter(None if self._folder is None else str(self._folder)).add_scalar

    def _problem(self, sentence: str) -> None:
        if sentence not in self.problems:
            self.problems.append(sentence)


def probe_batches(loader: Any, batches: int, *, seed: int) -> list[Any]:
    """Return a few batches of a loader, drawn once and kept in memory, without moving the loader or a generator.

    Args:
        loader: a DataLoader, shuffling or not, or a list of batches.
        batches: how many, as large as the loader's.
        seed: of the draw of examples.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from frechet.analyze import probe_batches
        >>> loader = DataLoader(TensorDataset(torch.arange(10.0)[:, None], torch.zeros(10)), batch_size=4, shuffle=True)
        >>> [len(x) for x, _ in probe_batches(loader, 2, seed=0)]
        [4, 4]
    """
    from frechet.objective import subsample
    from frechet.objective._structure import examples_of

    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if size is None:
        size = examples_of(next(iter(loader)))
    with untouched_generators():
        return list(subsample(loader, size * batches, seed))


def _check(objective: object, quantities: Sequence[str], share: float | None, every: int | None, rtol: float) -> None:
    if not isinstance(objective, Objective):
        raise TypeError(f"Monitor: objective must be an Objective, got {type(objective).__name__}")
    unknown = [q for q in quantities if q not in QUANTITIES]
    if isinstance(quantities, str) or unknown or not quantities:
        raise ValueError(f"Monitor: quantities must be some of {', '.join(QUANTITIES)}, got {quantities!r}")
    if share is not None and every is not None:
        raise ValueError("Monitor: give share= or every=, got both")
    if share is not None and not 0 < share < 1:
        raise ValueError(f"Monitor: share must lie between 0 and 1, got {share}")
    if every is not None and (isinstance(every, bool) or every < 1):
        raise ValueError(f"Monitor: every must be a positive number of steps, got {every}")
    if not 0 < rtol < 1:
        raise ValueError(f"Monitor: rtol must lie between 0 and 1, got {rtol}")
    if objective.group is not None and every is None:
        raise ValueError("Monitor: an objective of a group needs every=, so that all ranks measure at the same steps")


def _told(name: str, error: Exception) -> str:
    """A note of what went wrong: one line."""
    return f"{name}: {' '.join(str(error).split()) or type(error).__name__}"[:500]
