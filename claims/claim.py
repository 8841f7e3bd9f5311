"""Re-measure what papers claim for methods that are here, and write the table of verdicts.

    python claims/claim.py [name ...]

Each other script of this folder measures one claim in at most two minutes on two cores. At its head stand the paper and
the claim; `measure()` returns a `Claim`. Negative results stay. Without names all run; docs/claims.md and
docs/claims.json are written, where scripts that did not run keep their rows.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
Verdict = Literal["holds", "holds in part", "does not hold here"]


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, the paper's own figure beside ours, and what follows."""

    paper: str
    claim: str
    theirs: str
    ours: str
    verdict: Verdict
    why: str
    name: str  # of the public function


def measured(script: str) -> Claim:
    """What the script of this name measures."""
    spec = importlib.util.spec_from_file_location(script, HERE / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.measure()


def scripts() -> list[str]:
    """The names of all scripts."""
    return sorted(p.stem for p in HERE.glob("*.py") if p.stem != "claim")


def page(claims: dict[str, Claim]) -> str:
    """The table as a page of the manual."""
    lines = [
        "# Claims of papers, measured again",
        "",
        "Each row is a script in `claims/` that runs in at most two minutes. `make claims` runs them all and writes",
        "this page. A claim that does not hold here stays in the table.",
        "",
        "| Paper | Claim | The paper's figure | Ours | Verdict | Why | Function |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for script, c in claims.items():
        cells = (c.paper, c.claim, c.theirs, c.ours, f"**{c.verdict}**", c.why, f"`{c.name}` (`claims/{script}.py`)")
        lines.append("| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the scripts that are named, or all."""
    sys.path.insert(0, str(HERE))
    found = {k: Claim(**c) for k, c in json.loads((DOCS / "claims.json").read_text()).items() if k in scripts()}
    for script in sys.argv[1:] or scripts():
        start = time.perf_counter()
        found[script] = c = measured(script)
        print(f"{script}: {c.verdict} ({time.perf_counter() - start:.0f} s)\n  {c.ours}\n  {c.why}", flush=True)
        found = dict(sorted(found.items()))
        (DOCS / "claims.md").write_text(page(found))
        (DOCS / "claims.json").write_text(json.dumps({k: asdict(c) for k, c in found.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
