import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from frechet.errors import NonFinite, UnusableObjective
from frechet.objective import Objective, Penalty, causal_lm, l2
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._jacobian import jacobian
from laws import close
from objective_cases import MAKERS, mlp, penalized_sum, plain_attention, prepared, ragged, randn, tanh_mlp

F64 = torch.float64
named = pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)
X, Y = randn(5, 2), randn(5, 2, seed=9)


@named
def test_value_and_gradient_are_those_of_the_loss_on_all_data(make):
    case, x = prepared(make)
    y, g = plain_attention(torch.autograd.functional.vjp)(case.loss, x)
    close(case.objective.value(), y)
    close(case.objective.gradient(), g)
    at = 0.9 * x
    close(case.objective.value(at), case.loss(at).detach())
    close(case.objective.value(case.space.unflatten(at)), case.loss(at).detach())


def test_the_value_can_be_differentiated_in_x():
    case, x = prepared(penalized_sum)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(case.objective.value(leaf), leaf)
    close(g, case.objective.gradient(x))
    blocks = {n: b.clone().requires_grad_() for n, b in case.space.unflatten(x).items()}
    gs = torch.autograd.grad(case.objective.value(blocks), list(blocks.values()))
    close(case.space.join(gs), g)
    with torch.no_grad():
        assert not case.objective.value(leaf).requires_grad
    assert not case.objective.value().requires_grad
    assert not case.objective.gradient().requires_grad


def test_the_gradient_of_a_loss_that_depends_on_nothing_is_zero():
    model = mlp(nn.Tanh())
    model.forward = lambda x: torch.zeros_like(x)
    objective = Objective(model, squared_error(), [(X, Y)])
    assert not bool(objective.gradient().any())


def test_sums_and_multiples_are_those_of_the_values():
    model = mlp(nn.Tanh())
    a = Objective(model, squared_error(), ragged(X, Y), penalty=l2(0.5))
    b = Objective(model, F.huber_loss, [(X[:2], Y[:2])])
    for objective, expected in ((a + 0.5 * b, (1.0, 0.5)), (2 * (a + b) * 3, (6.0, 6.0)), (a + a, (2.0, 0.0))):
        close(objective.value(), expected[0] * a.value() + expected[1] * b.value())
        close(objective.gradient(), expected[0] * a.gradient() + expected[1] * b.gradient())
    assert len(list((a + b).batches())) == 4


def test_one_batch_is_an_objective_of_its_own():
    model, batches = mlp(nn.Tanh()), ragged(X, Y)
    objective = Objective(model, squared_error(), batches, penalty=l2(0.1))
    alone = objective.on(batches[1])
    expected = F.mse_loss(model(batches[1][0]), batches[1][1]).detach() + 0.05 * objective.point.square().sum()
    close(alone.value(), expected)
    assert alone.space == objective.space


def test_the_point_is_a_fresh_copy_at_each_read():
    objective = prepared(tanh_mlp)[0].objective
    point = objective.point
    point.zero_()
    assert float(objective.point.abs().sum()) > 0
    assert not objective.point.requires_grad


def test_an_objective_is_frozen():
    objective = prepared(tanh_mlp)[0].objective
    with pytest.raises(AttributeError, match="Objective is frozen: cannot set model; make a new one"):
        objective.model = nn.Linear(1, 1)
    assert repr(objective) == "Objective(Sequential, R^17 (4 blocks, float64, cpu), 1 part(s))"


def test_nothing_of_the_callers_is_changed():
    model = mlp(nn.Tanh())
    inputs, targets = X.clone(), Y.clone()
    objective = Objective(model, squared_error(), DataLoader(TensorDataset(inputs, targets), batch_size=2))
    parameters, state = objective.point, torch.get_rng_state()
    for _ in range(2):
        objective.value()
        objective.gradient()
        hessian(objective).dense()
    assert torch.equal(objective.point, parameters)
    assert torch.equal(inputs, X)
    assert torch.equal(targets, Y)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


class Drawing(torch.utils.data.Dataset):
    """Draws from every global generator, to no effect."""

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return X[i] + 0 * (float(torch.rand(())) + np.random.rand() + random.random()), Y[i]


def test_every_global_generator_is_left_as_it_was():
    objective = Objective(mlp(nn.Tanh()), squared_error(), DataLoader(Drawing(), batch_size=2))
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    objective.value()
    objective.gradient()
    hessian(objective).dense()
    jacobian(objective).T.dense()
    objective.check()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_value_and_gradient_in_inference_mode_and_under_autocast():
    model = mlp(nn.Tanh()).float()
    objective = Objective(model, squared_error(), [(X.float(), Y.float())])
    expected = objective.value(), objective.gradient(), objective.point
    for context in (torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad()):
        with context:
            got = objective.value(), objective.gradient(), objective.point
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_models_and_data_made_in_inference_mode_work():
    with torch.inference_mode():
        model, data = mlp(nn.Tanh()), [(X * 1, Y * 1)]
    expected = Objective(mlp(nn.Tanh()), squared_error(), [(X, Y)])
    close(hessian(Objective(model, squared_error(), data)).dense(), hessian(expected).dense())


# --- what cannot be summed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["inputs", "targets"])
def test_the_batch_with_a_nan_is_named(which):
    x, y = X.clone(), Y.clone()
    (x if which == "inputs" else y)[4, 1] = torch.nan
    objective = Objective(mlp(nn.Tanh()), squared_error(), ragged(x, y))
    for name, ask in (("value", objective.value), ("gradient", objective.gradient), ("value", objective.check)):
        with pytest.raises(NonFinite, match=rf"{name}: batch 2 gives a NaN or an infinity \(its {which} hold NaN"):
            ask()


