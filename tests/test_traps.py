"""Where torch is silently wrong, crashes or lacks a derivative: each known trap is a test.

The items are those of our notes: what breaks in torch's products (P), what overturned a sentence of the design (A),
and, in `test_traps_transforms.py`, what wrappers, compilation and linearization do (C). `ELSEWHERE` names the tests of
the items that other files hold.
"""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev, jvp

from frechet.errors import NotDifferentiable
from frechet.objective import Objective
from frechet.objective.criteria import custom, squared_error
from frechet.operators.derivatives._gauss_newton import gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._jacobian import jacobian
from frechet.operators.derivatives._products import hessian_product
from laws import block, close
from objective_cases import F64, causal_attention_with_affine_layer_norm, mlp, prepared, ragged, randn, seeded, tanh_mlp

ELSEWHERE = {
    "P jvp of jacrev through affine layer norm": (
        "operators/derivatives/test_function.py::test_affine_layer_norm_agrees"
    ),
    "P padding_idx": (
        "operators/derivatives/test_modes.py::test_an_embedding_with_padding_would_not_be_symmetric_in_forward_mode"
    ),
    "P dropout resampled": "test_training_mode.py::test_the_masks_are_those_of_the_seed_and_the_batch",
    "P dropout under vmap": "test_training_mode.py::test_an_example_has_the_masks_of_its_batch",
    "P fused attention": "objective/test_kernels.py::test_attention_has_second_derivatives_inside_only",
    "P encoder layer": "operators/test_modules.py::test_gauss_newton_and_fisher",
    "P batch norm moves its buffers": "test_training_mode.py::test_every_product_leaves_the_running_statistics_alone",
    "P huber": "operators/test_modules.py::test_what_the_forward_route_cannot_do_it_says",
    "P weight norm": "objective/test_kernels.py::test_torchs_weight_norm_has_a_wrong_second_derivative",
    "C (b) means of unequal batches": (
        "operators/derivatives/test_hessian.py::test_the_split_into_batches_does_not_matter"
    ),
    "C (d) compiled modules": "objective/test_model.py::test_compiled_parts_run_eagerly_inside_products",
    "C (e) recurrence": "operators/test_modules.py::test_jacobian",
    "A8 stale operators": "operators/derivatives/test_gauss_newton.py::test_later_training_changes_no_operator",
    "A9 global generators": "objective/test_objective.py::test_every_global_generator_is_left_as_it_was",
    "A10 products inside a loss": (
        "operators/derivatives/test_products.py::test_a_context_without_gradients_does_not_make_them"
    ),
    "A11 no likelihood": "operators/derivatives/test_gauss_newton.py::test_what_is_no_likelihood_has_no_fisher",
    "A11 not convex": (
        "operators/derivatives/test_gauss_newton.py::test_facts_say_semidefinite_only_where_that_is_certain"
    ),
    "A13 float32 sums": "space/test_space.py::test_reductions_of_ten_million_float32_entries_are_accurate",
    "A14 no forward mode": "operators/derivatives/test_modes.py::test_modules_without_forward_mode_are_named",
    "A15 probes": "space/test_space.py::test_more_probes_never_change_the_first_ones",
    "A16 cuda": "space/test_space.py::test_spaces_compare_by_value_with_cuda_as_its_first_device",
    "A16 arrays": "operators/test_operator.py::test_what_makes_no_sense_is_refused_with_a_sentence",
    "C12 autocast": "operators/derivatives/test_hessian.py::test_autocast_inference_mode_and_no_grad_change_nothing",
}


@pytest.mark.parametrize("item", ELSEWHERE)
def test_the_test_of_an_item_exists(item):
    file, name = ELSEWHERE[item].split("::")
    assert re.search(rf"^def {name}", (Path(__file__).parent / file).read_text(), re.MULTILINE)


