import pytest

from frechet.objective import Objective
from frechet.report._source import BadSource, load

GOOD = """
import torch
from frechet import Objective, squared_error

def make():
    torch.manual_seed(0)
    return Objective(torch.nn.Linear(2, 1), squared_error(), [(torch.ones(3, 2), torch.zeros(3, 1))])

def wrong():
    return 3

def broken():
    raise RuntimeError("no weights\\nsecond line")

number = 1
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


def test_a_function_of_a_file_gives_its_objective_and_a_title(file):
    objective, title = load(f"{file}:make")
    assert isinstance(objective, Objective)
    assert title == "mine:make"


def test_a_file_can_import_what_lies_beside_it(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text(GOOD)
    (tmp_path / "other.py").write_text("from neighbour_of_mine import make")
    assert isinstance(load(f"{tmp_path / 'other.py'}:make")[0], Objective)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            "digit",
            "source must be one of digits, digits-mlp, text, regression or path/to/file.py:function, got 'digit'",
        ),
        ("{file}", r"did you mean .*mine.py:make\?"),
        ("nowhere.py:make", "file 'nowhere.py' does not exist"),
        ("{file}:make_it", "has no function 'make_it'"),
        ("{file}:number", "'number' in .* must be a function without arguments, got int"),
        ("{file}:wrong", "must return a frechet.Objective, got int"),
        ("{file}:broken", r"raised RuntimeError: no weights \(line 13 of mine.py\)"),
    ],
)
def test_what_is_wrong_with_a_source_is_one_sentence(file, source, sentence):
    with pytest.raises(BadSource, match=sentence) as caught:
        load(source.format(file=file))
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_run_names_its_line(tmp_path):
    (tmp_path / "syntax.py").write_text("import torch\nimport no_such_module_at_all\n")
    with pytest.raises(BadSource, match=r"ModuleNotFoundError: No module named .* \(line 2 of syntax.py\)"):
        load(f"{tmp_path / 'syntax.py'}:make")
