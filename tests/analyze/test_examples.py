import pytest
import torch
from torch import nn

from example_cases import gradient, problem, tensors
from frechet.analyze import _single_examples as single_examples
from frechet.analyze._examples import example_curvatures, example_gradients
from frechet.errors import NonFinite, NotDifferentiable, UnusableObjective
from frechet.objective import Objective, l2
from frechet.objective.criteria import cross_entropy, custom, squared_error
from frechet.operators.derivatives._hessian import hessian

ROUTES = [(name, route) for name in ("mlp", "conv", "tokens") for route in ("vmap", "loop")] + [("lstm", None)]


@pytest.mark.parametrize(("name", "route"), ROUTES)
def test_norms_inner_products_and_losses_are_those_of_single_examples(name, route):
    objective, functions = problem(name)
    x = objective.point
    G = torch.stack([gradient(f, x) for f in functions])
    found = example_gradients(objective, route=route)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(found.squared_norms, G.square().sum(1), **close)
    torch.testing.assert_close(found.inner, G @ G.mean(0), **close)
    torch.testing.assert_close(found.gradient, objective.gradient(), **close)
    values = torch.stack([f(x) for f in functions])
    torch.testing.assert_close(found.losses + found.penalty, values, **close)
    assert (found.examples, found.passes, found.route) == (len(functions), 2, route or "loop")


@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "lstm"])
def test_curvatures_are_those_of_dense_hessians_of_single_examples(name):
    objective, functions = problem(name)
    x, space = objective.point, objective.space
    V, W = space.random(range(2), 1, "gaussian"), space.random(range(3), 2, "gaussian")
    found = example_curvatures(objective, V, W)
    # reverse over reverse: forward modes are wrong through affine layer norms
    H = torch.stack([torch.autograd.functional.hessian(f, x) for f in functions])
    torch.testing.assert_close(found.values, V.T @ H @ W, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.values.mean(0), V.T @ (hessian(objective) @ W), rtol=1e-9, atol=1e-11)
    pairs = example_curvatures(objective, V, W[:, 1:], paired=True)
    torch.testing.assert_close(pairs.values, torch.stack([V[:, j] @ H @ W[:, j + 1] for j in range(2)], 1))
    same = example_curvatures(objective, V)
    torch.testing.assert_close(same.values, torch.stack([V[:, j] @ H @ V[:, j] for j in range(2)], 1))


def test_squares_over_an_orthonormal_basis_add_up_to_the_frobenius_norm():
    objective, functions = problem("mlp")
    basis = torch.eye(objective.space.dim, dtype=torch.float64)
    H = torch.stack([torch.autograd.functional.hessian(f, objective.point) for f in functions])
    found = example_curvatures(objective, basis, basis)
    torch.testing.assert_close(found.values.square().sum((1, 2)), H.square().sum((1, 2)))


def test_batches_may_be_cut_anywhere():
    objective, _ = problem("mlp")
    inputs, targets = (torch.cat(parts) for parts in zip(*objective.parts[0].data, strict=True))
    again = 2.0 * Objective(
        objective.model, squared_error(), [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])], penalty=l2(0.3)
    )
    V = objective.space.random(range(2), 0)
    a, b = example_gradients(objective), example_gradients(again)
    torch.testing.assert_close(a.squared_norms, b.squared_norms)
    torch.testing.assert_close(example_curvatures(objective, V).values, example_curvatures(again, V).values)


def test_small_chunks_give_the_same_numbers(monkeypatch):
    objective, _ = problem("conv")
    whole = example_gradients(objective)
    monkeypatch.setattr(single_examples, "CHUNK_BYTES", 2 * 8 * objective.space.dim)
    torch.testing.assert_close(example_gradients(objective).squared_norms, whole.squared_norms)


def test_outputs_without_an_axis_of_their_own():
    class Flat(nn.Linear):
        def forward(self, x):
            return super().forward(x).squeeze(-1)

    X = tensors(4, 3)
    objective = Objective(Flat(3, 1).double(), squared_error(), [(X, torch.zeros(4, dtype=torch.float64))])
    found = example_gradients(objective)
    expected = 4 * objective.model(X).square() * (X.square().sum(1) + 1)  # |2 y (x, 1)|^2
    torch.testing.assert_close(found.squared_norms, expected.detach())


