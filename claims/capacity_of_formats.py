"""A. Panferov and others (2025), Unified scaling laws for compressed representations, arXiv 2506.01863.

Claim: one number of a format, how well it fits random Gaussian data, predicts how many exact parameters the parameters
of a model that is trained in this format are worth; it does so across integers, sparsity, and both together.

Measured: a student network of 48 hidden units learns a random teacher with the weights of its two large layers in one
of nine formats (straight-through gradients), beside students of 6 to 48 units with exact weights, whose losses over
the number of parameters are the yardstick. Of each format: the parameters that it is worth, as a part of its own, and
the error on Gaussian numbers. The rank correlation of both over the formats, fixed before: holds from 0.9 on, in part
from 0.7 on. Means over three seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from claim import Claim
from scipy.stats import spearmanr
from torch import Tensor

from frechet.compress import format_error

STEPS, INPUTS, WIDTHS = 1200, 16, (6, 10, 16, 24, 34, 48)


def integers(w: Tensor, bits: int) -> Tensor:
    top = 2 ** (bits - 1) - 0.5
    return ((w - 0.5).round() + 0.5).clamp(-top, top)


def largest(w: Tensor, part: float) -> Tensor:
    return w * (w.abs() > w.abs().flatten().kthvalue(round((1 - part) * w.numel())).values)


def two_of_four(w: Tensor) -> Tensor:
    g = w.view(-1, 4)
    return (g * torch.zeros_like(g).scatter_(1, g.abs().topk(2, 1).indices, 1.0)).view_as(w)


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"{b} bits": lambda w, b=b: integers(w, b) for b in (1, 2, 3, 4)},
    **{f"{p:.0%} kept": lambda w, p=p: largest(w, p) for p in (0.5, 0.25, 0.1)},
    "2 of 4": two_of_four,
    "2 of 4 in 3 bits": lambda w: two_of_four(w).sign() * integers(w.abs(), 3).clamp_min(0.5),
}


def trained(width: int, rounding: Callable[[Tensor], Tensor] | None, scale: float, seed: int) -> float:
    """The loss on new data."""
    g = torch.Generator().manual_seed(seed)
    teacher = [torch.randn(INPUTS, 96, generator=g) / INPUTS**0.5, torch.randn(96, 96, generator=g) / 96**0.5]
    read = torch.randn(96, 1, generator=g) / 96**0.5
    sizes = ((INPUTS, width), (width, width), (width, 1))
    weights = [(torch.randn(i, o, generator=g) / i**0.5).requires_grad_() for i, o in sizes]

    def stored(w: Tensor) -> Tensor:
        if rounding is None:
            return w
        c = scale * w.detach().square().mean().sqrt()
        return w + (c * rounding(w.detach() / c) - w.detach())

    def loss(n: int) -> Tensor:
        x = torch.randn(n, INPUTS, generator=g)
        y = torch.relu(torch.relu(x @ teacher[0] * 1.4) @ teacher[1] * 1.4) @ read
        h = torch.relu(torch.relu(x @ stored(weights[0]) * 1.4) @ stored(weights[1]) * 1.4) @ weights[2]
        return (h - y).square().mean() / y.square().mean()

    optimizer = torch.optim.Adam(weights, 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(256).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(loss(20_000))


def measure() -> Claim:
    """Parameters that formats are worth, and their errors."""
    numbers = np.array([w * (INPUTS + w + 1) for w in WIDTHS])
    dense = np.array([np.mean([trained(w, None, 1.0, s) for s in range(3)]) for w in WIDTHS])
    rows = {}
    for name, rounding in FORMATS.items():
        found = format_error(rounding, seed=0)
        scale = float(found.method.split()[1])
        loss = float(np.mean([trained(WIDTHS[-1], rounding, scale, s) for s in range(3)]))
        worth = np.exp(np.interp(-np.log(loss), -np.log(dense), np.log(numbers))) / numbers[-1]
        rows[name] = (float(found.value), float(worth))
    errors, worths = zip(*rows.values(), strict=True)
    rank = float(spearmanr(errors, [-w for w in worths])[0])
    return Claim(
        paper="Panferov et al. 2025, arXiv 2506.01863",
        claim="The error of a format on Gaussian data predicts what its parameters are worth, across kinds of formats.",
        theirs="one capacity metric predicts parameter efficiency across formats",
        ours=f"rank correlation {rank:.2f} over nine formats; error, worth: "
        + "; ".join(f"{n} {e:.3f}, {w:.2f}" for n, (e, w) in rows.items()),
        verdict="holds" if rank >= 0.9 else "holds in part" if rank >= 0.7 else "does not hold here",
        why="What a layer cannot hold acts as noise of that size, whatever the format; small students stop the scale.",
        name="compress.format_error",
    )
