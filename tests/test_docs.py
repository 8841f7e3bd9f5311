"""What the documentation says is run: docstrings, README, manual; and what it must not leave out."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import typer

import frechet
from frechet.report import _schema as schema

ROOT = Path(__file__).parents[1]
SOURCE, DOCS = ROOT / "src", ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

# python blocks that are not run: (page, first line) -> why
FRAGMENTS: dict[tuple[str, str], str] = {}


@pytest.fixture(autouse=True)
def plain_torch():
    """The same numbers and the same print-out whatever ran before; nothing changed for what runs after."""
    state, threads, dtype = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    torch.set_printoptions(profile="default", sci_mode=False)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_printoptions(profile="default")
    torch.set_rng_state(state)
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


# --- docstrings -------------------------------------------------------------------------------------------------------


def modules_with_examples() -> list[str]:
    files = [f for f in sorted(SOURCE.rglob("*.py")) if ">>> " in f.read_text(encoding="utf-8")]
    return [".".join(f.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for f in files]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings_give_what_they_show(name):
    module = importlib.import_module(name)
    examples = [t for t in doctest.DocTestFinder().find(module) if t.examples]
    assert examples
    told = "".join(map(complaints, examples))
    assert not told, told


def complaints(examples: doctest.DocTest) -> str:
    """What differs from what the examples show; empty where nothing does."""
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(examples, out=report.append, clear_globs=False)
    return "".join(report)


def test_a_wrong_example_is_complained_of():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert re.search("Got:\n *2", complaints(wrong))


# --- pages ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    language: str
    info: str
    text: str
    line: int  # of its first line of code, from 0

    @property
    def title(self) -> str | None:
        found = re.search(r'title="([^"]+)"', self.info)
        return found and found[1]


def blocks_of(page: Path) -> list[Block]:
    lines, found, start = page.read_text(encoding="utf-8").splitlines(), [], None
    for i, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = i
            continue
        language, _, info = lines[start][3:].strip().partition(" ")
        found.append(Block(language, info, "\n".join(lines[start + 1 : i]) + "\n", start + 1))
        start = None
    assert start is None, f"{page.name}: the block that begins in line {start + 1 if start else 0} does not end"
    return found


def label(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def is_fragment(page: Path, block: Block) -> bool:
    return (label(page), block.text.splitlines()[0]) in FRAGMENTS


def python_pages() -> list[Path]:
    return [p for p in PAGES if any(b.language == "python" for b in blocks_of(p))]


@pytest.mark.parametrize("page", python_pages(), ids=label)
def test_python_of_a_page_runs_and_gives_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before, names = set(sys.modules), {"__name__": "page"}
    try:
        blocks = [b for b in blocks_of(page) if b.language == "python" and not is_fragment(page, b)]
        told = "".join(run_block(b, page, names, tmp_path) for b in blocks)
        assert not told, told
    finally:
        for new in set(sys.modules) - before:
            if str(getattr(sys.modules[new], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[new]  # a file that the page wrote


def run_block(block: Block, page: Path, names: dict[str, Any], folder: Path) -> str:
    if block.title:  # a file of the reader's, which the page imports or loads later
        (folder / block.title).write_text(block.text, encoding="utf-8")
    elif ">>> " in block.text:
        test = doctest.DocTestParser().get_doctest(block.text, names, label(page), str(page), block.line)
        test.globs = names  # get_doctest copies; one page is one session
        return complaints(test)
    else:
        exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    return ""


def test_each_fragment_is_still_there_and_there_are_few():
    present = {(label(p), b.text.splitlines()[0]) for p in PAGES for b in blocks_of(p) if b.language == "python"}
    assert set(FRAGMENTS) <= present
    assert all(FRAGMENTS.values())
    assert len(FRAGMENTS) <= 3


def test_every_block_names_its_language():
    assert {b.language for p in PAGES for b in blocks_of(p)} <= {"python", "console", "text", "json", "bash"}


# --- what must not be missing or wrong --------------------------------------------------------------------------------


def directives() -> list[str]:
    """The names of the API pages, each with its public room: frechet.linalg.trace."""
    pages = [page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md"))]
    return [name for text in pages for name in re.findall(r"^::: (\S+)$", text, re.M)]


def rooms() -> dict[str, Any]:
    found = {f"frechet.{name}": getattr(frechet, name) for name in frechet.__all__}
    found |= {"frechet.errors": frechet.errors, "frechet.report": importlib.import_module("frechet.report")}
    return {name: room for name, room in found.items() if inspect.ismodule(room)}


def resolved(name: str) -> Any:
    value: Any = frechet
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def public_names() -> list[str]:
    return [f"{room}.{name}" for room, module in rooms().items() for name in getattr(module, "__all__", vars(module))]


def test_api_pages_list_public_names_and_each_once():
    listed = directives()
    assert [name for name in listed if "._" in name or not resolved(name)] == []
    assert len(set(listed)) == len(listed)


# what a room lends to the other rooms, which the manual leaves out
INSIDE = {"Group", "Variables", "aligned", "digest", "generator", "like", "named"}
INSIDE |= {"free_memory", "peak_above", "ran_out", "start_peak"}


def test_every_public_name_is_in_the_manual_and_has_a_docstring():
    listed = [resolved(name) for name in directives()]
    places = [name for name in {*public_names(), *(f"frechet.{n}" for n in frechet.__all__)} if "__" not in name]
    values = {name: resolved(name) for name in places}
    shown = {n: v for n, v in values.items() if isinstance(v, type) or inspect.isfunction(v)}
    missing = [n for n, v in shown.items() if not any(v is w for w in listed) and n.split(".")[-1] not in INSIDE]
    assert missing == []
    assert [n for n, v in shown.items() if not v.__doc__] == []


def options() -> dict[str, set[str]]:
    group = typer.main.get_command(importlib.import_module("frechet.report._command").app)
    commands = group.commands  # pyright: ignore[reportAttributeAccessIssue]
    return {name: {o for p in command.params for o in (*p.opts, "--help")} for name, command in commands.items()}


def quoted_commands() -> list[tuple[str, str]]:
    """(page, command line) of all that the pages tell to type."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown = [line for b in blocks_of(page) if b.language in ("console", "bash") for line in b.text.splitlines()]
        quoted = re.findall(r"`((?:frechet (?:report|check)\b|--)[^`\n]*)`", text)
        found += [(label(page), t.removeprefix("$ ").partition(" #")[0].strip()) for t in shown + quoted]
    return [(page, t) for page, t in found if t.startswith(("frechet ", "--"))]


