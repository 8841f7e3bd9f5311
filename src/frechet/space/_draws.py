"""Random numbers: one independent stream for each use of a seed."""

from __future__ import annotations

import numpy as np
import torch


def generator(seed: int, *stream: int) -> torch.Generator:
    """Return a CPU generator for one stream of a seed. Different streams are independent."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"generator: seed must be a non-negative int, got {seed!r}")
    # spawn_key and not a list: trailing zeros of a list are ignored, so (seed,) and (seed, 0) would be one stream
    state = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
