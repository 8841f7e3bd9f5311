import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, l2, squared_error
from frechet.train import levenberg_marquardt

F64 = torch.float64


def data(n=60, noise=0.0):
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, 3, generator=g, dtype=F64)
    y = torch.tanh(X @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=F64)) * 2
    return X, y + noise * torch.randn(n, 1, generator=g, dtype=F64)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()


def test_a_model_that_can_fit_does_so_to_machine_precision():
    model, (X, y) = network(), data()
    solution = levenberg_marquardt(Objective(model, squared_error(), [(X[:25], y[:25]), (X[25:], y[25:])]))
    model.load_state_dict(solution.x, strict=False)
    assert float(nn.functional.mse_loss(model(X), y).detach()) < 1e-26


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_solution_is_that_of_the_objective(decay):
    X, y = data(noise=0.3)
    model = nn.Linear(3, 1).double()
    first = Objective(model, squared_error(), [(X[:20], y[:20]), (X[20:], y[20:])])
    second = Objective(model, squared_error(), [(X[:5], 1 + y[:5])])
    objective = first + 0.5 * second
    solution = levenberg_marquardt(objective, weight_decay=decay)
    assert solution.converged
    x = objective.space.flatten(solution.x)
    assert solution.cost == pytest.approx(float(objective.value(x)) + decay * float(x @ x) / 2)
    assert float((objective.gradient(x) + decay * x).abs().max()) < 1e-12


def test_what_is_no_sum_of_squares_is_refused():
    model, (X, y) = network(), data()
    for objective, options, sentence in (
        (Objective(model, squared_error(), [(X, y)], penalty=l2(0.1)), {}, "the objective must have no penalty"),
        (Objective(model, cross_entropy(), [(X, y.long())]), {}, "the criterion must be squared_error"),
        (Objective(model, squared_error(), [(X, y)]), {"weight_decay": -1.0}, "weight_decay must be a number >= 0"),
        (Objective(model, squared_error(), [(X, y[:, 0])]), {}, "targets must have the outputs' shape"),
    ):
        with pytest.raises(ValueError, match=f"levenberg_marquardt: {sentence}"):
            levenberg_marquardt(objective, **options)
