import math

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from frechet.errors import NotConverged
from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._least_squares.least_squares_batch import least_squares_batch
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


# --- covariances beside those of curve_fit ----------------------------------------------------------------------------

T = np.linspace(0, 4, 30)
START = numbers(1, 1, 0)


def decay(t, a, b, c):
    return a * (np.exp if isinstance(t, np.ndarray) else torch.exp)(-b * t) + c


def noisy(seed=0, size=1.0):
    """Data of a decay, with the standard deviations of their noise."""
    sigma = 0.05 * size * (1 + T)
    return size * decay(T, 2.5, 1.3, 0.5) + sigma * np.random.default_rng(seed).normal(size=len(T)), sigma


def fitted(y, scale, **options):
    """The fit to y; `scale` multiplies residuals."""
    t, y, scale = (torch.from_numpy(v) for v in (T, y, scale))
    return least_squares(lambda p: scale * (decay(t, *p) - y), START, **options)


@pytest.mark.parametrize("size", [1.0, 1e-120, 1e120])
@pytest.mark.parametrize("missing", [0, 5])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_covariances_are_those_of_curve_fit(absolute, weighted, missing, size):
    y, sigma = noisy()
    sigma = sigma if weighted else np.full_like(sigma, 0.1)
    options = {"sigma": sigma[missing:], "absolute_sigma": absolute, "ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
    best, covariance = curve_fit(decay, T[missing:], y[missing:], START.numpy(), **options)
    # other units of r are other units of sigma; a missing row has the weight zero
    scale = np.where(np.arange(len(T)) < missing, 0.0, size / sigma)
    s = fitted(y, scale, absolute_sigma=absolute)
    covariance = covariance / size / size if absolute else covariance
    assert s.converged
    assert s.observations == len(T) - missing
    assert s.x.tolist() == pytest.approx(best.tolist(), rel=1e-6)
    assert s.covariance.numpy() / covariance == pytest.approx(np.ones((3, 3)), rel=1e-4)
    assert s.standard_errors.numpy() == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-4)
    assert ("missing     5 residuals: " in s.report()) == (missing == 5)


@pytest.mark.parametrize("jacobian", ["auto", "2-point", "3-point"])
def test_a_masked_row_is_a_row_left_out(jacobian):
    y = noisy()[0]
    y[[3, 17]] = np.nan
    t, data, keep = torch.from_numpy(T), torch.from_numpy(y), torch.from_numpy(np.isfinite(y))
    masked = [
        lambda p: torch.where(keep, decay(t, *p) - data, 0.0),
        lambda p: torch.nan_to_num(decay(t, *p) - data),
        lambda p: keep * (decay(t, *p) - torch.where(keep, data, 1e3)),
        lambda p: (decay(t, *p) - data)[keep],
    ]
    errors = [least_squares(r, START, jacobian=jacobian).standard_errors for r in masked]
    for e in errors[:-1]:
        assert torch.allclose(e, errors[-1], rtol=1e-6)
    exact = curve_fit(decay, T[keep], y[keep], START.numpy(), ftol=1e-15, xtol=1e-15)[1]
    assert errors[-1].numpy() == pytest.approx(np.sqrt(np.diag(exact)), rel=1e-4)


def test_a_datum_that_no_parameter_reaches_counts_as_in_curve_fit():
    y = noisy()[0]

    def line(t, a):
        return a * t

    covariance = curve_fit(line, T, y, [1.0])[1]
    t, data = torch.from_numpy(T), torch.from_numpy(y)
    s = least_squares(lambda p: line(t, p) - data, numbers(1))
    assert s.observations == 30
    assert s.covariance.numpy() == pytest.approx(covariance, rel=1e-6)


@pytest.mark.parametrize("absolute", [False, True])
def test_batches_have_the_errors_of_single_fits(absolute):
    rows = [noisy(seed)[0] for seed in range(3)]
    scale = np.stack([np.where(np.arange(len(T)) < k, 0.0, 1 / noisy()[1]) for k in (0, 2, 7)])
    many = least_squares_batch(
        lambda p, y, w: w * (decay(torch.from_numpy(T), *p) - y), START, torch.from_numpy(np.stack(rows)),
        torch.from_numpy(scale), absolute_sigma=absolute,
    ).checked()  # fmt: skip
    alone = [fitted(y, w, absolute_sigma=absolute).standard_errors for y, w in zip(rows, scale, strict=True)]
    assert torch.allclose(many.standard_errors, torch.stack(alone), rtol=1e-6)


def test_a_result_that_is_not_converged_has_no_standard_errors():
    y, sigma = noisy()
    jump = numbers(1.0)
    ends = [
        fitted(y, 1 / sigma, max_evaluations=2),
        fitted(y, 1 / sigma, observe=lambda state: True),
        least_squares(lambda x: torch.where(x < 0.3, x + 2, x - 0.1) * torch.ones(3, dtype=F64), jump),
    ]
    for s in ends:
        assert not s.converged
        assert s.covariance is None
        assert s.standard_errors is None
        assert s.rank is not None
        assert s.report()
    t, data = torch.from_numpy(T), torch.from_numpy(y)
    many = least_squares_batch(
        lambda p, k: k * (decay(t, *p) - data), START, torch.ones(2, dtype=F64), max_evaluations=2
    )
    assert bool(many.standard_errors.isnan().all())


def test_exact_data_of_known_deviation_have_a_covariance_too():
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=F64)
    s = least_squares(lambda x: A @ x - 1, torch.zeros(2, dtype=F64), absolute_sigma=True)
    assert torch.allclose(s.covariance, torch.linalg.inv(A.T @ A), rtol=1e-12)
    assert least_squares(lambda x: A @ x - 1, torch.zeros(2, dtype=F64)).covariance is None
    one = torch.ones(1, dtype=F64)
    many = [
        least_squares_batch(lambda x, k: k * (A @ x - 1), torch.zeros(2, dtype=F64), one, absolute_sigma=known)
        for known in (False, True)
    ]
    assert bool(many[0].standard_errors.isinf().all())
    assert torch.allclose(many[1].standard_errors[0], s.standard_errors)
