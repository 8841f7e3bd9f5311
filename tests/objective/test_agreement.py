"""What is compared between ranks; that all of them are told, `test_group` shows on real ones."""

from dataclasses import dataclass, field

import torch
from torch import nn

from frechet.objective import Objective, l2
from frechet.objective._agreement import agreed_part, agreed_snapshot
from frechet.objective.criteria import cross_entropy, squared_error
from objective_cases import mlp, randn

X, Y = randn(5, 2), randn(5, 2, seed=9)


@dataclass
class Alone:
    """A group of one process that writes down what it would compare."""

    numbers: dict[str, int] = field(default_factory=dict)
    rank: int = 0
    size: int = 1

    def alike(self, work, facts, _what, _advice):
        result = work()
        self.numbers = {name: fact(result) for name, fact in facts.items()}
        return result

    def exchange(self, numbers):
        return [list(numbers)]


def differences(a, b):
    assert a.keys() == b.keys()
    return {name for name in a if a[name] != b[name]}


def compared(objective, kept=True):
    group = Alone()
    agreed_snapshot(group, objective.snapshot, kept)
    return group.numbers


def normalized():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double().eval()


def test_a_snapshot_is_compared_by_its_point_mode_weights_and_state():
    model = normalized()
    objective = Objective(model, squared_error(), [(X, Y)])
    before = compared(objective)
    assert differences(before, compared(objective)) == set()
    assert differences(before, compared(2 * objective)) == {"training mode, parts and their weights"}
    model.train()
    assert differences(before, compared(objective)) == {"training mode, parts and their weights"}
    model.eval()
    model[1].running_mean += 1
    assert differences(before, compared(objective)) == {"buffers and frozen parameters"}
    assert "buffers and frozen parameters" not in compared(objective, kept=False)
    model[1].running_mean -= 1
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-9
    assert differences(before, compared(objective)) == {"the point x"}


def test_a_data_term_is_compared_by_its_space_criterion_and_penalty():
    def made(model, criterion, penalty=None):
        objective, group = Objective(model, criterion, [(X, Y)], penalty=penalty), Alone()
        parts = (objective.model, objective.parts[0], objective.space)
        model, part = agreed_part(group, lambda: parts, [(X, Y)], penalty is not None)
        assert model is objective.model
        assert part.population is None
        return group.numbers

    before = made(mlp(nn.Tanh()), squared_error())
    assert differences(before, made(mlp(nn.Tanh()), squared_error())) == set()
    assert differences(before, made(mlp(nn.Tanh()), cross_entropy())) == {"the criterion's class"}
    assert differences(before, made(mlp(nn.Tanh()), squared_error(), l2(1))) == {"the penalty's presence"}
    assert differences(before, made(mlp(nn.Tanh()).float(), squared_error())) == {
        "the parameters' names, shapes and type"
    }
