"""The pictures of a training run: each quantity over the steps, with its error bars and its limit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from frechet.analyze import History, Quantity
from frechet.report._numbers import short, typeset
from frechet.report._plots import WIDTH, _log_ticks
from frechet.report._svg import BLUE, GREEN, INK, ORANGE, PAPER, inline_svg, style

TITLES = {
    "stability": "Distance to the stability limit",
    "sharpness": "Sharpness",
    "batch_sharpness": "Batch sharpness",
    "critical_rate": "Critical rate",
    "noise": "Noise scale",
    "trace": "Trace",
}
CAPTIONS = {
    "stability": "The optimizer's step along the sharpest direction, in units of the longest stable one. Bars are "
    "residuals: an eigenvalue lies inside.",
    "sharpness": "The largest Hessian eigenvalue on the probe and the curvature along the probe batches' own "
    "gradients, beside the largest stable eigenvalue of the optimizer where it has one.",
    "critical_rate": "The learning rate at which the optimizer's own next step would raise the loss on the probe.",
    "noise": "The batch size at which the noise of a batch's gradient is as large as the gradient.",
    "trace": "The trace of the Hessian on the probe.",
    "loss": "The loss on the probe, which stays the same data.",
}


def figures(history: History) -> list[tuple[str, str | None, str]]:
    """Title, picture and caption of everything that was measured."""
    losses = [(r.step, r.loss) for r in history.readings if r.loss is not None and math.isfinite(r.loss)]
    rates = [(r.step, r.rate) for r in history.readings if r.rate]

    def curves(name: str, *labels: tuple[str, str, str], beside: Sequence[tuple[int, float]] = ()) -> str | None:
        return _curves(name, [(history.series(q), label, color) for q, label, color in labels], beside)

    drawn = {
        "stability": curves("stability", ("stability", "rate over largest stable rate", BLUE)),
        "sharpness": curves(
            "sharpness", ("sharpness", "largest eigenvalue", BLUE), ("batch_sharpness", "along batch gradients", ORANGE)
        ),
        "critical_rate": curves("critical_rate", ("critical_rate", "critical rate", BLUE), beside=rates),
        "loss": _line("loss", losses),
        "noise": curves("noise", ("noise", "noise scale (examples)", BLUE)),
        "trace": curves("trace", ("trace", "trace", BLUE)),
    }
    return [(TITLES.get(name, "Loss"), svg, CAPTIONS[name]) for name, svg in drawn.items()]


def _curves(
    name: str, curves: Sequence[tuple[list[tuple[int, Quantity]], str, str]], rates: Sequence[tuple[int, float]] = ()
) -> str | None:
    """Quantities over the steps, and their limits; None where nothing finite was measured."""
    shown = [([(s, q) for s, q in points if math.isfinite(q.value)], label, color) for points, label, color in curves]
    shown = [curve for curve in shown if curve[0]]
    if not shown:
        return None
    with style(name):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        for i, (points, label, color) in enumerate(shown):
            steps, values = [s for s, _ in points], [q.value for _, q in points]
            axes.errorbar(
                steps, values, _bars([q for _, q in points]), fmt="none", ecolor=color, elinewidth=1, alpha=0.6
            )
            axes.plot(
                steps,
                values,
                "--" if i else "-",
                marker="so"[i == 0],
                ms=3.2,
                mfc=PAPER,
                mew=1.1,
                color=color,
                label=label,
            )
        limits = [
            (s, q.limit) for points, _, _ in shown for s, q in points if q.limit is not None and math.isfinite(q.limit)
        ]
        if limits:
            limits.sort()
            axes.plot([s for s, _ in limits], [v for _, v in limits], ":", color=INK, lw=1.2, label="stability limit")
        if rates:
            axes.plot([s for s, _ in rates], [v for _, v in rates], "-.", color=GREEN, lw=1.2, label="rate in use")
        _scaled(
            axes,
            [q.value for points, _, _ in shown for _, q in points] + [v for _, v in limits] + [v for _, v in rates],
        )
        return _finished(figure, axes, name, f"{shown[0][1]} over the steps of training")


def _line(name: str, points: list[tuple[int, float]]) -> str | None:
    if len(points) < 2:
        return None
    with style(name):
        figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
        axes = figure.subplots()
        axes.plot([s for s, _ in points], [v for _, v in points], "-o", ms=2.6, color=BLUE, label="loss on the probe")
        _scaled(axes, [v for _, v in points])
        return _finished(figure, axes, name, "Loss on the probe over the steps of training")


def _finished(figure: Figure, axes: Axes, name: str, label: str) -> str:
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: typeset(f"{x:,.0f}")))
    figure.legend(loc="outside upper center", ncols=3)
    return inline_svg(figure, f"run-{name}", label)


def _scaled(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where positive values span more than a factor of three."""
    low, high = min(values), max(values)
    if low > 0 and high > 3 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.4, high * 1.4)
        _log_ticks(axes)
        return
    spread = (high - low) or abs(high) or 1.0
    axes.set_ylim(low - 0.15 * spread, high + 0.15 * spread)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: typeset(short(y))))


def _bars(quantities: Sequence[Quantity]) -> np.ndarray:
    ends = np.array([[q.value - q.lower, q.upper - q.value] for q in quantities], dtype=float).T
    return np.where(np.isfinite(ends), np.maximum(ends, 0.0), 0.0)
