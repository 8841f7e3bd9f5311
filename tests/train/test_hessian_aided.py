import copy

import numpy as np
import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, hessian, squared_error
from frechet.train import HessianAided, hessian_aided_init, hessian_aided_step
from frechet.train._hessian_aided import uniform

F64 = torch.float64


def network(dtype=F64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def data(n=12):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=g, dtype=F64), torch.randint(0, 3, (n,), generator=g)


def problem():
    return Objective(network(), cross_entropy(), [data()])


def run(objective, steps, **options):
    x = objective.point
    state, path = hessian_aided_init(x), [x]
    for _ in range(steps):
        x, state = hessian_aided_step(objective, x, state, **options)
        path.append(x)
    return path, state


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("correction", ["hessian", "transport", "none"])
def test_steps_are_those_of_the_formula(correction, normalize):
    objective = problem()
    path, _ = run(objective, 6, seed=3, lr=0.2, momentum=0.8, correction=correction, normalize=normalize)
    x = last = path[0]
    v = None
    for t in range(6):
        g = objective.gradient(x)
        if v is None:
            v = g
        elif correction == "transport":
            v = 0.8 * v + 0.2 * objective.gradient(x + 4.0 * (x - last))
        else:
            q = uniform(t, 3)
            turn = hessian(objective, x=q * x + (1 - q) * last) @ (x - last) if correction == "hessian" else 0.0
            v = 0.8 * (v + turn) + 0.2 * g
        last, x = x, x - 0.2 * (v / v.norm() if normalize else v)
        torch.testing.assert_close(path[t + 1], x, rtol=1e-11, atol=1e-13)
        assert not normalize or float((x - last).norm()) == pytest.approx(0.2)


@pytest.mark.parametrize("correction", ["hessian", "transport"])
def test_where_the_curvature_is_constant_the_estimate_is_the_gradient(correction):
    torch.manual_seed(0)
    X, y = torch.randn(9, 3, dtype=F64), torch.randn(9, 2, dtype=F64)
    objective = Objective(nn.Linear(3, 2).double(), squared_error(), [(X, y)])
    x = objective.point
    state = hessian_aided_init(x)
    for _ in range(20):
        at = x
        x, state = hessian_aided_step(objective, x, state, seed=0, lr=0.3, correction=correction)
        torch.testing.assert_close(state.v, objective.gradient(at), rtol=1e-10, atol=1e-12)
    plain = run(objective, 20, seed=0, lr=0.3, correction="none")  # the twin that lags behind
    assert float((plain[1].v - objective.gradient(plain[0][-2])).norm()) > 1e-2


def test_the_product_is_the_change_of_the_gradient_on_average():
    objective = problem()
    x, last = objective.point + 0.7, objective.point
    points = [uniform(t, 5) for t in range(4000)]
    assert abs(sum(points) / 4000 - 0.5) < 4 * (1 / 12 / 4000) ** 0.5
    assert abs(sum(q**2 for q in points) / 4000 - 1 / 3) < 4 * (4 / 45 / 4000) ** 0.5
    assert 0 <= min(points) < max(points) <= 1
    nodes, weights = np.polynomial.legendre.leggauss(30)
    mean = sum(
        w / 2 * (hessian(objective, x=(1 + a) / 2 * x + (1 - a) / 2 * last) @ (x - last))
        for a, w in zip(nodes.tolist(), weights.tolist(), strict=True)
    )
    torch.testing.assert_close(mean, objective.gradient(x) - objective.gradient(last), rtol=1e-6, atol=1e-8)


