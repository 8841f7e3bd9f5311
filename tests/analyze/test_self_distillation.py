import math

import pytest
import torch

from frechet.analyze import self_distillation


def problem(n=12, rank=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    F = torch.randn(n, rank, dtype=torch.float64, generator=draw)
    return F @ F.T, torch.randn(n, 2, dtype=torch.float64, generator=draw)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rank", [3, 12])
def test_the_path_is_that_of_fits_one_after_the_other(weight, rank):
    K, y = problem(rank=rank)
    c, n = 0.7, len(K)
    path = self_distillation(K, y, ridge=c, weight=weight, steps=5)
    shifted, fitted = K + c * torch.eye(n, dtype=torch.float64), y
    for t in range(6):
        target = y if t == 0 else weight * y + (1 - weight) * fitted
        alpha = torch.linalg.solve(shifted, target)
        fitted = K @ alpha
        assert torch.allclose(path.coefficients[t], alpha, rtol=1e-9, atol=1e-9)
        identity = torch.eye(n, dtype=torch.float64)
        traced = self_distillation(K, identity, ridge=c, weight=weight, steps=5).coefficients[t]
        assert float(path.parameters[t]) == pytest.approx(float((K @ traced).trace()), rel=1e-9)


def test_the_limit_is_ridge_regression_with_more_ridge():
    K, y = problem()
    path = self_distillation(K, y, ridge=0.7, weight=0.2, steps=400)
    assert path.limit_ridge == pytest.approx(3.5)
    ridge = torch.linalg.solve(K + 3.5 * torch.eye(12, dtype=torch.float64), y)
    assert torch.allclose(K @ path.limit, K @ ridge, atol=1e-10)
    assert torch.allclose(path.coefficients[-1], path.limit, atol=1e-10)
    assert math.isinf(self_distillation(K, y, ridge=1.0, weight=0.0).limit_ridge)


def test_one_target_and_bad_requests():
    K, y = problem()
    assert self_distillation(K, y[:, 0], ridge=1.0, weight=0.5).coefficients.shape == (11, 12, 1)
    with pytest.raises(ValueError, match=r"K must be \(n, n\) and y"):
        self_distillation(K[:3], y, ridge=1.0, weight=0.5)
    with pytest.raises(ValueError, match="K must be symmetric"):
        self_distillation(K + torch.triu(K), y, ridge=1.0, weight=0.5)
    with pytest.raises(ValueError, match="positive semidefinite, got the eigenvalue"):
        self_distillation(-K, y, ridge=1.0, weight=0.5)
    with pytest.raises(ValueError, match="a weight between 0 and 1"):
        self_distillation(K, y, ridge=1.0, weight=1.5)
