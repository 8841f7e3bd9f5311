import copy
import math

import pytest
import torch
from torch import nn

from frechet import Objective, squared_error
from frechet.train import EntropySGD, local_entropy_init, local_entropy_step

F64 = torch.float64
PLAIN = {"noise": 0.0, "momentum": 0.0}


def bowl(bends):
    """sum_i c_i x_i^2 / 2."""
    c = torch.tensor(bends, dtype=F64)
    model = nn.Linear(len(c), 1, bias=False).double()
    X = torch.diag((len(c) * c / 2).sqrt())
    return Objective(model, squared_error(), [(X, torch.zeros(len(c), 1, dtype=F64))]), c


def run(objective, x, total, **options):
    state, path = local_entropy_init(x), [x]
    for _ in range(total):
        x, state = local_entropy_step(objective, x, state, **options)
        path.append(x)
    return path, state


def test_without_noise_a_long_walk_ends_at_the_proximal_point():
    objective, c = bowl([1.0, 4.0, 0.3])
    x = torch.tensor([1.0, -2.0, 3.0], dtype=F64)
    path, state = run(objective, x, 400, seed=0, inner_lr=0.3, steps=400, gamma=0.5, lr=1.0, **PLAIN)
    torch.testing.assert_close(path[-1], 0.5 * x / (c + 0.5), rtol=1e-8, atol=1e-12)
    assert torch.equal(state.center, path[-1])
    half, _ = run(objective, x, 400, seed=0, inner_lr=0.3, steps=400, gamma=0.5, lr=0.25, **PLAIN)
    torch.testing.assert_close(half[-1], x - 0.25 * (x - 0.5 * x / (c + 0.5)), rtol=1e-8, atol=1e-12)


