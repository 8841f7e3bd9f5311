from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from frechet.errors import UnusableObjective
from frechet.objective import Objective, causal_lm, default_split
from frechet.objective.criteria import cross_entropy, custom, squared_error
from objective_cases import (
    MAKERS,
    CausalLM,
    causal_language_model,
    conv_net_with_batch_norm,
    encoder_layer,
    mlp,
    penalized_sum,
    prepared,
    ragged,
    randn,
    seeded,
    tanh_mlp,
    unused_parameter,
    weight_norm,
)

X, Y = randn(6, 2), randn(6, 2, seed=9)


def checked(model, data=None, criterion=None, **keywords):
    return Objective(model, criterion or squared_error(), data or ragged(X, Y, sizes=(2, 2, 2)), **keywords).check()


@pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)
def test_sound_objectives_pass_and_nothing_is_moved(make):
    case, x = prepared(make)
    state, flags = torch.get_rng_state(), [m.training for m in case.objective.model.modules()]
    result = case.objective.check()
    assert result.value == float(case.objective.value())
    assert result.batches == len(list(case.objective.batches()))
    assert result.seconds > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in case.objective.model.modules()] == flags
    assert torch.equal(case.objective.point, x)


def test_examples_and_terms_are_counted():
    result = prepared(causal_language_model)[0].objective.check()
    assert (result.examples, result.terms) == (4, prepared(causal_language_model)[0].count)
    both = prepared(penalized_sum)[0].objective.check()
    assert (both.examples, both.terms, both.batches) == (8, 10 + 3, 5)


# --- who is guilty ----------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Dropout without a module, between two children."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(F.dropout(self.first(x), 0.5))


def test_functional_dropout_names_the_module_whose_forward_holds_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Functional(), nn.Tanh())).double()
    with pytest.raises(UnusableObjective, match=r"batch 0 gives total .* module '1.0' \(Functional\) gives different"):
        checked(model)
    with pytest.raises(UnusableObjective, match=r"in the next: Functional.forward gives different outputs"):
        checked(Functional().double())


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x).add_(0.1 * torch.randn(2, dtype=x.dtype))


def test_a_random_leaf_is_named():
    with pytest.raises(UnusableObjective, match=r"module '1' \(Noisy\) gives different outputs for the same inputs"):
        checked(nn.Sequential(nn.Linear(2, 2), Noisy(2, 2), nn.Tanh(), nn.Linear(2, 2)).double())


class Skipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(8))

    def forward(self, x):
        for layer in self.layers:
            if torch.rand(()) < 0.5:
                x = layer(x)
        return SimpleNamespace(logits=x)


def test_layers_left_out_at_random_are_the_whole_models_fault():
    with pytest.raises(UnusableObjective, match=r"Skipped.forward gives different outputs"):
        checked(Skipped().double())


def test_a_state_between_calls_is_found():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return Counting.calls * super().forward(x)

    with pytest.raises(UnusableObjective, match=r"module '0' \(Counting\) gives different outputs"):
        checked(nn.Sequential(Counting(2, 2), nn.Tanh()).double())


def test_a_random_criterion_is_found():
    noisy = custom(lambda f, y: ((f - y) ** 2).sum(1) * torch.rand(len(f)))
    with pytest.raises(UnusableObjective, match="outputs repeat, so the criterion is random"):
        checked(mlp(nn.Tanh()), criterion=noisy)


