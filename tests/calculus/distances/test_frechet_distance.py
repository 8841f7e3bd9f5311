"""The Fréchet distance of features, beside mpmath with 50 digits and beside what other libraries compute."""

import itertools

import mpmath
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from frechet.calculus.distances import Gaussian, class_frechet_distance, frechet_distance, gaussian, gaussian_of
from frechet.errors import NonFinite, NotDifferentiable

F64 = torch.float64
SIZES = [(5, 6, 3), (6, 5, 3), (4, 5, 7), (5, 4, 7), (4, 4, 7), (3, 3, 3), (7, 3, 4), (2, 2, 1), (3, 7, 4), (2, 9, 4)]


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def pair(n, m, d, seed=0):
    return randn(n, d, seed=seed), 1.5 * randn(m, d, seed=seed + 1) @ randn(d, d, seed=7) + 1


def exact(x, y, ridge=0.0):
    """The distance with 50 digits: the eigenvalues of S1 S2 are those of the semidefinite L2 S1 L2'."""
    with mpmath.workdps(50):

        def rows(a):
            A = mpmath.matrix(a.tolist())
            mean = [sum(A[:, j]) / A.rows for j in range(A.cols)]
            C = mpmath.matrix(A.rows, A.cols)
            for i, j in itertools.product(range(A.rows), range(A.cols)):
                C[i, j] = (A[i, j] - mean[j]) / mpmath.sqrt(A.rows - 1)
            return mean, C

        (m, C), (k, D) = rows(x), rows(y)
        S = C.T * C + ridge * mpmath.eye(C.cols)
        T = D.T * D + ridge * mpmath.eye(C.cols)
        if ridge:
            R = mpmath.cholesky(T)
            M = R.T * S * R
        else:
            M = (D * C.T) * (C * D.T)
        lam = mpmath.eigsy((M + M.T) / 2, eigvals_only=True)
        cross = sum(mpmath.sqrt(max(v, 0)) for v in lam)
        trace = sum(S[i, i] + T[i, i] for i in range(S.rows))
        return float(sum((a - b) ** 2 for a, b in zip(m, k, strict=True)) + trace - 2 * cross)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_value_is_that_of_fifty_digits(size, ridge):
    x, y = pair(*size)
    assert float(frechet_distance(x, y, ridge=ridge)) == pytest.approx(exact(x, y, ridge), rel=1e-12)


@pytest.mark.parametrize("size", SIZES[::2])
def test_both_gradients_and_second_derivatives_are_those_of_differences(size):
    x, y = (t.requires_grad_() for t in pair(*size))
    assert gradcheck(frechet_distance, (x, y), check_forward_ad=True)
    assert gradgradcheck(frechet_distance, (x, y), fast_mode=True)


@pytest.mark.parametrize("modes", ["ff", "fr", "rf", "rr"])
def test_second_derivatives_do_not_depend_on_the_modes(modes):
    x, y = pair(4, 6, 5)
    g = lambda t: frechet_distance(x + t * y[:4], y)  # noqa: E731
    right = torch.func.grad(torch.func.grad(g))(torch.tensor(0.2, dtype=F64))
    for mode in modes:
        g = slope(g) if mode == "f" else torch.func.grad(g)
    torch.testing.assert_close(g(torch.tensor(0.2, dtype=F64)), right, rtol=1e-10, atol=0.0)


def slope(g):
    return lambda s: torch.func.jvp(g, (s,), (torch.ones_like(s),))[1]


def dense_gradient(x, y):
    """2 (x - m) (I - A) / (n - 1) + the part of the mean, A = R (R S R)^(-1/2) R, R the root of the reference."""

    def power(S, p):
        lam, V = torch.linalg.eigh((S + S.T) / 2)
        keep = lam > 1e-11 * lam.max()
        return (V[:, keep] * lam[keep] ** p) @ V[:, keep].T

    n, m = len(x), x.mean(0)
    R = power(torch.cov(y.T), 0.5)
    A = R @ power(R @ torch.cov(x.T) @ R, -0.5) @ R
    return 2 * (m - y.mean(0)) / n + 2 * (x - m) @ (torch.eye(x.shape[1], dtype=F64) - A) / (n - 1)


@pytest.mark.parametrize("n", [8, 40, 200])
def test_the_gradient_is_the_dense_one(n):
    x, y = randn(n, 60), randn(300, 60, seed=1) * torch.linspace(0.3, 2, 60, dtype=F64) + 0.2
    x.requires_grad_()
    (g,) = torch.autograd.grad(frechet_distance(x, y), x)
    right = dense_gradient(x.detach(), y)
    assert (g - right).abs().max() < 1e-10 * right.abs().max()


# --- what other libraries get wrong in silence ------------------------------------------------------------------------


def by_eigenvalues_of_the_product(x, y):
    """sum of sqrt of the real parts of the eigenvalues of S1 S2."""
    S, T = torch.cov(x.T), torch.cov(y.T)
    root = torch.linalg.eigvals(S @ T).sqrt().real.sum()
    return (x.mean(0) - y.mean(0)).square().sum() + S.trace() + T.trace() - 2 * root


