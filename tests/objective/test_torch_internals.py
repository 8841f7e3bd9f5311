"""What is private in torch is used in one file, so that a new version of torch is read against one file."""

import ast
from pathlib import Path

import pytest

import frechet

SOURCE = Path(frechet.__file__).parent
ALLOWED = {"__version__", "__name__"}


def privates(tree):
    """Private names of torch in attributes and imports, by line."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=module) if (module or "").split(".")[0] == "torch":
                names = [*(module or "").split("."), *(alias.name for alias in node.names)]
                found += [(node.lineno, name) for name in names if name.startswith("_")]
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases if alias.name.split(".")[0] == "torch"]
                found += [(node.lineno, name) for name in names if "._" in name]
            case ast.Attribute(attr=name) if name.startswith("_") and name not in ALLOWED:
                whole = ast.unparse(node)
                # the names of operations are no names of Python's
                if whole.split(".")[0] in ("torch", "F", "forward_ad") and not whole.startswith("torch.ops."):
                    found.append((node.lineno, whole))
    return found


def test_what_is_private_in_torch_is_used_in_one_file():
    found = {str(p.relative_to(SOURCE)) for p in SOURCE.rglob("*.py") if privates(ast.parse(p.read_text()))}
    assert found == {"objective/_torch_internals.py"}


@pytest.mark.parametrize(
    "line",
    [
        "torch._C.f()",
        "torch.autograd._g",
        "from torch.utils import _pytree",
        "from torch.utils._pytree import tree_map",
        "import torch._ops",
        "import torch.utils._pytree as p",
        "forward_ad._current_level",
    ],
)
def test_a_private_name_is_found(line):
    assert privates(ast.parse(line))


@pytest.mark.parametrize("line", ["torch.__version__", "x._C", "from torch import nn", "torch.autograd.grad"])
def test_other_names_are_allowed(line):
    assert not privates(ast.parse(line))
