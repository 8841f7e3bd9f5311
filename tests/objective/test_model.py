from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frechet.errors import UnusableObjective
from frechet.objective import Objective
from frechet.objective._model import (
    call,
    couplings,
    exact_math,
    moving_buffers,
    outputs_of,
    parameter_space,
    places_of,
    refuse_unusable,
    training_flags,
    unwrap,
)
from frechet.objective._structure import Layout
from frechet.objective.criteria import squared_error
from frechet.operators.derivatives._hessian import hessian
from laws import close
from objective_cases import mlp, randn

CPU = torch.device("cpu")


def linear():
    return nn.Linear(2, 2)


# --- unwrapping -------------------------------------------------------------------------------------------------------


def test_wrappers_are_taken_off_and_names_are_clean():
    model = mlp(nn.Tanh())
    wrapped = nn.DataParallel(torch.compile(nn.DataParallel(model), backend="eager"))
    assert unwrap(wrapped) is model
    objective = Objective(wrapped, squared_error(), [(randn(3, 2), randn(3, 2))])
    assert objective.model is model
    assert objective.space.names == ("0.weight", "0.bias", "2.weight", "2.bias")


def test_compiled_parts_run_eagerly_inside_products():
    model, data = mlp(nn.Tanh()), [(randn(3, 2), randn(3, 2))]
    expected = hessian(Objective(model, squared_error(), data)).dense()
    model[0] = torch.compile(model[0], backend="aot_eager")
    objective = Objective(model, squared_error(), data)
    close(hessian(objective).dense(), expected)
    assert objective.space.names[0] == "0._orig_mod.weight"


# --- parameters -------------------------------------------------------------------------------------------------------


def test_frozen_parameters_are_no_part_of_the_space():
    model = mlp(nn.Tanh())
    model[0].weight.requires_grad_(False)
    assert parameter_space(model).names == ("0.bias", "2.weight", "2.bias")


def with_parameter(p, **keywords):
    model = linear()
    model.extra = nn.Parameter(p, **keywords)
    return model


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (with_parameter(torch.ones(2, dtype=torch.complex64)), TypeError, "'extra' must be real, got torch.complex64"),
        (
            with_parameter(torch.ones(2, dtype=torch.int8), requires_grad=False),
            TypeError,
            "'extra' must be floating point, got torch.int8; dequantize it",
        ),
        (
            with_parameter(torch.ones(2).double()),
            TypeError,
            "got 'weight' is float32, 'extra' is float64; pass",
        ),
        (linear().half(), TypeError, "must be float32 or float64, got torch.float16; .* pass dtype=torch.float32"),
        (linear().bfloat16(), TypeError, "must be float32 or float64, got torch.bfloat16; .* pass dtype="),
        (linear().requires_grad_(False), UnusableObjective, "Linear must have a trainable parameter, got none"),
        (nn.ReLU(), UnusableObjective, "ReLU must have a trainable parameter, got none"),
        (nn.LazyLinear(2), UnusableObjective, "lazy parameter 'weight' has no shape yet; run one forward pass first"),
    ],
)
def test_models_that_cannot_be_differentiated_are_refused(model, kind, message):
    with pytest.raises(kind, match=message):
        Objective(model, squared_error(), [(torch.ones(1, 2), torch.ones(1, 2))])


# --- random or coupled modules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Dropout(0.1), r"module '1' \(Dropout\) drops units at random .*model.eval\(\), or .*dropout_seed=0"),
        (nn.AlphaDropout(0.1), r"\(AlphaDropout\) drops units"),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.1), r"\(LSTM\) drops units"),
        (nn.MultiheadAttention(2, 1, dropout=0.1), r"\(MultiheadAttention\) drops units"),
        (nn.TransformerEncoderLayer(2, 1), r"\(Dropout\) drops units|\(MultiheadAttention\) drops units"),
        (nn.RReLU(), r"\(RReLU\) draws its slopes at random in training mode; call model.eval\(\), or"),
        (nn.SyncBatchNorm(2), r"\(SyncBatchNorm\) normalizes over the batches of all processes; call model.eval\(\)"),
        (nn.utils.parametrizations.spectral_norm(linear()), r"spectral norm that moves its buffers.*model.eval\(\)"),
        (nn.utils.spectral_norm(linear()), r"spectral norm that moves its buffers.*model.eval\(\)"),
    ],
)
def test_modules_that_are_random_in_training_are_refused_there_only(module, message):
    model = nn.Sequential(linear(), module)
    objective = Objective(model, squared_error(), [(torch.ones(1, 2), torch.ones(1, 2))])
    for ask in (lambda: hessian(objective), objective.value, objective.gradient, objective.check):
        with pytest.raises(UnusableObjective, match=message):
            ask()
    model.eval()
    refuse_unusable(model, seeded=False)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.SyncBatchNorm(2, track_running_stats=False), r"\(SyncBatchNorm\) normalizes over the batches of all"),
        (nn.Embedding(3, 2, max_norm=1.0), r"\(Embedding\) changes its weights at each call; set max_norm=None"),
        (nn.EmbeddingBag(3, 2, sparse=True), r"\(EmbeddingBag\) gives sparse gradients; set sparse=False"),
    ],
)
def test_some_modules_are_refused_in_evaluation_mode_too(module, message):
    with pytest.raises(UnusableObjective, match=message):
        refuse_unusable(nn.Sequential(linear(), module).eval(), seeded=True)


