import pytest
import torch

from frechet.optimize._least_squares import gram_factor as module
from frechet.optimize._least_squares.damped_step import factored
from frechet.optimize._least_squares.gram_factor import GramFactor, is_wide
from frechet.optimize._least_squares.least_squares import problem_of
from frechet.optimize._least_squares.start import begin, first_linearization
from pinns import F64

M, N = 12, 40


def linearized(condition, seed=0):
    draw = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(k, M, dtype=F64, generator=draw)).Q for k in (M, N))
    A = (U * torch.logspace(0, -condition, M, dtype=F64)) @ V.T
    y = torch.randn(M, dtype=F64, generator=draw)
    problem, x = problem_of(lambda x: A @ x - y, torch.ones(N, dtype=F64), None, None, 1.0, "auto")
    return first_linearization(*begin(problem, x))[1]


def models(condition, held=0, shift=False):
    linear = linearized(condition)
    free = torch.arange(N) >= held
    scale = torch.linspace(1, 2, N, dtype=F64)
    added = torch.linspace(-1, 1, M, dtype=F64) if shift else None
    return GramFactor(linear, scale, free, added), factored(linear, scale, free, added), linear


@pytest.mark.parametrize("condition", [0, 3, 8, 14])
@pytest.mark.parametrize("held", [0, 7])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("damping", [0.0, 1e-15, 3e-10, 1e-6, 1.0])
def test_damped_steps_are_those_of_the_singular_values(condition, held, shift, damping):
    model, exact, linear = models(condition, held, shift)
    p, q = model.step(damping), exact.step(damping)
    assert float((p - q).norm()) <= 1e-4 * float(q.norm())
    assert model.predicted(linear, p) == pytest.approx(exact.predicted(linear, p))


@pytest.mark.parametrize("condition", [3, 14])
@pytest.mark.parametrize("radius", [1e-3, 0.1, 10.0, 1e4, 1e9])
def test_steps_within_a_radius(condition, radius):
    model, exact, _ = models(condition)
    p, damping = model.within(radius)
    q, wanted = exact.within(radius)
    assert damping == pytest.approx(wanted, rel=1e-3)
    assert float((p - q).norm()) <= 1e-3 * float(q.norm())


@pytest.mark.parametrize(("damping", "asked"), [(1e-6, 0), (1e-15, 1), (0.0, 1)])
def test_singular_values_come_where_squares_do_not_serve(monkeypatch, damping, asked):
    calls = []
    monkeypatch.setattr(module, "factored", lambda *a: calls.append(a) or factored(*a))
    model, _, _ = models(3)
    model.step(damping)
    model.step(damping)
    assert len(calls) == asked


def test_squares_alone_would_be_wrong():
    """The broken twin: without the exact factors small dampings give wrong steps."""
    model, exact, _ = models(12)
    p, q = model.squared.step(1e-22), exact.step(1e-22)
    assert float((p - q).norm()) > 1e-2 * float(q.norm())


def test_held_entries():
    model, exact, linear = models(3)
    free = torch.arange(N) >= 5
    held = torch.where(free, 0.0, torch.full((N,), 0.3, dtype=F64))
    p, q = (m.holding(linear, held, free).step(1e-3) for m in (model, exact))
    assert torch.allclose(p, q, rtol=1e-8, atol=1e-12)
    assert model.reduction == exact.reduction


@pytest.mark.parametrize(("shape", "wide"), [((1000, 2000), True), ((1000, 1999), False), ((10, 1000), False)])
def test_which_are_wide(shape, wide):
    assert is_wide(torch.empty(*shape)) is wide
