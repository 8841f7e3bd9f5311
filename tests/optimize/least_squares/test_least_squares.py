import math
import sys

import pytest
import torch

from frechet.errors import NotConverged
from frechet.linalg._result import Status
from frechet.optimize._least_squares.least_squares import least_squares
from more_garbow_hillstrom import numbers
from nist import load

F64 = torch.float64
MISRA = load("Misra1a")


def line(x):
    t = torch.arange(4, dtype=x.dtype)
    return x[0] + x[1] * t - torch.tensor([1.0, 2, 2, 4], dtype=x.dtype)


def test_a_straight_line_is_the_closed_form():
    s = least_squares(line, torch.zeros(2, dtype=F64))
    assert s.x.tolist() == pytest.approx([0.9, 0.9], rel=1e-14)
    assert 2 * s.cost == pytest.approx(0.7)
    covariance = 0.35 * torch.linalg.inv(torch.tensor([[4.0, 6], [6, 14]], dtype=F64))
    assert torch.allclose(s.covariance, covariance)
    assert s.iterations <= 4


@pytest.mark.parametrize("method", ["levenberg-marquardt", "adaptive-damping", "gauss-newton", "dogleg", "interior"])
@pytest.mark.parametrize("name", ["Misra1a", "Chwirut2", "Gauss1", "Roszman1", "Lanczos3"])
def test_every_method_reaches_the_certified_digits(method, name):
    regression = load(name)
    s = least_squares(regression.residual, regression.starts[1], method=method)
    assert s.converged, s.message
    assert regression.digits(s.x) > 9
    assert s.method.startswith(method)


def test_float32_and_shapes_are_kept():
    s = least_squares(lambda x: x**2 - torch.tensor([[1.0, 4], [9, 16]]), torch.ones(2, 2))
    assert s.converged
    assert s.x.dtype == torch.float32
    assert torch.allclose(s.x, torch.tensor([[1.0, 2], [3, 4]]), rtol=1e-6)
    x = least_squares(lambda x: x**2 - 2, torch.tensor(1.0, dtype=F64)).x
    assert x.shape == ()
    assert float(x) == pytest.approx(math.sqrt(2), rel=1e-15)


def test_start_is_not_changed_and_no_graph_is_left():
    x0 = torch.ones(2, dtype=F64, requires_grad=True)
    s = least_squares(line, x0)
    assert x0.tolist() == [1, 1]
    assert not s.x.requires_grad
    assert not s.residuals.requires_grad


def test_bounds_as_numbers_tensors_and_dicts():
    for bounds in [(0.0, 0.8), (numbers(0, 0), numbers(0.8, 0.8)), ({"x": 0.0}, {"x": 0.8})]:
        start = {"x": torch.zeros(2, dtype=F64)} if isinstance(bounds[0], dict) else torch.zeros(2, dtype=F64)
        s = least_squares(lambda x: line(x["x"] if isinstance(x, dict) else x), start, bounds=bounds)
        found = s.x["x"] if isinstance(s.x, dict) else s.x
        assert s.converged
        assert found.tolist() == pytest.approx([0.8, 0.8])
        assert s.active.tolist() == [1, 1]
        assert s.standard_errors.tolist() == [0, 0]


def test_equal_bounds_hold_a_parameter():
    s = least_squares(line, torch.zeros(2, dtype=F64), bounds=(numbers(0.5, -9), numbers(0.5, 9)))
    assert s.x.tolist() == pytest.approx([0.5, 15 / 14], rel=1e-12)
    s = least_squares(line, torch.zeros(2, dtype=F64), bounds=(0.5, 0.5), method="interior")
    assert s.x.tolist() == [0.5, 0.5]
    assert "every parameter lies on a bound" in s.message


def test_loose_tolerances_stop_early():
    full = least_squares(MISRA.residual, MISRA.starts[0])
    for tolerance in ({"gtol": 1e-3}, {"xtol": 1e-3}, {"ftol": 1e-3}):
        s = least_squares(MISRA.residual, MISRA.starts[0], **tolerance)
        assert s.converged
        assert s.residual_evaluations < full.residual_evaluations
        assert MISRA.digits(s.x) > 2


