"""Values, first and second derivatives of matrix functions, beside mpmath with 60 digits."""

import mpmath
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from frechet.calculus.matrices import expm, logm, matrix_function, sqrtm
from frechet.errors import NonFinite, NotDifferentiable

F64 = torch.float64
DIGITS = 60
IN_TORCH = {
    "exp": "exp",
    "log": "log",
    "sqrt": "sqrt",
    "sin": torch.sin,
    "runge": lambda x: 1 / (1 + x * x),
    "gauss": lambda x: torch.exp(-x * x),
}
IN_MPMATH = {
    "exp": mpmath.exp,
    "log": mpmath.log,
    "sqrt": mpmath.sqrt,
    "sin": mpmath.sin,
    "runge": lambda x: 1 / (1 + x * x),
    "gauss": lambda x: mpmath.exp(-x * x),
}
SPECTRA = {
    "separate": [0.7, 1.0, 2.0, 4.0],
    "repeated": [1.0, 1.0, 1.0, 3.0],
    "all equal": [1.3, 1.3, 1.3, 1.3],
    "rounding apart": [1.0, 1.0 + 3e-16, 1.0 + 1e-14, 2.0],
    "close": [1.0, 1.0 + 1e-9, 1.0 + 1e-6, 1.0 + 1e-3],
    "near": [1.0, 1.03, 1.1, 1.3],
    "wide": [1e-6, 1e-3, 1.0, 1e3],
}


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def sym(A):
    return (A + A.mT) / 2


def with_eigenvalues(lam, seed=0):
    Q, _ = torch.linalg.qr(randn(len(lam), len(lam), seed=seed))
    return sym((Q * torch.tensor(lam, dtype=F64)) @ Q.T)


def exact(f, A):
    """f of a symmetric mpmath matrix, by its eigenvalues."""
    lam, Q = mpmath.eigsy(A)
    return Q * mpmath.diag([IN_MPMATH[f](x) for x in lam]) * Q.T


def exact_derivatives(f, A, E, G):
    """f(A), Df(A)[E] and D^2 f(A)[E, G] by differences with 60 digits."""
    with mpmath.workdps(DIGITS):
        a, e, g = (mpmath.matrix(x.tolist()) for x in (A, E, G))
        h = mpmath.mpf(10) ** -14

        def at(s, t):
            return exact(f, a + s * h * e + t * h * g)

        first = (at(1, 0) - at(-1, 0)) / (2 * h)
        second = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / (4 * h * h)
        return [
            torch.tensor([[float(x) for x in row] for row in m.tolist()], dtype=F64) for m in (at(0, 0), first, second)
        ]


def derivatives(m, A, E, G):
    def along(x):
        return torch.func.jvp(m, (x,), (E,))[1]

    return m(A), along(A), torch.func.jvp(along, (A,), (G,))[1]


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("f", IN_TORCH)
def test_a_symmetric_function_and_its_derivatives_are_those_of_sixty_digits(f, spectrum):
    if f == "exp" and spectrum == "wide":
        pytest.skip("exp(1000) overflows")
    A = with_eigenvalues(SPECTRA[spectrum])
    E, G = sym(randn(4, 4, seed=1)), sym(randn(4, 4, seed=2))
    for found, right in zip(
        derivatives(matrix_function(IN_TORCH[f]), A, E, G), exact_derivatives(f, A, E, G), strict=True
    ):
        # eigenvalues are known to eps |A|, of which a relative 1e-16 is large beside the smallest of a wide spectrum
        scale = 1e9 if spectrum == "wide" else 1.0
        assert (found - right).abs().max() <= 1e-12 * scale * right.abs().max() + 1e-14 * A.abs().max()


