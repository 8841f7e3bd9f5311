"""What does `import frechet` cost beside `import torch`?

    python benchmarks/import_time.py [--rounds 10]

Each round imports torch, and frechet, in a fresh process each; processor seconds of user and system, compiled files
written in a first round that does not count. The ratio is taken within the round; printed are its median and quartiles.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile

import numpy as np
import timing


def seconds(module: str, environment: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment = kept | {"PYTHONPYCACHEPREFIX": folder, "OMP_NUM_THREADS": "1"}
        pairs = [(seconds("torch", environment), seconds("frechet", environment)) for _ in range(rounds + 1)][1:]
    ratios = np.array([ours / torchs for torchs, ours in pairs])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    alone, both = np.median(np.array(pairs), 0)
    print(f"import torch {alone:.2f} s, import frechet {both:.2f} s, ratio {middle:.3f} [{low:.3f}, {high:.3f}]")
    record = timing.record({"rounds": rounds}, results={"pairs": pairs, "ratio": middle})
    print(f"written: {timing.write('import_time', record).name}")


if __name__ == "__main__":
    main()