# --- P: silently wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.LayerNorm(3),
        lambda: nn.InstanceNorm1d(2, affine=True),
        lambda: nn.BatchNorm1d(2, track_running_stats=False),
    ],
    ids=["layer", "instance", "batch"],
)
@pytest.mark.parametrize("route", ["reverse", "forward"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
# P: jvp over jacrev is wrong for the affine weight of layer, instance and batch norm
def test_forward_over_functorchs_reverse_is_wrong_for_affine_norms_and_both_routes_are_right(norm, route):
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 3), norm(), nn.Tanh())).train()
    X, Y = randn(4, 2, 3), randn(4, 2, 3, seed=9)
    objective = Objective(model, squared_error(), [(X, Y)])
    params, space = {n: p.detach() for n, p in model.named_parameters()}, objective.space

    def loss(p):
        return ((functional_call(model, p, (X,)) - Y) ** 2).mean()

    expected = torch.autograd.functional.hessian(lambda x: loss(space.unflatten(x)), objective.point)
    v = block(space, 1, 1)
    wrong = space.flatten(jvp(jacrev(loss), (params,), (space.unflatten(v[:, 0]),))[1])
    assert float((wrong - expected @ v[:, 0]).abs().max()) > 1e-3  # once torch repairs this, the warning can go
    close(hessian(objective, route=route) @ v, expected @ v)


class PaddedRow(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Parameter(randn(5, 3)), nn.Linear(3, 2).double()

    def forward(self, x):
        return self.head(F.embedding(x, self.table, padding_idx=0).tanh().sum(1))


# P: embedding(padding_idx) gives an asymmetric operator in forward over reverse
def test_a_padding_row_would_make_a_hessian_asymmetric_and_is_refused():
    tokens = torch.tensor([[0, 1], [2, 0]])
    objective = Objective(PaddedRow(), squared_error(), [(tokens, randn(2, 2))])
    H = hessian(objective).dense()
    close(H, H.T)
    assert not bool(H[:3].any())  # the padding row has no curvature
    for make in (hessian, gauss_newton, jacobian):
        with pytest.raises(NotDifferentiable, match=r"padding_idx=0 .* use route='reverse'"):
            make(objective, route="forward").dense()
    for make in (hessian, jacobian):
        with pytest.raises(NotDifferentiable, match=rf"{make.__name__}: an embedding with padding_idx=0"):
            make(lambda t: F.embedding(tokens, t, padding_idx=0).tanh().sum(), randn(5, 3), route="forward").dense()


# --- P: crashes and missing derivatives -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [nn.MSELoss(), F.mse_loss])
@pytest.mark.parametrize("route", ["reverse", "forward"])
# P: forward mode through torch's mean squared error raises, its linearization crashes
def test_torchs_mean_squared_error_is_taken_by_formula(loss, route):
    model, X, Y = mlp(nn.Tanh()), randn(5, 2), randn(5, 2, seed=9)
    by_formula = Objective(model, squared_error(), ragged(X, Y))
    H = hessian(Objective(model, loss, ragged(X, Y)), route=route)
    close(H.dense(), hessian(by_formula).dense())


# P: the same inside a loss of one's own
def test_a_mean_squared_error_inside_a_custom_loss_goes_in_reverse_and_says_so():
    def terms(f, y):
        return torch.stack([F.mse_loss(a, b) for a, b in zip(f, y, strict=True)])

    model, X, Y = mlp(nn.Tanh()), randn(5, 2), randn(5, 2, seed=9)
    objective = Objective(model, custom(terms), ragged(X, Y))
    close(hessian(objective).dense(), hessian(Objective(model, squared_error(), ragged(X, Y))).dense())
    with pytest.raises(NotDifferentiable, match=r"hessian: .*ZeroTensors are immutable.*try the other route="):
        hessian(objective, route="forward").dense()


# P: batched double backward fails through group norm
def test_blocks_through_group_norm_are_columns():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Tanh()))
    H = hessian(Objective(model, squared_error(), [(randn(3, 4), randn(3, 4, seed=9))]))
    V = block(H.domain, 4, 1)
    close(H @ V, torch.stack([H @ v for v in V.T], 1))


