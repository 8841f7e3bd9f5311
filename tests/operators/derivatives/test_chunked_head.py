from types import SimpleNamespace

import pytest
import torch
from torch import nn

from counting import Largest
from frechet.objective import Objective, causal_lm, l2
from frechet.objective.criteria import cross_entropy
from frechet.operators.derivatives._gauss_newton import empirical_fisher, fisher, gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._jacobian import jacobian
from frechet.operators.derivatives._modes import lacks_forward
from laws import LAWS, block, close
from objective_cases import (
    binary,
    causal_attention_with_affine_layer_norm,
    causal_language_model,
    frozen_parameters,
    heteroscedastic_gaussian,
    jacobian_of,
    linear_regression,
    lstm_with_padding_index,
    poisson_counts,
    prepared,
    relu_mlp_with_class_weights,
    residual_net_with_group_norm,
    soft_targets,
    tanh_mlp,
    tied_weights,
    weight_norm,
)

CASES = (
    *(causal_attention_with_affine_layer_norm, causal_language_model, tied_weights, lstm_with_padding_index),
    *(linear_regression, tanh_mlp, relu_mlp_with_class_weights, residual_net_with_group_norm, soft_targets),
    *(binary, poisson_counts, heteroscedastic_gaussian, frozen_parameters, weight_norm),
)
LIKELIHOODS = tuple(m for m in CASES if m not in (relu_mlp_with_class_weights, residual_net_with_group_norm))
named = pytest.mark.parametrize("make", CASES, ids=lambda m: m.__name__)


def headed(objective, rows=2):
    """The same objective, its last linear layer in chunks."""
    (part,) = objective.parts
    name = [n for n, m in objective.model.named_modules() if isinstance(m, nn.Linear)][-1]
    return Objective(objective.model, part.criterion, part.data, split=part.split, head=name, head_rows=rows)


def routes(objective):
    return ["reverse"] if lacks_forward(objective.model) else ["reverse", "forward"]


@named
def test_products_are_those_of_the_whole_logits_by_both_routes(make):
    objective = prepared(make)[0].objective
    V = block(objective.space, 2, 1)
    kinds = {
        "hessian": hessian,
        "gauss_newton": gauss_newton,
        "per term": lambda o, **k: empirical_fisher(o, per="term", **k),
        "per example": lambda o, **k: empirical_fisher(o, per="example", **k),
    }
    if make in LIKELIHOODS:
        kinds["fisher"] = fisher
        kinds["sampled"] = lambda o, **k: fisher(o, seed=3, samples=2, **k)
    for operator in kinds.values():
        expected = operator(objective) @ V
        for route in routes(objective):
            close(operator(headed(objective), route=route) @ V, expected)
            close(operator(headed(objective, rows=100), route=route) @ V[:, 0], expected[:, 0])


@named
def test_every_restriction_is_a_submatrix(make):
    objective = prepared(make)[0].objective
    for operator in (hessian, gauss_newton):
        full = operator(objective).dense()
        for name in objective.space.names:
            rows = objective.space.block(name)
            for route in routes(objective):
                A = operator(headed(objective), restrict=name, route=route)
                close(A.dense(), full[rows, rows], scale=float(full.abs().max()))


@pytest.mark.parametrize("frozen", ["embed", "head", "norm"])
@pytest.mark.parametrize("make", [causal_attention_with_affine_layer_norm, tied_weights], ids=lambda m: m.__name__)
def test_frozen_heads_and_bodies_are_constants(make, frozen):
    objective = make().objective
    for name, p in objective.model.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    objective = Objective(objective.model, cross_entropy(), objective.parts[0].data)
    V = block(objective.space, 2, 1)
    for operator in (hessian, gauss_newton):
        for route in ("reverse", "forward"):
            close(operator(headed(objective), route=route) @ V, operator(objective) @ V)


def test_a_frozen_body_is_not_differentiated():
    objective = causal_attention_with_affine_layer_norm().objective
    for name, p in objective.model.named_parameters():
        p.requires_grad_(name.startswith("head"))
    objective = Objective(objective.model, cross_entropy(), objective.parts[0].data)
    for operator in (hessian, gauss_newton):
        for route in ("reverse", "forward"):
            close(operator(headed(objective), route=route).dense(), operator(objective).dense())


