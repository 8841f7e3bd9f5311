"""The code as numbers, and the public names on one page.

    python benchmarks/house.py [--api] [ROOT ...]

For each checkout ROOT (this one if none is given): files and lines of each room, the median and the largest file, the
names of `frechet.__all__`, modules that attribute access does not find because another object has their name,
functions of a cyclomatic complexity above 10, 15, 20 (ruff C901, those that are marked in the code included), and the
time of `import frechet` beside that of `import torch`, the least of five. With `--api`: every public name of every
room, with the first sentence of its docstring.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]

HIDDEN = """
import importlib, json, pathlib, sys
import frechet
root = pathlib.Path(frechet.__file__).parent
hidden = []
for path in sorted(root.rglob("*.py")):
    parts = [p for p in path.relative_to(root).with_suffix("").parts if p not in ("__init__", "__main__")]
    module, found = importlib.import_module(".".join(["frechet", *parts])), frechet
    for part in parts:
        found = getattr(found, part, None)
    hidden += [".".join(parts)] if found is not module else []
print(json.dumps({"hidden": len(hidden), "names": len(frechet.__all__)}))
"""


def told(root: Path, code: str) -> str:
    """What `code` prints in a process that imports frechet from `root`."""
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root / 'src')!r})\n{code}"]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


def seconds(root: Path, module: str) -> float:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return min(float(told(root, code)) for _ in range(5))


def complexities(root: Path) -> list[int]:
    """The cyclomatic complexity of each function, by ruff C901."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--ignore-noqa", "--select", "C901"]
    command += ["--config", "lint.mccabe.max-complexity = 1", "--output-format", "json", str(root / "src")]
    found = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    return [int(f["message"].split("(")[1].split(" ")[0]) for f in found]


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def numbers(root: Path) -> dict[str, object]:
    source = root / "src" / "frechet"
    sizes = {p: lines_of(p) for p in sorted(source.rglob("*.py"))}
    rooms = sorted({p.relative_to(source).parts[0] for p in sizes if p.parent != source})
    table: dict[str, object] = {}
    for room in rooms:
        own = [n for p, n in sizes.items() if p.relative_to(source).parts[0] == room]
        table[f"{room}/"] = f"{len(own)} files, {sum(own)} lines"
    largest = max(sizes, key=lambda p: sizes[p])
    table["src"] = f"{len(sizes)} files, {sum(sizes.values())} lines"
    table["median file"] = f"{statistics.median(sizes.values()):.0f} lines"
    table["largest file"] = f"{sizes[largest]} lines ({largest.relative_to(source)})"
    table["tests"] = f"{sum(map(lines_of, (root / 'tests').rglob('*.py')))} lines"
    table |= json.loads(told(root, HIDDEN))
    found = complexities(root)
    for most in (10, 15, 20):
        table[f"functions above complexity {most}"] = sum(n > most for n in found)
    table["the largest complexity"] = max(found)
    table["import frechet / import torch"] = f"{seconds(root, 'frechet') / seconds(root, 'torch'):.2f}"
    return table


def api() -> None:
    """Print the public names, room by room."""
    import frechet
    import frechet.report

    rooms = {name: getattr(frechet, name) for name in frechet.__all__ if inspect.ismodule(getattr(frechet, name))}
    everything = {"frechet": frechet, **{f"frechet.{n}": r for n, r in rooms.items()}, "frechet.report": frechet.report}
    for title, room in everything.items():
        print(f"\n{title}: {(room.__doc__ or '').strip().splitlines()[0]}")
        for name in room.__all__:
            value = getattr(room, name)
            if not inspect.ismodule(value):
                first = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
                own = isinstance(value, type) or inspect.isfunction(value)
                print(f"    {name:28s} {first[:110] if own else ''}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, default=[HERE], metavar="ROOT")
    parser.add_argument("--api", action="store_true", help="print the public names instead")
    arguments = parser.parse_args()
    if arguments.api:
        api()
        return
    tables = [numbers(root.resolve()) for root in arguments.roots]
    for key in dict.fromkeys(key for table in tables for key in table):
        print(f"{key:32s}" + "".join(f"{table.get(key, '-')!s:>44s}" for table in tables))


if __name__ == "__main__":
    main()
