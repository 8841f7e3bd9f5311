"""Lyapunov exponents of maps for which they are known, and of gradient descent on a quadratic."""

import math

import pytest
import torch

from frechet.analyze import lyapunov


def test_the_logistic_map_parts_by_log_two():
    found = lyapunov(
        lambda x: 4 * x * (1 - x), torch.tensor([0.3], dtype=torch.float64), steps=800, every=2, burn=100, seed=0
    )
    low, high = (float(end[0]) for end in found.exponents.interval(0.999))
    assert low <= math.log(2) <= high
    assert high - low < 0.3
    assert "chaos" in found.message
    assert found.horizon == pytest.approx(52 * math.log(2) / float(found.exponents.value[0]), rel=1e-6)


def test_a_linear_map_has_the_logarithms_of_its_eigenvalues():
    torch.manual_seed(0)
    P = torch.randn(4, 4, dtype=torch.float64)
    A = P @ torch.diag(torch.tensor([1.5, -0.9, 0.5, 0.1]).double()) @ torch.linalg.inv(P)
    found = lyapunov(lambda x: A @ x, torch.zeros(4).double(), steps=400, k=4, every=2, burn=100, seed=1)
    expected = torch.tensor([1.5, 0.9, 0.5, 0.1]).double().log()
    assert torch.allclose(found.exponents.value, expected, atol=2e-3)


def test_gradient_descent_below_its_limit_is_no_chaos():
    H = torch.diag(torch.tensor([1.0, 0.5])).double()
    found = lyapunov(lambda x: x - 0.5 * H @ x, torch.ones(2).double(), steps=200, k=2, burn=50, seed=0)
    assert found.exponents.value.tolist() == pytest.approx([math.log(0.75), math.log(0.5)], abs=1e-6)
    assert found.horizon == math.inf
    assert found.message == ""


@pytest.mark.parametrize(
    "settings", [{"steps": 20}, {"steps": 100, "k": 3}, {"steps": 100, "k": 0}, {"steps": 100, "every": 0}]
)
def test_bad_arguments(settings):
    with pytest.raises(ValueError, match="lyapunov: x0 must be a vector"):
        lyapunov(lambda x: x, torch.zeros(2), seed=0, **settings)


def test_a_run_that_explodes_says_so():
    with pytest.raises(ValueError, match="the run must stay finite"):
        lyapunov(lambda x: x * x, torch.tensor([10.0]), steps=200, seed=0)
