"""What ``frechet quantize`` does: a table of sensitivities, the best plan of bits, its measured loss, and a front."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from frechet.compress import BitPlan, Sensitivity, allocate_bits, plot_front, quantized, sensitivity
from frechet.compress._sensitivity import Method
from frechet.objective import Objective
from frechet.report import _numbers as numbers

UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
DRAWN = 12  # budgets whose best plans are measured and drawn


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan with what was predicted and measured of it, and of others."""

    title: str
    table: Sensitivity
    plan: BitPlan
    measured: float  # increase of the loss
    alone: tuple[float, ...]  # of each weight of the plan quantized alone, measured
    others: float  # bytes of the parameters that are not planned
    scales: float  # bytes of a scale for each channel of a weight
    whole: float  # bytes of all parameters as they are
    budget: float
    front: tuple[tuple[BitPlan, float], ...]  # with measured increases


def byte_count(text: str) -> float:
    """The bytes that ``4MB``, ``300 kB`` or ``1.5MiB`` mean."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2] not in UNITS or float(found[1]) <= 0:
        raise ValueError(f"--budget must be a size such as 4MB, 300kB or 1.5MiB, got '{text}'")
    return float(found[1]) * UNITS[found[2]]


def widths(text: str) -> tuple[int, ...]:
    """The numbers of bits that ``2,3,4,8`` means."""
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not parts or not all(p.isdecimal() and 2 <= int(p) <= 16 for p in parts):
        raise ValueError(f"--bits must be numbers from 2 to 16 separated by commas, got '{text}'")
    return tuple(sorted({int(p) for p in parts}))


def planned(
    objective: Objective, title: str, budget: float, bits: tuple[int, ...], method: Method, seed: int, measure: bool
) -> Planned:
    """The plan of least increase whose weights, with the parameters that are not planned, fit into the budget."""
    table = sensitivity(objective, bits, method=method, seed=seed, measured=measure)
    space, width = objective.space, objective.space.dtype.itemsize
    others = (space.dim - sum(table.sizes)) * width
    scales = width * sum(space.shapes[space.names.index(n)][0] for n in table.names)
    least = others + scales + sum(table.sizes) * min(bits) / 8
    if budget < least:
        raise ValueError(
            f"--budget must be at least {_size(least)}: {_size(others)} of parameters that stay as they are, "
            f"{_size(scales)} of scales, and the weights at {min(bits)} bits, got {_size(budget)}"
        )
    losses = "measured" if measure else "predicted"
    plan = allocate_bits(table, budget - others - scales, losses=losses)
    ends = [sum(table.sizes) * b / 8 for b in (min(bits), max(bits))]
    steps = [ends[0] + (ends[1] - ends[0]) * i / (DRAWN - 1) for i in range(DRAWN)]
    best = {p.bytes: p for p in (allocate_bits(table, most, losses=losses) for most in steps)}
    shown = [(p, _increase(objective, table, p)) for p in best.values()]
    return Planned(
        title=title,
        table=table,
        plan=plan,
        measured=_increase(objective, table, plan),
        alone=tuple(_rise(objective, table, {n: b}) for n, b in plan.bits.items()),
        others=others,
        scales=scales,
        whole=space.dim * width,
        budget=budget,
        front=tuple(shown),
    )


def _increase(objective: Objective, table: Sensitivity, plan: BitPlan) -> float:
    return _rise(objective, table, plan.bits)


def _rise(objective: Objective, table: Sensitivity, bits: Mapping[str, int]) -> float:
    return float(objective.value(quantized(objective, bits))) - table.loss


def lines(found: Planned) -> list[str]:
    """What is said of a plan."""
    table, plan = found.table, found.plan
    wide = max(map(len, table.names))
    told = [f"{found.title}: loss {table.loss:.6g}, {len(table.names)} weights, {table.method}"]
    for i, name in enumerate(table.names):
        b = plan.bits[name]
        value = float(table.predicted[i, table.bits.index(b)])
        told.append(
            f"  {name.ljust(wide)}  {b:>2} bits  {table.sizes[i]:>12,} entries  predicted {value:+9.3g}  "
            f"measured {found.alone[i]:+9.3g}"
        )
    planned = plan.bytes + found.others + found.scales
    told.append(
        f"{_size(planned)} of {_size(found.budget)}, {_size(found.others)} of them parameters that stay as they are, "
        f"{_size(found.scales)} a scale for each channel"
    )
    if found.whole <= found.budget:
        told.append(f"as they are, all parameters take {_size(found.whole)} and fit into the budget too")
    told.append(f"the loss rises by {found.measured:.4g}, measured; the sum of the table is {plan.predicted:.4g}")
    return told


def _size(bytes: float) -> str:
    return numbers.size(round(bytes))


def as_json(found: Planned) -> str:
    """The plan, its table and the front for other programs."""
    return json.dumps(
        {
            "bits": found.plan.bits,
            "bytes": found.plan.bytes,
            "other_bytes": found.others,
            "scale_bytes": found.scales,
            "budget": found.budget,
            "predicted": found.plan.predicted,
            "measured": found.measured,
            "measured_alone": dict(zip(found.table.names, found.alone, strict=True)),
            "table": found.table.to_dict(),
            "front": [
                {"bits": p.bits, "bytes": p.bytes, "predicted": p.predicted, "measured": m} for p, m in found.front
            ],
        },
        indent=1,
    )


def drawn(found: Planned) -> str:
    """The front as an SVG."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    plot_front([p for p, _ in found.front], axes, measured=[m for _, m in found.front])
    axes.axvline(found.plan.bytes, linestyle=":")
    kept = io.StringIO()
    figure.savefig(kept, format="svg", metadata={"Date": None})
    return kept.getvalue()
