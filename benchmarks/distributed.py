"""Products on several processes against the same on one: how exact they are, and what the exchange between them costs.

Errors: the relative 2-norm of the difference to one process that holds all data, an eighth of each batch, with unequal
shards (rank 0 has all batches but one for each other rank) and, where targets are classes, half of those of the last
rank ignored.

Times: every rank holds the same number of batches. In each round, after a barrier, `group` is the product of all data
by all ranks, `shard` that of the rank's own data alone, and `exchange` the bare sum of the product's k n numbers over
the ranks; what remains of group - shard is waiting for the slowest rank, snapshots and bookkeeping. `one` is the
product of all data on one process while the others are idle, and the speedup is one / group. Medians over the rounds,
of the slowest rank. The processes run on this machine with gloo over the loopback device, so `exchange` is memory
traffic and not a network.

    python benchmarks/distributed.py [--quick]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timing

MODELS = ("tiny", "mlp", "gpt")
BOUNDS = {"float64": 1e-12, "float32": 1e-6}


def problem_data(problem, batches: int, share: int = 1, ignored: bool = False) -> list[Any]:
    """Batches of 1/share of their rows, at least two, half of the last one's targets ignored where they are classes."""
    whole = [problem.batch(number) for number in range(batches)]
    data = [tuple(t[: max(2, len(t) // share)] for t in batch) for batch in whole]
    inputs, targets = data[-1]
    if ignored and not targets.is_floating_point():
        targets = targets.clone()
        targets.view(-1)[: targets.numel() // 2] = -100
        data[-1] = (inputs, targets)
    return data


def errors(problem, size: int, rank: int, vectors: int) -> dict[str, dict[str, float]]:
    """Relative 2-norms of differences, by type and product."""
    import torch

    from frechet import Objective, empirical_fisher, fisher, gauss_newton, hessian

    operators = {"hessian": hessian, "gauss_newton": gauss_newton}
    if not problem.batch()[1].is_floating_point():
        operators |= {"fisher": fisher, "empirical_fisher": lambda o: empirical_fisher(o, per="example")}
    found: dict[str, dict[str, float]] = {}
    for dtype in (torch.float64, torch.float32):
        made = problem.to(dtype)
        made.model.eval()
        data = problem_data(made, size + 2, share=8, ignored=True)
        mine = data[:3] if rank == 0 else data[rank + 2 : rank + 3]
        ours = Objective(made.model, criterion(problem), mine, group="world")
        # in one batch, so that not even the order of the sums is the same
        whole = tuple(torch.cat(parts) for parts in zip(*data, strict=True))
        single = Objective(made.model, criterion(problem), [whole])
        V = ours.space.random(range(vectors), 0)
        row = found[str(dtype).removeprefix("torch.")] = {}
        row["gradient"] = difference(ours.gradient(), single.gradient())
        for name, operator in operators.items():
            row[name] = difference(operator(ours) @ V, operator(single) @ V)
    return found


def criterion(problem):
    from frechet import cross_entropy, squared_error

    return squared_error() if problem.name == "tiny" else cross_entropy()


def difference(a, b) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def times(problem, size: int, rank: int, vectors: int, batches: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round on this rank."""
    import torch
    import torch.distributed as dist

    from frechet import Objective, hessian

    data = problem_data(problem, size * batches)
    mine = data[rank * batches : (rank + 1) * batches]
    problem.model.eval()
    ours = hessian(Objective(problem.model, criterion(problem), mine, group="world"))
    shard = hessian(Objective(problem.model, criterion(problem), mine))
    whole = hessian(Objective(problem.model, criterion(problem), data))
    V = ours.domain.random(range(vectors), 0)
    flat = torch.zeros(vectors * ours.domain.dim)
    functions = {
        "group": lambda: ours @ V,
        "shard": lambda: shard @ V,
        "exchange": lambda: dist.all_reduce(flat),
        "one": lambda: whole @ V if rank == 0 else None,
    }
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            dist.barrier()
            taken = timing.seconds(function, 1, "cpu")
            if number:  # the first round warms up
                seconds[name].append(taken)
    return seconds


def measure(rank: int, a: argparse.Namespace) -> dict[str, Any]:
    """What one process finds."""
    import torch
    import torch.distributed as dist
    from models import PROBLEMS

    torch.set_num_threads(a.threads)
    store, limit = dist.FileStore(str(Path(a.folder) / "store"), a.size), datetime.timedelta(minutes=5)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=a.size, timeout=limit)
    found: dict[str, Any] = {}
    for model in a.models:
        problem = PROBLEMS[model]()
        found[model] = {"parameters": problem.dim, "errors": errors(problem, a.size, rank, 2), "times": {}}
        for vectors in a.vectors:
            found[model]["times"][str(vectors)] = times(problem, a.size, rank, vectors, a.batches, a.rounds)
    return found


def show(found: list[dict[str, Any]]) -> None:
    """One table of errors, one of times; `found` has a row for each rank."""
    columns = "".join(f"{name:>10}" for name in ("gradient", "Hessian", "GN", "Fisher", "empirical"))
    print(f"\n{'relative difference to one process':43}{columns}")
    for model, row in found[0].items():
        for dtype, errors in row["errors"].items():
            cells = [errors.get(n) for n in ("gradient", "hessian", "gauss_newton", "fisher", "empirical_fisher")]
            line = "".join(f"{'' if e is None else f'{e:.1e}':>10}" for e in cells)
            bound = "" if max(errors.values()) <= BOUNDS[dtype] else f"  above {BOUNDS[dtype]:g}"
            print(f"  {model:10}{dtype:31}{line}{bound}")
    columns = "".join(f"{name:>10}" for name in ("one", "group", "shard", "exchange"))
    print(f"\n{'Hessian product, ms':33}{'k':>4}{'MiB':>8}{columns}{'share':>8}{'speedup':>9}")
    for model, row in found[0].items():
        for vectors in row["times"]:
            median = {
                name: max(timing.quartiles(rank[model]["times"][vectors][name])[0] for rank in found)
                for name in ("one", "group", "shard", "exchange")
            }
            size = int(vectors) * row["parameters"] * 4 / 2**20
            cells = "".join(f"{1000 * median[name]:10.2f}" for name in ("one", "group", "shard", "exchange"))
            ends = f"{median['exchange'] / median['group']:8.1%}{median['one'] / median['group']:9.2f}"
            print(f"  {model:10}{row['parameters']:>12,} par.{'':4}{vectors:>4}{size:8.1f}{cells}{ends}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--size", type=int, default=2, help="processes")
    parser.add_argument("--vectors", nargs="+", type=int, default=[1])
    parser.add_argument("--batches", type=int, default=1, help="of each process, in the times")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--quick", action="store_true", help="3 rounds: to see that it runs")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.quick:
        a.rounds = 3
    if a.rank is not None:
        found = measure(a.rank, a)
        (Path(a.folder) / f"{a.rank}.json").write_text(json.dumps(found))
        os._exit(0)  # the backend's threads need not be waited for
    timing.restart(a.threads)
    import torch

    torch.set_num_threads(a.threads)
    contents = timing.record(vars(a))
    print(f"{contents['machine']}\n{contents['versions']}\n{a.size} processes of {a.threads} thread(s), gloo")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder, "--rank"]
        loopback = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
        processes = [subprocess.Popen([*command, str(rank)], env={**os.environ, **loopback}) for rank in range(a.size)]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("distributed.py: ended"))  # so that the processes end too
        try:
            codes = [p.wait() for p in processes]
        finally:
            for p in processes:
                p.kill()
        if any(codes):
            sys.exit(f"distributed.py: processes ended with {codes}")
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(a.size)]
    show(found)
    name = "distributed" + ("-quick" if a.quick else "")
    arguments = {key: value for key, value in vars(a).items() if key not in ("rank", "folder")}
    path = timing.write(name, timing.record(arguments, ranks=found))
    print(f"\nwritten: {path.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
