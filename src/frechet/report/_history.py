"""The page of a training run: curves of a monitor's readings against their limits, and what they say in sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from frechet.analyze import History, Quantity
from frechet.report import _history_plots as plots
from frechet.report import _numbers as numbers

TEMPLATE = "history.html.j2"
PAGE = "template.html.j2"  # whose style this page takes
EDGE = 0.95  # of the limit, from which a run counts as at the edge of stability
FAR = 20.0  # times the rate, beyond which the curvature at the point says nothing of what a step meets
SHOWN = 8  # notes that are told


@dataclass(frozen=True)
class Row:
    """One reading as a line of the table."""

    step: str
    loss: str
    rate: str
    cells: tuple[str, ...]
    cost: str


def page(history: History, name: str) -> str:
    """Return the text of a self-contained ``history.html``."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = files("frechet.report").joinpath(PAGE).read_text("utf-8")
    text = files("frechet.report").joinpath(TEMPLATE).read_text("utf-8")
    measured = [n for n in plots.TITLES if history.series(n)]
    figures = [(title, Markup(svg), caption) for title, svg, caption in plots.figures(history) if svg is not None]
    return environment.from_string(text).render(
        style=Markup(style[style.index("<style>") : style.index("</style>") + len("</style>")]),
        name=name,
        model=history.header.get("model", "a model"),
        facts=_facts(history),
        said=[numbers.typeset(s) for s in sentences(history)],
        figures=figures,
        columns=[plots.TITLES[n] for n in measured],
        rows=_rows(history, measured),
        notes=notes(history),
    )


def sentences(history: History) -> list[str]:
    """What the readings say, in the order in which one asks."""
    if not history.readings:
        return ["Nothing has been measured yet."]
    return [
        *_of_stability(history),
        *_of_sharpness(history),
        *_of_rate(history),
        *_of_noise(history),
        *_of_cost(history),
    ]


def _of_stability(history: History) -> list[str]:
    series = history.series("stability") or _over_limits(history)
    rule = next((r.rule for r in reversed(history.readings) if r.rule), None)
    if not series:
        why = "no rule of the optimizer was" if rule is None else "its quantity 'stability' was not measured"
        return [f"How far the run is from its stability limit is not known: {why}."]
    step, last = series[-1]
    said = []
    if last.lower > 1.1:
        said.append(
            f"At step {numbers.count(step)} the step of {rule} is {_bar(last)} times as long as is stable along the "
            "sharpest direction: lower the learning rate, or wait whether the curvature falls."
        )
    elif last.upper >= EDGE:
        said.append(
            f"At step {numbers.count(step)} the run is at the edge of stability of {rule}: {_bar(last)} of the limit. "
            "A longer step makes the loss oscillate along the sharpest direction."
        )
    elif last.value > 0:
        told = "curvature does not limit the learning rate here."
        if 1 / last.value < FAR:
            times = numbers.number(1 / last.value, 2)
            told = f"the learning rate could be {times} times as large before the sharpest direction turns unstable."
        step_of = f"At step {numbers.count(step)} the step of {rule} is {_bar(last)}"
        said.append(f"{step_of} of the longest stable one: {told}")
    first = next((s for s, q in series if q.upper >= EDGE), None)
    if first is not None and first != step:
        share = sum(q.upper >= EDGE for _, q in series) / len(series)
        said.append(
            f"It was at the edge first at step {numbers.count(first)}, and in {numbers.percent(share)} of the readings."
        )
    beyond = [(s, q) for s, q in series if q.lower > 1.1]
    if beyond:
        at, most = max(beyond, key=lambda pair: pair[1].value)
        said.append(
            f"The farthest beyond the limit was step {numbers.count(at)}: {_bar(most)} times the longest stable step."
        )
    return said


def _over_limits(history: History) -> list[tuple[int, Quantity]]:
    """The sharpness over its limit, where the optimizer has one limit for all parameters."""
    return [
        (step, Quantity(q.value / q.limit, q.lower / q.limit, q.upper / q.limit, 1.0, q.residual))
        for step, q in history.series("sharpness")
        if q.limit is not None and 0 < q.limit < math.inf
    ]


