from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frechet.objective import Objective, l2
from frechet.objective.criteria import binary_cross_entropy, cross_entropy, custom, squared_error
from frechet.operators._operator import PSD, SYMMETRIC
from frechet.operators.derivatives._gauss_newton import empirical_fisher, fisher, gauss_newton
from frechet.operators.derivatives._modes import lacks_forward
from laws import LAWS, block, close
from objective_cases import (
    MAKERS,
    binary,
    binary_with_positive_weight,
    causal_attention_with_affine_layer_norm,
    causal_language_model,
    conv_net_with_batch_norm,
    custom_loss,
    dense_outputs,
    encoder_layer,
    gauss_newton_of,
    gru_with_torch_class_axis,
    heteroscedastic_gaussian,
    jacobian_of,
    linear_regression,
    mlp,
    multihead_attention,
    penalized_sum,
    poisson_counts,
    prepared,
    ragged,
    randn,
    relu_mlp_with_class_weights,
    residual_net_with_group_norm,
    soft_targets,
    tanh_mlp,
    tied_weights,
    weight_norm,
)

F64 = torch.float64
named = pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)


@named
def test_gauss_newton_is_its_dense_definition_by_both_routes(make):
    objective = prepared(make)[0].objective
    convex = 0.3 if make is penalized_sum else 0.0  # its penalty declared convex is 0.3 / 2 |x|^2
    expected = gauss_newton_of(make) + convex * torch.eye(objective.space.dim, dtype=F64)
    routes = ["reverse"] if lacks_forward(objective.model) else ["reverse", "forward"]
    for route in routes:
        G = gauss_newton(objective, route=route)
        V = block(G.domain, 2, 1)
        close(G @ V, expected @ V)


