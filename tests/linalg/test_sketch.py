from itertools import pairwise

import pytest
import torch
from scipy.linalg import hadamard

from frechet.linalg._sketch import gaussian_sketch, hadamard_sketch, sparse_sign_sketch, walsh_hadamard
from frechet.linalg.systems._lsmr import lsmr
from frechet.operators._constructors import from_matrix
from frechet.space import Space, euclidean
from spectra import F64, gaussian

SKETCHES = [gaussian_sketch, sparse_sign_sketch, hadamard_sketch]


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 5), (20, 9), (64, 64), (100, 16)])
def test_transpose_is_the_transpose(sketch, dtype, n, d):
    options = {"nonzeros": min(4, d)} if sketch is sparse_sign_sketch else {}
    S = sketch(euclidean(n, dtype), d, seed=1, **options)
    assert S.shape == (d, n)
    forward, backward = S @ torch.eye(n, dtype=dtype), S.T @ torch.eye(d, dtype=dtype)
    assert forward.dtype == dtype
    assert torch.allclose(forward, backward.T, atol=10 * torch.finfo(dtype).eps)
    v = gaussian(n).to(dtype)
    assert torch.allclose(S @ v, forward @ v, atol=100 * torch.finfo(dtype).eps)
    assert (S @ torch.zeros(n, 0, dtype=dtype)).shape == (d, 0)


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("n", [1, 40, 300])
def test_a_block_stored_by_rows_gives_what_one_stored_by_columns_gives(sketch, n):
    V = gaussian(n, 3)
    S = sketch(euclidean(n, F64), min(n, 16), seed=1, **({"nonzeros": 1} if sketch is sparse_sign_sketch else {}))
    assert torch.allclose(S @ V, S @ V.T.contiguous().T, rtol=1e-13, atol=1e-13)
    assert torch.allclose(S @ V, S.dense() @ V, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("sketch", SKETCHES)
def test_squared_lengths_are_unbiased(sketch):
    n, d, draws = 12, 8, 2000
    space = euclidean(n, F64)
    mean, square = torch.zeros(n, n, dtype=F64), torch.zeros(n, n, dtype=F64)
    for seed in range(draws):
        S = sketch(space, d, seed=seed) @ torch.eye(n, dtype=F64)
        mean += S.T @ S / draws
        square += (S.T @ S) ** 2 / draws
    error = ((square - mean**2).clamp_min(0) / draws).sqrt()
    # 144 entries: the largest of as many |z| stays below 4.5 with probability 0.999
    assert ((mean - torch.eye(n, dtype=F64)).abs() <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("subspace", ["dense", "coordinates"])
def test_a_whole_subspace_keeps_its_lengths(sketch, subspace):
    n, r, d = 1000, 10, 200
    Q = torch.linalg.qr(gaussian(n, r))[0] if subspace == "dense" else torch.eye(n, dtype=F64)[:, :r]
    for seed in range(20):
        stretch = torch.linalg.svdvals(sketch(euclidean(n, F64), d, seed=seed) @ Q)
        # 1 +- sqrt(r / d) = 0.78 .. 1.22 for the Gaussian sketch in the limit
        assert 0.6 < stretch[-1] <= stretch[0] < 1.4


@pytest.mark.parametrize("sketch", SKETCHES)
def test_seed_decides_all(sketch):
    space = euclidean(30, F64)
    a, b, c = (sketch(space, 10, seed=s).dense() for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("sketch", SKETCHES)
def test_sketched_least_squares_is_near_the_best(sketch):
    M, b = gaussian(2000, 10), gaussian(2000, seed=1)
    S = sketch(euclidean(2000, F64), 300, seed=0)
    x = lsmr(S @ from_matrix(M), S @ b).x
    best = torch.linalg.lstsq(M, b).solution
    assert torch.linalg.vector_norm(b - M @ x) < 1.1 * torch.linalg.vector_norm(b - M @ best)


def test_sparse_columns_have_one_sign_in_each_band():
    S = sparse_sign_sketch(euclidean(200, F64), 21, seed=0, nonzeros=4).dense()
    bounds = [band * 21 // 4 for band in range(5)]
    for low, high in pairwise(bounds):
        assert ((S[low:high] != 0).sum(0) == 1).all()
    assert torch.equal(S[S != 0].abs().unique(), torch.tensor([0.5], dtype=F64))
    assert ((S != 0).sum(1) > 0).all()


def test_rows_and_signs_of_the_sparse_sketch_are_independent():
    S = sparse_sign_sketch(euclidean(4000, F64), 8, seed=0, nonzeros=1).dense()
    plus, total = (S > 0).sum(1).double(), (S != 0).sum(1).double()
    assert ((plus - total / 2).abs() < 4 * (total / 4).sqrt()).all()


@pytest.mark.parametrize("N", [1, 2, 8, 64])
def test_walsh_hadamard_is_the_hadamard_matrix(N):
    X = gaussian(3, N)
    assert torch.allclose(walsh_hadamard(X), X @ torch.from_numpy(hadamard(N)).double())
    assert torch.allclose(walsh_hadamard(walsh_hadamard(X)), N * X)


def test_hadamard_rows_are_distinct_and_of_equal_size():
    S = hadamard_sketch(euclidean(16, F64), 10, seed=2).dense()
    assert torch.allclose(S.abs(), torch.full_like(S, 10**-0.5))
    assert torch.allclose(S @ S.T, 1.6 * torch.eye(10, dtype=F64))  # orthogonal rows of length sqrt(N / d)


def test_spaces_with_names_are_kept():
    space = Space(("w", "b"), ((3, 3), (3,)), torch.float32)
    for sketch in SKETCHES:
        S = sketch(space, 8, seed=0)
        assert S.domain == space
        assert S.codomain == euclidean(8)
        assert list(space.unflatten(S.T @ torch.ones(8))) == ["w", "b"]


def test_messages():
    space = euclidean(10)
    for sketch in SKETCHES:
        with pytest.raises(ValueError, match=f"{sketch.__name__}: d must be >= 1, got 0"):
            sketch(space, 0, seed=0)
        with pytest.raises(ValueError, match="generator: seed must be a non-negative int, got -1"):
            sketch(space, 8, seed=-1)
    with pytest.raises(ValueError, match="sparse_sign_sketch: nonzeros must lie between 1 and d = 4, got 8"):
        sparse_sign_sketch(space, 4, seed=0)
    with pytest.raises(
        ValueError, match="hadamard_sketch: d must be at most 16, n = 10 padded to a power of two, got 17"
    ):
        hadamard_sketch(space, 17, seed=0)
