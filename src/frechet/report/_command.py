"""The command line: ``frechet report``, ``check``, ``compare``, ``history`` and ``quantize``.

Whatever the user got wrong ends in one sentence on standard error and exit code 2, and changes no file. A defect of
this program shows its traceback.

Started by torchrun, the processes share the work; rank 0 alone writes and speaks. The others are heard where they know
what rank 0 cannot.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from frechet.analyze import plan, read_history
from frechet.errors import LostRank, NonFinite, NotConverged, NotDifferentiable, UnusableObjective
from frechet.objective import Objective
from frechet.operators.derivatives._hessian import hessian
from frechet.report import _problems as problems
from frechet.report import _quantize as planning
from frechet.report._assemble import ALLOCATOR, assemble
from frechet.report._compare import Compared, compared
from frechet.report._files import ensure_writable, locked, write_atomic
from frechet.report._fingerprint import fingerprint
from frechet.report._history import page as history_page
from frechet.report._history import sentences
from frechet.report._launch import command_line, interrupts, launched, launched_group, speaks
from frechet.report._measure import WEIGHTS, measure
from frechet.report._page import render
from frechet.report._progress import progress
from frechet.report._run import Run
from frechet.report._schema import Report
from frechet.report._serialize import dumps
from frechet.report._settings import Settings
from frechet.report._source import load, restricted
from frechet.report._terminal import show
from frechet.report._threads import faster, fixed, restored, waiting_policy
from frechet.space import Group

VERSION = version("frechet")
USER_ERRORS = (ValueError, TypeError, OSError, UnusableObjective, NonFinite, NotDifferentiable, NotConverged, LostRank)
CHECKPOINT = "unfinished.frechet"
FILES = ("index.html", "report.json", CHECKPOINT)
INTERRUPTED = 130  # what shells expect after Ctrl-C
MAPPED = ("1073741824", "4294967296")  # bytes: blocks up to the first are kept, the heap is trimmed from the second
ROUTES = {"reverse": "route", "forward": "route", "vmap": "examples", "loop": "examples"}

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Curvature of PyTorch models: exact products, error bars, costs.",
)  # fmt: skip

SourceArgument = Annotated[
    str, typer.Argument(help=f"A built-in problem ({', '.join(problems.PROBLEMS)}) or path/to/file.py:function.")
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for index.html and report.json.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads (default: one or all, whichever is faster now).")
]
RestrictOption = Annotated[
    list[str] | None,
    typer.Option(help='Parameters to look at, by pattern: "layers.*.weight"; all others are frozen. May be repeated.'),
]
RouteOption = Annotated[
    list[str] | None,
    typer.Option(
        help="reverse or forward for Gauss-Newton products, vmap or loop for single examples. May be repeated."
    ),
]
TimeoutOption = Annotated[str, typer.Option(help="With torchrun: how long to wait for another process: 90s, 10m.")]


@app.command()
def report(
    source: SourceArgument = "digits",
    out: OutOption = Path("report"),
    seed: SeedOption = 0,
    top: Annotated[int, typer.Option(min=1, help="Eigenvalues from each end.")] = 5,
    probes: Annotated[int, typer.Option(min=8, help="Random vectors of the spectral density.")] = 8,
    steps: Annotated[int, typer.Option(min=8, help="Lanczos steps per probe.")] = Settings.steps,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes for SGD, separated by commas.")] = "1,8,32,128",
    budget: Annotated[str | None, typer.Option(help="Bound of the time: 90s, 5m, 2h.")] = None,
    products: Annotated[int | None, typer.Option(min=1, help="Bound of the operator-vector products.")] = None,
    restrict: RestrictOption = None,
    route: RouteOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    threads: ThreadsOption = None,
    timeout: TimeoutOption = "10m",
) -> None:
    """Measure the curvature of a model and write index.html and report.json."""
    settings = Settings(
        top, probes, steps, batch_sizes=_sizes(batch_sizes), seed=seed, threads=threads, restrict=tuple(restrict or ()),
        **_routes(route or []),
    )  # fmt: skip
    limit = _seconds(budget)
    wait = _seconds(timeout, "--timeout")
    assert wait is not None
    with _threads(threads), launched_group(wait) as group:
        console = Console(quiet=group is not None and group.rank > 0)
        folder = _folder(out) if group is None else _ensured(out, group)
        with nullcontext() if console.quiet else locked(folder):
            bounds = [b for b in (budget, None if products is None else f"{products} products") if b]
            made = _measured(source, settings, folder, (limit, products), resume, group, console, bounds)
            if console.quiet:
                return
            write_atomic(folder / "report.json", dumps(made))
            write_atomic(folder / "index.html", render(made))
            (folder / CHECKPOINT).unlink(missing_ok=True)
        show(made, console)
        console.print(f"\n{folder / 'index.html'}", markup=False, highlight=False, soft_wrap=True)


def _measured(
    source: str, settings: Settings, folder: Path, budget: tuple[float | None, int | None], resume: bool,
    group: Group | None, console: Console, bounds: list[str],
) -> Report:  # fmt: skip
    """The report of a finished run."""
    objective, title = load(source, group)
    objective = restricted(objective, settings.restrict)
    with progress(console, list(WEIGHTS)) as bar:
        run = Run(
            objective.space.device, WEIGHTS, folder / CHECKPOINT, "", budget[1], budget[0], bar, group=group,
            space=objective.space,
        )  # fmt: skip
        # before the objective is used: use may fill caches
        run.fingerprint = fingerprint(objective, source, replace(settings, threads=None), VERSION)
        if resume and not run.load():
            console.print(f"nothing to resume in {folder}: starting", markup=False, highlight=False)
        try:
            with interrupts(run.interrupt):
                measure(objective, settings, run)
        except KeyboardInterrupt:
            raise Interrupted(run.said_kept()) from None
    command = shlex.join([*command_line(), *[a for a in sys.argv[1:] if a != "--resume"]])
    date = datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")[:16]
    named = f"{source} (built in)" if source in problems.PROBLEMS else source
    origin = (title, named, date, command, " and ".join(bounds) or "none")
    return assemble(objective, settings, run, origin, VERSION)


class Interrupted(Exception):
    """Ctrl-C, with the sentence that says what was kept; typer would swallow a KeyboardInterrupt and its words."""


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="report.json of one report.")],
    second: Annotated[Path, typer.Argument(help="report.json of another.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for compare.html.")] = Path("report"),
) -> None:
    """Put two reports, such as those of two checkpoints, side by side on one page."""
    found = Compared.read(first, second)
    folder = ensure_writable(out, ("compare.html",))
    write_atomic(folder / "compare.html", compared(found))
    Console().print(str(folder / "compare.html"), markup=False, highlight=False, soft_wrap=True)


@app.command()
def history(
    folder: Annotated[Path, typer.Argument(help="Folder of a Monitor: with readings.jsonl.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for history.html (default: the same).")
    ] = None,
) -> None:
    """Draw the curvature over a training run that a Monitor has measured, against its limits."""
    found = read_history(folder)
    target = ensure_writable(out or (folder if folder.is_dir() else folder.parent), ("history.html",))
    write_atomic(target / "history.html", history_page(found, str(folder)))
    console = Console()
    for sentence in sentences(found):
        console.print(sentence, markup=False, highlight=False)
    console.print(f"\n{target / 'history.html'}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def quantize(
    source: SourceArgument,
    budget: Annotated[str, typer.Option(help="Most bytes of all parameters: 4MB, 300kB, 1.5MiB.")],
    bits: Annotated[str, typer.Option(help="Numbers of bits that are tried, separated by commas.")] = "2,3,4,6,8",
    method: Annotated[str, typer.Option(help="quadratic, taylor or trace.")] = "quadratic",
    measured: Annotated[
        bool, typer.Option("--measured", help="Plan by the measured loss of each weight quantized alone.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for plan.json and front.svg.")] = Path("quantized"),
    seed: SeedOption = 0,
    restrict: RestrictOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Plan how many bits each weight gets within a budget of bytes, and measure the loss of the plan."""
    if method not in ("quadratic", "taylor", "trace"):
        raise ValueError(f"--method must be quadratic, taylor or trace, got '{method}'")
    most, tried = planning.byte_count(budget), planning.widths(bits)
    with _threads(threads):
        objective, title = load(source)
        objective = restricted(objective, tuple(restrict or ()))
        folder = ensure_writable(out, ("plan.json", "front.svg"))
        found = planning.planned(objective, title, most, tried, method, seed, measured)
    write_atomic(folder / "plan.json", planning.as_json(found))
    write_atomic(folder / "front.svg", planning.drawn(found))
    console = Console()
    for line in planning.lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n{folder / 'plan.json'}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def check(
    source: SourceArgument,
    restrict: RestrictOption = None,
    threads: ThreadsOption = None,
    timeout: TimeoutOption = "10m",
) -> None:
    """Say whether an objective is usable, and what a product will cost."""
    wait = _seconds(timeout, "--timeout")
    assert wait is not None
    with _threads(threads), launched_group(wait) as group:
        objective, title = load(source, group)
        objective = restricted(objective, tuple(restrict or ()))
        lines = checked(objective, title, choosing=group is None and not fixed(threads))
    for line in lines if group is None or group.rank == 0 else []:
        typer.echo(line)


