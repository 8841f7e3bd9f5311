"""Memory: how much a device has to spare, the peak of a stretch of work, and what running out of it looks like."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
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


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated: on a GPU what its driver says, else what the system says is available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # elsewhere: half of what is built in
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def ran_out(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out."""
    refused = ("not enough memory", "can't allocate memory", "out of memory")
    said = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in refused)
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)
