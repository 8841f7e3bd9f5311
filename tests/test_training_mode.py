"""Models in training mode: batch statistics, and dropout whose masks are fixed by a seed."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from frechet.analyze._examples import example_curvatures, example_gradients
from frechet.analyze._gram import gradient_gram
from frechet.analyze._noise_scale import curvature_noise_scale, noise_scale
from frechet.errors import NotDifferentiable, UnusableObjective
from frechet.objective import Objective, l2
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators.derivatives._gauss_newton import empirical_fisher, fisher, gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._jacobian import jacobian, ntk
from laws import block, close
from module_cases import MODULES, batch_norm_in_training, batch_norm_of_images_in_training
from objective_cases import F64, hessian_of, prepared, ragged, randn, seeded

X, Y = randn(6, 2), randn(6, 2, seed=9)


def normed(*after):
    return seeded(lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Tanh(), *after)).train()


def on(model, sizes=(4, 2), **keywords):
    return Objective(model, squared_error(), ragged(X, Y, sizes=sizes), **keywords)


# --- batch statistics -------------------------------------------------------------------------------------------------


def test_the_loss_is_a_function_of_how_the_data_are_divided_into_batches():
    model = normed()

    def by_hand(sizes):
        total = 0.0
        for x, y in zip(X.split(sizes), Y.split(sizes), strict=True):
            h = F.linear(x, model[0].weight, model[0].bias)
            h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()
            total = total + (((h * model[1].weight + model[1].bias).tanh() - y) ** 2).sum()
        return total / 12

    for sizes in ([6], [4, 2], [2, 2, 2]):
        close(on(model, sizes).value(), by_hand(sizes).detach())
    assert abs(float(on(model, [6]).value() - on(model, [4, 2]).value())) > 1e-3
    assert float((hessian(on(model, [6])).dense() - hessian(on(model, [4, 2])).dense()).abs().max()) > 1e-3


def test_every_product_leaves_the_running_statistics_alone_to_the_last_bit():
    case = batch_norm_of_images_in_training()
    objective, model = case.objective, case.objective.model
    before = {name: b.clone() for name, b in model.named_buffers()}
    v = block(objective.space, 1, 1)
    for make in (hessian, gauss_newton, fisher, jacobian):
        for route in ("reverse", "forward"):
            A = make(objective, route=route)
            assert torch.equal(A @ v, A @ v)
    J = jacobian(objective)
    J.T @ block(J.codomain, 1, 1)
    objective.value(objective.point.requires_grad_()).backward()
    objective.gradient()
    objective.check()
    assert set(before) == {f"inner.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    model(randn(5, 1, 3, 3))  # which a call of the model's own would have moved
    assert not torch.equal(model.inner[1].running_mean, before["inner.1.running_mean"])


def test_the_operator_stays_in_training_mode_when_the_model_leaves_it():
    case = batch_norm_in_training()
    H = hessian(case.objective)
    case.objective.model.eval()
    case.objective.model.inner[1].running_var.fill_(7.0)
    V = block(H.domain, 2, 1)
    close(H @ V, hessian_of(batch_norm_in_training) @ V)


def test_what_is_asked_of_single_examples_is_refused():
    model = normed()
    objective, v = on(model), torch.zeros(10, 1, dtype=F64)
    questions = {
        "example_gradients": lambda: example_gradients(objective),
        "example_curvatures": lambda: example_curvatures(objective, v),
        "curvature_noise_scale": lambda: curvature_noise_scale(objective, seed=0),
        "empirical_fisher": lambda: empirical_fisher(objective, per="example"),
        "ntk": lambda: ntk(objective),
    }
    sentence = r"module '1' \(BatchNorm1d\) normalizes by the statistics of the batch, so no example has outputs of its"
    for name, ask in (*questions.items(), ("example_gradients", lambda: noise_scale(objective))):
        with pytest.raises(UnusableObjective, match=f"{name}: {sentence} own; call model.eval"):
            ask()
    with pytest.raises(UnusableObjective, match=f"empirical_fisher: {sentence}"):
        empirical_fisher(objective, per="term")
    model.eval()
    for ask in questions.values():
        ask()


def test_the_check_names_the_modules_that_couple_examples():
    model = normed(nn.BatchNorm1d(2, track_running_stats=False))
    assert on(model).check().coupled == ("'1' (BatchNorm1d)", "'3' (BatchNorm1d)")
    model.eval()
    assert on(model).check().coupled == ("'3' (BatchNorm1d)",)


def test_a_batch_of_one_value_per_channel_is_named():
    with pytest.raises(UnusableObjective, match=r"batch 1 has one value per channel.*another batch size"):
        on(normed(), (5, 1)).value()


# --- dropout ----------------------------------------------------------------------------------------------------------


def dropping(p=0.5):
    return seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.Dropout(p), nn.Tanh(), nn.Linear(8, 2))).train()


def test_dropout_in_training_is_refused_without_a_seed():
    with pytest.raises(UnusableObjective, match=r"drops units at random in training mode.*dropout_seed=0"):
        hessian(on(dropping()))
    with pytest.raises(ValueError, match="seed must be a non-negative int, got -1"):
        on(dropping(), dropout_seed=-1)


def test_the_masks_are_those_of_the_seed_and_the_batch_in_every_operator():
    model = dropping()
    objective = on(model, dropout_seed=3)
    x, v, e = objective.point, block(objective.space, 1, 1)[:, 0], 1e-6
    slope = (objective.gradient(x + e * v) - objective.gradient(x - e * v)) / (2 * e)
    for route in ("reverse", "forward"):
        assert float((hessian(objective, route=route) @ v - slope).abs().max()) < 1e-8
    J, G = jacobian(objective), gauss_newton(objective)
    close(G @ v, J.T @ (2 * (J @ v)) / 12)
    assert torch.equal(objective.value(), on(model, dropout_seed=3).value())
    assert not torch.equal(objective.value(), on(model, dropout_seed=4).value())
    assert not torch.equal(objective.value(), on(model.eval(), dropout_seed=3).value())


def test_two_batches_have_different_masks_and_a_batch_alone_those_of_batch_0():
    model, x, y = dropping(), X[:2], Y[:2]
    same = Objective(model, squared_error(), [(x, y), (x, y)], dropout_seed=1)
    first = same.on((x, y)).value()
    assert abs(float(same.value() - first)) > 1e-6
    twice = Objective(model, squared_error(), [(x, y)], dropout_seed=1)
    assert torch.equal(twice.value(), first)
    close((twice + 2.0 * twice).value(), 3 * first)  # terms of a sum share their masks


def test_the_random_generators_are_put_back():
    objective = on(dropping(), dropout_seed=3)
    torch.manual_seed(11)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    hessian(objective) @ block(objective.space, 1, 1)
    objective.check()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


class Deep(nn.Module):
    """Layers left out at random, by each of the three generators."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            if (random.random, np.random.rand, lambda: float(torch.rand(())))[i % 3]() < 0.6:
                x = x + layer(x).tanh()
        return x


