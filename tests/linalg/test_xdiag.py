import math

import pytest
import torch

from counting import counting
from frechet.linalg._diagonal import diagonal
from frechet.linalg._xdiag import PAIRED, ROWS, xdiag
from frechet.operators._constructors import from_callable
from frechet.space import euclidean


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def opaque(M, facts=()):
    return from_callable(
        lambda V: (V.T @ M.T).T, euclidean(M.shape[0], M.dtype), rmatmat=lambda U: (U.T @ M).T, facts=facts
    )


def symmetric(n, seed=0):
    M = random(n, n, seed=seed)
    return (M + M.T) / 2


def naive_xdiag(M, Omega, i, out):
    kept = [j for j in range(Omega.shape[1]) if j not in out]
    Q = torch.linalg.qr(M @ Omega[:, kept])[0]
    w = Omega[:, i]
    y = M @ w
    return (Q * (M.T @ Q)).sum(1) + w * (y - Q @ (Q.T @ y))


@pytest.mark.parametrize("facts", ["symmetric", ()])
def test_xdiag_equals_its_definition_by_leaving_probes_out(facts):
    n, k = 30, 7
    M = symmetric(n) if facts else random(n, n)
    A = opaque(M, facts)
    Omega = A.domain.random(range(k), 3)
    e = torch.stack([naive_xdiag(M, Omega, i, {i}) for i in range(k)])
    d = torch.stack([torch.stack([e[i] - naive_xdiag(M, Omega, i, {i, j}) for j in range(k)]) for i in range(k)])
    for i in range(k):
        d[i, i] = 0.0
    per_probe = (d * d.transpose(0, 1)).sum(1) / (k - 1)
    covariance = (per_probe.mean(0) + per_probe.std(0) / math.sqrt(k)).clamp(min=0.0)
    estimate = diagonal(A, seed=3, products=2 * k, method="xdiag", block=4)
    assert torch.allclose(estimate.value, e.mean(0))
    assert torch.allclose(estimate.standard_error, (e.var(0) / k + covariance).sqrt(), rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_a_low_rank_diagonal_is_exact_up_to_the_error_bar(rank, dtype):
    U = torch.linalg.qr(symmetric(50))[0][:, :rank]
    M = ((U * torch.arange(1.0, rank + 1, dtype=torch.float64)) @ U.T).to(dtype)
    A, count = counting(opaque(M, "symmetric"))
    estimate = diagonal(A, seed=0, products=16, method="xdiag", block=3)
    error = (estimate.value - M.diagonal()).abs()
    assert bool((error <= 1.96 * estimate.standard_error).all())
    assert float(estimate.standard_error.max()) <= 1e3 * torch.finfo(dtype).eps
    assert estimate.products == count.total


def test_rows_are_treated_alike_in_every_stretch_and_beyond_the_paired_probes():
    n, k = ROWS + 50, PAIRED + 3
    d = torch.linspace(1, 2, n, dtype=torch.float64)
    u = random(n, 1) / math.sqrt(n)
    A = from_callable(lambda V: (V.T * d).T + 5 * (u @ (u.T @ V)), euclidean(n, torch.float64), facts="symmetric")
    reading = xdiag(A, 0).read(xdiag(A, 0).extend(None, range(k)))
    z = (reading.value - d - 5 * u[:, 0].square()) / reading.standard_error
    assert reading.value.shape == reading.standard_error.shape == (n,)
    for part in (z[:ROWS], z[ROWS:]):
        assert float((part.abs() <= 2.1).double().mean()) >= 0.9
