import math

import pytest
import torch

from frechet.optimize._least_squares.last_digits import polished
from frechet.optimize._least_squares.optimality import Rules
from frechet.optimize._least_squares.residual import Residual
from frechet.optimize._least_squares.start import begin, first_linearization
from frechet.space import euclidean
from nist import load

EPS = torch.finfo(torch.float64).eps


def moment(regression, x, limit=100):
    sides = [torch.full_like(x, side) for side in (-math.inf, math.inf)]
    residual = Residual(regression.residual, euclidean(len(x), torch.float64), True, *sides, torch.ones_like(x))
    residual, start = begin(residual, x)
    residual, linear = first_linearization(residual, start)
    return residual, linear, Rules(EPS, EPS, 0.0, limit, x.abs())


@pytest.mark.parametrize("name", ["Misra1a", "Gauss2", "Rat42", "DanWood", "Kirby2"])
def test_digits_beyond_those_that_the_cost_can_tell_apart(name):
    regression = load(name)
    x = regression.certified * (1 + 1e-9)
    residual, linear, rules = moment(regression, x)
    end = polished(residual, linear, rules)
    assert regression.digits(end.x) > 10
    assert abs(end.cost - linear.cost) <= 1e-11 * linear.cost
    assert residual.ledger.residuals <= 8


def test_second_derivatives_speed_up_a_large_residual():
    regression = load("ENSO")
    spent = {}
    for newton in (False, True):
        residual, linear, rules = moment(regression, regression.certified * (1 + 1e-7))
        end = polished(residual, linear, rules, newton)
        assert regression.digits(end.x) > 10
        spent[newton] = residual.ledger.residuals
    assert spent[True] < spent[False] / 2


def test_nothing_is_done_at_the_limit_or_where_nothing_helps():
    regression = load("Misra1a")
    residual, linear, rules = moment(regression, regression.certified * (1 + 1e-9), limit=1)
    assert polished(residual, linear, rules) is linear
    residual, linear, rules = moment(regression, regression.starts[0] * 3)  # a full step raises the cost
    residual = Residual(**{**vars(residual), "function": lambda b: regression.residual(b).abs().sqrt() * float("nan")})
    assert polished(residual, linear, rules) is linear
