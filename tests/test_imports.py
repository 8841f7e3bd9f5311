"""The rules on files that no type checker knows: who imports whom, and where vectors are reduced and drawn."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import frechet

SOURCE = Path(__file__).parent.parent / "src" / "frechet"
ROOMS = [
    "errors",
    "space",
    "objective",
    "operators",
    "recording",
    "linalg",
    "calculus",
    "optimize",
    "transport",
    "train",
    "analyze",
    "compress",
    "generate",
    "physics",
    "report",
    "interop",
]
FORBIDDEN_NAMES = {"utils", "util", "common", "base", "helpers", "helper", "misc"}
MOST_LINES = 400

# The rooms of algorithms on vectors, where vectors are reduced, drawn and orthogonalized by their space alone.
VECTOR_ROOMS = {"linalg", "calculus", "optimize", "transport", "train"}
VECTOR_CALLS = {"norm", "vector_norm", "dot", "vdot", "randn", "randn_like", "rand", "rand_like", "normal_", "qr"}
SPACE_NAMES = ("space", "domain", "codomain", "home")  # home: the space of vectors where a basis lies

# (file, call as written) -> why it does not touch a vector of the space
SMALL_DENSE: dict[tuple[str, str], str] = {
    ("calculus/distances/_bures.py", "torch.linalg.qr(L)"): "a factor of the covariance of features",
    ("calculus/matrices/_guarded.py", "torch.linalg.qr(A)"): "the QR of the user's own matrix",
    ("calculus/taylor/_factors.py", "torch.linalg.qr(a[0])"): "the rule for a QR of the user's own matrix",
    ("train/_jacobian_penalties.py", "torch.linalg.qr(Z)"): "directions in the outputs of each example",
    ("optimize/_constrained/interior.py", "np.linalg.norm(at.J, 2)"): "a small problem as arrays, formed whole",
    ("optimize/_constrained/interior.py", "np.linalg.norm(moved - x)"): "a small problem as arrays, formed whole",
    ("optimize/_constrained/interior.py", "np.linalg.norm(v)"): "a small problem as arrays, formed whole",
    ("optimize/_least_squares/damped_step.py", "torch.linalg.qr(A.T)"): "a Jacobian that is formed whole",
    ("optimize/_least_squares/residual.py", "torch.linalg.qr(self.J)"): "a Jacobian that is formed whole",
}

# rooms in which nothing is printed or warned: everything but the report and the command line
SILENT_ROOMS = set(ROOMS) - {"report", "errors"}
WARNS = {"interop/_table.py"}  # scikit-learn asks its estimators for warnings of its own class
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and room of every import from the library; "" for an import of the top level."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                found.append((node.lineno, "relative"))
            elif node.module == "frechet":
                found += [(node.lineno, alias.name if alias.name in ROOMS else "") for alias in node.names]
            elif (node.module or "").startswith("frechet."):
                found.append((node.lineno, (node.module or "").split(".")[1]))
        elif isinstance(node, ast.Import):
            found += [
                (node.lineno, [*alias.name.split("."), ""][1])
                for alias in node.names
                if alias.name.split(".")[0] == "frechet"
            ]
    return found


def imports_from_below(tree: ast.AST, room: str) -> list[str]:
    if room in ("__init__", "__main__"):  # the top level shows everything
        return []
    return [
        f"line {line}: {room} imports from '{other or 'the top level'}'"
        for line, other in imported_rooms(tree)
        if other not in ROOMS or ROOMS.index(other) > ROOMS.index(room)
    ]


def spaces_of(tree: ast.AST) -> set[str]:
    """Names that hold a space: annotated with Space, or assigned from `A.domain`, `A.codomain` or `x.space`."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name, annotation=ast.Name(id="Space")):
                found.add(name)
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                found |= {
                    t.id for t, v in zip(targets, values, strict=False) if isinstance(t, ast.Name) and is_space(v)
                }
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if is_space(value):
                found.add(name)
    return found


