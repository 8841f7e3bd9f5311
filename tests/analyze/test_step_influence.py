"""Influence through a user's own loop: against finite differences of runs, and the sweep of `trajectory`."""

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy
from frechet.analyze import run_steps, sgd_update, step_influence, trajectory, trajectory_influence
from frechet.errors import NonFinite, NotDifferentiable

F64 = torch.float64
N = 12
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
Y = torch.arange(N) % 3


def game(state, w, t):
    """Two players with momentum: the first sees the data, the second the first alone."""
    d, g, m = state
    fake = torch.tanh(g)
    rows = torch.arange(t, t + 5) % N
    loss = (w[rows] * (X[rows] @ d - 1).square()).mean() + (fake @ d).square()
    (slope,) = torch.autograd.grad(loss, d, create_graph=True)
    (other,) = torch.autograd.grad((fake @ d - 1).square(), g, create_graph=True)
    m = 0.5 * m + slope
    return d - 0.05 * m, g - 0.1 * other, m


def ends(state):
    return state[1].square().sum()


@pytest.mark.parametrize("weights", [torch.ones(N, dtype=F64), torch.linspace(0, 2, N, dtype=F64)])
def test_it_is_the_derivative_of_a_run_of_two_players(weights):
    start = (torch.ones(3, dtype=F64), torch.full((3,), 0.3, dtype=F64), torch.zeros(3, dtype=F64))
    run = run_steps(game, start, 9, weights)
    assert len(run.kept) == 3
    found = step_influence(run, ends)
    for i in range(N):
        h = torch.zeros(N, dtype=F64)
        h[i] = 1e-6
        up, down = (float(ends(run_steps(game, start, 9, weights + s * h).last)) for s in (1, -1))
        assert float(found[i]) == pytest.approx((up - down) / 2e-6, abs=1e-9)


def test_it_is_that_of_the_sweep_of_a_trajectory():
    torch.manual_seed(0)
    model = nn.Linear(3, 3).double()
    objective = Objective(model, cross_entropy(), [(X, Y)])
    rows = [torch.randperm(N, generator=torch.Generator().manual_seed(t))[:5] for t in range(6)]
    run = trajectory(objective, rows, sgd_update(0.3))

    def step(state, w, t):
        W, b = state[0][:9].view(3, 3), state[0][9:]
        terms = nn.functional.cross_entropy(X[rows[t]] @ W.T + b, Y[rows[t]], reduction="none")
        (slope,) = torch.autograd.grad((w[rows[t]] * terms).mean(), state[0], create_graph=True)
        return (state[0] - 0.3 * slope,)

    ones = torch.ones(N, dtype=F64)
    own = run_steps(step, (objective.point,), 6, ones)
    torch.testing.assert_close(own.last[0], run.x)
    v = torch.linspace(-1, 1, 12, dtype=F64)
    found = step_influence(own, lambda s: s[0] @ v)
    torch.testing.assert_close(found, trajectory_influence(run, v))


def test_moves_at_once_on_a_bilinear_game_are_those_of_a_matrix():
    """min_x max_y (x - mean of the data) y: (x, y) turns and grows, and the data move it as the inverse says."""
    data, eta, T = torch.tensor([1.0, -2.0, 4.0], dtype=F64), 0.1, 20

    def step(state, w, t):
        x, y = state
        return x - eta * y, y + eta * (x - (w * data).mean())

    start = (torch.tensor(0.3, dtype=F64), torch.tensor(-0.2, dtype=F64))
    M = torch.tensor([[1.0, -eta], [eta, 1.0]], dtype=F64)
    z, powers = torch.stack(start), torch.zeros(2, 2, dtype=F64)
    for _ in range(T):
        powers = M @ powers + torch.eye(2, dtype=F64)
        z = M @ z - eta * torch.tensor([0.0, float(data.mean())], dtype=F64)
    run = run_steps(step, start, T, torch.ones(3, dtype=F64))
    torch.testing.assert_close(torch.stack(run.last), z, rtol=1e-13, atol=0)
    found = step_influence(run, lambda s: s[0])
    torch.testing.assert_close(found, -eta * powers[0, 1] * data / 3, rtol=1e-12, atol=0)


