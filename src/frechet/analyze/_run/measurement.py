"""One reading: the quantities of a monitor at one moment of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from frechet.analyze._run.batch_sharpness import BatchSharpness, batch_sharpness
from frechet.analyze._run.critical_rate import critical_rate, optimizer_step
from frechet.analyze._run.reading import Quantity
from frechet.analyze._run.step_metric import StepMetric, optimizer_metric
from frechet.analyze._run.tracking import TRACKED, tracked_top
from frechet.linalg._trace import trace
from frechet.objective import Objective
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._hessian import hessian

PROBES = 8  # of the trace: a standard error of about half the Frobenius norm
# Of a stability index: gradient descent hovers within a tenth of 1 at the edge of stability (arXiv 2103.00065)
EDGE, BEYOND = 0.95, 1.1


@dataclass
class Warm:
    """What the next reading starts from."""

    blocks: dict[str, Tensor] = field(default_factory=dict)  # Ritz vectors (n, TRACKED)
    seconds: dict[str, float] = field(default_factory=dict)  # of one product
    length: float = 1.0  # the last critical rate, in steps


@dataclass
class Measurement:
    """An objective at one moment, and what has been measured there."""

    objective: Objective
    optimizer: Optimizer | None
    seed: int
    rtol: float
    warm: Warm
    allowed: Callable[[float | None], int | None]  # seconds of a product -> how many
    clock: Callable[[], float]
    notes: list[str] = field(default_factory=list)
    found: dict[str, Quantity] = field(default_factory=dict)
    complete: bool = True
    loss: float | None = None
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.x = self.objective.point
        self.H: LinearOperator = hessian(self.objective, self.x)
        self.metric: StepMetric | None = None
        self._gradient: Tensor | None = None
        self._batches: BatchSharpness | None = None

    @property
    def gradient(self) -> Tensor:
        """The gradient on the probe, computed once."""
        if self._gradient is None:
            self._gradient = self.objective.gradient(self.x)
        return self._gradient

    @property
    def rule(self) -> str | None:
        """The names of the update rules, where they are known."""
        return None if self.metric is None else ", ".join(dict.fromkeys(r.name for r in self.metric.rules))

    @property
    def largest(self) -> float | None:
        """The largest stable eigenvalue of the Hessian, where there is one."""
        return None if self.metric is None else self.metric.largest

    def take_metric(self) -> None:
        """The optimizer's metric, or a note that says why there is none."""
        if self.optimizer is None:
            self.notes.append("no optimizer was given: nothing is known of its stability limit")
        else:
            self.metric = optimizer_metric(self.optimizer, self.objective)

    def measure(self, name: str) -> None:
        """Measure one quantity; what goes wrong is raised."""
        begun = self.clock()
        quantity = getattr(self, f"_{name}")()
        if quantity is not None:
            self.found[name] = Quantity(**{**vars(quantity), "seconds": self.clock() - begun})

    # --- the quantities -----------------------------------------------------------------------------------------------

    def _sharpness(self) -> Quantity:
        return self._tracked("sharpness", self.H, self.gradient, self.largest)

    def _stability(self) -> Quantity | None:
        metric = self.metric
        if metric is None:
            return None
        if metric.uniform is not None:  # the index is the sharpness in units of its limit
            if "sharpness" not in self.found:
                self.measure("sharpness")
            top, s = self.found["sharpness"], metric.uniform
            value, lower, upper = (s * (x + float(metric.decay[0])) for x in (top.value, top.lower, top.upper))
            return Quantity(value, lower, upper, 1.0, top.residual)
        return self._tracked("stability", metric.index(self.H), metric.speed.sqrt() * self.gradient, 1.0)

    def _tracked(self, name: str, A: LinearOperator, hint: Tensor, limit: float | None) -> Quantity:
        start = self.warm.blocks.get(name)
        if start is not None and start.shape != (A.domain.length, TRACKED):
            start = None
        most, begun = self.allowed(self.warm.seconds.get(name)), self.clock()
        top = tracked_top(A, start, hint, seed=self.seed, rtol=self.rtol, max_products=most)
        self.warm.seconds[name] = (self.clock() - begun) / max(top.products, 1)
        self.warm.blocks[name] = top.block
        self.complete = self.complete and top.converged
        relative = top.residual / abs(top.value) if top.value else math.inf
        return Quantity(top.value, top.value - top.residual, top.value + top.residual, limit, relative, top.products)

    def _batch_sharpness(self) -> Quantity:
        self._batches = found = batch_sharpness(self.objective, x=self.x)
        low, high = (float(end) for end in found.value.interval())
        return Quantity(float(found.value), low, high, self.largest, None, found.products)

    def _noise(self) -> Quantity | None:
        found = self._batches or batch_sharpness(self.objective, x=self.x)
        if found.noise is None:
            self.notes.append("noise: needs a probe of at least 3 batches of one size")
            return None
        if found.noise.message:
            self.notes.append(found.noise.message.replace("examples", "batches"))
        return Quantity(found.noise.value, found.noise.lower, found.noise.upper)

    def _critical_rate(self) -> Quantity | None:
        if self.metric is None or self.optimizer is None:
            self.notes.append("critical_rate: needs an optimizer whose step is known")
            return None
        if not any(self.metric.rates):
            self.notes.append("critical_rate: the learning rate is 0: there is no step to lengthen")
            return None
        step = optimizer_step(self.optimizer, self.objective, self.gradient, self.metric)
        found = critical_rate(self.objective, step, start=self.warm.length, x=self.x)
        self.loss = found.loss
        if found.message:
            self.notes.append(found.message)
        if 0 < found.value < math.inf:
            self.warm.length = found.value
        rate = self.metric.rates[0]
        value, lower, upper = (rate * v for v in (found.value, found.lower, found.upper))
        return Quantity(value, lower, upper)

    def _trace(self) -> Quantity:
        found = trace(self.H, products=PROBES, seed=self.seed, method="hutchinson")
        low, high = (float(end) for end in found.interval())
        return Quantity(float(found), low, high, None, None, found.products)


def warnings(found: dict[str, Quantity], rate: float | None) -> tuple[str, ...]:
    """What is at or beyond its limit, a sentence each."""
    said = []
    index = found.get("stability")
    if index is not None and index.lower > BEYOND:
        said.append(
            f"the step is {index.value:.3g} times as long as is stable along the sharpest direction: the loss will "
            "oscillate there, and grow unless the curvature falls"
        )
    elif index is not None and index.upper >= EDGE:
        said.append(f"training is at the edge of stability: {index.value:.3g} of the limit")
    critical = found.get("critical_rate")
    if critical is not None and rate is not None and critical.lower > 0 and critical.upper < rate:
        said.append(
            f"a step at the present rate {rate:.3g} raises the loss on the probe: the longest that does not has the "
            f"rate {critical.value:.3g}"
        )
    return tuple(said)
