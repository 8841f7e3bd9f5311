"""What a monitor measured at one step, and the file that keeps all of it: one line of JSON for each reading.

Any program reads it. Numbers that are not finite are the strings "inf", "-inf" and "nan" there.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from frechet.linalg._shown import Result, Rows

SCHEMA = "frechet.run/1"
FILE = "readings.jsonl"


@dataclass(frozen=True)
class Quantity(Result):
    """A number with the ends of its error bar, and the limit above which training is unstable, where there is one.

    `residual` is the relative residual of an eigenvalue; its bar says that an eigenvalue lies inside.
    """

    value: float
    lower: float
    upper: float
    limit: float | None = None
    residual: float | None = None
    products: int = 0
    seconds: float = 0.0

    @property
    def margin(self) -> float | None:
        """limit / value: by how much the value may grow."""
        return None if self.limit is None or not self.value > 0 else self.limit / self.value


@dataclass(frozen=True)
class Reading(Result):
    """What was measured at one step.

    `loss` is that on the probe. `rate` is the learning rate of the first parameter group, `rule` the update rule whose
    limit was taken, or None where it is not known. `notes` say what was left out, and why; `warnings` what is at or
    beyond its limit.
    """

    step: int
    loss: float | None
    rate: float | None
    rule: str | None
    quantities: dict[str, Quantity]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    products: int
    seconds: float
    share: float  # of the run's seconds that measuring has taken so far

    def __getitem__(self, name: str) -> Quantity:
        if name not in self.quantities:
            raise KeyError(f"Reading: '{name}' was not measured at step {self.step}: {'; '.join(self.notes)}")
        return self.quantities[name]

    def _line(self) -> str:
        told = [f"step {self.step}", *(f"{name} {_bar(q)}" for name, q in self.quantities.items())]
        return ", ".join([*told, f"{self.products} products, {100 * self.share:.2g} % of the time", *self.warnings])

    def _table(self) -> Rows:
        rows = [
            (name, _bar(q), "" if q.limit is None else f"{q.limit:.4g}", str(q.products))
            for name, q in self.quantities.items()
        ]
        return ("", f"step {self.step}", "limit", "products"), rows


def _bar(q: Quantity) -> str:
    if q.residual is not None:
        return f"{q.value:.4g} ± {q.upper - q.value:.2g}"
    return f"{q.value:.4g} in [{q.lower:.4g}, {q.upper:.4g}]"


@dataclass(frozen=True)
class History(Result):
    """A run: what its monitor was asked for, and its readings in the order of steps."""

    header: dict[str, Any]
    readings: tuple[Reading, ...]

    def _line(self) -> str:
        if not self.readings:
            return "no reading"
        return f"{len(self.readings)} readings, steps {self.readings[0].step} to {self.readings[-1].step}"

    def series(self, name: str) -> list[tuple[int, Quantity]]:
        """The steps at which a quantity was measured, and what it was."""
        return [(r.step, r.quantities[name]) for r in self.readings if name in r.quantities]


def read_history(folder: str | os.PathLike[str]) -> History:
    """Return the readings that a monitor wrote into a folder.

    A last line that is cut off, as a killed process leaves it, is left out.

    Args:
        folder: the monitor's folder, or its file.

    Example:
        >>> import tempfile, torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import Monitor, read_history
        >>> model = torch.nn.Linear(2, 1)
        >>> objective = Objective(model, squared_error(), [(torch.eye(2), torch.zeros(2, 1))])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     monitor = Monitor(objective, seed=0, every=1, folder=folder)
        ...     _ = monitor.step(0)
        ...     len(read_history(folder).readings)
        1
    """
    path = Path(folder)
    path = path / FILE if path.is_dir() or path.suffix != ".jsonl" else path
    if not path.is_file():
        raise ValueError(f"read_history: '{path}' does not exist; give the folder of a Monitor(..., folder=)")
    lines = path.read_text("utf-8").split("\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):  # no newline follows: it was cut off
                break
            raise ValueError(f"read_history: line {number} of '{path}' is not JSON") from error
    if not rows or rows[0].get("schema") != SCHEMA:
        raise ValueError(f"read_history: '{path}' must begin with a line of schema '{SCHEMA}', as a Monitor writes it")
    try:
        return History(rows[0], tuple(_reading(row) for row in rows[1:]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"read_history: a line of '{path}' is no reading of schema '{SCHEMA}': {error}") from error


def line_of(reading: Reading) -> str:
    """The line of JSON of a reading."""
    return json.dumps(_plain(asdict(reading)), allow_nan=False, ensure_ascii=False) + "\n"


def header_line(header: dict[str, Any]) -> str:
    """The first line of the file."""
    return json.dumps({"schema": SCHEMA, **header}, allow_nan=False, ensure_ascii=False) + "\n"


def rewrite(path: Path, header: dict[str, Any], readings: Iterable[Reading]) -> None:
    """Replace the file by these readings, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(header_line(header) + "".join(line_of(r) for r in readings), "utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    if isinstance(x, float) and not math.isfinite(x):
        return "nan" if math.isnan(x) else "inf" if x > 0 else "-inf"
    return x


def _number(x: Any) -> Any:
    return float(x) if isinstance(x, str) and x in ("nan", "inf", "-inf") else x


def _reading(row: dict[str, Any]) -> Reading:
    plain = Reading(**{**{k: _number(v) for k, v in row.items()}})
    quantities = {name: Quantity(**{k: _number(v) for k, v in q.items()}) for name, q in row["quantities"].items()}
    return replace(plain, quantities=quantities, notes=tuple(row["notes"]), warnings=tuple(row["warnings"]))
