"""From the results of a `Run` to the `Report`: plain numbers, intervals, costs."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from frechet.analyze.stability import Range
from frechet.linalg.density import Density
from frechet.linalg.result import Spectrum
from frechet.objective import Objective, Subsample
from frechet.report import numbers
from frechet.report import schema as s
from frechet.report.measure import RTOL, Settings, frobenius_of
from frechet.report.run import Run

ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
NOTHING = s.Cost(0, 0, 0.0)
NAMES: tuple[tuple[s.OperatorName, str], ...] = (("hessian", "Hessian"), ("gauss_newton", "Gauss-Newton"))
DAMPINGS = (1e-1, 1e-2)  # of the largest eigenvalue; smaller ones fall into the bulk that few steps do not resolve

Origin = tuple[str, str, str, str, str]  # title, source, date, command, budget


def assemble(objective: Objective, settings: Settings, run: Run, origin: Origin, version: str) -> s.Report:
    """The report of everything that `run` holds."""
    curvatures = [_curvature(kind, name, objective, run) for kind, name in NAMES]
    return s.Report(
        header=_header(objective, settings, run, origin, version),
        hessian=curvatures[0],
        gauss_newton=curvatures[1],
        layers=_layers(run),
        learning_rate=_learning_rate(run),
        noise=_noise(run),
        slices=_slices(run),
        left_out=(*run.left_out, *(entry for c in curvatures for entry in unresolved(c))),
        costs=tuple(s.SectionCost(name, cost) for name, cost in run.costs.items()),
        total=run.total(),
    )


def _header(objective: Objective, settings: Settings, run: Run, origin: Origin, version: str) -> s.Header:
    checked, model = run.results["check"], objective.model
    found, data = checked["check"], objective.parts[0].data
    title, source, date, command, budget = origin
    remarks = []
    if found.kinks:
        remarks.append(
            f"{', '.join(found.kinks)} has kinks: second derivatives are those of the pieces that the data lie on."
        )
    if found.unreached:
        names = ", ".join(found.unreached[:3]) + (", ..." if len(found.unreached) > 3 else "")
        remarks.append(f"The loss does not depend on {len(found.unreached)} parameter blocks ({names}).")
    if objective.penalties:
        remarks.append("Penalties are part of the loss and the Hessian; convex ones also of Gauss-Newton.")
    if objective.group is not None:
        remarks.append(
            f"Measured by {objective.group.size} processes, each with its share of the data; sums run over all of them."
        )
    sampled = isinstance(data, Subsample)
    if sampled:
        remarks.append(
            f"Measured on a random {found.examples} of {objective.population} examples: intervals do not include the "
            "error of that sample, except for the gradient noise."
        )
    return s.Header(
        title=title,
        source=source,
        model=s.Model(
            type(model).__name__,
            objective.space.dim,
            sum(p.numel() for p in model.parameters() if not p.requires_grad),
            len(objective.space.names),
        ),
        criterion=" + ".join(_criterion_name(p.criterion) for p in objective.parts),
        data=s.Data(
            found.examples,
            round(found.terms),
            found.batches,
            objective.population,
            data.seed if isinstance(data, Subsample) else None,
        ),
        environment=environment(objective, version),
        seed=settings.seed,
        date=date,
        command=command,
        route=f"Hessian by reverse mode, Gauss-Newton by {checked['route']} mode",
        budget=budget,
        loss=found.value,
        gradient_norm=checked["gradient_norm"],
        remarks=tuple(remarks),
    )


def _criterion_name(criterion: object) -> str:
    names = {"CrossEntropy": "cross_entropy", "Gaussian": "gaussian", "Custom": "custom"}
    return names.get(type(criterion).__name__) or getattr(criterion, "name", type(criterion).__name__)


def environment(objective: Objective, version: str) -> s.Environment:
    """Machine, versions and settings that the numbers were made with."""
    settings = [f"{name}={os.environ[name]}" for name in ALLOCATOR if name in os.environ]
    device = objective.space.device
    return s.Environment(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        dtype=str(objective.space.dtype).removeprefix("torch."),
        frechet=version,
        torch=str(torch.__version__),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        threads=torch.get_num_threads(),
        allocator=" ".join(settings) or "default",
    )


# --- sections ---------------------------------------------------------------------------------------------------------


def _cost(run: Run, stage: str, shared: str = "") -> s.Cost:
    return replace(run.costs.get(stage, NOTHING), shared=shared)


def _curvature(
    kind: Literal["hessian", "gauss_newton"], name: str, objective: Objective, run: Run
) -> s.Curvature | None:
    spectrum: Spectrum | None = run.results.get(f"{name} eigenvalues")
    density: Density | None = run.results.get(f"{name} density")
    if spectrum is None and density is None:
        return None
    curvature = s.Curvature(kind, objective.space.dim)
    if spectrum is not None:
        curvature = replace(curvature, eigenvalues=_eigenvalues(spectrum, run, f"{name} eigenvalues", kind))
    if density is None:
        return curvature
    cost = _cost(run, f"{name} density", f"the Krylov space of the {name}")
    width = density.width()
    grid = density.grid(width)
    value, lower, upper = density.on(grid, width)
    square = density.trace_of(lambda t: t * t)
    radius = _radius(spectrum, density)
    dimensions = []
    for share in DAMPINGS if radius > 0 else ():
        a = share * radius

        def kept(t: torch.Tensor, a: float = a) -> torch.Tensor:
            return t.abs() / (t.abs() + a)

        definition = (
            "sum of |lambda| / (|lambda| + damping)" if kind == "hessian" else "sum of lambda / (lambda + damping)"
        )
        number = s.from_estimate(density.trace_of(kept), cost=cost)
        if number.upper - number.lower < 2 * number.value:  # else nothing is known of it: see `unresolved`
            dimensions.append(s.EffectiveDimension(a, _nonnegative(number), definition))
    return replace(
        curvature,
        density=s.Density(
            tuple(grid.tolist()),
            tuple(value.tolist()),
            tuple(lower.tolist()),
            tuple(upper.tolist()),
            0.95,
            width,
            len(density.lengths),
            max(density.lengths, default=0),
            int(density.deflated.numel()),
            replace(cost, shared=""),
            "stochastic Lanczos quadrature",
        ),
        trace=s.from_estimate(density.trace_of(lambda t: t), cost=cost),
        frobenius_norm=_nonnegative(s.from_estimate(frobenius_of(square), cost=cost)),
        stable_rank=_stable_rank(square, spectrum, cost),
        effective_dimensions=tuple(dimensions),
    )


def unresolved(c: s.Curvature | None) -> list[s.LeftOut]:
    """What to say of effective dimensions whose error is as large as they are: a bulk of both signs makes such."""
    if c is None or c.density is None or c.frobenius_norm is None or c.frobenius_norm.value == 0:
        return []
    found = len(c.effective_dimensions)
    if found == len(DAMPINGS):
        return []
    why = (
        f"{c.density.steps} steps resolve the eigenvalues near zero for {found} of {len(DAMPINGS)} dampings; give more"
    )
    return [s.LeftOut(f"effective dimension of the {dict(NAMES)[c.operator]}", f"{why} --steps")]


def _radius(spectrum: Spectrum | None, density: Density) -> float:
    """The largest absolute eigenvalue known."""
    known = spectrum.values if spectrum is not None and spectrum.values.numel() else density.nodes
    return float(known.abs().max()) if known.numel() else 0.0


def _eigenvalues(spectrum: Spectrum, run: Run, stage: str, kind: str) -> s.Eigenvalues:
    pairs = [
        s.Eigenvalue(v, r, bool(c))
        for v, r, c in zip(
            spectrum.values.tolist(), spectrum.residuals.tolist(), spectrum.converged.tolist(), strict=True
        )
    ]
    half = (len(pairs) + 1) // 2 if kind == "hessian" else len(pairs)
    return s.Eigenvalues(
        tuple(pairs[:half]), tuple(reversed(pairs[half:])), _cost(run, stage), "thick-restart Lanczos", RTOL
    )


def _nonnegative(m: s.Measured) -> s.Measured:
    return replace(m, lower=max(0.0, m.lower))


def _stable_rank(square: Any, spectrum: Spectrum | None, cost: s.Cost) -> s.Measured | None:
    if spectrum is None or not spectrum.values.numel():
        return None
    best = int(spectrum.values.abs().argmax())
    size, error = float(spectrum.values[best].abs()), float(spectrum.residuals[best])
    if not size > error:
        return None
    lower, upper = (float(end) for end in square.interval())
    # the largest eigenvalue found is a lower bound of the largest, so its error only counts upward here
    return s.Measured(
        max(1.0, float(square.value) / size**2),
        max(1.0, lower / (size + error) ** 2),
        max(1.0, upper / (size - error) ** 2),
        0.95,
        False,
        cost,
        "squared Frobenius norm over squared largest eigenvalue",
    )


def _layers(run: Run) -> s.Layers | None:
    traces, tops = run.results.get("layer traces"), run.results.get("layer eigenvalues")
    if traces is None:
        return None
    cost = _cost(run, "layer traces", "the probes of the layer traces")
    best = {} if tops is None else {t.name: s.Eigenvalue(t.value, t.residual, t.converged) for t in tops.layers}
    layers = []
    for m in traces.modules:
        share = s.Measured(
            m.share, m.lower, m.upper, traces.level, False, cost, "ratio of two traces, Fieller interval"
        )
        layers.append(s.Layer(m.name, m.size, s.from_estimate(m.trace, cost=cost), share, best.get(m.name)))
    own, other = _cost(run, "layer traces"), run.costs.get("layer eigenvalues", NOTHING)
    both = s.Cost(own.products + other.products, own.data_passes + other.data_passes, own.seconds + other.seconds)
    return s.Layers("hessian", tuple(layers), both, "Hutchinson per block; Lanczos on each module's own Hessian")


def _measured(r: Range | None, level: float, cost: s.Cost, method: str) -> s.Measured | None:
    if r is None:
        return None
    return s.Measured(r.value, min(r.lower, r.value), max(r.upper, r.value), level, False, cost, method)


def _learning_rate(run: Run) -> s.LearningRate | None:
    found, noise = run.results.get("learning rate"), run.results.get("gradient noise")
    if found is None or noise is None:
        return None
    cost = _cost(run, "learning rate")
    eigen = _cost(run, "Hessian eigenvalues", "the largest Hessian eigenvalue")
    bounds = tuple(
        s.SgdBound(
            b.batch_size,
            _measured(b.identity, found.level, cost, "mean-square condition for the identity"),
            _measured(b.top, 1.0, cost, "mean-square condition for the top eigenvector"),
        )
        for b in found.sgd
    )
    descent = _measured(found.gradient_descent, 1.0, eigen, "2 / largest Hessian eigenvalue")
    if descent is None:
        descent = s.Measured(math.inf, math.inf, math.inf, 1.0, False, eigen, "no positive eigenvalue was found")
    here = noise["interpolation"]
    where = s.Interpolation(here.loss, here.gradient_norm, here.near_zero, here.near_zero_share)
    caveat = (
        "The bounds for SGD are necessary conditions for stability of a minimum at which every example's gradient "
        "vanishes. Above one of them such a minimum is unstable; below both it may still be. Away from such a minimum "
        "they say what would hold if this curvature were found there."
    )
    return s.LearningRate(descent, bounds, where, caveat, cost)


def _noise(run: Run) -> s.Noise | None:
    found = run.results.get("gradient noise")
    if found is None:
        return None
    noise, curvature = found["noise"], found["curvature"]
    cost = _cost(run, "gradient noise")
    scale = s.Measured(
        noise.value, min(noise.lower, noise.value), max(noise.upper, noise.value), noise.level, False, cost,
        "per-example gradients, jackknife", "examples",
    )  # fmt: skip
    critical = None
    if curvature is not None:
        critical = s.Measured(
            # the gradient that it takes for G is no more a draw than that of the noise scale
            curvature.value, 0.0 if noise.below_chance and curvature.value == math.inf else
            min(curvature.lower, curvature.value), max(curvature.upper, curvature.value),
            curvature.level, False, cost, "random signs of examples, one Hessian product each", "examples",
        )  # fmt: skip
    remark = ""
    if not noise.bounded and not noise.below_chance and math.isfinite(noise.resolvable):
        most = numbers.typeset(numbers.number(noise.resolvable, 2))
        remark = f"{noise.examples} examples can tell a noise scale from an infinite one up to about {most}."
    return s.Noise(
        scale,
        critical,
        s.from_estimate(noise.gradient_squared, cost=cost, level=noise.level),
        s.from_estimate(noise.gradient_variance, cost=cost, level=noise.level),
        noise.examples,
        cost,
        remark,
    )


def _slices(run: Run) -> s.Slices | None:
    found, spectrum = run.results.get("loss slices"), run.results.get("Hessian eigenvalues")
    if found is None or spectrum is None:
        return None
    chosen = list(dict.fromkeys([int(spectrum.values.argmax()), int(spectrum.values.argmin())]))
    names: Sequence[str] = ["largest eigenvalue"]
    if len(chosen) > 1:
        last = float(spectrum.values[chosen[1]])
        names = ["largest eigenvalue", "most negative eigenvalue" if last < 0 else "smallest eigenvalue found"]
    slices = tuple(
        s.Slice(
            name,
            float(spectrum.values[i]),
            tuple(found.steps[j].tolist()),
            tuple(found.losses[j].tolist()),
            tuple(found.quadratic[j].tolist()),
        )
        for j, (name, i) in enumerate(zip(names, chosen, strict=True))
    )
    return s.Slices("hessian", slices, _cost(run, "loss slices"))