def test_steps_are_those_of_the_formula():
    objective, c = bowl([1.0, 4.0, 0.3])
    x = torch.tensor([1.0, -2.0, 3.0], dtype=F64)
    options = {"inner_lr": 0.05, "gamma": 0.4, "scope": 0.5, "noise": 0.2, "average": 0.6, "momentum": 0.7}
    path, _ = run(objective, x, 8, seed=4, steps=4, lr=0.8, **options)
    center = mean = x
    v = torch.zeros_like(x)
    for t in range(8):
        gamma = 0.4 * 1.5 ** (t // 4)
        g = c * x
        v = 0.7 * v + g
        d = g + 0.7 * v + gamma * (x - center)
        x = x - 0.05 * d + math.sqrt(0.05) * 0.2 * objective.space.random(t, 4, "gaussian")
        mean = 0.6 * mean + 0.4 * x
        if t % 4 == 3:
            center = center - 0.8 * (center - mean)
            x, mean, v = center, center, torch.zeros_like(x)
        torch.testing.assert_close(path[t + 1], x, rtol=1e-12, atol=1e-14)


def test_the_noise_of_a_walk_has_the_variance_of_its_langevin_process():
    """On c x^2 / 2, with b = c + gamma: x -> (1 - h b) x + sqrt(h) e N has the variance h e^2 / (1 - (1 - h b)^2)."""
    n, h, e, c, gamma = 400, 0.2, 0.7, 2.0, 0.5
    objective, _ = bowl([c] * n)
    path, _ = run(
        objective, torch.zeros(n, dtype=F64), 60, seed=0, inner_lr=h, steps=1000, gamma=gamma, noise=e, momentum=0.0
    )
    expected = h * e**2 / (1 - (1 - h * (c + gamma)) ** 2)
    found = torch.stack(path[31::2])
    assert float(found.square().mean()) == pytest.approx(expected, rel=5 * math.sqrt(2 / found.numel()))
    assert not torch.equal(path[1], path[2] - path[1])


def test_gamma_grows_from_walk_to_walk():
    objective, _ = bowl([1.0])
    x = torch.ones(1, dtype=F64)
    path, _ = run(objective, x, 800, seed=0, inner_lr=0.3, steps=400, gamma=0.5, scope=1.0, **PLAIN)
    first = 0.5 / 1.5
    torch.testing.assert_close(path[400], torch.tensor([first], dtype=F64))
    torch.testing.assert_close(path[800], torch.tensor([first * 1.0 / 2.0], dtype=F64))


# --- the optimizer ----------------------------------------------------------------------------------------------------


def network(dtype=F64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def data():
    g = torch.Generator().manual_seed(1)
    X = torch.randn(12, 4, generator=g, dtype=F64)
    return X, X.sum(1, keepdim=True)


def go(m, o, X, y, steps):
    for _ in range(steps):
        o.zero_grad()
        nn.functional.mse_loss(m(X), y).backward()
        o.step()


def test_the_optimizer_takes_the_steps_of_the_pure_function():
    X, y = data()
    m = network()
    objective = Objective(network(), squared_error(), [(X, y)])
    options = {"lr": 0.9, "inner_lr": 0.05, "gamma": 0.3, "scope": 0.2, "noise": 0.0, "average": 0.5, "momentum": 0.8}
    path, _ = run(objective, objective.point, 10, seed=0, steps=4, **options)
    o = EntropySGD(m.parameters(), seed=0, steps=4, **options)
    for t in range(10):
        go(m, o, X, y, 1)
        torch.testing.assert_close(objective.space.flatten(dict(m.named_parameters())).detach(), path[t + 1])
        assert o.at_center == ((t + 1) % 4 == 0)


def test_noise_differs_between_parameters_and_steps_and_is_that_of_the_seed():
    def moved(seed):
        m = nn.ParameterList([torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)])
        o = EntropySGD(m.parameters(), seed=seed, noise=1.0, steps=5)
        found = []
        for _ in range(2):
            for p in m:
                p.grad = torch.zeros_like(p)
            before = [p.detach().clone() for p in m]
            o.step()
            found += [p.detach() - b for p, b in zip(m, before, strict=True)]
        return torch.stack(found)

    N = moved(0)
    assert torch.equal(N, moved(0))
    assert not torch.equal(N, moved(1))
    assert float(torch.cdist(N, N)[~torch.eye(4, dtype=torch.bool)].min()) > 1e-3


@pytest.mark.parametrize("taken", [3, 4])
@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
def test_a_run_that_resumes_goes_on_to_the_last_bit(dtype, taken):
    X, y = (t.to(dtype) for t in data())
    m = network(dtype)
    o = EntropySGD(m.parameters(), seed=2, steps=4, noise=1e-2, scope=0.1)
    go(m, o, X, y, taken)
    saved = copy.deepcopy((m.state_dict(), o.state_dict()))
    go(m, o, X, y, 7)
    other = network(dtype)
    again = EntropySGD(other.parameters(), seed=2, steps=4, noise=1e-2, scope=0.1)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    go(other, again, X, y, 7)
    for p, q in zip(m.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_bfloat16_parameters_walk_in_float32():
    """Steps of a thousandth of a parameter are below the digits of bfloat16, and add up all the same."""
    m = nn.ParameterList([torch.ones(2, dtype=torch.bfloat16)])
    o = EntropySGD(m.parameters(), seed=0, steps=100, inner_lr=1e-3, gamma=0.0, **PLAIN)
    for _ in range(50):
        m[0].grad = torch.ones_like(m[0])
        o.step()
    torch.testing.assert_close(m[0].detach().float(), torch.full((2,), 0.95), rtol=0, atol=4e-3)


def test_a_scheduler_scales_the_rate_of_the_centers():
    X, y = data()
    m = network()
    o = EntropySGD(m.parameters(), seed=0, steps=2, lr=0.0)
    torch.optim.lr_scheduler.ExponentialLR(o, 0.5)
    before = [p.detach().clone() for p in m.parameters()]
    go(m, o, X, y, 2)
    assert all(torch.equal(p, q) for p, q in zip(m.parameters(), before, strict=True))


def test_a_gradient_that_is_missing_or_no_number_leaves_its_parameter():
    m = nn.ParameterList([torch.ones(2), torch.ones(2), torch.ones(2)])
    o = EntropySGD(m.parameters(), seed=0, steps=2, **PLAIN)
    m[0].grad, m[1].grad = torch.ones(2), torch.tensor([math.nan, 1.0])
    o.step()
    assert not torch.equal(m[0], torch.ones(2))
    assert torch.equal(m[1], torch.ones(2))
    assert torch.equal(m[2], torch.ones(2))


def test_weight_decay_is_a_gradient():
    m = nn.ParameterList([torch.full((2,), 2.0)])
    o = EntropySGD(m.parameters(), seed=0, steps=10, inner_lr=0.1, weight_decay=0.5, gamma=0.0, **PLAIN)
    m[0].grad = torch.zeros(2)
    o.step()
    torch.testing.assert_close(m[0].detach(), torch.full((2,), 1.9))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": -1.0}, "lr must be a number >= 0, got -1.0"),
        ({"inner_lr": math.inf}, "inner_lr must be a number >= 0, got inf"),
        ({"gamma": math.nan}, "gamma must be a number >= 0, got nan"),
        ({"noise": -0.1}, "noise must be a number >= 0, got -0.1"),
        ({"scope": -0.1}, "scope must be a number >= 0, got -0.1"),
        ({"steps": 0}, "steps must be an int >= 1, got 0"),
        ({"steps": True}, "steps must be an int >= 1, got True"),
        ({"average": 1.0}, r"average must lie in \[0, 1\), got 1.0"),
        ({"momentum": -0.5}, r"momentum must lie in \[0, 1\), got -0.5"),
        ({"weight_decay": -1.0}, "weight_decay must be a number >= 0, got -1.0"),
        ({"seed": -1}, "seed must be a non-negative int, got -1"),
    ],
)
def test_wrong_arguments_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        EntropySGD(network().parameters(), **({"seed": 0} | options))
