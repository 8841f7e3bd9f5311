import math

import pytest
import torch

from frechet.linalg._sequential import Sampler
from frechet.linalg._xtrace import Sketch, draw, xnystrace, xnystrace_estimates, xtrace, xtrace_estimates
from frechet.operators._constructors import from_callable
from frechet.space import euclidean

N, K = 40, 9


def matrix(kind: str) -> torch.Tensor:
    G = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    decay = torch.diag(torch.exp(-0.3 * torch.arange(N, dtype=torch.float64)))
    return {"symmetric": G + G.T, "semidefinite": G @ decay @ G.T, "general": G @ decay}[kind]


def operator(M: torch.Tensor, facts=()):
    space = euclidean(M.shape[0], M.dtype)
    return from_callable(lambda V: (V.T @ M.T).T, space, rmatmat=lambda U: (U.T @ M).T, facts=facts)


def sketched(sampler: Sampler, *stops: int) -> Sketch:
    sketch, start = None, 0
    for stop in stops:
        sketch, start = sampler.extend(sketch, range(start, stop)), stop
    assert sketch is not None
    return sketch


def naive_xtrace(M, Omega, j, out):
    """tr QQ'A + scaled residual of probe j, with Q from all probes but those in `out`."""
    kept = [i for i in range(K) if i not in out]
    Q = torch.linalg.qr(M @ Omega[:, kept])[0]
    w = Omega[:, j] - Q @ (Q.T @ Omega[:, j])
    return torch.trace(Q.T @ M @ Q) + (N - len(kept)) / (w @ w) * (w @ M @ w)


def naive_nystrom(M, Omega, j, out):
    kept = [i for i in range(K) if i not in out]
    O, Y = Omega[:, kept], M @ Omega[:, kept]
    approximation = Y @ torch.linalg.solve(O.T @ Y, Y.T)
    Q = torch.linalg.qr(O)[0]
    w = Omega[:, j]
    p = w - Q @ (Q.T @ w)
    return torch.trace(approximation) + (N - len(kept)) / (p @ p) * (w @ (M - approximation) @ w)


def compare(naive, M, Omega, estimates, paired):
    for j in range(K):
        assert torch.isclose(estimates[j], naive(M, Omega, j, {j}), rtol=1e-8)
        for i in range(K):
            if i != j:
                assert torch.isclose(paired[i, j], naive(M, Omega, j, {i, j}), rtol=1e-8)


@pytest.mark.parametrize("kind", ["symmetric", "semidefinite", "general"])
@pytest.mark.parametrize("stops", [(K,), (1, 4, K)])
def test_xtrace_equals_its_definition_by_leaving_probes_out(kind, stops):
    M = matrix(kind)
    A = operator(M, () if kind == "general" else "symmetric")
    sketch = sketched(xtrace(A, 5), *stops)
    Omega = draw(A.domain, range(K), 5)
    W = sketch.Q.T @ Omega
    T = sketch.R if sketch.Z is None else sketch.Z.T @ Omega
    estimates, paired = xtrace_estimates(N, sketch.R, (sketch.H + sketch.H.T) / 2, W, T)
    compare(naive_xtrace, M, Omega, estimates, paired)
    assert torch.isclose(xtrace(A, 5).read(sketch).value, estimates.mean())


@pytest.mark.parametrize("stops", [(K,), (2, K)])
def test_the_nystrom_form_equals_its_definition_by_leaving_probes_out(stops):
    M = matrix("semidefinite")
    A = operator(M, "positive_semidefinite")
    sketch = sketched(xnystrace(A, 5), *stops)
    Omega = draw(A.domain, range(K), 5)
    G = Omega.T @ M @ Omega
    E, X = torch.linalg.eigh((G + G.T) / 2)
    estimates, paired = xnystrace_estimates(N, sketch.R @ X / E.sqrt(), X.T / E.sqrt()[:, None], Omega.T @ Omega)
    compare(naive_nystrom, M, Omega, estimates, paired)
    assert torch.isclose(xnystrace(A, 5).read(sketch).value, estimates.mean())


def test_the_sketch_in_blocks_spans_what_it_does_at_once():
    A = operator(matrix("symmetric"), "symmetric")
    whole, parts = sketched(xtrace(A, 1), K), sketched(xtrace(A, 1), 3, 4, K)
    assert torch.allclose(whole.Q @ whole.R, parts.Q @ parts.R)
    assert torch.allclose(parts.Q.T @ parts.Q, torch.eye(K, dtype=torch.float64), atol=1e-13)
    assert torch.allclose(parts.H, parts.Q.T @ (A @ parts.Q), atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [0, 1, 4, 8])
@pytest.mark.parametrize("stops", [(K,), (2, 4, 6, K)])
def test_a_low_rank_operator_is_exact_up_to_the_error_bar(dtype, rank, stops):
    U = torch.linalg.qr(matrix("symmetric"))[0][:, :rank]
    M = ((U * torch.arange(1.0, rank + 1, dtype=torch.float64)) @ U.T).to(dtype)
    A = operator(M, "positive_semidefinite")
    for sampler in (xtrace(A, 0), xnystrace(A, 0)):
        sketch = sketched(sampler, *stops)
        assert sketch.Q.shape[1] == rank
        reading = sampler.read(sketch)
        error = abs(float(reading.value) - float(M.double().trace()))
        assert error <= 1.96 * float(reading.standard_error)
        assert float(reading.standard_error) <= 1e4 * torch.finfo(dtype).eps * max(1, rank)


def test_a_spectrum_down_to_rounding_keeps_a_narrow_and_honest_bar():
    n = 200
    values = torch.cat([torch.linspace(100, 10, 8), torch.full((n - 8,), 1e-7)]).double()
    A = from_callable(lambda V: (V.T * values).T, euclidean(n, torch.float64), facts="positive_semidefinite")
    for sampler, width in ((xtrace(A, 0), 1e-11), (xnystrace(A, 0), 1e-3)):
        reading = sampler.read(sketched(sampler, 9, 15))
        error = abs(float(reading.value - values.sum()))
        assert error <= 4 * float(reading.standard_error)
        assert float(reading.standard_error) < width


def test_one_probe_has_no_error_bar():
    A = operator(matrix("semidefinite"), "positive_semidefinite")
    for sampler in (xtrace(A, 0), xnystrace(A, 0)):
        assert float(sampler.read(sketched(sampler, 1)).standard_error) == math.inf


def test_a_false_semidefinite_declaration_is_found():
    A = operator(matrix("symmetric"), "positive_semidefinite")
    with pytest.raises(ValueError, match="A must be positive semidefinite for method 'nystrom', got v'A v = -"):
        xnystrace(A, 0).read(sketched(xnystrace(A, 0), K))
