import math

import pytest
import torch
from scipy import stats

from frechet.errors import NotConverged
from frechet.linalg._result import Status
from frechet.linalg.systems._sketched_lstsq import sketched_lstsq
from spectra import F64, gaussian, geometric, orthogonal

SKETCHES = ["sparse_sign", "hadamard"]


def tall(m, n, condition, residual, seed=0):
    """A with that condition, b with that norm of the residual, the solution, all in float64."""
    U, V = torch.linalg.qr(gaussian(m, n, seed=seed))[0], orthogonal(n, seed + 1)
    x, r = gaussian(n, seed=seed + 2), gaussian(m, seed=seed + 3)
    x, r = x / x.square().sum().sqrt(), r - U @ (U.T @ r)
    A = (U * geometric(n, condition)) @ V.T
    return A, A @ x + residual * r / r.square().sum().sqrt(), x


def size(v):
    return float(v.square().sum().sqrt())


def backward_error(A, x, b):
    """The Karlson-Walden estimate, by the singular values of A."""
    _, s, Vt = torch.linalg.svd(A, full_matrices=False)
    r = b - A @ x
    return size(Vt @ (A.T @ r) / (s**2 * size(x) ** 2 + size(r) ** 2).sqrt()) / float(s[0])


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("condition", [1e1, 1e6, 1e12])
@pytest.mark.parametrize("residual", [0.0, 1e-6, 1.0])
def test_is_as_exact_as_a_factorization_of_the_matrix(sketch, condition, residual):
    A, b, x = tall(2000, 40, condition, residual)
    s = sketched_lstsq(A, b, seed=0, sketch=sketch).checked()
    reference = torch.linalg.lstsq(A, b[:, None]).solution[:, 0]
    least = 1e-16 * condition * (1 + condition * residual)  # the scale on which QR's own error is luck
    assert size(s.x - x) <= 5 * size(reference - x) + least
    assert backward_error(A, s.x, b) <= 2 * backward_error(A, reference, b) + 4 * torch.finfo(A.dtype).eps
    assert float(s.backward_error) == pytest.approx(backward_error(A, s.x, b), rel=0.5, abs=2e-16)
    assert s.rank == 40
    assert float(s.residual) == pytest.approx(size(b - A @ s.x), rel=1e-12)
    # norm(S y) / norm(y) lies within 1 +- sqrt(40 / 320), with something to spare
    assert 0.45 * condition < s.condition < 2.2 * condition


@pytest.mark.parametrize("sketch", SKETCHES)
def test_iterations_do_not_depend_on_the_condition(sketch):
    spent = [sketched_lstsq(*tall(2000, 40, c, 1.0)[:2], seed=0, sketch=sketch).iterations for c in (1e1, 1e5, 1e10)]
    assert max(spent) - min(spent) <= 5
    assert max(spent) < 45


def test_a_tolerance_ends_it_early():
    A, b, _ = tall(2000, 40, 1e4, 1.0)
    loose, tight = sketched_lstsq(A, b, seed=0, rtol=1e-6).checked(), sketched_lstsq(A, b, seed=0).checked()
    assert float(loose.backward_error) <= 1e-6
    assert loose.iterations < tight.iterations
    assert "the backward error is" in tight.message


@pytest.mark.parametrize("method", ["precondition", "solve"])
def test_several_right_hand_sides_are_solved_each_on_its_own(method):
    A, b, _ = tall(1500, 20, 1e3, 1.0)
    B = torch.stack([b, 1e-9 * gaussian(1500, seed=9), torch.zeros(1500, dtype=F64)], 1)
    together = sketched_lstsq(A, B, seed=0, method=method)
    assert together.x.shape == (20, 3)
    assert together.residual.shape == together.backward_error.shape == (3,)
    for j in range(3):
        alone = sketched_lstsq(A, B[:, j], seed=0, method=method)
        assert torch.allclose(together.x[:, j], alone.x, rtol=1e-8, atol=1e-8 * float(alone.x.abs().max()) + 1e-300)
    assert torch.equal(together.x[:, 2], torch.zeros(20, dtype=F64))


@pytest.mark.parametrize("sketch", SKETCHES)
def test_dependent_columns_give_the_solution_of_least_norm_and_say_so(sketch):
    A = gaussian(1500, 12) @ gaussian(12, 20, seed=1)
    b = gaussian(1500, seed=2)
    s = sketched_lstsq(A, b, seed=0, sketch=sketch).checked()
    assert s.rank == 12
    assert "A has rank 12 of 20" in s.message
    assert torch.allclose(s.x, torch.linalg.pinv(A) @ b, rtol=1e-9, atol=1e-11)


