"""Peak memory of the Jacobian of residuals at points: one gradient for each point beside `jacrev` of the whole.

    python benchmarks/collocation_memory.py

The problem is poisson2 of collocation.py, 257 parameters and 1020 residuals. Each way runs in a process of its own,
once on a few points before the peak is read, so that what torch loads at the first call does not count. Figures are
mebibytes above that, and multiples of the size of J.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import timing
import torch
from collocation import problem
from torch.func import jacrev


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(way: str) -> int:
    """The bytes by which a Jacobian raises the peak."""
    p = problem("poisson2", 0)
    few = p.residual.at({c.name: c.columns[0][:8] for c in p.residual.conditions})
    for residual in (few, p.residual):
        start = p.start
        residual(start)
        before = peak()
        if way == "rows":
            residual.jacobian(start)
        else:
            jacrev(lambda x, r=residual: torch.cat([t.reshape(-1) for t in r(x).values()]))(start)
    return peak() - before


def main() -> None:
    timing.restart(1)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    if len(sys.argv) > 1:
        print(measured(sys.argv[1]))
        return
    size = 1020 * 257 * 8
    for way in ("rows", "jacrev"):
        said = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True).stdout
        found = int(said.split()[-1])
        print(f"{way:<8}{found / 2**20:>10.1f} MiB  {found / size:>8.1f} J")


if __name__ == "__main__":
    main()
