import functools
import operator
import random
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from frechet.errors import UnusableObjective
from frechet.objective import Objective, causal_lm, default_split, subsample
from frechet.objective._data import refuse_unrepeatable, to_device, untouched_generators
from frechet.objective.criteria import squared_error
from objective_cases import mlp, ragged, randn

CPU = torch.device("cpu")
X, Y = torch.arange(10.0).view(10, 1), torch.arange(10)
dataset = TensorDataset(X, Y)


def seen(data):
    return torch.cat([b[1] for b in data]).tolist()


# --- splitting --------------------------------------------------------------------------------------------------------


def test_pairs_split_into_inputs_and_targets():
    for pair in ((X, Y), [X, Y], ((X, X), Y)):
        inputs, targets = default_split(pair)
        assert inputs is pair[0]
        assert targets is Y


def test_dicts_split_at_their_labels():
    for kind in (dict, UserDict):
        inputs, targets = default_split(kind(input_ids=X, attention_mask=X, labels=Y))
        assert list(inputs) == ["input_ids", "attention_mask"]
        assert targets is Y


def test_the_last_position_of_a_language_model_has_no_target():
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    labels = tokens.masked_fill(mask == 0, -100)
    expected = [[6, 7, 8, -100], [6, -100, -100, -100]]
    for batch in ({"input_ids": tokens, "attention_mask": mask}, {"input_ids": tokens, "labels": labels}):
        inputs, targets = causal_lm(batch)
        assert targets.tolist() == expected
        assert "labels" not in inputs
    assert labels[0].tolist() == [5, 6, 7, 8]  # not changed


def test_unshifted_labels_of_a_language_model_are_refused():
    tokens = torch.tensor([[5, 6, 7]])
    for labels in (tokens.clone(), torch.tensor([[5, 6, -100]])):
        with pytest.raises(UnusableObjective, match=r"labels equal input_ids.*pass split=causal_lm, which shifts"):
            default_split({"input_ids": tokens, "labels": labels})
    default_split({"input_ids": tokens, "labels": torch.tensor([[6, 7, -100]])})
    default_split({"input_ids": tokens, "labels": torch.tensor([[-100, -100, -100]])})


def test_batches_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"needs the key 'labels', got \['x', 'y'\]; pass split="):
        default_split({"x": X, "y": Y})
    for batch, got in ((X, "Tensor.*"), ((X, Y, Y), "tuple of length 3"), ("ab", "str of length 2.*")):
        with pytest.raises(TypeError, match=rf"a batch must be a pair .* got {got}; pass split="):
            default_split(batch)
    with pytest.raises(TypeError, match=r"causal_lm: batch must be a dict with 'input_ids', got \['labels'\]"):
        causal_lm({"labels": Y})
    with pytest.raises(TypeError, match="causal_lm: batch must be a dict with 'input_ids', got tuple"):
        causal_lm((X, Y))


@pytest.mark.parametrize("data", [(X, Y), [X, Y], X, {"input_ids": X, "labels": Y}], ids=["pair", "list", "X", "dict"])
def test_data_that_is_one_batch_is_told_to_go_into_a_list(data):
    with pytest.raises(TypeError, match=r"data that is one batch goes into a list: \[\(inputs, targets\)\]"):
        list(map(default_split, data))


def test_nested_structures_and_inference_tensors_are_moved():
    with torch.inference_mode():
        frozen = torch.ones(2)
    moved = to_device(UserDict(a=(X, [Y]), b=frozen, c="text"), CPU)
    assert moved["a"][0] is X
    assert moved["c"] == "text"
    assert not moved["b"].is_inference()


# --- repeatable data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loader", "name"),
    [
        (DataLoader(dataset, batch_size=4, shuffle=True), "RandomSampler"),
        (DataLoader(dataset, batch_size=4, sampler=SubsetRandomSampler(range(5))), "SubsetRandomSampler"),
        (DataLoader(dataset, batch_size=4, sampler=WeightedRandomSampler(torch.ones(10), 5)), "WeightedRandomSampler"),
        (DataLoader(dataset, batch_sampler=BatchSampler(RandomSampler(dataset), 4, False)), "RandomSampler"),
    ],
)
def test_a_shuffling_loader_is_refused_with_the_fix(loader, name):
    with pytest.raises(UnusableObjective, match=rf"shuffling DataLoader \({name}\); pass .*shuffle=False\)"):
        refuse_unrepeatable(loader)


def test_data_that_can_be_read_once_only_are_refused():
    with pytest.raises(UnusableObjective, match="more than once, got the iterator generator; pass a list"):
        refuse_unrepeatable(b for b in [(X, Y)])
    with pytest.raises(UnusableObjective, match="got the iterator list_iterator"):
        refuse_unrepeatable(iter([(X, Y)]))