@pytest.mark.parametrize("kind", [nn.ReLU, nn.LeakyReLU, nn.SiLU])
@pytest.mark.parametrize("route", ["reverse", "forward"])
# P: activations in place are fine
def test_activations_in_place_give_the_same_as_others(kind, route):
    plain, inplace = (mlp(kind(inplace=i)) for i in (False, True))
    data = ragged(randn(5, 2), randn(5, 2, seed=9))
    for make in (hessian, gauss_newton):
        close(
            make(Objective(inplace, squared_error(), data), route=route).dense(),
            make(Objective(plain, squared_error(), data)).dense(),
        )


# --- A: what overturned a sentence ------------------------------------------------------------------------------------


# A8: fused Adam and p.data = ... move no version counter; buffers and flags change too
def test_no_step_of_an_optimizer_reaches_an_operator():
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1)))
    objective = Objective(model, squared_error(), ragged(randn(5, 2), randn(5, 1, seed=9)))
    operators = [make(objective) for make in (hessian, gauss_newton, jacobian)]
    v = block(objective.space, 1, 1)
    before = [A @ v for A in operators]
    model.train()
    adam = torch.optim.Adam(model.parameters(), fused=True)
    for _ in range(5):
        adam.zero_grad()
        model(randn(5, 2)).square().sum().backward()
        adam.step()
    model[0].weight.data = torch.zeros(3, 2, dtype=F64)
    model[1].running_mean = torch.ones(3, dtype=F64)
    assert all(torch.equal(A @ v, b) for A, b in zip(operators, before, strict=True))


# A10: a product without a graph inside a training loss would be a constant
def test_a_penalty_on_curvature_trains_and_an_operator_in_its_place_is_refused():
    case, x = prepared(tanh_mlp)
    v = block(case.space, 1, 1)[:, 0]
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(hessian_product(case.objective.value, x, v) @ v, x)
    assert float(slope.abs().max()) > 1e-3
    for make in (lambda: hessian(case.objective, x), lambda: jacobian(case.objective, x)):
        with pytest.raises(ValueError, match="x must not require grad"):
            make()


# A10 and a trap of its own: torch's third derivatives of layer norm are wrong
def test_a_penalty_on_curvature_trains_through_layer_norm():
    case, x = prepared(causal_attention_with_affine_layer_norm)
    v, u, e = *block(case.space, 2, 1).T, 1e-6

    def curvature(x):
        return hessian_product(case.objective.value, x, v) @ v

    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(curvature(y), y)
    expected = float((curvature(x + e * u) - curvature(x - e * u)).detach()) / (2 * e)
    assert abs(float(slope @ u.detach()) - expected) < 1e-6 * abs(expected)


# A11: a binary cross entropy of probabilities has another Gauss-Newton matrix than one of logits
def test_a_loss_of_probabilities_is_refused():
    with pytest.raises(TypeError, match="BCELoss"):
        Objective(mlp(nn.Sigmoid(), 1), nn.BCELoss(), [(randn(5, 2), torch.ones(5, 1, dtype=F64))])


# A12: a block is the transpose of contiguous rows, which is 2 to 16 times as fast
def test_blocks_keep_their_layout_through_products():
    objective = prepared(tanh_mlp)[0].objective
    space = objective.space
    for V in (space.zeros(3), space.random(range(3), 0)):
        assert V.T.is_contiguous()
    for make in (hessian, gauss_newton, jacobian):
        A = make(objective)
        assert (A @ space.random(range(3), 0)).T.is_contiguous()
        assert (A.T @ A.codomain.random(range(3), 0)).T.is_contiguous()


# A14: LSTM in float32 has no forward mode in torch, spectral norm in training moves its buffers
def test_recurrence_in_float32_goes_in_reverse_by_default():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTM(2, 3, batch_first=True)

        def forward(self, x):
            return self.cell(x)[0][:, -1]

    torch.manual_seed(0)
    model, data = Last(), [(randn(4, 3, 2).float(), randn(4, 3).float())]
    exact = Objective(model, squared_error(), data, dtype=torch.float64)
    for make in (hessian, gauss_newton, jacobian):
        A, B = make(Objective(model, squared_error(), data)), make(exact)
        V = block(A.domain, 2, 1)
        assert A.route == "reverse"
        assert float((A @ V - B @ V.double()).abs().max()) < 1e-5
