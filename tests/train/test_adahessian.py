import math

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, hessian, squared_error
from frechet.train import AdaHessian, adahessian_init, adahessian_step
from frechet.train._adahessian import averaged, diagonal_probe

F64 = torch.float64


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)).double()


def problem():
    model = network()
    X, y = torch.randn(8, 1, 5, 5, dtype=F64), torch.randint(0, 3, (8,))
    return Objective(model, cross_entropy(), [(X, y)])


def diagonal_problem(curvatures=(1.0, 9.0, 0.25)):
    """L = sum_i c_i (x_i - 1)^2 / 2: its Hessian is diagonal and constant, and one probe is exact."""
    c = torch.tensor(curvatures, dtype=F64)
    model = nn.Linear(len(c), 1, bias=False).double()
    nn.init.zeros_(model.weight)
    X = torch.diag((len(c) * c / 2).sqrt())
    return Objective(model, squared_error(), [(X, X.sum(1, keepdim=True))]), c


def run(objective, steps, **options):
    x = objective.point
    state, path = adahessian_init(x), [x]
    for _ in range(steps):
        x, state, _ = adahessian_step(objective, x, state, seed=0, **options)
        path.append(x)
    return torch.stack(path), state


def test_the_estimate_is_the_diagonal_in_the_mean_and_exact_where_the_hessian_is_diagonal():
    objective, c = diagonal_problem()
    torch.testing.assert_close(diagonal_probe(objective, objective.point, range(1), 3), c)
    objective = problem()
    exact = hessian(objective).dense().diagonal()
    k = 4000
    Z = objective.space.random(range(k), 5)
    found = Z * (hessian(objective) @ Z)
    torch.testing.assert_close(diagonal_probe(objective, objective.point, range(k), 5), found.mean(1))
    off = (found.mean(1) - exact).abs() / (found.std(1) / math.sqrt(k)).clamp_min(1e-12)
    assert float(off.max()) < 5
    assert float(found.std(1).min()) > 0  # the probes are not constant


def test_probes_change_from_estimate_to_estimate_and_are_those_of_the_seed():
    objective = problem()
    x = objective.point
    _, state, first = adahessian_step(objective, x, adahessian_init(x), seed=0, lr=0.0, samples=2, spatial=False)
    _, _, second = adahessian_step(objective, x, state, seed=0, lr=0.0, samples=2, spatial=False)
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, diagonal_probe(objective, x, range(2, 4), 0))


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("every", [1, 3])
def test_steps_are_those_of_the_formula(power, every):
    objective = problem()
    options = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "hessian_power": power}
    path, state = run(objective, 7, every=every, **options)
    x, m, v, u = path[0], 0.0, 0.0, 0
    for t in range(1, 8):
        g = objective.gradient(x)
        m = 0.8 * m + 0.2 * g
        if (t - 1) % every == 0:
            z = objective.space.random(u, 0)
            D = averaged(objective.space, z * (hessian(objective, x=x) @ z))
            v, u = 0.95 * v + 0.05 * D**2, u + 1
        x = x - 0.05 * (m / (1 - 0.8**t) / ((v / (1 - 0.95**u)) ** (power / 2) + 1e-3) + 0.1 * x)
        torch.testing.assert_close(path[t], x)
    assert state.updates == (7 if every == 1 else 3)


@pytest.mark.parametrize("every", [2, 10, 100])
def test_delayed_estimates_take_steps_as_long_as_those_of_every_step(every):
    """Counting steps in the place of estimates makes them 3 times as long at every = 10, t = 100, and 10 at 100."""
    objective, _ = diagonal_problem()
    here, _ = run(objective, 100, lr=0.01)
    late, _ = run(objective, 100, lr=0.01, every=every)
    ratio = (late[100] - late[99]) / (here[100] - here[99])
    assert bool(((ratio - 1).abs() < 0.05).all()), ratio


def test_with_the_exact_diagonal_a_first_step_of_rate_one_is_that_of_newton():
    objective, _ = diagonal_problem()
    path, _ = run(objective, 1, lr=1.0, eps=0.0)
    torch.testing.assert_close(path[1], torch.ones(3, dtype=F64))


def test_kernels_share_the_mean_of_their_diagonal_with_its_signs():
    objective = problem()
    D = torch.arange(objective.space.dim, dtype=F64) - 5
    found, before = objective.space.unflatten(averaged(objective.space, D)), objective.space.unflatten(D)
    kernel = before["0.weight"].mean((2, 3), keepdim=True).expand(2, 1, 3, 3)
    torch.testing.assert_close(found["0.weight"], kernel)
    for name in ("0.bias", "3.weight", "3.bias"):
        torch.testing.assert_close(found[name], before[name])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every": 0}, "every must be an int >= 1, got 0"),
        ({"samples": True}, "samples must be an int >= 1, got True"),
        ({"hessian_power": 0.0}, r"hessian_power must lie in \(0, 1\], got 0.0"),
        ({"eps": -1.0}, "eps must be a number >= 0, got -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"lr": -0.1}, "lr must be a number >= 0, got -0.1"),
    ],
)
def test_wrong_arguments_are_named(options, sentence):
    with pytest.raises(ValueError, match=f"AdaHessian: {sentence}"):
        AdaHessian(network(), nn.CrossEntropyLoss(), seed=0, **options)
