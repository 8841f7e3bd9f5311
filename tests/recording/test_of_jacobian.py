import pytest
import torch
from torch import nn

from frechet.errors import NonFinite
from frechet.objective import Objective
from frechet.objective.criteria import squared_error
from frechet.operators.derivatives import gauss_newton, hessian, jacobian
from frechet.recording import linearize
from objective_cases import mlp, prepared, randn, tanh_mlp


@pytest.mark.parametrize("route", ["reverse", "forward"])
def test_a_jacobian_names_the_batch_that_is_not_finite_as_it_does_unkept(route):
    objective = prepared(tanh_mlp)[0].objective
    J = jacobian(objective, route=route)
    L, (m, n) = linearize(J), J.shape
    v, u = torch.zeros(n, 2).double(), torch.zeros(m, 2).double()
    v[0, 1], u[-1, 1] = torch.nan, torch.inf
    sound = "are finite, but the vector may not be"
    for A in (J, L):
        with pytest.raises(NonFinite, match=f"jacobian: batch 0 gives a NaN or an infinity .*{sound}"):
            A @ v
        with pytest.raises(NonFinite, match=f"jacobian: batch 2 gives a NaN or an infinity .*{sound}"):
            A.T @ u


@pytest.mark.parametrize("batch", [0, 1])
def test_bad_data_are_named_by_the_product_not_by_the_recording(batch):
    X = [randn(3, 2), randn(2, 2, seed=1)]
    X[batch][0, 0] = torch.nan
    data = [(x, torch.zeros(len(x), 2).double()) for x in X]
    objective = Objective(mlp(nn.Tanh()), squared_error(), data)
    for A in (jacobian(objective), jacobian(objective).T, hessian(objective), gauss_newton(objective)):
        for B in (A, linearize(A)):
            with pytest.raises(NonFinite, match=f"batch {batch} gives a NaN"):
                B @ torch.ones(B.shape[1]).double()


def test_a_sum_of_finite_batches_that_overflows_is_told_as_such():
    data = [(torch.full((1, 1), 1.5e308, dtype=torch.float64), torch.zeros(1, 1).double()) for _ in range(2)]
    J = jacobian(Objective(nn.Linear(1, 1, bias=False).double(), squared_error(), data))
    for A in (J, linearize(J)):
        with pytest.raises(NonFinite, match="jacobian: "):
            A.T @ torch.ones(2).double()
    with pytest.raises(NonFinite, match=r"jacobian: the sum over all batches overflows torch\.float64"):
        linearize(J).T @ torch.ones(2).double()
