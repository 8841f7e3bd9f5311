import json
import re
import sys

import pytest

from frechet.report import _command as command
from frechet.report._assemble import ALLOCATOR
from frechet.report._threads import PASSIVE

PROBLEM = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from frechet import Objective, cross_entropy, squared_error, causal_lm

torch.manual_seed(0)
X, y = torch.randn(40, 3), torch.randn(40, 1)
labels = torch.randint(0, 3, (40,))
PAIRS = [(X[:25], y[:25]), (X[25:], y[25:])]

def net(*extra):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), *extra, nn.Linear(5, 1))

def make():
    return Objective(net(), squared_error(), PAIRS)

def empty():
    return Objective(net(), squared_error(), [])

def nan():
    bad = X[25:].clone(); bad[3, 1] = float("nan")
    return Objective(net(), squared_error(), [(X[:25], y[:25]), (bad, y[25:])])

def shuffled():
    return Objective(net(), squared_error(), DataLoader(TensorDataset(X, y), batch_size=8, shuffle=True))

def dropout():
    return Objective(net(nn.Dropout(0.5)), squared_error(), PAIRS)

def batchnorm():
    return Objective(net(nn.BatchNorm1d(5)), squared_error(), PAIRS)

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(7, 4); self.l = nn.Linear(4, 7)
    def forward(self, input_ids):
        return self.l(self.e(input_ids))

def unshifted():
    ids = torch.randint(0, 7, (6, 5))
    return Objective(Tokens(), cross_entropy(), [{"input_ids": ids, "labels": ids}])

def mixed():
    model = net(); model[2].double()
    return Objective(model, squared_error(), PAIRS)

def integers():
    model = net(); model.register_parameter("table", nn.Parameter(torch.arange(3), requires_grad=False))
    return Objective(model, squared_error(), PAIRS)

def frozen():
    return Objective(net().requires_grad_(False), squared_error(), PAIRS)

class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x); return x.exp()
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].exp()

class ExpOnce(nn.Module):
    def forward(self, x):
        return Once.apply(x)

def once():
    return Objective(net(ExpOnce()), squared_error(), PAIRS)

def half():
    return Objective(net().half(), squared_error(), PAIRS)
