"""How learning rate, betas, decay and averages change with batch size and width: published rules as plain functions.

Batch size times k, in the regime where gradient noise dominates:

| | SGD | Adam, RMSprop |
| --- | --- | --- |
| rate | k rate | sqrt(k) rate |
| 1 - beta | | k (1 - beta) |
| eps | | eps / sqrt(k) |
| steps | steps / k | steps / k |
| average of weights, rho | rho^k | rho^k |
| decoupled decay | so that rate decay grows by k | the same |

Width times m (maximal update parametrization), by what a parameter's fan-in and fan-out do:

| | input (out grows) | hidden (both) | output (in grows) | vector |
| --- | --- | --- | --- | --- |
| Adam's rate | 1 | 1/m | 1/m | 1 |
| SGD's rate | m | 1 | 1/m | m |
| standard deviation at the start | 1 | 1/sqrt(m) | 1/m | 1 |
| AdamW's decay | 1 | m^(2a - 1) | 1 | 0 |

Decay keeps the steady top singular value, which grows as sqrt(rate / decay) width^a. The exponent a is 0.75 in the
paper's transformers and 1/2 for pure noise: `width_exponent` measures it from two widths.

**Source.** Malladi et al., "On the SDEs and scaling rules for adaptive gradient algorithms" (2022), arXiv 2205.10287.
Busbridge et al., "How to scale your EMA" (2023), arXiv 2307.13813. Bergsma et al., "Power lines: scaling laws for
weight decay and batch size" (2025), arXiv 2505.13738: the timescale. Yang, Simon and Bernstein, "A spectral condition
for feature learning" (2023), arXiv 2310.17813. Fan et al., "Robust layerwise scaling rules by proper weight decay
tuning" (2025), arXiv 2510.15262.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from frechet.linalg._shown import Result

Family = Literal["sgd", "adam"]
Role = Literal["input", "hidden", "output", "vector"]


@dataclass(frozen=True)
class Hyperparameters(Result):
    """What the rules change. `betas` and `eps` are Adam's, `average` the rho of an average of weights; None: not used.

    `weight_decay` is decoupled; `deviation` is that of the initial weights.
    """

    rate: float
    betas: tuple[float, ...] = ()
    eps: float | None = None
    weight_decay: float = 0.0
    average: float | None = None
    steps: int | None = None
    deviation: float | None = None


def scale_for_batch(hp: Hyperparameters, factor: float, *, optimizer: Family) -> Hyperparameters:
    """Return hyperparameters for a batch `factor` times as large, which keep the path per example.

    The rules hold while the batch is below the gradient noise scale (`noise_scale`); beyond it no rule helps.

    Args:
        hp: those of the present batch size.
        factor: new over old batch size; below 1 for a smaller batch.
        optimizer: "sgd", the linear rule, or "adam", the square-root rule, also for RMSprop.

    Example:
        >>> from frechet.analyze import Hyperparameters, scale_for_batch
        >>> new = scale_for_batch(Hyperparameters(1e-3, (0.9, 0.999), 1e-8, steps=1000), 4, optimizer="adam")
        >>> new.rate, [round(b, 6) for b in new.betas], new.steps
        (0.002, [0.6, 0.996], 250)
    """
    _positive("scale_for_batch", "factor", factor)
    if optimizer not in ("sgd", "adam"):
        raise ValueError(f"scale_for_batch: optimizer must be 'sgd' or 'adam', got {optimizer!r}")
    root = math.sqrt(factor)
    rate = hp.rate * (factor if optimizer == "sgd" else root)
    betas, eps = hp.betas, hp.eps
    if optimizer == "adam":
        betas = tuple(1 - factor * (1 - b) for b in hp.betas)
        if any(b < 0 for b in betas):
            most = min(1 / (1 - b) for b in hp.betas)
            raise ValueError(
                f"scale_for_batch: factor must be at most {most:.4g}, at which a beta reaches 0, got {factor:g}; the "
                "rule ends there"
            )
        eps = None if hp.eps is None else hp.eps / root
    return replace(
        hp, rate=rate, betas=betas, eps=eps,
        # rate times decay grows by the factor: the timescale in examples stays
        weight_decay=hp.weight_decay * factor * hp.rate / rate,
        average=None if hp.average is None else hp.average**factor,
        steps=None if hp.steps is None else max(1, round(hp.steps / factor)),
    )  # fmt: skip


def scale_for_width(
    hp: Hyperparameters, factor: float, *, role: Role, optimizer: Family, exponent: float | None = None
) -> Hyperparameters:
    """Return hyperparameters of one kind of parameter for a network `factor` times as wide.

    Check by `spectral_check` of the updates: their effective rank decides, and no rule knows it.

    Args:
        hp: those at the present width.
        factor: new over old width.
        role: what the parameter does: "input" (its fan-out grows), "hidden", "output" (its fan-in grows) or "vector".
        optimizer: "sgd" or "adam".
        exponent: a of the steady singular value; see `width_exponent`. Default: decay stays as it is.

    Example:
        >>> from frechet.analyze import Hyperparameters, scale_for_width
        >>> scale_for_width(Hyperparameters(0.01, deviation=0.1), 4, role="hidden", optimizer="adam")
        Hyperparameters(rate=0.0025, betas=(), weight_decay=0, deviation=0.05)
    """
    _positive("scale_for_width", "factor", factor)
    rates = {
        "adam": {"input": 0, "hidden": -1, "output": -1, "vector": 0},
        "sgd": {"input": 1, "hidden": 0, "output": -1, "vector": 1},
    }
    deviations = {"input": 0.0, "hidden": -0.5, "output": -1.0, "vector": 0.0}
    if optimizer not in rates or role not in deviations:
        raise ValueError(
            f"scale_for_width: optimizer must be 'sgd' or 'adam' and role one of {', '.join(deviations)}, got "
            f"{optimizer!r} and {role!r}"
        )
    decay = hp.weight_decay
    if exponent is not None:
        decay = 0.0 if role == "vector" else decay * factor ** (2 * exponent - 1) if role == "hidden" else decay
    return replace(
        hp,
        rate=hp.rate * factor ** rates[optimizer][role],
        weight_decay=decay,
        deviation=None if hp.deviation is None else hp.deviation * factor ** deviations[role],
    )


def width_exponent(widths: tuple[float, float], tops: tuple[float, float], *, ratios: tuple[float, float]) -> float:
    """Return the exponent a in: steady top singular value = c sqrt(rate / decay) width^a, from two widths.

    Args:
        widths: two widths.
        tops: the top singular value of a hidden matrix late in training, at each.
        ratios: rate over decay, at each.

    Example:
        >>> from frechet.analyze import width_exponent
        >>> round(width_exponent((64, 256), (1.0, 2.0), ratios=(1.0, 1.0)), 6)
        0.5
    """
    if min(*widths, *tops, *ratios) <= 0 or widths[0] == widths[1]:
        raise ValueError("width_exponent: widths must differ, and widths, tops and ratios be positive")
    scaled = [math.log(top / math.sqrt(ratio)) for top, ratio in zip(tops, ratios, strict=True)]
    return (scaled[1] - scaled[0]) / math.log(widths[1] / widths[0])


def adamw_timescale(
    rate: float, weight_decay: float, *, batch: float | None = None, data: float | None = None
) -> float:
    """Return over how much of the past AdamW averages its updates: 1 / (rate decay) steps, or that share of the data.

    Args:
        rate: the learning rate.
        weight_decay: the decoupled decay.
        batch: the batch size; with `data` the result is batch / (rate decay data), a share of the data.
        data: the size of all data that is trained on, in the unit of `batch`.

    Example:
        >>> from frechet.analyze import adamw_timescale
        >>> round(adamw_timescale(1e-3, 0.1)), round(adamw_timescale(1e-3, 0.1, batch=10, data=1e6), 6)
        (10000, 0.1)
    """
    _positive("adamw_timescale", "rate times weight_decay", rate * weight_decay)
    if (batch is None) != (data is None):
        raise ValueError("adamw_timescale: batch and data must come together")
    steps = 1 / (rate * weight_decay)
    return steps if batch is None or data is None else steps * batch / data


def weight_decay_for(timescale: float, rate: float, *, batch: float | None = None, data: float | None = None) -> float:
    """Return the decoupled weight decay that gives AdamW a timescale: in steps, or as a share of the data.

    Args:
        timescale: what `adamw_timescale` returns.
        rate: the learning rate.
        batch: the batch size, where the timescale is a share of the data.
        data: the size of all data that is trained on.

    Example:
        >>> from frechet.analyze import weight_decay_for
        >>> round(weight_decay_for(0.1, 1e-3, batch=10, data=1e6), 6)  # linear in the batch size
        0.1
    """
    _positive("weight_decay_for", "timescale times rate", timescale * rate)
    return adamw_timescale(rate, timescale, batch=batch, data=data)


def _positive(what: str, name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{what}: {name} must be positive and finite, got {value:g}")
