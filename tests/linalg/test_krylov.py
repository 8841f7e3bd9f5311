import math

import pytest
import torch

from counting import counting
from frechet.errors import NonFinite
from frechet.linalg._krylov import arnoldi, gauss_quadrature, golub_kahan, lanczos
from frechet.linalg._result import Status
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix, identity
from frechet.space import euclidean

DTYPES = [torch.float32, torch.float64]


def symmetric(n, dtype=torch.float64, seed=0):
    M = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return from_matrix(((M + M.T) / 2).to(dtype), facts="symmetric")


def rectangular(m, n, dtype=torch.float64):
    return from_matrix(torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(dtype))


def orthonormality(V):
    V = V.double()
    return (V.T @ V - torch.eye(V.shape[1], dtype=torch.float64)).abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_lanczos_relation_and_orthogonality_hold_to_rounding(dtype):
    A = symmetric(200, dtype)
    L = lanczos(A, A.domain.random(0, 0, "gaussian"), steps=40)
    E = (A @ L.V).double() - L.V.double() @ L.T
    E[:, -1] -= L.residual.double()
    eps = A.domain.eps
    assert E.abs().max() < 100 * eps
    assert orthonormality(L.V) < 10 * eps
    assert (L.V.T @ L.residual).abs().max() < 100 * eps
    assert L.V.T.is_contiguous()
    assert L.V.dtype == dtype
    assert L.alpha.dtype == L.beta.dtype == torch.float64
    assert (L.status, L.products) == (Status.MAX_ITERATIONS, 40)


@pytest.mark.parametrize("dtype", DTYPES)
def test_basis_of_a_spectrum_with_converged_outliers_stays_orthonormal(dtype):
    g = torch.Generator().manual_seed(0)
    d = torch.cat([torch.linspace(20, 100, 10), torch.rand(3990, generator=g)]).to(dtype)
    L = lanczos(from_diagonal(d), euclidean(4000, dtype).random(0, 0, "gaussian"), steps=110)
    assert orthonormality(L.V) < 50 * torch.finfo(dtype).eps
    assert int((torch.linalg.eigvalsh(L.T) > 10).sum()) == 10


def test_full_depth_gives_the_whole_spectrum():
    A = symmetric(12)
    L = lanczos(A, A.domain.random(0, 0, "gaussian"), steps=50)
    assert torch.allclose(torch.linalg.eigvalsh(L.T), torch.linalg.eigvalsh(A.dense()))
    assert (L.products, L.status) == (12, Status.BREAKDOWN)
    assert float(L.residual.abs().max()) == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_invariant_space_ends_early_and_its_values_are_eigenvalues(dtype):
    d = torch.tensor([3.0, 1.0, -2.0], dtype=dtype).repeat(100)
    A, count = counting(from_diagonal(d))
    L = lanczos(A, A.domain.random(0, 0, "gaussian"), steps=20)
    assert (L.status, L.products, count.total) == (Status.BREAKDOWN, 3, 3)
    expected = torch.tensor([-2.0, 1.0, 3.0], dtype=torch.float64)
    assert torch.allclose(torch.linalg.eigvalsh(L.T), expected, atol=20 * torch.finfo(dtype).eps, rtol=0)


def test_deflation_restricts_the_operator_to_the_complement():
    A = symmetric(30)
    values, vectors = torch.linalg.eigh(A.dense())
    Q = vectors[:, -3:]
    L = lanczos(A, A.domain.random(0, 0, "gaussian"), steps=27, deflate=Q)
    assert (Q.T @ L.V).abs().max() < 1e-14
    assert torch.allclose(torch.linalg.eigvalsh(L.T), values[:-3])


def test_deflation_with_any_orthonormal_block_keeps_the_projected_relation():
    A = symmetric(50)
    Q = A.domain.orthonormalize(A.domain.random(range(4), 7, "gaussian"))[0]
    L = lanczos(A, A.domain.random(0, 0, "gaussian"), steps=10, deflate=Q)
    AV = A @ L.V
    E = AV - Q @ (Q.T @ AV) - L.V @ L.T
    E[:, -1] -= L.residual
    assert E.abs().max() < 1e-13


