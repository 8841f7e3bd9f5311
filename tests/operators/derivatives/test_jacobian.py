from types import SimpleNamespace

import pytest
import torch
from torch import nn

from frechet.errors import NonFinite
from frechet.objective import Objective
from frechet.objective.criteria import squared_error
from frechet.operators._operator import PSD
from frechet.operators.derivatives._jacobian import jacobian, ntk
from frechet.operators.derivatives._modes import lacks_forward
from laws import LAWS, block, close
from objective_cases import (
    MAKERS,
    causal_language_model,
    conv_net_with_batch_norm,
    jacobian_of,
    mlp,
    penalized_sum,
    poisson_counts,
    prepared,
    ragged,
    randn,
    tanh_mlp,
    unused_parameter,
)

named = pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)


@named
def test_it_is_the_dense_jacobian_of_all_outputs_in_data_order(make):
    objective, J = prepared(make)[0].objective, jacobian_of(make)
    routes = ["reverse"] if lacks_forward(objective.model) else ["reverse", "forward"]
    for route in routes:
        A = jacobian(objective, route=route)
        V, U = block(A.domain, 2, 1), block(A.codomain, 2, 2)
        assert A.shape == tuple(J.shape)
        close(A @ V, J @ V)
        close(A.T @ U, J.T @ U)


@named
def test_the_ntk_is_j_times_its_transpose(make):
    K, J = ntk(prepared(make)[0].objective), jacobian_of(make)
    U = block(K.domain, 2, 1)
    assert K.facts == PSD
    close(K @ U, J @ (J.T @ U))


@pytest.mark.parametrize("route", ["reverse", "forward"])
def test_both_obey_every_law(route):
    for make in (poisson_counts, unused_parameter):
        objective, J = prepared(make)[0].objective, jacobian_of(make)
        for law in LAWS:
            law(jacobian(objective, route=route), SimpleNamespace(dense=J))
    for law in LAWS:
        law(
            ntk(prepared(poisson_counts)[0].objective, route=route),
            SimpleNamespace(dense=jacobian_of(poisson_counts) @ jacobian_of(poisson_counts).T),
        )


def test_ignored_positions_keep_their_rows():
    assert jacobian(prepared(causal_language_model)[0].objective).shape[0] == 4 * 4 * 5


def test_the_outputs_of_a_sum_stand_one_below_the_other():
    assert jacobian(prepared(penalized_sum)[0].objective).shape[0] == 5 * 2 + 3 * 2


def test_restriction_keeps_columns():
    case, _ = prepared(conv_net_with_batch_norm)
    J = jacobian(case.objective, restrict="0.*")
    columns = case.space.indices(J.domain)
    close(J.dense(), jacobian_of(conv_net_with_batch_norm)[:, columns])
    K = ntk(case.objective, restrict="0.*").dense()
    close(K, jacobian_of(conv_net_with_batch_norm)[:, columns] @ jacobian_of(conv_net_with_batch_norm)[:, columns].T)


def test_another_point_and_later_training():
    case = conv_net_with_batch_norm()
    x = 0.5 * case.objective.point
    J = jacobian(case.objective, x)
    before = J.dense()
    case.objective.model.train()
    case.objective.model(randn(4, 1, 4, 4))
    case.objective.model[0].weight.data += 1.0
    assert torch.equal(J.dense(), before)
    expected = torch.autograd.functional.jacobian(prepared_outputs, x)
    close(before, expected)


def prepared_outputs(x):
    case, _ = prepared(conv_net_with_batch_norm)
    return case.outputs(case.space.unflatten(x)).flatten()


def test_a_batch_that_is_not_finite_is_named():
    X = randn(5, 2)
    X[3, 0] = torch.nan
    J = jacobian(Objective(mlp(nn.Tanh()), squared_error(), ragged(X, randn(5, 2))))
    for A in (J, J.T):
        with pytest.raises(NonFinite, match=r"jacobian: batch 1 gives a NaN or an infinity \(its inputs hold NaN"):
            A @ A.domain.random(0, 0)


def test_a_point_that_requires_grad_is_refused_with_the_function_to_use():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"jacobian: x must not require grad.* use jacobian_product\(f, x, v\)"):
        jacobian(lambda x: x**2, x)
    with pytest.raises(ValueError, match=r"jacobian: x must not require grad \(block 'a'\)"):
        jacobian(lambda d: d["a"], {"a": x})


def test_wrong_arguments_are_named():
    case, x = prepared(tanh_mlp)
    with pytest.raises(TypeError, match="jacobian: x must be given for a function, got None"):
        jacobian(lambda x: x)
    with pytest.raises(TypeError, match="jacobian: restrict must be left out for a function"):
        jacobian(lambda x: x, x, restrict="a")
    for of in (case.objective, lambda x: x):
        with pytest.raises(ValueError, match="jacobian: route must be 'reverse' or 'forward', got 'both'"):
            jacobian(of, x, route="both")