def go(m, o, X, y, steps, pieces=1, clip=None):
    loss = nn.CrossEntropyLoss() if o._criterion is None else o._criterion
    for _ in range(steps):
        o.zero_grad()
        for a, b in zip(X.chunk(pieces), y.chunk(pieces), strict=True):
            (loss(m(a), b) / pieces).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(m.parameters(), clip)
        o.step()


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_optimizer_takes_the_steps_of_the_pure_function(pieces):
    X, y = data()
    m = network()
    path, _ = run(problem(), 5, seed=7, lr=0.1)
    o = HessianAided(m, nn.CrossEntropyLoss(), seed=7, lr=0.1)
    go(m, o, X, y, 5, pieces)
    found = Objective(m, cross_entropy(), [(X, y)]).point
    torch.testing.assert_close(found, path[-1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
def test_a_run_that_resumes_goes_on_to_the_last_bit(dtype):
    X, y = data()
    X = X.to(dtype)
    m = network(dtype)
    o = HessianAided(m, nn.CrossEntropyLoss(), seed=1, lr=0.05, weight_decay=0.1)
    go(m, o, X, y, 3)
    saved = copy.deepcopy((m.state_dict(), o.state_dict()))
    go(m, o, X, y, 3)
    other = network(dtype)
    again = HessianAided(other, nn.CrossEntropyLoss(), seed=1, lr=0.05, weight_decay=0.1)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    go(other, again, X, y, 3)
    for p, q in zip(m.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_parameter_that_rested_moves_as_one_that_was_there():
    """What it moved before its rest, and where it stood before its first step, is no displacement of the last step."""
    X, y = data()
    m = network()
    o = HessianAided(m, nn.CrossEntropyLoss(), [m[0].weight, m[2].weight], seed=0, lr=0.1, momentum=0.5)
    go(m, o, X, y, 1)
    for step in range(3):
        o.zero_grad()
        o._criterion(m(X), y).backward()
        if step < 2:
            m[0].weight.grad = None
        o.step()
        if step == 1:  # the first weight rests: its last place is where it is
            torch.testing.assert_close(o.state[m[0].weight]["last"], m[0].weight.detach())
    v = o.state[m[0].weight]["v"]
    assert bool(v.isfinite().all())
    fresh = network()
    late = HessianAided(fresh, nn.CrossEntropyLoss(), seed=0, lr=0.1)
    late.zero_grad()
    late._criterion(fresh(X), y).backward()
    fresh[0].weight.grad = None
    late.step()
    late.zero_grad()
    late._criterion(fresh(X), y).backward()
    late.step()
    assert float(late.state[fresh[0].weight]["v"].norm()) < 1.0  # x itself, as a displacement, would make it large


def test_groups_have_their_rates_and_decay():
    X, y = data()
    m = network()
    groups = [{"params": m[0].parameters(), "lr": 0.0}, {"params": m[2].parameters(), "weight_decay": 0.5}]
    o = HessianAided(m, nn.CrossEntropyLoss(), groups, seed=0, lr=0.1)
    before = [p.detach().clone() for p in m.parameters()]
    go(m, o, X, y, 1)
    after = list(m.parameters())
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])
    g = problem().gradient()
    v = problem().space.unflatten(g / g.norm())["2.bias"]
    torch.testing.assert_close(after[3].detach(), before[3] * (1 - 0.05) - 0.1 * v)


def test_wrong_arguments_are_named():
    m, objective = network(), problem()
    x = objective.point
    for options, sentence in (
        ({"lr": -0.1}, "lr must be a number >= 0, got -0.1"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            HessianAided(m, nn.CrossEntropyLoss(), seed=0, **options)
    with pytest.raises(ValueError, match="seed must be a non-negative int, got -1"):
        HessianAided(m, nn.CrossEntropyLoss(), seed=-1)
    with pytest.raises(ValueError, match="correction must be 'hessian', 'transport' or 'none', got 'igt'"):
        hessian_aided_step(objective, x, hessian_aided_init(x), seed=0, correction="igt")
    with pytest.raises(ValueError, match="gradient must be None with 'transport'"):
        hessian_aided_step(objective, x, hessian_aided_init(x), seed=0, correction="transport", gradient=x)