"""

# what a user may get wrong, and the sentence that says so
WRONG = {
    "empty": "data must hold at least one batch",
    "nan": "batch 1 .*inputs hold NaN",
    "shuffled": "shuffle=False",
    "dropout": r"'2' \(Dropout\).*model.eval\(\)",
    "unshifted": "split=causal_lm",
    "mixed": "one dtype",
    "integers": "'table' must be floating point",
    "frozen": "must have a trainable parameter",
    "once": "marked once_differentiable",
    "half": "float32 or float64",
    "absent": "has no function 'absent'",
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "problem.py"
    path.write_text(PROBLEM)
    return path


@pytest.fixture
def frechet(monkeypatch, capfd):
    for name in ALLOCATOR:  # the tests run in this process: no start under other settings
        monkeypatch.setenv(name, "1073741824")
    for name, value in PASSIVE.items():
        monkeypatch.setenv(name, value)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["frechet", *map(str, arguments)])
        try:
            command.main()
            code = 0
        except SystemExit as done:
            code = done.code
        out = capfd.readouterr()
        return code, out.out, out.err

    return call


def test_a_report_is_written_whole_and_says_what_it_measured(frechet, file, tmp_path):
    code, out, err = frechet("report", f"{file}:make", "--out", tmp_path / "r", "--steps", 12, "--top", 2)
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["index.html", "report.json"]
    tree = json.loads((tmp_path / "r" / "report.json").read_text())
    assert tree["schema"] == "frechet.report/2"
    assert tree["left_out"] == []
    for section in ("hessian", "gauss_newton", "layers", "learning_rate", "noise", "slices"):
        assert tree[section] is not None
    assert tree["header"]["data"]["examples"] == 40
    assert "index.html" in out
    page = (tmp_path / "r" / "index.html").read_text()
    assert "problem:make" in page


def test_a_budget_of_products_is_kept_and_what_it_cost_is_named(frechet, file, tmp_path):
    code, _, err = frechet("report", f"{file}:make", "--out", tmp_path / "r", "--products", 60)
    assert code == 0, err
    tree = json.loads((tmp_path / "r" / "report.json").read_text())
    assert tree["total"]["products"] <= 60
    assert tree["left_out"]
    assert all("budget" in entry["why"] or "left out" in entry["why"] for entry in tree["left_out"])
    assert tree["header"]["budget"] == "60 products"


def test_check_says_that_a_good_objective_is_usable(frechet, file):
    code, out, _ = frechet("check", f"{file}:make")
    assert code == 0
    assert out.rstrip().endswith("usable")
    assert "a product takes" in out
    assert "two passes under different seeds agree" in out


def test_batch_statistics_are_told(frechet, file):
    code, out, _ = frechet("check", f"{file}:batchnorm")
    assert code == 0
    assert "module '2' (BatchNorm1d) couples the examples of a batch: the loss depends on the batches" in out


@pytest.mark.parametrize("command_name", ["report", "check"])
@pytest.mark.parametrize("name", list(WRONG))
def test_bad_input_is_one_sentence_and_exit_code_2_and_writes_nothing(frechet, file, tmp_path, name, command_name):
    out = tmp_path / "r"
    out.mkdir()
    (out / "index.html").write_text("old")
    arguments = ["--out", out] if command_name == "report" else []
    code, _, err = frechet(command_name, f"{file}:{name}", *arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("frechet: ")
    assert re.search(WRONG[name], err), err
    assert [(p.name, p.read_text()) for p in out.iterdir() if p.suffix == ".html"] == [("index.html", "old")]
    assert not (out / "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("report", "nowhere.py:make"), "file 'nowhere.py' does not exist"),
        (("report", "digits", "--budget", "soon"), "--budget must be a time such as 90s, 5m or 2h, got 'soon'"),
        (("report", "digits", "--batch-sizes", "1,zero"), "--batch-sizes must be positive integers"),
        (("report", "digits", "--products", "0"), "--products"),
        (("report", "digits", "--out", "/proc/nowhere/r"), "/proc/nowhere/r"),
        (("rapport",), "rapport"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_exit_code_2(frechet, arguments, sentence):
    code, _, err = frechet(*arguments)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1


def test_an_interrupted_run_keeps_its_work_and_goes_on(frechet, file, tmp_path, monkeypatch):
    out = tmp_path / "r"
    real = command.measure

    def interrupted(objective, settings, run):
        stage = run.stage

        def watched(name, compute, **more):
            if name == "Gauss-Newton density":
                raise KeyboardInterrupt
            return stage(name, compute, **more)

        run.stage = watched
        real(objective, settings, run)

    monkeypatch.setattr(command, "measure", interrupted)
    arguments = ("report", f"{file}:make", "--out", out, "--steps", 12, "--top", 2)
    code, _, err = frechet(*arguments)
    assert code == 130
    assert "interrupted; 3 finished stages are kept in" in err
    assert "--resume" in err
    assert [p.name for p in out.iterdir()] == [command.CHECKPOINT]

    monkeypatch.setattr(command, "measure", real)
    code, text, err = frechet(*arguments, "--resume")
    assert code == 0, err
    assert "Gauss-Newton eigenvalues" not in text
    assert sorted(p.name for p in out.iterdir()) == ["index.html", "report.json"]
    resumed = json.loads((out / "report.json").read_text())
    frechet("report", f"{file}:make", "--out", tmp_path / "s", "--steps", 12, "--top", 2)
    whole = json.loads((tmp_path / "s" / "report.json").read_text())
    for section, number in (("hessian", "trace"), ("gauss_newton", "trace"), ("hessian", "frobenius_norm")):
        assert resumed[section][number]["value"] == pytest.approx(whole[section][number]["value"], rel=1e-4)
    largest = [tree["hessian"]["eigenvalues"]["largest"][0]["value"] for tree in (resumed, whole)]
    assert largest[0] == pytest.approx(largest[1], rel=1e-4)


def test_a_disk_that_fills_up_leaves_the_old_report(frechet, file, tmp_path, monkeypatch):
    import errno

    out = tmp_path / "r"
    out.mkdir()
    (out / "index.html").write_text("old")

    def full(path, content):
        raise OSError(errno.ENOSPC, f"cannot write {path}: the disk is full")

    monkeypatch.setattr(command, "write_atomic", full)
    code, _, err = frechet("report", f"{file}:make", "--out", out, "--steps", 8, "--top", 1)
    assert code == 2
    assert "the disk is full" in err
    assert (out / "index.html").read_text() == "old"


def unfinished(frechet, file, out, monkeypatch, stage="Hessian eigenvalues"):
    """A run that was interrupted in `stage`."""
    real = command.measure

    def interrupted(objective, settings, run):
        before = run.stage

        def watched(name, compute, **more):
            if name == stage:
                raise KeyboardInterrupt
            return before(name, compute, **more)

        run.stage = watched
        real(objective, settings, run)

    monkeypatch.setattr(command, "measure", interrupted)
    code, _, err = frechet("report", f"{file}:make", "--out", out, *QUICK)
    monkeypatch.setattr(command, "measure", real)
    return code, err


QUICK = ("--steps", 8, "--top", 2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("X, y = torch.randn(40, 3)", "X, y = 2 * torch.randn(40, 3)"),
        ("return Objective(net(), squared_error(), PAIRS)", "return Objective(net().double(), squared_error(), PAIRS)"),
        ("torch.manual_seed(1)", "torch.manual_seed(2)"),
        ("nn.Tanh()", "nn.Sigmoid()"),
        ("import torch\n", "import torch\n# the code has changed, in whatever way\n"),
    ],
)
def test_a_run_goes_on_only_where_nothing_has_changed(frechet, file, tmp_path, monkeypatch, old, new):
    out = tmp_path / "r"
    assert unfinished(frechet, file, out, monkeypatch)[0] == 130
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    code, _, err = frechet("report", f"{file}:make", "--out", out, *QUICK, "--resume")
    assert code == 2
    assert err.count("\n") == 1
    assert "belongs to another run (the model, its code, the data" in err or "one dtype" in err or "float64" in err
    assert [p.name for p in out.iterdir()] == [command.CHECKPOINT]  # nothing was written over it
    file.write_text(text)
    assert frechet("report", f"{file}:make", "--out", out, *QUICK, "--resume")[0] == 0


class Runs:
    def __reduce__(self):
        return (pytest.fail, ("a planted file ran code",))


def test_a_planted_or_damaged_file_is_refused_in_one_sentence_and_runs_nothing(frechet, file, tmp_path, monkeypatch):
    import torch

    out = tmp_path / "r"
    unfinished(frechet, file, out, monkeypatch)
    kept = out / command.CHECKPOINT
    whole = kept.read_bytes()
    torch.save({"fingerprint": "", "results": Runs()}, tmp_path / "planted")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for content in ((tmp_path / "planted").read_bytes(), bytes(flipped), whole[:-1], b"", b"text"):
        kept.write_bytes(content)
        code, _, err = frechet("report", f"{file}:make", "--out", out, *QUICK, "--resume")
        assert code == 2
        assert re.search(r"cannot be used, it(s checksum is wrong| was not written by this version)", err), err
        assert err.count("\n") == 1


def test_two_reports_do_not_share_a_folder(frechet, file, tmp_path):
    from frechet.report._files import ensure_writable, locked

    with locked(ensure_writable(tmp_path / "r")):
        code, _, err = frechet("report", f"{file}:make", "--out", tmp_path / "r")
    assert (code, err.count("\n")) == (2, 1)
    assert "another report is being made in" in err


def test_a_page_that_cannot_be_written_is_told_before_anything_is_measured(frechet, file, tmp_path, monkeypatch):
    (tmp_path / "r" / "index.html").mkdir(parents=True)
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("it was measured"))
    code, _, err = frechet("report", f"{file}:make", "--out", tmp_path / "r")
    assert code == 2
    assert "index.html: it is not a regular file" in err


def test_an_interrupt_before_a_stage_was_finished_says_that_nothing_is_kept(frechet, file, tmp_path, monkeypatch):
    code, err = unfinished(frechet, file, tmp_path / "r", monkeypatch, stage="check")
    assert code == 130
    assert err == "frechet: interrupted before a stage was finished: nothing is kept\n"
    assert list((tmp_path / "r").iterdir()) == []

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "load", interrupted)
    code, _, err = frechet("report", f"{file}:make", "--out", tmp_path / "s")
    assert (code, err) == (130, "frechet: interrupted before anything was measured: nothing is kept\n")


def test_a_report_of_some_parameters_freezes_the_others(frechet, file, tmp_path):
    code, _, err = frechet("report", f"{file}:make", "--out", tmp_path / "r", *QUICK, "--restrict", "2.*")
    assert code == 0, err
    tree = json.loads((tmp_path / "r" / "report.json").read_text())
    assert (tree["header"]["model"]["trainable"], tree["header"]["model"]["frozen"]) == (6, 20)
    assert [layer["name"] for layer in tree["layers"]["layers"]] == ["2"]
    code, out, _ = frechet("check", f"{file}:make", "--restrict", "2.*", "--restrict", "0.bias")
    assert code == 0
    assert "R^11" in out
    code, _, err = frechet("report", f"{file}:make", "--out", tmp_path / "r", "--restrict", "nothing.*")
    assert code == 2
    assert "nothing.*" in err


def test_routes_are_taken_as_asked_and_wrong_ones_named(frechet, file, tmp_path):
    arguments = ("report", f"{file}:make", "--out", tmp_path / "r", *QUICK)
    assert frechet(*arguments, "--route", "reverse", "--route", "loop")[0] == 0
    tree = json.loads((tmp_path / "r" / "report.json").read_text())
    assert tree["header"]["route"] == "Hessian by reverse mode, Gauss-Newton by reverse mode"
    code, _, err = frechet(*arguments, "--route", "sideways")
    assert code == 2
    assert "--route must be one of reverse, forward, vmap, loop, got 'sideways'" in err
    code, _, err = frechet(*arguments, "--route", "loop", "--route", "vmap")
    assert code == 2
    assert "--route must name one way for each kind" in err


def test_two_reports_are_put_side_by_side(frechet, file, tmp_path):
    for name in ("a", "b"):
        assert frechet("report", f"{file}:make", "--out", tmp_path / name, *QUICK)[0] == 0
    paths = [tmp_path / name / "report.json" for name in ("a", "b")]
    code, out, err = frechet("compare", *paths, "--out", tmp_path / "c")
    assert code == 0, err
    assert "compare.html" in out
    assert "not told apart" in (tmp_path / "c" / "compare.html").read_text()
    code, _, err = frechet("compare", paths[0], tmp_path / "missing.json", "--out", tmp_path / "c")
    assert (code, err.count("\n")) == (2, 1)
    assert "missing.json' does not exist" in err
