import math

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from frechet.errors import NotConverged
from frechet.solve.least_squares import least_squares
from frechet.solve.least_squares_batch import least_squares_batch
from more_garbow_hillstrom import numbers
from nist import load

F64 = torch.float64


def test_covariance_is_that_of_the_linear_model():
    regression = load("Thurber")
    s = least_squares(regression.residual, regression.starts[1])
    J = torch.func.jacrev(regression.residual)(s.x)
    exact = s.residual**2 / 30 * torch.linalg.inv(J.T @ J)
    assert torch.allclose(s.covariance, exact, rtol=1e-6)
    assert torch.allclose(s.standard_errors, exact.diagonal().sqrt(), rtol=1e-6)
    assert s.rank == 7
    assert s.null_directions.shape == (7, 0)


def test_undetermined_parameters_have_a_null_direction_and_no_finite_error():
    t = torch.linspace(0, 1, 9, dtype=F64)
    s = least_squares(lambda x: x[0] * x[1] * t + x[2] - (2 * t + 1 + 0.01 * torch.cos(9 * t)), numbers(1, 1, 0))
    assert s.converged
    assert s.rank == 2
    assert s.null_directions.shape == (3, 1)
    direction = s.null_directions[:, 0]
    assert float(direction @ direction) == pytest.approx(1)
    assert abs(float(direction @ numbers(float(s.x[1]), float(s.x[0]), 0))) < 1e-9
    assert [math.isfinite(e) for e in s.standard_errors.tolist()] == [False, False, True]
    assert "rank        2 of 3 free parameters" in s.report()
    assert "undetermined: " in s.report()
    assert "x[0]" in s.report().split("undetermined: ")[1]


def test_held_parameters_have_no_error_and_the_others_that_of_the_smaller_problem():
    t = torch.linspace(0, 1, 9, dtype=F64)
    y = 2 * t + 1 + 0.1 * torch.cos(9 * t)
    s = least_squares(lambda x: x[0] * t + x[1] - y, numbers(0, 0), bounds=(-5.0, numbers(1.5, 5)))
    assert s.active.tolist() == [1, 0]
    assert float(s.standard_errors[0]) == 0
    assert float(s.standard_errors[1]) == pytest.approx(s.residual / 8**0.5 / 3)
    assert "upper" in s.report()


def test_report_says_how_it_went():
    regression = load("Misra1a")
    start = {"asymptote": regression.starts[0][0], "rate": regression.starts[0][1]}
    s = least_squares(lambda b: regression.residual(torch.stack([b["asymptote"], b["rate"]])), start)
    text = s.report()
    assert text.startswith("least squares: 14 residuals, 2 parameters\n  status      converged: ")
    assert "method      levenberg-marquardt, dense Jacobian by columns" in text
    assert f"spent       {s.residual_evaluations} residuals, {s.jacobian_evaluations} Jacobians, 0 products" in text
    assert "asymptote" in text
    assert "238.9421291" in text
    assert "2.707" in text
    assert s.checked() is s


def test_long_reports_are_cut():
    s = least_squares(lambda x: x - 1, torch.zeros(60, dtype=F64))
    assert "x[39]" in s.report()
    assert "x[40]" not in s.report()
    assert "and 20 more" in s.report()


def test_checked_raises_with_what_was_reached():
    s = least_squares(lambda x: torch.where(x < 0.3, x + 2, x - 0.1), numbers(1.0))
    with pytest.raises(NotConverged, match=r"least_squares: no step reduces .* \(status 'stagnated', cost") as raised:
        s.checked()
    assert raised.value.result is s


# --- covariances beside curve_fit -------------------------------------------------------------------------------------


def decay(t, a, b, c):
    return a * np.exp(-b * t) + c


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("missing", [0, 5])
def test_covariances_are_those_of_curve_fit(absolute, weighted, missing):
    rng = np.random.default_rng(0)
    t = np.linspace(0, 4, 30)
    sigma = 0.05 * (1 + t) if weighted else np.full_like(t, 0.1)
    y = decay(t, 2.5, 1.3, 0.5) + sigma * rng.normal(size=len(t))
    keep = np.ones(len(t), dtype=bool)
    keep[:missing] = False
    t, y, sigma = t[keep], y[keep], sigma[keep]
    best, covariance = curve_fit(
        decay, t, y, [1.0, 1.0, 0.0], sigma=sigma, absolute_sigma=absolute, ftol=1e-15, xtol=1e-15
    )
    T, Y, S = (torch.from_numpy(v) for v in (t, y, sigma))
    s = least_squares(
        lambda p: (p[0] * torch.exp(-p[1] * T) + p[2] - Y) / S,
        torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64),
        absolute_sigma=absolute,
    )
    assert s.x.tolist() == pytest.approx(best.tolist(), rel=1e-6)
    assert s.covariance.numpy() == pytest.approx(covariance, rel=1e-4)
    assert s.standard_errors.numpy() == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-4)


def test_a_result_that_is_not_converged_has_no_standard_errors():
    t = torch.linspace(0, 4, 30, dtype=torch.float64)

    def r(p):
        return p[0] * torch.exp(-p[1] * t) + p[2] - 2.5 * torch.exp(-1.3 * t)

    x0 = torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64)
    for s in (least_squares(r, x0, max_evaluations=2), least_squares(r, x0, observe=lambda state: True)):
        assert not s.converged
        assert s.covariance is None
        assert s.standard_errors is None
        assert s.report()
    many = least_squares_batch(lambda p, k: k * r(p), x0, torch.ones(2, dtype=torch.float64), max_evaluations=2)
    assert bool(many.standard_errors.isnan().all())


def test_exact_data_of_known_deviation_have_a_covariance_too():
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    s = least_squares(lambda x: A @ x - 1, torch.zeros(2, dtype=torch.float64), absolute_sigma=True)
    assert torch.allclose(s.covariance, torch.linalg.inv(A.T @ A), rtol=1e-12)
    assert least_squares(lambda x: A @ x - 1, torch.zeros(2, dtype=torch.float64)).covariance is None
