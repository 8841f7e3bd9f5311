"""Two reports side by side: each number of both, and whether their intervals tell them apart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from frechet.report.schema import Report
from frechet.report.serialize import from_json


@dataclass(frozen=True)
class Compared:
    """Two reports and the files that they were read from."""

    first: Report
    second: Report
    names: tuple[str, str]

    @classmethod
    def read(cls, first: Path, second: Path) -> Compared:
        """Read two ``report.json``. Raises ValueError with one sentence that names the file."""
        return cls(_read(first), _read(second), (str(first), str(second)))


def _read(path: Path) -> Report:
    if not path.is_file():
        raise ValueError(f"compare: file '{path}' does not exist; give the report.json of a report")
    try:
        tree = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"compare: '{path}' is not JSON; give the report.json of a report") from error
    try:
        return from_json(tree)
    except ValueError as error:
        raise ValueError(f"compare: '{path}': {error}") from error


def compared(found: Compared) -> str:
    """The page."""
    raise NotImplementedError
