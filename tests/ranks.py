"""Two processes of a torch.distributed group on this machine, for tests: a function in each, its results back.

They are started once for all tests of a process, since starting takes longer than most functions do. They find each
other through a file, speak over the loopback device, and end with their parent, at a failure, or at a time limit.
"""

import atexit
import contextlib
import datetime
import importlib
import os
import select
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

HERE = Path(__file__).parent
SIZE = 2


class Ranks:
    """The processes. Each answers a line (a module, whether it is the last, a folder) once its results are there."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        environment = {**os.environ, **loopback(), "PYTHONPATH": os.pathsep.join([str(HERE.parent / "src"), str(HERE)])}
        self.logs = [Path(self.folder.name) / f"{rank}.log" for rank in range(SIZE)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            command = [sys.executable, str(HERE / "ranks.py"), self.folder.name, str(rank)]
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
                    )
                )

    def run(self, module: str, folder: Path, ended: float, last: bool) -> bool:
        """Whether all have answered that they are done before `ended`."""
        for p in self.processes:
            assert p.stdin is not None
            print(module, "last" if last else "more", folder, file=p.stdin, flush=True)
        done = []
        for p in self.processes:
            assert p.stdout is not None
            ready, _, _ = select.select([p.stdout], [], [], max(0.1, ended - time.monotonic()))
            done.append(bool(ready) and p.stdout.readline() == "done\n")
        return all(done)

    def end(self) -> None:
        for p in self.processes:
            p.kill()
            p.communicate()
        self.folder.cleanup()


RUNNING: list[Ranks] = []  # one, once it is started


@atexit.register
def _end() -> None:
    while RUNNING:
        RUNNING.pop().end()


def on_ranks(module: str, folder: Path, seconds: float = 280.0, *, last: bool = False) -> list[dict]:
    """What ``module.main(rank, folder)`` returns on each of two ranks; raises with their output where one fails.

    With `last` a process ends when its function returns, for functions in which one rank sees the other end.
    """
    if not RUNNING:
        RUNNING.append(Ranks())
    ranks = RUNNING[0]
    done = ranks.run(module, folder, time.monotonic() + seconds, last)
    told = "\n".join(f"rank {rank}: {log.read_text()}" for rank, log in enumerate(ranks.logs))
    if last or not done:
        _end()
    assert done, told
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]


def loopback() -> dict[str, str]:
    """Environment variables that keep gloo on this machine, with one thread per process, and what is compiled on disk.

    A process that compiles the library anew takes twice as long to start as one that reads what another has compiled.
    """
    name = "lo0" if sys.platform == "darwin" else "lo"
    kept = {"PYTHONDONTWRITEBYTECODE": ""}
    return {"GLOO_SOCKET_IFNAME": name, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **kept}


def _main(folder: str, rank: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the functions print goes into the log
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), SIZE)
    limit = datetime.timedelta(seconds=240)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE, timeout=limit)
    for line in sys.stdin:
        module, more, where = line.rstrip("\n").split(" ", 2)
        try:
            results = importlib.import_module(module).main(rank, Path(where))
            torch.save(results, Path(where) / f"{rank}.pt")
        except BaseException:
            traceback.print_exc()
            break
        with contextlib.suppress(BrokenPipeError):
            print("done", file=answers, flush=True)
        if more == "last":
            break
    sys.stderr.flush()
    os._exit(0)  # whatever the backend's threads still do


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