def test_what_is_no_data_is_refused():
    with pytest.raises(TypeError, match=r"iterable of batches, got TensorDataset; pass .* DataLoader\(dataset"):
        refuse_unrepeatable(dataset)
    with pytest.raises(TypeError, match="iterable of batches, got int"):
        refuse_unrepeatable(3)


def test_ordered_loaders_and_lists_are_taken():
    for data in (DataLoader(dataset), DataLoader(dataset, batch_size=4, drop_last=True), [(X, Y)], ()):
        refuse_unrepeatable(data)


# --- subsamples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(dataset, batch_size=3),
        DataLoader(dataset, batch_size=3, shuffle=True),
        [(X[:3], Y[:3]), (X[3:], Y[3:])],
        (b for b in [(X[:3], Y[:3]), (X[3:], Y[3:])]),
        DataLoader(dataset, batch_sampler=[[0, 1, 2], [3, 4, 5, 6], [7, 8, 9]]),
    ],
)
def test_a_subsample_is_the_same_examples_in_data_order(data):
    state = torch.get_rng_state()
    part = subsample(data, 6, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert seen(part) == seen(part) == sorted(seen(part))
    assert seen(part) == seen(subsample(DataLoader(dataset), 6, seed=3))
    assert (part.population, part.examples, part.seed, len(set(seen(part)))) == (10, 6, 3, 6)
    assert len(part) == len(list(part))
    assert all(torch.equal(x.flatten().long(), y) for x, y in part)


def test_other_seeds_draw_other_examples_and_all_are_reached():
    draws = [seen(subsample([(X, Y)], 3, seed=s)) for s in range(40)]
    assert len({tuple(d) for d in draws}) > 20
    assert set(functools.reduce(operator.iadd, draws, [])) == set(range(10))
    assert seen(subsample([(X, Y)], 10, seed=0)) == list(range(10))


def test_more_examples_keep_the_first_ones():
    assert set(seen(subsample([(X, Y)], 3, seed=1))) < set(seen(subsample([(X, Y)], 7, seed=1)))


def test_a_loader_over_a_part_of_its_dataset_is_the_population():
    validation = DataLoader(dataset, batch_size=4, sampler=SubsetRandomSampler([1, 3, 5, 7]))
    part = subsample(validation, 4, seed=0)
    assert (part.population, seen(part)) == (4, [1, 3, 5, 7])


def test_data_sets_that_stream_or_batch_themselves_are_read_once():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(X, Y, strict=True))

    batched = [(X[:3], Y[:3]), (X[3:], Y[3:])]
    for loader in (DataLoader(Stream(), batch_size=4), DataLoader(batched, batch_size=None)):
        state = torch.get_rng_state()
        part = subsample(loader, 5, seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        assert seen(part) == seen(subsample(DataLoader(dataset), 5, seed=3))


def test_dict_batches_keep_their_keys():
    data = [{"x": X[:4], "labels": Y[:4], "scale": torch.tensor(2.0)}, {"x": X[4:], "labels": Y[4:], "scale": X[0, 0]}]
    part = subsample(data, 5, seed=2)
    assert torch.cat([b["labels"] for b in part]).tolist() == torch.cat([b["x"] for b in part]).flatten().tolist()


def test_an_objective_records_the_population():
    loader = DataLoader(TensorDataset(randn(9, 2), randn(9, 2)), batch_size=2, shuffle=True)
    objective = Objective(mlp(nn.Tanh()), squared_error(), subsample(loader, 5, seed=0))
    assert objective.population == 9
    assert sum(len(b.targets) for b in objective.batches()) == 5
    assert Objective(mlp(nn.Tanh()), squared_error(), ragged(randn(5, 2), randn(5, 2))).population is None


def test_impossible_subsamples_are_refused():
    with pytest.raises(ValueError, match="subsample: examples must be at least 1, got 0"):
        subsample([(X, Y)], 0, seed=0)
    with pytest.raises(ValueError, match="subsample: examples must be at most the population 10, got 11"):
        subsample(DataLoader(dataset), 11, seed=0)
    with pytest.raises(UnusableObjective, match=r"subsample: .* got a WeightedRandomSampler"):
        subsample(DataLoader(dataset, sampler=WeightedRandomSampler(torch.ones(10), 5)), 2, seed=0)
    with pytest.raises(UnusableObjective, match="shuffling DataLoader"):
        subsample(DataLoader([(X, Y)], batch_size=None, shuffle=True), 2, seed=0)
    with pytest.raises(TypeError, match="subsample: a batch must hold tensors with an example axis, got list"):
        subsample([["a", "b"]], 1, seed=0)


# --- global generators ------------------------------------------------------------------------------------------------


def draw():
    return float(torch.rand(())), float(np.random.rand()), random.random()


def fail_after_drawing():
    with untouched_generators():
        draw()
        raise KeyError


def test_global_generators_are_restored_and_reseeded():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with untouched_generators(reseed=5):
        first = draw()
    with untouched_generators(reseed=5):
        assert draw() == first
    with pytest.raises(KeyError):
        fail_after_drawing()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
