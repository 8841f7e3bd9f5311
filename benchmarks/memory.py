"""Peak memory of one block product, in a process of its own: `products.py` starts this script and reads its last line.

On a CPU the peak is the high-water mark of resident memory above what is resident before the product; on a GPU the peak
of allocated memory above what is allocated before. Model and vectors are there before, the product's result is not.
A product on one example comes first, so that the kernels' code is loaded. The C library is told to map every block
above 64 KiB alone and to give it back when it is freed: resident memory then follows the tensors, not the heap's
fragments (where compared, within 2 % of the sum of torch's own allocations for large blocks, 15 % for a few MiB).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import timing

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident(field: str) -> int:
    """Bytes of a line such as VmRSS or VmHWM of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"memory.py: /proc/self/status has no {field}")


def peak_of_product(model: str, library: str, operator: str, batches: int, vectors: int, device: str) -> dict[str, int]:
    """Bytes above the state before the product, and the absolute peak."""
    import torch
    from models import PROBLEMS
    from peers import LIBRARIES, of_columns
    from products import Stream
    from torch.nn.attention import SDPBackend, sdpa_kernel

    problem = PROBLEMS[model]().to(device)
    chosen = next(row for row in LIBRARIES if row.name == library)
    draw = torch.Generator().manual_seed(1)
    V = torch.randn(vectors, problem.dim, generator=draw).to(device).T
    adapter = getattr(chosen, operator)
    take = (lambda product: product) if chosen.blocks else of_columns
    with sdpa_kernel([SDPBackend.MATH]):
        inputs, targets = problem.batch()
        take(adapter(problem, [(inputs[:1], targets[:1])]))(V)
        problem.model.zero_grad()
        product = take(adapter(problem, [problem.batch()] if batches == 1 else Stream(problem, batches)))
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            product(V)
            peak = torch.cuda.max_memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
            before = resident("VmRSS")
            product(V)
            peak = resident("VmHWM")
    return {"above": peak - before, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--library", default="frechet")
    parser.add_argument("--operator", default="hessian")
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--vectors", type=int, default=8)
    parser.add_argument("--threads", type=int, default=timing.cores())
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    timing.restart(a.threads, ALLOCATOR)
    print(json.dumps(peak_of_product(a.model, a.library, a.operator, a.batches, a.vectors, a.device)))


if __name__ == "__main__":
    main()
