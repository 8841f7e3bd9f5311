import math

import pytest
import torch

from frechet.analyze import fit_smoothness

G = torch.logspace(-2, 1, 25, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
@pytest.mark.parametrize(("L0", "L1", "a"), [(0.5, 3.0, 1.0), (2.0, 0.4, 1.7), (1.0, 1.0, 0.5)])
def test_exact_laws_come_back_in_any_units(L0, L1, a, scale):
    fit = fit_smoothness(G, scale * (L0 + L1 * G**a))
    assert (fit.L0 / scale, fit.L1 / scale, fit.power) == pytest.approx((L0, L1, a), rel=1e-5)
    assert fit.curvature(2.0) == pytest.approx(scale * (L0 + L1 * 2**a), rel=1e-5)


def test_numbers_at_their_bounds_have_no_standard_error():
    constant, power = fit_smoothness(G, torch.full_like(G, 2.0)), fit_smoothness(G, 3 * G**1.3)
    assert pytest.approx(2) == constant.L0
    assert constant.curvature(100.0) == pytest.approx(2, rel=1e-6)
    assert math.isnan(constant.standard_errors[2])
    assert (power.L1, power.power) == pytest.approx((3, 1.3))
    assert math.isnan(power.standard_errors[0])
    assert pytest.approx(2) == fit_smoothness(G, 1 + 2 * G**2, power=2.0).L1


def test_standard_errors_cover():
    truth, inside = torch.tensor([0.5, 3.0, 1.2], dtype=torch.float64), torch.zeros(3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(60):
        noise = torch.exp(0.1 * torch.randn(25, generator=draw, dtype=torch.float64))
        fit = fit_smoothness(G, (0.5 + 3 * G**1.2) * noise)
        found, errors = torch.tensor([fit.L0, fit.L1, fit.power]), torch.tensor(fit.standard_errors)
        inside += (found - truth).abs() <= 2.074 * errors  # t with 22 degrees of freedom
    assert bool((inside / 60 > 0.87).all())


def test_numbers_that_only_fall_with_time_have_no_partial_correlation():
    t = torch.arange(60, dtype=torch.float64)
    draw = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(2, 60, generator=draw, dtype=torch.float64)
    g, h = torch.exp(-0.1 * t + noise[0]), torch.exp(-0.05 * t + noise[1])
    assert abs(fit_smoothness(g, h).partial) < 0.3
    assert fit_smoothness(g, h * torch.exp(noise[0])).partial > 0.5


def test_what_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match="gradient_norms must span a factor of 10 to tell L0 from L1, got 2"):
        fit_smoothness(torch.linspace(1, 2, 9), torch.ones(9))
    with pytest.raises(ValueError, match="must be positive and finite"):
        fit_smoothness(G, -G)
    with pytest.raises(ValueError, match="3 numbers need more than 3 measurements, got 3"):
        fit_smoothness(torch.tensor([0.1, 1.0, 10.0]), torch.ones(3))
    with pytest.raises(ValueError, match=r"must be \(N,\)"):
        fit_smoothness(G, G[:3])