def test_the_part_with_a_nan_is_named():
    model = mlp(nn.Tanh())
    good, bad = (Objective(model, squared_error(), [(X, y)]) for y in (Y, Y * torch.inf))
    with pytest.raises(NonFinite, match="value: batch 0 of part 1 gives a NaN or an infinity"):
        (good + bad).value()


def test_a_point_or_a_penalty_with_a_nan_is_named():
    objective = prepared(tanh_mlp)[0].objective
    with pytest.raises(NonFinite, match=r"gradient: batch 0 .*\(the point holds NaN or infinity\)"):
        objective.gradient(objective.point * torch.nan)
    broken = Objective(objective.model, squared_error(), [(X, Y)], penalty=Penalty(lambda p: p["2.bias"].sum() / 0))
    for ask, name in ((broken.value, "value"), (broken.gradient, "gradient")):
        with pytest.raises(NonFinite, match=f"{name}: the penalty gives a NaN or an infinity"):
            ask()


def test_a_sum_that_overflows_is_told_from_a_bad_batch():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.3e19)
    data = [(torch.ones(1, 1), torch.zeros(1, 1))] * 3
    with pytest.raises(NonFinite, match=r"sum over all batches overflows torch.float32, though each batch is finite"):
        Objective(model, squared_error(), data).value(model.weight.detach().flatten().requires_grad_())


def test_empty_data_and_data_without_a_term_are_refused():
    model = mlp(nn.Tanh())
    with pytest.raises(ValueError, match="data must hold at least one batch, got an empty iterable"):
        Objective(model, squared_error(), []).value()
    with pytest.raises(ValueError, match="at least one batch"):
        jacobian(Objective(model, squared_error(), DataLoader([])))
    ignored = Objective(model, cross_entropy(), [(X, torch.full((5,), -100))])
    for ask, name in ((ignored.value, "value"), (ignored.gradient, "gradient")):
        with pytest.raises(ValueError, match=f"{name}: the data must hold at least one term that counts, got none"):
            ask()


def test_iterators_and_shuffling_loaders_are_refused_by_values_and_operators():
    model = mlp(nn.Tanh())
    loader = DataLoader(TensorDataset(X, Y), batch_size=2, shuffle=True)
    for data, message in ((iter([(X, Y)]), "more than once"), (loader, "shuffling DataLoader")):
        objective = Objective(model, squared_error(), data)
        for ask in (objective.value, objective.gradient, lambda o=objective: hessian(o), objective.check):
            with pytest.raises(UnusableObjective, match=message):
                ask()


@pytest.mark.parametrize(
    ("model", "x", "got"),
    [
        (nn.Linear(2, 1), X.float(), "mat1 and mat2 must have the same dtype"),
        (nn.Conv2d(1, 1, 1), X.float().view(5, 1, 2, 1), "Input type"),
        (nn.LSTM(2, 1), X.float(), "dtype"),
        (nn.LayerNorm(2), X.float(), "dtype"),
        (nn.Embedding(3, 2), X, "scalar types: Long"),
    ],
)
def test_data_of_another_dtype_are_refused_with_the_batch(model, x, got):
    message = f"batch 0 and the torch.float64 model do not fit together: .*{got}.*convert the data or the model"
    with pytest.raises(TypeError, match=message):
        Objective(model.double(), squared_error(), [(x, Y)]).value()


def test_other_errors_of_the_model_come_through_as_they_are():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        Objective(mlp(nn.Tanh()), squared_error(), [(randn(5, 3), Y)]).value()


def test_wrong_arguments_are_named():
    model = mlp(nn.Tanh())
    objective = Objective(model, squared_error(), [(X, Y)])
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
        Objective(lambda x: x, squared_error(), [])
    with pytest.raises(TypeError, match=r"penalty must be a Penalty, got float; use l2\(c\)"):
        Objective(model, squared_error(), [], penalty=0.1)
    with pytest.raises(ValueError, match=r"Penalty: function must return a scalar, got shape \(2,\)"):
        Objective(model, squared_error(), [(X, Y)], penalty=Penalty(lambda p: p["2.bias"])).value()
    with pytest.raises(TypeError, match="other must be an Objective, got int"):
        objective + 1
    with pytest.raises(ValueError, match="both must be objectives of one and the same model"):
        objective + Objective(mlp(nn.Tanh()), squared_error(), [])
    with pytest.raises(TypeError, match="c must be a real number, got str"):
        objective * "2"
    with pytest.raises(ValueError, match=r"Objective.on: needs an objective with one data term, got 2"):
        (objective + objective).on((X, Y))
    for x in (objective.point[:3], objective.point.float()):
        with pytest.raises(ValueError, match=r"x must be torch.float64 of shape \(17,\), got"):
            objective.value(x)
    with pytest.raises(TypeError, match="x must be a tensor or a dict of tensors, got list"):
        objective.value([1.0])
    with pytest.raises(TypeError, match=r"must return a tensor or something with .logits for squared_error, got tuple"):
        Objective(nn.LSTM(2, 1).double(), squared_error(), [(X, Y)]).value()
    with pytest.raises(ValueError, match="a dict batch needs the key 'labels'"):
        Objective(model, squared_error(), [{"input_ids": X}]).value()
    with pytest.raises(TypeError, match="causal_lm: batch must be a dict"):
        Objective(model, squared_error(), [(X, Y)], split=causal_lm).value()


def test_a_model_that_was_moved_after_its_objective_was_made_is_named():
    model = nn.Linear(3, 2).double()
    objective = Objective(model, squared_error(), [(randn(4, 3), randn(4, 2))])
    model.to("meta")
    with pytest.raises(UnusableObjective, match=r"got parameter 'weight' on meta; make the objective after model.to"):
        hessian(objective)
