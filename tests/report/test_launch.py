"""The command line on two processes, started as torchrun starts them, beside the same on one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frechet.errors import LostRank
from frechet.report._launch import command_line, interrupts, launched, launched_group, speaks
from ranks import loopback

SOURCE = Path(__file__).parents[2] / "src"
PROBLEM = """
import os, time
import torch
from torch import nn
from frechet import Objective, squared_error

class Slow(nn.Module):
    def forward(self, x):
        time.sleep(float(os.environ.get("PAUSE", "0")))
        return x

def pairs():
    torch.manual_seed(0)
    X, y = torch.randn(40, 3), torch.randn(40, 1)
    return list(zip(X.split(16), y.split(16)))

def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), Slow(), nn.Linear(5, 1))

def make():
    return Objective(net(), squared_error(), pairs())

def own():
    rank, data = int(os.environ["RANK"]), pairs()
    return Objective(net(), squared_error(), data[:1] if rank == 0 else data[1:], group="world")

def bad():
    if os.environ.get("RANK") == "1":
        raise FileNotFoundError("no such shard")
    return own() if "RANK" in os.environ else make()
"""
SMALL = ["--top", "2", "--steps", "8", "--batch-sizes", "1,8", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    (folder / "mine.py").write_text(PROBLEM)
    return folder


def environment(**more):
    # set already, so that the command does not start itself again and keeps its process number
    allocator = {
        "MALLOC_MMAP_THRESHOLD_": "1073741824",
        "MALLOC_TRIM_THRESHOLD_": "4294967296",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return {**os.environ, **loopback(), **allocator, "PYTHONPATH": str(SOURCE), "COLUMNS": "200", **more}


def started(folder, arguments, **more):
    """Two processes that know each other by torchrun's variables."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": port, **more}
    command = [sys.executable, "-m", "frechet", *arguments]
    return [
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment(RANK=str(r), LOCAL_RANK=str(r), **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]


def ended(processes):
    """(code, standard output, standard error) of each."""
    try:
        told = [p.communicate() for p in processes]  # how long that may take is the test run's own limit
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, *t) for p, t in zip(processes, told, strict=True)]


def wait_for(path, processes):
    while not path.exists():
        assert all(p.poll() is None for p in processes), ended(processes)
        time.sleep(0.02)


def numbers(folder, name):
    """The headline numbers of a report that nothing is drawn by rank for."""
    made = json.loads((folder / name / "report.json").read_text())
    values = [made["header"]["loss"], made["header"]["gradient_norm"], made["header"]["data"]["examples"]]
    for part in (made["hessian"], made["gauss_newton"]):
        pairs = part["eigenvalues"]
        values += [e["value"] for end in ("largest", "smallest") for e in pairs[end] or []]
        values += [part["trace"]["value"], part["frobenius_norm"]["value"]]
    values += [layer["trace"]["value"] for layer in made["layers"]["layers"]]
    bounds = made["learning_rate"]["sgd"]
    return [*values, *(b["identity"]["value"] for b in bounds), made["noise"]["noise_scale"]["value"]]


@pytest.fixture(scope="module")
def alone(folder):
    command = [sys.executable, "-m", "frechet", "report", "mine.py:make", "--out", "alone", *SMALL]
    subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True)
    return numbers(folder, "alone")


def test_torchrun_gives_the_report_of_one_process(folder, alone):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launcher, "--local-addr", "127.0.0.1", "-m", "frechet", "report", "mine.py:make", "--out", "two"]
    done = subprocess.run([*command, *SMALL], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert numbers(folder, "two") == pytest.approx(alone, rel=1e-6)
    assert done.stdout.count("Hessian trace:") == 1  # rank 0 alone speaks
    assert done.stdout.count("[1/11] check") == 1
    header = json.loads((folder / "two" / "report.json").read_text())["header"]
    assert header["command"].startswith("torchrun --nproc-per-node 2 -m frechet report mine.py:make")
    assert "Measured by 2 processes, each with its share of the data" in header["remarks"][-1]


def test_a_killed_rank_ends_the_other_and_the_run_can_go_on(folder, alone):
    arguments = ["report", "mine.py:own", "--out", "killed", *SMALL]
    checkpoint = folder / "killed" / "unfinished.frechet"
    processes = started(folder, arguments, PAUSE="0.003")
    wait_for(checkpoint, processes)
    processes[1].kill()
    first, _ = ended(processes)
    assert first[0] == 2
    assert first[2].startswith("frechet: rank 0 of 2: another process of the group ended or did not answer")
    assert first[2].count("\n") == 1

    first, second = ended(started(folder, [*arguments, "--resume"]))
    assert (first[0], second[0]) == (0, 0), first[2]
    assert "nothing to resume" not in first[1]
    assert second[1] == ""
    assert numbers(folder, "killed") == pytest.approx(alone, rel=1e-6)
    assert not checkpoint.exists()


def test_what_one_rank_alone_meets_is_told_once(folder):
    first, second = ended(started(folder, ["check", "mine.py:bad"]))
    assert (first[0], second[0]) == (2, 2)
    assert first[2] == ("frechet: rank 1: mine.py:bad raised FileNotFoundError: no such shard (line 30 of mine.py)\n")
    assert second[2] == ""


# --- in this process --------------------------------------------------------------------------------------------------


def test_one_process_is_no_launch(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert not launched()
    assert command_line() == ["frechet"]
    assert speaks(ValueError())
    with launched_group(1.0) as group:
        assert group is None


def test_a_launch_in_which_nobody_answers_ends_in_time(monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    for name, value in {**loopback(), "RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    assert not speaks(ValueError())
    begun = time.monotonic()
    with pytest.raises(LostRank, match="rank 1 of 2: the processes did not find each other within 1 s"):
        launched_group(1.0).__enter__()
    assert time.monotonic() - begun < 20


def test_the_second_interrupt_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    answers = [True, False]
    with interrupts(lambda: answers.pop(0)):
        signal.raise_signal(signal.SIGINT)
        assert answers == [False]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
