"""Several processes of a torch.distributed group on this machine, for tests: a function in each, its results back.

They find each other through a file, speak over the loopback device, and cannot outlive their time limit.
"""

import datetime
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

HERE = Path(__file__).parent


def on_ranks(module: str, folder: Path, size: int = 2, seconds: float = 280.0) -> list[dict]:
    """What ``module.main(rank, folder)`` returns on each of `size` ranks; raises with their output where one fails."""
    command = [sys.executable, str(HERE / "ranks.py"), module, str(folder), str(size)]
    environment = {**os.environ, **loopback(), "PYTHONPATH": os.pathsep.join([str(HERE.parent / "src"), str(HERE)])}
    logs = [folder / f"{rank}.log" for rank in range(size)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            processes.append(subprocess.Popen([*command, str(rank)], env=environment, stdout=file, stderr=file))
    ended = time.monotonic() + seconds
    try:
        codes = [p.wait(max(0.1, ended - time.monotonic())) for p in processes]
    finally:
        for p in processes:
            p.kill()
            p.wait()
    told = "\n".join(f"rank {rank}: {log.read_text()}" for rank, log in enumerate(logs))
    assert not any(codes), told
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def loopback() -> dict[str, str]:
    """Environment variables that keep gloo on this machine, with one thread per process, and what is compiled on disk.

    A process that compiles the library anew takes twice as long to start as one that reads what another has compiled.
    """
    name = "lo0" if sys.platform == "darwin" else "lo"
    kept = {"PYTHONDONTWRITEBYTECODE": ""}
    return {"GLOO_SOCKET_IFNAME": name, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **kept}


def _main() -> None:
    module, folder, size, rank = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    limit = datetime.timedelta(seconds=240)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
    results = importlib.import_module(module).main(rank, folder)
    torch.save(results, folder / f"{rank}.pt")
    sys.stdout.flush()
    os._exit(0)  # whatever the backend's threads still do


if __name__ == "__main__":
    _main()