def test_harmless_modules_in_training_mode_are_taken():
    harmless = (nn.Dropout(0.0), nn.InstanceNorm1d(2), nn.GroupNorm(1, 2), nn.LSTM(2, 2), nn.Embedding(3, 2))
    refuse_unusable(nn.Sequential(*harmless, nn.BatchNorm1d(2)).train(), seeded=False)
    random = (nn.Dropout(0.5), nn.RReLU(), nn.LSTM(2, 2, 2, dropout=0.5), nn.MultiheadAttention(2, 1, dropout=0.1))
    refuse_unusable(nn.Sequential(*random).train(), seeded=True)
    refuse_unusable(nn.SyncBatchNorm(2).eval(), seeded=False)


def test_modules_that_couple_the_examples_are_named():
    norms = (nn.BatchNorm1d(2), nn.BatchNorm2d(2, track_running_stats=False), nn.InstanceNorm1d(2), nn.GroupNorm(1, 2))
    model = nn.Sequential(linear(), *norms, nn.Sequential(nn.BatchNorm3d(2)))
    three = ("'1' (BatchNorm1d)", "'2' (BatchNorm2d)", "'5.0' (BatchNorm3d)")
    assert couplings(model, training_flags(model)) == three
    flags = training_flags(model)
    assert couplings(model.eval(), training_flags(model)) == three[1:2]
    assert couplings(model, flags) == three  # the recorded flags count, not the present ones


def test_buffers_that_may_move_are_those_of_modules_in_training():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[1].eval()
    expected = ("0.running_mean", "0.running_var", "0.num_batches_tracked")
    assert moving_buffers(model, places_of(model)) == expected
    model[1].running_var = model[0].running_var  # a buffer with two homes moves if one of them does
    assert moving_buffers(model, places_of(model)) == expected


# --- running ----------------------------------------------------------------------------------------------------------


def fail_inside(model, flags):
    with exact_math(tuple(model.modules()), flags, CPU):
        raise KeyError


def test_recorded_flags_hold_inside_and_the_present_ones_return_after_an_error():
    model = nn.Sequential(linear(), nn.Sequential(linear(), nn.Dropout())).eval()
    flags = training_flags(model)
    model[1].train()
    now = training_flags(model)
    with exact_math(tuple(model.modules()), flags, CPU):
        assert training_flags(model) == flags
    with pytest.raises(KeyError):
        fail_inside(model, flags)
    assert training_flags(model) == now == (False, False, True, True, True)


def called(model, state, inputs):
    return call(model, places_of(model), state, inputs, [], (model,), True)


def test_inputs_go_in_as_one_several_or_named_arguments():
    class Sum(nn.Module):
        def forward(self, a, b=0.0):
            return a + b

    one, two = torch.ones(1), 2 * torch.ones(1)
    for inputs, expected in ((one, 1.0), ((one, two), 3.0), ([one, two], 3.0), ({"b": two, "a": one}, 3.0)):
        assert float(called(Sum(), {}, inputs)) == expected


def test_outputs_are_tensors_or_logits():
    y = torch.ones(1)
    for returned in (y, {"logits": y, "loss": None}, SimpleNamespace(logits=y)):
        assert outputs_of(returned) is y
    for returned in ((y, y), {"scores": y}, {"logits": y, "value": 2 * y}):
        assert outputs_of(returned) is returned
    for returned, got in ((SimpleNamespace(), "SimpleNamespace"), (None, "NoneType"), ({"loss": None}, "dict")):
        with pytest.raises(TypeError, match=rf"must return a tensor, a tuple.*, got {got}; wrap it"):
            Layout().pack(outputs_of(returned))


class Positive(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = linear()
        self.register_buffer("shift", torch.ones(2), persistent=False)

    def forward(self, x):
        return F.softplus(self.layer(x)) + self.shift


def test_tied_parameters_and_recurrent_weights_take_the_given_values():
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    double = {"0.weight": 2 * torch.eye(2)}
    assert torch.equal(called(tied, double, torch.ones(1, 2)), torch.full((1, 2), 4.0))
    lstm = nn.LSTM(2, 2)
    zeros = {n: torch.zeros_like(p) for n, p in lstm.named_parameters()}
    before = lstm(torch.ones(1, 2))[0]
    assert not bool(called(lstm, zeros, torch.ones(1, 2))[0].any())
    assert torch.equal(lstm(torch.ones(1, 2))[0], before)


def test_exchanged_modules_are_noticed():
    model = mlp(nn.Tanh())
    H = hessian(Objective(model, squared_error(), [(randn(3, 2), randn(3, 2))]))
    model[1] = nn.ReLU()
    with pytest.raises(RuntimeError, match="modules of Sequential were exchanged after the operator was made"):
        H.dense()


def test_buffers_and_frozen_parameters_are_copied_too():
    model = Positive()
    model.layer.bias.requires_grad_(False)
    objective = Objective(model, squared_error(), [(torch.ones(2, 2), torch.ones(2, 2))])
    H = hessian(objective)
    before = H.dense()
    model.shift += 1.0
    model.layer.bias.data += 1.0
    assert torch.equal(H.dense(), before)
    assert not torch.equal(hessian(objective).dense(), before)
