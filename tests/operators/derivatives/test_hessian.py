import copy
import gc
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from frechet.errors import NonFinite, NotDifferentiable
from frechet.objective import Objective, Penalty
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._modes import lacks_forward
from laws import LAWS, block, close
from objective_cases import (
    MAKERS,
    causal_attention_with_affine_layer_norm,
    conv_net_with_batch_norm,
    encoder_layer,
    hessian_of,
    mlp,
    penalized_sum,
    prepared,
    ragged,
    randn,
    residual_net_with_group_norm,
    tanh_mlp,
    tied_weights,
    unused_parameter,
)

named = pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)
forward = [m for m in MAKERS if lacks_forward(prepared(m)[0].objective.model) is None]


@named
def test_it_is_the_dense_hessian_of_the_loss_on_all_data(make):
    H, expected = hessian(prepared(make)[0].objective), hessian_of(make)
    V = block(H.domain, 3, 1)
    assert H.route == "reverse"
    close(H @ V, expected @ V)


@pytest.mark.parametrize("make", forward, ids=lambda m: m.__name__)
def test_the_forward_route_agrees(make):
    H = hessian(prepared(make)[0].objective, route="forward")
    V = block(H.domain, 2, 1)
    assert H.route == "forward"
    close(H @ V, hessian_of(make) @ V)


def test_linear_regression_has_its_closed_form():
    X = randn(5, 3)
    objective = Objective(nn.Linear(3, 2, bias=False).double(), squared_error(), ragged(X, randn(5, 2)))
    close(hessian(objective).dense(), torch.kron(torch.eye(2, dtype=X.dtype), 2 * X.T @ X / 10))


@pytest.mark.parametrize("route", ["reverse", "forward"])
@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
def test_it_obeys_every_law(law, route):
    make = penalized_sum if route == "reverse" else unused_parameter
    law(hessian(prepared(make)[0].objective, route=route), SimpleNamespace(dense=hessian_of(make)))


@pytest.mark.parametrize("route", ["reverse", "forward"])
def test_restriction_is_the_submatrix(route):
    for make, patterns in ((conv_net_with_batch_norm, ["*.weight"]), (penalized_sum, "2.*"), (tanh_mlp, "0.bias")):
        case, _ = prepared(make)
        H = hessian(case.objective, restrict=patterns, route=route)
        kept = case.space.indices(H.domain)
        assert 0 < H.shape[0] < case.space.dim
        close(H.dense(), hessian_of(make)[kept][:, kept])


def test_a_restriction_to_what_the_loss_does_not_reach_is_zero():
    case, _ = prepared(unused_parameter)
    for route in ("reverse", "forward"):
        assert not bool(hessian(case.objective, restrict="idle.*", route=route).dense().any())


def test_tied_parameters_are_one_block():
    case, _ = prepared(tied_weights)
    assert case.space.names == ("embed.weight", "head.bias")


@pytest.mark.parametrize("sizes", [(5,), (1, 1, 1, 1, 1), (4, 1), (1, 4)])
def test_the_split_into_batches_does_not_matter(sizes):
    X, Y, model = randn(5, 2), randn(5, 2, seed=9), prepared(tanh_mlp)[0].objective.model
    close(hessian(Objective(model, nn.MSELoss(), ragged(X, Y, sizes=sizes))).dense(), hessian_of(tanh_mlp))


def test_padding_does_not_matter():
    case, _ = prepared(causal_attention_with_affine_layer_norm)
    tokens, y = zip(*case.objective.parts[0].data, strict=True)
    alone = [(t[i : i + 1], l[i : i + 1]) for t, l in zip(tokens, y, strict=True) for i in range(len(t))]
    padded = [
        (torch.cat([t, t[:, :2]], 1), torch.cat([l, torch.full_like(l[:, :2], -100)], 1)) for t, l in reversed(alone)
    ]
    H = hessian(Objective(case.objective.model, cross_entropy(), padded))
    v = block(H.domain, 1, 1)
    close(H @ v, hessian_of(causal_attention_with_affine_layer_norm) @ v)


@pytest.mark.parametrize("route", ["reverse", "forward"])
def test_later_training_changes_no_operator(route):
    case = conv_net_with_batch_norm()
    model, objective = case.objective.model, case.objective
    H = hessian(objective, route=route)
    v = block(H.domain, 2, 1)
    before = H @ v
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        model(randn(4, 1, 4, 4)).square().sum().backward()
        optimizer.step()
    model[0].weight.data = model[0].weight.data * 2
    model[1].running_var.data.fill_(7.0)
    assert torch.equal(H @ v, before)
    assert model.training
    assert all(m.training for m in model.modules())
    model.eval()
    assert float((hessian(objective, route=route) @ v - before).abs().max()) > 1e-3


