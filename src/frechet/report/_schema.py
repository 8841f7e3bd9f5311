"""The report as data: one frozen tree of plain Python values.

Every field below is a key of the same name in ``report.json`` (`_serialize.py`); an absent section has an entry in
``left_out`` that says why. Any change of a field changes the number after the slash of `SCHEMA`, so a reader never
guesses.

Units: seconds are wall-clock seconds, bytes are bytes, a product is one operator-vector product, a pass reads every
batch once. Intervals cover the true value with probability `level`; ``level == 1`` is a bound, not a probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frechet.linalg._result import Estimate

SCHEMA = "frechet.report/2"

OperatorName = Literal["hessian", "gauss_newton"]


@dataclass(frozen=True)
class Cost:
    """What a number cost. `shared` names the computation when the same products served other numbers too."""

    products: int
    data_passes: int
    seconds: float
    peak_bytes: int | None = None  # above what was allocated before; None where the device cannot say
    shared: str = ""  # e.g. "the Krylov space of the Hessian"; empty: spent on this number alone


@dataclass(frozen=True)
class Measured:
    """A number with its interval. `exact`: nothing was drawn and nothing iterated (the interval is rounding only)."""

    value: float
    lower: float
    upper: float
    level: float  # 0.95: a confidence interval; 1.0: a bound
    exact: bool
    cost: Cost
    method: str
    unit: str = ""

    def __post_init__(self) -> None:
        if self.lower > self.upper:
            raise ValueError(f"Measured: lower must be at most upper, got [{self.lower}, {self.upper}]")
        if not 0 < self.level <= 1:
            raise ValueError(f"Measured: level must lie in (0, 1], got {self.level}")


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue of the operator lies within `residual` of `value`."""

    value: float
    residual: float
    converged: bool


@dataclass(frozen=True)
class Eigenvalues:
    """Ends of one spectrum: `largest` in decreasing order, `smallest` (most negative) in increasing order."""

    largest: tuple[Eigenvalue, ...]
    smallest: tuple[Eigenvalue, ...]
    cost: Cost
    method: str
    tolerance: float | None = None  # converged means residual <= tolerance * its own size


@dataclass(frozen=True)
class Density:
    """The spectral density smoothed by a Gaussian of standard deviation `width`, with a pointwise band."""

    grid: tuple[float, ...]  # increasing
    value: tuple[float, ...]  # integrates to 1 over the eigenvalue axis
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    level: float
    width: float
    probes: int
    steps: int  # Lanczos steps per probe
    deflated: int  # eigenvalues that were placed exactly, outside the random part
    cost: Cost
    method: str

    def __post_init__(self) -> None:
        lengths = {len(x) for x in (self.grid, self.value, self.lower, self.upper)}
        if len(lengths) != 1:
            raise ValueError(f"Density: grid, value, lower and upper must have one length, got {sorted(lengths)}")


@dataclass(frozen=True)
class EffectiveDimension:
    """How many directions have curvature well above `damping`; `definition` says the sum that was taken."""

    damping: float
    number: Measured
    definition: str = "sum of lambda / (lambda + damping)"


@dataclass(frozen=True)
class Curvature:
    """What was learnt of one operator, `hessian` or `gauss_newton`."""

    operator: OperatorName
    dimension: int
    eigenvalues: Eigenvalues | None = None
    density: Density | None = None
    trace: Measured | None = None
    frobenius_norm: Measured | None = None
    stable_rank: Measured | None = None  # squared Frobenius norm / squared largest absolute eigenvalue
    effective_dimensions: tuple[EffectiveDimension, ...] = ()
    wanted: int | None = None  # random products for intervals of trace and norm within 15 %; None: they are


@dataclass(frozen=True)
class Layer:
    """One module: its part of the operator's trace, and the largest eigenvalue of the Hessian's block."""

    name: str
    size: int
    trace: Measured
    share: Measured  # of the whole trace; may be negative or above 1 where the operator is indefinite
    hessian_trace: Measured | None = None  # where `trace` is that of Gauss-Newton
    top: Eigenvalue | None = None


@dataclass(frozen=True)
class Layers:
    operator: OperatorName
    layers: tuple[Layer, ...]  # in the model's order
    cost: Cost
    method: str


@dataclass(frozen=True)
class SgdBound:
    """Two upper bounds on the learning rate of a stable interpolating minimum at one batch size.

    `identity`: 2 tr(H) / ((1-p) |H|_F^2 + p mean_i |H_i|_F^2); `top`: the same with the top eigenvector's projector.
    p = (n - B) / (B (n - 1)). Either condition is necessary; None where it was not computed.
    """

    batch_size: int
    identity: Measured | None
    top: Measured | None


