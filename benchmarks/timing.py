"""How time is measured: in rounds, beside each other, in one process, under stated allocator settings.

A round runs every function once, in an order drawn for that round; a function that takes less than `SHORTEST` seconds
is repeated until it does not. The ratio of a function to the unit is taken within the round, and the median and the
quartiles are over the rounds: whatever else the machine does slows both.

`CLOCK` is the wall's; on a machine that others use, ``--clock cpu`` with one thread counts only this process's time.

The C library by default gives freed memory back to the system, and the next graph pays for fresh pages: a factor of 1.3
on a CPU that has nothing to do with any library. `restart` starts the script again with settings that keep it mapped.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
PACKAGES = (
    *("frechet", "torch", "numpy", "scipy", "curvlinops-for-pytorch", "PyHessian", "hessian-eigenthings", "POT"),
    *("pytorch-minimize", "optimistix", "jax"),
)
RESULTS = Path(__file__).parent / "results"
SHORTEST = 0.02
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK = "wall"


def now() -> float:
    """Seconds on the chosen clock."""
    return CLOCKS[CLOCK]()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(threads: int, allocator: dict[str, str] = ALLOCATOR) -> dict[str, str]:
    """The environment of a measuring process."""
    return {**os.environ, **allocator, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def restart(threads: int, allocator: dict[str, str] = ALLOCATOR) -> None:
    """Replace this process by the same command under `environment`, unless it runs so already."""
    wanted = environment(threads, allocator)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def synchronize(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def seconds(function: Callable[[], object], repeats: int, device: str) -> float:
    """Seconds per call."""
    synchronize(device)
    start = now()
    for _ in range(repeats):
        function()
    synchronize(device)
    return (now() - start) / repeats


def interleave(
    functions: dict[str, Callable[[], object]], *, rounds: int, seed: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds per call of each function in each round, after two calls that do not count."""
    repeats = {}
    for name, function in functions.items():
        function()
        repeats[name] = max(1, round(SHORTEST / seconds(function, 1, device)))
    order, times, draw = list(functions), {name: [] for name in functions}, random.Random(seed)
    for _ in range(rounds):
        gc.collect()
        draw.shuffle(order)
        with _no_collection():
            for name in order:
                times[name].append(seconds(functions[name], repeats[name], device))
    return times


@contextlib.contextmanager
def _no_collection():
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, median, high = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
    return float(median), float(low), float(high)


def ratios(times: dict[str, list[float]], unit: str) -> dict[str, list[float]]:
    """Each function's time over the unit's, round by round."""
    return {name: (np.array(values) / np.array(times[unit])).tolist() for name, values in times.items()}


def record(arguments: dict[str, Any], **results: Any) -> dict[str, Any]:
    """The results with everything needed to judge them: machine, versions, threads, seeds, allocator."""
    import torch

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    device = torch.cuda.get_device_name() if arguments.get("device") == "cuda" else None
    machine = {
        "processor": _processor(),
        "cores": cores(),
        "device": device,
        "system": platform.platform(),
        "load": os.getloadavg(),
    }
    return {
        "machine": machine,
        "python": platform.python_version(),
        "versions": versions,
        "threads": torch.get_num_threads(),
        "allocator": {name: os.environ.get(name) for name in ALLOCATOR},
        "arguments": arguments,
        **results,
    }


def write(name: str, contents: dict[str, Any]) -> Path:
    """Write `results/name.json`, whole or not at all."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(contents, indent=1) + "\n")
    part.replace(path)
    return path


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
