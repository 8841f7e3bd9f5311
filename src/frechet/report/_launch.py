"""A report by the processes that torchrun has started: their group, its time limit, Ctrl-C, and who speaks."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from frechet.errors import LostRank
from frechet.space import Group
from frechet.space._group import is_shared

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether torchrun, or another launcher with its environment variables, has started several processes."""
    return all(name in os.environ for name in NEEDED) and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def launched_group(timeout: float) -> Iterator[Group | None]:
    """The group of the processes of this launch, None if this is the only one; `timeout` seconds end a wait."""
    if not launched():
        yield None
        return
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise LostRank(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: the processes did not find each other within "
            f"{timeout:g} s ({line[:160]})"
        ) from error
    yield Group.of("world")
    gc.collect()  # nothing that is collected later may still hold the group
    dist.destroy_process_group()  # not after a failure: it could wait for a process that is gone


@contextmanager
def interrupts(noticed: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C calls `noticed` inside, and raises as ever where that returns False."""

    def handle(_number: int, _frame: Any) -> None:
        if not noticed():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def speaks(error: BaseException) -> bool:
    """Whether this process tells of `error`: rank 0 of everything, another one of what rank 0 cannot know."""
    if not launched() or int(os.environ["RANK"]) == 0:
        return True
    return dist.is_initialized() and not is_shared(error)


def command_line() -> list[str]:
    """How the processes were started, up to the arguments."""
    if not launched():
        return ["frechet"]
    nodes = ["--nnodes", os.environ["GROUP_WORLD_SIZE"]] if os.environ.get("GROUP_WORLD_SIZE", "1") != "1" else []
    here = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    return ["torchrun", *nodes, "--nproc-per-node", here, "-m", "frechet"]
