import math

import pytest
import torch
from scipy.optimize import root as scipy_root

from frechet.errors import NonFinite, NotConverged
from frechet.linalg._result import Status
from frechet.optimize._equations.root import root
from frechet.space import Space
from more_garbow_hillstrom import numbers

F64 = torch.float64


def broyden(x):
    zero = x.new_zeros(1)
    return (3 - 2 * x) * x + 1 - torch.cat([zero, x[:-1]]) - 2 * torch.cat([x[1:], zero])


def bratu(u):
    """-u'' = exp(u) on (0, 1), zero at the ends."""
    zero, h = u.new_zeros(1), 1 / (len(u) + 1)
    return (2 * u - torch.cat([zero, u[:-1]]) - torch.cat([u[1:], zero])) - h * h * u.exp()


def test_known_roots_and_scipys():
    s = root(lambda x: torch.stack([x[0] ** 2 + x[1] ** 2 - 1, x[0] - x[1]]), numbers(1, 0.5)).checked()
    assert s.x.tolist() == pytest.approx([0.5**0.5] * 2, rel=1e-12)
    s = root(broyden, -torch.ones(200, dtype=F64)).checked()
    theirs = scipy_root(lambda x: broyden(torch.from_numpy(x)).numpy(), -torch.ones(200, dtype=F64).numpy(), tol=1e-13)
    assert torch.allclose(s.x, torch.from_numpy(theirs.x), atol=1e-9)
    assert float(broyden(s.x).abs().max()) < 1e-10
    assert s.residual == pytest.approx(float(torch.linalg.vector_norm(broyden(s.x))))


def test_a_boundary_value_problem():
    s = root(bratu, torch.zeros(63, dtype=F64)).checked()
    # closed form: u = -2 log(cosh((x - 1/2) a / 2) / cosh(a / 4)), a = sqrt(2) cosh(a / 4)
    a = 1.5
    for _ in range(100):
        a = math.sqrt(2) * math.cosh(a / 4)
    assert float(s.x[31]) == pytest.approx(2 * math.log(math.cosh(a / 4)), rel=2e-4)  # to the square of the mesh


def test_forcing_terms_save_products():
    s = root(bratu, torch.zeros(63, dtype=F64))
    exact = 63 * s.iterations
    assert s.products < exact
    ratios = [b / a for a, b in zip(s.history[:-1], s.history[1:], strict=True)]
    assert min(ratios) < 1e-2  # superlinear at the end


def test_dicts_shapes_and_float32():
    s = root(lambda x: {"p": x["a"] - 1, "q": x["b"] ** 2 - 4}, {"a": torch.zeros(2, dtype=F64), "b": numbers(1)})
    assert s.x.tolist() == pytest.approx([1, 1, 2])
    s = root(lambda x: x**2 - 4, torch.ones(2, 2)).checked()
    assert s.x.shape == (2, 2)
    assert torch.allclose(s.x, torch.full((2, 2), 2.0))
    assert Space.of({"": s.x}).dtype == torch.float32


def test_steps_are_shortened_where_newton_overshoots_or_leaves_the_domain():
    assert float(root(torch.atan, numbers(10)).checked().x) == pytest.approx(0, abs=1e-9)
    assert float(root(torch.log, numbers(20)).checked().x) == pytest.approx(1)


def test_no_root_is_stagnated_and_a_root_at_the_start_is_one():
    s = root(lambda x: x**2 + 1, numbers(0.7))
    assert s.status is Status.STAGNATED
    assert s.iterations < 60
    with pytest.raises(NotConverged, match="root by newton-gmres"):
        s.checked()
    s = root(lambda x: x - 1, numbers(1))
    assert (s.status, s.iterations, s.products) == (Status.CONVERGED, 0, 0)


def test_bounds_choose_the_root():
    def cubic(x):
        return (x - 1) * (x - 2) * (x + 3)

    for low, high, wanted in [(1.5, 5, 2), (-9, -1, -3), (0, 1.2, 1)]:
        s = root(cubic, numbers((low + high) / 2), bounds=(low, high)).checked()
        assert float(s.x) == pytest.approx(wanted, rel=1e-10)
        assert "interior trust region" in s.message
    s = root(cubic, numbers(4), bounds=(3.0, 5.0))
    assert s.status is Status.STAGNATED
    assert float(s.x) == 3
    states = []
    root(cubic, numbers(4), bounds=(1.5, 5.0), observe=lambda state: bool(states.append(state)))
    assert states[0].residual == pytest.approx(float(cubic(numbers(4))))


def test_limits_stops_and_wrong_arguments():
    s = root(broyden, -torch.ones(20, dtype=F64), max_iterations=1)
    assert (s.status, s.iterations) == (Status.MAX_ITERATIONS, 1)
    s = root(broyden, -torch.ones(20, dtype=F64), observe=lambda s: s.iteration == 2)
    assert (s.status, s.iterations) == (Status.STOPPED, 2)
    with pytest.raises(NonFinite, match=r"root: F must be finite at x0, got norm\(F\) = nan"):
        root(torch.log, numbers(-1))
    with pytest.raises(
        ValueError, match="root: F must return as many numbers as x0 has, got 1 for 2; for other counts"
    ):
        root(lambda x: x[:1], numbers(1, 2))
    with pytest.raises(
        ValueError, match="root: F must return as many numbers as x0 has, got 1 for 2; for other counts"
    ):
        root(lambda x: x[:1], numbers(1, 2), bounds=(0.0, 3.0))
    with pytest.raises(TypeError, match="root: F must return a tensor or a dict of tensors, got float"):
        root(lambda x: 1.0, numbers(1, 2))
    with pytest.raises(ValueError, match="root: rtol must be a number >= 0, got -1"):
        root(broyden, numbers(1, 2), rtol=-1)


def trigonometric(x):
    """Trigonometric function of More, Garbow and Hillstrom; x = 0 is a root, on the lower bounds of the tests."""
    n = len(x)
    return n - torch.cos(x).sum() + torch.arange(1, n + 1, dtype=x.dtype) * (1 - torch.cos(x)) - torch.sin(x)


@pytest.mark.parametrize("n", [1, 4, 10])
@pytest.mark.parametrize("start", [0.1, 0.5, 1.0])
def test_the_message_between_bounds_says_what_the_status_says(n, start):
    s = root(trigonometric, torch.full((n,), start, dtype=F64), bounds=(0.0, 3.0))
    assert s.status in (Status.CONVERGED, Status.STAGNATED)
    assert ("is zero to the tolerance" in s.message) == s.converged
    assert ("no step reduces" in s.message or "no root" in s.message) == (not s.converged)
    low = root(lambda x: x * x + 1, torch.ones(n, dtype=F64), bounds=(-2.0, 2.0))
    assert low.status is Status.STAGNATED
    assert low.message.endswith("which is no root")
