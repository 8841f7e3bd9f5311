"""What a picture says, in one or two plain sentences computed from its numbers, with what the numbers do not say.

A comparison is stated only where the error bars support it. The text is typeset, not escaped: the page escapes it.
"""

from __future__ import annotations

import math

import numpy as np

from frechet.report.numbers import bracketed, count, eigenvalue, measured, number, percent, short, typeset
from frechet.report.schema import Curvature, Density, Layers, LearningRate, Measured, Noise, Slice

NAMES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton"}


def eigenvalues(curvature: Curvature) -> str:
    """Sharpness, the sign of the other end, and how many pairs missed their tolerance."""
    found = curvature.eigenvalues
    if found is None or not (found.largest or found.smallest):
        return ""
    parts = []
    if found.largest:
        parts.append(
            f"The largest eigenvalue found of the {NAMES[curvature.operator]} is {eigenvalue(found.largest[0])}"
        )
        if len(found.largest) > 1:
            parts[-1] += f", the next {eigenvalue(found.largest[1])}"
        parts[-1] += "."
    if found.smallest:
        end = found.smallest[0]
        if end.value + end.residual < 0:
            parts.append(
                f"The most negative is {eigenvalue(end)}: there are directions in which the loss curves downward, "
                "so this point is not a minimum."
            )
        elif end.value - end.residual > 0:
            parts.append(f"The smallest found is {eigenvalue(end)}, above zero.")
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
    parts = [
        f"About {percent(min(1.0, inside))} of the {count(curvature.dimension)} eigenvalues of the "
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
    """Which layer holds most of the trace, and whether that is sure."""
    ranked = sorted((x for x in section.layers if math.isfinite(x.share.value)), key=lambda x: -x.share.value)
    if not ranked:
        return ""
    first, total = ranked[0], sum(x.size for x in section.layers)
    text = (
        f"{first.name} holds {_percent_interval(first.share)} of the {NAMES[section.operator]} trace "
        f"with {percent(first.size / max(1, total))} of the parameters"
    )
    if len(ranked) > 1:
        second = ranked[1]
        clear = first.share.lower > second.share.upper
        text += f", {'more than' if clear else 'not clearly more than'} {second.name} with "
        text += _percent_interval(second.share)
    return text + ". A share says where curvature sits, not which layer matters for the error."


def learning_rate(section: LearningRate) -> str:
    """The gradient-descent limit."""
    limit = section.gradient_descent
    if limit is None:
        return ""
    if not math.isfinite(limit.value):
        return "No eigenvalue is positive, so the quadratic model sets no limit to the learning rate."
    text = (
        f"Plain gradient descent on all the data is unstable above {measured(limit)} (2 divided by the largest Hessian "
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
    within = [a for a, _, _ in points if all(abs(y - q) <= 0.1 * change for b, y, q in points if abs(b) <= abs(a))]
    far = max(abs(a) for a in within) if within else 0.0
    whole = far >= max(abs(a) for a, _, _ in points)
    parts = [
        "The quadratic model stays within a tenth of the loss's largest change "
        + ("over the whole slice." if whole else f"up to a distance of {number(far, 2)}.")
    ]
    lowest = min(points, key=lambda p: p[1])
    if here[1] - lowest[1] > 0.01 * change:
        parts.append(
            f"The loss is lowest at a distance of {number(lowest[0], 2)}: {number(lowest[1])}, from {number(here[1])}."
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