def test_start_vector_norm_and_first_coefficient():
    A = symmetric(20)
    v = A.domain.random(0, 1, "gaussian")
    L = lanczos(A, v, steps=1)
    assert math.isclose(L.norm, float(torch.linalg.vector_norm(v)), rel_tol=1e-14)
    assert math.isclose(float(L.alpha[0]), float(v @ (A @ v) / (v @ v)), rel_tol=1e-12)
    assert L.beta.shape == (0,)


def test_identity_and_zero_operator_end_after_one_step_and_inputs_are_untouched():
    space = euclidean(5, torch.float64)
    v = space.random(0, 0, "gaussian")
    before = v.clone()
    for A, value in [(identity(space), 1.0), (from_diagonal(torch.zeros(5, dtype=torch.float64)), 0.0)]:
        L = lanczos(A, v, steps=4)
        assert L.status is Status.BREAKDOWN
        assert torch.allclose(L.T, torch.tensor([[value]], dtype=torch.float64))
    assert torch.equal(v, before)


def test_one_dimension():
    A = from_matrix(torch.tensor([[-4.0]]), facts="symmetric")
    L = lanczos(A, torch.tensor([2.0]), steps=3)
    assert (L.alpha.tolist(), L.norm, L.status) == ([-4.0], 2.0, Status.BREAKDOWN)
    assert arnoldi(A, torch.tensor([2.0]), steps=3).H.tolist() == [[-4.0]]
    assert golub_kahan(A, torch.tensor([2.0]), steps=3).B.tolist() == [[4.0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_arnoldi_relation(dtype):
    A = rectangular(60, 60, dtype)
    R = arnoldi(A, A.domain.random(0, 0, "gaussian"), steps=25)
    assert (R.V.shape, R.H.shape, R.products) == ((60, 26), (26, 25), 25)
    assert ((A @ R.V[:, :25]).double() - R.V.double() @ R.H).abs().max() < 100 * A.domain.eps
    assert orthonormality(R.V) < 10 * A.domain.eps
    assert torch.equal(R.H, R.H.triu(-1))


def test_arnoldi_at_full_depth_has_the_eigenvalues():
    A = rectangular(9, 9)
    R = arnoldi(A, A.domain.random(0, 0, "gaussian"), steps=9)
    assert (R.status, R.V.shape, R.H.shape) == (Status.BREAKDOWN, (9, 9), (9, 9))
    ours, exact = (torch.linalg.eigvals(M).abs().sort().values for M in (R.H, A.dense()))
    assert torch.allclose(ours, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 25), (25, 40)])
def test_golub_kahan_relations(dtype, shape):
    A, count = counting(rectangular(*shape, dtype))
    R = golub_kahan(A, A.codomain.random(0, 0, "gaussian"), steps=12)
    eps = A.domain.eps
    assert ((A @ R.V).double() - R.U.double() @ R.B).abs().max() < 200 * eps
    assert ((A.T @ R.U[:, :12]).double() - R.V.double() @ R.B[:12].T).abs().max() < 200 * eps
    assert max(orthonormality(R.U), orthonormality(R.V)) < 10 * eps
    assert (R.products, R.B.shape) == (24, (13, 12))
    assert count.total == 24 + 24  # the two relations above cost 12 + 12


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
def test_golub_kahan_at_full_depth_has_the_singular_values(shape):
    A = rectangular(*shape)
    R = golub_kahan(A, A.codomain.random(0, 0, "gaussian"), steps=20)
    assert torch.allclose(torch.linalg.svdvals(R.B), torch.linalg.svdvals(A.dense()))
    assert (A @ R.V - R.U @ R.B).abs().max() < 1e-13


def test_golub_kahan_of_a_low_rank_matrix_breaks_down_at_the_rank():
    A = from_matrix(rectangular(20, 2).dense() @ rectangular(2, 15).dense())
    R = golub_kahan(A, A.codomain.random(0, 0, "gaussian"), steps=10)
    assert (R.status, R.V.shape[1], R.U.shape[1]) == (Status.BREAKDOWN, 2, 3)
    assert torch.allclose(torch.linalg.svdvals(R.B), torch.linalg.svdvals(A.dense())[:2])


