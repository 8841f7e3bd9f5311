"""How many threads a product gets: one or all, whichever was faster just now.

Beside other work on the machine a parallel operation waits for its slowest thread, and small operations lose more by
the waiting than they gain. Nothing but a measurement tells: it is made once, and the user's own setting is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from frechet.report import _numbers as numbers

CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # where one is set, the user has chosen
OPENMP = ("OMP_", "GOMP_", "KMP_")
LIBRARIES = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")  # scikit-learn's
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that wait sleep instead of spinning
PRODUCTS = 4  # that a choice takes at most
QUICK = 0.5  # seconds; a product that takes less is timed twice


@contextmanager
def restored() -> Iterator[None]:
    """Give the process back its number of threads afterwards."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fixed(asked: int | None) -> bool:
    """Whether the number of threads is not ours to choose."""
    return asked is not None or any(name in os.environ for name in CHOSEN) or torch.get_num_threads() == 1


def waiting_policy() -> dict[str, str]:
    """The settings of OpenMP to start with: none where the user has any."""
    return {} if openmp_settings() else PASSIVE


def openmp_settings() -> list[str]:
    """The names of OpenMP's variables in the environment, without those that libraries set when they are imported."""
    return sorted(name for name in os.environ if name.startswith(OPENMP) and name not in LIBRARIES)


def faster(product: Callable[[], object]) -> str:
    """Set one thread or all, whichever makes `product` faster, and return the sentence that says so."""
    everyone = torch.get_num_threads()
    times = {everyone: _timed(product, everyone), 1: _timed(product, 1)}
    if max(times.values()) < QUICK:  # the second time of each in the other order: a machine's load moves
        times = {k: min(times[k], _timed(product, k)) for k in (1, everyone)}
    best = min(times, key=times.__getitem__)
    torch.set_num_threads(best)
    other = everyone if best == 1 else 1
    took, takes = numbers.seconds(times[best]), numbers.seconds(times[other])
    return f"{numbers.plural(best, 'thread')}: a product takes {took}, with {numbers.plural(other, 'thread')} {takes}"


def _timed(product: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    product()
    return time.perf_counter() - start
