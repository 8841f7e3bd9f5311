"""Which of the cases that people bring were right at an earlier commit, and which are now.

    python benchmarks/before_and_now.py [--before 94d6c8f] [--files tests/test_foreign_models.py ...]

Each case is a test of the present commit with a reference of its own (differences of plain training code, dense
matrices). All run twice: on the library of the earlier commit and on this one. The table has a line for each case:
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
FILES = (
    "tests/test_foreign_models.py",
    "tests/operators/derivatives/test_custom_functions.py",
    "tests/recording/test_kinds.py",
)
MISSING = re.compile(r"ImportError|has no attribute|unexpected keyword argument|ModuleNotFoundError")


def outcomes(source: Path, files: tuple[str, ...], folder: Path) -> dict[str, str]:
    """What every case says of the library in `source`."""
    report = folder / f"{len(list(folder.iterdir()))}.xml"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    paths = f"pythonpath={source} {ROOT / 'tests'}"  # before what pyproject.toml says
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={report}", "-o", paths]
    subprocess.run([*command, *files], cwd=ROOT, env=environment, capture_output=True, check=False)
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
    parser.add_argument("--files", nargs="*", default=FILES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = folder / "before"
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), arguments.before], cwd=ROOT, check=True)
        try:
            before = outcomes(tree / "src", tuple(arguments.files), folder)
            now = outcomes(ROOT / "src", tuple(arguments.files), folder)
        finally:
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
