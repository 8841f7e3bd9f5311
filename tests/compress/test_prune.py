import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, gauss_newton, l2, squared_error
from frechet.compress import compensated, groups_along, inverse_curvature, prune, sparsity_schedule

matplotlib.use("Agg")
F64 = torch.float64


def trained(seed=0):
    """A small net near a minimum, with more examples than it needs."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(120, 6, generator=g, dtype=F64)
    y = (X[:, 0] * X[:, 1] > 0).long() + (X[:, 2] > 0.5).long()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2, weight_decay=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
    return Objective(model, cross_entropy(), [(X[:70], y[:70]), (X[70:], y[70:])])


OBJECTIVE = trained()


def linear():
    """The loss is its own quadratic model."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(40, 5, generator=g, dtype=F64) @ torch.randn(5, 5, generator=g, dtype=F64)
    torch.manual_seed(0)
    return Objective(nn.Linear(5, 3).double(), squared_error(), [(X, torch.randn(40, 3, generator=g, dtype=F64))])


def by(kind, damping=1e-3):
    def inverse(objective, x, kept):
        return inverse_curvature(objective, kind, damping=damping, seed=0, rank=40, x=x, kept=kept)

    return inverse


@pytest.mark.parametrize("ranking", ["magnitude", "obd", "obs"])
@pytest.mark.parametrize("slope", [False, True])
def test_of_a_quadratic_loss_each_level_is_predicted_exactly(ranking, slope):
    for inverse in (None, by("dense"), by("fisher")):
        if ranking == "obs" and inverse is None:
            continue
        found = prune(linear(), [0.2, 0.4, 0.8], ranking=ranking, inverse=inverse, slope=slope)
        assert found.predicted == pytest.approx(found.measured, rel=1e-9)
        assert found.sparsities == (0.2, 0.4, 0.8)
        assert int((~found.kept).sum()) == 12
        assert not bool(found.x[~found.kept].any())


def test_at_the_minimum_of_a_quadratic_compensation_leaves_what_it_predicts_and_no_less_is_possible():
    objective = linear()
    G = gauss_newton(objective).dense()
    best = objective.point - torch.linalg.solve(G, objective.gradient())
    found = prune(objective, 0.4, ranking="magnitude", inverse=by("dense", 1e-12), x=best)
    removed = compensated(best, by("dense", 1e-12)(objective, best, None), ~found.kept)
    assert found.measured[0] == pytest.approx(removed.increase, rel=1e-7)
    bare = prune(objective, 0.4, ranking="magnitude", x=best)
    assert torch.equal(bare.kept, found.kept)
    assert found.measured[0] < 0.8 * bare.measured[0]


@pytest.mark.parametrize("kind", ["fisher", "kfac", "nystrom", "dense"])
def test_a_net_loses_less_by_each_inverse_than_by_magnitude(kind):
    bare = prune(OBJECTIVE, sparsity_schedule(0.6, 4), ranking="magnitude")
    found = prune(OBJECTIVE, sparsity_schedule(0.6, 4), inverse=by(kind))
    assert found.measured[-1] < bare.measured[-1]
    assert float(OBJECTIVE.value(found.x)) == pytest.approx(found.loss + found.measured[-1])


@pytest.mark.parametrize("kind", ["fisher", "nystrom", "dense"])
def test_the_inverse_leaves_out_what_is_gone(kind):
    kept = torch.ones(OBJECTIVE.space.dim, dtype=torch.bool)
    kept[::3] = False
    B = inverse_curvature(OBJECTIVE, kind, damping=0.1, seed=0, rank=111, kept=kept).dense()
    whole = torch.linalg.inv(inverse_curvature(OBJECTIVE, kind, damping=0.1, seed=0, rank=111).dense())
    torch.testing.assert_close(B[kept][:, kept], torch.linalg.inv(whole[kept][:, kept]), rtol=1e-6, atol=1e-6)
    assert not bool(B[kept][:, ~kept].abs().max() > 1e-9)


def test_examples_are_drawn_once_and_penalties_are_no_part_of_their_gradients():
    with_penalty = Objective(OBJECTIVE.model, cross_entropy(), OBJECTIVE.parts[0].data, penalty=l2(0.1))
    every, some = (inverse_curvature(o, damping=0.1).gradients for o in (OBJECTIVE, with_penalty))
    torch.testing.assert_close(every, some)
    assert len(every) == 120
    torch.testing.assert_close(every.mean(0), OBJECTIVE.gradient())
    few = inverse_curvature(OBJECTIVE, damping=0.1, examples=30, seed=3).gradients
    assert torch.equal(few, inverse_curvature(OBJECTIVE, damping=0.1, examples=30, seed=3).gradients)
    assert [int((row == every).all(1).sum()) for row in few] == [1] * 30
    assert len(few.unique(dim=0)) == 30
    assert not torch.equal(few, inverse_curvature(OBJECTIVE, damping=0.1, examples=30, seed=4).gradients)


