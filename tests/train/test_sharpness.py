import copy

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy
from frechet.train import SAM, ascent

F64 = torch.float64


def network(norm=False, dtype=F64):
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(5) if norm else nn.Tanh()
    return nn.Sequential(nn.Linear(4, 5), middle, nn.Linear(5, 3)).to(dtype)


def data(n=12):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=g, dtype=F64), torch.randint(0, 3, (n,), generator=g)


def sgd(m):
    return torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)


def go(m, o, loss, X, y, steps=1, pieces=1):
    for _ in range(steps):
        o.zero_grad()
        for a, b in zip(X.chunk(pieces), y.chunk(pieces), strict=True):
            (loss(m(a), b) / pieces).backward()
        o.step()


def by_hand(m, X, y, rho, adaptive, groups):
    """Two steps of SGD with the gradients of SAM, written out."""
    o = sgd(m)
    for _ in range(2):
        total = [torch.zeros_like(p) for p in m.parameters()]
        for a, b in zip(X.split(groups), y.split(groups), strict=True):
            start = [p.detach().clone() for p in m.parameters()]
            g = torch.autograd.grad(nn.functional.cross_entropy(m(a), b), list(m.parameters()))
            T = [p.abs() if adaptive else torch.ones_like(p) for p in start]
            size = torch.sqrt(sum(((t * s) ** 2).sum() for t, s in zip(T, g, strict=True)))
            with torch.no_grad():
                for p, t, s in zip(m.parameters(), T, g, strict=True):
                    p.add_(rho * t * t * s / size)
            there = torch.autograd.grad(nn.functional.cross_entropy(m(a), b), list(m.parameters()))
            with torch.no_grad():
                for p, s in zip(m.parameters(), start, strict=True):
                    p.copy_(s)
            total = [t + len(a) / len(X) * g for t, g in zip(total, there, strict=True)]
        for p, t in zip(m.parameters(), total, strict=True):
            p.grad = t
        o.step()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("m", "pieces"), [(None, 1), (None, 3), (4, 1), (5, 1), (4, 3)])
def test_steps_are_those_written_out(adaptive, m, pieces):
    (X, y), loss = data(), nn.CrossEntropyLoss()
    ours, theirs = network(), network()
    go(ours, SAM(ours, loss, sgd(ours), rho=0.3, adaptive=adaptive, m=m), loss, X, y, steps=2, pieces=pieces)
    by_hand(theirs, X, y, 0.3, adaptive, m or len(X))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_batch_statistics_move_once():
    (X, y), loss = data(), nn.CrossEntropyLoss()
    m, twin = network(norm=True), network(norm=True)
    go(m, SAM(m, loss, sgd(m), rho=0.3), loss, X, y)
    twin(X)
    assert torch.equal(m[1].running_mean, twin[1].running_mean)
    assert int(m[1].num_batches_tracked) == 1


@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
def test_a_run_that_resumes_goes_on_to_the_last_bit(dtype):
    (X, y), loss = data(), nn.CrossEntropyLoss()
    X = X.to(dtype)
    m = network(dtype=dtype)
    o = SAM(m, loss, torch.optim.AdamW(m.parameters(), lr=0.1), rho=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(o, 0.5)
    go(m, o, loss, X, y, 3)
    schedule.step()
    assert o.base.param_groups[0]["lr"] == 0.05
    saved = copy.deepcopy((m.state_dict(), o.state_dict()))
    go(m, o, loss, X, y, 3)
    other = network(dtype=dtype)
    again = SAM(other, loss, torch.optim.AdamW(other.parameters(), lr=0.1), rho=0.1)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    go(other, again, loss, X, y, 3)
    for p, q in zip(m.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_second_gradient_is_clipped_and_a_batch_is_enough():
    (X, y), loss = data(), nn.CrossEntropyLoss()
    m = network()
    before = [p.detach().clone() for p in m.parameters()]
    SAM(m, loss, torch.optim.SGD(m.parameters(), lr=1.0), clip=1e-3).step((X, y))
    moved = torch.cat([(p.detach() - q).reshape(-1) for p, q in zip(m.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(1e-3)


def test_the_ascent_raises_the_loss_most_within_its_radius():
    X, y = data()
    objective = Objective(network(), cross_entropy(), [(X, y)])
    x, g = objective.point, objective.gradient()
    e = ascent(objective.space, x, g, rho=1e-3)
    assert float(e.norm()) == pytest.approx(1e-3)
    assert float(objective.value(x + e) - objective.value(x)) == pytest.approx(1e-3 * float(g.norm()), rel=1e-2)
    assert not ascent(objective.space, x, torch.zeros_like(g), rho=1.0).any()


def test_wrong_arguments_are_named():
    m, loss = network(), nn.CrossEntropyLoss()
    for options, sentence in (
        ({"rho": -0.1}, "rho must be a number >= 0, got -0.1"),
        ({"clip": -1.0}, "clip must be a number >= 0"),
        ({"m": 0}, "m must be an int >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=f"SAM: {sentence}"):
            SAM(m, loss, sgd(m), **options)
    with pytest.raises(TypeError, match=r"SAM: base must be a torch.optim.Optimizer, got type"):
        SAM(m, loss, torch.optim.SGD)
