import json
import sys

import pytest
import torch

from frechet.compress import quantized
from frechet.report import _command as command
from frechet.report._quantize import byte_count, widths
from frechet.report._source import load

PROBLEM = """
import torch
from torch import nn
from frechet import Objective, cross_entropy

def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 3))
    return Objective(model, cross_entropy(), [(torch.randn(100, 20), torch.randint(0, 3, (100,)))])
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    (tmp_path / "problem.py").write_text(PROBLEM)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["frechet", "quantize", *arguments])
        code = command._code()
        return code, capsys.readouterr()

    return run


@pytest.mark.parametrize("options", [[], ["--measured"], ["--method", "trace", "--seed", "1"]])
def test_the_plan_fits_and_its_loss_is_measured(run, tmp_path, options):
    code, said = run("problem.py:make", "--budget", "1kB", "--bits", "2,4,8", *options)
    assert code == 0, said.err
    found = json.loads((tmp_path / "quantized" / "plan.json").read_text())
    objective, _ = load("problem.py:make")
    assert found["other_bytes"] == 51 * 4
    assert found["scale_bytes"] == (32 + 16 + 3) * 4
    assert found["bytes"] + found["other_bytes"] + found["scale_bytes"] <= 1000
    value = float(objective.value(quantized(objective, found["bits"]))) - float(objective.value())
    assert found["measured"] == pytest.approx(value, abs=1e-6)
    assert [p["bytes"] for p in found["front"]] == sorted(p["bytes"] for p in found["front"])
    assert (tmp_path / "quantized" / "front.svg").read_text().count("<svg") == 1
    for name, bits in found["bits"].items():
        alone = float(objective.value(quantized(objective, {name: bits}))) - float(objective.value())
        assert found["measured_alone"][name] == pytest.approx(alone, abs=1e-6)
    assert said.out.count("predicted") == said.out.count("measured ") == 3
    assert "the loss rises by" in said.out
    assert "0.weight" in said.out
    assert torch.equal(objective.point, load("problem.py:make")[0].point)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--budget", "4 kg"], "--budget must be a size such as 4MB, 300kB or 1.5MiB, got '4 kg'"),
        (
            ["--budget", "300B"],
            "--budget must be at least 708 B: 204 B of parameters that stay as they are, 204 B of scales",
        ),
        (["--budget", "1kB", "--bits", "1,2"], "--bits must be numbers from 2 to 16 separated by commas, got '1,2'"),
        (["--budget", "1kB", "--method", "hawq"], "--method must be quadratic, taylor or trace, got 'hawq'"),
        ([], "Missing option '--budget'"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, tmp_path, arguments, sentence):
    code, said = run("problem.py:make", *arguments)
    assert code == 2
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "quantized" / "plan.json").exists()


def test_sizes_and_widths_are_read():
    assert [byte_count(t) for t in ("4MB", "1.5 MiB", "300kB", "17", "2GiB")] == [4e6, 1.5 * 2**20, 3e5, 17, 2**31]
    assert widths("8, 2,4,4") == (2, 4, 8)


def test_a_budget_above_the_whole_model_and_a_plan_without_weights_are_told(run):
    _, said = run("problem.py:make", "--budget", "1MB", "--bits", "2,8")
    assert "as they are, all parameters take 5.0 kB and fit into the budget too" in said.out
    code, said = run("problem.py:make", "--budget", "1MB", "--restrict", "*.bias")
    assert code == 2
    assert "a trainable parameter must have two axes or more, got none; name others by weights=" in said.err
