"""The pictures of the report: each function takes one section and returns one inline SVG element.

Lines differ in dash and marker as well as in color, and error bars are drawn wherever a number has one. Names come from
the user's model, so they are never read as mathematics (``$``) or markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from frechet.report._names import shortened
from frechet.report._numbers import number, short, typeset
from frechet.report._schema import Curvature, Density, Eigenvalue, Layers, LearningRate, Measured, Slice
from frechet.report._svg import BLUE, GREEN, INK, MUTED, ORANGE, PAPER, inline_svg, style

WIDTH = 5.5  # inches; the page scales the picture, this sets the size of its text
BARS = 24  # layers drawn at most


def density(curvature: Curvature, name: str, label: str) -> str | None:
    """Spectral density with its band, computed eigenvalues above it; None without a density."""
    d, found = curvature.density, curvature.eigenvalues
    if d is None or len(d.grid) < 2:
        return None
    eigenvalues = () if found is None else found.largest + found.smallest
    with style(name):
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        strip, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 6.5))
        _strip(strip, eigenvalues)
        _curve(axes, d, curvature.dimension)
        _spectrum_axis(axes, d, eigenvalues)
        axes.set_xlabel("eigenvalue")
        axes.set_ylabel("density")
        return inline_svg(figure, name, label)


def layers(section: Layers, name: str, label: str) -> str | None:
    """Each layer's share of the trace as a bar with its interval, its share of the parameters as a diamond.

    Where the whole trace may be zero there are no shares: the bars are the traces themselves.
    """
    shares = all(math.isfinite(x.share.upper - x.share.lower) for x in section.layers)
    numbers = {x.name: x.share if shares else x.trace for x in section.layers}
    shown = [x for x in section.layers if math.isfinite(numbers[x.name].value)]
    order = sorted(range(len(shown)), key=lambda i: -abs(numbers[shown[i].name].value))[:BARS]
    shown = [shown[i] for i in sorted(order)]
    if not shown:
        return None
    total, factor = max(1, sum(x.size for x in section.layers)), 100 if shares else 1
    with style(name):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.25 * len(shown)), layout="constrained")
        axes = figure.subplots()
        rows, drawn = np.arange(len(shown)), [numbers[x.name] for x in shown]
        values = np.array([factor * m.value for m in drawn])
        axes.barh(rows, values, height=0.62, color=BLUE, alpha=0.75, label="share of the trace" if shares else "trace")
        axes.errorbar(values, rows, xerr=_errors(drawn, factor), fmt="none", ecolor=INK, elinewidth=1)
        if shares:
            axes.plot([100 * x.size / total for x in shown], rows, "D", ms=4.5, mfc=PAPER, mec=ORANGE, mew=1.3)
            axes.plot([], [], "D", ms=4.5, mfc=PAPER, mec=ORANGE, mew=1.3, label="share of the parameters")
        axes.set_yticks(rows, shortened([x.name for x in shown]))
        for tick in axes.yaxis.get_major_ticks():
            tick.label1.set_parse_math(False)  # a "$" in a name is a dollar
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=MUTED, lw=0.7)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: typeset(f"{short(x)} %" if shares else short(x))))
        figure.legend(loc="outside upper center", ncols=2)
        return inline_svg(figure, name, label)


def sgd(section: LearningRate, name: str, label: str) -> str | None:
    """Upper bounds on the learning rate against the batch size, both axes logarithmic."""
    curves = [
        ("trace condition", BLUE, "o", "-", [(b.batch_size, b.identity) for b in section.sgd]),
        ("top-eigenvector condition", ORANGE, "s", "--", [(b.batch_size, b.top) for b in section.sgd]),
    ]
    with style(name):
        figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
        axes = figure.subplots()
        drawn = False
        for title, color, marker, dash, points in curves:
            kept = [(size, m) for size, m in points if m is not None and 0 < m.value < math.inf]
            if not kept:
                continue
            drawn = True
            sizes, bounds = [size for size, _ in kept], [m for _, m in kept]
            values = [m.value for m in bounds]
            axes.errorbar(sizes, values, _errors(bounds), fmt="none", ecolor=color, capsize=3, elinewidth=1.2)
            axes.plot(sizes, values, dash, marker=marker, color=color, ms=5, mfc=PAPER, mew=1.4, label=title)
        if not drawn:
            return None
        limit = section.gradient_descent
        if limit is not None and 0 < limit.value < math.inf:
            axes.axhline(limit.value, color=GREEN, lw=1.3, ls=":", label="gradient descent, all the data")
        if section.current is not None and section.current > 0:
            axes.axhline(section.current, color=INK, lw=1, ls="-.", label="learning rate in use")
        axes.set_xscale("log")
        axes.set_yscale("log")
        sizes = sorted({b.batch_size for b in section.sgd})
        axes.set_xticks(sizes if len(sizes) <= 8 else sizes[:: -(-len(sizes) // 8)])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        _log_ticks(axes)
        axes.set_xlabel("batch size (examples)")
        axes.set_ylabel("learning rate, at most")
        figure.legend(loc="outside upper center", ncols=2)
        return inline_svg(figure, name, label)


def loss_slice(section: Slice, name: str, label: str) -> str | None:
    """The loss along one direction and its quadratic model; points where the loss is not finite are left out."""
    alpha, loss, quadratic = (np.array(x, dtype=float) for x in (section.alpha, section.loss, section.quadratic))
    seen = np.isfinite(loss)
    if seen.sum() < 2:
        return None
    with style(name):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, lw=0.7)
        axes.plot(alpha[seen], loss[seen], color=BLUE, marker="o", ms=2.6, label="loss")
        axes.plot(alpha, quadratic, color=ORANGE, ls="--", label="quadratic model")
        low, high = loss[seen].min(), loss[seen].max()
        spread = max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-300)
        model = quadratic[np.isfinite(quadratic)]
        bottom = max(min(low, model.min(initial=low)), low - 0.6 * spread)
        top = min(max(high, model.max(initial=high)), high + 0.6 * spread)
        axes.set_ylim(bottom - 0.06 * spread, top + 0.06 * spread)
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda y, _: typeset(number(y, 4) if spread < abs(y) else short(y)))
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: typeset(short(x))))
        axes.set_xlabel("distance \N{GREEK SMALL LETTER ALPHA} along the eigenvector")
        axes.set_ylabel("loss")
        figure.legend(loc="outside upper center", ncols=2)
        return inline_svg(figure, name, label)


def _strip(axes: Axes, eigenvalues: Sequence[Eigenvalue]) -> None:
    """The computed eigenvalues on one line, residuals as bars; hollow where the pair did not converge."""
    for converged in (True, False):
        kept = [e for e in eigenvalues if e.converged is converged and math.isfinite(e.value)]
        if kept:
            axes.errorbar(
                [e.value for e in kept],
                [0.0] * len(kept),
                xerr=[e.residual if math.isfinite(e.residual) else 0.0 for e in kept],
                fmt="o" if converged else "D",
                ms=5,
                color=ORANGE,
                mfc=ORANGE if converged else PAPER,
                mew=1.2,
                alpha=0.85,
                elinewidth=1.4,
                capsize=3,
            )
    axes.set_ylim(-1, 1)
    axes.set_yticks([0], ["computed" if eigenvalues else ""])
    axes.tick_params(axis="both", length=0, labelbottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(False)


def _curve(axes: Axes, d: Density, dimension: int) -> None:
    grid, value, lower, upper = (np.array(x, dtype=float) for x in (d.grid, d.value, d.lower, d.upper))
    peak = max(value[np.isfinite(value)].max(initial=0.0), 1e-300)
    one = 1 / (max(1, dimension) * d.width * math.sqrt(2 * math.pi)) if d.width > 0 else peak * 1e-6
    floor = min(0.3 * one, 0.1 * peak)
    axes.fill_between(grid, np.maximum(lower, floor), np.maximum(upper, floor), color=BLUE, alpha=0.28, lw=0)
    axes.plot(grid, np.maximum(value, floor), color=BLUE, lw=1.4)
    axes.set_yscale("log")
    axes.set_ylim(floor, 3 * max(peak, upper[np.isfinite(upper)].max(initial=0.0)))
    _log_ticks(axes)


def _spectrum_axis(axes: Axes, d: Density, eigenvalues: Sequence[Eigenvalue]) -> None:
    """A linear axis, or one that is logarithmic away from zero where the spectrum spans more than two decades."""
    ends = [d.grid[0], d.grid[-1], *(e.value + s * e.residual for e in eigenvalues for s in (-1, 1))]
    ends = [x for x in ends if math.isfinite(x)]
    low, high = min(ends), max(ends)
    reach = max(abs(low), abs(high))
    threshold = 10.0 ** math.ceil(math.log10(max(2 * d.width, 1e-6 * reach))) if reach > 0 else 1.0
    if reach < 30 * threshold:
        margin = 0.02 * (high - low) or 1.0
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: typeset(short(x))))
        return
    axes.set_xscale("symlog", linthresh=threshold, linscale=0.7)
    axes.set_xlim(*(x * 1.3 if abs(x) > threshold else x - s * 0.3 * threshold for x, s in ((low, 1), (high, -1))))
    ticks = [0.0]
    for sign, end in ((1, high), (-1, -low)):
        decades = range(round(math.log10(threshold)), math.floor(math.log10(end)) + 1 if end >= threshold else -1000)
        ticks += [sign * 10.0**e for e in list(decades)[:: -(-len(decades) // 4) or 1]]
    axes.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: typeset(short(x))))


def _log_ticks(axes: Axes) -> None:
    """At most six decades on the vertical axis, or 1-2-5 steps where it spans less than two."""
    low, high = axes.get_ylim()
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    ticks = [s * 10.0**e for e in range(first, last + 1, max(1, -(-(last - first) // 6))) for s in steps]
    axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: typeset(short(y))))


def _errors(numbers: Sequence[Measured], factor: float = 1.0) -> np.ndarray:
    """(2, k) lengths of error bars; an infinite end is drawn as no bar on that side."""
    below = [m.value - m.lower for m in numbers]
    above = [m.upper - m.value for m in numbers]
    lengths = factor * np.array([below, above], dtype=float)
    return np.where(np.isfinite(lengths), np.maximum(lengths, 0.0), 0.0)
