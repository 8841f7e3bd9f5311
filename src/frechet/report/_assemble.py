"""From the results of a `Run` to the `Report`: plain numbers, intervals, costs."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from frechet.analyze._stability import Range, stable_learning_rate
from frechet.linalg._density import Density
from frechet.linalg._result import Spectrum
from frechet.objective import Objective, Subsample
from frechet.report import _numbers as numbers
from frechet.report import _schema as s
from frechet.report._run import Run
from frechet.report._sections import sliced
from frechet.report._settings import Settings
from frechet.report._sizes import Sizes, relative_error
from frechet.report._spectra import RTOL, probes_wanted
from frechet.report._threads import openmp_settings

TOLD = 0.15  # half-width relative to the number: above it the page says how many products it would take
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
        left_out=(*run.left_out, *(entry for c in curvatures for entry in unresolved(c, run.bounded))),
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
        environment=environment(objective, version, checked.get("threads", "")),
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


def environment(objective: Objective, version: str, chosen: str = "") -> s.Environment:
    """Machine, versions and settings that the numbers were made with."""
    names = [*ALLOCATOR, *openmp_settings()]
    settings = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    device = objective.space.device
    return s.Environment(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        dtype=str(objective.space.dtype).removeprefix("torch."),
        frechet=version,
        torch=str(torch.__version__),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        threads=torch.get_num_threads(),
        threads_chosen=chosen,
        settings=" ".join(settings) or "default",
    )


# --- sections ---------------------------------------------------------------------------------------------------------


def _cost(run: Run, stage: str, shared: str = "") -> s.Cost:
    return replace(run.costs.get(stage, NOTHING), shared=shared)


def _curvature(
    kind: Literal["hessian", "gauss_newton"], name: str, objective: Objective, run: Run
) -> s.Curvature | None:
    spectrum: Spectrum | None = run.results.get(f"{name} eigenvalues")
    density: Density | None = run.results.get(f"{name} density")
    sizes: Sizes | None = run.results.get(f"{name} traces")
    if spectrum is None and density is None and sizes is None:
        return None
    curvature = s.Curvature(kind, objective.space.dim)
    if spectrum is not None:
        curvature = replace(curvature, eigenvalues=_eigenvalues(spectrum, run, f"{name} eigenvalues", kind))
    if sizes is not None:
        cost = _cost(run, f"{name} traces", f"the random signs of the {name}")
        curvature = replace(
            curvature,
            trace=s.from_estimate(sizes.trace, cost=cost),
            frobenius_norm=_nonnegative(s.from_estimate(sizes.frobenius, cost=cost)),
            stable_rank=_stable_rank(sizes.of(sizes.squares), spectrum, cost),
            wanted=_wanted(name, sizes),
        )
    if density is None:
        return curvature
    cost = _cost(run, f"{name} density", f"the Krylov spaces of the {name}")
    drawn, radius = _density(density, cost), _radius(spectrum, density)
    if kind == "hessian":  # an indefinite matrix has no effective dimension that many would agree on
        return replace(curvature, density=drawn)
    return replace(curvature, density=drawn, effective_dimensions=_dimensions(density, radius, cost))


def _wanted(name: str, sizes: Sizes) -> int | None:
    """The random products that would tell every number within 15 %, where they were not made; None where they were."""
    if sizes.exact or max(relative_error(sizes.trace), relative_error(sizes.frobenius)) <= TOLD:
        return None
    return min(math.ceil(probes_wanted(name, sizes, TOLD, whole=True)), 10**9)


def _density(density: Density, cost: s.Cost) -> s.Density:
    width = density.width()
    grid = density.grid(width)
    value, lower, upper = density.on(grid, width)
    columns = [tuple(c.tolist()) for c in (grid, value, lower, upper)]
    return s.Density(
        columns[0],
        columns[1],
        columns[2],
        columns[3],
        0.95,
        width,
        len(density.lengths),
        max(density.lengths, default=0),
        int(density.deflated.numel()),
        replace(cost, shared=""),
        "stochastic Lanczos quadrature",
    )


def _dimensions(density: Density, radius: float, cost: s.Cost) -> tuple[s.EffectiveDimension, ...]:
    found = []
    for share in DAMPINGS if radius > 0 else ():
        a = share * radius

        def kept(t: torch.Tensor, a: float = a) -> torch.Tensor:
            return t.abs() / (t.abs() + a)

        number = s.from_estimate(density.trace_of(kept), cost=cost)
        if number.upper - number.lower < 2 * number.value:  # else nothing is known of it: see `unresolved`
            found.append(s.EffectiveDimension(a, _nonnegative(number), "sum of λ / (λ + damping)"))
    return tuple(found)


def unresolved(c: s.Curvature | None, bounded: bool = False) -> list[s.LeftOut]:
    """What to say of effective dimensions whose error is as large as they are."""
    if c is None or c.operator == "hessian" or c.density is None:
        return []
    if c.frobenius_norm is None or c.frobenius_norm.value == 0:
        return []
    found = len(c.effective_dimensions)
    if found == len(DAMPINGS):
        return []
    more = "a larger budget allows more" if bounded else "more come with --steps"
    why = (
        f"{c.density.steps} Lanczos steps resolve the eigenvalues near zero for {found} of {len(DAMPINGS)} dampings; "
        f"{more}"
    )
    return [s.LeftOut(f"effective dimension of the {dict(NAMES)[c.operator]}", why)]


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
    """Layers by their part of the Gauss-Newton trace, which is never negative, the Hessian's traces beside."""
    newton, other, tops = (run.results.get(n) for n in ("Gauss-Newton traces", "Hessian traces", "layer eigenvalues"))
    sizes: Sizes | None = newton if newton is not None else other
    if sizes is None:
        return None
    kind: s.OperatorName = "hessian" if newton is None else "gauss_newton"
    cost = _cost(run, f"{'Hessian' if newton is None else 'Gauss-Newton'} traces", "the random signs of the traces")
    beside = {} if newton is None or other is None else other.modules()
    parameters: dict[str, int] = {}
    for name, size in zip(sizes.names, run.results["check"]["sizes"], strict=True):
        module = name.rpartition(".")[0] or "(root)"
        parameters[module] = parameters.get(module, 0) + size
    layers = []
    for module, draws in sizes.modules().items():
        value, lower, upper = sizes.share(draws)
        method = "exact" if sizes.exact else "ratio of two traces, Fieller interval"
        share = s.Measured(value, lower, upper, 1.0 if sizes.exact else 0.95, sizes.exact, cost, method)
        trace = s.from_estimate(sizes.of(draws), cost=cost)
        second = s.from_estimate(other.of(beside[module]), cost=cost) if other is not None and beside else None
        layers.append(s.Layer(module, parameters[module], trace, share, second, (tops or {}).get(module)))
    costs = [run.costs[n] for n in ("Gauss-Newton traces", "Hessian traces", "layer eigenvalues") if n in run.costs]
    products, passes = sum(c.products for c in costs), sum(c.data_passes for c in costs)
    whole = s.Cost(products, passes, sum(c.seconds for c in costs))
    method = "One set of random signs for all modules; Lanczos on each module's own block of the Hessian"
    return s.Layers(kind, tuple(layers), whole, method)