def is_space(value: ast.expr) -> bool:
    return isinstance(value, ast.Attribute) and value.attr in SPACE_NAMES


def calls_on_vectors(tree: ast.AST) -> list[tuple[int, str]]:
    found, spaces = [], spaces_of(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in VECTOR_CALLS:
                found.append((node.lineno, ast.unparse(node)))
            case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in VECTOR_CALLS:
                if not (is_space(value) or (isinstance(value, ast.Name) and value.id in spaces)):
                    found.append((node.lineno, ast.unparse(node)))
    return found


def noises(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                found.append(f"line {node.lineno}: print")
            # silencing a warning of torch's own is no noise
            case ast.Attribute(value=ast.Name(id="warnings"), attr="warn") | ast.ImportFrom(module="warnings"):
                found.append(f"line {node.lineno}: warnings")
    return found


def open_keywords(tree: ast.Module) -> list[str]:
    public = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    for node in list(public):
        if isinstance(node, ast.ClassDef):
            public += [method for method in node.body if isinstance(method, ast.FunctionDef)]
    return [
        f"line {node.lineno}: {node.name}(**{node.args.kwarg.arg})"
        for node in public
        if isinstance(node, ast.FunctionDef)
        and node.args.kwarg is not None
        # __init__ is public, _private is not
        and (not node.name.startswith("_") or node.name.startswith("__"))
    ]


TREES = {str(path.relative_to(SOURCE)): ast.parse(path.read_text()) for path in FILES}


def offenders(complaints):
    """What `complaints(file, tree)` says of every file, each with the file's name."""
    return [f"{file}: {told}" for file, tree in TREES.items() for told in complaints(file, tree)]


def test_every_file_lies_in_a_known_room():
    assert {room_of(path) for path in FILES} <= {*ROOMS, "__init__", "__main__"}


def test_a_file_imports_only_from_its_room_or_above():
    assert offenders(lambda file, tree: imports_from_below(tree, room_of(SOURCE / file))) == []


def is_private(file: str) -> bool:
    return any(part.startswith("_") and part != "__init__.py" for part in Path(file).parts)


def test_implementation_files_are_private():
    public = {file for file in TREES if not is_private(file)}
    assert {f for f in public if not f.endswith("__init__.py")} == {"errors.py"}


def hidden_modules() -> list[str]:
    """Modules that attribute access from `frechet` does not find, because another object has their name."""
    hidden = []
    for file in TREES:
        parts = [part for part in Path(file).with_suffix("").parts if part != "__init__"]
        if parts == ["__main__"]:
            continue
        found = module = importlib.import_module(".".join(["frechet", *parts]))
        found = frechet
        for part in parts:
            found = getattr(found, part)
        if found is not module:
            hidden.append(".".join(parts))
    return hidden


def test_no_name_hides_a_module():
    assert hidden_modules() == []


def test_a_name_that_hides_a_module_is_found(monkeypatch):
    monkeypatch.setattr(frechet, "linalg", frechet.trace)
    with pytest.raises(AttributeError):
        hidden_modules()
    monkeypatch.undo()
    monkeypatch.setattr(frechet.linalg, "_trace", frechet.trace)
    assert hidden_modules() == ["linalg._trace"]


@pytest.mark.parametrize("room", [frechet, *(getattr(frechet, name) for name in ROOMS if hasattr(frechet, name))])
def test_a_room_shows_what_it_lists_and_nothing_twice(room):
    if room is frechet.errors:
        return
    assert [name for name in room.__all__ if not hasattr(room, name)] == []
    assert len(set(room.__all__)) == len(room.__all__)
    assert [name for name in room.__all__ if name.startswith("_")] == []


def test_the_top_level_is_one_page():
    names = [name for name in frechet.__all__ if name not in ROOMS]
    assert len(names) <= 50


def test_no_file_is_named_after_where_code_was_put():
    parts = {part.removesuffix(".py").lstrip("_") for file in TREES for part in Path(file).parts}
    assert not FORBIDDEN_NAMES & parts


def test_files_that_the_prose_names_exist():
    """`_trace.py` in a docstring or a comment is a file of the same room."""
    missing = []
    for path in FILES:
        room = SOURCE / path.relative_to(SOURCE).parts[0]
        for named in re.findall(r"[`(]((?:\w+/)*_\w+\.py)\b", path.read_text()):
            near = [p for p in FILES if "/" in named or p.is_relative_to(room)]
            missing += [] if any(str(p).endswith("/" + named) for p in near) else [f"{path}: {named}"]
    assert missing == []


def test_no_file_is_longer_than_a_reader_can_hold():
    long = {str(p.relative_to(SOURCE)): n for p in FILES if (n := len(p.read_text().splitlines())) > MOST_LINES}
    assert long == {}


def calls_past_the_space() -> list[tuple[str, str]]:
    return [
        (file, call)
        for file, tree in TREES.items()
        if room_of(SOURCE / file) in VECTOR_ROOMS
        for _, call in calls_on_vectors(tree)
    ]


def test_vectors_are_reduced_and_drawn_by_the_space_alone():
    assert set(calls_past_the_space()) - set(SMALL_DENSE) == set()


def test_algorithms_print_and_warn_nothing():
    silent = [f for f in TREES if room_of(SOURCE / f) in SILENT_ROOMS and f not in WARNS]
    assert [told for told in offenders(lambda file, tree: noises(tree) if file in silent else [])] == []


def test_public_functions_name_their_arguments():
    assert offenders(lambda file, tree: open_keywords(tree)) == []


def test_every_exception_for_small_dense_work_is_still_needed():
    assert set(SMALL_DENSE) <= set(calls_past_the_space())
    assert all(len(reason) > 10 for reason in SMALL_DENSE.values())


# --- each rule is seen to fail ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "from frechet.linalg._trace import trace",
        "from frechet.linalg import trace",
        "import frechet.linalg._trace",
        "import frechet",
        "from frechet import trace",
        "from frechet import linalg",
        "from .trace import trace",
        "from frechet.unknown import trace",
        "def f():\n    from frechet.report import page",
    ],
)
def test_an_import_from_below_is_found(line):
    assert len(imports_from_below(ast.parse(line), "operators")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "from frechet.space import Space",
        "from frechet.operators._operator import Fact",
        "from frechet.errors import NoClosedForm",
        "import torch",
        "from frechetian import x",
    ],
)
def test_an_import_from_above_is_allowed(line):
    assert imports_from_below(ast.parse(line), "operators") == []


