import math

import pytest
import torch

from counting import counting
from frechet.errors import NonFinite
from frechet.linalg import eigsh, lanczos, spectral_density
from frechet.linalg._basis import Basis, kept_as, new_basis, roundoff
from frechet.linalg._result import Status
from frechet.operators._constructors import from_diagonal, identity
from frechet.space import euclidean
from spectra import gaussian, rotated

ROUNDED = ["float16", "bfloat16"]
F64 = torch.float64


def outliers(n=600, dtype=torch.float32, seed=0):
    """Six separate eigenvalues above a bulk in [-1, 1], and the exact list."""
    bulk = torch.rand(n - 6, dtype=F64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    values = torch.cat([torch.tensor([40.0, 25.0, 12.0, 8.0, 5.0, 3.0], dtype=F64), bulk])
    return rotated(values, dtype, seed), values


def test_append_keeps_the_decomposition_and_refuses_a_full_block():
    space = euclidean(6, F64)
    W = Basis(space, space.zeros(2))
    W.block[0, 0] = 1.0
    w = torch.arange(1.0, 7.0, dtype=F64)
    h, beta, scale = W.append(1, w, 0.0, "test")
    assert torch.allclose(W.block[:, :1] @ h + beta * W.block[:, 1], w)
    assert math.isclose(scale, math.sqrt(91))
    assert W.append(2, torch.ones(6, dtype=F64), scale, "test")[1] == 0.0


@pytest.mark.parametrize("storage", ["device", *ROUNDED])
def test_a_fixed_block_is_left_out_exactly_however_the_columns_are_kept(storage):
    space = euclidean(500)
    Q = space.orthonormalize(gaussian(500, 3).float())[0]
    W = new_basis(space, 4, storage, "test", Q)
    for j in range(4):
        h, beta, _ = W.append(j, space.random(j, 0, "gaussian"), 0.0, "test")
        assert len(h) == 3 + j
        assert beta > 0
    overlap = Q.double().T @ W.block.double()
    assert float(overlap.abs().max()) < max(3e-7, 0.2 * roundoff(space, storage, "test"))


@pytest.mark.parametrize("storage", ROUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_relation_holds_to_the_rounding_of_the_stored_vectors(storage, dtype):
    A, _ = outliers(dtype=dtype)
    L = lanczos(A, A.domain.random(0, 0, "gaussian"), steps=60, storage=storage)
    u = roundoff(A.domain, storage, "test")
    assert L.V.dtype == getattr(torch, storage)
    V, M = L.V.double(), A.dense().double()
    F = M @ V - V @ L.T - torch.outer(L.residual.double(), torch.eye(60, dtype=F64)[-1])
    betas = torch.cat([L.beta, torch.tensor([float(A.domain.norm(L.residual))])])
    size = torch.linalg.vector_norm(F, dim=0)
    assert float(size.max()) <= u * 40
    assert float((size / betas).min()) > 0.1 * u  # the rounding is there, and is what limits
    off = V.T @ V - torch.eye(60, dtype=F64)
    assert float(off.abs().max()) <= 2 * u
    assert float(off.abs().max()) < 0.4 * u  # of vectors that spread over the entries: far less


@pytest.mark.parametrize("storage", ROUNDED)
def test_localized_vectors_stay_orthogonal_to_the_rounding_too(storage):
    A = from_diagonal(torch.cat([torch.tensor([1000.0, 900.0]), torch.linspace(0, 1, 300)]))
    L = lanczos(A, A.domain.random(1, 0, "gaussian"), steps=80, storage=storage)
    V = L.V.double()
    assert float((V.T @ V - torch.eye(80, dtype=F64)).abs().max()) <= 2 * roundoff(A.domain, storage, "test")


def test_on_the_host_it_is_the_same_basis_bit_for_bit():
    A, _ = outliers()
    v = A.domain.random(0, 0, "gaussian")
    a, b = lanczos(A, v, steps=30), lanczos(A, v, steps=30, storage="host")
    assert torch.equal(a.V, b.V)
    assert torch.equal(a.T, b.T)
    assert torch.equal(a.residual, b.residual)
    a, b = (eigsh(A, 5, seed=0, which="both", basis=20, storage=s) for s in ("device", "host"))
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.vectors, b.vectors)
    assert torch.equal(a.residuals, b.residuals)
    assert a.products == b.products
    a, b = (spectral_density(A, seed=0, probes=3, steps=20, storage=s) for s in ("device", "host"))
    assert torch.equal(a.nodes, b.nodes)


@pytest.mark.parametrize("storage", ROUNDED)
@pytest.mark.parametrize("basis", [None, 14])
@pytest.mark.parametrize("which", ["largest", "both"])
def test_error_bars_of_a_rounded_basis_are_true_and_cover(storage, basis, which):
    A, exact = outliers()
    A, count = counting(A)
    S = eigsh(A, 4, seed=0, which=which, rtol=1e-4, basis=basis, storage=storage)
    assert count.total == S.products
    M, V = A.dense().double(), S.vectors.double()
    true = torch.linalg.vector_norm(M @ V - V * S.values, dim=0)
    assert torch.allclose(S.residuals, true, rtol=0.05, atol=2e-4)
    assert bool((S.converged == (S.residuals <= 1e-4 * S.values.abs() + 1e-4)).all())
    distance = (S.values[:, None] - torch.linalg.eigvalsh(M)).abs().amin(1)
    assert bool((distance <= S.residuals + 1e-5).all())
    assert float((V.T @ V - torch.eye(V.shape[1], dtype=F64)).abs().max()) < 1e-5
    # first order in the rounding for the vectors, second for the values
    u = roundoff(A.domain, storage, "test")
    assert float(true[:4].max()) < 4 * u * 40
    assert float((S.values[:4] - exact[:4]).abs().max()) < 40 * (4 * u) ** 2 * 40
    assert S.vectors.dtype == torch.float32


def test_what_a_rounded_basis_cannot_reach_is_said():
    A, _ = outliers()
    fine, coarse = (eigsh(A, 4, seed=0, rtol=r, storage="bfloat16") for r in (0.05, 1e-5))
    assert fine.status is Status.CONVERGED
    assert bool(fine.converged.all())
    assert coarse.status is Status.STAGNATED
    assert not bool(coarse.converged.all())
    # half the bits of float64 lose nothing that is asked for here
    half = eigsh(outliers(dtype=F64)[0], 4, seed=0, rtol=1e-6, storage="float32")
    assert half.status is Status.CONVERGED


def test_a_budget_includes_the_products_that_measure():
    A, count = counting(outliers()[0])
    S = eigsh(A, 4, seed=0, rtol=1e-4, storage="float16", max_products=9)
    assert count.total == S.products <= 9
    assert S.status is Status.MAX_ITERATIONS
    with pytest.raises(ValueError, match="max_products must be above 4 with storage='float16', whose residuals take"):
        eigsh(A, 4, seed=0, storage="float16", max_products=4)


@pytest.mark.parametrize("storage", ["host", "float16"])
def test_a_run_goes_on_where_it_stopped(storage):
    A, _ = outliers()
    states = []

    def watch(state):
        states.append(state.__class__(**{k: v.clone() if torch.is_tensor(v) else v for k, v in vars(state).items()}))
        return len(states) == 9

    whole = eigsh(A, 4, seed=0, basis=14, storage=storage)
    eigsh(A, 4, seed=0, basis=14, storage=storage, observe=watch)
    again = eigsh(A, 4, seed=0, basis=14, storage=storage, resume=states[-1])
    assert states[-1].basis.dtype == kept_as(A.domain, storage, "test")[0]
    assert torch.equal(whole.values, again.values)
    assert whole.products == again.products
    with pytest.raises(ValueError, match="resume must come from the same call"):
        eigsh(A, 4, seed=0, basis=14, resume=states[-1])


@pytest.mark.parametrize("storage", ROUNDED)
def test_traces_and_densities_from_a_rounded_basis_cover_the_truth(storage):
    A, values = outliers(400)
    top = eigsh(A, 3, seed=1)
    for deflate in (None, top):
        inside, width = [], 0.4
        grid = torch.linspace(-2, 6, 41, dtype=F64)
        z = (grid[:, None] - values) / width
        truth = torch.exp(-0.5 * z.square()).mean(1) / (width * math.sqrt(2 * math.pi))
        for seed in range(12):
            D = spectral_density(A, seed=seed, probes=4, steps=30, deflate=deflate, storage=storage)
            assert A.domain.eps < D.eps < 4 * roundoff(A.domain, storage, "test")
            for f in (lambda x: x, torch.square, lambda x: x.square() / (1 + x.square())):
                low, high = D.trace_of(f).interval(0.99)
                inside.append(bool(low <= f(values).sum() <= high))
            _, low, high = D.on(grid, width, level=0.95)
            inside.append(float(((low <= truth) & (truth <= high)).double().mean()) > 0.8)
        assert sum(inside) >= 0.93 * len(inside)


def test_memory_is_that_of_the_type():
    space = euclidean(1000)
    sizes = {s: new_basis(space, 10, s, "test").block.nbytes for s in ("device", "host", "float32", *ROUNDED)}
    assert sizes == {"device": 40000, "host": 40000, "float32": 40000, "float16": 20000, "bfloat16": 20000}
    assert new_basis(euclidean(1000, F64), 10, "float32", "test").block.nbytes == 40000


def test_a_type_with_as_many_bits_changes_nothing():
    A, _ = outliers()
    v = A.domain.random(0, 0, "gaussian")
    assert torch.equal(lanczos(A, v, steps=5).V, lanczos(A, v, steps=5, storage="float32").V)
    assert roundoff(A.domain, "float32", "test") == 0.0
    assert roundoff(A.domain, "bfloat16", "test") == 2.0**-8


@pytest.mark.parametrize("storage", ["host", "float16"])
def test_edges(storage):
    one = from_diagonal(torch.tensor([3.0]))
    assert eigsh(one, 1, seed=0, storage=storage).values.tolist() == pytest.approx([3.0], rel=1e-3)
    assert eigsh(one, 0, seed=0, storage=storage).values.numel() == 0
    S = eigsh(identity(euclidean(20)), 20, seed=0, storage=storage)
    assert torch.allclose(S.values, torch.ones(20, dtype=F64), atol=1e-3)
    assert lanczos(one, torch.ones(1), steps=4, storage=storage).status is Status.BREAKDOWN


def test_bad_arguments_are_named():
    A, _ = outliers()
    with pytest.raises(ValueError, match="eigsh: storage must be one of 'device', 'host', 'float32', 'bfloat16', 'flo"):
        eigsh(A, 2, seed=0, storage="disk")
    with pytest.raises(ValueError, match="lanczos: storage must be one of"):
        lanczos(A, A.domain.random(0, 0), steps=2, storage="int8")
    with pytest.raises(ValueError, match="spectral_density: storage must be one of"):
        spectral_density(A, seed=0, storage="")
    with pytest.raises(ValueError, match="copies, basis and storage must be left out with method='lobpcg'"):
        eigsh(A, 2, seed=0, method="lobpcg", storage="host")
    with pytest.raises(NonFinite, match=r"eigsh: product 1 \(A @ v\) holds a NaN"):
        eigsh(from_diagonal(torch.tensor([math.nan, 1.0, 2.0])), 1, seed=0, storage="float16")