def test_adam_of_two_players_ends_where_torchs_does_and_has_its_influence():
    torch.manual_seed(0)
    data, noise = torch.randn(N, 2, dtype=F64) + 2, torch.randn(8, 3, 1, dtype=F64)
    critic, maker = nn.Linear(2, 1).double(), nn.Linear(1, 2).double()
    rows = [torch.randperm(N)[:5] for _ in range(8)]
    start = [p.detach().reshape(-1) for p in (critic.weight, critic.bias, maker.weight, maker.bias)]

    def losses(p, w, t):
        fake = noise[t] @ p[2][None] + p[3]
        real, made = data[rows[t]] @ p[0] + p[1], fake @ p[0] + p[1]
        softplus = nn.functional.softplus
        return (w[rows[t]] * softplus(-real)).mean() + softplus(made).mean(), softplus(-made).mean()

    def step(state, w, t):
        p, moments = state[:4], state[4:]
        both = losses(p, w, t)
        slopes = [torch.autograd.grad(both[i // 2], p[i], create_graph=True)[0] for i in range(4)]
        m = [0.9 * a + 0.1 * g for a, g in zip(moments[::2], slopes, strict=True)]
        v = [0.99 * a + 0.01 * g.square() for a, g in zip(moments[1::2], slopes, strict=True)]
        a, b = 0.05 / (1 - 0.9 ** (t + 1)), 1 - 0.99 ** (t + 1)
        new = [x - a * k / ((q / b).sqrt() + 1e-3) for x, k, q in zip(p, m, v, strict=True)]
        return [*new, *(s for pair in zip(m, v, strict=True) for s in pair)]

    state, ones = [*start, *(torch.zeros_like(p) for p in start for _ in range(2))], torch.ones(N, dtype=F64)
    run = run_steps(step, state, 8, ones)
    players = [s.clone().requires_grad_() for s in start]
    both = [torch.optim.Adam(players[i : i + 2], lr=0.05, betas=(0.9, 0.99), eps=1e-3) for i in (0, 2)]
    for t in range(8):
        for loss, own in zip(losses(players, ones, t), (players[:2], players[2:]), strict=True):
            for p, g in zip(own, torch.autograd.grad(loss, own, retain_graph=True), strict=True):
                p.grad = g
        for optimizer in both:
            optimizer.step()
    for found, p in zip(run.last, players, strict=False):
        torch.testing.assert_close(found, p.detach(), rtol=1e-11, atol=1e-13)

    def metric(s):
        return (s[2] + s[3]).square().sum()

    found = step_influence(run, metric)
    for i in (0, 5, 11):
        h = torch.zeros(N, dtype=F64).index_fill(0, torch.tensor(i), 1e-6)
        up, down = (float(metric(run_steps(step, state, 8, ones + s * h).last)) for s in (1, -1))
        assert float(found[i]) == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-8)


def plain(state, w, t):
    return (state[0] - 0.1 * (w[:, None] * (state[0] - X)).mean(0),)


@pytest.mark.parametrize(
    ("step", "metric", "steps", "error", "said"),
    [
        (lambda s, w, t: (s[0] * 0.5,), lambda s: s[0].sum(), 2, NotDifferentiable, "got no example that does"),
        (lambda s, w, t: (s[0].detach() * 0.5,), lambda s: s[0].sum(), 2, NotDifferentiable, "got no example"),
        (plain, lambda s: s[0], 2, NotDifferentiable, "metric must return a scalar"),
        (plain, lambda s: torch.ones(()), 2, NotDifferentiable, "metric must return a scalar"),
        (plain, lambda s: s[0].sum(), 0, ValueError, "steps must be at least 1, got 0"),
        (lambda s, w, t: (s[0] * torch.rand(()),), lambda s: s[0].sum(), 2, ValueError, "the same at a second call"),
        (lambda s, w, t: (s[0] * 1e300 * w.sum(),), lambda s: s[0].sum(), 2, NonFinite, "the sweep must stay finite"),
    ],
)
def test_what_does_not_fit_is_said(step, metric, steps, error, said):
    ones = torch.ones(N, dtype=F64)
    with pytest.raises(error, match=said):
        step_influence(run_steps(step, (torch.ones(3, dtype=F64),), steps, ones), metric)


def test_a_step_that_returns_another_state_is_refused():
    with pytest.raises(ValueError, match=r"step must return a state like its own, \[\(3,\)\], got another at step 0"):
        run_steps(lambda s, w, t: (s[0], s[0]), (torch.ones(3),), 1, torch.ones(2))
    with pytest.raises(ValueError, match="weights must be floating"):
        run_steps(plain, (torch.ones(3),), 2, torch.ones(2, dtype=torch.long))
