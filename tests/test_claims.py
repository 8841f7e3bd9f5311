"""The scripts of claims/ and the page that they write."""

import ast
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "claims"))

from claim import Claim, page, scripts  # noqa: E402

MOST_LINES = 84


@pytest.mark.parametrize("script", scripts())
def test_a_script_names_paper_and_claim_and_is_short(script):
    text = (ROOT / "claims" / f"{script}.py").read_text()
    tree = ast.parse(text)
    said = ast.get_docstring(tree) or ""
    assert "Claim" in said
    assert "arXiv" in said or "doi" in said
    assert len(text.splitlines()) <= MOST_LINES
    assert any(isinstance(node, ast.FunctionDef) and node.name == "measure" for node in tree.body)


def test_the_page_is_what_the_scripts_measured_last():
    found = json.loads((ROOT / "docs" / "claims.json").read_text())
    assert sorted(found) == scripts()
    claims = {name: Claim(**fields) for name, fields in found.items()}
    assert page(claims) == (ROOT / "docs" / "claims.md").read_text()
    assert all(c.verdict in ("holds", "holds in part", "does not hold here") for c in claims.values())
