"""Power laws: exact data, coverage of the exponents' intervals and of predictions, and what cannot be fitted."""

import math

import pytest
import torch

from frechet.analyze import fit_power_law


@pytest.mark.parametrize(("c", "m"), [(3.0, 0.5), (0.03, -1.7), (1e6, 0.38)])
def test_exact_data_give_the_law(c, m):
    x = torch.logspace(0, 4, 9, dtype=torch.float64)
    law = fit_power_law(x, c * x**m)
    assert law.coefficient == pytest.approx(c, rel=1e-8)
    assert law.exponents[0] == pytest.approx(m, rel=1e-8)
    assert law.scatter < 1e-8
    assert law.predict(7.0).value == pytest.approx(c * 7.0**m, rel=1e-8)


def test_a_product_of_powers_and_a_floor():
    draw = torch.Generator().manual_seed(0)
    X = torch.rand(30, 2, generator=draw, dtype=torch.float64) * 10 + 0.1
    law = fit_power_law(X, 2 * X[:, 0] ** 0.4 * X[:, 1] ** -0.9)
    assert law.exponents == pytest.approx((0.4, -0.9), rel=1e-8)
    x = torch.logspace(0, 4, 25, dtype=torch.float64)
    law = fit_power_law(x, 1.7 + 5 * x**-0.5, floor=True)
    assert (law.floor, law.coefficient, law.exponents[0]) == pytest.approx((1.7, 5.0, -0.5), rel=1e-5)


def test_intervals_cover():
    """95 % intervals of the exponent, and of a new measurement, over 300 noisy sets."""
    x, inside, predicted = torch.logspace(0, 3, 8, dtype=torch.float64), 0, 0
    for seed in range(300):
        draw = torch.Generator().manual_seed(seed)
        noise = 0.1 * torch.randn(9, generator=draw, dtype=torch.float64)
        law = fit_power_law(x, 2 * x**0.6 * noise[:8].exp())
        low, high = law.interval()
        inside += low <= 0.6 <= high
        bar = law.predict(1e4)
        predicted += bar.lower <= 2 * 1e4**0.6 * math.exp(float(noise[8])) <= bar.upper
    # 300 draws of a right interval lie in [272, 297] with probability 0.999
    assert 272 <= inside <= 297
    assert 272 <= predicted <= 297


@pytest.mark.parametrize(
    ("x", "y", "settings", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], {}, "needs more than 2 measurements for 2 numbers, got 2"),
        ([1.0, 0.0, 2.0], [1.0, 1.0, 1.0], {}, "must be positive and finite"),
        ([1.0, 1.0, 1.0], [1.0, 1.1, 1.0], {}, "do not determine the law"),
        ([1.0, 2.0, 3.0], [1.0, 1.0], {}, "x must be"),
        ([[1.0, 2.0]] * 5, [1.0] * 5, {"floor": True}, "floor needs one input, got 2"),
    ],
)
def test_what_cannot_be_fitted_says_why(x, y, settings, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(torch.tensor(x), torch.tensor(y), **settings)


def test_a_prediction_takes_as_many_numbers_as_the_law():
    law = fit_power_law(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.1, 4.0]))
    with pytest.raises(ValueError, match="needs 1 positive numbers"):
        law.predict(1.0, 2.0)
