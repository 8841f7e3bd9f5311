"""The stages on one operator: eigenvalues at the ends, traces and norms, the density."""

from __future__ import annotations

import math
from typing import Any

import torch

from frechet.linalg._density import Density, DensityState
from frechet.linalg._eigsh import eigsh
from frechet.linalg._result import Spectrum
from frechet.report import _lockstep as lockstep
from frechet.report._operators import Operators
from frechet.report._run import PLENTY, Observe, Run
from frechet.report._settings import Settings
from frechet.report._sizes import Sizes, probes_for, sizes, widths

RTOL = 1e-2  # of eigenvalues: residual by size; the report shows the residual of each
EIGEN_PRODUCTS = 60  # what the eigenvalues of one operator usually take
LEAST_EIGEN = {"largest": 6, "both": 8}
LEAST_STEPS = 4  # a shorter Krylov space resolves nothing
LEAST_PROBES = 4  # of traces: fewer say nothing of their spread
PILOT = 24  # probes whose spread says how many are needed
MOST_PROBES = 240
GOAL = 0.13  # half-width of an interval relative to its number: what is aimed at, to end below 0.15
BLOCK = 8  # vectors in a pass
EXACT = 256  # dimensions up to which unit vectors cost no more than the probes would


def eigenvalues(operators: Operators, name: str, which: Any, settings: Settings, run: Run) -> None:
    """The `top` eigenpairs of an end, or of both; worked on again, from the vectors found, where some fell short."""
    stage, dim = f"{name} eigenvalues", operators.objective.space.dim
    before: Spectrum | None = run.results.get(stage)
    least = 0 if before is not None else min(LEAST_EIGEN[which], dim + 1)
    operators.timed(name, min(run.allowance(stage, name, least), EIGEN_PRODUCTS))
    limit = run.allowance(stage, name, least)
    k = min(settings.top, dim, max(1, (limit - 2) // (6 if which == "both" else 3)))
    if limit < (least if before is None else before.products // 2):
        if before is None:
            run.leave_out(stage, f"the budget left {limit} products, and it needs at least {least}")
        return
    A = operators.get(name, min(limit, EIGEN_PRODUCTS))

    def compute(observe: Observe, resume: Any) -> Spectrum:
        most = None if limit >= PLENTY else limit
        start = None if before is None else before.vectors
        found = eigsh(
            A, k, which=which, seed=settings.seed, rtol=RTOL, max_products=most, x0=start, observe=observe,
            resume=resume,
        )  # fmt: skip
        return found if before is None or _better(found, before) else before

    found = run.stage(stage, compute, limit=None if limit >= PLENTY else limit)
    run.put_in(stage)
    ends = 2 if which == "both" else 1
    if limit >= PLENTY or (bool(found.converged.all()) and found.values.numel() >= min(dim, ends * settings.top)):
        run.open.discard(stage)


def _better(found: Spectrum, before: Spectrum) -> bool:
    """Whether more pairs were found, or the same number with smaller residuals."""
    counts = found.values.numel(), before.values.numel()
    worst = float(found.residuals.max()), float(before.residuals.max())
    return counts[0] > counts[1] or (counts[0] == counts[1] and worst[0] < worst[1])


def traces(operators: Operators, name: str, settings: Settings, run: Run) -> None:
    """Trace, Frobenius norm and layers: a pilot of probes, then as many as it says, up to `MOST_PROBES`."""
    stage = f"{name} traces"
    before: Sizes | None = run.results.get(stage)
    least = LEAST_PROBES if before is None else 0
    operators.timed(name, min(run.allowance(stage, name, least), 3 * PILOT))
    limit = run.allowance(stage, name, least)
    if limit < (LEAST_PROBES if before is None else BLOCK):
        if before is None:
            run.leave_out(stage, f"the budget left {limit} products, and it needs at least {LEAST_PROBES}")
        return
    first = 0 if before is None else before.probes

    def count(now: Sizes | None) -> int:
        if now is None:
            return min(PILOT, limit)
        most = MOST_PROBES if limit >= PLENTY else math.inf  # who sets a budget has said what may be spent
        aimed = int(min(most, math.ceil(1.05 * probes_wanted(name, now))))
        return min(limit - (now.probes - first), aimed - now.probes)

    found = _more(operators, name, settings, run, limit, count)
    run.put_in(stage)
    if limit >= PLENTY or found.exact or (count(found) <= 0 and found.probes - first < limit):
        run.open.discard(stage)


def probes_wanted(name: str, now: Sizes, goal: float = GOAL, whole: bool = False) -> float:
    """The probes that bring every number that is printed of the operator to the goal; with `whole` trace and norm."""
    width = widths(now)
    if whole or name == "Hessian":  # its layers are told beside those of Gauss-Newton, which carry the shares
        width = {key: width[key] for key in ("trace", "Frobenius norm")}
    needed = [probes_for(now, goal, w) for w in width.values()]
    return min(max(needed, default=0.0), 1e9)


def _more(operators: Operators, name: str, settings: Settings, run: Run, limit: int, count: Any) -> Sizes:
    stage, dim = f"{name} traces", operators.objective.space.dim
    A = operators.get(name, min(limit, 3 * PILOT))
    known: Spectrum | None = run.results.get(f"{name} eigenvalues")

    def compute(observe: Observe, resume: Any) -> Sizes:
        return sizes(
            A, count, known=known, seed=settings.seed, block=BLOCK, exact=dim <= min(EXACT, limit), observe=observe,
            before=resume if resume is not None else run.results.get(stage),
        )  # fmt: skip

    return run.stage(stage, compute, limit=None if limit >= PLENTY else limit)


def density(operators: Operators, name: str, settings: Settings, run: Run) -> None:
    """Probes of short Krylov spaces, side by side; made anew where twice as many steps have become affordable."""
    stage = f"{name} density"
    before: Density | None = run.results.get(stage)
    least = 2 * LEAST_STEPS if before is None else 0
    operators.timed(name, min(run.allowance(stage, name, least), settings.probes * settings.steps))
    limit = run.allowance(stage, name, least)
    probes, steps = settings.probes, settings.steps
    if limit < probes * steps:
        probes = max(2, min(probes, limit // (2 * LEAST_STEPS)))
        steps = min(steps, limit // probes)
    if before is not None and probes * steps < 2 * before.products:
        if run.tight and (before.products * 2 > settings.probes * settings.steps or limit >= PLENTY):
            run.open.discard(stage)
        return
    if steps < LEAST_STEPS:
        run.leave_out(stage, f"the budget left {limit} products, and 2 probes of {LEAST_STEPS} steps are the least")
        return
    A = operators.get(name, probes * steps)
    earlier = run.partial.get(stage)
    if earlier is not None:  # a resumed run keeps the number of steps that it began with
        steps = earlier["state"].fingerprint[2]

    def compute(observe: Observe, resume: Any) -> Density:
        return lockstep.density(
            A, seed=settings.seed, probes=probes, steps=steps, together=operators.together(name, steps + 1),
            deflate=run.results.get(f"{name} eigenvalues"), observe=observe, resume=resume,
        )  # fmt: skip

    run.stage(stage, compute, limit=probes * steps)
    run.put_in(stage)
    if (probes, steps) == (settings.probes, settings.steps):
        run.open.discard(stage)


def tighten(operators: Operators, settings: Settings, run: Run, spent: float) -> None:
    """Spend what is left of the budget, but for the part `spent`, on the operator whose numbers are least known."""
    named = {name: run.results.get(f"{name} traces") for name in ("Hessian", "Gauss-Newton")}
    drawn = {name: now for name, now in named.items() if now is None or not now.exact}
    run.tight = True
    if not drawn:  # all traces are exact: the density is what is left to be drawn
        for name in named:
            _more_density(operators, name, settings, run)
        run.open = set()
        return
    worst = max(drawn, key=lambda name: math.inf if drawn[name] is None else max(widths_told(name, drawn[name])))
    stage = f"{worst} traces"
    run.open = {stage}
    limit = run.allowance(stage, worst)
    if limit < 2:
        return

    def count(_now: Sizes | None) -> int:
        if run.remaining() <= spent / 2:
            return 0
        return min(BLOCK, run.allowance(stage, worst))

    _more(operators, worst, settings, run, limit, count)
    run.put_in(stage)
    run.open = set()


def _more_density(operators: Operators, name: str, settings: Settings, run: Run) -> None:
    """More probes for a density whose deflated eigenpairs are still those that are known."""
    stage = f"{name} density"
    before: Density | None = run.results.get(stage)
    spectrum: Spectrum | None = run.results.get(f"{name} eigenvalues")
    run.open = {stage}
    limit = run.allowance(stage, name)
    if before is None or spectrum is None or not torch.equal(before.deflated, spectrum.values.cpu()):
        return
    steps = before.alpha.shape[1]
    more = 0 if steps == 0 else min(limit // steps, MOST_PROBES)
    if more < 1:
        return
    space, k = operators.objective.space, before.deflated.numel()
    state = DensityState(
        (repr(space), settings.seed, steps, k, "device"), before.alpha, before.beta, before.lengths, 0, before.products
    )

    def compute(observe: Observe, _resume: Any) -> Density:
        return lockstep.density(
            operators.get(name, more * steps), seed=settings.seed, probes=len(before.lengths) + more, steps=steps,
            together=operators.together(name, steps + 1), deflate=spectrum, observe=observe, resume=state,
        )  # fmt: skip

    run.stage(stage, compute, limit=limit)


def widths_told(name: str, now: Sizes | None) -> list[float]:
    """The relative widths of the numbers that are printed of an operator."""
    if now is None:
        return [math.inf]
    found = widths(now)
    return [found["trace"], found["Frobenius norm"]] if name == "Hessian" else list(found.values())
