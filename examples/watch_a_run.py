"""Watch the curvature of a small transformer while it trains, and see a divergence coming.

    python examples/watch_a_run.py [folder]

A character transformer learns a text with AdamW. After a while the learning rate is raised by 1.5 percent at every
step, until the loss explodes. The monitor measures the largest eigenvalue of the Hessian in the optimizer's own metric:
1 is where a step turns unstable. It says so a hundred steps before the loss has doubled.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import nn

from frechet import Objective, cross_entropy
from frechet.analyze import Monitor, Reading

TEXT = "the loss falls while the curvature rises until the step is as long as is stable. " * 40
LENGTH, BATCH, WIDTH, RATE, CALM, GROWTH, STEPS = 24, 16, 32, 3e-3, 150, 1.015, 400
BURST = 2.0  # times the loss before the rate was raised: the run has diverged


class CharTransformer(nn.Module):
    """Two layers of causal attention over characters."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, vocabulary)
        self.register_buffer("mask", torch.full((LENGTH, LENGTH), float("-inf")).triu(1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.place.weight
        return self.head(self.body(x, mask=self.mask)).transpose(1, 2)


@dataclass(frozen=True)
class Run:
    """What happened: the first step whose index was above 1 for sure, and that at which the loss had burst."""

    readings: list[Reading]
    losses: list[float]
    warned: int | None
    burst: int | None


def run(folder: str | None = None, steps: int = STEPS, every: int = 5) -> Run:
    """Train, raise the rate, and watch."""
    torch.manual_seed(0)
    letters = sorted(set(TEXT))
    ids = torch.tensor([letters.index(c) for c in TEXT])

    def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(0, len(ids) - LENGTH - 1, (BATCH,), generator=torch.Generator().manual_seed(seed))
        rows = torch.stack([ids[s : s + LENGTH + 1] for s in starts.tolist()])
        return rows[:, :-1], rows[:, 1:]

    model = CharTransformer(len(letters))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    probe = Objective(model, cross_entropy(class_dim=1), [batch(1000 + i) for i in range(2)])
    monitor = Monitor(
        probe, quantities=("stability", "critical_rate"), every=every, seed=0, optimizer=optimizer, folder=folder
    )
    losses: list[float] = []
    warned = burst = None
    for step in range(1, steps + 1):
        if step > CALM:
            optimizer.param_groups[0]["lr"] *= GROWTH
        inputs, targets = batch(step)
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        reading = monitor.step(step)
        index = None if reading is None else reading.quantities.get("stability")
        if warned is None and step > CALM and index is not None and index.lower > 1:
            warned = step
        calm = sum(losses[CALM - 20 : CALM]) / 20
        if step > CALM and not loss.item() < BURST * calm:
            burst = step
            break
    return Run(monitor.readings, losses, warned, burst)


def main(folder: str | None = None) -> None:
    found = run() if folder is None else run(folder)
    print(f"{'step':>5}{'rate':>10}{'loss':>9}{'stability':>22}   warnings")
    for r in found.readings:
        index = r.quantities.get("stability")
        bar = "" if index is None else f"{index.value:.3f} ± {index.upper - index.value:.3f}"
        print(f"{r.step:5d}{r.rate:10.4f}{found.losses[r.step - 1]:9.3f}{bar:>22}   {'; '.join(r.warnings)}")
    print(f"\nbeyond the limit first at step {found.warned}, the loss had doubled at step {found.burst}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
