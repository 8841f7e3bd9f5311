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
    states = run_steps(game, start, 9, weights)
    found = step_influence(game, states, ends, weights)
    for i in range(N):
        h = torch.zeros(N, dtype=F64)
        h[i] = 1e-6
        up, down = (float(ends(run_steps(game, start, 9, weights + s * h)[-1])) for s in (1, -1))
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
    states = run_steps(step, (objective.point,), 6, ones)
    torch.testing.assert_close(states[-1][0], run.x)
    v = torch.linspace(-1, 1, 12, dtype=F64)
    found = step_influence(step, states, lambda s: s[0] @ v, ones)
    torch.testing.assert_close(found, trajectory_influence(run, v))


def plain(state, w, t):
    return (state[0] - 0.1 * (w[:, None] * (state[0] - X)).mean(0),)


@pytest.mark.parametrize(
    ("step", "metric", "steps", "error", "said"),
    [
        (lambda s, w, t: (s[0] * 0.5,), lambda s: s[0].sum(), 2, NotDifferentiable, "got no example that does"),
        (lambda s, w, t: (s[0].detach() * 0.5,), lambda s: s[0].sum(), 2, NotDifferentiable, "got no example"),
        (plain, lambda s: s[0], 2, NotDifferentiable, "metric must return a scalar"),
        (plain, lambda s: torch.ones(()), 2, NotDifferentiable, "metric must return a scalar"),
        (plain, lambda s: s[0].sum(), 0, ValueError, "states must have the start and a step at least, got 1"),
        (lambda s, w, t: (s[0] * 1e300 * w.sum(),), lambda s: s[0].sum(), 2, NonFinite, "the sweep must stay finite"),
    ],
)
def test_what_does_not_fit_is_said(step, metric, steps, error, said):
    ones = torch.ones(N, dtype=F64)
    states = run_steps(step, (torch.ones(3, dtype=F64),), steps, ones)
    with pytest.raises(error, match=said):
        step_influence(step, states, metric, ones)


def test_a_step_that_returns_another_state_is_refused():
    with pytest.raises(ValueError, match=r"step must return a state like its own, \[\(3,\)\], got another at step 0"):
        run_steps(lambda s, w, t: (s[0], s[0]), (torch.ones(3),), 1, torch.ones(2))
    with pytest.raises(ValueError, match="weights must be floating"):
        step_influence(plain, [(torch.ones(3),)] * 2, lambda s: s[0].sum(), torch.ones(2, dtype=torch.long))
