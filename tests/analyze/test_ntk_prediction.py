"""The kernel's prediction: exact for linear models, better for wider networks; and how far kernels move."""

import math

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, squared_error
from frechet.analyze import ntk_drift, ntk_matrix, ntk_prediction


def descended(objective, steps, rate):
    x = objective.point
    for _ in range(steps):
        x = x - rate * objective.gradient(x)
    return x


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("steps", [0, 1, 50])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_for_a_linear_model_it_is_exact(outputs, steps, weight):
    torch.manual_seed(0)
    X, Y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, outputs, dtype=torch.float64)
    model = nn.Linear(4, outputs).double()
    objective = weight * Objective(model, squared_error(), [(X[:4], Y[:4]), (X[4:], Y[4:])])
    others = torch.randn(5, 4, dtype=torch.float64)
    on = Objective(model, squared_error(), [(others, torch.zeros(5, outputs, dtype=torch.float64))])
    x = objective.space.unflatten(descended(objective, steps, 0.1))
    for found, inputs in (
        (ntk_prediction(objective, steps, 0.1), X),
        (ntk_prediction(objective, steps, 0.1, on=on), others),
    ):
        assert torch.allclose(found.outputs, (inputs @ x["weight"].T + x["bias"]).reshape(-1), rtol=1e-10, atol=1e-10)
    assert float(found.energies.sum()) == pytest.approx(1.0)


def test_the_largest_rate_is_that_of_stability():
    torch.manual_seed(0)
    X, Y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)
    objective = Objective(nn.Linear(4, 1).double(), squared_error(), [(X, Y)])
    limit = ntk_prediction(objective, 1, 0.1).largest_rate
    H = torch.autograd.functional.hessian(objective.value, objective.point)
    assert limit == pytest.approx(2 / float(torch.linalg.eigvalsh(H)[-1]))


class Wide(nn.Module):
    """One hidden layer in the kernel's parametrization."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Parameter(torch.randn(width, 6, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(1, width, dtype=torch.float64))

    def forward(self, x):
        return torch.relu(x @ self.first.T) @ self.second.T * (2 / self.second.shape[1]) ** 0.5


def test_wider_networks_follow_it_better_and_their_kernels_move_less():
    errors, drifts = [], []
    for width in (16, 1024):
        error, drift = 0.0, 0.0
        for seed in range(4):
            torch.manual_seed(seed)
            X = nn.functional.normalize(torch.randn(16, 6, dtype=torch.float64))
            Y = torch.randn(16, 1, dtype=torch.float64).sign()
            model = Wide(width)
            objective = Objective(model, squared_error(), [(X, Y)])
            rate = ntk_prediction(objective, 1, 1.0).largest_rate / 2
            found = ntk_prediction(objective, 60, rate)
            before = ntk_matrix(objective).matrix
            x = descended(objective, 60, rate)
            blocks = objective.space.unflatten(x)
            out = (torch.relu(X @ blocks["first"].T) @ blocks["second"].T * (2 / width) ** 0.5).reshape(-1)
            error += float((found.outputs - out).norm() / (out - found.start).norm()) / 4
            drift += ntk_drift(before, ntk_matrix(objective, x=x).matrix).relative / 4
        errors.append(error)
        drifts.append(drift)
    assert math.log(errors[1] / errors[0]) / math.log(64) < -0.3
    assert math.log(drifts[1] / drifts[0]) / math.log(64) < -0.4


def test_drift():
    K = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    found = ntk_drift(K, torch.diag(torch.tensor([2.0, 3.0])))
    assert found.relative == pytest.approx(math.sqrt(2 / 15))
    assert found.misalignment == pytest.approx(1 - 13 / math.sqrt(15 * 13))
    with pytest.raises(ValueError, match="both kernels must be"):
        ntk_drift(K, K[:1])
    with pytest.raises(ValueError, match="before must not be zero"):
        ntk_drift(0 * K, K)


def test_bad_arguments():
    objective = Objective(nn.Linear(2, 3), cross_entropy(), [(torch.eye(2), torch.tensor([0, 1]))])
    with pytest.raises(ValueError, match="must be squared_error"):
        ntk_prediction(objective, 1, 0.1)
    objective = Objective(nn.Linear(2, 1), squared_error(), [(torch.eye(2), torch.zeros(2, 1))])
    with pytest.raises(ValueError, match="rate positive"):
        ntk_prediction(objective, 1, 0.0)
