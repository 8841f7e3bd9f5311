import math

import pytest
import torch
from torch import nn

from frechet.analyze._slices import loss_plane, loss_slices
from frechet.errors import NonFinite
from frechet.objective import Objective, l2
from frechet.objective.criteria import cross_entropy, custom, squared_error
from frechet.operators.derivatives._hessian import hessian


def regression(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    X, y = (torch.randn(9, k, generator=g, dtype=torch.float64).to(dtype) for k in (3, 1))
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).to(dtype)
    return Objective(model, squared_error(), [(X[:5], y[:5]), (X[5:], y[5:])], penalty=l2(0.3))


def tokens():
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)

        def forward(self, input_ids):
            return {"logits": self.head(self.embed(input_ids).tanh())}

    batches = [{"input_ids": torch.randint(0, 5, (b, 4)), "labels": torch.randint(0, 5, (b, 4))} for b in (3, 1)]
    batches[0]["labels"][0, 2:] = -100
    return Objective(Model().double(), cross_entropy(), batches)


def directions(objective, k=2):
    return objective.space.random(range(k), 4, "gaussian")


def test_the_loss_of_least_squares_is_its_quadratic_model():
    objective = regression()
    cut = loss_slices(objective, directions(objective), points=7)
    torch.testing.assert_close(cut.losses, cut.quadratic)
    torch.testing.assert_close(cut.losses[:, 3], torch.full((2,), cut.loss, dtype=torch.float64))


@pytest.mark.parametrize("make", [regression, tokens])
def test_losses_are_the_objective_at_the_points_and_the_model_has_its_derivatives(make):
    objective = make()
    D, x = directions(objective), objective.point
    cut = loss_slices(objective, D, radius=0.4, points=5)
    assert torch.equal(cut.steps[0], torch.tensor([-0.4, -0.2, 0.0, 0.2, 0.4], dtype=torch.float64))
    for i in range(2):
        for a, value in zip(cut.steps[i], cut.losses[i], strict=True):
            assert math.isclose(float(objective.value(x + a * D[:, i])), float(value), rel_tol=1e-12)
    torch.testing.assert_close(cut.slopes, D.T @ objective.gradient())
    torch.testing.assert_close(cut.curvatures, (D * (hessian(objective) @ D)).sum(0))
    expected = cut.loss + cut.slopes[:, None] * cut.steps + cut.curvatures[:, None] * cut.steps**2 / 2
    torch.testing.assert_close(cut.quadratic, expected)
    assert (cut.evaluations, cut.products, cut.passes) == (10, 2, 4)


def test_given_curvatures_save_the_products():
    objective = tokens()
    cut = loss_slices(objective, directions(objective), curvatures=torch.tensor([1.0, 2.0]), points=3)
    assert cut.curvatures.tolist() == [1.0, 2.0]
    assert (cut.products, cut.passes) == (0, 3)


@pytest.mark.parametrize("change", [0.5, 2.0])
def test_the_default_radius_is_where_the_model_changes_by_its_share(change):
    objective = tokens()
    cut = loss_slices(objective, directions(objective), change=change, points=2)
    predicted = cut.radii * cut.slopes.abs() + cut.radii**2 * cut.curvatures.abs() / 2
    torch.testing.assert_close(predicted, torch.full((2,), change * cut.loss, dtype=torch.float64))
    assert f"a change of {change:g} times the loss" in cut.radius_rule


def test_a_flat_line_has_radius_one():
    objective = Objective(
        nn.Linear(1, 1), custom(lambda y, t: 1 + 0 * (y - t).sum(1)), [(torch.ones(1, 1), torch.ones(1, 1))]
    )
    cut = loss_slices(objective, directions(objective), points=3)
    assert cut.radii.tolist() == [1.0, 1.0]
    assert bool((cut.losses == 1).all())


def test_sums_of_objectives_weigh_their_parts():
    objective = tokens()
    both = objective + 0.5 * objective
    D = directions(objective)
    a, b = (loss_slices(o, D, radius=0.3, points=3) for o in (objective, both))
    torch.testing.assert_close(1.5 * a.losses, b.losses)
    torch.testing.assert_close(1.5 * a.quadratic, b.quadratic)


def test_losses_that_overflow_stay_in_their_place():
    objective = Objective(nn.Linear(1, 1), custom(lambda y, t: y.exp().sum(1)), [(torch.ones(2, 1), torch.ones(2, 1))])
    cut = loss_slices(objective, torch.ones(2, 1), radius=100.0, points=3)
    assert torch.isfinite(cut.losses[0]).tolist() == [True, True, False]


def test_the_model_is_left_alone_and_another_point_is_used():
    objective = regression()
    before, x = objective.point, objective.point + 1
    cut = loss_slices(objective, directions(objective), x=x, points=3)
    assert torch.equal(before, objective.point)
    assert math.isclose(cut.loss, float(objective.value(x)))


def test_float32_agrees_with_float64():
    a, b = regression(torch.float32), regression()
    D = directions(b)
    one, two = loss_slices(a, D.float(), radius=0.5), loss_slices(b, D, radius=0.5)
    torch.testing.assert_close(one.losses, two.losses, rtol=1e-5, atol=1e-5)


def test_no_direction_gives_no_line():
    objective = regression()
    assert loss_slices(objective, objective.space.zeros(0)).losses.shape == (0, 21)


@pytest.mark.parametrize("make", [regression, tokens])
def test_a_plane_holds_its_lines_and_its_corners(make):
    objective = make()
    D, x = directions(objective), objective.point
    plane = loss_plane(objective, D, radius=0.4, points=3)
    lines = loss_slices(objective, D, radius=0.4, points=3)
    torch.testing.assert_close(plane.losses[:, 1], lines.losses[0])
    torch.testing.assert_close(plane.losses[1], lines.losses[1])
    torch.testing.assert_close(plane.quadratic[:, 1], lines.quadratic[0])
    corner = float(objective.value(x + 0.4 * D[:, 0] - 0.4 * D[:, 1]))
    assert math.isclose(corner, float(plane.losses[2, 0]), rel_tol=1e-12)
    if make is regression:
        torch.testing.assert_close(plane.losses, plane.quadratic)
    assert (plane.evaluations, plane.products, plane.passes) == (9, 2, 4)
    wide = loss_plane(objective, D, points=3)
    torch.testing.assert_close(wide.a[-1], loss_slices(objective, D).radii[0])


def test_bad_arguments_are_named():
    objective = regression()
    D = directions(objective)
    for arguments, message in (
        ({"points": 1}, "points must be at least 2, got 1"),
        ({"radius": 0.0}, "radius must be positive and finite, got 0"),
        ({"change": math.inf}, "change must be positive and finite, got inf"),
        ({"curvatures": torch.ones(3)}, r"curvatures must have shape \(2,\), got \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_slices(objective, D, **arguments)
    with pytest.raises(ValueError, match=r"directions must be a block \(3, k\) of R\^3"):
        loss_slices(objective, D[:, 0])
    with pytest.raises(ValueError, match="directions must have 2 columns, got 1"):
        loss_plane(objective, D[:, :1])
    with pytest.raises(NonFinite, match="directions hold a NaN"):
        loss_slices(objective, D * math.nan)
    with pytest.raises(TypeError, match="objective must be an Objective, got Linear"):
        loss_slices(objective.model, D)
