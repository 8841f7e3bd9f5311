import numpy as np
import pytest
import torch
from scipy.optimize import OptimizeResult
from scipy.optimize import least_squares as scipy_least_squares

from frechet.interop._optimize_result import CODES, to_optimize_result
from frechet.linalg._result import Status
from frechet.linalg.systems._cg import cg
from frechet.operators._constructors import from_matrix
from frechet.optimize._equations.root import root
from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._smooth.minimize_result import MinimizeSolution
from spectra import F64


def minimum(status=Status.CONVERGED):
    x, g = {"a": torch.ones(2, dtype=F64), "b": torch.zeros(1, dtype=F64)}, torch.tensor([0.0, 1e-9, 0.0], dtype=F64)
    return MinimizeSolution(x, status, "why", 2.5, g, 1e-9, 7, 9, 8, 20, "newton", 1e-12, multipliers=(torch.ones(2),))


def test_least_squares_has_the_fields_and_values_of_scipys():
    t = torch.linspace(0, 3, 9, dtype=F64)
    y = 2 * torch.exp(-0.7 * t) + 0.05 * torch.cos(9 * t)

    def r(b):
        return b[0] * torch.exp(-b[1] * t) - y

    ours = to_optimize_result(
        least_squares(r, torch.tensor([1.0, 0.1], dtype=F64), bounds=(0.0, torch.tensor([10.0, 0.6])))
    )
    sides = ([0, 0], [10, 0.6])
    theirs = scipy_least_squares(lambda b: r(torch.from_numpy(b)).numpy(), [1.0, 0.1], bounds=sides, xtol=1e-14)
    assert isinstance(ours, OptimizeResult)
    assert set(theirs) - {"jac"} <= set(ours)
    assert np.allclose(ours.x, theirs.x, rtol=1e-6)
    assert np.allclose(ours.fun, theirs.fun, atol=1e-6)
    assert ours.cost == pytest.approx(theirs.cost)
    assert ours.active_mask.tolist() == theirs.active_mask.tolist() == [0, 1]
    assert np.allclose(ours.grad, theirs.grad, atol=1e-5)
    assert ours.optimality < 1e-12
    assert ours.success
    assert ours.status == 1
    assert ours.nfev > 0
    assert ours.njev > 0


def test_minimize_counts_success_as_zero():
    found = to_optimize_result(minimum())
    assert found.x.tolist() == [1.0, 1.0, 0.0]
    assert (found.success, found.status, found.fun, found.nit) == (True, 0, 2.5, 7)
    assert (found.nfev, found.njev, found.nhev, found.message) == (9, 8, 20, "why")
    assert found.jac.tolist() == [0.0, 1e-9, 0.0]
    assert found.maxcv == 1e-12
    assert found.v[0].tolist() == [1.0, 1.0]
    assert to_optimize_result(minimum(Status.MAX_ITERATIONS)).status == 1
    assert to_optimize_result(minimum(Status.UNBOUNDED)).status < 0


def test_roots_and_linear_systems():
    found = to_optimize_result(root(lambda x: x**3 - 8, torch.ones(1, dtype=F64)))
    assert found.success
    assert found.x[0] == pytest.approx(2)
    calls = []
    F = lambda x: (calls.append(1), x**3 - 8)[1]  # noqa: E731
    for jacobian in ("3-point", "products"):
        calls.clear()
        s = root(F, torch.ones(1, dtype=F64), jacobian=jacobian)
        assert to_optimize_result(s).nfev == s.evaluations
        # the evaluations inside of products are those of their derivatives
        assert s.evaluations == len(calls) if jacobian == "3-point" else 0 < s.evaluations < len(calls)
    A = from_matrix(2 * torch.eye(3, dtype=F64), facts="positive_definite")
    found = to_optimize_result(cg(A, torch.ones(3, dtype=F64), max_iterations=0))
    assert (found.success, found.status) == (False, 0)
    assert found.residual == pytest.approx(3**0.5)


def test_every_status_has_a_number_of_its_own():
    assert set(CODES) == set(Status)
    assert len(set(CODES.values())) == len(CODES)


def test_what_is_no_solution_is_refused():
    with pytest.raises(TypeError, match=r"to_optimize_result: solution must be one of least_squares, .*, got Tensor"):
        to_optimize_result(torch.ones(2))