def test_an_example_without_terms_has_no_gradient():
    model = nn.Linear(2, 3)
    data = [(torch.ones(3, 2), torch.tensor([0, -100, 2]))]
    found = example_gradients(Objective(model, cross_entropy(), data))
    assert found.squared_norms[1] == 0
    assert found.squared_norms.dtype == torch.float64
    assert (found.examples, found.terms) == (3, 2.0)


def test_a_loss_linear_in_the_parameters_has_no_curvature():
    objective = Objective(nn.Linear(2, 1), custom(lambda y, t: (y - t).sum(1)), [(torch.ones(3, 2), torch.ones(3, 1))])
    V = objective.space.random(range(2), 0)
    assert bool((example_curvatures(objective, V, V).values == 0).all())
    assert example_curvatures(objective, V[:, :0]).values.shape == (3, 0)
    assert example_curvatures(objective, V, V[:, :0]).values.shape == (3, 2, 0)


def test_another_point_and_inference_mode():
    objective, functions = problem("mlp")
    x = objective.point + 0.1
    with torch.inference_mode():
        found = example_gradients(objective, x=x)
    torch.testing.assert_close(found.squared_norms[0], gradient(functions[0], x).square().sum())


def test_a_model_that_couples_examples_is_refused():
    class Centered(nn.Linear):
        def forward(self, x):
            return super().forward(x) - super().forward(x).mean(0)

    objective = Objective(Centered(2, 1), squared_error(), [(torch.randn(4, 2), torch.randn(4, 1))])
    for route in ("vmap", "loop"):
        with pytest.raises(UnusableObjective, match="the output of example 0 alone must be its output in the batch"):
            example_gradients(objective, route=route)


def test_a_model_that_vmap_cannot_enter_is_looped_over():
    class Branching(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    objective = Objective(Branching(2, 1), squared_error(), [(torch.ones(1, 2), torch.ones(1, 1))])
    with pytest.raises(NotDifferentiable, match=r"route='vmap' cannot go through this model.*pass route='loop'"):
        example_gradients(objective, route="vmap")
    looped = example_gradients(objective)
    assert looped.route == "loop"
    assert torch.equal(looped.squared_norms, example_gradients(objective, route="loop").squared_norms)


def test_bad_arguments_are_named():
    objective, _ = problem("mlp")
    V = objective.space.random(range(2), 0)
    with pytest.raises(ValueError, match="route must be 'vmap' or 'loop', got 'forward'"):
        example_gradients(objective, route="forward")
    with pytest.raises(ValueError, match="objective must have one data term, got 2"):
        example_gradients(objective + objective)
    with pytest.raises(TypeError, match="example_curvatures: objective must be an Objective, got Linear"):
        example_curvatures(nn.Linear(1, 1), V)
    with pytest.raises(ValueError, match=r"W must be a block \(26, k\)"):
        example_curvatures(objective, V, V[:3])
    with pytest.raises(ValueError, match="W must have V's 2 columns to be paired, got 1"):
        example_curvatures(objective, V, V[:, :1], paired=True)
    with pytest.raises(ValueError, match="V must be a block"):
        example_curvatures(objective, V.float())
    ignored = Objective(nn.Linear(2, 3), cross_entropy(), [(torch.ones(1, 2), torch.tensor([-100]))])
    with pytest.raises(ValueError, match="at least one term that counts"):
        example_curvatures(ignored, ignored.space.zeros(1))
    bad = Objective(nn.Linear(2, 1), squared_error(), [(torch.full((1, 2), torch.nan), torch.ones(1, 1))])
    with pytest.raises(NonFinite, match="batch 0"):
        example_gradients(bad)
    with pytest.raises(NonFinite, match="example 0 has a curvature that is NaN or infinite"):
        example_curvatures(bad, bad.space.random(range(1), 0))
    scalar = Objective(
        nn.Linear(2, 1), custom(lambda y, t: (y - t).square().sum()), [(torch.ones(2, 2), torch.ones(2, 1))]
    )
    with pytest.raises(ValueError, match="one value per example"):
        example_curvatures(scalar, scalar.space.zeros(1))