def _of_sharpness(history: History) -> list[str]:
    series = history.series("sharpness")
    if len(series) < 2:
        return []
    (first, a), (last, b) = series[0], series[-1]
    change = "rose" if b.lower > a.upper else "fell" if b.upper < a.lower else "is not told apart"
    if change == "is not told apart":
        told = f"The sharpness at steps {numbers.count(first)} and {numbers.count(last)} is not told apart: {_bar(b)}."
    else:
        begun, ended = f"{_bar(a)} at step {numbers.count(first)}", f"{_bar(b)} at step {numbers.count(last)}"
        told = f"The sharpness {change} from {begun} to {ended}."
    loose = sum((q.residual or 0.0) > float(history.header.get("rtol", 0.02)) for _, q in series)
    return [
        told,
        *(
            [f"{numbers.plural(loose, 'reading')} ended before the eigenvalue was known to its tolerance."]
            * (loose > 0)
        ),
    ]


def _of_rate(history: History) -> list[str]:
    rose = [r.step for r in history.readings if any("raises the loss" in w for w in r.warnings)]
    told = [f"A step at the rate in use would raise the probe's loss at {_times(rose)}."] if rose else []
    for reading in reversed(history.readings):
        found = reading.quantities.get("critical_rate")
        if found is None or reading.rate is None or not found.lower > 0:
            continue
        compared = "below" if found.lower > reading.rate else "above" if found.upper < reading.rate else "at"
        return [
            f"At step {numbers.count(reading.step)} the optimizer's own step lowers the probe's loss up to a learning "
            f"rate between {numbers.number(found.lower)} and {numbers.number(found.upper)}; the rate in use, "
            f"{numbers.number(reading.rate)}, is {compared} it.",
            *told,
        ]
    return told


def _of_noise(history: History) -> list[str]:
    series = history.series("noise")
    if not series:
        return []
    step, last = series[-1]
    if not math.isfinite(last.upper):
        return [f"At step {numbers.count(step)} the probe is too small to tell the gradient noise scale."]
    return [
        f"At step {numbers.count(step)} the gradient noise scale is between {numbers.number(last.lower, 2)} and "
        f"{numbers.number(last.upper, 2)} examples: larger batches than that buy little."
    ]


def _of_cost(history: History) -> list[str]:
    last = history.readings[-1]
    seconds = sum(r.seconds for r in history.readings)
    products = sum(r.products for r in history.readings)
    cap = history.header.get("share")
    limit = f" of at most {numbers.percent(cap)}" if isinstance(cap, float) else ""
    return [
        f"The {numbers.plural(len(history.readings), 'reading')} took {numbers.plural(products, 'Hessian product')} "
        f"and {numbers.seconds(seconds)}: {numbers.percent(last.share)} of the run's time{limit}."
    ]


def notes(history: History) -> list[str]:
    """What the readings leave out and why, each once, with the steps."""
    seen: dict[str, list[int]] = {}
    for reading in history.readings:
        for note in reading.notes:
            seen.setdefault(note, []).append(reading.step)
    told = [f"{_times(steps).capitalize()}: {note}" for note, steps in seen.items()]
    left = len(told) - SHOWN
    return told[:SHOWN] + ([f"and {numbers.plural(left, 'other note')} in the file"] if left > 0 else [])


def _times(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"step {numbers.count(steps[0])}"
    return f"{numbers.count(len(steps))} readings, steps {numbers.count(steps[0])} to {numbers.count(steps[-1])}"


def _bar(q: Quantity) -> str:
    return numbers.bracketed(q.value, q.lower, q.upper) if math.isfinite(q.value) else numbers.number(q.value)


def _facts(history: History) -> str:
    header = history.header
    every, share, pace = header.get("every"), header.get("share"), ""
    if every:
        pace = f"every {numbers.plural(every, 'step')}"
    elif share:
        pace = f"within {numbers.percent(share)} of the time"
    size = header.get("parameters")
    counted = f"{numbers.count(size)} parameters" if isinstance(size, int) else ""
    return ", ".join(
        part for part in (counted, f"measured {pace}" if pace else "", f"seed {header.get('seed')}") if part
    )


def _rows(history: History, measured: list[str]) -> list[Row]:
    def cell(q: Quantity | None) -> str:
        return "" if q is None else numbers.typeset(_bar(q))

    def plain(x: float | None) -> str:
        return "" if x is None else numbers.typeset(numbers.number(x, 4))

    return [
        Row(
            numbers.count(r.step), plain(r.loss), plain(r.rate), tuple(cell(r.quantities.get(n)) for n in measured),
            f"{numbers.plural(r.products, 'product')}, {numbers.seconds(r.seconds)}",
        )
        for r in history.readings
    ]  # fmt: skip
