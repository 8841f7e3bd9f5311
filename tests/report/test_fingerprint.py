"""Everything that changes a number changes the fingerprint; nothing else does."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from frechet.objective import Objective, Penalty, l2
from frechet.objective.criteria import cross_entropy, custom, squared_error
from frechet.report._fingerprint import Digest, fingerprint
from frechet.report._settings import Settings

SCALE = {"value": 1.0}


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def made(change=""):
    torch.manual_seed(0)
    act = nn.ReLU() if change == "activation" else nn.Tanh()
    model = nn.Sequential(nn.Linear(3, 4), act, nn.BatchNorm1d(4), Scaled(2.0 if change == "attribute" else 1.0))
    model.append(nn.Linear(4, 2)).eval()
    model[0].bias.requires_grad_(False)
    X, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    with torch.no_grad():
        match change:
            case "point":
                model[0].weight[0, 0] += 1e-6
            case "frozen":
                model[0].bias[0] += 1.0
            case "buffer":
                model[2].running_mean[0] = 1.0
            case "mode":
                model[2].train()
            case "eps":
                model[2].eps = 0.1
            case "inputs":
                X[5, 2] += 1e-6
            case "targets":
                y[0] = 1 - y[0]
    batches = [(X[:3], y[:3]), (X[3:], y[3:])]
    if change == "order":
        batches.reverse()
    weight = 2e-3 if change == "penalty" else 1e-3
    objective = Objective(model, cross_entropy(), batches, penalty=l2(weight))
    return objective * (2.0 if change == "weight" else 1.0)


def mark(objective, settings=None, version="1"):
    return fingerprint(objective, "digits", settings or Settings(), version)


@pytest.mark.parametrize(
    "change",
    ["activation", "attribute", "point", "frozen", "buffer", "mode", "eps", "inputs", "targets", "order", "penalty",
     "weight"],
)  # fmt: skip
def test_a_change_of_model_data_or_loss_is_seen(change):
    assert mark(made()) == mark(made())
    assert mark(made(change)) != mark(made())


def test_settings_version_and_source_are_seen():
    first = mark(made())
    assert mark(made(), Settings(seed=1)) != first
    assert mark(made(), version="2") != first
    assert fingerprint(made(), "digits-mlp", Settings(), "1") != first


def objective_with(criterion, penalty=None):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    return Objective(model, criterion, [(torch.ones(3, 2), torch.zeros(3, 1))], penalty=penalty)


def loss(factor):
    return custom(lambda y, t: factor * (y - t).square().sum(1), count=len)


def loss_of_a_global():
    return custom(lambda y, t: SCALE["value"] * (y - t).square().sum(1), count=len)


def test_what_functions_close_over_and_read_is_seen(monkeypatch):
    assert mark(objective_with(loss(1.0))) == mark(objective_with(loss(1.0)))
    assert mark(objective_with(loss(1.0))) != mark(objective_with(loss(2.0)))
    assert mark(objective_with(loss(torch.ones(1)))) != mark(objective_with(loss(torch.zeros(1))))
    first = mark(objective_with(loss_of_a_global()))
    monkeypatch.setitem(SCALE, "value", 3.0)
    assert mark(objective_with(loss_of_a_global())) != first
    penalties = [Penalty(lambda p, c=c: c * p["weight"].square().sum()) for c in (1.0, 2.0)]
    assert mark(objective_with(squared_error(), penalties[0])) != mark(objective_with(squared_error(), penalties[1]))


@pytest.mark.parametrize(
    "x",
    [
        1, True, 1.0, "1", b"1", None, (1,), [1], {"a": 1}, {1}, np.ones(2), torch.ones(2), torch.ones(2).double(),
        torch.ones(2, 1), torch.tensor([1.0, 2.0]), torch.ones(2, dtype=torch.complex64), 1j, float("nan"),
        torch.ones(2).bfloat16(), torch.ones(2, 2).to_sparse(), torch.device("cpu"), torch.float32,
    ],
    ids=repr,
)  # fmt: skip
def test_values_of_every_kind_are_told_apart(x):
    def of(value):
        digest = Digest()
        digest.add(value)
        return digest.hash.hexdigest()

    others = [2, False, 2.0, "2", (2,), [2], {"a": 2}, {"b": 1}, np.zeros(2), torch.zeros(2)]
    assert of(x) == of(x)
    assert of(x) not in [of(y) for y in others]


def test_data_that_cannot_be_read_are_left_to_the_check():
    class Broken:
        def __iter__(self):
            yield (torch.ones(2, 2), torch.ones(2, 1))
            raise OSError("the disk is gone")

    assert mark(Objective(nn.Linear(2, 1), squared_error(), Broken()))


def test_drawing_batches_do_not_move_the_generator():
    class Drawn:
        def __iter__(self):
            torch.rand(1)
            return iter([(torch.ones(2, 2), torch.ones(2, 1))])

    objective = Objective(nn.Linear(2, 1), squared_error(), Drawn())
    before = torch.get_rng_state()
    mark(objective)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tensor_without_numbers_has_a_digest():
    Digest().add(torch.ones(2, device="meta"))


def test_what_refers_to_itself_ends():
    a = [1]
    a.append(a)
    Digest().add(a)


PROBLEM = """
import torch
from torch import nn
from frechet import Objective, squared_error
from beside import FACTOR

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 1)
        self.register_buffer("b", torch.zeros(1))
    def forward(self, x):
        return FACTOR * self.inner(x)

def make():
    torch.manual_seed(0)
    return Objective(Net(), squared_error(), [(torch.ones(3, 2), torch.zeros(3, 1))])
"""
ASK = """
import sys
from frechet.report._source import load
from frechet.report._fingerprint import fingerprint
print(fingerprint(load(sys.argv[1])[0], sys.argv[1], 0, "1"))
"""


def test_the_code_of_a_problem_and_of_what_it_imports_is_seen_and_processes_agree(tmp_path):
    file, beside = tmp_path / "problem.py", tmp_path / "beside.py"

    def told():
        made = [sys.executable, "-c", ASK, f"{file}:make"]
        return subprocess.run(made, capture_output=True, text=True, check=True).stdout

    file.write_text(PROBLEM)
    beside.write_text("FACTOR = 1.0\n")
    first = told()
    assert told() == first
    beside.write_text("FACTOR = 2.0\n")
    second = told()
    assert second != first
    file.write_text(PROBLEM.replace("FACTOR *", "FACTOR +"))
    assert told() not in (first, second)


def test_private_attributes_that_are_tensors_count():
    class Keeping(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.layer = nn.Linear(2, 1)
            self._kept, self._empty, self._array = torch.tensor([1.0, value]), {}, np.array([1.0, value])

        def forward(self, x):
            return self.layer(x) * self._kept.sum()

    def of(value):
        torch.manual_seed(0)
        model = Keeping(value)
        return fingerprint(
            Objective(model, squared_error(), [(torch.ones(3, 2), torch.ones(3, 1))]), "", Settings(), "1"
        )

    assert of(2.0) == of(2.0)
    assert of(2.0) != of(3.0)
