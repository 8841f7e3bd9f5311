import math

import pytest
import torch

from frechet.train import MinimaxState, is_local_minimax, minimax_step

F64 = torch.float64
METHODS = ["extragradient", "past", "optimistic", "reflected"]


def bilinear(x, y):
    return (x * y).sum()


def run(f, z, steps, **options):
    x, y, state = z, z.clone(), MinimaxState()
    for _ in range(steps):
        x, y, state = minimax_step(f, x, y, state, **options)
    return float(torch.cat([x, y]).norm())


@pytest.mark.parametrize("method", METHODS)
def test_the_bilinear_game_where_plain_steps_spiral_out_is_solved(method):
    z = torch.ones(1, dtype=F64)
    assert run(bilinear, z, 300, lr=0.3, method=method) < 1e-4
    x, y = z, z.clone()
    for _ in range(200):
        x, y = x - 0.3 * y, y + 0.3 * x
    assert float(x.abs() + y.abs()) > 1e3


@pytest.mark.parametrize("method", METHODS)
def test_steps_are_their_formulas(method):
    def f(x, y):
        return (torch.sin(x) * y).sum() - y.square().sum() / 2

    def V(z):
        return torch.stack([torch.cos(z[0]) * z[1], z[1] - torch.sin(z[0])])

    z = torch.tensor([0.7, -0.3], dtype=F64)
    c = torch.tensor([0.05, 0.1], dtype=F64)
    x, y, state = z[:1], z[1:], MinimaxState()
    last, slopes = z, None
    for _ in range(4):
        x, y, state = minimax_step(f, x, y, state, lr=0.1, ratio=2.0, method=method)
        before = z
        if method == "extragradient":
            z = z - c * V(z - c * V(z))
        elif method == "past":
            slopes = V(z - c * (V(z) if slopes is None else slopes))
            z = z - c * slopes
        elif method == "optimistic":
            now = V(z)
            z = z - 2 * c * now + c * (now if slopes is None else slopes)
            slopes = now
        else:
            z = z - c * V(2 * z - last)
        last = before
        torch.testing.assert_close(torch.cat([x, y]), z)


@pytest.mark.parametrize(("A", "verdict"), [(-1.0, "yes"), (-6.0, "no"), (-4.0, "undecided")])
def test_a_closed_form_with_curvature_of_either_sign(A, verdict):
    # max over y of A x^2 / 2 + 2 x y - y^2 / 2 is (A + 4) x^2 / 2
    o = torch.zeros(1, dtype=F64)
    found = is_local_minimax(lambda x, y: (A * x**2 / 2 + 2 * x * y - y**2 / 2).sum(), o, o)
    assert found.verdict == verdict
    assert found.outer == pytest.approx(A + 4)


def degenerate(a):
    """f_yy = diag(-1, 0); the second y sees x_2 alone, so that x_2 must not count."""

    def f(x, y):
        return a * x[0] ** 2 / 2 - 5 * x[1] ** 2 + 2 * x[0] * y[0] + x[1] * y[1] - y[0] ** 2 / 2

    return f


@pytest.mark.parametrize(("a", "verdict"), [(-1.0, "undecided"), (-6.0, "no")])
def test_a_singular_inner_problem_is_judged_on_the_directions_that_count(a, verdict):
    o = torch.zeros(2, dtype=F64)
    found = is_local_minimax(degenerate(a), o, o)
    # the plain Schur complement has the eigenvalue -10, of x_2
    assert found.outer == pytest.approx(a + 4)
    assert found.verdict == verdict


def test_points_that_are_not_stationary_or_not_maxima_of_y_are_none():
    o, i = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    assert is_local_minimax(lambda x, y: (x**2 - y**2).sum(), i, o).verdict == "no"
    found = is_local_minimax(lambda x, y: (x**2 + y**2).sum(), o, o)
    assert found.verdict == "no"
    assert found.inner == pytest.approx(2.0)
    assert is_local_minimax(lambda x, y: (x * y).sum(), o, o).outer == math.inf


def test_two_time_scales_leave_what_is_no_minimax_point_and_keep_what_is():
    z = torch.full((1,), 0.01, dtype=F64)

    def game(A):
        return lambda x, y: (A * x**2 / 2 + 2 * x * y - y**2 / 2).sum()

    assert run(game(-1.0), z, 4000, lr=0.2, ratio=100.0) < 0.01
    assert run(game(-6.0), z, 4000, lr=0.2, ratio=100.0) > 1.0


def test_wrong_arguments_are_named():
    z = torch.ones(2)
    with pytest.raises(ValueError, match="minimax_step: method must be"):
        minimax_step(bilinear, z, z, MinimaxState(), lr=0.1, method="plain")
    with pytest.raises(ValueError, match=r"minimax_step: lr and ratio must be numbers > 0, got 0.0 and 1.0"):
        minimax_step(bilinear, z, z, MinimaxState(), lr=0.0)
    with pytest.raises(ValueError, match=r"minimax_step: f must return a scalar, got shape \(2,\)"):
        minimax_step(lambda x, y: x * y, z, z, MinimaxState(), lr=0.1)
