"""The stages on the objective itself: layers' largest eigenvalues, gradient noise, learning rates, slices."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from frechet.analyze._examples import example_gradients
from frechet.analyze._noise_scale import curvature_noise_scale, noise_scale
from frechet.analyze._slices import loss_slices
from frechet.analyze._stability import interpolation, stability
from frechet.linalg._result import Spectrum
from frechet.objective import Objective
from frechet.report import _lockstep as lockstep
from frechet.report._operators import Operators
from frechet.report._run import PLENTY, Observe, Run
from frechet.report._settings import Settings
from frechet.report._sizes import Sizes
from frechet.report._spectra import BLOCK, RTOL

MOST_TOPS = 24  # modules, those with the largest traces: as many as the picture shows
TOP_STEPS = 20  # of each module's Krylov space; most are done after ten
LEAST_TOP_STEPS = 4
# directions of the mean squared Hessian that are taken out, and probes of the rest: 3 (1 + both)^2 gradients each
BILINEAR = ((3, 4), (2, 3), (1, 2), (0, 2))
SHRINK = 6  # factors of four: 4096 in all; beyond, rounding of the loss hides what the model says


def layer_tops(operators: Operators, settings: Settings, run: Run) -> None:
    """The largest eigenvalue of the Hessian's diagonal block of the modules with the largest traces."""
    stage, space = "layer eigenvalues", operators.objective.space
    names = _by_trace(run, list(lockstep.modules_of(space)))
    before: dict[str, Any] | None = run.results.get(stage)
    limit = run.allowance(stage, "Hessian", LEAST_TOP_STEPS if before is None else 0)
    chosen = names[: max(1, min(MOST_TOPS, limit // LEAST_TOP_STEPS))]
    steps = min(TOP_STEPS, limit // len(chosen))
    if limit < LEAST_TOP_STEPS:
        if before is None:
            run.leave_out(stage, f"the budget left {limit} products, and a module needs {LEAST_TOP_STEPS}")
        return
    if before is not None and len(chosen) <= len(before) and steps <= TOP_STEPS // 2:
        return
    A = operators.get("Hessian", steps * len(chosen))

    def compute(observe: Observe, resume: Any) -> dict[str, Any]:
        kept = {name: e for name, e in (before or {}).items() if e.converged}
        return lockstep.tops(
            A, chosen, seed=settings.seed, steps=steps, together=BLOCK, rtol=RTOL, observe=observe,
            found=resume if resume is not None else kept,
        )  # fmt: skip

    run.stage(stage, compute, limit=None if limit >= PLENTY else limit)
    run.put_in(stage)
    if limit >= PLENTY or (len(chosen) == min(MOST_TOPS, len(names)) and steps == TOP_STEPS):
        run.open.discard(stage)


def _by_trace(run: Run, names: list[str]) -> list[str]:
    """The modules by their Gauss-Newton traces, or in the model's order where these were left out."""
    found: Sizes | None = run.results.get("Gauss-Newton traces")
    if found is None:
        return names
    traces = {name: float(draws.mean()) for name, draws in found.modules().items()}
    return sorted(names, key=lambda name: -traces[name])


def noise(objective: Objective, settings: Settings, run: Run) -> None:
    """Noise scale, critical batch size, and how near the point is to one that fits every example."""

    def compute(limit: int) -> dict[str, Any]:
        gradients = example_gradients(objective, route=settings.examples)
        run.meter.passes += gradients.passes
        probes = min(16, limit - 1)
        curvature = curvature_noise_scale(objective, seed=settings.seed, probes=probes) if probes >= 4 else None
        if curvature is not None:
            run.meter.products += curvature.products
            run.meter.passes += curvature.passes
        # the gradients of single examples are not kept: only their norms
        return {"noise": noise_scale(gradients), "curvature": curvature, "interpolation": interpolation(gradients)}

    _once(run, "gradient noise", 2, compute)


def learning_rate(objective: Objective, settings: Settings, run: Run) -> None:
    """Upper bounds of stable learning rates: gradient descent's from the largest eigenvalue, SGD's where it applies."""
    stage = "learning rate"
    spectrum, sizes = run.results.get("Hessian eigenvalues"), run.results.get("Hessian traces")
    if spectrum is None or sizes is None:
        run.leave_out(stage, "it needs the Hessian's eigenvalues and traces, which were left out")
        return

    def compute(limit: int) -> Any:
        examples = run.results["check"]["check"].examples
        batches = sorted({min(size, examples) for size in settings.batch_sizes})
        # a gradient is about a third of a product
        affordable = [(d, p) for d, p in BILINEAR if (1 + d + p) ** 2 <= limit]
        deflate, probes = affordable[0] if affordable else BILINEAR[-1]
        found = stability(
            objective, batch_sizes=batches, trace=sizes.trace, frobenius=sizes.frobenius, top=spectrum,
            seed=settings.seed, probes=probes, deflate=min(deflate, spectrum.values.numel()),
        )  # fmt: skip
        run.meter.passes += found.passes
        return found

    _once(run, stage, 9, compute)


def slices(objective: Objective, settings: Settings, run: Run) -> None:
    """The loss along the eigenvectors of the largest and the smallest eigenvalue, on scales set by the curvature."""
    stage = "loss slices"
    spectrum = run.results.get("Hessian eigenvalues")
    if spectrum is None:
        run.leave_out(stage, "it needs the Hessian's eigenvectors, which were left out")
        return
    pairs = sliced(spectrum)
    directions: Tensor = spectrum.vectors[:, pairs]

    def compute(limit: int) -> Any:
        points = settings.points if limit >= PLENTY else max(9, min(settings.points, limit // 2 * 2 + 1))
        gradient, found = objective.gradient(), []
        for j in range(len(pairs)):
            line, curvature = directions[:, j : j + 1], spectrum.values[pairs[j : j + 1]]
            slope = float(objective.space.inner(gradient, line[:, 0]))
            radius, tried = _radius(objective, line[:, 0], slope, float(curvature[0]), _loss(run))
            found.append(loss_slices(objective, line, points=points, curvatures=curvature, radius=radius))
            run.meter.passes += tried + found[-1].passes
        return found

    _once(run, stage, 4, compute)


def sliced(spectrum: Spectrum) -> list[int]:
    """The pairs whose lines are looked at: the largest, and the smallest where its sign is known."""
    best, worst = int(spectrum.values.argmax()), int(spectrum.values.argmin())
    known = abs(float(spectrum.values[worst])) > float(spectrum.residuals[worst])
    return list(dict.fromkeys([best, worst] if known else [best]))


def _loss(run: Run) -> float:
    return float(run.results["check"]["check"].value)


def _radius(objective: Objective, line: Tensor, slope: float, curvature: float, loss: float) -> tuple[float, int]:
    """Where along a line the quadratic model begins to fail: what a slice should show; and the passes that it took.

    It begins where the model changes the loss by as much as it is: |a slope| + a^2 |curvature| / 2 = |loss|. From there
    it shrinks by factors of four until the model's error at both ends is at most half of what the model says the loss
    changes by.
    """
    c, g, size = abs(curvature) / 2, abs(slope), abs(loss) or 1.0
    radius = 2 * size / (g + (g * g + 4 * c * size) ** 0.5) if g + c > 0 else 1.0
    x, passes = objective.point, 0
    for _ in range(SHRINK):
        right = True
        for a in (radius, -radius):
            change = slope * a + curvature / 2 * a * a
            error = abs(float(objective.value(x + a * line)) - loss - change)
            right, passes = right and error <= abs(change) / 2, passes + 1
            if not right:
                break
        if right:
            break
        radius /= 4
    return radius, passes


def _once(run: Run, stage: str, least: int, compute: Any) -> None:
    """A stage that is done in one go or left out."""
    limit = run.allowance(stage, "Gauss-Newton", least=least)
    if limit < least:
        run.leave_out(stage, f"the budget left the time of {limit} products, and it needs that of {least}")
        return
    run.stage(stage, lambda _observe, _resume: compute(limit))
    run.put_in(stage)
    run.open.discard(stage)
