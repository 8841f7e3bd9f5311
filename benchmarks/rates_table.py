"""The table of the sweep: what each rule predicts beside what training did, from the lines that `rates.py` wrote.

    python benchmarks/rates_table.py [--lines FILE] [--markdown]

An optimum is the minimum of a parabola in log rate through the log losses of a seed; its interval is that of the mean
over seeds, at 95 percent. A row is "yes" where prediction and measurement meet within their intervals, and else "no".
Rules of scaling predict from the base point, and carry its interval.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from frechet.analyze import (
    Hyperparameters,
    adamw_timescale,
    fit_annealing_law,
    fit_power_law,
    scale_for_batch,
    trajectory_invariance,
)

LINES = Path(__file__).parent / "results" / "rates.jsonl"
CAP = 10.0  # a run that diverged counts as this loss
Range = tuple[float, float, float]  # value, lower, upper


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    rule: str
    where: str
    predicted: Range
    measured: Range

    @property
    def true(self) -> bool:
        return self.predicted[1] <= self.measured[2] and self.measured[1] <= self.predicted[2]


# --- optima -----------------------------------------------------------------------------------------------------------


def interval(values: list[float]) -> Range:
    """The mean of logarithms of base 2 and its interval, as numbers."""
    v = np.array(values)
    half = scipy.stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / math.sqrt(len(v)) if len(v) > 1 else math.inf
    return float(2 ** v.mean()), float(2 ** (v.mean() - half)), float(2 ** (v.mean() + half))


def best(x: list[float], losses: np.ndarray) -> float:
    """Where a parabola through log losses has its minimum, inside of the points."""
    logs = np.log(np.minimum(np.where(np.isfinite(losses), losses, CAP), CAP))
    a, b, _ = np.polyfit(x, logs, 2)
    found = -b / (2 * a) if a > 0 else x[int(logs.argmin())]
    return float(np.clip(found, min(x), max(x)))


def optimum(row: dict[str, Any]) -> Range:
    """The best rate with its interval over seeds."""
    table = row["found"]["losses"]
    seeds = max(len(v) for v in table.values())
    whole = {float(e): v for e, v in table.items() if len(v) == seeds}
    x = sorted(whole)
    return interval([best(x, np.array([whole[e][s] for e in x], dtype=float)) for s in range(seeds)])


def scaled(base: Range, factor: float) -> Range:
    return (base[0] * factor, base[1] * factor, base[2] * factor)


# --- rules ------------------------------------------------------------------------------------------------------------


def rows_of(lines: list[dict[str, Any]]) -> Iterator[Row]:
    by: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by.setdefault(line["cell"]["part"], []).append(line)
    for part, make in (
        ("limit", limits), ("critical", critical), ("edge", edges), ("sharper", sharper), ("optimum", optima),
        ("averages", averages),
        ("decays", decays), ("curves", curves), ("paths", paths),
    ):  # fmt: skip
        yield from make(by.get(part, []))


def where(cell: dict[str, Any], *more: str) -> str:
    return ", ".join([cell["task"], cell.get("optimizer", ""), f"W {cell['width']}", *more]).replace(", ,", ",")


def limits(lines: list[dict[str, Any]]) -> Iterator[Row]:
    for line in lines:
        low, high = line["found"]["predicted"]
        a, b = line["found"]["measured"]
        at = where(line["cell"])
        yield Row("stable_learning_rate", at, ((low + high) / 2, low, high), (math.sqrt(a * b), a, b))


def critical(lines: list[dict[str, Any]]) -> Iterator[Row]:
    for line in lines:
        (low, high), (a, b) = line["found"]["critical"]
        at = where(line["cell"], "on half of some examples, on all")
        yield Row("critical_rate", at, ((low + high) / 2, low, high), ((a + b) / 2, a, b))


def edges(lines: list[dict[str, Any]]) -> Iterator[Row]:
    for line in lines:
        v = np.array([q[1] for q in line["found"]["index"]])
        if len(v) < 5:
            continue
        start = max(range(len(v) - 4), key=lambda i: v[i : i + 5].mean())
        window = v[start : start + 5]
        at = where(line["cell"], "highest index over 100 steps")
        yield Row("edge of stability", at, (1.0, 0.9, 1.1), (window.mean(), window.min(), window.max()))


def sharper(lines: list[dict[str, Any]]) -> Iterator[Row]:
    for line in lines:
        for size, predicted, valid, value, low, high in line["found"]["rows"]:
            at = where(line["cell"], f"batch {size}" + ("" if valid else ", not valid"))
            yield Row("batch_curvature", at, (predicted,) * 3, (value, low, high))


def optima(lines: list[dict[str, Any]]) -> Iterator[Row]:
    for task, optimizer in dict.fromkeys((x["cell"]["task"], x["cell"]["optimizer"]) for x in lines):
        own = [x for x in lines if (x["cell"]["task"], x["cell"]["optimizer"]) == (task, optimizer)]
        base = 128 if task == "digits" else 64, 64 if task == "digits" else 16
        found = {(x["cell"]["width"], x["cell"]["batch"], x["cell"]["scaled"]): optimum(x) for x in own}
        first = found.get((*base, False))
        if first is None:
            continue
        family: Any = "sgd" if optimizer == "SGD" else "adam"
        sizes = sorted(b for w, b, s in found if w == base[0] and not s)
        for b in sizes:
            if b != base[1]:
                rate = scale_for_batch(Hyperparameters(1.0), b / base[1], optimizer=family).rate
                at = f"{task}, {optimizer}, batch {base[1]} to {b}"
                rule = "scale_for_batch, linear" if family == "sgd" else "scale_for_batch, square root"
                yield Row(rule, at, scaled(first, rate), found[base[0], b, False])
        widths = sorted({w for w, b, _ in found if b == base[1]})
        for w in widths:
            if (w, base[1], True) in found:
                at = f"{task}, {optimizer}, W {base[0]} to {w}"
                yield Row("scale_for_width, base rate", at, first, found[w, base[1], True])
        yield from held_out(task, optimizer, "batch", [(b, found[base[0], b, False]) for b in sizes])
        usual = [(w, found[w, base[1], False]) for w in widths if (w, base[1], False) in found]
        yield from held_out(task, optimizer, "width", usual)


def held_out(task: str, optimizer: str, axis: str, points: list[tuple[int, Range]]) -> Iterator[Row]:
    """A power law of the best rate in all but the largest value, at the largest."""
    if len(points) < 4:
        return
    *fitted, (last, measured) = points
    x, y = (torch.tensor(v, dtype=torch.float64) for v in zip(*[(p, r[0]) for p, r in fitted], strict=True))
    p = fit_power_law(x, y).predict(last)
    yield Row("fit_power_law", f"{task}, {optimizer}, {axis} {last}", (p.value, p.lower, p.upper), measured)


def averages(lines: list[dict[str, Any]]) -> Iterator[Row]:
    """The half-life of the best average, in examples: the same at every batch size."""
    found = {}
    for line in lines:
        c = line["cell"]
        x = [math.log2(v) for v in c["lives"]]
        found[c["task"], c["optimizer"], c["batch"]] = interval(
            [_near(x, np.array(v)) for v in line["found"]["losses"]]
        )
    for (task, optimizer, batch), one in found.items():
        more = found.get((task, optimizer, 4 * batch))
        if more is not None:
            at = f"{task}, {optimizer}, batch {batch} to {4 * batch}: half-life in examples"
            yield Row("scale_for_batch, average", at, one, more)


def _near(x: list[float], losses: np.ndarray) -> float:
    """The minimum of a parabola through the least value and its two neighbours on each side."""
    i = int(losses.argmin())
    a, b = max(0, i - 2), min(len(x), i + 3)
    return best(x[a:b], losses[a:b])


def decays(lines: list[dict[str, Any]]) -> Iterator[Row]:
    """The best AdamW timescale as a share of the data: the same at every batch size."""
    found = {}
    for line in lines:
        c, rate = line["cell"], line["found"]["rate"]
        x = [math.log2(adamw_timescale(rate, d, batch=c["batch"], data=20 * 1437)) for d in c["decays"]]
        losses = np.array(line["found"]["losses"], dtype=float)
        found[c["batch"]] = interval([_near(x, losses[:, s]) for s in range(losses.shape[1])])
    if 64 in found:
        for batch, one in found.items():
            if batch != 64:
                yield Row("adamw_timescale", f"digits, batch 64 to {batch}: share of the data", found[64], one)


def curves(lines: list[dict[str, Any]]) -> Iterator[Row]:
    """The loss at the end of a schedule that was not fitted, from two that were."""
    for line in lines:
        found, fitted = line["found"]["curves"], []
        steps = torch.arange(20, len(found["late"]["rates"]) + 1, 20)
        kept = steps >= 100
        for name in ("constant", "cosine"):
            losses = torch.tensor(found[name]["losses"], dtype=torch.float64)
            fitted.append((torch.tensor(found[name]["rates"], dtype=torch.float64), steps[kept], losses[kept]))
        at = where(line["cell"], "final loss of the late fall")
        last = found["late"]["losses"][-1]
        try:
            law = fit_annealing_law(fitted)
        except ValueError:
            yield Row("fit_annealing_law", at + " (no fit)", (math.nan,) * 3, (last,) * 3)
            continue
        value = float(law.predict(torch.tensor(found["late"]["rates"], dtype=torch.float64))[-1])
        # the interval is the largest error of a point of the fit
        yield Row(
            "fit_annealing_law", at, (value, value * math.exp(-law.worst), value * math.exp(law.worst)), (last,) * 3
        )


def paths(lines: list[dict[str, Any]]) -> Iterator[Row]:
    """Distance over spread of late curves with the same rate times decay, which the rule says is about 1."""
    for line in lines:
        pairs, found = line["cell"]["pairs"], line["found"]["curves"]
        late = [[torch.tensor(c)[len(c) // 2 :] for c in one] for one in found]
        for i in range(1, len(pairs)):
            r = trajectory_invariance(late[0], late[i])
            a, b = pairs[0], pairs[i]
            at = f"digits, AdamW, rate {a[0]:g} decay {a[1]:g} against {b[0]:g}, {b[1]:g} (p {r.p_value:.2f})"
            yield Row("trajectory invariance", at, (1.0, 0.0, 2.0), (r.ratio,) * 3)


# --- printing ---------------------------------------------------------------------------------------------------------


def told(r: Range) -> str:
    if math.isnan(r[0]):
        return "-"
    return f"{r[0]:.3g}" if r[1] == r[2] else f"{r[0]:.3g} [{r[1]:.3g}, {r[2]:.3g}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=Path, default=LINES)
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.lines.read_text().splitlines()]
    rows = list(rows_of(lines))
    print("| Rule | Where | Predicted | Measured | Ratio | Meet |\n| --- | --- | --- | --- | --- | --- |")
    for r in rows:
        ratio = r.measured[0] / r.predicted[0]
        print(
            f"| {r.rule} | {r.where} | {told(r.predicted)} | {told(r.measured)} | {ratio:.2f} | "
            f"{'yes' if r.true else 'no'} |"
        )
    seconds = sum(line["seconds"] for line in lines)
    print(f"\n{len(lines)} cells, {seconds / 60:.1f} minutes of processor time")
    for line in lines:
        if line["cell"]["part"] == "sharper":
            noise = line["found"]["noise"]
            print(
                f"{line['cell']['task']}: gradient noise scale {noise[0]:.3g} [{noise[1]:.3g}, {noise[2]:.3g}] examples"
            )


if __name__ == "__main__":
    main()
