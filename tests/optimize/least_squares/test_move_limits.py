"""Move limits: poor starts do not cross poles beyond zero, and parameters without a sign of their own pass it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from frechet import least_squares
from frechet.optimize._least_squares.move_limits import MOST, SHRINK, MoveLimits

F64 = torch.float64
DOSES = torch.logspace(-0.6, 1.8, 12, dtype=F64)
RATIONAL: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, ...]]] = {
    "michaelis-menten": (lambda b: b[0] * DOSES / (b[1] + DOSES), (10.0, 5.0)),
    "substrate inhibition": (lambda b: b[0] * DOSES / (b[1] + DOSES + DOSES**2 / b[2]), (10.0, 2.0, 20.0)),
    "hill": (lambda b: b[0] * DOSES ** b[2] / (b[1] ** b[2] + DOSES ** b[2]), (1.0, 8.0, 3.0)),
    "michaelis-menten with an offset": (lambda b: b[0] * DOSES / (b[1] + DOSES) + b[2], (10.0, 5.0, 2.0)),
    "second order": (lambda b: b[0] / (1 + b[1] * DOSES) ** 2, (4.0, 0.3)),
}


@pytest.mark.parametrize("name", RATIONAL)
def test_rational_models_are_fitted_from_starts_tenfold_off(name):
    model, truth = RATIONAL[name]
    best = torch.tensor(truth, dtype=F64)
    y = model(best) + 0.003 * float(model(best).abs().max()) * torch.cos(7 * DOSES)
    least = least_squares(lambda b: model(b) - y, best).checked().cost
    missed = []
    for powers in itertools.product((-1.0, 0.0, 1.0), repeat=len(truth)):
        start = best * 10 ** torch.tensor(powers, dtype=F64)
        s = least_squares(lambda b: model(b) - y, start)
        if not (s.converged and s.cost <= least * (1 + 1e-6)):
            missed.append((powers, s.status.value, s.cost))
    assert len(missed) <= 3 ** len(truth) // 20  # a Hill exponent of 30 makes a step, which no gradient moves


def test_a_small_amplitude_does_not_send_the_other_parameter_over_its_pole():
    x = torch.tensor([0.5, 1, 2, 4, 8, 16, 32], dtype=F64)
    y = 10 * x / (5 + x) + 0.1 * torch.cos(7 * x)
    for start in ([0.01, 10.0], [0.01, 5.0], [0.001, 5.0], [0.1, 1.0], [0.01, 1.0], [1e-6, 1.0], [1e-3, 1e3]):
        s = least_squares(lambda b: b[0] * x / (b[1] + x) - y, torch.tensor(start, dtype=F64)).checked()
        assert 0.01 < s.cost < 0.02, start


@pytest.mark.parametrize("far", [1.0, 1e3, 1e6])
def test_an_offset_passes_zero(far):
    t = torch.linspace(0, 3, 10, dtype=F64)
    s = least_squares(lambda b: b[0] * torch.exp(-t) + b[1] + 5, torch.tensor([-far, far], dtype=F64)).checked()
    torch.testing.assert_close(s.x, torch.tensor([0.0, -5.0], dtype=F64), atol=1e-9, rtol=0)
    assert s.iterations <= 8


def test_a_radius_grows_with_the_columns_that_set_it():
    """A Hill curve whose half dose lies far beyond the data starts with columns of size 1e-30."""
    y = DOSES**3 / (8.0**3 + DOSES**3)
    for amplitude in (0.1, 1.0, 10.0):
        start = torch.tensor([amplitude, 800.0, 30.0], dtype=F64)
        s = least_squares(lambda b: b[0] * DOSES ** b[2] / (b[1] ** b[2] + DOSES ** b[2]) - y, start).checked()
        torch.testing.assert_close(s.x, torch.tensor([1.0, 8.0, 3.0], dtype=F64), atol=1e-8, rtol=0)


def test_limits_hold_until_a_parameter_has_asked_twice():
    open_side = torch.full((3,), torch.inf, dtype=F64)
    limits, x = MoveLimits.of(-open_side, open_side), torch.tensor([4.0, -4.0, 0.0], dtype=F64)
    low, high = limits.around(x)
    assert low.tolist() == [4 / SHRINK, -torch.inf, -torch.inf]
    assert high.tolist() == [torch.inf, -4 / SHRINK, torch.inf]
    near = torch.tensor([4 / SHRINK, -3.0, 1.0], dtype=F64)
    once = limits.after(x, near)
    assert once.around(near)[0][0] > 0
    twice = once.after(near, near / SHRINK)
    assert twice.around(near / SHRINK)[0][0] == -torch.inf
    forgotten = once.after(near, near)
    assert forgotten.asked.tolist() == [0.0, 0.0, 0.0]


def test_limits_lie_within_the_bounds_and_end_with_the_size():
    lower, upper = torch.tensor([3.0], dtype=F64), torch.tensor([5.0], dtype=F64)
    low, high = MoveLimits.of(lower, upper).around(torch.tensor([4.0], dtype=F64))
    assert (float(low), float(high)) == (3.0, 5.0)
    many = torch.full((MOST + 1,), torch.inf, dtype=F64)
    low, _ = MoveLimits.of(-many, many).around(torch.ones(MOST + 1, dtype=F64))
    assert bool((low == -torch.inf).all())
