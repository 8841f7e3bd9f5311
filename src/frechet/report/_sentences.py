"""What a picture says, in one or two plain sentences computed from its numbers, with what the numbers do not say.

A comparison is stated only where the error bars support it. The text is typeset, not escaped: the page escapes it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from frechet.report._numbers import (
    bracketed,
    count,
    eigenvalue,
    headline,
    headline_eigenvalue,
    measured,
    number,
    percent,
    short,
    typeset,
)
from frechet.report._schema import Curvature, Density, Layer, Layers, LearningRate, Measured, Noise, Report, Slice

NAMES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton"}


def eigenvalues(curvature: Curvature) -> str:
    """Sharpness, the sign of the other end, and how many pairs missed their tolerance."""
    found = curvature.eigenvalues
    if found is None or not (found.largest or found.smallest):
        return ""
    parts = []
    if found.largest:
        name, top = NAMES[curvature.operator], headline_eigenvalue(found.largest[0])
        parts.append(f"The largest eigenvalue found of the {name} is {top}")
        if len(found.largest) > 1:
            parts[-1] += f", the next {headline_eigenvalue(found.largest[1])}"
        parts[-1] += "."
    if found.smallest:
        end = found.smallest[0]
        if end.value + end.residual < 0:
            parts.append(
                f"The most negative is {headline_eigenvalue(end)}: there are directions in which the loss curves "
                "downward, so this point is not a minimum."
            )
        elif end.value - end.residual > 0:
            parts.append(f"The smallest found is {headline_eigenvalue(end)}, above zero.")
        else:
            parts.append(f"The smallest found is {eigenvalue(end)}, not distinguishable from zero.")
    pairs = found.largest + found.smallest
    missed = sum(not e.converged for e in pairs)
    if missed:
        parts.append(f"{missed} of {len(pairs)} did not reach the tolerance (hollow marks); their error bars hold.")
    parts.append("Each bar holds an eigenvalue; that none lies further out is likely, not proved.")
    return typeset(" ".join(parts))


def density(curvature: Curvature) -> str:
    """Where most eigenvalues are, how much is negative, and what the smoothing and the band mean."""
    d = curvature.density
    if d is None or len(d.grid) < 2:
        return ""
    reach = _reach(curvature, d)
    near = max(0.01 * reach, 2 * d.width)
    inside, below = _mass(d, -near, near), _mass(d, -math.inf, -4 * d.width)  # smoothing spills less than 4e-5 there
    share = percent(min(1.0, inside))
    share = share.replace("> ", "More than ") if share.startswith(">") else f"About {share}"
    parts = [
        f"{share} of the {count(curvature.dimension)} eigenvalues of the "
        f"{NAMES[curvature.operator]} lie within ±{number(near, 2)} of zero"
    ]
    if reach > 0:
        parts[0] += f" ({percent(near / reach)} of the largest)"
    if curvature.operator == "hessian" and below > max(0.5 / curvature.dimension, 1e-4):
        parts[0] += f", and about {percent(below)} are clearly negative"
    parts[0] += "."
    parts.append(
        f"Smoothed with width {number(d.width, 2)}, so nothing finer shows; at each single point the band covers the "
        f"smoothed density with {short(100 * d.level)} % probability ({d.probes} probes of {d.steps} steps)."
    )
    return typeset(" ".join(parts))


def layers(section: Layers) -> str:
    """Which layer holds most of the trace, and whether that is sure; traces where there are no shares."""
    shares = all(math.isfinite(x.share.upper - x.share.lower) for x in section.layers)
    told = {x.name: x.share if shares else x.trace for x in section.layers}
    known = [x for x in section.layers if math.isfinite(told[x.name].value)]
    ranked = sorted(known, key=lambda x: -told[x.name].value)
    if not ranked:
        return ""
    first, total = ranked[0], sum(x.size for x in section.layers)

    def amount(x: Layer) -> str:
        return _percent_interval(x.share) if shares else typeset(measured(x.trace))

    text = (
        f"{first.name} holds {amount(first)} of the {NAMES[section.operator]} trace "
        f"with {percent(first.size / max(1, total))} of the parameters"
    )
    if len(ranked) > 1:
        second = ranked[1]
        clear = told[first.name].lower > told[second.name].upper
        text += f", {'more than' if clear else 'not clearly more than'} {second.name} with {amount(second)}"
    text += "."
    if not shares:
        text += " The whole trace cannot be told from zero, so there are no shares of it."
    return text + " A share says where curvature sits, not which layer matters for the error."


def learning_rate(section: LearningRate) -> str:
    """The gradient-descent limit."""
    limit = section.gradient_descent
    if limit is None:
        return ""
    if not math.isfinite(limit.value):
        return "No eigenvalue is positive, so the quadratic model sets no limit to the learning rate."
    text = (
        f"Plain gradient descent on all the data is unstable above {headline(limit)} (2 divided by the largest Hessian "
        "eigenvalue) as long as the curvature stays as it is here; momentum and adaptive methods have other limits."
    )
    if section.current is not None:
        relation = "below" if section.current < limit.lower else "above" if section.current > limit.upper else "at"
        text += f" The learning rate in use, {number(section.current)}, is {relation} it."
    return typeset(text)


def sgd(section: LearningRate) -> str:
    """The tighter bound at the smallest and the largest batch size."""
    tight = [
        (b.batch_size, min((m for m in (b.identity, b.top) if m is not None), key=lambda m: m.value))
        for b in section.sgd
        if b.identity is not None or b.top is not None
    ]
    if not tight:
        return ""
    ends = [tight[0]] if len(tight) == 1 else [tight[0], tight[-1]]
    said = " and ".join(f"{measured(m)} at batch size {count(size)}" for size, m in ends)
    return typeset(
        f"Near a minimum that fits every example, SGD cannot be stable above {said}. Both conditions are necessary, "
        "not sufficient: the true limit may be lower."
    )


def interpolation(section: LearningRate) -> str:
    """How far the model is from such a minimum."""
    x = section.interpolation
    parts = [f"the loss is {number(x.loss)}", f"the gradient norm {number(x.gradient_norm)}"]
    if x.near_zero_share is not None and x.near_zero is not None:
        parts.append(f"{percent(x.near_zero_share)} of the examples have a loss below {number(x.near_zero)}")
    if x.accuracy is not None:
        parts.append(f"{percent(x.accuracy)} of the predictions are right")
    return typeset(f"How near it is here: {', '.join(parts[:-1])}, and {parts[-1]}.")


def meaning(report: Report) -> list[str]:
    """The report in a few sentences: what kind of point it is, where the curvature sits, which rates and batches."""
    parts = [_point(report), _where(report), *_rates(report), _batch(report), *_doubts(report)]
    return [typeset(part) for part in parts if part]


def _point(report: Report) -> str:
    """Saddle or minimum."""
    found = None if report.hessian is None else report.hessian.eigenvalues
    if found is None or not found.largest:
        return ""
    top, end = found.largest[0], found.smallest[0] if found.smallest else None
    if end is None or top.value - top.residual <= 0:
        return f"The largest curvature found is {headline_eigenvalue(top)}."
    if end.value + end.residual < 0:
        ratio = percent(-end.value / top.value)
        kind = "nearly a minimum" if -end.value < 0.01 * top.value else "a saddle and not a minimum"
        return (
            f"This point is {kind}: the loss curves upward by up to {headline_eigenvalue(top)}, and downward by "
            f"{headline_eigenvalue(replace(end, value=-end.value))} ({ratio} of that) along another direction."
        )
    if end.value - end.residual > 0:
        return f"All curvature that was found is upward, from {headline_eigenvalue(end)} to {headline_eigenvalue(top)}."
    return f"No downward curvature was found; the largest upward one is {headline_eigenvalue(top)}."


def _where(report: Report) -> str:
    """The layers that hold most of the curvature."""
    section = report.layers
    if section is None or any(not math.isfinite(x.share.upper - x.share.lower) for x in section.layers):
        return ""
    if len(section.layers) < 2:  # it holds everything
        return ""
    ranked = sorted(section.layers, key=lambda x: -x.share.value)
    total, chosen, held = max(1, sum(x.size for x in ranked)), [], 0.0
    for x in ranked[:3]:
        chosen.append(x)
        held += x.share.value
        if held >= 0.5:
            break
    names = [f"layer {x.name}" if x.name.isdecimal() else x.name for x in chosen]
    names[0] = names[0][0].upper() + names[0][1:] if chosen[0].name.isdecimal() else names[0]
    told = names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"
    size = percent(sum(x.size for x in chosen) / total)
    verb, operator = "holds" if len(names) == 1 else "hold", NAMES[section.operator]
    part = f"{number(100 * held, 2)} %"
    return f"{told} {verb} about {part} of the curvature ({operator} trace) with {size} of the parameters."


def _rates(report: Report) -> list[str]:
    """Learning rates that follow."""
    section = report.learning_rate
    if section is None or section.gradient_descent is None:
        return []
    limit = section.gradient_descent
    if not math.isfinite(limit.value):
        return ["No curvature found limits the learning rate."]
    text = f"Gradient descent is stable here up to a learning rate of {headline(limit)}"
    tight = [
        (b.batch_size, min((m.value for m in (b.identity, b.top) if m is not None), default=0)) for b in section.sgd
    ]
    if tight and tight[0][1] > 0:
        size, rate = tight[0]
        text += (
            f"; at a minimum that fits every example and is curved like this, SGD with batches of {count(size)} would "
            f"need one below {number(rate, 2)}"
        )
    return [text + "."]


def _batch(report: Report) -> str:
    """The batch size up to which averaging pays."""
    section = report.noise
    if section is None:
        return ""
    scale = section.noise_scale
    if math.isfinite(scale.value) and math.isfinite(scale.upper):
        return f"Larger batches pay up to about {headline(scale)}."
    if scale.value == math.inf and scale.lower > 0:
        least = number(scale.lower, 2)
        return f"Larger batches pay up to {least} examples at least; these data cannot tell where that ends."
    return "These examples cannot tell up to which batch size averaging pays."


def _doubts(report: Report) -> list[str]:
    """Headline numbers that are not known within 15 %, and what that would take."""
    found = []
    for c in (report.hessian, report.gauss_newton):
        if c is None or c.wanted is None or c.trace is None:
            continue
        found.append(
            f"The trace of the {NAMES[c.operator]} is known to {measured(c.trace)} only; within 15 % takes about "
            f"{count(round_up(c.wanted))} random products"
            + (": set --products or --budget accordingly." if c.wanted < 10**6 else ", so it is as good as zero.")
        )
    return found


def round_up(n: int) -> int:
    """To two digits."""
    unit = 10 ** max(0, len(str(n)) - 2)
    return -(-n // unit) * unit


def noise(section: Noise) -> str:
    """Up to which batch size averaging pays."""
    scale, squared = section.noise_scale, section.gradient_norm_squared
    if squared is not None and squared.upper < 0:
        return typeset(
            f"The mean gradient of these {count(section.examples)} examples is smaller than chance alone would leave "
            "it, as it is after training on them, so they cannot tell the noise scale. For that, examples are wanted "
            "that the model has not seen."
        )
    if not math.isfinite(scale.value) or not math.isfinite(scale.upper):
        return typeset(
            f"The mean gradient of the {count(section.examples)} examples cannot be told from zero, so the noise scale "
            f"has no upper end here (at least {number(scale.lower)} examples). More examples would tell, and if the "
            "model was trained on these, others."
        )
    return typeset(
        f"The gradient's noise equals its signal at a batch of {measured(scale)}: well below that size, doubling the "
        "batch nearly halves the steps needed; well above it, hardly any. It holds at this point of training and "
        "usually grows as the loss falls."
    )


def loss_slice(section: Slice) -> str:
    """How good the quadratic model is over the slice, and whether the loss is lower elsewhere on it."""
    points = [
        (a, y, q) for a, y, q in zip(section.alpha, section.loss, section.quadratic, strict=True) if math.isfinite(y)
    ]
    if len(points) < 2:
        return ""
    here = min(points, key=lambda p: abs(p[0]))
    change = max(abs(y - here[1]) for _, y, _ in points)
    if change == 0:
        return "The loss is constant along this direction."
    reach = max(abs(a) for a, _, _ in points)
    apart = [abs(a) for a, y, q in points if not abs(y - q) <= 0.1 * change]
    near = [abs(a) for a, _, _ in points if abs(a) > 1e-9 * reach and abs(a) < min(apart, default=math.inf)]
    if not apart:
        parts = ["The quadratic model stays within a tenth of the loss's largest change over the whole slice."]
    elif near:
        parts = [
            "The quadratic model stays within a tenth of the loss's largest change up to a distance of "
            f"{number(max(near), 2)}."
        ]
    else:
        parts = [
            "The quadratic model has parted from the loss by more than a tenth of its largest change at a distance of "
            f"{number(min(apart), 2)} already, the nearest that was computed."
        ]
    lowest = min(points, key=lambda p: p[1])
    if here[1] - lowest[1] > 0.01 * change:
        parts.append(
            f"The loss is lowest at a distance of {number(lowest[0], 2)}, lower than here by "
            f"{number(here[1] - lowest[1], 2)}."
        )
    lost = len(section.loss) - len(points)
    if lost:
        parts.append(f"At {lost} of {len(section.loss)} points the loss was not finite; they are left out.")
    return typeset(" ".join(parts))


def _percent_interval(m: Measured) -> str:
    return typeset(bracketed(100 * m.value, 100 * m.lower, 100 * m.upper) + " %")


def _reach(curvature: Curvature, d: Density) -> float:
    """The largest absolute eigenvalue known, else the end of the density's grid."""
    found = curvature.eigenvalues
    known = () if found is None else found.largest + found.smallest
    return max((abs(e.value) for e in known), default=max(abs(d.grid[0]), abs(d.grid[-1])))


def _mass(d: Density, low: float, high: float) -> float:
    """The part of the density between `low` and `high`, relative to all of it."""
    grid, value = np.array(d.grid), np.nan_to_num(np.array(d.value))
    steps = np.diff(grid)
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (value[1:] + value[:-1]) * steps)])
    if cumulative[-1] <= 0:
        return 0.0
    ends = np.interp([max(low, grid[0]), min(high, grid[-1])], grid, cumulative) / cumulative[-1]
    return float(max(0.0, ends[1] - ends[0]))