def unknown_options(command: str) -> list[str]:
    """Options of a command line, or a single option, that the program does not have."""
    words, known = shlex.split(command), options()
    if words[0] == "frechet":
        if words[1] not in known:
            return [words[1]]
        return [w for w in words[2:] if w.startswith("-") and w.partition("=")[0] not in known[words[1]]]
    return [words[0]] if not any(words[0].partition("=")[0] in o for o in known.values()) else []


def test_commands_and_options_in_the_text_exist():
    commands = quoted_commands()
    assert len(commands) > 10
    assert [(page, command) for page, command in commands if unknown_options(command)] == []


@pytest.mark.parametrize("command", ["frechet report --colour", "frechet explain x", "--colour"])
def test_an_option_that_does_not_exist_is_noticed(command):
    assert unknown_options(command)


def test_every_option_of_the_program_is_explained():
    text = "\n".join(p.read_text(encoding="utf-8") for p in PAGES)
    missing = {o for own in options().values() for o in own if o.startswith("--") and f"`{o}" not in text}
    assert missing <= {"--help"}


def test_links_between_pages_lead_somewhere():
    broken = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if re.match(r"\w+:", target) or path.endswith(".png"):
                continue
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append((label(page), target))
    assert broken == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


# rooms whose public functions list their parameters; what has one parameter needs no list
LISTED = (
    "analyze",
    "calculus",
    "compress",
    "interop",
    "linalg",
    "objective",
    "operators",
    "optimize",
    "recording",
    "space",
    "physics",
    "train",
    "transport",
)


def unlisted(function: Any) -> list[str]:
    """The parameters of a function of two or more that its docstring does not list under ``Args:``."""
    names = list(inspect.signature(function).parameters)
    section = re.search(r"^Args:\n((?:    .*\n|\n)+)", (inspect.getdoc(function) or "") + "\n", re.M)
    found = set(re.findall(r"^    \**(\w+): \S", section[1], re.M)) if section else set()
    return [name for name in names if name not in found] if len(names) > 1 else []


def public_functions(rooms_of: tuple[str, ...] = LISTED) -> list[Any]:
    names = [name for name in public_names() if name.split(".")[1] in rooms_of and name.split(".")[-1] not in INSIDE]
    values = [resolved(name) for name in names]
    return [value for value in values if inspect.isfunction(value)]


def test_public_functions_list_their_parameters():
    assert {f.__name__: missing for f in public_functions() if (missing := unlisted(f))} == {}


def test_public_functions_say_first_what_they_do():
    verb = re.compile(
        r"(Return|Solve|Estimate|Tell|Evaluate|Minimize|Find|Fit|Draw|Compute|Propagate|Record|Split|Test|Add) "
    )
    assert [f.__name__ for f in public_functions() if not verb.match(inspect.getdoc(f) or "")] == []


def test_a_parameter_that_is_not_listed_is_found():
    def scale(x, by, times=1):
        """Return x times a number.

        Args:
            x: a number.
            by: what it is multiplied by.
        """

    assert unlisted(scale) == ["times"]


# --- the schema of report.json ----------------------------------------------------------------------------------------


def schema_classes() -> list[type]:
    """Every dataclass of the report's tree, parents first."""
    found: list[type] = [schema.Report]
    for kind in found:
        for hint in get_type_hints(kind).values():
            found += [k for k in nested(hint) if k not in found]
    return found


def nested(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint):
        return [hint]  # pyright: ignore[reportReturnType]
    return [k for argument in get_args(hint) for k in nested(argument)]


@pytest.mark.parametrize("kind", schema_classes(), ids=lambda k: k.__name__)
def test_the_fields_of_report_json_are_documented_one_by_one(kind):
    text = (DOCS / "report-json.md").read_text(encoding="utf-8")
    assert schema.SCHEMA in text
    section = re.search(rf"^### {kind.__name__}\n(.*?)(?=^##|\Z)", text, re.M | re.S)
    assert section, f"docs/report-json.md has no section on {kind.__name__}"
    rows = re.findall(r"^\| `(\w+)` \| \S.* \| \S.* \|$", section[1], re.M)
    expected = [f.name for f in dataclasses.fields(kind)]
    assert rows == (["schema", *expected] if kind is schema.Report else expected)
