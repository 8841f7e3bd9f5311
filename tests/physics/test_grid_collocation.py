"""Gaussian processes on grids: the equation, few iterations on every grid, and no matrix of all pairs."""

import pytest
import torch

from frechet.errors import NonFinite, NotConverged
from frechet.physics import grid_collocation, operator_collocation

F64 = torch.float64
SAME = (None, None)


def bent(u):
    return torch.func.grad(torch.func.grad(u))


def slope(u):
    return torch.func.grad(u)


def gauss(width):
    return lambda x, y: torch.exp(-width * (x - y) ** 2)


def line(n, a=0.0, b=1.0):
    return torch.linspace(a, b, n, dtype=F64)


def waves(k):
    return lambda x, y: torch.sin(k * x)[:, None] * torch.cos(k * y)


def poisson(n, k, width, **options):
    """The solution of u_xx + u_yy = f with the values of a wave on the sides."""
    x, u = line(n), waves(k)
    inside, ends = x[1:-1], x[[0, -1]]
    conditions = [
        ([(bent, None), (None, bent)], (inside, inside), -2 * k * k * u(inside, inside)),
        ([SAME], (ends, x), u(ends, x)),
        ([SAME], (x, ends), u(x, ends)),
    ]
    return grid_collocation([gauss(width)] * 2, conditions, **options)


def relative(s, u, n):
    x = line(n)
    return float((s(x, x) - u(x, x)).norm() / u(x, x).norm())


@pytest.mark.parametrize(("k", "width"), [(6.0, 8.0), (20.0, 50.0), (30.0, 100.0)])
def test_iterations_do_not_depend_on_the_grid(k, width):
    counts = []
    for n in (80, 160, 240):  # grids that resolve the kernel
        s = poisson(n, k, width)
        counts.append(s.solution.iterations)
        assert relative(s, waves(k), 2 * n + 1) <= 1e-5
    assert max(counts) <= 40


def test_many_points_are_no_burden():
    """160 000 points, whose covariance matrix would fill 200 gigabytes, and a solution with 16 periods an axis."""
    s = poisson(400, 100.0, 800.0)
    assert relative(s, waves(100.0), 333) <= 1e-5
    assert s.solution.iterations <= 40


def test_it_agrees_with_the_process_with_the_matrix_of_all_pairs():
    k, width, n = 3.0, 3.0, 14
    x, u = line(n), waves(k)
    inside, edge = torch.cartesian_prod(x[1:-1], x[1:-1]), torch.cartesian_prod(x, x)
    edge = edge[((edge == 0) | (edge == 1)).any(1)]
    value = lambda z: torch.sin(k * z[..., 0]) * torch.cos(k * z[..., 1])  # noqa: E731
    dense = operator_collocation(
        lambda a, b: torch.exp(-width * (a - b).square().sum()),
        [
            (lambda u: lambda z: torch.func.hessian(u)(z).trace(), inside, -2 * k * k * value(inside)),
            (lambda u: u, edge, value(edge)),
        ],
        jitter=1e-11,
    )
    fine = line(21)
    right = dense(torch.cartesian_prod(fine, fine)).view(21, 21)
    found = poisson(n, k, width)(fine, fine)
    assert float((found - u(fine, fine)).abs().max()) <= 1e-5
    assert float((found - right).abs().max()) <= 1e-5


def test_misfits_are_those_of_the_function_that_comes_back():
    s, x = poisson(20, 5.0, 6.0), line(20)
    point = lambda z: s(z[:1], z[1:])[0, 0]  # noqa: E731
    at = torch.stack([x[[3, 7]], x[[11, 5]]], 1)
    laplace = torch.stack([torch.func.hessian(point)(z).trace() for z in at])
    wanted = -50 * torch.stack([waves(5.0)(z[:1], z[1:])[0, 0] for z in at])
    assert float((laplace - wanted).abs().max()) <= s.misfits[0] * (1 + 1e-6)
    assert float((s(x[[0, -1]], x) - waves(5.0)(x[[0, -1]], x)).abs().max()) == pytest.approx(s.misfits[1], rel=1e-6)


