import pytest
import torch
from torch import nn

from frechet.objective import Objective, l2
from frechet.objective.criteria import squared_error
from laws import close
from objective_cases import mlp, randn

X, Y = randn(5, 2), randn(5, 2, seed=9)


def test_l2_is_torchs_weight_decay():
    model = mlp(nn.Tanh())
    plain = Objective(model, squared_error(), [(X, Y)])
    decayed = Objective(model, squared_error(), [(X, Y)], penalty=l2(0.3))
    close(decayed.gradient(), plain.gradient() + 0.3 * plain.point)
    assert decayed.penalties[0][1].convex


def test_a_negative_strength_is_refused():
    with pytest.raises(ValueError, match="l2: strength must be non-negative, got -1"):
        l2(-1)


def test_batches_are_numbered_split_and_cast():
    objective = Objective(mlp(nn.Tanh()), squared_error(), [(X, Y), (X[:2], Y[:2])], dtype=torch.float32)
    found = list(objective.parts[0].batches(torch.device("cpu")))
    assert [(b.index, len(b.targets)) for b in found] == [(0, 5), (1, 2)]
    assert {b.inputs.dtype for b in found} == {b.targets.dtype for b in found} == {torch.float32}


def test_only_a_shard_may_hold_no_batch():
    [part] = Objective(mlp(nn.Tanh()), squared_error(), []).parts
    with pytest.raises(ValueError, match="data must hold at least one batch, got an empty iterable"):
        list(part.batches(torch.device("cpu")))
    object.__setattr__(part, "shard", True)
    assert list(part.batches(torch.device("cpu"))) == []
