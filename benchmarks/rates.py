"""What rules say of learning rates, batches and widths, beside what training does: the runs of the sweep.

    python benchmarks/rates.py [--lines FILE] [--minutes 45] [--only PART ...]
    python benchmarks/rates_table.py [--lines FILE]

Two tasks: a perceptron on the digits (64-W-W-10, base W = 128, batch 64) and a character transformer on the text of
Python's own manual (two blocks, heads of 16, context 32, base W = 64, batch 16). One thing at a time moves away from
the base point: batch, width, decay, schedule. Three optimizers: SGD with momentum 0.9, Adam, AdamW with decay 0.1. The
rate is constant, and the number of examples that are trained on is the same in all runs of a task.

A cell is a finished question, a line of JSON with its seconds of processor time; a second call goes on where the first
was stopped. No cell begins once all have taken `--minutes` together. The table reads the lines.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from frechet import Objective, cross_entropy, eigsh, hessian
from frechet.analyze import (
    Hyperparameters,
    Monitor,
    batch_curvature,
    critical_rate,
    noise_scale,
    optimizer_metric,
    scale_for_batch,
    scale_for_width,
)
from frechet.analyze._run.critical_rate import optimizer_step

LINES = Path(__file__).parent / "results" / "rates.jsonl"
OPTIMIZERS = ("SGD", "Adam", "AdamW")
BETAS, EPS, DECAY, MOMENTUM = (0.9, 0.99), 1e-8, 0.1, 0.9
Cell = dict[str, Any]


# --- tasks ------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Causal attention with heads of 16, and a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(self.first(x)).reshape(B, T, 3, C // 16, 16).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Two blocks on characters; logits (batch, characters, place)."""

    def __init__(self, width: int, characters: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(characters, width), nn.Embedding(32, width)
        self.body = nn.Sequential(Block(width), Block(width), nn.LayerNorm(width))
        self.head = nn.Linear(width, characters)
        nn.init.normal_(self.embed.weight, std=0.1)
        nn.init.normal_(self.place.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embed(ids) + self.place.weight)).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Task:
    """Data, and a model of any width. `examples` is how many a run trains on, `centers` where rates are tried first."""

    train: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    model: Callable[[int], nn.Module]
    role: Callable[[str], str]
    width: int
    batch: int
    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    examples: int
    seeds: int
    grid: tuple[float, ...]  # exponents about the best power of two that run with all seeds
    centers: dict[str, float]
    whole: tuple[int, int]  # examples that are all data, and steps on all of them, where the limit is measured
    criterion: Any


def digits() -> Task:
    X, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    X, y = torch.from_numpy(X).float()[order] / 16, torch.from_numpy(y)[order]

    def model(w: int) -> nn.Module:
        return nn.Sequential(nn.Linear(64, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 10))

    roles = {"0.weight": "input", "2.weight": "hidden", "4.weight": "output"}
    return Task(
        (X[:1437], y[:1437]), (X[1437:], y[1437:]), model, lambda n: roles.get(n, "vector"), 128, 64,
        (32, 64, 128, 256, 512), (16, 32, 64, 128, 256, 512), 20 * 1437, 4, (-1, -0.5, 0, 0.5, 1),
        {"SGD": 0.06, "Adam": 4e-3, "AdamW": 4e-3}, (512, 600), cross_entropy(),
    )  # fmt: skip


def characters() -> Task:
    text = "\n".join(topics[name] for name in sorted(topics))
    letters = sorted({c for c in text if c.isascii()})
    codes = torch.tensor([letters.index(c) for c in text if c.isascii()])
    windows = codes[: len(codes) // 33 * 33].reshape(-1, 33)
    windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))]

    def role(name: str) -> str:
        if "embed" in name or "place" in name:
            return "input"
        norm = ".first" in name or ".second" in name or "body.2" in name
        if norm or not name.endswith("weight"):
            return "vector"
        return "output" if name.startswith("head") else "hidden"

    return Task(
        (windows[512:, :-1], windows[512:, 1:]), (windows[:512, :-1], windows[:512, 1:]),
        lambda w: Transformer(w, len(letters)), role, 64, 16, (32, 64, 128), (4, 8, 16, 32, 64), 2560, 3, (-1, 0, 1),
        {"SGD": 0.12, "Adam": 4e-3, "AdamW": 4e-3}, (64, 300), cross_entropy(class_dim=1),
    )  # fmt: skip


