"""The step length at which the loss rises: closed forms, losses that are not finite, and what it costs."""

import math

import pytest
import torch
from torch import nn

from frechet import Objective, hessian, squared_error
from frechet.analyze import critical_rate
from frechet.objective import Penalty


def linear(scale=1.0):
    torch.manual_seed(0)
    model = nn.Linear(4, 1).double()
    X, y = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 1, dtype=torch.float64)
    return scale * Objective(model, squared_error(), [(X, y)])


@pytest.mark.parametrize("start", [1e-6, 0.3, 1.0, 1e5])
@pytest.mark.parametrize("rtol", [1 / 16, 1e-3])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_on_a_quadratic_the_bracket_holds_the_closed_form(start, rtol, scale):
    objective = linear(scale)
    g = objective.gradient()
    exact = float(2 * g @ g / (g @ (hessian(objective) @ g)))
    found = critical_rate(objective, -g, start=start, rtol=rtol, max_forwards=64)
    assert 0 < found.lower <= exact <= found.upper < math.inf
    assert found.upper - found.lower <= rtol * found.upper
    assert found.lower <= found.value <= found.upper
    assert found.loss == pytest.approx(float(objective.value()))


def test_from_a_good_guess_it_takes_at_most_seven_forwards():
    objective = linear()
    g = objective.gradient()
    exact = float(2 * g @ g / (g @ (hessian(objective) @ g)))
    for factor in (0.51, 0.8, 1.0, 1.2, 1.99):
        assert critical_rate(objective, -g, start=factor * exact).forwards <= 8


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_risen(bad):
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)

    def wall(x):
        w = x["weight"].sum()
        return torch.where(w < -3, torch.full_like(w, bad), -w * 0 + w)

    objective = Objective(
        model, squared_error(), [(torch.zeros(1, 1).double(), torch.zeros(1, 1).double())], penalty=Penalty(wall)
    )
    found = critical_rate(objective, torch.tensor([-1.0], dtype=torch.float64), rtol=1e-6, max_forwards=60)
    assert found.lower <= 4.0 <= found.upper
    assert found.upper == pytest.approx(4.0, rel=1e-5)


def test_ascent_and_endless_descent_say_so():
    objective = linear()
    g = objective.gradient()
    up = critical_rate(objective, g)
    assert (up.value, up.lower) == (0.0, 0.0)
    assert "rises at once" in up.message
    flat = critical_rate(objective, torch.zeros_like(g), max_forwards=60)
    assert flat.upper == math.inf
    assert "still falls" in flat.message


@pytest.mark.parametrize(
    "arguments", [{"start": 0.0}, {"start": math.inf}, {"rtol": 0.0}, {"rtol": 1.0}, {"max_forwards": 0}]
)
def test_bad_arguments(arguments):
    objective = linear()
    with pytest.raises(ValueError, match="critical_rate: start must be positive"):
        critical_rate(objective, objective.gradient(), **arguments)


def test_a_direction_must_be_finite_and_fit():
    objective = linear()
    for direction in (torch.ones(2, dtype=torch.float64), torch.full((5,), math.nan, dtype=torch.float64)):
        with pytest.raises(ValueError, match="direction must be finite of shape"):
            critical_rate(objective, direction)
