"""Least squares in a metric is least squares in the variables in which the metric is Euclidean."""

import pytest
import torch

from frechet import from_callable, from_diagonal, from_matrix, least_squares
from frechet.calculus.functionals import sobolev
from frechet.operators import Metric, product_metric
from spectra import gaussian, geometric, with_eigenvalues

F64 = torch.float64
A, DATA = gaussian(20, 6), gaussian(20, seed=1)


def residual(x):
    return torch.tanh(A @ x) - 0.3 * DATA


METRICS = {
    "dense": lambda: Metric(from_matrix(with_eigenvalues(geometric(6, 1e3)), facts="positive_definite")),
    "H1": lambda: sobolev(6, 0.1, boundary="neumann"),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("jacobian", ["dense", "products"])
def test_the_run_is_that_in_y(name, jacobian):
    metric, x0 = METRICS[name](), gaussian(6, seed=2)
    R = metric.factor.dense()
    seen, there = [], []
    s = least_squares(residual, x0, metric=metric, jacobian=jacobian, observe=lambda now: bool(seen.append(now)))
    y = least_squares(
        lambda y: residual(R @ y),
        torch.linalg.solve(R, x0),
        jacobian=jacobian,
        observe=lambda now: bool(there.append(now)),
    )
    assert s.converged
    torch.testing.assert_close(s.x, R @ y.x, rtol=1e-6, atol=1e-7)
    for a, b in zip(seen[:4], there[:4], strict=True):
        assert a.cost == pytest.approx(b.cost, rel=1e-6)
        torch.testing.assert_close(a.x, R @ b.x, rtol=1e-5, atol=1e-6)
    J = torch.func.jacrev(residual)(s.x)
    torch.testing.assert_close(s.gradient, J.T @ residual(s.x), rtol=1e-6, atol=1e-10)


def test_covariance_and_errors_are_those_of_x():
    plain = least_squares(residual, gaussian(6, seed=2))
    s = least_squares(residual, gaussian(6, seed=2), metric=METRICS["dense"]())
    torch.testing.assert_close(s.covariance, plain.covariance, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(s.standard_errors, plain.standard_errors, rtol=1e-6, atol=1e-12)


def test_a_direction_that_the_residual_does_not_see_has_no_error():
    s = least_squares(lambda x: A[:, :2] @ x[:2] - DATA, torch.zeros(4, dtype=F64), metric=METRICS_4)
    assert s.rank == 2
    assert s.standard_errors.isinf().tolist() == [False, False, True, True]
    torch.testing.assert_close(s.null_directions[:2], torch.zeros(2, 2, dtype=F64), rtol=0, atol=1e-9)


METRICS_4 = Metric(from_diagonal(geometric(4, 100.0)))


def test_blocks_stay_blocks():
    metric = product_metric({"a": sobolev(3, 0.2), "b": Metric(from_diagonal(torch.full((2,), 9.0, dtype=F64)))})
    x0 = metric.space.unflatten(torch.zeros(5, dtype=F64))
    s = least_squares(lambda x: {"r": A[:, :3] @ x["a"] + A[:, 3:5] @ x["b"] - DATA}, x0, metric=metric)
    right = torch.linalg.lstsq(A[:, :5], DATA).solution
    torch.testing.assert_close(torch.cat([s.x["a"], s.x["b"]]), right, rtol=1e-9, atol=1e-10)


def test_what_belongs_to_x_alone_is_refused():
    x0, metric = torch.zeros(6, dtype=F64), METRICS["H1"]()
    with pytest.raises(ValueError, match="bounds must be left out in a metric"):
        least_squares(residual, x0, metric=metric, bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="a jacobian of your own must be left out"):
        least_squares(residual, x0, metric=metric, jacobian=lambda x: A)
    eye = from_callable(lambda V: V, 6, facts="positive_definite", dtype=F64)
    with pytest.raises(ValueError, match="metric must have a factor"):
        least_squares(residual, x0, metric=Metric(eye, eye))
    with pytest.raises(ValueError, match="metric must be one on"):
        least_squares(residual, torch.zeros(5, dtype=F64), metric=metric)
