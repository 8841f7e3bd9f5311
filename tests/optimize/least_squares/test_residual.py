import numpy as np
import pytest
import torch

from frechet.errors import NonFinite, NotDifferentiable
from frechet.operators._constructors import from_matrix
from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._least_squares.residual import length
from nist import load

F64 = torch.float64
RAT = load("Rat43")


class Once(torch.autograd.Function):
    """exp with a backward that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.exp()


def solved(residual, **options):
    s = least_squares(residual, RAT.starts[1], **options)
    assert s.converged, s.message
    assert RAT.digits(s.x) > 6
    return s


@pytest.mark.parametrize(("jacobian", "digits"), [("2-point", 5), ("3-point", 8)])
def test_differences(jacobian, digits):
    calls = []
    s = least_squares(lambda b: calls.append(1) or RAT.residual(b), RAT.starts[1], jacobian=jacobian)
    assert RAT.digits(s.x) > digits
    assert s.residual_evaluations == len(calls)


def test_evaluations_are_counted():
    calls = {False: 0, True: 0}

    def residual(b):
        calls[b.requires_grad] += 1
        return RAT.residual(b)

    s = solved(residual)
    assert s.residual_evaluations == calls[False]
    assert s.jacobian_evaluations == calls[True]


def test_a_residual_in_numpy_with_differences():
    x = RAT.x.numpy()

    def residual(b):
        b = b.numpy()
        return b[0] / (1 + np.exp(b[1] - b[2] * x)) ** (1 / b[3]) - RAT.y.numpy()

    assert RAT.digits(least_squares(residual, RAT.starts[1], jacobian="3-point").x) > 8
    with pytest.raises(
        NotDifferentiable, match="residual must depend on x through torch operations, got a result without"
    ):
        least_squares(residual, RAT.starts[1])


def test_branches_and_assignments_are_no_obstacle():
    def residual(b):
        r = torch.zeros_like(RAT.y)
        for i in range(len(RAT.y)):
            r[i] = RAT.residual(b)[i] if b[0] > 0 else RAT.residual(b)[i] + 0.0
        return r

    solved(residual)


def test_jacobians_of_the_user():
    derivative = torch.func.jacrev(RAT.residual)
    exact = solved(RAT.residual)
    for jacobian in (derivative, lambda b: from_matrix(derivative(b)), lambda b: derivative(b).numpy()):
        s = solved(RAT.residual, jacobian=jacobian)
        assert torch.allclose(s.x, exact.x, rtol=1e-10)
    with pytest.raises(ValueError, match=r"jacobian must have shape \(15, 4\), got \(14, 4\)"):
        least_squares(RAT.residual, RAT.starts[1], jacobian=lambda b: derivative(b)[:14])
    with pytest.raises(TypeError, match="jacobian must return a matrix, a dict of blocks or an operator, got float"):
        least_squares(RAT.residual, RAT.starts[1], jacobian=lambda b: 1.0)


def test_a_dict_of_blocks_from_the_user():
    start = {"size": RAT.starts[1][0], "shape": RAT.starts[1][1:]}

    def joined(b):
        return torch.cat([b["size"][None], b["shape"]])

    def jacobian(b):
        J = torch.func.jacrev(RAT.residual)(joined(b))
        return {"shape": J[:, 1:], "size": J[:, 0]}

    for given in ("auto", jacobian):
        s = least_squares(lambda b: {"r": RAT.residual(joined(b))}, start, jacobian=given)
        assert isinstance(s.x, dict)
        assert list(s.x) == ["size", "shape"]
        assert RAT.digits(joined(s.x)) > 10


def test_rows_where_there_is_no_second_derivative():
    y = torch.tensor([3.0, 7.0, 20.0], dtype=F64)
    t = torch.arange(1, 4)
    s = least_squares(lambda x: Once.apply(x[0] * t) - y, torch.ones(1, dtype=F64))
    assert s.converged
    assert s.method == "levenberg-marquardt, dense Jacobian by rows"
    assert float(s.x) == pytest.approx(float(least_squares(lambda x: (x[0] * t).exp() - y, s.x).x))


def test_more_parameters_than_residuals():
    s = least_squares(lambda x: (x * torch.arange(1.0, 4.0)).sum()[None] - 5, torch.zeros(3, dtype=F64))
    assert s.converged
    assert s.rank == 1
    assert s.null_directions is not None
    assert s.null_directions.shape == (3, 2)
    assert s.covariance is None
    assert s.residual < 1e-14


def test_bad_values_at_the_start_have_a_sentence():
    with pytest.raises(NonFinite, match=r"residual must be finite at x0, got nan in entry 1 \(1 of 2 are not finite\)"):
        least_squares(lambda x: torch.stack([x[0], x[0].log()]), torch.tensor([-1.0]))
    with pytest.raises(NonFinite, match="the Jacobian must be finite at x0"):
        least_squares(lambda x: x.abs().sqrt(), torch.zeros(2))
    with pytest.raises(ValueError, match="residual must have at least one entry, got an empty tensor"):
        least_squares(lambda x: x[:0], torch.ones(2))
    with pytest.raises(TypeError, match=r"residual must be real, got a complex tensor; return torch.view_as_real"):
        least_squares(lambda x: x * 1j, torch.ones(2))
    with pytest.raises(TypeError, match="residual must return a tensor or a dict of tensors, got str"):
        least_squares(lambda x: "r", torch.ones(2))


def test_a_residual_in_lower_precision_than_its_parameters_is_solved_to_that():
    t = torch.arange(1.0, 4.0)
    s = least_squares(lambda x: (x[0] * t).exp() - torch.tensor([3.0, 7.0, 20.0]), torch.ones(1, dtype=F64))
    assert s.converged, s.message


@pytest.mark.parametrize("factor", [1e-170, 1e170])
@pytest.mark.parametrize("jacobian", ["auto", "3-point", "products"])
def test_residuals_whose_squares_have_no_numbers(factor, jacobian):
    s = least_squares(
        lambda x: factor * torch.stack([x[0] - 3, x[1] + 1, x[0] * x[1]]), torch.ones(2, dtype=F64), jacobian=jacobian
    )
    plain = least_squares(lambda x: torch.stack([x[0] - 3, x[1] + 1, x[0] * x[1]]), torch.ones(2, dtype=F64))
    assert s.converged, s.message
    assert torch.allclose(s.x, plain.x, rtol=1e-7)
    assert s.residual == pytest.approx(factor * plain.residual)


def test_length_does_not_overflow():
    assert length(torch.tensor([3e200, 4e200], dtype=F64)) == pytest.approx(5e200)
    assert length(torch.zeros(3)) == 0
    assert length(torch.zeros(0)) == 0


def test_differences_stay_inside_a_narrow_box():
    low, high = torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([1.0 + 1e-9, 2.0], dtype=F64)

    def residual(x):
        assert bool((x >= low).all())
        assert bool((x <= high).all())
        return torch.stack([x[0] * x[1] - 1.5, x[1] - 1])

    for jacobian in ("2-point", "3-point"):
        s = least_squares(residual, torch.tensor([1.0, 0.0], dtype=F64), bounds=(low, high), jacobian=jacobian)
        assert float(s.x[1]) == pytest.approx(1.25, abs=1e-6)
