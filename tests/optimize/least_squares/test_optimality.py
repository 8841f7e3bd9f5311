import math

import pytest
import torch

from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._least_squares.optimality import Rules, free_to_move, judged
from frechet.optimize._least_squares.residual import Residual, length
from frechet.optimize._least_squares.start import begin, first_linearization
from frechet.space import euclidean
from more_garbow_hillstrom import numbers
from nist import load

MISRA = load("Misra1a")
EPS = torch.finfo(torch.float64).eps


def moment(function, x, bounds=(-math.inf, math.inf), **rules):
    low, high = (torch.full_like(x, side) for side in bounds)
    residual = Residual(function, euclidean(len(x), torch.float64), True, low, high, torch.ones_like(x))
    residual, start = begin(residual, x)
    residual, linear = first_linearization(residual, start)
    return (
        residual,
        linear,
        Rules(**{"gtol": EPS, "xtol": EPS, "ftol": 0.0, **rules}, max_evaluations=9, x0=x.abs()),
    )


def test_certified_values_are_not_good_enough_at_rounding_but_at_eight_digits():
    assert not judged(*moment(MISRA.residual, MISRA.starts[1])).solved
    assert not judged(*moment(MISRA.residual, MISRA.certified * (1 + 1e-5))).solved
    verdict = judged(*moment(MISRA.residual, MISRA.certified, gtol=1e-8))
    assert verdict.solved
    assert "r is orthogonal to the Jacobian" in verdict.message


@pytest.mark.parametrize(
    ("tolerance", "sentence"),
    [
        ({"gtol": 1e-2}, "largest cosine"),
        ({"ftol": 1e-2}, "less than ftol"),
        ({"xtol": 1e-2}, "no more than xtol"),
    ],
)
def test_each_tolerance_is_the_inequality_of_the_docstring(tolerance, sentence):
    residual, linear, rules = moment(MISRA.residual, MISRA.certified * (1 + 1e-3), **tolerance)
    J, r, D = linear.J, linear.r, linear.columns
    p = torch.linalg.lstsq(J, -r).solution
    holds = {
        "gtol": float(((J.T @ r).abs() / (D * length(r))).max()),
        "ftol": length(J @ p) ** 2 / length(r) ** 2,
        "xtol": length(D * p) / length(D * linear.x),
    }
    name, value = next(iter(tolerance.items()))
    assert judged(residual, linear, rules).solved == (holds[name] <= value)
    if holds[name] <= value:
        assert sentence in judged(residual, linear, rules).message
    _, _, strict = moment(MISRA.residual, linear.x, **{name: 0.99 * holds[name]})
    _, _, loose = moment(MISRA.residual, linear.x, **{name: 1.01 * holds[name]})
    assert not judged(residual, linear, strict).solved
    assert judged(residual, linear, loose).solved


def test_zero_residual_and_held_parameters():
    verdict = judged(*moment(lambda x: 3 * x - 0.3, numbers(0.1)))
    assert verdict.solved
    assert "zero to rounding" in verdict.message
    residual, linear, rules = moment(lambda x: x + 1, numbers(0.0), (0.0, 1.0))
    assert not free_to_move(residual, linear).any()
    assert "every parameter lies on a bound that holds it" in judged(residual, linear, rules).message
    residual, linear, rules = moment(lambda x: x - 1, numbers(0.0), (0.0, 1.0))
    assert bool(free_to_move(residual, linear).all())
    assert not judged(residual, linear, rules).solved


def test_second_derivatives_can_decide():
    residual, linear, rules = moment(lambda x: torch.stack([x[0] - 13, x[0] ** 2 + 3]), numbers(1.0))
    assert not judged(residual, linear, rules).solved
    assert judged(residual, linear, rules, newton=0.0).solved


def test_cancellation_sets_the_noise():
    # 1e8 + x - 1e8: no evaluation sees changes of x below 1e-8
    s = least_squares(lambda x: torch.stack([(1e8 * x[0] + 1) - 1e8, x[1] - 1]), numbers(1, 0))
    assert s.converged, s.message


def test_solutions_at_zero_are_reached_to_the_rounding_of_the_start():
    s = least_squares(lambda x: torch.stack([x[0] + 10 * x[1], (x[0] - x[1]) ** 2]), numbers(3, -1))
    assert s.converged
    assert float(s.x.abs().max()) < 1e-7