def logit_groups(make):
    """Which entries of the flat outputs belong to one term."""
    y = dense_outputs(*prepared(make))
    if make in (heteroscedastic_gaussian,):
        return torch.arange(y.shape[0]).repeat_interleave(2)
    if make in (tanh_mlp, multihead_attention, binary, poisson_counts, binary_with_positive_weight, encoder_layer):
        return torch.arange(y.numel())
    places = torch.arange(y.numel() // y.shape[1 if y.ndim == 2 or make is gru_with_torch_class_axis else -1])
    if make is gru_with_torch_class_axis:
        return places.view(y.shape[0], 1, y.shape[2]).expand(y.shape).flatten()
    return places.repeat_interleave(y.shape[-1])


def outer_products(make, groups):
    case, x = prepared(make)
    y = dense_outputs(case, x).requires_grad_()
    score = torch.autograd.grad(case.total(y), y)[0].flatten()
    weighted = score[:, None] * jacobian_of(make)
    G = torch.zeros(int(groups.max()) + 1, case.space.dim, dtype=F64).index_add(0, groups, weighted)
    return G.T @ G


TERMED = (
    *(tanh_mlp, multihead_attention, binary, poisson_counts, binary_with_positive_weight, encoder_layer),
    *(heteroscedastic_gaussian, relu_mlp_with_class_weights, causal_attention_with_affine_layer_norm, tied_weights),
    *(gru_with_torch_class_axis, causal_language_model, soft_targets, residual_net_with_group_norm),
)


@pytest.mark.parametrize("make", TERMED, ids=lambda m: m.__name__)
def test_empirical_fisher_is_the_outer_product_of_gradients(make):
    case, x = prepared(make)
    per_term = outer_products(make, logit_groups(make)) / case.count
    close(empirical_fisher(case.objective, per="term").dense(), per_term)
    y = dense_outputs(case, x)
    examples = torch.arange(len(y)).repeat_interleave(y[0].numel())
    per_example = len(y) * outer_products(make, examples) / case.count**2
    close(empirical_fisher(case.objective, per="example").dense(), per_example)


def test_an_example_gradient_averages_to_the_gradient():
    X, y = randn(1, 2), torch.tensor([1])  # with one example, the matrix is g g'
    objective = Objective(mlp(nn.Tanh()), cross_entropy(), [(X, y)])
    g = objective.gradient()
    close(empirical_fisher(objective, per="example").dense(), torch.outer(g, g))


def test_exact_fisher_enumerates_the_labels_at_the_places_that_count():
    for make in (
        causal_attention_with_affine_layer_norm,
        causal_language_model,
        tied_weights,
        conv_net_with_batch_norm,
    ):
        case, x = prepared(make)
        y = dense_outputs(case, x)
        targets = torch.cat([b.targets for b in case.objective.batches()]).flatten()
        J = jacobian_of(make).view(len(targets), y.shape[-1], -1)
        p = y.flatten(0, -2).softmax(-1)
        scores = p.unsqueeze(1) - torch.eye(y.shape[-1], dtype=F64)  # (places, label, entries of the score)
        C = torch.einsum("tc,tci,tcj->tij", p, scores, scores)
        expected = sum(J[t].T @ C[t] @ J[t] for t in range(len(p)) if targets[t] != -100)
        close(fisher(case.objective).dense(), expected / case.count)


def test_exact_fisher_of_other_likelihoods_has_its_closed_form():
    def information(make, y):
        match make.__name__:
            case "binary":
                return torch.diag((y.sigmoid() * (1 - y.sigmoid())).flatten())
            case "poisson_counts":
                return torch.diag(y.exp().flatten())
            case "tanh_mlp":
                return 2 * torch.eye(y.numel(), dtype=F64)
        return torch.diag(torch.stack([(-y[:, 1]).exp(), torch.full_like(y[:, 1], 0.5)], 1).flatten())

    for make in (binary, poisson_counts, tanh_mlp, heteroscedastic_gaussian):
        case, x = prepared(make)
        J = jacobian_of(make)
        expected = J.T @ information(make, dense_outputs(case, x)) @ J / case.count
        close(fisher(case.objective).dense(), expected)


@pytest.mark.parametrize("make", [causal_language_model, binary, heteroscedastic_gaussian, tanh_mlp, soft_targets])
def test_monte_carlo_fisher_tends_to_the_exact_one(make):
    objective = prepared(make)[0].objective
    V = block(objective.space, 2, 1)
    draws = torch.stack([fisher(objective, seed=s, samples=20) @ V for s in range(16)])
    exact = fisher(objective) @ V
    error = (draws.mean(0) - exact) / (draws.std(0) / 16**0.5 + 1e-12 * exact.abs().max())
    assert float(error.abs().max()) < 6.0
    assert float((draws[0] - exact).abs().max()) > 1e-3 * float(exact.abs().max())


def test_drawn_labels_are_repeatable_and_differ_between_seeds():
    case, _ = prepared(binary)
    V = block(case.space, 2, 1)
    A = fisher(case.objective, seed=3)
    first = A @ V
    A.dense()
    assert torch.equal(A @ V, first)
    assert torch.equal(fisher(case.objective, seed=3) @ V, first)
    assert not torch.equal(fisher(case.objective, seed=4) @ V, first)


def test_padding_and_batches_do_not_move_the_drawn_labels():
    case, _ = prepared(causal_attention_with_affine_layer_norm)
    objective = case.objective
    V = block(case.space, 2, 1)
    expected = fisher(objective, seed=5, samples=3) @ V
    tokens, y = (torch.cat(t) for t in zip(*objective.parts[0].data, strict=True))
    wide, ignored = torch.cat([tokens, tokens[:, :2]], 1), torch.full_like(y[:, :2], -100)
    for data in (
        [(tokens, y)],
        ragged(tokens, y, sizes=(1, 1, 1, 1)),
        ragged(wide, torch.cat([y, ignored], 1), sizes=(2, 2)),
    ):
        close(fisher(Objective(objective.model, cross_entropy(), data), seed=5, samples=3) @ V, expected)


OPERATORS = {
    "gauss_newton": (lambda o: gauss_newton(o), binary),
    "gauss_newton, forward": (lambda o: gauss_newton(o, route="forward"), binary),
    "gauss_newton, not convex": (lambda o: gauss_newton(o), heteroscedastic_gaussian),
    "fisher": (lambda o: fisher(o), heteroscedastic_gaussian),
    "sampled": (lambda o: fisher(o, seed=0, samples=2), binary),
    "per term": (lambda o: empirical_fisher(o, per="term"), linear_regression),
    "per example": (lambda o: empirical_fisher(o, per="example"), linear_regression),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_each_obeys_every_law(name):
    operator, make = OPERATORS[name]
    case, x = prepared(make)
    A = operator(case.objective)
    y = dense_outputs(case, x)

    def diagonal(values):
        return jacobian_of(make).T @ torch.diag(values) @ jacobian_of(make) / case.count

    match name:
        case "fisher":
            dense = diagonal(torch.stack([(-y[:, 1]).exp(), torch.full_like(y[:, 1], 0.5)], 1).flatten())
        case "per term":
            dense = outer_products(make, torch.arange(y.numel())) / case.count
        case "per example":
            dense = 5 * outer_products(make, torch.arange(5).repeat_interleave(2)) / case.count**2
        case "sampled":
            C = A.middle()(case.objective.parts[0], binary_cross_entropy(), y, y)
            score = torch.stack([C(e.view(y.shape)).flatten() for e in torch.eye(5, dtype=F64)])
            dense = jacobian_of(make).T @ score @ jacobian_of(make) / case.count
        case _:
            dense = gauss_newton_of(make)
    for law in LAWS:
        law(A, SimpleNamespace(dense=dense))


def test_facts_say_semidefinite_only_where_that_is_certain():
    convex, other = prepared(binary)[0].objective, prepared(heteroscedastic_gaussian)[0].objective
    assert gauss_newton(convex).facts == PSD
    assert gauss_newton(other).facts == SYMMETRIC
    assert float(torch.linalg.eigvalsh(gauss_newton(other).dense())[0]) < -1e-3
    assert gauss_newton(-1.0 * convex).facts == SYMMETRIC
    assert gauss_newton(convex + 0.5 * convex).facts == PSD
    assert gauss_newton(prepared(custom_loss)[0].objective).facts == SYMMETRIC
    declared = custom(lambda f, y: ((f - y) ** 2).sum(1), convex=True)
    model = mlp(nn.Tanh())
    assert gauss_newton(Objective(model, declared, ragged(randn(5, 2), randn(5, 2)))).facts == PSD
    penalized = Objective(model, squared_error(), ragged(randn(5, 2), randn(5, 2)), penalty=l2(1.0))
    assert gauss_newton(penalized).facts == PSD
    assert gauss_newton(penalized + (-2.0 * penalized)).facts == SYMMETRIC
    for A in (fisher(other), fisher(other, seed=0), empirical_fisher(other, per="term")):
        assert A.facts == PSD
    assert fisher(-1.0 * convex).facts == SYMMETRIC


def test_restriction_is_the_submatrix():
    for make, patterns in ((conv_net_with_batch_norm, ["*.weight"]), (weight_norm, "2.*")):
        case, _ = prepared(make)
        G = gauss_newton(case.objective, restrict=patterns)
        kept = case.space.indices(G.domain)
        close(G.dense(), gauss_newton_of(make)[kept][:, kept])
    G = fisher(prepared(binary)[0].objective, restrict="0.*")
    assert repr(G) == "fisher R^9 (2 blocks, float64, cpu) -> R^9, positive semidefinite"
    close(G.dense(), gauss_newton_of(binary)[:9, :9])


def test_later_training_changes_no_operator():
    case = conv_net_with_batch_norm()
    model, objective = case.objective.model, case.objective
    operators = [gauss_newton(objective), fisher(objective, seed=1), empirical_fisher(objective, per="term")]
    V = block(case.space, 2, 1)
    before = [A @ V for A in operators]
    model.train()
    model(randn(4, 1, 4, 4))
    for p in model.parameters():
        p.data = p.data + 1.0
    assert all(torch.equal(A @ V, b) for A, b in zip(operators, before, strict=True))


def test_penalties_are_left_out_of_fisher():
    X, Y, model = randn(5, 2), randn(5, 2), mlp(nn.Tanh())
    plain, penalized = (Objective(model, squared_error(), ragged(X, Y), penalty=p) for p in (None, l2(3.0)))
    close(fisher(penalized).dense(), fisher(plain).dense())
    close(empirical_fisher(penalized, per="term").dense(), empirical_fisher(plain, per="term").dense())


def test_what_is_no_likelihood_has_no_fisher():
    model, X, y = mlp(nn.Tanh()), randn(5, 2), torch.tensor([0, 1, 0, 1, 1])
    weight = torch.tensor([1.0, 2.0])
    for criterion, message in (
        (cross_entropy(label_smoothing=0.1), "cross_entropy must be a likelihood, got label_smoothing"),
        (cross_entropy(weight=weight), "cross_entropy must be a likelihood, got class weights"),
        (nn.BCEWithLogitsLoss(pos_weight=weight), "binary_cross_entropy must be a likelihood"),
        (F.huber_loss, "huber must be a likelihood"),
        (custom(lambda f, y: f.sum(1)), "a custom criterion has no likelihood"),
    ):
        for seed in (None, 0):
            with pytest.raises(ValueError, match=f"fisher: {message}.*gauss_newton"):
                fisher(Objective(model, criterion, [(X, y)]), seed=seed)


def test_wrong_arguments_are_named():
    objective = prepared(binary)[0].objective
    for f in (gauss_newton, fisher, lambda o: empirical_fisher(o, per="term")):
        with pytest.raises(TypeError, match=r"(gauss_newton|fisher): objective must be an Objective, got Linear"):
            f(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="empirical_fisher: per must be 'example' or 'term', got 'token'"):
        empirical_fisher(objective, per="token")
    with pytest.raises(ValueError, match=r"fisher: samples must be at least 1, and 1 without a seed, got 0"):
        fisher(objective, seed=1, samples=0)
    with pytest.raises(ValueError, match="and 1 without a seed, got 5 with seed=None"):
        fisher(objective, samples=5)
    with pytest.raises(ValueError, match="seed must be a non-negative int, got -1"):
        fisher(objective, seed=-1)
    with pytest.raises(ValueError, match="gauss_newton: route must be"):
        gauss_newton(objective, route="up")
    counted = custom(lambda f, y: (f - y) ** 2, count=lambda y: y.numel())
    several = Objective(mlp(nn.Tanh()), counted, [(randn(5, 2), randn(5, 2))])
    with pytest.raises(ValueError, match="does not say which outputs make a term; use per='example'"):
        empirical_fisher(several, per="term").dense()
