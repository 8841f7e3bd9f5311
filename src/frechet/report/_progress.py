"""What is going on: a bar on a terminal, plain lines where the output is piped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Show = Callable[[str, int, int | None], None]


@contextmanager
def progress(console: Console, stages: Sequence[str]) -> Iterator[Show]:
    """A function ``show(stage, products, limit)`` for a `Run`; it does nothing on a quiet console."""
    if console.quiet:
        yield lambda _stage, _products, _limit: None
        return
    if not console.is_terminal:
        yield _plain(console, stages)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(stages))

        def show(stage: str, products: int, limit: int | None) -> None:
            number = (
                f" {products} of at most {limit} products" if limit else f" {products} products" if products else ""
            )
            bar.update(task, completed=list(stages).index(stage), description=stage + number)

        yield show


def _plain(console: Console, stages: Sequence[str]) -> Show:
    begun: set[str] = set()
    start = time.monotonic()

    def show(stage: str, _products: int, _limit: int | None) -> None:
        if stage not in begun:
            begun.add(stage)
            line = f"[{list(stages).index(stage) + 1}/{len(stages)}] {stage} ({time.monotonic() - start:.1f} s)"
            console.print(line, markup=False, highlight=False)

    return show