TASKS = {"digits": digits, "characters": characters}


# --- training ---------------------------------------------------------------------------------------------------------


def settings(optimizer: str, rate: float) -> Hyperparameters:
    """The base hyperparameters of an optimizer at a rate."""
    if optimizer == "SGD":
        return Hyperparameters(rate)
    return Hyperparameters(rate, BETAS, EPS, DECAY if optimizer == "AdamW" else 0.0)


def made(optimizer: str, groups: list[dict[str, Any]], hp: Hyperparameters) -> torch.optim.Optimizer:
    if optimizer == "SGD":
        return torch.optim.SGD(groups, lr=hp.rate, momentum=MOMENTUM)
    kind = torch.optim.Adam if optimizer == "Adam" else torch.optim.AdamW
    (b1, b2), eps = hp.betas, hp.eps
    assert eps is not None
    return kind(groups, lr=hp.rate, betas=(b1, b2), eps=eps, weight_decay=hp.weight_decay, fused=True)


def built(task: Task, optimizer: str, width: int, hp: Hyperparameters, scaled: bool, seed: int) -> Any:
    """A model and its optimizer; where `scaled`, with the rates and initial deviations of `scale_for_width`."""
    torch.manual_seed(seed)
    model = task.model(width)
    if not scaled:
        return model, made(optimizer, [{"params": list(model.parameters())}], hp)
    base, factor, groups = dict(task.model(task.width).named_parameters()), width / task.width, []
    for name, p in model.named_parameters():
        deviation = float(base[name].detach().std())
        family: Any = "sgd" if optimizer == "SGD" else "adam"
        role: Any = task.role(name)
        old = Hyperparameters(hp.rate, deviation=deviation or None)
        new = scale_for_width(old, factor, role=role, optimizer=family)
        if new.deviation and 0 < float(p.detach().std()) < math.inf:
            p.data.mul_(new.deviation / p.detach().std())
        groups.append({"params": [p], "lr": new.rate})
    return model, made(optimizer, groups, hp)


def batches(task: Task, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1000 + seed)
    X, y = task.train
    order, place = torch.randperm(len(X), generator=draw), 0
    for _ in range(steps):
        if place + size > len(X):
            order, place = torch.randperm(len(X), generator=draw), 0
        rows = order[place : place + size]
        place += size
        yield X[rows], y[rows]


def loss_on(task: Task, model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model(data[0][:2048]), data[1][:2048]))


def trained(
    task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, size: int, seed: int, steps: int | None = None,
    each: Callable[[int, float], None] | None = None,
) -> float:  # fmt: skip
    """The mean loss of the last tenth of the batches; infinite where one is not finite."""
    steps = task.examples // size if steps is None else steps
    last: list[float] = []
    for t, (x, y) in enumerate(batches(task, size, steps, seed)):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        if not value < 1e4:
            return math.inf
        if t >= 0.9 * steps:
            last.append(value)
        if each is not None:
            each(t, value)
    return sum(last) / len(last)


# --- cells ------------------------------------------------------------------------------------------------------------


def final(task: Task, cell: Cell, rate: float, seed: int) -> float:
    """The loss on 2048 training examples after a run."""
    hp = settings(cell["optimizer"], rate)
    if cell["betas"] != 1:  # the betas, eps and decay of the batch rule; the rate is the one that is asked for
        family: Any = "sgd" if cell["optimizer"] == "SGD" else "adam"
        new = scale_for_batch(hp, cell["betas"], optimizer=family)
        decay = hp.weight_decay * new.rate * new.weight_decay / (hp.rate * hp.weight_decay) if hp.weight_decay else 0.0
        hp = Hyperparameters(rate, new.betas, new.eps, decay * hp.rate / new.rate)
    model, optimizer = built(task, cell["optimizer"], cell["width"], hp, cell["scaled"], seed)
    value = trained(task, model, optimizer, cell["batch"], seed)
    return loss_on(task, model, task.train) if value < math.inf else math.inf


def optimum(task: Task, cell: Cell) -> Cell:
    """Losses at rates of powers of two; those about the best one with all seeds."""
    found: dict[float, list[float]] = {}

    def at(exponent: float) -> float:
        if exponent not in found:
            found[exponent] = [final(task, cell, 2.0**exponent, 0)]
        value = found[exponent][0]
        return value if value == value else math.inf

    middle = round(math.log2(task.centers[cell["optimizer"]]))
    while True:
        best = min((middle - 1, middle, middle + 1), key=at)
        if best == middle:
            break
        middle = best
    for exponent in (middle + k for k in task.grid):
        at(exponent)
        found[exponent] += [final(task, cell, 2.0**exponent, seed) for seed in range(1, task.seeds)]
    return {"losses": {str(e): v for e, v in sorted(found.items())}}