@pytest.mark.parametrize("spectrum", ["separate", "repeated", "close"])
@pytest.mark.parametrize("f", ["exp", "log", "sqrt", "runge"])
def test_reverse_mode_forward_mode_and_second_derivatives_agree(f, spectrum):
    A = with_eigenvalues(SPECTRA[spectrum]).requires_grad_()
    m = matrix_function(IN_TORCH[f])
    assert gradcheck(lambda a: m(sym(a)), (A,), check_forward_ad=True)
    assert gradgradcheck(lambda a: m(sym(a)), (A,), fast_mode=True)


def slope(g):
    return lambda s: torch.func.jvp(g, (s,), (torch.ones_like(s),))[1]


def jordan(n, value=1.0):
    return value * torch.eye(n, dtype=F64) + torch.diag(torch.ones(n - 1, dtype=F64), 1)


GENERAL = {
    "random": 0.3 * randn(3, 3) + 2 * torch.eye(3, dtype=F64),
    "defective": jordan(3),
    "rotation": torch.tensor([[1.0, 2.0, 0.0], [-2.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=F64),
    "identity": torch.eye(3, dtype=F64),
}


@pytest.mark.parametrize("matrix", GENERAL)
@pytest.mark.parametrize("f", ["exp", "log", "sqrt", "sin", "gauss"])
def test_a_general_function_has_the_derivatives_of_its_differences(f, matrix):
    A = GENERAL[matrix].clone().requires_grad_()
    m = matrix_function(IN_TORCH[f], symmetric=False)
    assert gradcheck(m, (A,), check_forward_ad=True)
    if f in ("exp", "sqrt"):
        assert gradgradcheck(m, (A,), fast_mode=True)


def test_three_derivatives_of_a_general_exponential_are_a_power_series():
    A, h = torch.zeros(2, 2, dtype=F64), randn(2, 2, seed=3)
    t = torch.zeros((), dtype=F64)
    found, g = [], lambda s: expm(A + s * h)
    for _ in range(3):
        g = slope(g)
        found.append(g(t))
    for k, d in enumerate(found, 1):
        torch.testing.assert_close(d, torch.linalg.matrix_power(h, k), rtol=1e-12, atol=1e-12)


def test_symmetric_and_general_routes_agree():
    A = with_eigenvalues(SPECTRA["repeated"])
    for f in ("exp", "log", "sqrt", torch.sin):
        one, other = matrix_function(f)(A), matrix_function(f, symmetric=False)(A)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_the_sum_of_a_function_of_a_large_cluster_keeps_its_gradient():
    A = torch.eye(30, dtype=F64).requires_grad_()
    C = sym(randn(30, 30))
    (g,) = torch.autograd.grad((logm(A, symmetric=True) * C).sum(), A, create_graph=True)
    torch.testing.assert_close(g, C)  # log'(1) = 1
    (h,) = torch.autograd.grad((g * C).sum(), A)
    torch.testing.assert_close(h, -C @ C)  # log''(1) = -1


@pytest.mark.parametrize("transform", ["vmap grad", "jacfwd jacrev", "hessian"])
def test_transforms_of_batches_agree_with_a_loop(transform):
    X = torch.stack([with_eigenvalues(lam) for lam in ([1.0, 1.0, 2.0], [0.5, 1.0, 3.0])])

    def loss(a):
        return sqrtm(sym(a)).pow(3).sum() + expm(a).sum() + logm(sym(a), symmetric=True)[0, 1]

    go = {
        "vmap grad": torch.func.grad,
        "jacfwd jacrev": lambda f: torch.func.jacfwd(torch.func.jacrev(f)),
        "hessian": torch.func.hessian,
    }[transform](loss)
    torch.testing.assert_close(torch.func.vmap(go)(X), torch.stack([go(x) for x in X]), rtol=1e-11, atol=1e-11)


def test_leading_dimensions_are_a_batch():
    X = torch.stack([with_eigenvalues([1.0, 1.0, 2.0], seed=s) for s in range(6)]).reshape(2, 3, 3, 3)
    for f in (lambda a: sqrtm(a), lambda a: logm(a), lambda a: expm(a, symmetric=True)):
        torch.testing.assert_close(f(X)[1, 2], f(X[1, 2]))
    assert sqrtm(X[:0]).shape == (0, 3, 3, 3)
    assert sqrtm(torch.zeros(0, 0)).shape == (0, 0)


def test_float32_keeps_its_digits_at_repeated_eigenvalues():
    A = with_eigenvalues(SPECTRA["repeated"])
    for symmetric in (True, False):
        x, y = A.float().requires_grad_(), A.clone().requires_grad_()
        for a in (x, y):
            (logm(a, symmetric=symmetric) * torch.arange(16.0).reshape(4, 4)).sum().backward()
        assert (x.grad.double() - y.grad).abs().max() < 1e-5 * y.grad.abs().max()


# --- singular matrices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_root_has_its_value_and_the_gradients_that_exist(zeros, dtype):
    lam = [4.0, 1.0, 2.25, 9.0][: 4 - zeros] + [0.0] * zeros
    Q, _ = torch.linalg.qr(randn(4, 4))
    A64 = sym((Q * torch.tensor(lam, dtype=F64)) @ Q.T)
    A = A64.to(dtype).requires_grad_()
    R = sqrtm(A)
    tol = 1e-3 if dtype == torch.float32 else 1e-7  # a root of a rounding error
    torch.testing.assert_close(R @ R, A, rtol=tol, atol=tol)
    u = Q[:, 0].to(dtype)
    (g,) = torch.autograd.grad(u @ R @ u, A, retain_graph=True)
    torch.testing.assert_close(g, torch.outer(u, u) / (2 * lam[0] ** 0.5), rtol=1e-3, atol=1e-4)
    with pytest.raises(NotDifferentiable, match="sqrtm: f has no derivative"):
        R.trace().backward()


def test_a_singular_root_in_forward_mode_has_the_directions_that_exist():
    A = torch.diag(torch.tensor([4.0, 0.0], dtype=F64))
    E = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=F64)
    torch.testing.assert_close(torch.func.jvp(sqrtm, (A,), (E,))[1], torch.tensor([[0.25, 0.5], [0.5, 0.0]], dtype=F64))
    with pytest.raises(NotDifferentiable):
        torch.func.jvp(sqrtm, (A,), (torch.eye(2, dtype=F64),))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: sqrtm(torch.ones(2, 3)), ValueError, r"shape \(..., n, n\)"),
        (lambda: sqrtm([[1.0]]), TypeError, "A must be a tensor"),
        (lambda: expm(torch.eye(2, dtype=torch.int64)), TypeError, "float32 or float64"),
        (lambda: expm(torch.eye(2, dtype=torch.complex64)), TypeError, "float32 or float64"),
        (lambda: sqrtm(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), ValueError, "A must be symmetric"),
        (lambda: sqrtm(torch.eye(2, dtype=F64) + 1e-9 * randn(2, 2)), ValueError, "A must be symmetric"),
        (lambda: sqrtm(-torch.eye(2)), NonFinite, "must be finite at the eigenvalues"),
        (lambda: logm(torch.zeros(2, 2), symmetric=True), NonFinite, "must be finite at the eigenvalues"),
        (lambda: logm(-torch.eye(3)), NonFinite, "real and finite"),
        (lambda: sqrtm(-torch.eye(3), symmetric=False), NonFinite, "real and finite"),
        (lambda: sqrtm(torch.zeros(2, 2), symmetric=False), NonFinite, "invertible"),
        (lambda: sqrtm(torch.full((2, 2), torch.nan)), NonFinite, "A must be finite"),
        (lambda: expm(torch.full((2, 2), torch.inf)), NonFinite, "A must be finite"),
        (lambda: matrix_function("tan"), ValueError, "'exp', 'log', 'sqrt' or a function"),
        (lambda: matrix_function(3), TypeError, "function of a tensor"),
        (lambda: matrix_function(torch.sqrt, symmetric=False)(1e-9 * jordan(2, 0.0)), NonFinite, "analytic"),
        (lambda: matrix_function(lambda x: 1 / x, symmetric=False)(torch.zeros(1, 1)), NonFinite, "finite at the"),
    ],
)
def test_what_has_no_value_is_refused_in_a_sentence(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_third_derivative_of_a_symmetric_function_is_refused():
    x = torch.tensor(1.0, dtype=F64, requires_grad=True)
    y = expm(x * torch.eye(2, dtype=F64), symmetric=True).sum()
    for _ in range(2):
        (y,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(NotDifferentiable, match="order 1 and 2"):
        torch.autograd.grad(y, x)


@pytest.mark.parametrize("f", ["exp", "log", "sqrt", "runge"])
def test_rounding_of_first_differences_at_equal_eigenvalues_is_not_divided_by_zero(f):
    """First differences of (x, x) and (x, y) may differ by rounding where y - x is zero."""
    from frechet.calculus.matrices._divided_differences import smooth

    scalar = smooth(f, getattr(torch, f) if f != "runge" else IN_TORCH[f])
    x = torch.tensor([1.0, 1.0], dtype=F64)
    once = scalar.first(x, x)
    found = scalar.second((x, x, x), (once, once * (1 + 2e-16), once))
    assert bool(found.isfinite().all())


KINKS = {
    "relu": (torch.relu, [0.0, 0.0, 1.0]),
    "relu once": (torch.relu, [0.0, 1.0, 2.0]),
    "abs of rounding": (torch.abs, [1e-17, -1e-17, 1.0]),
    "abs of the zero matrix": (torch.abs, [0.0, 0.0, 0.0]),
    "leaky relu": (torch.nn.functional.leaky_relu, [0.0, -1.0, 2.0]),
    "hinge": (lambda x: torch.relu(1 - x), [1.0, 1.0, 3.0]),
    "root": (torch.sqrt, [0.0, 1.0, 2.0]),
}


@pytest.mark.parametrize("name", KINKS)
def test_a_kink_at_an_eigenvalue_is_refused_where_the_loss_sees_it(name):
    f, lam = KINKS[name]
    A = torch.diag(torch.tensor(lam, dtype=F64)).requires_grad_()
    found = matrix_function(f)(A)
    if len(set(lam)) > 1:
        (g,) = torch.autograd.grad(found[2, 2], A, retain_graph=True)  # which does not see it
        assert bool(g.isfinite().all())
    with pytest.raises(NotDifferentiable, match="no derivative at an eigenvalue"):
        found.trace().backward()


@pytest.mark.parametrize("f", [torch.abs, torch.relu, torch.nn.functional.leaky_relu])
def test_a_kink_between_eigenvalues_is_no_obstacle(f):
    A = with_eigenvalues([-1.0, -1.0, 2.0, 1e-3]).requires_grad_()
    assert gradcheck(lambda a: matrix_function(f)(sym(a)), (A,), check_forward_ad=True)
    assert gradgradcheck(lambda a: matrix_function(f)(sym(a)), (A,), atol=1e-3, rtol=1e-3)  # second differences of 1e3


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_function_with_parameters_is_refused_whose_gradient_would_be_lost(symmetric):
    t = torch.tensor(2.0, dtype=F64, requires_grad=True)
    A = torch.eye(2, dtype=F64)
    with pytest.raises(NotDifferentiable, match=r"t \* f\(A\)"):
        matrix_function(lambda x: torch.sin(t * x), symmetric=symmetric)(A)
    with pytest.raises(NotDifferentiable, match=r"t \* f\(A\)"):
        torch.func.grad(lambda s: matrix_function(lambda x: torch.sin(s * x), symmetric=symmetric)(A).sum())(t.detach())
    matrix_function(torch.sin, symmetric=symmetric)(t * A).sum().backward()
    assert float(t.grad) == pytest.approx(float(2 * torch.cos(t.detach())))


def test_a_function_of_all_entries_is_refused():
    with pytest.raises(ValueError, match="f must map each entry to a number"):
        matrix_function(lambda x: x.sum())(torch.eye(2))