@dataclass(frozen=True)
class Interpolation:
    """How far the model is from a minimum that fits every example."""

    loss: float
    gradient_norm: float
    near_zero: float | None = None  # an example's loss below this counts as near zero
    near_zero_share: float | None = None  # share of examples below it
    accuracy: float | None = None  # share of terms predicted right; None for regression


@dataclass(frozen=True)
class LearningRate:
    gradient_descent: Measured | None  # 2 / largest Hessian eigenvalue; inf where no eigenvalue is positive
    sgd: tuple[SgdBound, ...]  # in increasing batch size
    interpolation: Interpolation
    caveat: str
    cost: Cost
    current: float | None = None  # learning rate in use, where the user gave one


@dataclass(frozen=True)
class Noise:
    """Gradient noise: `noise_scale` = tr(S) / |G|^2, `critical_batch_size` = tr(H S) / G'HG, S per example."""

    noise_scale: Measured
    critical_batch_size: Measured | None
    gradient_norm_squared: Measured | None
    gradient_variance: Measured | None  # tr(S)
    examples: int
    cost: Cost
    remark: str = ""


@dataclass(frozen=True)
class Slice:
    """The loss at x + alpha * v for a unit eigenvector v, and its second-order Taylor polynomial."""

    direction: str  # "largest eigenvalue", "most negative eigenvalue"
    eigenvalue: float
    alpha: tuple[float, ...]
    loss: tuple[float, ...]  # nan or inf where the loss was not finite
    quadratic: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = {len(x) for x in (self.alpha, self.loss, self.quadratic)}
        if len(lengths) != 1:
            raise ValueError(f"Slice: alpha, loss and quadratic must have one length, got {sorted(lengths)}")


@dataclass(frozen=True)
class Slices:
    operator: OperatorName
    slices: tuple[Slice, ...]
    cost: Cost


@dataclass(frozen=True)
class Model:
    name: str  # class name
    trainable: int  # parameters
    frozen: int
    blocks: int  # trainable parameter tensors, tied ones once


@dataclass(frozen=True)
class Data:
    examples: int
    terms: int
    batches: int
    population: int | None = None  # examples that the sample was drawn from; None: all the data
    sample_seed: int | None = None


@dataclass(frozen=True)
class Environment:
    device: str
    dtype: str
    frechet: str
    torch: str
    python: str
    platform: str
    threads: int
    threads_chosen: str  # by which measurement, where it was the program's choice; else empty
    settings: str  # of allocator and OpenMP in the environment, or "default"


@dataclass(frozen=True)
class Header:
    title: str
    source: str  # "digits (built in)" or "path/to/file.py:make"
    model: Model
    criterion: str
    data: Data
    environment: Environment
    seed: int
    date: str  # ISO 8601 with offset
    command: str  # that reproduces the report
    route: str  # how products were computed, e.g. "reverse"
    budget: str  # "5 minutes", "400 products", "none"
    loss: float
    gradient_norm: float
    remarks: tuple[str, ...] = ()  # one sentence each


@dataclass(frozen=True)
class LeftOut:
    what: str
    why: str


@dataclass(frozen=True)
class SectionCost:
    section: str
    cost: Cost


@dataclass(frozen=True)
class Report:
    header: Header
    hessian: Curvature | None = None
    gauss_newton: Curvature | None = None
    layers: Layers | None = None
    learning_rate: LearningRate | None = None
    noise: Noise | None = None
    slices: Slices | None = None
    left_out: tuple[LeftOut, ...] = ()
    costs: tuple[SectionCost, ...] = ()  # in the order of work; each product counted once
    total: Cost = Cost(0, 0, 0.0)


def from_estimate(estimate: Estimate, *, cost: Cost, level: float = 0.95, unit: str = "") -> Measured:
    """Return a scalar `Estimate` with its `level` interval as a `Measured`.

    Example:
        >>> from frechet.linalg._result import exact_estimate
        >>> from frechet.report._schema import Cost, from_estimate
        >>> m = from_estimate(exact_estimate(3.0), cost=Cost(0, 0, 0.0))
        >>> m.lower, m.value, m.upper, m.exact
        (3.0, 3.0, 3.0, True)
    """
    if estimate.value.numel() != 1:
        raise ValueError(f"from_estimate: estimate must be one number, got shape {tuple(estimate.value.shape)}")
    lower, upper = estimate.interval(level)
    return Measured(
        float(estimate.value), float(lower), float(upper), level, estimate.exact, cost, estimate.method, unit
    )