def test_units_of_the_columns_do_not_look_like_dependence():
    A, b, _ = tall(1500, 12, 10.0, 1.0)
    units = torch.logspace(-150, 150, 12, dtype=F64)
    s = sketched_lstsq(A * units, b, seed=0).checked()
    assert s.rank == 12
    assert torch.allclose(s.x * units, sketched_lstsq(A, b, seed=0).x, rtol=1e-12)


@pytest.mark.parametrize("method", ["precondition", "solve"])
def test_float32_reaches_what_float32_can(method):
    A, b, x = (t.float() for t in tall(3000, 30, 1e2, 1e-3))
    s = sketched_lstsq(A, b, seed=0, method=method)
    assert s.x.dtype == torch.float32
    assert size(s.x - x) < (2e-4 if method == "precondition" else 0.2)
    assert s.converged


def test_the_residual_of_the_sketched_solution_is_larger_by_the_share_of_the_rows():
    A, b, _ = tall(4096, 16, 1e3, 1.0)
    ratios = [float(sketched_lstsq(A, b, seed=i, method="solve").residual) ** 2 for i in range(50)]
    # norm(r)^2 = norm(r*)^2 (1 + about n / (d - n)), here 16 / 112, times 1 - d/N
    assert 1.08 < sum(ratios) / 50 < 1.19
    assert min(ratios) >= 1


def matrices():
    m, n = 128, 4
    t = torch.linspace(-1, 1, m, dtype=F64)
    spikes = 1e-3 * gaussian(m, n)
    spikes[:n] += 10 * torch.eye(n, dtype=F64)
    spiky = 0.01 * gaussian(m, seed=1)
    spiky[n : 2 * n] += 5
    return {
        "normal": (gaussian(m, n), gaussian(m, seed=1)),
        "a few rows hold all weight": (spikes, spiky),
        "polynomials": (torch.stack([t**j for j in range(n)], 1), torch.exp(3 * t)),
        "heavy tails": (gaussian(m, n) / gaussian(m, n, seed=2), gaussian(m, seed=3) / gaussian(m, seed=4)),
    }


@pytest.mark.parametrize("name", matrices())
def test_the_entrywise_bound_fails_as_seldom_as_it_says(name):
    A, b = matrices()[name]
    exact, draws, confidence = torch.linalg.pinv(A) @ b, 1000, 0.95
    missed, share = 0, 0.0
    for seed in range(draws):
        s = sketched_lstsq(A, b, seed=seed, method="solve", confidence=confidence)
        error = (s.x - exact).abs()
        missed += bool((error > s.bound).any())
        share += float((error / s.bound).max()) / draws
    assert missed <= stats.binom.ppf(0.999, draws, 1 - confidence)
    assert share > 0.3  # and no larger than it must be


def test_sparse_signs_carry_no_bound_and_neither_does_the_exact_solution():
    A, b = matrices()["a few rows hold all weight"]
    assert sketched_lstsq(A, b, seed=0, method="solve", sketch="sparse_sign").bound is None
    assert sketched_lstsq(A, b, seed=0).bound is None


def test_the_bound_has_the_size_of_the_theorem():
    n, d = 32, 512
    A, b, _ = tall(4096, n, 1.0, 1.0)
    bound = sketched_lstsq(A, b, seed=0, method="solve", oversampling=d / n).bound
    quantile = math.sqrt(2 * math.log(2 * n / 0.01))
    assert 0.5 * quantile / math.sqrt(d) < float(bound.max()) < 1.3 * quantile / math.sqrt(d)
    # the norm of the error is about sqrt(n / d): an entrywise bound from it would be larger
    assert float(bound.max()) < math.sqrt(n / d)


@pytest.mark.parametrize("method", ["precondition", "solve"])
def test_a_matrix_with_few_rows_is_factored_itself(method):
    A, b, x = tall(60, 20, 1e3, 0.0)
    s = sketched_lstsq(A, b, seed=0, method=method).checked()
    assert s.rows == 60
    assert "A has too few rows" in s.method
    assert torch.allclose(s.x, x, rtol=1e-9)
    assert s.bound is None or bool((s.bound == 0).all())


