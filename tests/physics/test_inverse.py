"""Parameters of the equation, fitted together with its solution to noisy data."""

import math

import pytest
import torch

from frechet import least_squares
from frechet.physics import collocation
from pinns import F64

TRUE, NOISE, EXACT, SINES = 0.8, 0.02, 1e-3, 6
DRAWS = 200


def fitted(seed, wrong=1.0):
    """k and its standard error in -k u'' = pi^2 sin(pi x) from noisy u, with a sum of sines for u."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(25, 1, dtype=F64, generator=draw)
    y = torch.sin(math.pi * x[:, 0]) / TRUE + NOISE * torch.randn(25, dtype=F64, generator=draw)
    waves = math.pi * torch.arange(1, SINES + 1)

    def equation(p, x):
        bent = (waves**2 * p["u"] * torch.sin(waves * x)).sum()
        return (math.pi**2 * torch.sin(math.pi * x[0]) - p["k"] * bent) / EXACT

    conditions = {
        "equation": equation,
        "data": lambda p, x, y: ((p["u"] * torch.sin(waves * x)).sum() - y) / (wrong * NOISE),
    }
    nodes = (torch.arange(SINES, dtype=F64) + 0.5) / SINES
    points = {"equation": nodes[:, None], "data": (x, y)}
    start = {"u": torch.ones(SINES, dtype=F64) / waves**3, "k": torch.tensor(1.0, dtype=F64)}
    s = least_squares(
        collocation(conditions, points, mean=False), start, method="levenberg-marquardt", absolute_sigma=True,
        ftol=1e-6,
    )  # fmt: skip
    assert s.converged, s.message
    exact = NOISE * wrong * float(s.x["k"]) ** 2 / float(torch.sin(math.pi * x[:, 0]).norm())
    return float(s.x["k"]), float(s.standard_errors[-1]), exact


@pytest.mark.slow
def test_the_interval_covers_in_200_draws_and_is_that_of_the_closed_form():
    inside = 0
    for seed in range(DRAWS):
        k, error, exact = fitted(seed)
        assert abs(error - exact) < 1e-3 * exact
        inside += abs(k - TRUE) <= 1.96 * error
    assert 180 <= inside <= 198  # a right interval fails with probability 1e-3: binomial (200, 0.95)


@pytest.mark.slow
def test_an_interval_of_wrong_noise_does_not_cover():
    assert sum(abs(k - TRUE) <= 1.96 * error for k, error, _ in (fitted(s, wrong=0.5) for s in range(40))) < 36


def test_the_error_is_that_of_the_closed_form():
    _, error, exact = fitted(0)
    assert abs(error - exact) < 1e-3 * exact
