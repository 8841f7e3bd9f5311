import math

import pytest
import torch

from frechet.analyze import intrinsic_dimension, random_subspace
from frechet.space import euclidean


@pytest.mark.parametrize("n", [1, 5, 64, 100, 1000])
def test_columns_have_length_one_and_are_nearly_orthogonal(n):
    d = max(1, n // 4)
    P = random_subspace(euclidean(n, torch.float64), d, seed=0).dense()
    assert P.shape == (n, d)
    assert torch.allclose(P.square().sum(0), torch.ones(d, dtype=torch.float64))
    if n == 64:
        assert torch.allclose(P.T @ P, torch.eye(d, dtype=torch.float64))
    else:
        off = P.T @ P - torch.eye(d, dtype=torch.float64)
        assert float(off.abs().max()) < 6 / math.sqrt(n)


def test_a_quadratic_needs_as_many_directions_as_it_has():
    # |A (x0 + P z) - b| reaches 0 on a random d-dimensional subspace exactly where d is at least the rank of A
    rank, space = 12, euclidean(128, torch.float64)
    draw = torch.Generator().manual_seed(0)
    A = torch.randn(rank, 128, dtype=torch.float64, generator=draw)
    b = torch.randn(rank, dtype=torch.float64, generator=draw)

    def score(P, seed):
        AP = A @ P.dense()
        z = torch.linalg.lstsq(AP, b[:, None]).solution[:, 0]
        return 1.0 if float((AP @ z - b).norm()) < 1e-8 else 0.0

    found = intrinsic_dimension(score, space, baseline=1.0, first=2)
    assert found.dimension == rank
    assert found.band == (rank - 1, rank)
    assert found.dimensions[:3] == (2, 4, 8)
    assert found.scores.shape == (len(found.dimensions), 3)


def test_seeds_that_differ_make_a_band():
    found = intrinsic_dimension(
        lambda P, seed: float(P.shape[1] >= 50 + 20 * seed), euclidean(1000), baseline=1.0, fraction=0.6
    )
    low, high = found.band
    assert low < 50 <= found.dimension <= 77
    assert high is None  # the search stays near where the mean crosses
    never = intrinsic_dimension(lambda P, seed: 0.0, euclidean(64), baseline=1.0, first=3, most=40)
    assert never.dimension is None
    assert never.dimensions == (3, 6, 12, 24, 40)
    assert "up to 40" in never.message


def test_bad_requests():
    with pytest.raises(ValueError, match="d must lie between 1 and n = 8, got 9"):
        random_subspace(euclidean(8), 9, seed=0)
    with pytest.raises(ValueError, match="score must be a number, got nan at d = 10"):
        intrinsic_dimension(lambda P, seed: math.nan, euclidean(100), baseline=1.0)
    with pytest.raises(ValueError, match="needs 1 <= first <= most <= n = 8"):
        intrinsic_dimension(lambda P, seed: 1.0, euclidean(8), baseline=1.0)
    with pytest.raises(ValueError, match="a positive finite baseline"):
        intrinsic_dimension(lambda P, seed: 1.0, euclidean(80), baseline=-1.0)
