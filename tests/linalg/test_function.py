import math

import pytest
import torch

from counting import counting
from frechet.errors import NonFinite, NotConverged
from frechet.linalg._function import apply_function
from frechet.linalg._result import Status
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix, identity
from frechet.space import euclidean

FUNCTIONS = {
    "exp": torch.exp,
    "sqrt": torch.sqrt,
    "inverse root": lambda x: x**-0.5,
    "log": torch.log,
    "inverse": lambda x: 1 / x,
    "cube": lambda x: x**3,
}


def draw(n, seed=0):
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("values", ["linear", "geometric", "outliers"])
@pytest.mark.parametrize("rtol", [1e-3, 1e-8])
def test_error_is_below_the_tolerance_and_the_reported_one(name, values, rtol):
    f = FUNCTIONS[name]
    d = {
        "linear": torch.linspace(0.1, 10, 2000, dtype=torch.float64),
        "geometric": torch.logspace(-3, 0, 2000, dtype=torch.float64),
        "outliers": torch.cat([torch.linspace(0.5, 1.5, 1990).double(), torch.logspace(0.5, 1.5, 10).double()]),
    }[values]
    b = draw(2000)
    S = apply_function(from_diagonal(d), b, f, rtol=rtol, steps=400)
    exact = f(d) * b
    error = float((S.x - exact).norm())
    assert S.status is Status.CONVERGED
    assert error <= 3 * rtol * float(exact.norm())
    assert error <= 3 * S.residual + 1e-13 * float(exact.norm())
    assert S.products < 400


def test_estimate_is_not_hopelessly_pessimistic():
    d = torch.linspace(0.1, 10, 2000, dtype=torch.float64)
    b = draw(2000)
    S = apply_function(from_diagonal(d), b, torch.sqrt, rtol=1e-6)
    needed = next(
        m for m in range(1, 200)
        if (apply_function(from_diagonal(d), b, torch.sqrt, rtol=0.0, steps=m).x - d.sqrt() * b).norm()
        <= 1e-6 * (d.sqrt() * b).norm()
    )  # fmt: skip
    assert needed <= S.products <= 1.5 * needed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_depth_is_exact(dtype):
    M = torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    A = from_matrix(((M + M.T) / 4).to(dtype), facts="symmetric")
    b = draw(20).to(dtype)
    S = apply_function(A, b, torch.exp, rtol=0.0)
    exact = torch.linalg.matrix_exp(A.dense().double()) @ b.double()
    assert float((S.x.double() - exact).norm() / exact.norm()) < 50 * torch.finfo(dtype).eps
    assert S.x.dtype == dtype
    assert S.converged


def test_polynomial_of_degree_m_minus_one_is_exact_in_m_steps_and_products_are_counted():
    d = torch.linspace(-1, 2, 50, dtype=torch.float64)
    A, count = counting(from_diagonal(d))
    S = apply_function(A, draw(50), lambda x: x**3 - x, steps=4)
    assert torch.allclose(S.x, (d**3 - d) * draw(50), atol=1e-13)
    assert (S.products, S.iterations, count.total) == (4, 4, 4)
    wrong = apply_function(A, draw(50), lambda x: x**3 - x, steps=3)
    assert float((wrong.x - S.x).norm()) > 0.1


def test_invariant_space_ends_early_and_float32_reaches_its_rounding():
    d = torch.tensor([1.0, 4.0, 9.0]).repeat(1000)
    b = torch.ones(3000)
    S = apply_function(from_diagonal(d), b, torch.sqrt, rtol=0.0)
    assert (S.status, S.products) == (Status.CONVERGED, 3)
    assert torch.allclose(S.x, d.sqrt(), rtol=2e-6)
    assert float((S.x - d.sqrt()).norm()) <= 20 * S.residual


def test_square_root_twice_is_the_operator():
    A = from_diagonal(torch.linspace(1, 3, 100, dtype=torch.float64))
    b = draw(100)
    once = apply_function(A, b, torch.sqrt, rtol=1e-12).x
    assert torch.allclose(apply_function(A, once, torch.sqrt, rtol=1e-12).x, A @ b, rtol=1e-10)


def test_semidefinite_rounding_enters_as_zero():
    U = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    A = from_matrix(U @ U.T, facts="positive_semidefinite")
    S = apply_function(A, draw(200).float(), torch.sqrt, steps=50)
    theta, Q = torch.linalg.eigh((U @ U.T).double())
    exact = Q @ (theta.clamp_min(0).sqrt() * (Q.T @ draw(200).float().double()))
    assert float((S.x - exact).norm() / exact.norm()) < 1e-3


def test_too_few_steps_say_so():
    d = torch.logspace(-4, 0, 500, dtype=torch.float64)
    S = apply_function(from_diagonal(d), draw(500), lambda x: x**-0.5, steps=20)
    assert S.status is Status.MAX_ITERATIONS
    true = float((S.x - d**-0.5 * draw(500)).norm())
    assert S.residual > 0.2 * true
    with pytest.raises(NotConverged, match="apply_function: stopped with status 'max_iterations'"):
        S.checked()


def test_edge_sizes():
    zero = apply_function(identity(euclidean(4)), torch.zeros(4), torch.exp)
    assert (zero.x.tolist(), zero.products, zero.status) == ([0.0] * 4, 0, Status.CONVERGED)
    one = apply_function(from_diagonal(torch.tensor([4.0])), torch.tensor([3.0]), torch.sqrt)
    assert one.x.tolist() == pytest.approx([6.0])
    same = apply_function(identity(euclidean(4)), torch.ones(4), torch.exp)
    assert (same.products, same.x.tolist()) == (1, pytest.approx([math.e] * 4))


def test_bad_arguments_are_named():
    A, b = from_diagonal(torch.tensor([-1.0, 2.0, 3.0])), torch.ones(3)
    cases = [
        (lambda: apply_function(from_matrix(torch.ones(3, 3)), b, torch.exp), "apply_function: A must be symmetric"),
        (lambda: apply_function(A, b, torch.exp, steps=0), "apply_function: steps must be a positive int, got 0"),
        (lambda: apply_function(A, b, torch.exp, rtol=-1.0), "apply_function: rtol must be non-negative, got -1.0"),
        (lambda: apply_function(A, b[:2], torch.exp), r"apply_function: b must have shape \(3,\), got \(2,\)"),
        (
            lambda: apply_function(A, b, torch.log),
            "f must be finite on the spectrum of A, got a NaN or an infinity at -",
        ),
        (lambda: apply_function(A, b, torch.sum), r"apply_function: f must keep the shape \(1,\), got \(\)"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"apply_function: b must be torch.float32, got torch.float64"):
        apply_function(A, b.double(), torch.exp)
    nan = from_callable(lambda V: V * math.nan, euclidean(5), facts="symmetric")
    with pytest.raises(NonFinite, match=r"apply_function: product 1 \(A @ v\) holds a NaN"):
        apply_function(nan, torch.ones(5), torch.exp)
