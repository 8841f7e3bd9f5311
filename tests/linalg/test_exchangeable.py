from fractions import Fraction

import pytest
import torch

from frechet.linalg._exchangeable import second_directions, unit_columns, variance_of_mean


def test_second_directions_are_the_orthogonal_parts():
    S = unit_columns(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    V = second_directions(S, 6)
    for i in range(6):
        for j in range(6):
            part = S[:, j] - S[:, i] * (S[:, i] @ S[:, j])
            expected = part / part.norm() if i != j else torch.zeros(6, dtype=torch.float64)
            assert torch.allclose(V[i, :, j], expected, atol=1e-13)


@pytest.mark.parametrize("seed", range(20))
def test_nearly_parallel_directions_keep_their_digits(seed):
    # two vectors of entries of size e^2, e, 1, as duals of a sketch with three scales have; exact in rationals
    e = Fraction(1, 10**7)
    a, b = ([n * s / 7 for n, s in zip(row, (e * e, e, Fraction(1)), strict=True)] for row in _digits(seed))
    c = sum(x * y for x, y in zip(a, b, strict=True)) / sum(x * x for x in a)
    part = torch.tensor([float(y - c * x) for x, y in zip(a, b, strict=True)], dtype=torch.float64)
    S = unit_columns(torch.tensor([[float(x), float(y)] for x, y in zip(a, b, strict=True)], dtype=torch.float64))
    assert float((second_directions(S, 2)[0, :, 1] - part / part.norm()).abs().max()) < 1e-14


def _digits(seed):
    return torch.randint(1, 1000, (2, 3), generator=torch.Generator().manual_seed(seed)).tolist()


def test_fewer_pairs_than_probes_use_the_first_ones():
    S = unit_columns(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    assert torch.allclose(second_directions(S, 3), second_directions(S, 5)[:3, :, :3])


def test_unit_columns_leave_zero_columns_alone():
    assert torch.equal(unit_columns(torch.tensor([[0.0, 3.0], [0.0, 4.0]])), torch.tensor([[0.0, 0.6], [0.0, 0.8]]))


def test_variance_of_independent_estimates_is_that_of_their_mean():
    x = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    unchanged = x.expand(3, 3).clone()  # leaving a probe out changes no other estimate
    assert torch.isclose(variance_of_mean(x, unchanged), x.var() / 3)


def test_variance_is_unbiased_for_estimates_that_share_probes():
    # e_i = z_i sum_{j != i} z_j / (k - 1): mean 0, Var(mean) = 2 / (k (k - 1)), Cov(e_i, e_j) = 1 / (k - 1)^2
    k, trials = 6, 100_000
    z = torch.randn(trials, k, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    total = z.sum(1, keepdim=True)
    e = z * (total - z) / (k - 1)
    # [i, j]: estimate j without probe i, an average over the k - 2 others
    left = z[:, None, :] * (total - z)[:, None, :] - z[:, None, :] * z[:, :, None]
    left = left / (k - 2)
    left.diagonal(dim1=1, dim2=2).zero_()
    d = (e[:, None, :] - left) * (1 - torch.eye(k, dtype=torch.float64))
    unclamped = e.var(1) / k + (d * d.transpose(1, 2)).sum((1, 2)) / (k * (k - 1))
    true = 2 / (k * (k - 1))
    error = float(unclamped.std()) / trials**0.5
    assert abs(float(unclamped.mean()) - true) < 4 * error
    assert float((e.var(1) / k).mean()) < true - 20 * error  # the sample variance alone is too small
    cautious = torch.stack([variance_of_mean(a, b) for a, b in zip(e[:1000], left[:1000], strict=True)])
    assert bool((cautious >= unclamped[:1000]).all())
    assert float(cautious.mean()) < 2 * true
