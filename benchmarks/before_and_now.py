"""Which of the cases that people bring were right at an earlier commit, and which are now.

    python benchmarks/before_and_now.py [--before 94d6c8f] [--cases 1bc84d8] [--files test_foreign_models.py ...]

Each case is a test with a reference of its own (differences of plain training code, dense matrices). It runs twice: on
the library of the earlier commit, and on this one. The rooms have moved in between, so on the earlier library the cases
run as they were written at `--cases`, the last commit before the move. The table has a line for each case:
`right`, `wrong` (an assertion about numbers), `refused` (an error of the library or of torch), `crashed` (the process
died), `no such name` (what the case asks for did not exist). Writes results/before_and_now.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ("test_foreign_models.py", "test_custom_functions.py", "test_kinds.py")
MISSING = re.compile(r"ImportError|has no attribute|unexpected keyword argument|ModuleNotFoundError")


def outcomes(source: Path, root: Path, names: tuple[str, ...], folder: Path) -> dict[str, str]:
    """What every case in the checkout `root` says of the library in `source`."""
    files = [str(path) for name in names for path in sorted((root / "tests").rglob(name))]
    report = folder / f"{len(list(folder.iterdir()))}.xml"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    paths = f"pythonpath={source} {root / 'tests'}"  # before what pyproject.toml says
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={report}", "-o", paths]
    subprocess.run([*command, *files], cwd=root, env=environment, capture_output=True, check=False)
    found = {}
    for case in ET.parse(report).iter("testcase"):
        found[f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"] = _outcome(case)
    return found


def _outcome(case: ET.Element) -> str:
    for kind in ("failure", "error"):
        trouble = case.find(kind)
        if trouble is not None:
            text = f"{trouble.get('message', '')}\n{trouble.text or ''}"
            if "crashed while running" in text:
                return "crashed"
            if MISSING.search(trouble.get("message", "")):
                return "no such name"
            return (
                "wrong" if trouble.get("message", "").startswith(("AssertionError", "assert", "Failed")) else "refused"
            )
    return "skipped" if case.find("skipped") is not None else "right"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="94d6c8f")
    parser.add_argument("--cases", default="1bc84d8")
    parser.add_argument("--files", nargs="*", default=FILES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, trees = Path(name) / "outcomes", {}
        folder.mkdir()
        for commit in dict.fromkeys((arguments.before, arguments.cases)):
            trees[commit] = Path(name) / commit
            subprocess.run(["git", "worktree", "add", "--detach", str(trees[commit]), commit], cwd=ROOT, check=True)
        try:
            files = tuple(arguments.files)
            before = outcomes(trees[arguments.before] / "src", trees[arguments.cases], files, folder)
            now = outcomes(ROOT / "src", ROOT, files, folder)
        finally:
            for tree in trees.values():
                subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    for case, what in now.items():
        print(f"{before.get(case, 'not collected'):14} {what:9} {case}")
    print(
        "before:", dict(Counter(before.get(case, "not collected") for case in now)), "now:", dict(Counter(now.values()))
    )
    record = {"before": arguments.before, "cases": [[case, before.get(case), what] for case, what in now.items()]}
    (ROOT / "benchmarks" / "results" / "before_and_now.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
