"""The proof of a recording: on each batch, a plain product with a Gaussian vector must give the same.

Two linear maps that agree on a Gaussian vector agree, with probability one; signs would miss errors that are orthogonal
to them. Block by block the difference in norm must be below sqrt(eps) times the block, plus eps^(3/4) times the whole:
rounding in blocks that are nearly zero. While it is proved, memory that no operation writes is filled with NaN.

**Cost:** a product and a playback for each batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from frechet.objective._torch_internals import vmap_without_loops
from frechet.recording._replay import Replay
from frechet.space import Space, aligned

T = TypeVar("T")
PROBE, BLOCK = 0, range(1, 4)  # numbers of the vectors with which a recording and its blocks are proved
RECORDED = 4  # and of that with which it is recorded


def probe(space: Space, number: int) -> list[Tensor]:
    """The blocks of a Gaussian vector; views of one vector, as a product's vectors are."""
    return [aligned(block) for block in space.split(space.random(number, 0, "gaussian"))]


def timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What `work` returns, and its seconds."""
    start = _now(device)
    result = work()
    return result, _now(device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def finite(blocks: Sequence[Tensor]) -> bool:
    return all(math.isfinite(_norm(b)) for b in blocks)


def _norm(t: Tensor) -> float:
    largest = float(t.detach().abs().max()) if t.numel() else 0.0
    if not 0 < largest < math.inf:
        return largest
    # scaled, as squares may overflow or vanish where the numbers do not
    return largest * float(torch.linalg.vector_norm(t.detach() / largest, dtype=torch.float64))


def difference(expected: Sequence[Tensor], found: Sequence[Tensor], eps: float) -> str:
    """How a recording differs from a plain product; empty where it does not."""
    if [b.shape for b in expected] != [b.shape for b in found]:
        return "what is played back has another shape than a plain product"
    whole = math.hypot(*map(_norm, expected))
    for a, b in zip(expected, found, strict=True):
        if not _norm(a - b) <= math.sqrt(eps) * _norm(a) + eps**0.75 * whole:
            return "what is played back differs from a plain product: the model uses more than fixed PyTorch operations"
    return ""


def goes_in_blocks(replay: Replay, space: Space) -> bool:
    """Whether vmap plays a recording back without falling back to a loop, with the numbers of single playbacks."""
    vectors = [probe(space, i) for i in BLOCK]
    try:
        with vmap_without_loops():
            together = replay.block([torch.stack(list(column)) for column in zip(*vectors, strict=True)])
    except (RuntimeError, NotImplementedError):  # vmap has no rule for an operation, or no memory
        return False
    alone = [replay(v) for v in vectors]
    return not any(difference(a, [t[i] for t in together], space.eps) for i, a in enumerate(alone))