def test_the_heat_equation_from_its_first_values():
    x, t = line(30), line(30)
    u = lambda x, t: torch.sin(2 * x)[:, None] * torch.exp(-4 * t)  # noqa: E731
    minus = lambda u: lambda t: -slope(u)(t)  # noqa: E731
    inside, ends = x[1:-1], x[[0, -1]]
    s = grid_collocation(
        [gauss(4.0)] * 2,
        [
            ([(bent, None), (None, minus)], (inside, t[1:]), torch.zeros(28, 29, dtype=F64)),
            ([SAME], (ends, t), u(ends, t)),
            ([SAME], (x, t[:1]), u(x, t[:1])),
        ],
    )
    assert float((s(x, t) - u(x, t)).abs().max()) <= 1e-4


def test_three_axes_a_reaction_and_slopes_at_a_side():
    x = line(16)
    u = lambda x, y, z: torch.sin(2 * x)[:, None, None] * torch.cos(y)[:, None] * torch.exp(-z)  # noqa: E731
    inside, ends, no = x[1:-1], x[[0, -1]], (None, None, None)
    terms = [(bent, None, None), (None, bent, None), (None, None, bent), no]
    s = grid_collocation(
        [gauss(3.0)] * 3,
        [
            (terms, (inside, inside, inside), -3 * u(inside, inside, inside)),
            ([no], (ends, x, x), u(ends, x, x)),
            ([no], (x, ends, x), u(x, ends, x)),
            ([no], (x, x, x[:1]), u(x, x, x[:1])),
            ([(None, None, slope)], (x, x, x[-1:]), -u(x, x, x[-1:])),
        ],
    )
    assert float((s(x, x, x) - u(x, x, x)).abs().max()) <= 1e-4


def test_one_axis_is_an_ordinary_equation():
    x, k = line(400), 100.0
    values = torch.sin(k * x)
    s = grid_collocation(
        [gauss(600.0)], [([(bent,)], (x[1:-1],), -k * k * values[1:-1]), ([(None,)], (x[[0, -1]],), values[[0, -1]])]
    )
    assert float((s(x) - values).norm() / values.norm()) <= 1e-5


def test_too_few_iterations_leave_what_was_found():
    with pytest.raises(NotConverged, match=r"lsmr must converge, got .*max_iterations.* after 3 iterations") as caught:
        poisson(20, 5.0, 8.0, max_iterations=3)
    assert caught.value.result.solution.iterations == 3
    assert caught.value.result(line(4), line(4)).shape == (4, 4)


X = line(5)


@pytest.mark.parametrize(
    ("kernels", "conditions", "error", "told"),
    [
        ([], [], ValueError, "kernels and conditions must be given"),
        ([gauss(1.0)], [([SAME], (X,), X)], ValueError, r"condition 0 must have 1 operators a term .*, got \[2\]"),
        ([gauss(1.0)] * 2, [([SAME], (X, X), X)], ValueError, r"on their grid, got \[\(5,\), \(5,\)\] and \(5,\)"),
        ([gauss(1.0)], [([(None,)], (X,), X / 0)], NonFinite, "values of condition 0 must be finite"),
        ([lambda x, y: -gauss(1.0)(x, y)], [([(None,)], (X,), X)], ValueError, "kernel of axis 0 must be positive def"),
        ([lambda x, y: (x - y).log()], [([(None,)], (X,), X)], NonFinite, "kernel of axis 0 must be finite"),
        ([lambda x, y: (-(x - y).abs().sqrt()).exp()], [([(bent,)], (X,), X)], NonFinite, "derivatives of the kernels"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_told(kernels, conditions, error, told):
    with pytest.raises(error, match=told):
        grid_collocation(kernels, conditions)
