import math

import pytest
import torch

from counting import counting
from frechet.operators._constructors import from_matrix
from frechet.optimize._constrained.projected_cg import projected_cg
from frechet.optimize._constrained.projection import rows_of
from spectra import F64, gaussian

N, M = 10, 3
A = gaussian(N * M).reshape(M, N)
ROWS = rows_of(from_matrix(A))
ROOT = gaussian(N * N).reshape(N, N)
B = ROOT @ ROOT.T + torch.eye(N, dtype=F64)
G = gaussian(N)


def test_without_a_ball_it_solves_the_kkt_system():
    K = torch.cat([torch.cat([B, A.T], 1), torch.cat([A, torch.zeros(M, M, dtype=F64)], 1)])
    exact = torch.linalg.solve(K, torch.cat([-G, torch.zeros(M, dtype=F64)]))[:N]
    t = projected_cg(from_matrix(B, facts="symmetric"), G, ROWS, radius=math.inf, rtol=1e-12)
    assert torch.allclose(t.p, exact, atol=1e-9)
    assert t.model == pytest.approx(float(G @ exact + 0.5 * exact @ B @ exact))
    assert t.curvature is None
    assert not t.on_ball


def test_every_step_lies_in_the_null_space_the_ball_and_the_box():
    high = torch.full((N,), 0.05, dtype=F64)
    for radius in (0.01, 0.1, 1.0):
        t = projected_cg(from_matrix(B, facts="symmetric"), G, ROWS, radius=radius, low=-high, high=high)
        assert float((A @ t.p).abs().max()) < 1e-12
        assert float(t.p.square().sum()) <= radius**2 * (1 + 1e-12)
        assert bool((t.p.abs() <= high * (1 + 1e-12)).all())
        assert t.model < 0


def test_curvature_downwards_is_followed_to_the_ball_and_handed_back():
    bent = from_matrix(B - 40 * torch.eye(N, dtype=F64), facts="symmetric")
    t = projected_cg(bent, G, ROWS, radius=2.0)
    assert t.on_ball
    assert float(t.p.square().sum()) == pytest.approx(4.0)
    assert t.curvature is not None
    assert float(t.curvature @ (bent @ t.curvature)) < 0
    assert float((A @ t.curvature).abs().max()) < 1e-12


def test_products_are_at_most_the_dimension_of_the_null_space_in_exact_arithmetic():
    counted, count = counting(from_matrix(B, facts="symmetric"))
    t = projected_cg(counted, G, ROWS, radius=math.inf, rtol=1e-8)
    assert count.total == t.iterations <= N - M + 1


def test_a_gradient_in_the_range_of_the_rows_asks_for_nothing():
    t = projected_cg(from_matrix(B, facts="symmetric"), A.T @ gaussian(M), ROWS, radius=1.0, atol=1e-12)
    assert t.iterations == 0
    assert not t.p.any()
