"""The measurements of a report, as stages of a `Run`.

One Krylov space per operator serves its density, trace, Frobenius norm, stable rank and effective dimensions; the
eigenpairs found before are taken out of it, so that what is drawn at random is only the bulk.

A failure in the first stages (the objective, the Hessian) ends the report: there is nothing to say. A later section
that cannot be measured is left out and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from frechet.analyze.examples import example_gradients
from frechet.analyze.layers import layer_tops, layer_traces
from frechet.analyze.noise_scale import curvature_noise_scale, noise_scale
from frechet.analyze.slices import loss_slices
from frechet.analyze.stability import interpolation, stability
from frechet.errors import NonFinite, NotDifferentiable, UnusableObjective
from frechet.linalg.density import spectral_density
from frechet.linalg.eigsh import eigsh
from frechet.linalg.result import Estimate, Spectrum
from frechet.objective import Objective
from frechet.operators.gauss_newton import gauss_newton
from frechet.operators.hessian import hessian
from frechet.operators.operator import LinearOperator
from frechet.operators.route import chosen
from frechet.recording import ran_out
from frechet.report.metered import metered
from frechet.report.run import PLENTY, Observe, Run

# the stages in order, each with its share of a budget
WEIGHTS: dict[str, float] = {
    "check": 0.1,
    "Hessian eigenvalues": 2.5,
    "Hessian density": 5.0,
    "Gauss-Newton eigenvalues": 1.0,
    "Gauss-Newton density": 3.5,
    "layer traces": 0.8,
    "layer eigenvalues": 1.0,
    "gradient noise": 0.6,
    "learning rate": 0.8,
    "loss slices": 0.3,
}
RTOL = 1e-2  # of eigenvalues: residual by size; the report shows the residual of each
LEAST_STEPS = 8  # a shorter Krylov space resolves nothing
LEAST_PROBES = 6

# what a section may fail by and be left out; everything else is a defect and shows as one
EXPECTED = (ValueError, TypeError, NotDifferentiable, NonFinite, UnusableObjective)


@dataclass(frozen=True)
class Settings:
    """What to measure. `top` eigenvalues from each end; `probes` and `steps` of the density; SGD `batch_sizes`."""

    top: int = 5
    probes: int = 8
    steps: int = 32
    layer_probes: int = 24
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128)
    seed: int = 0
    points: int = 21


def measure(objective: Objective, settings: Settings, run: Run) -> None:
    """Fill `run.results`, stage by stage; where memory runs out, go on with smaller pieces of the batches."""
    while True:
        try:
            _measured(objective, settings, run)
            break
        except (RuntimeError, MemoryError) as error:
            size = max(len(batch.targets) for batch in objective.batches()) if objective.group is None else 1
            if size == 1 or not ran_out(error):
                raise
        objective = objective.in_pieces(size // 2)
        run.leave_out(
            "whole batches",
            f"memory ran out with {size} examples at once; they were taken {size // 2} at a time, which changes no "
            "number",
        )
    if run.meter.at_once is not None:
        run.leave_out(
            "whole blocks", f"memory ran out; at most {run.meter.at_once} vectors went at once, which changes no number"
        )


def _measured(objective: Objective, settings: Settings, run: Run) -> None:
    run.stage("check", lambda _observe, _resume: _checked(objective, run))
    hessian_spectrum = _eigenvalues("Hessian", hessian(objective), settings, run, "both")
    _density("Hessian", hessian(objective), settings, run, hessian_spectrum)
    G = gauss_newton(objective, route=run.results["check"]["route"])
    spectrum = _eigenvalues("Gauss-Newton", G, settings, run, "largest")
    _density("Gauss-Newton", G, settings, run, spectrum)
    _section("layer traces", run, lambda limit: _layer_traces(objective, settings, run, limit), LEAST_PROBES)
    _section("layer eigenvalues", run, lambda limit: _layer_tops(objective, settings, run, limit), 20)
    _section("gradient noise", run, lambda limit: _noise(objective, settings, run, limit), 2)
    _section("learning rate", run, lambda limit: _learning_rate(objective, settings, run, limit), 10)
    _section("loss slices", run, lambda limit: _slices(objective, settings, run, limit), 4)


def _checked(objective: Objective, run: Run) -> Mapping[str, Any]:
    found = objective.check()
    gradient = objective.gradient()
    route = chosen(None, objective.model, "report", gauss_newton=True)
    try:  # one product also tells a budget of time how fast they are
        _ = _counted(gauss_newton(objective, route=route), run) @ objective.space.random(0, 0)
    except NotDifferentiable:
        if route == "reverse":
            raise
        route = "reverse"  # an operation without forward mode; the header says which route was taken
    run.meter.passes += 6  # a value, two compared passes, their split, the model's own loss at most, a gradient
    return {"check": found, "gradient_norm": float(objective.space.norm(gradient)), "route": route}


def _counted(A: Any, run: Run) -> LinearOperator:
    return metered(A, run.meter, alone=run.group is None)


def _eigenvalues(name: str, A: Any, settings: Settings, run: Run, which: Any) -> Spectrum | None:
    stage = f"{name} eigenvalues"
    limit = run.allowance(stage)
    if stage not in run.results and limit < settings.top + 1:
        run.leave_out(stage, f"the budget left {limit} products")
        return None

    def compute(observe: Observe, resume: Any) -> Spectrum:
        most = None if limit >= PLENTY else limit
        return eigsh(
            _counted(A, run), min(settings.top, A.domain.dim), which=which, seed=settings.seed, rtol=RTOL,
            max_products=most, observe=observe, resume=resume,
        )  # fmt: skip

    return run.stage(stage, compute, limit=None if limit >= PLENTY else limit)


def _density(name: str, A: Any, settings: Settings, run: Run, spectrum: Spectrum | None) -> None:
    stage = f"{name} density"
    steps = min(settings.steps, run.allowance(stage) // settings.probes)
    if stage not in run.results and steps < LEAST_STEPS:
        run.leave_out(
            f"{stage}, trace, Frobenius norm, effective dimension",
            f"the budget left {run.allowance(stage)} products, and {settings.probes} probes of {LEAST_STEPS} steps are "
            "the least",
        )
        return
    earlier = run.partial.get(stage)
    if earlier is not None:  # a resumed run keeps the number of steps that it began with
        steps = earlier["state"].fingerprint[2]

    def compute(observe: Observe, resume: Any) -> Any:
        return spectral_density(
            _counted(A, run), seed=settings.seed, probes=settings.probes, steps=steps, deflate=spectrum,
            observe=observe, resume=resume,
        )  # fmt: skip

    run.stage(stage, compute, limit=settings.probes * steps)


def _section(stage: str, run: Run, compute: Callable[[int], Any], least: int) -> None:
    """A stage that may be left out: for want of budget, or because it does not apply to this objective."""
    limit = run.allowance(stage)
    if stage in run.results:
        return
    if limit < least:
        run.leave_out(stage, f"the budget left {limit} products, and it needs at least {least}")
        return
    try:
        run.stage(stage, lambda _observe, _resume: compute(limit))
    except EXPECTED as error:
        run.leave_out(stage, str(error))


def _layer_traces(objective: Objective, settings: Settings, run: Run, limit: int) -> Any:
    probes = min(settings.layer_probes, limit)
    return layer_traces(_counted(hessian(objective), run), seed=settings.seed, probes=probes)


def _layer_tops(objective: Objective, settings: Settings, run: Run, limit: int) -> Any:
    modules = len({name.rpartition(".")[0] for name in objective.space.names})
    each = None if limit >= PLENTY else limit // modules
    if each is not None and each < 4:
        raise ValueError(f"the budget left {limit} products for {modules} modules, and each needs at least 4")
    tops = layer_tops(objective, seed=settings.seed, max_products=each)
    run.meter.products += tops.products
    run.meter.passes += tops.products
    return tops


def _noise(objective: Objective, settings: Settings, run: Run, limit: int) -> Any:
    gradients = example_gradients(objective)
    run.meter.passes += gradients.passes
    probes = min(16, limit - 1)
    curvature = curvature_noise_scale(objective, seed=settings.seed, probes=probes) if probes >= 4 else None
    if curvature is not None:
        run.meter.products += curvature.products
        run.meter.passes += curvature.passes
    # the gradients of single examples are not kept: only their norms
    return {"noise": noise_scale(gradients), "curvature": curvature, "interpolation": interpolation(gradients)}


def _learning_rate(objective: Objective, settings: Settings, run: Run, limit: int) -> Any:
    spectrum, density = run.results.get("Hessian eigenvalues"), run.results.get("Hessian density")
    if spectrum is None or density is None:
        raise ValueError("it needs the Hessian's eigenvalues and density, which were left out")
    examples = run.results["check"]["check"].examples
    sizes = sorted({min(size, examples) for size in settings.batch_sizes})
    trace = density.trace_of(lambda t: t)
    frobenius = frobenius_of(density.trace_of(lambda t: t * t))
    # one pass of about 3 q^2 gradients, q = 3 + probes, a gradient being about a third of a product
    probes = max(3, min(6, int(limit**0.5) - 3))
    found = stability(
        objective, batch_sizes=sizes, trace=trace, frobenius=frobenius, top=spectrum, seed=settings.seed, probes=probes
    )
    run.meter.passes += found.passes
    return found


def frobenius_of(square: Estimate) -> Estimate:
    """The Frobenius norm from an estimate of its square, by the delta method."""
    value = square.value.clamp_min(0).sqrt()
    error = square.standard_error / (2 * value) if float(value) > 0 else square.standard_error.sqrt()
    return Estimate(
        value, error, square.samples, square.products, square.seed, square.exact, square.degrees_of_freedom,
        square.converged, square.method,
    )  # fmt: skip


def _slices(objective: Objective, settings: Settings, run: Run, limit: int) -> Any:
    spectrum = run.results.get("Hessian eigenvalues")
    if spectrum is None:
        raise ValueError("it needs the Hessian's eigenvectors, which were left out")
    best, worst = int(spectrum.values.argmax()), int(spectrum.values.argmin())
    pairs = list(dict.fromkeys([best, worst]))
    directions: Tensor = spectrum.vectors[:, pairs]
    points = settings.points if limit >= PLENTY else max(7, min(settings.points, limit // 2 * 2 + 1))
    found = loss_slices(objective, directions, points=points, curvatures=spectrum.values[pairs])
    run.meter.passes += found.passes
    return found