def prepared(task: Task, optimizer: str, width: int) -> Any:
    """A model after gradient steps on some examples at a quarter of the first rate, its optimizer, and the examples."""
    n, steps = task.whole
    model, opt = built(task, optimizer, width, settings(optimizer, task.centers[optimizer] / 4), False, 0)
    data = task.train[0][:n], task.train[1][:n]
    descend(model, opt, data, steps // 2)
    return model, opt, data


def descend(model: nn.Module, opt: Any, data: tuple[Tensor, Tensor], steps: int, watch: Any = None) -> float:
    """Steps on all of the data, the largest loss of which is returned over the first; infinite is possible."""
    first = worst = 0.0
    for t in range(steps):
        loss = F.cross_entropy(model(data[0]), data[1])
        first = loss.item() if t == 0 else first
        worst = max(worst, loss.item() / first) if math.isfinite(loss.item()) else math.inf
        if worst > 100:
            break
        opt.zero_grad()
        loss.backward()
        opt.step()
        if watch is not None:
            watch(t + 1)
    return worst


def diverges(model: nn.Module, opt: Any, data: tuple[Tensor, Tensor], rate: float, steps: int = 40) -> bool:
    """Whether the loss on all of the data rises above its start within some steps at a rate; the state is put back."""
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    state = copied(opt.state_dict())
    for group in opt.param_groups:
        group["lr"] = rate
    worst = descend(model, opt, data, steps)
    model.load_state_dict(weights)
    opt.load_state_dict(state)
    return worst > 1.0001


def copied(state: Any) -> Any:
    """A copy of an optimizer's state."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {k: copied(v) for k, v in state.items()}
    return [copied(v) for v in state] if isinstance(state, list) else state


def limit(task: Task, cell: Cell) -> Cell:
    """The largest stable rate by curvature, and that by training on the same data."""
    model, opt, data = prepared(task, cell["optimizer"], cell["width"])
    whole = Objective(model, task.criterion, [data])
    metric = optimizer_metric(opt, whole)
    top = eigsh(metric.index(hessian(whole)), 1, seed=0, rtol=0.01)
    index, residual, rate = float(top.values[0]), float(top.residuals[0]), metric.rates[0]
    low, high = rate / index / 8, rate / index * 8
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if diverges(model, opt, data, middle) else (middle, high)
    return {
        "predicted": [rate / (index + residual), rate / max(index - residual, 1e-30)], "measured": [low, high],
    }  # fmt: skip


def critical(task: Task, cell: Cell) -> Cell:
    """The critical rate on half of some examples and on all of them, while training on batches goes on."""
    rate = task.centers[cell["optimizer"]] / 4
    model, opt = built(task, cell["optimizer"], cell["width"], settings(cell["optimizer"], rate), False, 0)
    trained(task, model, opt, task.batch, 0, 60)
    n = task.whole[0]
    return {"critical": [critical_on(task, model, opt, rows) for rows in (slice(n // 2), slice(n))]}


def critical_on(task: Task, model: nn.Module, opt: Any, rows: slice) -> list[float]:
    """The bracket of the critical rate of the optimizer's next step on some examples."""
    objective = Objective(model, task.criterion, [(task.train[0][rows], task.train[1][rows])])
    metric = optimizer_metric(opt, objective)
    step = optimizer_step(opt, objective, objective.gradient(), metric)
    found = critical_rate(objective, step, rtol=1 / 32)
    return [metric.rates[0] * found.lower, metric.rates[0] * found.upper]


def edge(task: Task, cell: Cell) -> Cell:
    """The rate over the largest stable one while a model trains on all of its data, every 20 steps."""
    n, steps = task.whole
    model, opt = built(task, cell["optimizer"], cell["width"], settings(cell["optimizer"], cell["rate"]), False, 0)
    data = task.train[0][:n], task.train[1][:n]
    objective = Objective(model, task.criterion, [data])
    monitor = Monitor(objective, quantities=("stability",), every=20, seed=0, optimizer=opt)
    descend(model, opt, data, steps, monitor.step)
    return {"index": [[step, q.value, q.lower, q.upper] for step, q in history(monitor)]}


def history(monitor: Monitor) -> list[Any]:
    """The steps and values of the index."""
    return [(r.step, r.quantities["stability"]) for r in monitor.readings if "stability" in r.quantities]


def sharper(task: Task, cell: Cell) -> Cell:
    """The largest eigenvalue of batches, predicted and measured, and the gradient noise scale."""
    model, opt = built(task, "SGD", cell["width"], settings("SGD", task.centers["SGD"] / 4), False, 0)
    trained(task, model, opt, task.batch, 0, 60)
    data = task.train[0][: task.whole[0]], task.train[1][: task.whole[0]]
    objective = Objective(model, task.criterion, [data])
    found = batch_curvature(objective, cell["sizes"], seed=0, batches=12, top=8, probes=4)
    noise = noise_scale(objective)
    rows = [
        [b.batch_size, b.predicted, b.valid, float(b.measured), *map(float, b.measured.interval())]
        for b in found.batches
    ]
    return {
        "rows": rows,
        "full": found.full,
        "critical": found.critical,
        "noise": [noise.value, noise.lower, noise.upper],
    }


def averages(task: Task, cell: Cell) -> Cell:
    """The loss of averaged weights at half-lives in examples, each batch size with its scaled hyperparameters."""
    factor, seeds = cell["batch"] / task.batch, []
    family: Any = "sgd" if cell["optimizer"] == "SGD" else "adam"
    old = settings(cell["optimizer"], 2 * task.centers[cell["optimizer"]])
    hp = scale_for_batch(old, factor, optimizer=family)
    for seed in range(task.seeds):
        model, opt = built(task, cell["optimizer"], task.width, hp, False, seed)
        rhos = [2.0 ** (-cell["batch"] / h) for h in cell["lives"]]
        kept = [[p.detach().clone() for p in model.parameters()] for _ in rhos]

        def follow(t: int, _: float, kept: Any = kept, rhos: Any = rhos, model: nn.Module = model) -> None:
            now = [p.detach() for p in model.parameters()]
            for one, rho in zip(kept, rhos, strict=True):
                torch._foreach_lerp_(one, now, 1 - rho)  # pyright: ignore[reportPrivateImportUsage]

        trained(task, model, opt, cell["batch"], seed, each=follow)
        losses = []
        for one in kept:
            for p, average in zip(model.parameters(), one, strict=True):
                p.data.copy_(average)
            losses.append(loss_on(task, model, task.held))
        seeds.append(losses)
    return {"losses": seeds}


def decays(task: Task, cell: Cell) -> Cell:
    """Held-out losses of AdamW at decays, for one batch size with the rate of the square-root rule."""
    hp = scale_for_batch(settings("AdamW", task.centers["AdamW"]), cell["batch"] / task.batch, optimizer="adam")
    rows = []
    for decay in cell["decays"]:
        one = Hyperparameters(hp.rate, hp.betas, hp.eps, decay)
        row = []
        for seed in range(task.seeds):
            model, opt = built(task, "AdamW", task.width, one, False, seed)
            trained(task, model, opt, cell["batch"], seed)
            row.append(loss_on(task, model, task.held))
        rows.append(row)
    return {"losses": rows, "rate": hp.rate}


def curves(task: Task, cell: Cell) -> Cell:
    """Smoothed loss curves of one run for each of three schedules, every 20 steps."""
    steps, peak, out = cell["steps"], task.centers[cell["optimizer"]] / 2, {}
    for name in ("constant", "cosine", "late"):
        model, opt = built(task, cell["optimizer"], task.width, settings(cell["optimizer"], peak), False, 0)
        rates = [peak * shape(name, t / steps) for t in range(steps)]
        losses: list[float] = []

        def follow(
            t: int, _: float, model: nn.Module = model, opt: Any = opt, rates: Any = rates, to: Any = losses
        ) -> None:
            opt.param_groups[0]["lr"] = rates[min(t + 1, steps - 1)]
            if (t + 1) % 20 == 0:
                to.append(loss_on(task, model, task.held))

        trained(task, model, opt, task.batch, 0, steps, follow)
        out[name] = {"rates": rates, "losses": losses}
    return {"curves": out}


def shape(name: str, s: float) -> float:
    """A schedule at a share of the run: constant, cosine to a tenth, or constant and then falling in the last third."""
    if name == "constant":
        return 1.0
    return 0.55 + 0.45 * math.cos(math.pi * s) if name == "cosine" else min(1.0, 0.1 + 2.7 * (1 - s))


def paths(task: Task, cell: Cell) -> Cell:
    """Loss curves of AdamW with several seeds, for pairs of rate and decay."""
    out = []
    for rate, decay in cell["pairs"]:
        row = []
        for seed in range(task.seeds):
            hp = Hyperparameters(rate, BETAS, EPS, decay)
            model, opt = built(task, "AdamW", task.width, hp, False, seed)
            losses: list[float] = []

            def follow(t: int, _: float, model: nn.Module = model, to: Any = losses) -> None:
                if (t + 1) % 20 == 0:
                    to.append(loss_on(task, model, task.held))

            trained(task, model, opt, task.batch, seed, each=follow)
            row.append(losses)
        out.append(row)
    return {"curves": out}


PARTS: dict[str, Callable[[Task, Cell], Cell]] = {
    "optimum": optimum, "limit": limit, "critical": critical, "edge": edge, "sharper": sharper, "averages": averages,
    "decays": decays, "curves": curves, "paths": paths,
}  # fmt: skip


def cells(name: str, task: Task) -> Iterator[tuple[int, Cell]]:
    """The questions of one task, each with its stage: those of an early stage come first, of all tasks."""
    base = {"task": name, "width": task.width, "batch": task.batch, "scaled": False, "betas": 1}
    yield 0, {"part": "sharper", **base, "sizes": [4, 16, 64, 256] if name == "digits" else [2, 4, 8, 16, 32]}
    for optimizer in OPTIMIZERS:
        for width in (task.widths[0], task.width, task.widths[-1]):
            stage = 0 if name == "digits" or width == task.width else 4
            yield stage, {"part": "limit", **base, "optimizer": optimizer, "width": width}
        yield 1, {"part": "critical", **base, "optimizer": optimizer}
        rate = task.centers[optimizer] * (8 if (name, optimizer) == ("digits", "SGD") else 2)
        yield 1, {"part": "edge", **base, "optimizer": optimizer, "rate": rate}
    lives = [2.0**k for k in range(4, 15)]
    for optimizer in OPTIMIZERS:
        one = {"part": "optimum", **base, "optimizer": optimizer}
        for size in task.sizes:
            yield 3, {**one, "batch": size, "betas": size / task.batch if optimizer != "SGD" else 1}
        for width in task.widths:
            if width != task.width:
                yield 4, {**one, "width": width}
                yield 4, {**one, "width": width, "scaled": True}
        for size in (task.batch, 4 * task.batch):
            yield 2 if name == "digits" else 5, {
                "part": "averages", **base, "optimizer": optimizer, "batch": size, "lives": lives,
            }  # fmt: skip
        yield 2 if name == "digits" else 5, {"part": "curves", **base, "optimizer": optimizer, "steps": 600}
    if name == "digits":
        for size in (task.batch // 2, task.batch, 4 * task.batch):
            yield 2, {"part": "decays", **base, "batch": size, "decays": [4.0**k for k in range(-4, 3)]}
        pairs = [[2e-3, 4.0], [4e-3, 2.0], [8e-3, 1.0], [2e-3, 1.0]]
        yield 2, {"part": "paths", **base, "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=Path, default=LINES)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--only", nargs="*", default=list(PARTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in given.lines.read_text().splitlines()] if given.lines.is_file() else []
    spent = sum(row["seconds"] for row in rows)
    done = {json.dumps(row["cell"]) for row in rows}
    tasks = {name: make() for name, make in TASKS.items()}
    asked = sorted((c for name, task in tasks.items() for c in cells(name, task)), key=lambda c: c[0])
    for _, cell in asked:
        if cell["part"] in given.only and json.dumps(cell) not in done:
            if spent > 60 * given.minutes:
                sys.exit(f"{spent / 60:.0f} minutes are spent; call again with more --minutes")
            begun = time.process_time()
            found = PARTS[cell["part"]](tasks[cell["task"]], cell)
            seconds = time.process_time() - begun
            spent += seconds
            with given.lines.open("a") as file:
                file.write(json.dumps({"cell": cell, "seconds": round(seconds, 2), "found": found}) + "\n")
            print(f"{spent:7.0f} s  {seconds:6.1f} s  {json.dumps(cell)[:150]}", flush=True)


if __name__ == "__main__":
    main()
