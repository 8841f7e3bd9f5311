"""The measurements of a report, as stages of a `Run`.

Each operator's eigenpairs come first and are taken out of all that is drawn at random after them: short Krylov spaces
for the density, blocks of random signs for traces, norms and layers. The signs go on until the intervals are as narrow
as `GOAL`, or until it would take more than `MOST_PROBES`; then the report says how many it would take.

Products are recorded (`linearize`) where more than a few are planned. The first check ends the report where it fails:
there is nothing to say. Every other stage that cannot be measured costs its own section, and says why.

With a budget, stages that were left out, or whose numbers are coarser than without one, are worked on again with what
the others left; what is then left tightens the widest interval.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from frechet.errors import LostRank, NonFinite, NotDifferentiable, UnusableObjective
from frechet.objective import Objective
from frechet.objective._remembered import Remembered
from frechet.objective._torch_internals import tree_leaves
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._gauss_newton import gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._modes import Route, chosen
from frechet.recording import ran_out
from frechet.report import _threads as threads
from frechet.report._metered import metered
from frechet.report._operators import Operators
from frechet.report._run import Run
from frechet.report._schema import LeftOut
from frechet.report._sections import layer_tops, learning_rate, noise, slices
from frechet.report._settings import Settings
from frechet.report._spectra import density, eigenvalues, tighten, traces
from frechet.space._group import is_shared

# the stages in order, each with its share of a budget
WEIGHTS: dict[str, float] = {
    "check": 0.1,
    "Gauss-Newton eigenvalues": 1.0,
    "Gauss-Newton traces": 2.0,
    "Gauss-Newton density": 1.5,
    "Hessian eigenvalues": 2.5,
    "Hessian traces": 2.5,
    "Hessian density": 2.0,
    "layer eigenvalues": 1.0,
    "gradient noise": 0.6,
    "learning rate": 0.8,
    "loss slices": 0.3,
}
# products without which a stage has no result; of the last three the time that they take, in products
LEASTS = {
    "Gauss-Newton eigenvalues": 6,
    "Gauss-Newton traces": 4,
    "Gauss-Newton density": 8,
    "Hessian eigenvalues": 8,
    "Hessian traces": 4,
    "Hessian density": 8,
    "layer eigenvalues": 4,
    "gradient noise": 8,
    "learning rate": 9,
    "loss slices": 6,
}
ROUNDS = 4  # times that a stage is worked on at most: shares double where half of the stages are done
SPENT = 0.05  # of a budget; less than this is left where a section is missing
SENTENCE = 240  # characters of a reason

EXPECTED = (ValueError, TypeError, NotDifferentiable, NonFinite, UnusableObjective)


@dataclass
class Work:
    """What the stages share."""

    objective: Objective
    settings: Settings
    run: Run
    operators: Operators
    plain: bool  # whether memory ran out while products were recorded
    whole: bool  # whether batches can still be cut
    failed: set[str] = field(default_factory=set)  # stages that cannot be measured at all


def measure(objective: Objective, settings: Settings, run: Run) -> None:
    """Fill `run.results`, stage by stage.

    Where memory runs out, products are no longer recorded; where it still does, batches are cut.
    """
    plain = False
    while True:
        size = _largest_batch(objective) if objective.group is None else 1
        try:
            _measured(objective, settings, run, plain, size > 1)
            break
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not ran_out(error):
                raise
        if not plain:
            plain = True
            continue
        objective = objective.in_pieces(size // 2)
        why = f"memory ran out with {size} examples at once; they were taken {size // 2} at a time, "
        why += "which changes no number"
        run.left_out.append(LeftOut("whole batches", why))
    if run.meter.at_once is not None:
        run.leave_out(
            "whole blocks", f"memory ran out; at most {run.meter.at_once} vectors went at once, which changes no number"
        )
    if set(run.results) == {"check"} and run.left_out and not run.bounded:
        raise UnusableObjective(f"report: nothing could be measured: {run.left_out[0].why}")


def _measured(objective: Objective, settings: Settings, run: Run, plain: bool, whole: bool) -> None:
    checked = run.stage("check", lambda _observe, _resume: _usable(objective, settings, run))
    run.open.discard("check")
    run.leasts = LEASTS
    run.users = {n: "Hessian" if n.startswith(("Hessian", "layer")) else "Gauss-Newton" for n in LEASTS}
    run.meter.times.setdefault("Gauss-Newton", [(1, checked["seconds"])])
    with Remembered(objective.snapshot(pieces=True)), Operators(objective, run, checked["route"], plain) as operators:
        work = Work(objective, settings, run, operators, plain, whole)
        for _ in range(ROUNDS):
            open_before, left = set(run.open), run.remaining()
            for stage, act in _stages(work).items():
                if stage in run.open:
                    _attempt(work, stage, act)
            if not run.bounded or not run.open or run.remaining() < SPENT:
                break
            if run.tight and run.open == open_before and run.remaining() == left:
                break
            run.tight = True
        if run.bounded and (run.left_out or run.open) and run.remaining() > SPENT:
            _attempt(work, "Hessian traces", lambda: tighten(work.operators, settings, run, SPENT))


def _stages(work: Work) -> dict[str, Callable[[], None]]:
    o, s, run, operators = work.objective, work.settings, work.run, work.operators
    made: dict[str, Callable[[], None]] = {}
    for name, which in (("Gauss-Newton", "largest"), ("Hessian", "both")):
        made[f"{name} eigenvalues"] = lambda name=name, which=which: eigenvalues(operators, name, which, s, run)
        made[f"{name} traces"] = lambda name=name: traces(operators, name, s, run)
        made[f"{name} density"] = lambda name=name: density(operators, name, s, run)
    made["layer eigenvalues"] = lambda: layer_tops(operators, s, run)
    made["gradient noise"] = lambda: noise(o, s, run)
    made["learning rate"] = lambda: learning_rate(o, s, run)
    made["loss slices"] = lambda: slices(o, s, run)
    return made


def _attempt(work: Work, stage: str, act: Callable[[], None]) -> None:
    """Do a stage; whatever it fails by costs its own section."""
    run = work.run
    try:
        act()
    except LostRank:
        raise
    except Exception as error:
        if ran_out(error) and work.whole:
            raise  # to be tried again with less at once
        if run.group is not None and not (isinstance(error, EXPECTED) or is_shared(error)):
            raise  # the other processes may be waiting elsewhere
        work.operators.forget()
        run.open.discard(stage)
        run.partial.pop(stage, None)
        if stage not in run.results:
            run.leave_out(stage, reason(error))


def reason(error: BaseException) -> str:
    """What an error says, in one line that ends where a sentence does."""
    text = " ".join(str(error).split())
    if not isinstance(error, EXPECTED):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if len(text) <= SENTENCE:
        return text
    ends = [m.end() for m in re.finditer(r"[.;:!?](?=\s)", text[:SENTENCE])]
    if ends and ends[-1] > SENTENCE // 4:
        return text[: ends[-1]].rstrip(";: ")
    return text[:SENTENCE].rsplit(" ", 1)[0] + " ..."


def _usable(objective: Objective, settings: Settings, run: Run) -> Mapping[str, Any]:
    """What the check found; whatever it fails by is one sentence."""
    try:
        return _checked(objective, settings, run)
    except (*EXPECTED, LostRank, OSError):
        raise
    except Exception as error:
        if ran_out(error):
            raise
        raise UnusableObjective(f"check: the model, the criterion or the data raised {reason(error)}") from error


def _checked(objective: Objective, settings: Settings, run: Run) -> Mapping[str, Any]:
    found = objective.check()
    gradient = objective.gradient()
    route: Route = chosen(settings.route, objective.model, "report", gauss_newton=True)
    vector = objective.space.random(0, 0)
    make: Callable[..., LinearOperator] = gauss_newton

    def product(route: Route) -> None:
        A = make(objective, route=route)
        _ = metered(A, run.meter, alone=run.group is None, name="Gauss-Newton") @ vector

    try:
        product(route)  # it loads, compiles and allocates what later ones reuse
    except UnusableObjective:  # this criterion has no Gauss-Newton operator: its sections say why, the others arrive
        make = hessian
        product(route)
    except NotDifferentiable:
        if route == "reverse" or settings.route is not None:
            raise
        route = "reverse"  # an operation without forward mode; the header says which route was taken
        product(route)
    choosing = run.group is None and not threads.fixed(settings.threads) and (run.products or 1000) > 50
    told, counted = "", run.meter.products
    if choosing:
        told = threads.faster(lambda: product(route))
        # slow products are timed once each and not twice: the count must not depend on the machine
        run.meter.products = counted + threads.PRODUCTS
        run.meter.times["Gauss-Newton"] = []
    if run.seconds is not None:
        product(route)
    run.meter.passes += 6  # a value, two compared passes, their split, the model's own loss at most, a gradient
    rate = run.meter.rate("Gauss-Newton") or 0.0
    norm = float(objective.space.norm(gradient))
    sizes = list(objective.space.sizes)
    return {
        "check": found,
        "gradient_norm": norm,
        "route": str(route),
        "seconds": rate,
        "threads": told,
        "sizes": sizes,
    }


def _largest_batch(objective: Objective) -> int:
    """The most examples in a batch: the length of its first tensor that has one."""
    sizes = [1]
    for batch in objective.batches():
        leaves = [t for t in tree_leaves((batch.targets, batch.inputs)) if getattr(t, "ndim", 0) > 0]
        sizes += [leaves[0].shape[0]] if leaves else []
    return max(sizes)