def _measured(r: Range | None, level: float, cost: s.Cost, method: str) -> s.Measured | None:
    if r is None:
        return None
    return s.Measured(r.value, min(r.lower, r.value), max(r.upper, r.value), level, False, cost, method)


def _learning_rate(run: Run) -> s.LearningRate | None:
    """Gradient descent's bound wherever an eigenvalue is known, SGD's where it could be measured."""
    found, spectrum = run.results.get("learning rate"), run.results.get("Hessian eigenvalues")
    if spectrum is None or not spectrum.values.numel():
        return None
    cost = _cost(run, "learning rate")
    eigen = _cost(run, "Hessian eigenvalues", "the largest Hessian eigenvalue")
    sgd, level = ((), 0.95) if found is None else (found.sgd, found.level)
    bounds = tuple(
        s.SgdBound(
            b.batch_size,
            _measured(b.identity, level, cost, "mean-square condition for the identity"),
            _measured(b.top, 1.0, cost, "mean-square condition for the top eigenvector"),
        )
        for b in sgd
    )
    best = int(spectrum.values.argmax())
    limit = stable_learning_rate(float(spectrum.values[best]), float(spectrum.residuals[best]))
    descent = _measured(limit, 1.0, eigen, "2 / largest Hessian eigenvalue")
    if descent is None:
        descent = s.Measured(math.inf, math.inf, math.inf, 1.0, False, eigen, "no positive eigenvalue was found")
    checked, noise = run.results["check"], run.results.get("gradient noise")
    where = s.Interpolation(checked["check"].value, checked["gradient_norm"])
    if noise is not None:
        here = noise["interpolation"]
        where = s.Interpolation(here.loss, here.gradient_norm, here.near_zero, here.near_zero_share)
    caveat = (
        "The bounds for SGD are necessary conditions for stability of a minimum at which every example's gradient "
        "vanishes. Above one of them such a minimum is unstable; below both it may still be. Away from such a minimum "
        "they say what would hold if this curvature were found there."
    )
    return s.LearningRate(descent, bounds, where, caveat if bounds else "", cost)


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
    critical, remark = None, ""
    if curvature is not None and curvature.value < 0:
        remark = "The loss curves downward along the gradient's noise, so there is no critical batch size here. "
    elif curvature is not None:
        critical = s.Measured(
            # the gradient that it takes for G is no more a draw than that of the noise scale
            curvature.value, 0.0 if noise.below_chance and curvature.value == math.inf else
            min(curvature.lower, curvature.value), max(curvature.upper, curvature.value),
            curvature.level, False, cost, "random signs of examples, one Hessian product each", "examples",
        )  # fmt: skip
    if not noise.bounded and not noise.below_chance and math.isfinite(noise.resolvable):
        most = numbers.typeset(numbers.number(noise.resolvable, 2))
        remark += f"With {noise.examples} examples, noise scales above about {most} cannot be told from infinity."
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
    chosen = sliced(spectrum)[: len(found)]
    names: Sequence[str] = ["largest eigenvalue"]
    if len(chosen) > 1:
        last = float(spectrum.values[chosen[1]])
        names = ["largest eigenvalue", "most negative eigenvalue" if last < 0 else "smallest eigenvalue found"]
    slices = tuple(
        s.Slice(
            name,
            float(spectrum.values[i]),
            tuple(line.steps[0].tolist()),
            tuple(line.losses[0].tolist()),
            tuple(line.quadratic[0].tolist()),
        )
        for line, name, i in zip(found, names, chosen, strict=True)
    )
    return s.Slices("hessian", slices, _cost(run, "loss slices"))