def test_another_point_leaves_the_model_alone():
    case, x = prepared(tanh_mlp)
    H = hessian(case.objective, 2 * x)
    y = 2 * x
    given = hessian(case.objective, y)
    params = case.space.unflatten(2 * x)
    close(hessian(case.objective, params).dense(), H.dense())
    close(H.dense(), torch.autograd.functional.hessian(case.loss, 2 * x))
    assert torch.equal(case.objective.point, x)
    y.zero_()  # the point was copied
    close(given.dense(), H.dense())


def test_no_graph_and_no_gradient_is_left_behind():
    case, _ = prepared(encoder_layer)
    H = hessian(case.objective)
    v = block(H.domain, 2, 1)
    H @ v

    def graphs():
        gc.collect()
        return sum(type(t) is torch.Tensor and t.grad_fn is not None for t in gc.get_objects())

    before = graphs()
    result = H @ v
    assert result.grad_fn is None
    assert graphs() <= before
    assert all(p.grad is None for p in case.objective.model.parameters())


def test_attention_settings_and_random_states_are_restored():
    case = causal_attention_with_affine_layer_norm()
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*(torch.cat(t) for t in zip(*case.objective.parts[0].data, strict=True)))
    )
    objective = Objective(case.objective.model, cross_entropy(), data)
    flash = torch.backends.cuda.flash_sdp_enabled()
    state = torch.get_rng_state()
    H = hessian(objective)
    H @ block(H.domain, 1, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() == flash


def test_autocast_inference_mode_and_no_grad_change_nothing():
    model = prepared(residual_net_with_group_norm)[0].objective.model
    model = copy.deepcopy(model).float()
    X, Y = randn(5, 2, 2, 2).float(), randn(5, 3).float()
    H = hessian(Objective(model, squared_error(), [(X, Y)]))
    v = block(H.domain, 1, 1)
    expected = H @ v
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with context:
            made_inside = hessian(Objective(model, squared_error(), [(X * 1, Y)]))
            w = v * 1
            assert torch.equal(made_inside @ w, expected)
            assert torch.equal(H @ w, expected)
        assert torch.equal(made_inside @ w, expected)
    assert torch.is_grad_enabled()


def test_the_penalty_enters_once():
    X, Y = randn(5, 2), randn(5, 2)
    square = Penalty(lambda p: sum((b**2).sum() for b in p.values()))
    with_penalty = hessian(Objective(mlp(nn.Tanh()), squared_error(), ragged(X, Y), penalty=square)).dense()
    without = hessian(Objective(mlp(nn.Tanh()), squared_error(), ragged(X, Y))).dense()
    close(with_penalty - without, 2 * torch.eye(len(without), dtype=without.dtype))


def test_a_penalty_that_is_not_finite_is_named():
    root = Penalty(lambda p: (p["2.bias"] * 0).sqrt().sum())
    H = hessian(Objective(mlp(nn.Tanh()), squared_error(), ragged(randn(5, 2), randn(5, 2)), penalty=root))
    with pytest.raises(NonFinite, match="hessian: the penalty gives a NaN"):
        H @ H.domain.random(0, 0)


def test_a_vector_that_is_not_finite_is_suspected():
    case, _ = prepared(tanh_mlp)
    with pytest.raises(NonFinite, match=r"batch 0 gives a NaN or an infinity .* the vector may not be"):
        hessian(case.objective) @ torch.full((case.space.dim,), torch.nan, dtype=case.space.dtype)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class Squares(nn.Linear):
    def forward(self, x):
        return Once.apply(super().forward(x))


class Distances(nn.Linear):
    def forward(self, x):
        return torch.cdist(super().forward(x), x)


@pytest.mark.parametrize("route", ["reverse", "forward"])
def test_a_loss_that_is_not_twice_differentiable_says_so(route):
    objective = Objective(Squares(2, 1).double(), squared_error(), [(randn(3, 2), randn(3, 1))])
    with pytest.raises(NotDifferentiable, match=r"hessian: the backward of Once is marked once_differentiable|jvp"):
        hessian(objective, route=route).dense()
    distances = Objective(Distances(2, 2).double(), squared_error(), [(randn(3, 2), randn(3, 3))])
    with pytest.raises(
        NotDifferentiable, match=r"hessian: an operation .* lacks the derivative .* try the other route="
    ):
        hessian(distances, route=route).dense()


def test_wrong_arguments_are_named():
    case, x = prepared(tanh_mlp)
    with pytest.raises(TypeError, match="hessian: x must be given for a function, got None"):
        hessian(lambda x: x.sum())
    with pytest.raises(TypeError, match="hessian: restrict must be left out for a function"):
        hessian(lambda x: x.sum(), x, restrict="a")
    for of in (case.objective, lambda x: x.sum()):
        with pytest.raises(ValueError, match="hessian: route must be 'reverse' or 'forward', got 'both'"):
            hessian(of, x, route="both")
    with pytest.raises(ValueError, match=r"x must not require grad.*use hessian_product"):
        hessian(case.objective, x.clone().requires_grad_())
    with pytest.raises(ValueError, match="pattern 'conv' must match a block"):
        hessian(case.objective, restrict="conv")
