import pytest
import torch

from frechet import from_diagonal, from_matrix
from frechet.analyze import outliers


def spectrum(*large, n=200, low=-0.2, high=1.0):
    return torch.cat([torch.tensor(large), torch.linspace(low, high, n - len(large))]).double()


@pytest.mark.parametrize("large", [(10.0,), (30.0, 25.0, 20.0), (9.0, 8.5, 8.4, 8.3, 8.2, 6.0)])
def test_outliers_and_bulk_are_those_of_the_dense_matrix(large):
    d = spectrum(*large)
    Q, _ = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    A = from_matrix(Q @ torch.diag(d) @ Q.T, facts="symmetric")
    found = outliers(A, seed=0, rtol=1e-4, probes=8)
    bulk = d[len(large) :]
    assert found.count == len(large)
    assert found.values.tolist() == pytest.approx(large, rel=1e-4)
    assert found.edge == pytest.approx(1, rel=1e-3)
    assert found.gap == pytest.approx(large[-1], rel=1e-3)
    assert found.gap > 2 * found.next_gap
    assert found.scale == pytest.approx(float(bulk.square().mean().sqrt()), rel=0.1)
    assert found.share == pytest.approx(sum(large) / float(d.sum()), rel=0.1)
    assert found.negative == pytest.approx(float((bulk < 0).double().mean()), abs=0.05)
    assert found.products > 0


def test_a_tail_without_outliers_has_no_gap():
    found = outliers(from_diagonal(0.9 ** torch.arange(100, dtype=torch.float64)), seed=0, rtol=1e-6)
    assert found.gap == pytest.approx(1 / 0.9, rel=1e-3)
    assert found.next_gap == pytest.approx(1 / 0.9, rel=1e-3)


def test_bad_requests():
    with pytest.raises(ValueError, match="at least two of the 21 largest eigenvalues must be positive, got 0"):
        outliers(from_diagonal(-torch.arange(1.0, 101)), seed=0)
    with pytest.raises(ValueError, match="most must lie between 1 and n - 2 = 8, got 20"):
        outliers(from_diagonal(torch.ones(10)), seed=0)