def test_seed_decides_all():
    A, b, _ = tall(1000, 10, 1e3, 1.0)
    first, again, other = (sketched_lstsq(A, b, seed=i, method="solve").x for i in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (100, 1, 2), (50, 0, 1), (0, 0, 1), (100, 3, 0), (200, 200, 1), (9, 8, 1)]
)
@pytest.mark.parametrize("method", ["precondition", "solve"])
@pytest.mark.parametrize("sketch", SKETCHES)
def test_edge_sizes(m, n, k, method, sketch):
    A, B = gaussian(m, n), gaussian(m, k, seed=1)
    s = sketched_lstsq(A, B, seed=0, method=method, sketch=sketch, oversampling=20.0)
    assert s.converged
    assert s.x.shape == (n, k)
    if k and n and s.rows == m:
        assert torch.allclose(s.x, torch.linalg.pinv(A) @ B)


def test_zero_matrix_and_zero_right_hand_side():
    s = sketched_lstsq(torch.zeros(500, 3, dtype=F64), gaussian(500), seed=0).checked()
    assert s.rank == 0
    assert torch.equal(s.x, torch.zeros(3, dtype=F64))
    assert torch.equal(sketched_lstsq(gaussian(500, 3), torch.zeros(500, dtype=F64), seed=0).x, torch.zeros(3).double())


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_a_status_and_a_sentence(sketch, value):
    A, b = gaussian(500, 5), gaussian(500)
    spoiled = A.clone()
    spoiled[77, 3] = value
    s = sketched_lstsq(spoiled, b, seed=0, sketch=sketch)
    assert s.status is Status.NONFINITE
    assert s.message.startswith("A has entries that are not finite")
    assert bool(s.x.isnan().all())
    b[3] = value
    assert sketched_lstsq(A, b, seed=0, sketch=sketch).message.startswith("b has entries")
    with pytest.raises(NotConverged, match=r"sketched_lstsq: b has entries that are not finite.*'nonfinite'"):
        sketched_lstsq(A, b, seed=0, sketch=sketch).checked()


def test_a_limit_and_a_tolerance_out_of_reach_are_told():
    A, b, _ = tall(2000, 40, 1e4, 1.0)
    s = sketched_lstsq(A, b, seed=0, max_iterations=5)
    assert s.status is Status.MAX_ITERATIONS
    assert s.iterations == 5
    assert "after 5 iterations, above the tolerance" in s.message
    s = sketched_lstsq(A, b, seed=0, rtol=1e-30)
    assert s.status is Status.STAGNATED
    assert "falls no more, above the tolerance" in s.message


def test_inputs_are_left_as_they_were():
    A, b, _ = tall(500, 5, 1e2, 1.0)
    A.requires_grad_()
    kept = A.detach().clone(), b.clone()
    s = sketched_lstsq(A, b, seed=0)
    assert torch.equal(A, kept[0])
    assert torch.equal(b, kept[1])
    assert not s.x.requires_grad


def test_messages():
    A, b = gaussian(30, 5), gaussian(30)
    cases = [
        (TypeError, "A must be a tensor, got list; for operators use lsmr", ([[1.0]], b, {})),
        (ValueError, r"A must be a matrix \(m, n\) in float32 or float64, got torch.float64 of shape", (b, b, {})),
        (ValueError, "got torch.float16 of shape", (A.half(), b.half(), {})),
        (
            ValueError,
            r"as many rows as columns, got 5 x 30; for .* wide system use lsmr",
            (A.T, b[:5], {}),
        ),
        (ValueError, r"b must have shape \(30,\) or \(30, k\), got \(29,\)", (A, b[1:], {})),
        (TypeError, "b must be torch.float64 on cpu like A, got torch.float32 on cpu", (A, b.float(), {})),
        (ValueError, "method must be 'precondition' or 'solve', got 'qr'", (A, b, {"method": "qr"})),
        (ValueError, "sketch must be 'sparse_sign' or 'hadamard', got 'count'", (A, b, {"sketch": "count"})),
        (ValueError, "oversampling must be a number > 1, got 1", (A, b, {"oversampling": 1})),
        (ValueError, r"rtol must lie in \[0, 1\), got 2", (A, b, {"rtol": 2})),
        (ValueError, "confidence must lie between 0 and 1, got 1", (A, b, {"confidence": 1})),
        (ValueError, "max_iterations must be >= 0, got -1", (A, b, {"max_iterations": -1})),
    ]
    for kind, text, (matrix, right, options) in cases:
        with pytest.raises(kind, match=f"sketched_lstsq: .*{text}"):
            sketched_lstsq(matrix, right, seed=0, **options)