def by_root_of_the_product(x, y):
    """The real part of a Schur root of S1 S2, in float64 NumPy."""
    import scipy.linalg

    S, T = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = np.asarray(scipy.linalg.sqrtm(S @ T)).real
    return float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(S) + np.trace(T) - 2 * np.trace(root)


def test_fewer_samples_than_features_keep_their_digits():
    x, y = randn(12, 64), randn(12, 64, seed=1)
    right = exact(x, y)
    assert float(frechet_distance(x, y)) == pytest.approx(right, rel=1e-13)
    for wrong in (by_eigenvalues_of_the_product, by_root_of_the_product):
        assert abs(float(wrong(x, y)) - right) > 1e-11 * right  # roots of rounding errors


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_a_large_mean_costs_no_more_digits_than_the_features_have(offset):
    x, y = randn(20, 6), randn(30, 6, seed=1)
    near = float(frechet_distance(x, y))
    assert float(frechet_distance(x + offset, y + offset)) == pytest.approx(near, abs=1e-14 * offset * 100)
    x32, y32 = (x + offset).float(), (y + offset).float()
    assert float(frechet_distance(x32, y32)) == pytest.approx(
        float(frechet_distance(x32.double(), y32.double())), rel=1e-6
    )


@pytest.mark.parametrize("size", [(20, 30, 6), (5, 9, 12), (9, 9, 9)])
def test_equal_sets_are_at_distance_zero_with_gradient_zero(size):
    n, _, d = size
    x = randn(n, d).requires_grad_()
    value = frechet_distance(x, x.detach())
    (g,) = torch.autograd.grad(value, x)
    assert 0 <= float(value.detach()) < 1e-24
    assert float(g.abs().max()) < 1e-12
    near = x.detach() + 1e-9 * randn(n, d, seed=5)  # tiny distances are not lost to cancellation
    assert float(frechet_distance(near, x.detach())) == pytest.approx(exact(near, x.detach()), rel=1e-4)


@pytest.mark.parametrize("dead", ["in both", "in the reference", "in the samples"])
@pytest.mark.parametrize("n", [4, 20])
def test_constant_features(dead, n):
    """Units that never fire: no gradient exists where the reference varies along a dead unit of many samples."""
    x, y = randn(n, 6), randn(30, 6, seed=1)
    if dead != "in the reference":
        x[:, 2] = 0.0
    if dead != "in the samples":
        y[:, 2] = 0.0
    assert float(frechet_distance(x, y)) == pytest.approx(exact(x, y), rel=1e-12)
    x.requires_grad_()
    if dead == "in the samples" and n > 6:
        with pytest.raises(NotDifferentiable, match="kink there; add ridge="):
            frechet_distance(x, y).backward()
    else:
        assert gradcheck(lambda a: frechet_distance(a, y), (x,), atol=2e-5)
    assert gradcheck(lambda a: frechet_distance(a, y, ridge=0.1), (x,))


def test_a_collapse_to_one_point_has_a_value_and_no_gradient():
    x, y = torch.ones(5, 3, dtype=F64, requires_grad=True), randn(20, 3)
    value = frechet_distance(x, y)
    assert float(value.detach()) == pytest.approx(
        float((1 - y.mean(0)).square().sum() + torch.cov(y.T).trace()), rel=1e-12
    )
    with pytest.raises(NotDifferentiable):
        value.backward()


# --- Gaussians and classes --------------------------------------------------------------------------------------------


def test_a_stream_of_batches_gives_the_moments_of_all():
    x = randn(50, 4) + 1e3
    for parts in ([x], x.split(7), x.split(1), (b.float() for b in x.split(13))):
        g = gaussian_of(parts)
        torch.testing.assert_close(g.mean, x.mean(0), rtol=1e-6, atol=0.0)
        torch.testing.assert_close(g.covariance, torch.cov(x.T), rtol=2e-4, atol=1e-4)
        assert g.count == 50
    assert isinstance(gaussian_of(x), Gaussian)


