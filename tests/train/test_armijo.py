import pytest
import torch

from frechet.space import euclidean
from frechet.train._armijo import descend

F64 = torch.float64


def quadratic(bends):
    A = torch.diag(torch.tensor(bends, dtype=F64))
    return (lambda x: float(0.5 * x @ A @ x)), (lambda x: A @ x), torch.ones(len(bends), dtype=F64)


def test_a_step_halves_until_the_decrease_is_half_of_what_the_slope_says():
    value, gradient, x = quadratic([8.0])
    # on c x^2 / 2 the rule is t <= 1 / c
    moved, length, steps, values = descend(euclidean(1, F64), value, gradient, x, 1.0, 1)
    assert float(moved) == 0.0
    assert (length, steps, values) == (0.25, 1, 5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_it_ends_at_a_gradient_of_zero_in_any_unit_and_not_at_the_rounding_of_values(scale):
    value, gradient, x = quadratic([1.0 * scale, 3.0 * scale, 7.0 * scale])
    shifted = lambda v: value(v) + 5.0 * scale  # noqa: E731
    moved, _, _, _ = descend(euclidean(3, F64), shifted, gradient, x, 1 / scale, 300)
    assert float(gradient(moved).norm()) < 1e-13 * scale


def test_the_length_goes_on_from_call_to_call():
    value, gradient, x = quadratic([1.0, 5.0])
    space = euclidean(2, F64)
    once, last, _, _ = descend(space, value, gradient, x, 1.0, 6)
    first, length, _, _ = descend(space, value, gradient, x, 1.0, 4)
    again, length, _, _ = descend(space, value, gradient, first, length, 2)
    assert torch.equal(once, again)
    assert length == last


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_gradient_that_is_no_number_or_zero_moves_nothing(bad):
    x = torch.ones(2, dtype=F64)
    moved, length, steps, _ = descend(euclidean(2, F64), lambda v: 0.0, lambda v: torch.full_like(v, bad), x, 1.0, 5)
    assert torch.equal(moved, x)
    assert (length, steps) == (1.0, 0)


def test_a_trial_that_is_no_number_is_shortened():
    def value(x):
        return float(x[0] ** 2 / 2) if float(x[0]) > -2 else float("nan")

    moved, _, steps, _ = descend(euclidean(1, F64), value, lambda x: x, torch.ones(1, dtype=F64), 64.0, 1)
    assert steps == 1
    assert abs(float(moved)) < 1
