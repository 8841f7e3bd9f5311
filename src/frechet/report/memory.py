"""The peak memory of a stretch of work, above what was in use before, where the system can say it."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def start_peak(device: torch.device) -> int | None:
    """Begin to watch; returns the bytes in use now, for `peak_above`. None where this cannot be known."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    name = ctypes.util.find_library("c")
    with contextlib.suppress(OSError, AttributeError):
        # freed memory that the allocator keeps would hide the next peak
        ctypes.CDLL(name).malloc_trim(0)
    try:
        _RESET.write_text("5")  # resets the high-water mark of this process
    except OSError:
        return None
    return _field("VmRSS")


def peak_above(before: int | None, device: torch.device) -> int | None:
    """Peak bytes above `before` since `start_peak` on the same device."""
    if before is None:
        return None
    if device.type == "cuda":
        return max(0, torch.cuda.max_memory_allocated(device) - before)
    high = _field("VmHWM")
    return None if high is None else max(0, high - before)


def _field(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(name + ":")]
    return int(found[0]) * 1024 if found else None
