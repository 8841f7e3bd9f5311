"""The report as one HTML page that needs nothing else: no script, no font, no picture, no address from outside.

The page is a template filled with text that is escaped there (names come from the user's model and files), pictures
(`plots`), and sentences computed from the numbers (`sentences`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from frechet.report import _numbers as numbers
from frechet.report import _plots as plots
from frechet.report import _sentences as sentences
from frechet.report._names import common_prefix
from frechet.report._schema import Cost, Curvature, Eigenvalue, Measured, Report

TEMPLATE = "template.html.j2"
GLOSSARY = {
    "Hessian": "The matrix of second derivatives of the loss by the parameters: how the gradient changes as they move.",
    "Gauss-Newton": "The Hessian without the curvature of the model itself: J' C J with the model's Jacobian J and the "
    "Hessian C of the loss by the outputs. It has no negative eigenvalue where the loss is convex in the outputs.",
    "Eigenvalue": "The curvature of the loss along one of the directions that the matrix only stretches.",
    "Residual": "|A v - λ v| of a computed pair: an eigenvalue lies at most this far from λ.",
    "Spectral density": "How the eigenvalues are distributed, as a histogram would show it, but smoothed.",
    "Trace": "The sum of all eigenvalues.",
    "Frobenius norm": "The root of the sum of all squared eigenvalues.",
    "Stable rank": "Squared Frobenius norm over squared largest absolute eigenvalue: how many directions share the "
    "curvature, at least 1.",
    "Share": "A layer's part of the trace of the Gauss-Newton matrix, whose parts are never negative.",
    "Effective dimension": "How many directions have curvature well above a given damping, each counted by the part "
    "that it keeps.",
    "Noise scale": "Variance of an example's gradient over the squared norm of the mean gradient, in examples.",
    "Critical batch size": "The same with both weighted by the Hessian: the batch size at which noise costs as much "
    "progress as it leaves.",
    "Product": "One multiplication of the matrix by a vector over all the data; it costs two to four gradients.",
    "Interval": "[a, b] or ± covers the true value with 95 % probability over the random probes, or surely where it "
    "comes from a residual. It does not count what another sample of data would change.",
}


@dataclass(frozen=True)
class Row:
    """One number of a table: its name, the text of the number, how it was found, what it cost."""

    name: str
    value: str
    method: str = ""
    cost: Cost | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    svg: Markup | None
    title: str
    sentence: str


def render(report: Report) -> str:
    """`report` as the text of a self-contained ``index.html``."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        number=lambda x: numbers.typeset(numbers.number(x)),
        measured=lambda m: numbers.typeset(numbers.measured(m)),
        eigenvalue=lambda e: numbers.typeset(numbers.eigenvalue(e)),
        share=lambda m: numbers.typeset(share(m)),
        top=lambda e: numbers.typeset(numbers.headline_eigenvalue(e)),
        cost=lambda c: numbers.typeset(numbers.cost(c)),
        headline=lambda m: numbers.typeset(numbers.headline(m)),
        percent=lambda x: numbers.typeset(numbers.percent(x)),
        count=lambda n: numbers.typeset(numbers.count(n)),
        seconds=lambda t: numbers.typeset(numbers.seconds(t)),
        size=lambda n: numbers.typeset(numbers.size(n)),
        plural=lambda n, noun: numbers.typeset(numbers.plural(n, noun)),
    )
    text = files("frechet.report").joinpath(TEMPLATE).read_text("utf-8")
    return environment.from_string(text).render(
        report=report,
        header=report.header,
        meaning=sentences.meaning(report),
        summary=summary(report),
        missing=_missing(report),
        curvatures=[_curvature_view(c) for c in (report.hessian, report.gauss_newton) if c is not None],
        pairs=_pairs(report),
        layers=_layers_picture(report),
        sgd=_sgd_picture(report),
        interpolation="" if report.learning_rate is None else sentences.interpolation(report.learning_rate),
        learning_rate="" if report.learning_rate is None else sentences.learning_rate(report.learning_rate),
        noise="" if report.noise is None else sentences.noise(report.noise),
        noise_rows=_noise_rows(report),
        slices=_slice_pictures(report),
        glossary=GLOSSARY,
    )


def share(m: Measured) -> str:
    """A share in percent with its interval, or none where the whole may be zero."""
    if not math.isfinite(m.upper - m.lower):
        return "no share"
    in_percent = replace(m, value=100 * m.value, lower=100 * m.lower, upper=100 * m.upper, unit="%")
    return numbers.headline(in_percent)


def summary(report: Report) -> list[Row]:
    """The headline numbers, those that were measured, in the order in which a reader asks."""
    rows = []
    hessian, newton = report.hessian, report.gauss_newton
    pairs = None if hessian is None else hessian.eigenvalues
    if pairs is not None and pairs.largest:
        rows.append(_pair_row("Largest Hessian eigenvalue", pairs.largest[0], pairs.method, pairs.cost))
    if pairs is not None and pairs.smallest:
        rows.append(_pair_row("Most negative", pairs.smallest[0], pairs.method, pairs.cost))
    if newton is not None and newton.eigenvalues is not None and newton.eigenvalues.largest:
        found = newton.eigenvalues
        rows.append(_pair_row("Largest Gauss-Newton eigenvalue", found.largest[0], found.method, found.cost))
    if hessian is not None and hessian.trace is not None:
        rows.append(_row("Hessian trace", hessian.trace))
    if hessian is not None and hessian.stable_rank is not None:
        rows.append(_row("Hessian stable rank", hessian.stable_rank))
    if newton is not None and newton.effective_dimensions:
        first = newton.effective_dimensions[0]
        note = f"of {numbers.count(newton.dimension)}, damping {numbers.number(first.damping, 2)}"
        rows.append(_row("Effective dimension", first.number, numbers.typeset(note)))
    if report.learning_rate is not None and report.learning_rate.gradient_descent is not None:
        rows.append(_row("Stable learning rate, at most", report.learning_rate.gradient_descent, "gradient descent"))
    if newton is not None and newton.trace is not None:
        rows.insert(_after(rows, "Hessian trace"), _row("Gauss-Newton trace", newton.trace))
    if report.noise is not None:
        rows.append(_row("Gradient noise scale", report.noise.noise_scale))
    return rows