class Augmented(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return X[i] + 0.1 * torch.randn(2), Y[i]


def test_a_random_augmentation_is_named():
    with pytest.raises(UnusableObjective, match=r"the data themselves change between passes \(a random augmentation"):
        checked(mlp(nn.Tanh()), DataLoader(Augmented(), batch_size=2))


class Shuffled(Sampler):
    def __iter__(self):
        return iter(torch.randperm(6).tolist())

    def __len__(self):
        return 6


@pytest.mark.parametrize("size", [1, 2, 6])
def test_a_sampler_that_shuffles_unseen_is_named_even_within_one_batch(size):
    loader = DataLoader(TensorDataset(X, Y), batch_size=size, sampler=Shuffled())
    with pytest.raises(UnusableObjective, match="the same examples come in another order each time; use shuffle=False"):
        checked(mlp(nn.Tanh()), loader)


def test_a_changing_number_of_batches_is_found():
    class Shrinking:
        left = 5

        def __iter__(self):
            Shrinking.left -= 1
            return iter(ragged(X, Y, sizes=(2, 2, 2))[: Shrinking.left])

    with pytest.raises(UnusableObjective, match="two passes over the data must agree, got 3 and 2 batches"):
        checked(mlp(nn.Tanh()), Shrinking())


# --- the model's own loss ---------------------------------------------------------------------------------------------


def language_model(split, **changed):
    data = [
        {**b, **{k: f(b) for k, f in changed.items()}}
        for b in prepared(causal_language_model)[0].objective.parts[0].data
    ]
    return Objective(seeded(CausalLM), cross_entropy(), data, split=split)


def test_the_models_own_loss_is_compared():
    assert language_model(causal_lm).check().own_loss is not None
    assert prepared(tanh_mlp)[0].objective.check().own_loss is None


def test_a_wrong_loss_is_refused():
    other = language_model(default_split, labels=lambda b: b["labels"].roll(1, 1))
    with pytest.raises(UnusableObjective, match=r"on batch 0 the criterion gives .* own loss is .* split=causal_lm"):
        other.check()
    with pytest.raises(UnusableObjective, match=r"labels equal input_ids.*split=causal_lm"):
        language_model(default_split).check()


def test_models_that_take_no_labels_or_return_no_loss_are_not_compared():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x)

    class Unlost(Plain):
        def forward(self, x, labels=None):
            return {"logits": self.layer(x)}

    for kind in (Plain, Unlost):
        assert checked(kind().double(), [{"x": X, "labels": Y}]).own_loss is None


# --- what the graph shows ---------------------------------------------------------------------------------------------


def test_parameters_that_no_data_reach_are_listed():
    assert prepared(unused_parameter)[0].objective.check().unreached == ("idle.weight", "idle.bias")
    assert prepared(tanh_mlp)[0].objective.check().unreached == ()


def test_every_part_of_a_sum_may_reach_a_parameter():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(2, 2) for _ in range(3))

        def forward(self, x):
            return (self.a if float(x[0, 0]) > 0 else self.b)(x)

    model = Two().double()
    parts = [Objective(model, squared_error(), [(x, Y)]) for x in (X.abs(), -X.abs())]
    assert parts[0].check().unreached == ("b.weight", "b.bias", "c.weight", "c.bias")
    assert (parts[0] + parts[1]).check().unreached == ("c.weight", "c.bias")


def test_kinks_are_seen_in_modules_and_in_functions():
    assert prepared(conv_net_with_batch_norm)[0].objective.check().kinks == ("MaxPool2DWithIndices", "Relu")
    for make in (tanh_mlp, encoder_layer, weight_norm):
        assert prepared(make)[0].objective.check().kinks == ()
    functions = {
        "LeakyRelu": F.leaky_relu,
        "Relu": F.relu,
        "Abs": torch.abs,
        "Clamp": lambda x: x.clamp(0, 1),
        "Hardtanh": F.hardtanh,
        "PreluKernel": lambda x: F.prelu(x, torch.ones(1, dtype=x.dtype)),
        "Maximum": lambda x: torch.maximum(x, -x),
    }
    for name, f in functions.items():
        model = mlp(nn.Tanh())
        model[1].forward = f
        assert checked(model).kinks == (name,)
    for smooth in (F.gelu, F.silu, F.softplus, lambda x: x.log_softmax(1)):
        model[1].forward = smooth
        assert checked(model).kinks == ()


def test_what_the_model_raises_is_one_sentence():
    data = [(torch.ones(2, 5), torch.zeros(2, 1))]
    sentence = (
        r"the model or the data raised RuntimeError: .*shapes cannot be multiplied.* \(in batch 0, Linear.forward\)"
    )
    with pytest.raises(UnusableObjective, match=sentence):
        Objective(nn.Linear(3, 1), squared_error(), data).check()