def test_levels_go_on_from_the_point_that_the_observer_returns():
    seen = []

    def observe(x, level):
        seen.append((level, int((x == 0).sum())))
        return x + 1.0  # brings weights back, which are removed again

    found = prune(OBJECTIVE, [0.25, 0.5], ranking="magnitude", observe=observe)
    assert seen == [(0.25, 27), (0.5, 54)]
    assert int((found.x == 0).sum()) == 54
    assert found.measured[1] == pytest.approx(float(OBJECTIVE.value(found.x)) - found.loss)


def test_the_weights_that_may_go_are_named_and_the_model_is_left():
    before = OBJECTIVE.point
    found = prune(OBJECTIVE, 0.5, ranking="magnitude", weights="2.*")
    assert set(found.masks) <= {"2.weight", "2.bias"}
    assert int((~found.kept).sum()) == 20  # half of 39, rounded to even
    assert torch.equal(OBJECTIVE.point, before)
    assert "magnitude, 50% of the weights gone" in repr(found)
    assert found.to_dict()["sparsities"] == [0.5]
    figure, axes = plt.subplots()
    assert found.plot(axes) is axes
    plt.close(figure)
    assert type(found).from_state(found.state()).measured == found.measured


@pytest.mark.parametrize("ranking", ["magnitude", "obd", "obs", "apoptosis", "quadratic"])
def test_neurons_go_whole(ranking):
    neurons = groups_along(OBJECTIVE.space, {"0.weight": 0, "0.bias": 0, "2.weight": 1}, 12)
    found = prune(OBJECTIVE, [0.25, 0.5], ranking=ranking, groups=neurons, inverse=by("fisher"))
    whole = [bool((found.x[c] == 0).all()) for c in neurons]
    assert sum(whole) == 6
    assert [not bool(found.kept[c].any()) for c in neurons] == whole
    assert int((~found.kept).sum()) == 6 * 10
    bare = prune(OBJECTIVE, [0.25, 0.5], ranking=ranking, groups=neurons, inverse=by("fisher"), compensate=False)
    assert found.measured[-1] < bare.measured[-1]


def test_schedules_grow_to_their_end():
    assert sparsity_schedule(0.75, 2) == pytest.approx((0.5, 0.75))
    assert sparsity_schedule(0.75, 2, first=0.5) == pytest.approx((1 - 0.5 * 0.5**0.5, 0.75))
    assert sparsity_schedule(0.8, 2, law="cubic") == pytest.approx((0.8 - 0.1, 0.8))
    for law in ("geometric", "cubic"):
        found = sparsity_schedule(0.95, 7, first=0.3, law=law)
        assert list(found) == sorted(found)
        assert found[0] > 0.3
        assert found[-1] == 0.95


def test_wrong_arguments_are_named():
    for call, sentence in (
        (lambda: prune(OBJECTIVE, [0.5, 0.2]), r"prune: sparsities must be growing numbers in \[0, 1\), got"),
        (lambda: prune(OBJECTIVE, 1.0), r"prune: sparsities must be growing numbers in \[0, 1\), got"),
        (lambda: prune(OBJECTIVE, []), r"prune: sparsities must be growing numbers in \[0, 1\), got \(\)"),
        (lambda: prune(OBJECTIVE, 0.5, ranking="random"), "prune: ranking must be one of magnitude, obd, obs"),
        (lambda: prune(OBJECTIVE, 0.5), "prune: inverse must be given for ranking='obs'"),
        (
            lambda: prune(OBJECTIVE, 0.5, ranking="magnitude", weights="9.*"),
            r"prune: weights must match a trainable parameter, got '9\.\*'",
        ),
        (lambda: prune(OBJECTIVE, 0.5, ranking="obd", groups=[]), "prune: groups must be given without weights"),
        (
            lambda: prune(OBJECTIVE, 0.5, ranking="obd", groups=[torch.tensor([1]), torch.tensor([2, 1])]),
            "with no weight in two of them",
        ),
        (lambda: inverse_curvature(OBJECTIVE, "full", damping=1.0), "inverse_curvature: kind must be 'fisher', 'kfac'"),
        (lambda: inverse_curvature(OBJECTIVE, damping=0.0), "inverse_curvature: damping must be a number > 0, got 0.0"),
        (lambda: inverse_curvature(OBJECTIVE, "nystrom", damping=1.0), "seed must be given for kind='nystrom'"),
        (lambda: inverse_curvature(OBJECTIVE, damping=1.0, examples=3), "seed must be given for kind='fisher'"),
        (lambda: sparsity_schedule(1.0, 3), "sparsity_schedule: 0 <= first < final < 1 must hold, got 0.0 and 1.0"),
        (lambda: sparsity_schedule(0.5, 0), "sparsity_schedule: levels must be an int >= 1, got 0"),
        (lambda: sparsity_schedule(0.5, 1, law="step"), "law must be 'geometric' or 'cubic', got 'step'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    with pytest.raises(
        TypeError, match=r"prune: inverse must be a function \(objective, x, kept\) -> operator, .* got Inv"
    ):
        prune(OBJECTIVE, 0.5, inverse=inverse_curvature(OBJECTIVE, damping=1.0))