def test_whatever_a_forward_draws_is_fixed():
    model = seeded(Deep)
    objective = on(model, dropout_seed=0)
    v = block(objective.space, 1, 1)
    H = hessian(objective)
    assert torch.equal(H @ v, H @ v)
    objective.check()
    with pytest.raises(UnusableObjective, match=r"Deep.forward gives different outputs"):
        on(model).check()


class Augmented(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return X[i] + 0.1 * torch.randn(2), Y[i]


def test_random_data_are_still_found_out():
    loader = DataLoader(Augmented(), batch_size=2)
    with pytest.raises(UnusableObjective, match="the data themselves change between passes"):
        Objective(dropping(), squared_error(), loader, dropout_seed=0).check()


def test_objectives_with_other_masks_or_precision_do_not_add_up():
    model = dropping()
    with pytest.raises(ValueError, match="both must have one dropout_seed, got 1 and 2"):
        on(model, dropout_seed=1) + on(model, dropout_seed=2)
    with pytest.raises(ValueError, match=r"both must have one dtype, got None and torch.float32"):
        on(model, dropout_seed=1) + on(model, dropout_seed=1, dtype=torch.float32)


def test_an_example_has_the_masks_of_its_batch():
    model = dropping()
    objective, v = on(model, dropout_seed=3), torch.ones(42, 1, dtype=F64)
    found = example_gradients(objective)
    assert found.route == "loop"
    close(found.gradient, objective.gradient())
    close(found.inner.mean(), objective.gradient().square().sum())
    close(gradient_gram(objective).matrix.diagonal(), found.squared_norms)
    with pytest.raises(NotDifferentiable, match=r"with dropout_seed examples are differentiated within their batch"):
        example_gradients(objective, route="vmap")
    values = example_curvatures(objective, v).values  # of the batch's masks
    close(values.mean(0), v[:, 0] @ (hessian(objective) @ v))
    model.eval()
    example_gradients(objective)


def test_every_case_of_training_mode_is_in_training_mode():
    training = [m.__name__ for m in MODULES if any(t.training for t in prepared(m)[0].objective.model.modules())]
    assert len([n for n in training if n.startswith(("batch_norm", "seeded", "instance_norm"))]) == 8
    penalized = Objective(normed(), cross_entropy(), [(X, torch.zeros(6, dtype=torch.long))], penalty=l2(0.1))
    assert hessian(penalized).shape == (10, 10)