@pytest.mark.parametrize(
    "line",
    [
        "v.norm()",
        "torch.linalg.norm(v)",
        "torch.linalg.vector_norm(v)",
        "vector_norm(v)",
        "torch.dot(u, v)",
        "(A @ v).dot(v)",
        "torch.randn(5)",
        "rand(3)",
        "torch.randn_like(v)",
        "v.normal_()",
        "torch.linalg.qr(V)",
        "space = A.matrix\nspace.norm(v)",
    ],
)
def test_a_reduction_past_the_space_is_found(line):
    assert len(calls_on_vectors(ast.parse(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "A.domain.norm(v)",
        "self.codomain.norm(v)",
        "space = A.domain\nspace.norm(v)",
        "space, image = A.domain, A.codomain\nimage.norm(v)",
        "def f(X: Space): X.norm(v)",
        "x = 'v.norm()'",
    ],
)
def test_a_reduction_by_the_space_is_allowed(line):
    assert calls_on_vectors(ast.parse(line)) == []


def test_noise_and_open_keywords_are_found():
    assert len(noises(ast.parse("print(1)\nwarnings.warn('x')\nfrom warnings import warn"))) == 3
    assert noises(ast.parse("fingerprint(1)")) == []
    assert len(open_keywords(ast.parse("def f(**options): ...\ndef _g(**options): ..."))) == 1
    assert len(open_keywords(ast.parse("class C:\n def __init__(self, **options): ..."))) == 1
    assert open_keywords(ast.parse("def f(x):\n def g(**graph): ...")) == []
