"""A run as a map: against torch's optimizers, dense derivatives, and finite differences of whole runs."""

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, l2
from frechet.analyze import adam_update, sgd_update, training_jacobian, trajectory, trajectory_influence

N, T = 24, 12
UPDATES = {
    "sgd": (sgd_update(0.5), torch.optim.SGD, {"lr": 0.5}),
    "decay": (sgd_update(0.3, weight_decay=0.1), torch.optim.SGD, {"lr": 0.3, "weight_decay": 0.1}),
    "momentum": (
        sgd_update(0.2, momentum=0.8, dampening=0.3), torch.optim.SGD, {"lr": 0.2, "momentum": 0.8, "dampening": 0.3}
    ),
    "nesterov": (
        sgd_update(0.2, momentum=0.8, nesterov=True), torch.optim.SGD, {"lr": 0.2, "momentum": 0.8, "nesterov": True}
    ),
    "adam": (adam_update(0.02, decoupled=False, eps=1e-3), torch.optim.Adam, {"lr": 0.02, "eps": 1e-3}),
    "adamw": (
        adam_update(0.05, betas=(0.8, 0.95), weight_decay=0.1), torch.optim.AdamW,
        {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1},
    ),
}  # fmt: skip


def problem(penalty=None):
    torch.manual_seed(0)
    X, y = torch.randn(N, 3, dtype=torch.float64), torch.randint(0, 3, (N,))
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    objective = Objective(model, cross_entropy(), [(X[:10], y[:10]), (X[10:], y[10:])], penalty=penalty)
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randperm(N, generator=draw)[:6] for _ in range(T)]
    return model, objective, X, y, rows


def trained(objective, X, y, rows, update, x0, weights=None):
    """Where a run ends, by code of its own: a mean over each batch of weighted losses."""
    space = objective.space
    weights = torch.ones(N, dtype=torch.float64) if weights is None else weights

    def loss(x, r):
        blocks = space.unflatten(x)
        h = torch.tanh(X[r] @ blocks["0.weight"].T + blocks["0.bias"])
        out = h @ blocks["2.weight"].T + blocks["2.bias"]
        return (weights[r] * nn.functional.cross_entropy(out, y[r], reduction="none")).sum() / len(r)

    state = (x0, *(torch.full_like(x0, b) for b in update.buffers))
    for t, r in enumerate(rows):
        state = update.step(state, torch.func.grad(loss)(state[0], r), t)
    return state[0]


@pytest.mark.parametrize("name", UPDATES)
def test_it_ends_where_torchs_optimizer_ends(name):
    model, objective, X, y, rows = problem()
    update, kind, settings = UPDATES[name]
    run = trajectory(objective, rows, update)
    optimizer = kind(model.parameters(), **settings)
    for r in rows:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[r]), y[r]).backward()
        optimizer.step()
    assert float((run.x - objective.point).abs().max()) < 1e-12
    assert run.steps == T
    assert len(run.kept) < T


@pytest.mark.parametrize("name", UPDATES)
def test_the_jacobian_is_that_of_the_run(name):
    _, objective, X, y, rows = problem()
    update = UPDATES[name][0]
    run = trajectory(objective, rows, update)
    dense = torch.func.jacrev(lambda x: trained(objective, X, y, rows, update, x))(objective.point)
    J = training_jacobian(run)
    V = torch.randn(J.shape[1], 3, dtype=torch.float64)
    assert float((J @ V - dense @ V).norm() / (dense @ V).norm()) < 1e-11
    assert float((J.T @ V - dense.T @ V).norm() / (dense.T @ V).norm()) < 1e-11
    assert float((J @ V[:, 0] - dense @ V[:, 0]).norm()) < 1e-10 * float(dense.norm())


@pytest.mark.parametrize("name", UPDATES)
def test_one_sweep_gives_the_influence_of_every_example(name):
    """Central differences of whole runs in the weights of all examples."""
    _, objective, X, y, rows = problem()
    update = UPDATES[name][0]
    run, x0 = trajectory(objective, rows, update), objective.point
    metric = torch.randn(objective.space.dim, dtype=torch.float64)
    found = trajectory_influence(run, metric)
    h = 1e-5
    for n in range(N):
        ends = []
        for sign in (1, -1):
            weights = torch.ones(N, dtype=torch.float64)
            weights[n] += sign * h
            ends.append(float(metric @ trained(objective, X, y, rows, update, x0, weights)))
        assert float(found[n]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-7)


def test_an_example_in_no_batch_has_no_influence_and_penalties_have_none():
    _, objective, _, _, _ = problem(penalty=l2(0.1))
    rows = [torch.tensor([0, 3, 3]), torch.tensor([12])]
    run = trajectory(objective, rows, sgd_update(0.1))
    found = trajectory_influence(run, torch.ones(objective.space.dim, dtype=torch.float64))
    assert found.nonzero()[:, 0].tolist() == [0, 3, 12]


def test_a_rate_of_its_own_for_every_step():
    _, objective, _, _, rows = problem()
    rates = [0.1 * (t + 1) for t in range(T)]
    run = trajectory(objective, rows, sgd_update(rates))
    x = objective.point
    for t in range(T):
        x = x - rates[t] * run.batch(t).gradient(x)
    assert torch.equal(run.x, x)


def test_bad_rows_and_metrics():
    _, objective, _, _, rows = problem()
    for bad in (torch.tensor([N]), torch.tensor([-1]), torch.tensor([], dtype=torch.long)):
        with pytest.raises(ValueError, match=f"numbers of examples from 0 to {N - 1}"):
            trajectory(objective, [bad], sgd_update(0.1))
    run = trajectory(objective, rows[:1], sgd_update(0.1))
    with pytest.raises(ValueError, match="metric_gradient must have shape"):
        trajectory_influence(run, torch.ones(2))
