"""Two reports side by side: each number of both, and whether their intervals tell them apart."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from frechet.report import _numbers as numbers
from frechet.report import _plots as plots
from frechet.report import _sentences as sentences
from frechet.report._page import share
from frechet.report._schema import Eigenvalue, Measured, Report
from frechet.report._serialize import from_json

TEMPLATE = "compare.html.j2"
PAGE = "template.html.j2"  # whose style this page takes


@dataclass(frozen=True)
class Compared:
    """Two reports and the files that they were read from."""

    first: Report
    second: Report
    names: tuple[str, str]

    @classmethod
    def read(cls, first: Path, second: Path) -> Compared:
        """Read two ``report.json``. Raises ValueError with one sentence that names the file."""
        return cls(_read(first), _read(second), (str(first), str(second)))


@dataclass(frozen=True)
class Pair:
    """One number of both reports, as text; `change` says what became of it."""

    name: str
    first: str
    second: str
    change: str


def compared(found: Compared) -> str:
    """Return the text of a self-contained ``compare.html``."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = files("frechet.report").joinpath(PAGE).read_text("utf-8")
    text = files("frechet.report").joinpath(TEMPLATE).read_text("utf-8")
    both = (found.first, found.second)
    return environment.from_string(text).render(
        style=Markup(page[page.index("<style>") : page.index("</style>") + len("</style>")]),
        names=found.names,
        titles=[r.header.title for r in both],
        dates=[r.header.date for r in both],
        remarks=remarks(found),
        meanings=[" ".join(sentences.meaning(r)) for r in both],
        numbers=headlines(found),
        layers=layers(found),
        densities=[_density(r, i) for i, r in enumerate(both)],
    )


def remarks(found: Compared) -> list[str]:
    """What makes the two reports hard to compare, one sentence each."""
    a, b = found.first.header, found.second.header
    said = []
    if a.model.trainable != b.model.trainable:
        counts = f"{numbers.count(a.model.trainable)} and {numbers.count(b.model.trainable)}"
        said.append(f"The models have different numbers of trainable parameters, {counts}.")
    if (a.data.examples, a.data.terms) != (b.data.examples, b.data.terms):
        told = [
            f"{numbers.plural(d.examples, 'example')} with {numbers.plural(d.terms, 'term')}" for d in (a.data, b.data)
        ]
        said.append(f"The data are not the same: {told[0]}, and {told[1]}.")
    if a.criterion != b.criterion:
        said.append(f"The losses differ: {a.criterion} and {b.criterion}.")
    return said


def headlines(found: Compared) -> list[Pair]:
    """The headline numbers of both."""
    a, b = found.first, found.second
    plain = [("Loss", a.header.loss, b.header.loss), ("Gradient norm", a.header.gradient_norm, b.header.gradient_norm)]
    rows = [Pair(name, numbers.number(x, 4), numbers.number(y, 4), _ratio(x, y)) for name, x, y in plain]
    for name, pick in _EIGENVALUES.items():
        rows += _eigenvalues(name, pick(a), pick(b))
    for name, pick in _MEASURED.items():
        rows += _measured(name, pick(a), pick(b))
    typeset = numbers.typeset
    return [Pair(r.name, typeset(r.first), typeset(r.second), typeset(r.change)) for r in rows]


def layers(found: Compared) -> list[Pair]:
    """The layers that both have: their shares, largest first by the second report."""
    if found.first.layers is None or found.second.layers is None:
        return []
    first = {x.name: x for x in found.first.layers.layers}
    both = [(first[x.name], x) for x in found.second.layers.layers if x.name in first]
    both.sort(key=lambda pair: -pair[1].share.value if math.isfinite(pair[1].share.value) else 0.0)
    return [
        Pair(x.name, numbers.typeset(share(x.share)), numbers.typeset(share(y.share)), _change(x.share, y.share))
        for x, y in both
    ]


def _end(r: Report, kind: str, end: str) -> Eigenvalue | None:
    curvature = r.hessian if kind == "hessian" else r.gauss_newton
    pairs = None if curvature is None else curvature.eigenvalues
    values = () if pairs is None else pairs.largest if end == "largest" else pairs.smallest
    return values[0] if values else None


_EIGENVALUES = {
    "Largest Hessian eigenvalue": lambda r: _end(r, "hessian", "largest"),
    "Most negative": lambda r: _end(r, "hessian", "smallest"),
    "Largest Gauss-Newton eigenvalue": lambda r: _end(r, "gauss_newton", "largest"),
}
_MEASURED = {
    "Hessian trace": lambda r: None if r.hessian is None else r.hessian.trace,
    "Gauss-Newton trace": lambda r: None if r.gauss_newton is None else r.gauss_newton.trace,
    "Hessian Frobenius norm": lambda r: None if r.hessian is None else r.hessian.frobenius_norm,
    "Hessian stable rank": lambda r: None if r.hessian is None else r.hessian.stable_rank,
    "Stable learning rate, at most": lambda r: None if r.learning_rate is None else r.learning_rate.gradient_descent,
    "Gradient noise scale": lambda r: None if r.noise is None else r.noise.noise_scale,
    "Critical batch size": lambda r: None if r.noise is None else r.noise.critical_batch_size,
}


def _eigenvalues(name: str, x: Eigenvalue | None, y: Eigenvalue | None) -> list[Pair]:
    if x is None and y is None:
        return []
    first, second = (_ABSENT if e is None else numbers.headline_eigenvalue(e) for e in (x, y))
    if x is None or y is None:
        return [Pair(name, first, second, "")]
    apart = abs(x.value - y.value) > x.residual + y.residual
    return [Pair(name, first, second, _ratio(x.value, y.value, x.residual, y.residual) if apart else _SAME)]


def _measured(name: str, x: Measured | None, y: Measured | None) -> list[Pair]:
    if x is None and y is None:
        return []
    first, second = (_ABSENT if m is None else numbers.headline(m) for m in (x, y))
    return [Pair(name, first, second, "" if x is None or y is None else _change(x, y))]


_ABSENT = "not measured"
_SAME = "not told apart"


def _change(x: Measured, y: Measured) -> str:
    """What became of a number: nothing that the intervals would tell apart, or the ratio."""
    if not (x.upper < y.lower or y.upper < x.lower):
        return _SAME
    return _ratio(x.value, y.value, max(x.upper - x.value, 0.0), max(y.upper - y.value, 0.0))


def _ratio(x: float, y: float, error_x: float = 0.0, error_y: float = 0.0) -> str:
    """The second as a multiple of the first, where both have one sign and are told from zero."""
    known = math.isfinite(x) and math.isfinite(y) and abs(x) > error_x and abs(y) > error_y
    if not known or x * y <= 0:
        return "rose" if y > x else "fell" if y < x else ""
    return f"× {numbers.number(y / x, 3)}"


def _density(r: Report, i: int) -> Markup | None:
    if r.hessian is None:
        return None
    svg = plots.density(r.hessian, f"density-{i}", f"Spectral density of the Hessian. {sentences.density(r.hessian)}")
    return None if svg is None else Markup(svg)


def _read(path: Path) -> Report:
    if not path.is_file():
        raise ValueError(f"compare: file '{path}' does not exist; give the report.json of a report")
    try:
        tree = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"compare: '{path}' is not JSON; give the report.json of a report") from error
    try:
        return from_json(tree)
    except ValueError as error:
        raise ValueError(f"compare: '{path}': {error}") from error
