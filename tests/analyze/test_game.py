"""Several players: where torch's optimizers end, finite differences of whole runs, closed forms, one player alone."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from frechet import Objective, cross_entropy
from frechet.analyze import Player, adam_update, game_trajectory, sgd_update, trajectory, trajectory_influence

N, T, B = 10, 7, 4
UPDATES = {
    "sgd": (sgd_update(0.3), torch.optim.SGD, {"lr": 0.3}),
    "momentum": (sgd_update(0.1, momentum=0.8), torch.optim.SGD, {"lr": 0.1, "momentum": 0.8}),
    "adam": (adam_update(0.05, decoupled=False, eps=1e-3), torch.optim.Adam, {"lr": 0.05, "eps": 1e-3}),
}


def gan(update):
    """A generator of points in the plane, a discriminator, and what each minimizes."""
    torch.manual_seed(0)
    data = torch.randn(N, 2, dtype=torch.float64) + torch.tensor([2.0, 0.0], dtype=torch.float64)
    critic = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    maker = nn.Linear(1, 2).double()
    rows = [torch.randperm(N)[:B] for _ in range(T)]

    def noise(t):
        return torch.randn(3, 1, generator=torch.Generator().manual_seed(t), dtype=torch.float64)

    def against(points, chosen, t):
        real = functional_call(critic, points[0], (data[chosen],))[:, 0]
        fake = functional_call(critic, points[0], (functional_call(maker, points[1], (noise(t),)),))[:, 0]
        return nn.functional.softplus(-real), nn.functional.softplus(fake).mean()

    def making(points, chosen, t):
        fake = functional_call(critic, points[0], (functional_call(maker, points[1], (noise(t),)),))[:, 0]
        return nn.functional.softplus(-fake).mean()

    players = [Player(against, update), Player(making, update)]
    return (
        players,
        [dict(critic.named_parameters()), dict(maker.named_parameters())],
        rows,
        (critic, maker, data, noise),
    )


def ended(players, x0, rows, order, weights):
    """Where a run with weighted examples ends, by code of its own."""
    points = [{n: p.detach().clone() for n, p in x.items()} for x in x0]
    buffers = [
        [{n: torch.full_like(p, b) for n, p in x.items()} for b in pl.update.buffers]
        for pl, x in zip(players, points, strict=True)
    ]
    for t, r in enumerate(rows):
        seen = [dict(x) for x in points]
        for p, player in enumerate(players):
            at = points if order == "alternating" else seen

            def loss(x, p=p, at=at, player=player, r=r, t=t):
                found = player.loss(tuple(x if q == p else at[q] for q in range(2)), r, t)
                return found if not isinstance(found, tuple) else (weights[r] * found[0]).sum() / B + found[1]

            g = torch.func.grad(loss)(at[p])
            for n in g:
                state = (points[p][n], *(b[n] for b in buffers[p]))
                new = player.update.step(state, g[n], t)
                points[p] = {**points[p], n: new[0]}
                for b, value in zip(buffers[p], new[1:], strict=True):
                    b[n] = value
    return points


@pytest.mark.parametrize("name", UPDATES)
def test_it_ends_where_torchs_optimizers_end(name):
    update, kind, settings = UPDATES[name]
    players, x0, rows, (critic, maker, data, noise) = gan(update)
    run = game_trajectory(players, x0, rows, examples=N)
    both = [kind(m.parameters(), **settings) for m in (critic, maker)]
    for t, r in enumerate(rows):
        both[0].zero_grad()
        d = (
            nn.functional.softplus(-critic(data[r])).mean()
            + nn.functional.softplus(critic(maker(noise(t)).detach())).mean()
        )
        d.backward()
        both[0].step()
        both[1].zero_grad()
        nn.functional.softplus(-critic(maker(noise(t)))).mean().backward()
        both[1].step()
    for found, model in zip(run.x, (critic, maker), strict=True):
        for n, p in model.named_parameters():
            assert float((found[n] - p.detach()).abs().max()) < 1e-12
    assert run.steps == T
    assert len(run.kept) < T


@pytest.mark.parametrize("order", ["alternating", "simultaneous"])
@pytest.mark.parametrize("name", UPDATES)
def test_one_sweep_gives_the_influence_on_the_generator_of_every_example(name, order):
    """Central differences of whole runs in the weights of all examples, which the generator never sees."""
    players, x0, rows, _ = gan(UPDATES[name][0])
    run = game_trajectory(players, x0, rows, examples=N, order=order)
    metric = {n: torch.randn_like(p) for n, p in x0[1].items()}
    found, h = trajectory_influence(run, (None, metric)), 1e-5
    for n in range(N):
        ends = []
        for sign in (1, -1):
            weights = torch.ones(N, dtype=torch.float64)
            weights[n] += sign * h
            maker = ended(players, x0, rows, order, weights)[1]
            ends.append(sum(float((metric[k] * maker[k]).sum()) for k in metric))
        assert float(found[n]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-8)
    assert float(found.abs().max()) > 1e-4


def test_moves_at_once_on_a_bilinear_game_are_those_of_a_matrix():
    """min_x max_y (x - mean of the data) y: (x, y) turns and grows, and the data move it as the inverse says."""
    data, eta = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64), 0.1
    down = Player(lambda z, rows, t: z[0] * z[1], sgd_update(eta))
    up = Player(lambda z, rows, t: (z[1] * data[rows], -z[0] * z[1]), sgd_update(eta))
    x0 = [torch.tensor(0.3, dtype=torch.float64), torch.tensor(-0.2, dtype=torch.float64)]
    run = game_trajectory([down, up], x0, [torch.arange(3)] * 20, examples=3, order="simultaneous")
    M = torch.tensor([[1.0, -eta], [eta, 1.0]], dtype=torch.float64)
    z, powers = torch.stack(x0), torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(20):
        powers = M @ powers + torch.eye(2, dtype=torch.float64)
        z = M @ z - eta * torch.tensor([0.0, float(data.mean())], dtype=torch.float64)
    assert torch.allclose(torch.stack(run.x), z, rtol=1e-13)
    found = trajectory_influence(run, (torch.ones((), dtype=torch.float64), None))
    assert torch.allclose(found, -eta * powers[0, 1] * data / 3, rtol=1e-12)


def test_one_player_is_a_trajectory():
    torch.manual_seed(0)
    X, y = torch.randn(N, 3, dtype=torch.float64), torch.randint(0, 3, (N,))
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    objective = Objective(model, cross_entropy(), [(X, y)])
    rows = [torch.randperm(N)[:B] for _ in range(T)]

    def loss(points, r, t):
        return nn.functional.cross_entropy(functional_call(model, points[0], (X[r],)), y[r], reduction="none")

    update = adam_update(0.05)
    alone = trajectory(objective, rows, update)
    game = game_trajectory([Player(loss, update)], [dict(model.named_parameters())], rows, examples=N)
    assert float((objective.space.flatten(game.x[0]) - alone.x).abs().max()) < 1e-12
    metric = torch.randn(objective.space.dim, dtype=torch.float64)
    expected = trajectory_influence(alone, metric)
    assert torch.allclose(
        trajectory_influence(game, (objective.space.unflatten(metric),)), expected, rtol=1e-9, atol=1e-12
    )


def test_an_example_in_no_batch_has_no_influence():
    players, x0, _, _ = gan(UPDATES["sgd"][0])
    run = game_trajectory(players, x0, [torch.tensor([1, 4]), torch.tensor([4, 4])], examples=N)
    found = trajectory_influence(run, (None, {n: torch.ones_like(p) for n, p in x0[1].items()}))
    assert found.nonzero()[:, 0].tolist() == [1, 4]


def test_bad_arguments():
    players, x0, rows, _ = gan(UPDATES["sgd"][0])
    with pytest.raises(ValueError, match="x0 must hold a start for each player, got 1 of 2"):
        game_trajectory(players, x0[:1], rows, examples=N)
    with pytest.raises(ValueError, match=f"numbers of examples from 0 to {N - 1}"):
        game_trajectory(players, x0, [torch.tensor([N])], examples=N)
    with pytest.raises(ValueError, match="order must be"):
        game_trajectory(players, x0, rows, examples=N, order="random")
    noisy = Player(lambda z, r, t: z[0].pow(2).sum() * torch.rand(()), sgd_update(0.1))
    with pytest.raises(ValueError, match="the loss of player 0 must return the same at a second call"):
        game_trajectory([noisy], [torch.ones(2)], [torch.tensor([0])], examples=1)
    wrong = Player(lambda z, r, t: z[0].expand(3), sgd_update(0.1))
    with pytest.raises(ValueError, match=r"terms \(1,\) of its examples, a scalar, or both as a pair, got \(3,\)"):
        game_trajectory([wrong], [torch.ones(())], [torch.tensor([0])], examples=1)
    run = game_trajectory(players, x0, rows, examples=N)
    with pytest.raises(TypeError, match="must be a sequence, one for each player"):
        trajectory_influence(run, torch.ones(3))
    with pytest.raises(ValueError, match="must hold one for each of 2 players"):
        trajectory_influence(run, (None,))
    with pytest.raises(ValueError, match="keys must be the 2 block names"):
        trajectory_influence(run, (None, torch.ones(3)))
