import pytest
import torch
from torch import nn

from example_cases import gradient, problem
from frechet.analyze._example_slopes import example_slopes
from frechet.errors import NonFinite
from frechet.objective import Objective, Penalty, causal_lm, l2
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators.derivatives._hessian import hessian

KINDS = [(name, route) for name in ("mlp", "conv") for route in ("forward", "reverse")]
KINDS += [("tokens", "reverse"), ("lstm", None)]  # neither has a forward mode


@pytest.mark.parametrize(("name", "route"), KINDS)
def test_slopes_are_inner_products_with_the_gradients_of_single_examples(name, route):
    objective, functions = problem(name)
    V = objective.space.random(range(3), 1, "gaussian")
    G = torch.stack([gradient(f, objective.point) for f in functions])
    found = example_slopes(objective, V, route=route)
    torch.testing.assert_close(found.values, G @ V, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.values.mean(0), V.T @ objective.gradient(), rtol=1e-10, atol=1e-12)
    assert (found.examples, found.passes, found.route) == (len(functions), 1, route or "reverse")
    assert example_slopes(objective, V[:, :0]).values.shape == (len(functions), 0)


def test_one_product_gives_the_bilinear_forms_of_all_examples():
    objective, functions = problem("mlp")
    H, g = hessian(objective), objective.gradient()
    G = torch.stack([gradient(f, objective.point) for f in functions])
    torch.testing.assert_close(example_slopes(objective, (H @ g)[:, None]).values[:, 0], G @ H.dense() @ g)


def test_another_point_and_inference_mode():
    objective, functions = problem("conv")
    x, V = objective.point + 0.1, objective.space.random(range(2), 1)
    with torch.inference_mode():
        found = example_slopes(objective, V, x=x)
    torch.testing.assert_close(found.values[0], gradient(functions[0], x) @ V)


@pytest.mark.parametrize("route", ["forward", "reverse"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_head_in_chunks_gives_the_same_slopes(route, tied):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 6)).double()
    if tied:
        model[3].weight = model[0].weight
    data = []
    for size in (3, 2):
        ids = torch.randint(0, 6, (size, 5))
        data.append({"input_ids": ids, "attention_mask": (torch.arange(5) < 4).long().expand(size, 5)})

    def split(batch):
        inputs, targets = causal_lm(batch)
        return inputs["input_ids"], targets

    whole = Objective(model, cross_entropy(), data, split=split, penalty=l2(0.1))
    chunked = Objective(model, cross_entropy(), data, split=split, penalty=l2(0.1), head="3", head_rows=2)
    V = whole.space.random(range(2), 1, "gaussian")
    expected = example_slopes(whole, V).values
    torch.testing.assert_close(example_slopes(chunked, V, route=route).values, expected, rtol=1e-11, atol=1e-13)


def test_bad_arguments_are_named():
    objective, _ = problem("mlp")
    V = objective.space.random(range(2), 0)
    with pytest.raises(ValueError, match=r"example_slopes: V must be a block \(26, k\)"):
        example_slopes(objective, V[:, 0])
    with pytest.raises(ValueError, match="example_slopes: route must be 'reverse' or 'forward', got 'vmap'"):
        example_slopes(objective, V, route="vmap")
    with pytest.raises(ValueError, match="objective must have one data term, got 2"):
        example_slopes(objective + objective, V)
    ignored = Objective(nn.Linear(2, 3), cross_entropy(), [(torch.ones(1, 2), torch.tensor([-100]))])
    with pytest.raises(ValueError, match="example_slopes: the data must hold at least one term that counts"):
        example_slopes(ignored, ignored.space.zeros(1))
    data = [(torch.full((1, 2), torch.nan), torch.ones(1, 1))]
    bad = Objective(nn.Linear(2, 1), squared_error(), data)
    with pytest.raises(NonFinite, match="example_slopes: batch 0"):
        example_slopes(bad, bad.space.random(range(1), 0))
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    root = Penalty(lambda p: p["weight"].abs().sum().sqrt())
    bad = Objective(model, squared_error(), [(torch.ones(1, 1), torch.ones(1, 1))], penalty=root)
    with pytest.raises(NonFinite, match="example_slopes: the penalty gives a NaN"):
        example_slopes(bad, bad.space.random(range(1), 0))
