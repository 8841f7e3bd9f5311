import pytest
import torch
from scipy.optimize import linprog, minimize

from frechet.operators._constructors import from_callable, from_matrix
from frechet.optimize._nonsmooth.convex import Convex, convex_function
from frechet.optimize._nonsmooth.prox_step import prox_step
from frechet.space import euclidean
from spectra import F64, gaussian

HALF_SQUARE = Convex(lambda z: z.square().sum() / 2, lambda z, s: z / (1 + s))


def step_of(h, c, M, t, accuracy=1e-6, y=None):
    y = torch.zeros(len(c), dtype=F64) if y is None else y
    return prox_step(h, c, from_matrix(M), t, y, 1.0, accuracy, 1e-15)


@pytest.mark.parametrize("name", ["l1", "huber", "max"])
@pytest.mark.parametrize(("m", "n"), [(30, 5), (5, 30), (1, 1), (12, 12)])
@pytest.mark.parametrize("t", [0.01, 1.0, 100.0])
def test_the_gap_bounds_the_distance_from_the_minimum(name, m, n, t):
    h, M, c = convex_function(name), gaussian(m, n) / max(m, n) ** 0.5, gaussian(m, seed=1)
    found = step_of(h, c, M, t, accuracy=0.3)
    exact = step_of(h, c, M, t, accuracy=1e-7, y=found.y)

    def model(d):
        return float(h.value(c + M @ d)) + float(d.square().sum()) / (2 * t)

    assert found.model + found.quadratic == pytest.approx(model(found.d), rel=1e-12)
    assert model(found.d) - model(exact.d) <= found.gap + 1e-12
    assert found.gap <= max(0.09 * found.quadratic, 1e-13)
    assert float((found.d - exact.d).square().sum()) <= 2 * t * (found.gap**0.5 + exact.gap**0.5) ** 2 + 1e-13
    for seed in range(50):
        for scale in (1.0, 1e-3):
            assert model(exact.d + scale * gaussian(n, seed=seed)) >= model(exact.d) - exact.gap - 1e-12


def test_the_half_square_is_a_damped_least_squares_step():
    M, c, t = gaussian(20, 6), gaussian(20, seed=1), 0.7
    d = -torch.linalg.solve(M.T @ M + torch.eye(6, dtype=F64) / t, M.T @ c)
    assert torch.allclose(step_of(HALF_SQUARE, c, M, t, accuracy=1e-9).d, d, rtol=1e-7, atol=1e-9)


def test_an_infinite_t_is_a_linear_program():
    M, c = gaussian(25, 4), gaussian(25, seed=1)
    found = step_of(convex_function("l1"), c, M, 1e4, accuracy=1e-6)
    A = torch.cat([torch.cat([M, -M]), -torch.cat([torch.eye(25), torch.eye(25)]).double()], 1)
    best = linprog([0] * 4 + [1] * 25, A_ub=A.numpy(), b_ub=torch.cat([-c, c]).numpy(), bounds=(None, None))
    assert found.model == pytest.approx(best.fun, abs=1e-3)


def test_the_dual_point_is_feasible_and_gives_the_step():
    M, c, t = gaussian(30, 6), gaussian(30, seed=1), 0.5
    found = step_of(convex_function("l1"), c, M, t, accuracy=1e-8)
    assert float(found.y.abs().max()) <= 1 + 1e-7  # sigma times a difference
    assert torch.allclose(found.d, -t * M.T @ found.y, atol=1e-7)
    dual = float(c @ found.y) - t / 2 * float((M.T @ found.y).square().sum())
    assert found.model + found.quadratic - dual <= found.gap + 1e-6


def test_agrees_with_a_general_minimizer():
    M, c, t = gaussian(15, 3), gaussian(15, seed=1), 0.2
    h = convex_function("huber")
    found = step_of(h, c, M, t, accuracy=1e-9)

    def model(d):
        d = torch.from_numpy(d)
        return float(h.value(c + M @ d)) + float(d.square().sum()) / (2 * t)

    best = minimize(model, found.d.numpy() + 0.1, method="BFGS", options={"gtol": 1e-8})
    assert torch.allclose(found.d, torch.from_numpy(best.x), atol=1e-5)


def test_zero_jacobian_gives_no_step():
    found = step_of(convex_function("l1"), gaussian(5), torch.zeros(5, 3, dtype=F64), 1.0)
    assert torch.equal(found.d, torch.zeros(3, dtype=F64))


def test_a_formed_matrix_and_its_products_give_the_same_step():
    M, c, t = gaussian(60, 8), gaussian(60, seed=1), 0.5
    h, y = convex_function("l1"), torch.zeros(60, dtype=F64)
    free = from_callable(lambda V: M @ V, euclidean(8, F64), euclidean(60, F64), rmatmat=lambda U: M.T @ U)
    formed, found = (prox_step(h, c, J, t, y, 8.0, 1e-6, 1e-15) for J in (from_matrix(M), free))
    assert torch.allclose(formed.d, found.d, atol=1e-9)
    assert formed.products < found.products


def test_a_proximal_map_without_a_rule_for_batches_will_do():
    class Shrink(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.kept = z.abs() > 1.0
            return z - z.clamp(-1.0, 1.0)

        @staticmethod
        def backward(ctx, g):
            return g * float(ctx.kept.any()) * ctx.kept  # float() of a batched tensor fails

    h = convex_function("l1")
    odd = Convex(h.value, lambda z, s: Shrink.apply(z / s) * s)
    M, c = gaussian(20, 4), gaussian(20, seed=1)
    assert torch.allclose(step_of(odd, c, M, 1.0).d, step_of(h, c, M, 1.0).d, atol=1e-6)
