"""The barrier between two points: the identity with curvature, convex losses, single layers."""

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, l2, squared_error
from frechet.analyze import barrier


def problem(penalty=None):
    torch.manual_seed(0)
    X, y = torch.randn(40, 4, dtype=torch.float64), torch.randint(0, 3, (40,))
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return Objective(model, cross_entropy(), [(X[:25], y[:25]), (X[25:], y[25:])], penalty=penalty)


@pytest.mark.parametrize("penalty", [None, l2(0.1)])
@pytest.mark.parametrize("restrict", [None, "0.*", ["2.weight"]])
def test_curvature_on_the_segment_gives_the_barrier(penalty, restrict):
    objective = problem(penalty)
    x0, x1 = (0.6 * torch.randn(objective.space.dim, dtype=torch.float64) for _ in range(2))
    found = barrier(objective, x0, x1, nodes=40, points=11, restrict=restrict)
    assert float((found.measured - found.predicted).abs().max()) < 1e-6 * float(found.measured.abs().max())
    assert found.height == pytest.approx(found.predicted_height, abs=1e-6)
    moved = x1 - x0
    if restrict is not None:
        kept = torch.zeros_like(moved)
        for name in objective.space.restrict(restrict).names:
            kept[objective.space.block(name)] = moved[objective.space.block(name)]
        moved = kept
    middle = float(objective.value(x0 + 0.5 * moved)) - (found.ends[0] + found.ends[1]) / 2
    assert float(found.measured[5]) == pytest.approx(middle, abs=1e-12)


def test_a_convex_loss_has_no_barrier():
    torch.manual_seed(0)
    objective = Objective(
        nn.Linear(3, 1).double(), squared_error(), [(torch.randn(9, 3).double(), torch.randn(9, 1).double())]
    )
    for _ in range(5):
        x0, x1 = (torch.randn(4, dtype=torch.float64) for _ in range(2))
        found = barrier(objective, x0, x1, nodes=3)
        assert found.height <= 1e-12
        assert bool((found.curvatures >= 0).all())


def test_two_solutions_that_differ_by_a_permutation_have_a_barrier_and_negative_curvature():
    objective = problem()
    x = objective.point
    for _ in range(300):
        x = x - 1.0 * objective.gradient(x)
    blocks = {n: t.clone() for n, t in objective.space.unflatten(x).items()}
    order = torch.tensor([1, 2, 3, 4, 5, 0])
    swapped = {"0.weight": blocks["0.weight"][order], "0.bias": blocks["0.bias"][order],
               "2.weight": blocks["2.weight"][:, order], "2.bias": blocks["2.bias"]}  # fmt: skip
    found = barrier(objective, x, objective.space.flatten(swapped))
    assert found.ends[0] == pytest.approx(found.ends[1])
    assert found.height > 0.1
    assert float(found.curvatures.min()) < 0


def test_bad_arguments():
    objective = problem()
    x = objective.point
    with pytest.raises(ValueError, match="x1 must be finite of shape"):
        barrier(objective, x, x[:3])
    with pytest.raises(ValueError, match="points must be at least 3"):
        barrier(objective, x, x, points=2)
    assert bool(torch.isnan(barrier(objective, x, 2 * x, nodes=0).predicted).all())