def _after(rows: list[Row], name: str) -> int:
    return next((i + 1 for i, row in enumerate(rows) if row.name == name), len(rows))


def _missing(report: Report) -> dict[str, str]:
    """Why each section without a number is empty, by the section's anchor."""
    reasons = {x.what: x.why for x in report.left_out}
    absent = {
        "spectrum": (report.hessian is None and report.gauss_newton is None, "Hessian eigenvalues"),
        "layers": (report.layers is None, "Gauss-Newton traces"),
        "learning-rate": (report.learning_rate is None, "Hessian eigenvalues"),
        "noise": (report.noise is None, "gradient noise"),
        "slices": (report.slices is None, "loss slices"),
    }
    return {
        place: f"Not measured: {reasons.get(stage, 'see below what was left out')}"
        for place, (gone, stage) in absent.items()
        if gone
    }


def _row(name: str, m: Measured, note: str = "") -> Row:
    return Row(name, numbers.typeset(numbers.headline(m)), m.method, m.cost, note)


def _pair_row(name: str, e: Eigenvalue, method: str, cost: Cost) -> Row:
    note = "" if e.converged else "not converged"
    return Row(name, numbers.typeset(numbers.headline_eigenvalue(e)), method, cost, note)


def _curvature_view(c: Curvature) -> dict[str, object]:
    name = sentences.NAMES[c.operator]
    label = f"Spectral density of the {name}"
    text = sentences.density(c)
    svg = plots.density(c, f"density-{c.operator}".replace("_", "-"), f"{label}. {text}")
    rows = [
        _row(title, m)
        for title, m in (
            ("Trace", c.trace),
            ("Frobenius norm", c.frobenius_norm),
            ("Stable rank", c.stable_rank),
            *(
                (f"Effective dimension at damping {numbers.number(e.damping, 2)}", e.number)
                for e in c.effective_dimensions
            ),
        )
        if m is not None
    ]
    definitions = sorted({e.definition for e in c.effective_dimensions})
    return {
        "name": name,
        "dimension": c.dimension,
        "picture": Picture(_markup(svg), label, text),
        "sentence": sentences.eigenvalues(c),
        "eigenvalues": c.eigenvalues,
        "density": c.density,
        "rows": rows,
        "definitions": definitions,
        "wanted": None if c.wanted is None else sentences.round_up(c.wanted),
    }


def _pairs(report: Report) -> list[dict[str, object]]:
    """Rows of the table of eigenvalues: rank, then for each operator the pair of that rank."""
    columns = [c.eigenvalues for c in (report.hessian, report.gauss_newton) if c is not None]
    rows = []
    for title, end in (("largest", "largest"), ("smallest", "smallest")):
        lists = [() if e is None else e.largest if end == "largest" else e.smallest for e in columns]
        rows += [
            {"rank": f"{title} {i + 1}", "pairs": [x[i] if i < len(x) else None for x in lists]}
            for i in range(max(map(len, lists), default=0))
        ]
    return rows


def _layers_picture(report: Report) -> Picture | None:
    section = report.layers
    if section is None:
        return None
    text = sentences.layers(section)
    title = f"Each layer's part of the {sentences.NAMES[section.operator]} trace"
    left = len(section.layers) - plots.BARS
    if left > 0:
        title += f" (the {plots.BARS} largest; {left} more in the table)"
    prefix = common_prefix([x.name for x in section.layers])
    if prefix:
        title += f", names without “{prefix}”"
    return Picture(_markup(plots.layers(section, "layers", f"{title}. {text}")), title, text)


def _sgd_picture(report: Report) -> Picture | None:
    section = report.learning_rate
    if section is None or not section.sgd:
        return None
    text, title = sentences.sgd(section), "Learning rates above which SGD is unstable near such a minimum"
    return Picture(_markup(plots.sgd(section, "sgd", f"{title}. {text}")), title, text)


def _slice_pictures(report: Report) -> list[Picture]:
    if report.slices is None:
        return []
    pictures = []
    for i, x in enumerate(report.slices.slices):
        value = numbers.typeset(numbers.short(float(f"{x.eigenvalue:.3g}"))) if math.isfinite(x.eigenvalue) else "?"
        text, title = sentences.loss_slice(x), f"Along the eigenvector of the {x.direction} ({value})"
        pictures.append(Picture(_markup(plots.loss_slice(x, f"slice-{i}", f"{title}. {text}")), title, text))
    return pictures


def _noise_rows(report: Report) -> list[Row]:
    if report.noise is None:
        return []
    named = (
        ("Gradient noise scale", report.noise.noise_scale),
        ("Critical batch size", report.noise.critical_batch_size),
        ("Squared norm of the mean gradient (unbiased, so it may be negative)", report.noise.gradient_norm_squared),
        ("Variance of an example's gradient", report.noise.gradient_variance),
    )
    return [_row(name, m) for name, m in named if m is not None]


def _markup(svg: str | None) -> Markup | None:
    """`svg` as it is: our own drawing, in which matplotlib's writer has escaped every name."""
    return None if svg is None else Markup(svg)