@pytest.mark.parametrize("n", [4, 40])
def test_a_reference_given_by_moments_is_the_same(n):
    x, y = randn(n, 6).requires_grad_(), randn(30, 6, seed=1)
    right = frechet_distance(x, y)
    for reference in (gaussian_of(y), gaussian(y.mean(0), torch.cov(y.T))):
        value = frechet_distance(x, reference)
        torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
        (g,) = torch.autograd.grad(value, x)
        torch.testing.assert_close(g, torch.autograd.grad(right, x, retain_graph=True)[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(frechet_distance(gaussian_of(y), x), right, rtol=1e-12, atol=1e-12)


def test_classes_are_weighed_by_their_shares():
    x, y = randn(20, 3).requires_grad_(), randn(40, 3, seed=1)
    k, q = torch.arange(20) % 3, torch.arange(40) % 3
    right = sum((q == c).sum() / 40 * frechet_distance(x[k == c], y[q == c]) for c in range(3))
    torch.testing.assert_close(class_frechet_distance(x, y, k, q), right)
    given = {c: gaussian_of(y[q == c]) for c in range(3)}
    torch.testing.assert_close(
        class_frechet_distance(x, given, k, weights={0: 1.0, 1: 0.0, 2: 0.5}),
        frechet_distance(x[k == 0], y[q == 0]) + 0.5 * frechet_distance(x[k == 2], y[q == 2]),
    )
    assert gradcheck(lambda a: class_frechet_distance(a, y, k, q), (x,))


def test_the_rounding_of_float32_features_does_not_decide_about_a_gradient():
    """Rounding fills the null space of low-rank features: 1e-7 of their size is noise, 1e-2 are directions."""
    low = randn(200, 3, seed=4) @ randn(3, 20, seed=5)
    x = (1.2 * low[:50] + 0.1).requires_grad_()
    (g,) = torch.autograd.grad(frechet_distance(x, gaussian_of(low.float())), x)
    (right,) = torch.autograd.grad(frechet_distance(x, low), x)
    torch.testing.assert_close(g, right, rtol=1e-5, atol=1e-7)
    with pytest.raises(NotDifferentiable):
        frechet_distance(x, gaussian_of(low.to(torch.bfloat16).float())).backward()


def test_classes_see_what_one_gaussian_does_not():
    """Two classes that change places have the distance zero as one Gaussian, and not class by class."""
    x = torch.cat([randn(20, 2), randn(20, 2, seed=1) + 10])
    k = torch.arange(40) // 20
    assert float(frechet_distance(x, x)) < 1e-20
    assert float(class_frechet_distance(x, x, k, 1 - k)) > 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_of_the_features_comes_back_and_sums_are_exact(dtype):
    x, y = randn(10, 4).to(dtype).requires_grad_(), randn(12, 4, seed=1).to(dtype)
    value = frechet_distance(x, y)
    assert value.dtype == dtype
    right = frechet_distance(x.detach().double(), y.double())
    assert float(value.detach()) == pytest.approx(float(right), rel=float(torch.finfo(dtype).eps))
    value.backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_vmap_over_sets_agrees_with_a_loop():
    X, y = randn(3, 5, 4), randn(9, 4, seed=1)
    go = torch.func.grad(lambda x: frechet_distance(x, y))
    torch.testing.assert_close(torch.func.vmap(go)(X), torch.stack([go(x) for x in X]))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: frechet_distance(torch.ones(1, 3), torch.ones(2, 3)), ValueError, "at least 2 samples"),
        (lambda: frechet_distance(torch.ones(2, 3), torch.ones(2, 4)), ValueError, "as many features, got 3 and 4"),
        (lambda: frechet_distance(torch.ones(2, 3, 4), torch.ones(2, 4)), TypeError, r"shape \(n, d\)"),
        (lambda: frechet_distance(torch.ones(2, 3).int(), torch.ones(2, 3)), TypeError, "features must be real"),
        (lambda: frechet_distance([1.0], torch.ones(2, 3)), TypeError, "got list"),
        (lambda: frechet_distance(torch.ones(2, 3), torch.ones(2, 3), ridge=-1.0), ValueError, "ridge must be"),
        (lambda: frechet_distance(torch.full((2, 3), torch.nan), torch.ones(2, 3)), NonFinite, "must be finite"),
        (lambda: gaussian(torch.zeros(2), torch.zeros(3, 3)), ValueError, "covariance must have shape"),
        (lambda: gaussian(torch.zeros(2), -torch.eye(2)), ValueError, "semidefinite"),
        (lambda: gaussian(torch.zeros(2), torch.full((2, 2), torch.inf)), NonFinite, "must be finite"),
        (lambda: gaussian_of([]), ValueError, "at least 2 samples"),
        (lambda: gaussian_of([torch.ones(2, 3), torch.ones(2, 4)]), ValueError, "3 features each, got 4"),
        (
            lambda: class_frechet_distance(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2)),
            ValueError,
            "y_classes must give",
        ),
        (
            lambda: class_frechet_distance(randn(3, 3), randn(3, 3), torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])),
            ValueError,
            "at least 2 samples of each class",
        ),
        (
            lambda: class_frechet_distance(randn(3, 3), randn(3, 3), torch.tensor([0, 0, 7]), torch.zeros(3)),
            ValueError,
            "got class 7 of which y has none",
        ),
        (
            lambda: class_frechet_distance(randn(2, 3), randn(3, 3), torch.zeros(2), torch.zeros(3), weights={1: 1.0}),
            ValueError,
            "weights must be given for the classes",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_third_derivative_is_refused():
    x, y = pair(4, 6, 5)
    t = torch.zeros((), dtype=F64, requires_grad=True)
    value = frechet_distance(x + t * y[:4], y)
    for _ in range(2):
        (value,) = torch.autograd.grad(value, t, create_graph=True)
    with pytest.raises(NotDifferentiable, match="order 1 and 2, got order 3"):
        torch.autograd.grad(value, t)
