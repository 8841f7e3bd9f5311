"""What products of a language model cost when its logits are applied in chunks, and when they are stored whole.

    python benchmarks/vocabulary.py [--words 50304] [--tokens 4096] [--quick]

A GPT of width 256 with 4 layers and `--words` words on `--tokens` tokens, float32. Each measurement is one process: the
peak of resident memory above what is resident before (model, operator and vector, not the result), by the allocator
settings of `memory.py`; then, under the usual settings in another process, the seconds of `--rounds` calls. The body
alone is the model without its head, under a linear functional of its hidden states: what any gradient needs.

The bar: the chunked Gauss-Newton product's peak above the body's gradient's is less than one matrix of logits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
from memory import ALLOCATOR, resident

LENGTH = 128
CASES = ("body gradient", "gradient", "gauss_newton", "gauss_newton reverse", "hessian")


def prepare(case: str, chunked: bool, words: int, tokens: int, rows: int | None) -> Callable[[int], Callable[[], Any]]:
    """What makes `case` ready to run on the first so many sequences."""
    import torch
    from models import GPT, _perturb_normalization

    from frechet import Objective, cross_entropy, gauss_newton, hessian

    torch.manual_seed(0)
    model = GPT(words=words, length=LENGTH)
    _perturb_normalization(model)
    draw = torch.Generator().manual_seed(1)
    text = torch.randint(words, (tokens // LENGTH, LENGTH + 1), generator=draw)
    inputs, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    v = torch.randn(sum(p.numel() for p in model.parameters()), generator=draw)
    keywords = {"head": "head", "head_rows": rows} if chunked else {}

    if case == "body gradient":
        model.head = torch.nn.Identity()
    parameters = [p for n, p in model.named_parameters() if not n.startswith("head")]

    def ready(sequences: int) -> Callable[[], Any]:
        X, y = inputs[:sequences], targets[:sequences]

        def body() -> Any:
            h = model(X)
            return torch.autograd.grad((h * h.detach()).sum(), parameters)

        if case == "body gradient":
            return body
        objective = Objective(model, cross_entropy(), [(X, y)], **keywords)
        match case:
            case "gradient":
                return objective.gradient
            case "hessian":
                A = hessian(objective)
            case _:
                A = gauss_newton(objective, route="reverse" if case.endswith("reverse") else None)
        return lambda: A @ v

    return ready


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: bytes above the state before, or seconds of each call."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.set_num_threads(a.threads)
    timing.CLOCK = a.clock
    ready = prepare(a.case, a.chunked, a.words, a.tokens, a.rows)
    with sdpa_kernel([SDPBackend.MATH]):
        ready(1)()
        run = ready(a.tokens // LENGTH)
        if a.what == "memory":
            Path("/proc/self/clear_refs").write_text("5")
            before = resident("VmRSS")
            run()
            return {"above": resident("VmHWM") - before}
        times = []
        for _ in range(a.rounds):
            start = timing.now()
            run()
            times.append(timing.now() - start)
    return {"seconds": times}


def difference(words: int, tokens: int, rows: int | None) -> dict[str, float]:
    """The relative difference between chunked and whole products, in both dtypes; float64 on a small problem."""
    import torch

    found = {}
    for case in ("gauss_newton", "hessian"):
        for dtype, size in (("float32", (words, tokens)), ("float64", (997, 256))):
            torch.set_default_dtype(getattr(torch, dtype))
            whole, chunked = (prepare(case, c, *size, rows)(size[1] // LENGTH)() for c in (False, True))
            found[f"{case}, {dtype}"] = float((chunked - whole).norm() / whole.norm())
    torch.set_default_dtype(torch.float32)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=50304)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rows", type=int, help="rows per chunk; the library's own choice by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=timing.cores())
    parser.add_argument("--clock", default="wall", choices=list(timing.CLOCKS), help="cpu: with --threads 1 only")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--quick", action="store_true", help="1024 tokens, one round: to see that it runs")
    parser.add_argument("--what", choices=["memory", "seconds", "difference"], help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--chunked", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.quick:
        a.tokens, a.rounds = 1024, 1
    if a.what:
        timing.restart(a.threads, ALLOCATOR if a.what == "memory" else timing.ALLOCATOR)
        print(json.dumps(difference(a.words, a.tokens, a.rows) if a.what == "difference" else measure(a)))
        return

    def child(what: str, case: str, chunked: bool) -> dict[str, Any]:
        command = [sys.executable, __file__, "--what", what, "--case", case, "--words", str(a.words)]
        command += ["--tokens", str(a.tokens), "--rounds", str(a.rounds), "--threads", str(a.threads)]
        command += ["--clock", a.clock]
        command += ["--rows", str(a.rows)] if a.rows else []
        command += ["--chunked"] if chunked else []
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    logits = 4 * a.words * a.tokens
    print(
        f"GPT of width 256, 4 layers, {a.words} words, {a.tokens} tokens: one matrix of logits {logits / 2**20:.0f} MiB"
    )
    print(f"{'':24}{'peak, MiB':>22}{'seconds':>22}")
    print(f"{'':24}{'chunked':>11}{'whole':>11}{'chunked':>11}{'whole':>11}")
    results: dict[str, Any] = {}
    for case in a.cases:
        ways = (True,) if case == "body gradient" else (True, False)
        row = results[case] = {}
        for chunked in ways:
            name = "chunked" if chunked else "whole"
            row[name] = {**child("memory", case, chunked), **child("seconds", case, chunked)}
        cells = [f"{row[w]['above'] / 2**20:11.0f}" if w in row else f"{'':11}" for w in ("chunked", "whole")]
        cells += [f"{timing.quartiles(row[w]['seconds'])[0]:11.2f}" if w in row else "" for w in ("chunked", "whole")]
        print(f"{case:24}{''.join(cells)}")
        sys.stdout.flush()
    if {"body gradient", "gauss_newton"} <= set(results):
        excess = results["gauss_newton"]["chunked"]["above"] - results["body gradient"]["chunked"]["above"]
        results["excess"] = excess
        print(
            f"gauss_newton above the body's gradient: {excess / 2**20:.0f} MiB, {excess / logits:.2f} logits matrices"
        )
    results["difference"] = child("difference", "", True)
    for name, value in results["difference"].items():
        print(f"  chunked - whole, relative: {name:32}{value:10.1e}")
    name = "vocabulary-cpu" + ("-quick" if a.quick else "")
    print(f"written: {timing.write(name, timing.record(vars(a), results=results)).relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