def test_limits_and_stops():
    s = least_squares(MISRA.residual, MISRA.starts[0], max_evaluations=5)
    assert s.status is Status.MAX_ITERATIONS
    assert s.residual_evaluations == 5
    assert "the limit of 5 residuals was reached" in s.message
    states = []
    s = least_squares(
        MISRA.residual, MISRA.starts[0], observe=lambda state: bool(states.append(state)) or len(states) > 3
    )
    assert (s.status, s.iterations) == (Status.STOPPED, 3)
    assert [state.iteration for state in states] == [0, 1, 2, 3]
    assert torch.equal(states[-1].x, s.x)
    with pytest.raises(NotConverged, match=r"least_squares: observe returned True .* \(status 'stopped', cost "):
        s.checked()


def test_no_parameters_and_a_solution_at_the_start():
    s = least_squares(lambda x: torch.ones(3, dtype=F64), torch.zeros(0, dtype=F64), jacobian="2-point")
    assert s.converged
    assert 2 * s.cost == 3
    s = least_squares(lambda x: x - 1, torch.ones(2, dtype=F64))
    assert (s.converged, s.iterations, s.residual) == (True, 0, 0.0)


def test_large_problems_are_solved_by_products():
    s = least_squares(lambda x: torch.cat([x - 1, x[1:] - x[:-1] ** 2]), torch.zeros(3000, dtype=F64))
    assert s.converged, s.message
    assert torch.allclose(s.x, torch.ones(3000, dtype=F64))
    assert "products" in s.method
    assert s.products > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "lm"}, "method must be one of 'auto', .*, got 'lm'"),
        ({"jacobian": "4-point"}, "jacobian must be 'auto', .* or a function, got '4-point'"),
        ({"gtol": -1.0}, r"gtol must lie in \[0, 1\), got -1.0"),
        ({"max_evaluations": 0}, "max_evaluations must be at least 1, got 0"),
        ({"bounds": (1.0, 0.0)}, "bounds must leave a point between them, got lower 1 > upper 0 in entry 0"),
        ({"bounds": (math.nan, 0.0)}, "lower bounds must be numbers, got NaN"),
        ({"bounds": (torch.zeros(3), 1.0)}, r"lower bounds must be numbers or have the shape of x0 \(2,\), got \(3,\)"),
        ({"bounds": ({"y": 0.0}, 1.0)}, r"lower bounds must name blocks of x0, got \['y'\]"),
        (
            {"jacobian": "products", "method": "dogleg"},
            "method must be 'levenberg-marquardt' where the Jacobian is not",
        ),
    ],
)
def test_wrong_values_have_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=f"least_squares: {sentence}"):
        least_squares(line, torch.zeros(2, dtype=F64), **options)


def test_wrong_kinds_have_a_sentence():
    with pytest.raises(TypeError, match="least_squares: residual must be a function of x, got Tensor"):
        least_squares(torch.zeros(2), torch.zeros(2))
    with pytest.raises(TypeError, match="least_squares: x0 must be a tensor or a dict of tensors, got list"):
        least_squares(line, [0.0, 0.0])
    with pytest.raises(TypeError, match=r"least_squares: bounds must be a pair \(.*\), .* got a tuple in the pair"):
        least_squares(line, torch.zeros(2), bounds=[(0.0, 1.0), (0.0, 1.0)])
    with pytest.raises(ValueError, match="least_squares: x0 must be finite, got nan in an entry"):
        least_squares(line, torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize(("jacobian", "told"), [("dense", "dense"), ("products", "products"), ("auto", "dense")])
def test_the_form_of_the_jacobian_can_be_asked_for(jacobian, told):
    s = least_squares(lambda x: x**2 - 2, torch.tensor([1.0, 3.0], dtype=torch.float64), jacobian=jacobian)
    assert s.converged
    assert told in s.method


def test_large_jacobians_are_not_formed_unless_that_is_asked_for(monkeypatch):
    module = sys.modules["frechet.optimize._least_squares.jacobian_route"]
    x0 = torch.tensor([1.0, 3.0], dtype=torch.float64)
    for name in ("LARGEST", "DEAR"):
        with monkeypatch.context() as m:
            m.setattr(module, name, 0)
            assert "products" in least_squares(lambda x: x**2 - 2, x0).method
            assert "dense" in least_squares(lambda x: x**2 - 2, x0, jacobian="dense").method