def checked(objective: Objective, title: str, choosing: bool = False) -> list[str]:
    """The lines of ``frechet check``; raises for what makes an objective unusable.

    `choosing`: the number of threads is chosen by timing a product with one and with all.
    """
    found = objective.check()
    space = objective.space
    H, v = hessian(objective), space.random(0, 0)
    other = H @ space.random(1, 0)  # the first product allocates
    told = [faster(lambda: H @ v)] if choosing else []
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
        *(f"{_named(c)} couples the examples of a batch: the loss depends on the batches" for c in found.coupled[:3]),
        *(f"{'proved' if p.proved else 'not proved'}: {p.claim} (to {p.difference:.0e})" for p in found.proved),
        *cost.lines(),
        *told,
    ]
    return [*lines, "usable"]


def _named(coupled: str) -> str:
    return f"module {coupled}" if coupled.startswith("'") else coupled


def _taken_out(wrapper: str, ranks: int) -> str:
    line = f"the model is taken out of {wrapper}"
    return line if ranks > 1 or "Parallel" not in wrapper else f"{line}: products are of this process's data alone"


def _folder(out: Path) -> Path:
    return ensure_writable(out, FILES)


def _ensured(out: Path, group: Group) -> Path:
    """The folder, which rank 0 alone writes to."""
    group.together(lambda: None if group.rank else _folder(out))
    return out