class Adapted(nn.Module):
    """A frozen linear map plus a trained one of rank one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.A = nn.Parameter(torch.linspace(-1, 1, inner.in_features, dtype=torch.float64)[None])
        self.B = nn.Parameter(torch.linspace(0.1, 1, inner.out_features, dtype=torch.float64)[:, None])

    def forward(self, x):
        return self.inner(x) + x @ self.A.T @ self.B.T


def test_a_low_rank_adapter_in_the_body_with_a_frozen_rest():
    objective = causal_attention_with_affine_layer_norm().objective
    model = objective.model.requires_grad_(False)
    model.qkv = Adapted(model.qkv)
    objective = Objective(model, cross_entropy(), objective.parts[0].data)
    assert objective.space.names == ("qkv.A", "qkv.B")
    for operator in (hessian, gauss_newton):
        for route in ("reverse", "forward"):
            close(operator(headed(objective), route=route).dense(), operator(objective).dense())


def test_sums_with_penalties_mix_parts_with_and_without_a_head():
    first, second = (make().objective for make in (tanh_mlp, tanh_mlp))
    model = first.model
    parts = first.parts[0], second.parts[0]
    whole = [Objective(model, p.criterion, p.data, penalty=l2(0.3)) for p in parts]
    chunked = Objective(model, parts[0].criterion, parts[0].data, penalty=l2(0.3), head="2", head_rows=1)
    V = block(first.space, 2, 1)
    for operator in (hessian, gauss_newton, lambda o: fisher(o, seed=1)):
        close(operator(chunked + 0.5 * whole[1]) @ V, operator(whole[0] + 0.5 * whole[1]) @ V)
    close(gauss_newton(chunked.on(parts[0].data[0])) @ V, gauss_newton(whole[0].on(parts[0].data[0])) @ V)


def test_the_labels_drawn_do_not_depend_on_the_chunks():
    objective = prepared(causal_attention_with_affine_layer_norm)[0].objective
    V = block(objective.space, 2, 1)
    expected = fisher(objective, seed=5, samples=3) @ V
    for rows in (1, 2, 3, 100):
        close(fisher(headed(objective, rows), seed=5, samples=3) @ V, expected)
    assert not torch.allclose(fisher(headed(objective), seed=6, samples=3) @ V, expected)


@pytest.mark.parametrize("operator", [hessian, gauss_newton], ids=["hessian", "gauss_newton"])
def test_each_obeys_every_law(operator):
    objective = prepared(tied_weights)[0].objective
    dense = operator(objective).dense()
    for route in ("reverse", "forward"):
        A = operator(headed(objective), route=route)
        for law in LAWS:
            law(A, SimpleNamespace(dense=dense))


def test_a_batch_without_terms_adds_nothing():
    objective = causal_attention_with_affine_layer_norm().objective
    tokens, y = objective.parts[0].data[0]
    data = [(tokens, y), (tokens, torch.full_like(y, -100))]
    chunked = Objective(objective.model, cross_entropy(), data, head="head")
    V = block(objective.space, 2, 1)
    for operator in (hessian, gauss_newton):
        for route in ("reverse", "forward"):
            close(operator(chunked, route=route) @ V, operator(objective.on((tokens, y))) @ V)


def test_the_jacobian_is_that_of_the_logits():
    case, _ = prepared(causal_language_model)
    (part,) = case.objective.parts
    chunked = Objective(case.objective.model, part.criterion, part.data, split=causal_lm, head="head")
    close(jacobian(chunked).dense(), jacobian_of(causal_language_model))


OPERATORS = {
    "hessian": hessian,
    "gauss_newton": gauss_newton,
    "sampled": lambda o, **k: fisher(o, seed=0, **k),
    "per term": lambda o, **k: empirical_fisher(o, per="term", **k),
    "per example": lambda o, **k: empirical_fisher(o, per="example", **k),
}


@pytest.mark.parametrize("route", ["reverse", "forward"])
@pytest.mark.parametrize("name", OPERATORS)
def test_no_tensor_is_as_large_as_the_logits(name, route):
    words, width, size = 60, 2, 40
    model = nn.Sequential(nn.Embedding(words, width), nn.Tanh(), nn.Linear(width, words, bias=False))
    ids = torch.randint(0, words, (size, 5))
    largest = []
    for keywords in ({}, {"head": "2", "head_rows": 7}):
        A = OPERATORS[name](Objective(model, cross_entropy(), [(ids, ids.roll(1))], **keywords), route=route)
        V = block(A.domain, 2, 1)
        with Largest() as seen:
            A @ V
        largest.append(seen.entries)
    assert largest[0] == size * 5 * words
    assert largest[1] == max(7 * words, 2 * A.domain.dim)  # a chunk, or the two results


@pytest.mark.parametrize("route", ["reverse", "forward"])
@pytest.mark.parametrize("per", ["term", "example"])
def test_empirical_fisher_products_make_no_gradient_per_example(per, route):
    size, width = 50, 20
    model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
    data = [(torch.randn(size, width), torch.randint(0, 2, (size,)))]
    A = empirical_fisher(Objective(model, cross_entropy(), data), per=per, route=route)
    v = block(A.domain, 1, 1)
    with Largest() as seen:
        A @ v
    assert seen.entries == max(size * width, A.domain.dim)  # activations, or one vector: not 50 gradients
