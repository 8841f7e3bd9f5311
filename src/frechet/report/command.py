"""The command line: ``frechet report`` and ``frechet check``.

Whatever the user got wrong ends in one sentence on standard error and exit code 2, and changes no file. A defect of
this program shows its traceback.

Started by torchrun, the processes share the work; rank 0 alone writes and speaks. The others are heard where they know
what rank 0 cannot.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
from contextlib import nullcontext
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from frechet.analyze.plan import plan
from frechet.errors import LostRank, NonFinite, NotConverged, NotDifferentiable, UnusableObjective
from frechet.objective import Objective
from frechet.operators.hessian import hessian
from frechet.report import problems
from frechet.report.assemble import ALLOCATOR, assemble
from frechet.report.files import ensure_writable, write_atomic
from frechet.report.launch import command_line, interrupts, launched, launched_group, speaks
from frechet.report.measure import WEIGHTS, Settings, measure
from frechet.report.page import render
from frechet.report.progress import progress
from frechet.report.run import Run
from frechet.report.serialize import dumps
from frechet.report.source import load
from frechet.report.terminal import show
from frechet.space import Group

VERSION = version("frechet")
USER_ERRORS = (ValueError, TypeError, OSError, UnusableObjective, NonFinite, NotDifferentiable, NotConverged, LostRank)
CHECKPOINT = "unfinished.pt"
INTERRUPTED = 130  # what typer returns for Ctrl-C

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Curvature of PyTorch models: exact products, error bars, costs.",
)  # fmt: skip

SourceArgument = Annotated[
    str, typer.Argument(help=f"A built-in problem ({', '.join(problems.PROBLEMS)}) or path/to/file.py:function.")
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for index.html and report.json.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads (default: torch's).")]
TimeoutOption = Annotated[str, typer.Option(help="With torchrun: how long to wait for another process: 90s, 10m.")]


@app.command()
def report(
    source: SourceArgument = "digits",
    out: OutOption = Path("report"),
    seed: SeedOption = 0,
    top: Annotated[int, typer.Option(min=1, help="Eigenvalues from each end.")] = 5,
    probes: Annotated[int, typer.Option(min=8, help="Random vectors of the spectral density.")] = 8,
    steps: Annotated[int, typer.Option(min=8, help="Lanczos steps per probe.")] = 32,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes for SGD, separated by commas.")] = "1,8,32,128",
    budget: Annotated[str | None, typer.Option(help="Bound of the time: 90s, 5m, 2h.")] = None,
    products: Annotated[int | None, typer.Option(min=1, help="Bound of the operator-vector products.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    threads: ThreadsOption = None,
    timeout: TimeoutOption = "10m",
) -> None:
    """Measure the curvature of a model and write index.html and report.json."""
    settings = Settings(top, probes, steps, batch_sizes=_sizes(batch_sizes), seed=seed)
    limit = _seconds(budget)
    wait = _seconds(timeout, "--timeout")
    assert wait is not None
    if threads is not None:
        torch.set_num_threads(threads)
    with launched_group(wait) as group:
        console = Console(quiet=group is not None and group.rank > 0)
        folder = ensure_writable(out) if group is None else _ensured(out, group)
        objective, title = load(source, group)
        fingerprint = _fingerprint(source, settings, objective)
        with progress(console, list(WEIGHTS)) as bar:
            run = Run(
                objective.space.device, WEIGHTS, folder / CHECKPOINT, fingerprint, products, limit, bar, group=group
            )
            if resume and not run.load():
                console.print(f"nothing to resume in {folder}: starting", markup=False, highlight=False)
            with nullcontext() if group is None else interrupts(run.interrupt):
                measure(objective, settings, run)
    if console.quiet:
        return
    command = shlex.join([*command_line(), *[a for a in sys.argv[1:] if a != "--resume"]])
    bounds = [b for b in (budget, None if products is None else f"{products} products") if b]
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    origin = (
        title,
        f"{source} (built in)" if source in problems.PROBLEMS else source,
        date,
        command,
        " and ".join(bounds),
    )
    made = assemble(objective, settings, run, origin if bounds else (*origin[:4], "none"), VERSION)
    write_atomic(folder / "report.json", dumps(made))
    write_atomic(folder / "index.html", render(made))
    (folder / CHECKPOINT).unlink(missing_ok=True)
    show(made, console)
    console.print(f"\n{folder / 'index.html'}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def check(source: SourceArgument, threads: ThreadsOption = None, timeout: TimeoutOption = "10m") -> None:
    """Say whether an objective is usable, and what a product will cost."""
    wait = _seconds(timeout, "--timeout")
    assert wait is not None
    if threads is not None:
        torch.set_num_threads(threads)
    with launched_group(wait) as group:
        objective, title = load(source, group)
        lines = checked(objective, title)
    for line in lines if group is None or group.rank == 0 else []:
        typer.echo(line)


def checked(objective: Objective, title: str) -> list[str]:
    """The lines of ``frechet check``; raises for what makes an objective unusable."""
    found = objective.check()
    space = objective.space
    H, v = hessian(objective), space.random(0, 0)
    other = H @ space.random(1, 0)  # the first product allocates
    image = H @ v
    size, cost = float(space.norm(image)), plan(H, sample=0)
    crossed = float(space.inner(space.random(1, 0), image)) - float(space.inner(v, other))
    lines = [
        f"{title}: {type(objective.model).__name__}, {space!r}",
        f"loss {found.value:.6g} over {found.terms:g} terms of {found.examples} examples in {found.batches} batches"
        + (f" on {found.ranks} ranks" if found.ranks > 1 else ""),
        *([] if found.wrapper is None else [_taken_out(found.wrapper, found.ranks)]),
        "deterministic: two passes under different seeds agree",
        "the model's own loss agrees" if found.own_loss is not None else "the model returns no loss of its own",
        "every parameter gets a gradient"
        if not found.unreached
        else f"no gradient for {len(found.unreached)} blocks: {', '.join(found.unreached[:5])}",
        "second derivatives exist"
        + (f", piecewise: {', '.join(found.kinks)} has kinks" if found.kinks else "")
        + f"; symmetric to {abs(crossed) / max(size * space.dim**0.5, 1e-300):.1g}",
        *(f"module {m} couples the examples of a batch: the loss depends on the batches" for m in found.coupled[:3]),
        *cost.lines(),
    ]
    return [*lines, "usable"]


def _taken_out(wrapper: str, ranks: int) -> str:
    line = f"the model is taken out of {wrapper}"
    return line if ranks > 1 or "Parallel" not in wrapper else f"{line}: products are of this process's data alone"


def _ensured(out: Path, group: Group) -> Path:
    """The folder, which rank 0 alone writes to."""
    group.together(lambda: None if group.rank else ensure_writable(out))
    return out


# --- arguments --------------------------------------------------------------------------------------------------------


def _sizes(text: str) -> tuple[int, ...]:
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not parts or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise ValueError(f"--batch-sizes must be positive integers separated by commas, got '{text}'")
    return tuple(sorted({int(p) for p in parts}))


def _seconds(text: str | None, option: str = "--budget") -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"{option} must be a time such as 90s, 5m or 2h, got '{text}'")
    return float(found[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[found[2]]


def _fingerprint(source: str, settings: Settings, objective: Objective) -> str:
    point = objective.point.cpu().numpy().tobytes()
    ranks = () if objective.group is None else (objective.group.size,)
    made_with = (VERSION, source, settings, repr(objective.space), *ranks)
    return hashlib.sha256(repr(made_with).encode() + point).hexdigest()


# --- start ------------------------------------------------------------------------------------------------------------


def _keep_freed_memory() -> None:
    """Start again under allocator settings that keep freed graphs mapped, which makes streaming 1.3 times faster."""
    if sys.platform != "linux" or any(name in os.environ for name in ALLOCATOR):
        return
    settings = dict(zip(ALLOCATOR, ("1073741824", "4294967296"), strict=True))
    os.execve(sys.executable, [sys.executable, "-m", "frechet", *sys.argv[1:]], {**os.environ, **settings})


def main() -> None:
    """The entry point."""
    _keep_freed_memory()
    sys.argv[0] = "frechet"
    code = _code()
    if launched():  # the backend's threads may outlive the group and abort an exit that waits for them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def _code() -> int:
    """The exit code of the command, after its one sentence on standard error if it failed."""
    code = 0
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="frechet", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except USER_ERRORS as error:
        if os.environ.get("FRECHET_TRACEBACK"):
            raise
        return _fail(" ".join(str(error).split()), speaks(error))
    except Exception as error:
        told = getattr(error, "format_message", None)  # a wrong option, as click and typer report it
        if told is None:
            raise
        return _fail(" ".join(str(told()).split()), speaks(error))
    if code == INTERRUPTED:
        kept = "interrupted; what was measured so far is kept: repeat the command with --resume to go on"
        return _fail(kept, not launched() or os.environ["RANK"] == "0")
    return int(code or 0)


def _fail(sentence: str, speaking: bool) -> int:
    if speaking:
        sys.stderr.write(f"frechet: {sentence}\n")
    return 2