def test_quadrature_reproduces_moments_up_to_its_degree():
    A = symmetric(40)
    v = A.domain.random(0, 2, "gaussian")
    L = lanczos(A, v, steps=4)
    nodes, weights = gauss_quadrature(L.alpha, L.beta)
    assert math.isclose(float(weights.sum()), 1.0, rel_tol=1e-14)
    w, scale = v, L.norm**2
    for degree in range(8):
        moment = scale * float(weights @ nodes**degree)
        assert math.isclose(moment, float(v @ w), rel_tol=1e-11, abs_tol=1e-8), degree
        w = A @ w
    assert not math.isclose(scale * float(weights @ nodes**8), float(v @ w), rel_tol=1e-6)


def test_a_nan_names_the_product():
    space, calls = euclidean(10, torch.float64), []

    def product(V):
        calls.append(1)
        return V * (math.nan if len(calls) == 3 else 1.0) * torch.arange(1.0, 11.0, dtype=V.dtype)[:, None]

    v = space.random(0, 0, "gaussian")
    with pytest.raises(NonFinite, match=r"lanczos: product 3 \(A @ v\) holds a NaN"):
        lanczos(from_callable(product, space, facts="symmetric"), v, steps=5)
    calls.clear()
    with pytest.raises(NonFinite, match=r"arnoldi: product 3 \(A @ v\) holds a NaN"):
        arnoldi(from_callable(product, space), v, steps=5)
    calls.clear()
    with pytest.raises(NonFinite, match=r"golub_kahan: product 3 \(A.T @ u\) holds a NaN"):
        golub_kahan(from_callable(product, space, rmatmat=product), v, steps=5)
    with pytest.raises(NonFinite, match="lanczos: v holds a NaN"):
        lanczos(identity(space), v * math.inf, steps=5)


def test_bad_arguments_are_named():
    A, v = symmetric(5), torch.ones(5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"lanczos: A must be symmetric, got Matrix .*use arnoldi"):
        lanczos(rectangular(5, 5), v, steps=2)
    with pytest.raises(ValueError, match=r"arnoldi: A must map a space to itself, got .*golub_kahan"):
        arnoldi(rectangular(5, 4), v, steps=2)
    with pytest.raises(ValueError, match="lanczos: steps must be a positive int, got 0"):
        lanczos(A, v, steps=0)
    with pytest.raises(ValueError, match=r"lanczos: v must have shape \(5,\), got \(4,\)"):
        lanczos(A, v[:4], steps=1)
    with pytest.raises(TypeError, match=r"lanczos: v must be torch.float64, got torch.float32; convert"):
        lanczos(A, v.float(), steps=1)
    with pytest.raises(ValueError, match="lanczos: v must be on cpu, got meta"):
        lanczos(A, v.to("meta"), steps=1)
    with pytest.raises(ValueError, match="lanczos: v must be non-zero, got zeros"):
        lanczos(A, 0 * v, steps=1)
    with pytest.raises(ValueError, match="lanczos: v must not lie in the span of deflate"):
        lanczos(A, v, steps=1, deflate=v[:, None] / math.sqrt(5))
    with pytest.raises(ValueError, match=r"deflate must have orthonormal columns, got .*orthonormalize"):
        lanczos(A, v, steps=1, deflate=v[:, None])
    with pytest.raises(ValueError, match=r"deflate must be a block \(5, p\) of R\^5"):
        lanczos(A, v, steps=1, deflate=v)
    with pytest.raises(ValueError, match=r"deflate must leave a direction of R\^5, got 5 columns"):
        lanczos(A, v, steps=1, deflate=torch.eye(5, dtype=torch.float64))
    with pytest.raises(ValueError, match="golub_kahan: u must not lie in the null space"):
        golub_kahan(from_matrix(torch.zeros(3, 2)), torch.ones(3), steps=1)