@contextmanager
def _threads(asked: int | None) -> Iterator[None]:
    """Run with the number of threads that was asked for, and give the process its own back."""
    with restored():
        if asked is not None:
            torch.set_num_threads(asked)
        yield


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


def _routes(asked: list[str]) -> dict[str, Any]:
    """The settings that ``--route`` names."""
    made: dict[str, Any] = {}
    for name in asked:
        if name not in ROUTES:
            raise ValueError(f"--route must be one of {', '.join(ROUTES)}, got '{name}'")
        if made.setdefault(ROUTES[name], name) != name:
            raise ValueError(f"--route must name one way for each kind, got '{made[ROUTES[name]]}' and '{name}'")
    return made


# --- start ------------------------------------------------------------------------------------------------------------


def _start_again() -> None:
    """Start again under settings that torch and the allocator read once, where the user has set none of them.

    Freed graphs stay mapped, which makes streaming 1.3 times faster, and idle threads sleep instead of spinning, which
    costs nothing on a quiet machine and up to sixteen times less on a busy one.
    """
    if sys.platform != "linux":
        return
    kept = {} if any(name in os.environ for name in ALLOCATOR) else dict(zip(ALLOCATOR, MAPPED, strict=True))
    settings = {**kept, **waiting_policy()}
    if settings:
        os.execve(sys.executable, [sys.executable, "-m", "frechet", *sys.argv[1:]], {**os.environ, **settings})


def main() -> None:
    """The entry point."""
    _start_again()
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
    except Interrupted as stop:
        return _interrupted(str(stop))
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted("interrupted before anything was measured: nothing is kept")
    except USER_ERRORS as error:
        if os.environ.get("FRECHET_TRACEBACK"):
            raise
        return _fail(" ".join(str(error).split()), speaks(error))
    except Exception as error:
        told = getattr(error, "format_message", None)  # a wrong option, as click and typer report it
        if told is None:
            raise
        return _fail(" ".join(str(told()).split()), speaks(error))
    if code == INTERRUPTED:  # what typer makes of Ctrl-C in some versions
        return _interrupted("interrupted before anything was measured: nothing is kept")
    return int(code or 0)


def _interrupted(sentence: str) -> int:
    _fail(sentence, not launched() or os.environ["RANK"] == "0")
    return INTERRUPTED


def _fail(sentence: str, speaking: bool) -> int:
    if speaking:
        sys.stderr.write(f"frechet: {sentence}\n")
    return 2
