from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from frechet.errors import NotDifferentiable
from frechet.objective._functions import Functions
from frechet.operators.derivatives._products import gauss_newton_product, hessian_product, jacobian_product
from laws import close
from objective_cases import F64, randn

TABLE, ROWS = randn(5, 3), torch.tensor([4, 0, 2, 2, 4, 1, 4])
WEIGHTS = randn(7, seed=2)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    "keywords",
    [
        {"offsets": torch.tensor([0, 2, 2, 5])},  # the second bag is empty
        {"offsets": torch.tensor([0, 2, 2, 5]), "padding_idx": 4},
        {"offsets": torch.tensor([0, 3, 7]), "include_last_offset": True, "padding_idx": -1},
        {"offsets": torch.tensor([0])},
    ],
)
def test_embedding_bags_by_formula_have_torchs_values_and_gradients(mode, keywords):
    results = []
    for context in (nullcontext(), Functions()):
        table = TABLE.clone().requires_grad_()
        with context:
            y = F.embedding_bag(ROWS, table, mode=mode, **keywords)
        results.append((y.detach(), torch.autograd.grad((y * y).sum(), table)[0]))
    close(results[1][0], results[0][0])
    close(results[1][1], results[0][1])


def test_embedding_bags_take_tables_of_bags_and_weights():
    tables = ROWS[:6].view(2, 3)
    weights = WEIGHTS[:6].view(2, 3)
    for keywords in ({"mode": "max"}, {"mode": "sum", "per_sample_weights": weights, "padding_idx": 2}, {}):
        expected = F.embedding_bag(tables, TABLE, **keywords)
        with Functions():
            close(F.embedding_bag(tables, TABLE, **keywords), expected)
    with Functions(), pytest.raises(NotDifferentiable, match="max_norm, sparse or scale_grad_by_freq"):
        F.embedding_bag(tables, TABLE, scale_grad_by_freq=True)


def test_hard_sigmoids_by_formula_have_torchs_values_and_slopes():
    x = torch.tensor([-4.0, -3.0, -1.0, 2.9, 3.0, 5.0], requires_grad=True)
    expected = F.hardsigmoid(x)
    slope = torch.autograd.grad(expected.sum(), x)[0]
    with Functions():
        y = F.hardsigmoid(x)
    assert torch.allclose(y, expected)
    assert torch.allclose(torch.autograd.grad(y.sum(), x)[0], slope)


# --- norms ------------------------------------------------------------------------------------------------------------

INPUTS, SCALE, SHIFT, COLUMN = randn(3, 4, 5), randn(4, seed=1), randn(4, seed=2), randn(5, seed=3)
MEAN, VARIANCE = randn(4, seed=4), randn(4, seed=5).abs() + 0.5
NORMS = {
    "layer": lambda h: F.layer_norm(h, (5,), COLUMN, 2 * COLUMN),
    "layer, two axes": lambda h: torch.layer_norm(h, (4, 5)),
    "instance": lambda h: F.instance_norm(h, MEAN.clone(), VARIANCE.clone(), SCALE, SHIFT),
    "instance, evaluated": lambda h: F.instance_norm(h, MEAN, VARIANCE, SCALE, SHIFT, use_input_stats=False),
    "batch": lambda h: F.batch_norm(h, MEAN.clone(), VARIANCE.clone(), SCALE, SHIFT, training=True, eps=1e-3),
    "batch, evaluated": lambda h: F.batch_norm(h, MEAN, VARIANCE, SCALE, SHIFT),
    "batch, plain": lambda h: F.batch_norm(h[..., 0], None, None, training=True),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_by_formula_have_torchs_values_and_two_derivatives(name):
    x, v = INPUTS[0], randn(4, 5, seed=7)

    def loss(x):
        return NORMS[name](INPUTS * x).sin().sum()

    expected = [NORMS[name](INPUTS), *torch.autograd.functional.hvp(loss, x, v)]
    with Functions(nested=True):
        found = [NORMS[name](INPUTS), *torch.autograd.functional.hvp(loss, x, v)]
    for a, b in zip(found, expected, strict=True):
        close(a, b)


def test_norms_by_formula_leave_running_statistics_alone():
    mean, variance = MEAN.clone(), VARIANCE.clone()
    with Functions(nested=True):
        F.batch_norm(INPUTS, mean, variance, training=True)
        F.instance_norm(INPUTS, mean, variance)
    assert torch.equal(mean, MEAN)
    assert torch.equal(variance, VARIANCE)


def third(f, x, v, u):
    """How far the derivative of f(x, v) along u is from central differences, and its size."""
    x = x.clone().requires_grad_()
    slope = torch.autograd.grad(f(x, v), x)[0].flatten() @ u.flatten()
    e = 1e-5
    with torch.no_grad():
        right = float(f(x + e * u, v) - f(x - e * u, v)) / (2 * e)
    return abs(float(slope) - right), abs(right)


@pytest.mark.parametrize("name", ["layer", "instance", "batch"])
def test_third_derivatives_of_norms_are_right_in_differentiable_products_and_wrong_in_torch(name):
    W, v, u = randn(5, 5), randn(5, 5, seed=1), randn(5, 5, seed=2)

    def outputs(x):
        return NORMS[name](INPUTS @ x)

    def loss(x):
        return outputs(x).sin().sum()

    def torchs(x, v):
        x = x if x.requires_grad else x.clone().requires_grad_()
        with torch.enable_grad():
            (g,) = torch.autograd.grad(loss(x), x, create_graph=True)
            return (torch.autograd.grad(g, x, v, create_graph=True)[0] * v).sum()

    error, size = third(torchs, W, v, u)
    assert error > 1e-2 * size  # once torch repairs this, the formulas can go
    for product in (
        lambda x, v: (hessian_product(loss, x, v) * v).sum(),
        lambda x, v: jacobian_product(outputs, x, v).square().sum(),
        lambda x, v: (gauss_newton_product(outputs, lambda y: y.cos().sum(), x, v) * v).sum(),
    ):
        error, size = third(product, W, v, u)
        assert error < 1e-6 * max(size, 1.0)


def test_a_mode_leaves_other_functions_as_they_are():
    with Functions(nested=True):
        close(F.softmax(INPUTS, -1), torch.softmax(INPUTS, -1))
        assert F.group_norm(INPUTS, 2).dtype == F64
