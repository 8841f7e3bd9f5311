"""A derivative is a covector and a gradient a vector; what takes a metric runs as in the variables y = M^1/2 x."""

import pytest
import torch

from frechet import check_operator, from_diagonal, from_matrix, minimize
from frechet.calculus.functionals import difference_operator, sobolev
from frechet.errors import NoClosedForm
from frechet.linalg import cg
from frechet.operators import Metric, from_callable, product_metric
from frechet.space import Space
from spectra import F64, gaussian, geometric, with_eigenvalues


def definite(A):
    return from_matrix(A, facts="positive_definite")


METRICS = {
    "diagonal": lambda: Metric(from_diagonal(geometric(12, 1e3))),
    "dense": lambda: Metric(definite(with_eigenvalues(geometric(12, 1e3)))),
    "H1": lambda: sobolev(12, 0.1, boundary="neumann"),
    "H1/2": lambda: sobolev((3, 4), 0.3, order=0.5),
    "besov": lambda: sobolev(12, 0.2, boundary="periodic", weights="besov"),
    "product": lambda: product_metric({"a": sobolev(5, 0.2), "b": Metric(from_diagonal(geometric(7, 10.0)))}),
}


@pytest.mark.parametrize("name", METRICS)
def test_norms_and_riesz_maps_are_those_of_the_matrix(name):
    metric = METRICS[name]()
    M, u, c = metric.mass.dense(), gaussian(12), gaussian(12, seed=1)
    torch.testing.assert_close(metric.inner(u, c), u @ M @ c)
    torch.testing.assert_close(metric.norm(u), (u @ M @ u).sqrt())
    torch.testing.assert_close(metric.riesz(c), torch.linalg.solve(M, c), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(metric.dual_norm(c), (c @ torch.linalg.solve(M, c)).sqrt())
    torch.testing.assert_close(metric.dual_norm(torch.stack([c, u], 1))[0], metric.dual_norm(c))
    torch.testing.assert_close(metric.riesz(metric.covector(u)), u, rtol=1e-9, atol=1e-9)
    R = metric.factor.dense()
    torch.testing.assert_close(R @ R.T, torch.linalg.inv(M), rtol=1e-8, atol=1e-9)
    for A in (metric.mass, metric.inverse, metric.factor):
        assert check_operator(A, seed=0).failed == ()


@pytest.mark.parametrize("name", METRICS)
def test_the_slope_along_vectors_of_norm_one_is_at_most_the_dual_norm(name):
    metric, c = METRICS[name](), gaussian(12)
    steepest = metric.riesz(c)
    slope = float(c @ steepest / metric.norm(steepest))
    assert slope == pytest.approx(float(metric.dual_norm(c)), rel=1e-9)
    for seed in range(5):
        v = gaussian(12, seed=seed + 7)
        assert float(c @ v / metric.norm(v)) <= slope * (1 + 1e-12)


def test_a_gradient_changes_with_the_variables_as_vectors_do_and_a_derivative_as_covectors():
    metric, R = METRICS["dense"](), with_eigenvalues(geometric(12, 10.0), seed=3)
    other = Metric(definite(R.T @ metric.mass.dense() @ R))
    c = gaussian(12)
    torch.testing.assert_close(R @ other.riesz(R.T @ c), metric.riesz(c), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(other.dual_norm(R.T @ c), metric.dual_norm(c), rtol=1e-9, atol=0)


def test_penalties_written_with_it_are_differentiable():
    metric, u = METRICS["H1"](), gaussian(12)
    M = metric.mass.dense()
    torch.testing.assert_close(torch.func.grad(lambda u: metric.inner(u, u))(u), 2 * M @ u)
    torch.testing.assert_close(torch.func.hessian(lambda u: metric.norm(u) ** 2)(u), 2 * M, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.func.jacfwd(metric.riesz)(u), torch.linalg.inv(M), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        torch.func.grad(lambda c: metric.dual_norm(c) ** 2)(u), 2 * metric.riesz(u), rtol=1e-9, atol=1e-9
    )


# --- the law: a run in the metric is the run in the variables y = R^-1 x ---------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_cg_in_a_metric_is_cg_in_the_variables_in_which_it_is_euclidean(name):
    metric = METRICS[name]()
    A, b, R = with_eigenvalues(geometric(12, 50.0), seed=5), gaussian(12), metric.factor.dense()
    steps, plain = [], []
    s = cg(definite(A), b, metric=metric, rtol=1e-6, observe=lambda now: bool(steps.append(now.x.clone())))
    inner = definite((R.T @ A @ R + R.T @ A.T @ R) / 2)
    y = cg(inner, R.T @ b, rtol=1e-6, observe=lambda now: bool(plain.append(now.x.clone())))
    assert s.converged
    assert y.converged
    assert abs(s.iterations - y.iterations) <= 1
    for at, there in zip(steps[:5], plain[:5], strict=True):  # rounding grows from step to step
        torch.testing.assert_close(at, R @ there, rtol=1e-6, atol=1e-8)
    assert s.residual == pytest.approx(float(metric.dual_norm(b - A @ s.x)), rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("name", ["diagonal", "dense", "H1"])
def test_minimize_in_a_metric_is_minimize_in_the_variables_in_which_it_is_euclidean(name):
    metric = METRICS[name]()
    R = metric.factor.dense()

    def f(x):
        return ((x**2 - 1).square() / 4 + 0.3 * x.roll(1) * x).sum() + 0.1 * x.sum()

    x0 = gaussian(12, seed=2)
    there, here = [], []
    s = minimize(f, x0, metric=metric, gtol=1e-8, observe=lambda now: bool(here.append(now)))
    eye = Metric(from_diagonal(torch.ones(12, dtype=F64)))
    y0 = torch.linalg.solve(R, x0)
    y = minimize(lambda y: f(R @ y), y0, metric=eye, gtol=1e-8, observe=lambda now: bool(there.append(now)))
    assert s.converged
    assert y.converged
    assert abs(s.iterations - y.iterations) <= 1
    for a, b in zip(here[:4], there[:4], strict=False):
        assert a.value == pytest.approx(b.value, rel=1e-6, abs=1e-9)
        assert a.gradient == pytest.approx(b.gradient, rel=1e-5, abs=1e-8)
    torch.testing.assert_close(s.x, R @ y.x, rtol=1e-6, atol=1e-7)
    assert s.residual == pytest.approx(float(metric.dual_norm(s.gradient)), rel=1e-6, abs=1e-15)
    assert s.residual <= 1e-8


def test_the_dual_norm_stops_alike_on_every_grid_where_entries_do_not():
    def run(n, metric):
        h = 1 / n
        x = (torch.arange(n, dtype=F64) + 0.5) * h
        start = torch.ones(n, dtype=F64)
        return minimize(lambda u: h * ((u - x.sin()) ** 2 / 2 + u**4).sum(), start, gtol=1e-4, ftol=0.0, metric=metric)

    found = [run(n, Metric(from_diagonal(torch.full((n,), 1 / n, dtype=F64)))) for n in (20, 200, 2000)]
    assert len({s.iterations for s in found}) == 1
    assert all("dual norm" in s.message for s in found)


# --- what the H1 metric is for ----------------------------------------------------------------------------------------


def heat_control(M):
    """A'WA + 0.01 * the H1 penalty: the heat flux at one end of a bar for a temperature at the end time."""
    n, h, dt = 40, 1 / 40, 1 / M
    K = torch.diag(torch.full((n,), 2.0, dtype=F64)) - torch.diag(torch.ones(n - 1, dtype=F64), 1)
    K -= torch.diag(torch.ones(n - 1, dtype=F64), -1)
    K[-1, -2] = -2.0
    S = torch.linalg.inv(torch.eye(n, dtype=F64) + dt * K / h**2)
    z = S @ (dt * torch.eye(n, dtype=F64)[-1] * 2 / h)
    columns = [z]
    for _ in range(M - 1):
        columns.append(S @ columns[-1])
    A = torch.stack(columns[::-1], 1)
    W = torch.full((n,), h, dtype=F64)
    W[-1] = h / 2
    t = (torch.arange(M, dtype=F64) + 0.5) * dt
    D = difference_operator(M, dt, boundary="free").dense()
    H = A.T @ (W[:, None] * A) + 1e-2 * dt * (torch.eye(M, dtype=F64) + D.T @ D)
    return H, A.T @ (W * (A @ (torch.sin(2 * torch.pi * t) + 0.5 * t))), dt


def test_cg_for_an_h1_control_takes_as_many_steps_on_every_grid_in_h1_and_only_there():
    counts = {"H1": [], "plain": []}
    for M in (25, 50, 100, 200, 400):
        H, b, dt = heat_control(M)
        H1 = sobolev(M, dt, boundary="neumann")
        exact = torch.linalg.solve(H, b)
        for name, metric in (("H1", H1), ("plain", None)):
            s = cg(definite(H), b, metric=metric, rtol=1e-4)
            assert s.converged
            counts[name].append(s.iterations)
            assert float(H1.norm(s.x - exact)) <= 5e-3 * float(H1.norm(exact))
    assert max(counts["H1"]) <= 6
    assert counts["plain"][0] >= 24
    assert counts["plain"][-1] >= 5 * counts["plain"][0]


# --- wrong arguments --------------------------------------------------------------------------------------------------


def test_what_is_no_metric_is_refused():
    D = from_diagonal(torch.ones(3, dtype=F64))
    with pytest.raises(ValueError, match="mass must be positive definite"):
        Metric(from_diagonal(torch.tensor([1.0, 0.0, 2.0])))
    with pytest.raises(ValueError, match="inverse @ mass must be the identity"):
        Metric(D, from_diagonal(torch.full((3,), 2.0, dtype=F64)))
    with pytest.raises(ValueError, match=r"factor\.T @ mass must be the identity"):
        Metric(D, D, factor=from_diagonal(torch.full((3,), 2.0, dtype=F64)))
    with pytest.raises(NoClosedForm, match="inverse must be given"):
        Metric(from_callable(lambda V: 2 * V, 3, facts="positive_definite"))
    with pytest.raises(ValueError, match="inverse must have the shape"):
        Metric(D, from_diagonal(torch.ones(4, dtype=F64)))
    with pytest.raises(TypeError, match="mass must be a LinearOperator"):
        Metric(torch.eye(3))
    with pytest.raises(ValueError, match="weights must be numbers > 0"):
        product_metric({"a": Metric(D)}, weights={"b": 1.0})
    with pytest.raises(ValueError, match="at least one block"):
        product_metric({})


def test_a_metric_that_is_declared_positive_and_is_not_is_refused():
    """By a few random vectors where it is made, by the vectors that come where those missed it."""
    for n, negative in ((3, 1), (20, 6)):
        d = torch.ones(n, dtype=F64)
        d[:negative] = -3.0
        mass = from_callable(lambda V, d=d: d[:, None] * V, n, facts="positive_definite", dtype=F64)
        inverse = from_callable(lambda V, d=d: V / d[:, None], n, facts="positive_definite", dtype=F64)
        with pytest.raises(ValueError, match=r"must be positive, got -.*declared positive definite and is not"):
            Metric(mass, inverse)
    d = torch.ones(200, dtype=F64)
    d[3] = -1.0
    hidden = Metric(from_callable(lambda V: d[:, None] * V, 200, facts="positive_definite", dtype=F64),
                    from_callable(lambda V: V / d[:, None], 200, facts="positive_definite", dtype=F64))  # fmt: skip
    e = torch.eye(200, dtype=F64)[3]
    for call in (
        hidden.norm,
        hidden.dual_norm,
        lambda e: minimize(lambda x: (x - e).square().sum(), 0 * e, metric=hidden),
    ):
        with pytest.raises(ValueError, match="declared positive definite and is not"):
            call(e)


FOUR = torch.ones(4, dtype=F64)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: cg(definite(torch.eye(4, dtype=F64)), FOUR, metric=m),
        lambda m: minimize(lambda x: x.square().sum(), FOUR, metric=m),
    ],
)
def test_a_metric_of_another_space_is_refused(call):
    with pytest.raises(ValueError, match="metric must be one on"):
        call(Metric(from_diagonal(torch.ones(3, dtype=F64))))
    with pytest.raises(TypeError, match="metric must be a Metric"):
        call(from_diagonal(torch.ones(4, dtype=F64)))


def test_a_metric_and_a_preconditioner_are_refused_together_by_minimize():
    D = from_diagonal(torch.ones(2, dtype=F64))
    with pytest.raises(ValueError, match="preconditioner must be left out with a metric"):
        minimize(lambda x: x.square().sum(), torch.ones(2, dtype=F64), metric=Metric(D), preconditioner=D)


def test_a_product_metric_has_the_names_of_the_variables():
    metric = product_metric({"q": sobolev(3, 0.5), "v": Metric(from_diagonal(torch.ones(2, dtype=F64)))})
    assert metric.space == Space(("q", "v"), ((3,), (2,)), F64)
    x0 = metric.space.unflatten(torch.zeros(5, dtype=F64))
    s = minimize(lambda x: (x["q"] - 1).square().sum() + x["v"].square().sum(), x0, metric=metric)
    torch.testing.assert_close(s.x["q"], torch.ones(3, dtype=F64))


def test_values_on_a_grid_and_dicts_of_them_are_vectors():
    H1, g = sobolev((3, 4), 0.5), gaussian(3, 4)
    both = product_metric({"f": H1, "s": Metric(from_diagonal(geometric(5, 9.0)))})
    x, y = ({"f": gaussian(3, 4, seed=s), "s": gaussian(5, seed=s + 2)} for s in (1, 2))
    flat = [torch.cat([v["f"].reshape(-1), v["s"]]) for v in (x, y)]
    assert torch.equal(H1.norm(g), H1.norm(g.reshape(-1)))
    assert torch.equal(H1.riesz(g), H1.riesz(g.reshape(-1)))
    assert torch.equal(both.inner(x, y), both.inner(*flat))
    assert torch.equal(both.norm(dict(reversed(x.items()))), both.norm(flat[0]))
    for product in (both.riesz, both.covector):
        assert torch.equal(product(x), product(flat[0]))
    with pytest.raises(ValueError, match=r"a dict must hold blocks with {'f': 12, 's': 5} entries, got .*\(4,\)"):
        both.inner(x, {**y, "s": torch.ones(4, dtype=F64)})


@pytest.mark.parametrize("size", [1e-200, 1e-160, 1.0, 1e160, 1e200])
def test_norms_of_small_and_large_vectors_stay_in_range(size):
    metric, c = METRICS["dense"](), gaussian(12)
    assert float(metric.norm(size * c)) == pytest.approx(size * float(metric.norm(c)), rel=1e-12)
    assert float(metric.dual_norm(size * c)) == pytest.approx(size * float(metric.dual_norm(c)), rel=1e-12)
    both = torch.stack([size * c, 0 * c, c], 1)
    assert metric.dual_norm(both).tolist() == pytest.approx(
        [size * float(metric.dual_norm(c)), 0.0, float(metric.dual_norm(c))], rel=1e-12
    )


@pytest.mark.parametrize("unit", [1e-200, 1e-100, 1.0, 1e100, 1e200])
def test_minimize_in_a_metric_does_not_depend_on_the_unit_of_f(unit):
    s = minimize(lambda x: unit * ((x - 1) ** 2).sum(), torch.zeros(12, dtype=F64), metric=METRICS["H1"]())
    assert s.converged
    torch.testing.assert_close(s.x, torch.ones(12, dtype=F64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("order", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_in_a_metric_that_is_not_diagonal(order, seed):
    B, b = gaussian(30, 30, seed=seed), gaussian(30, seed=seed + 50)
    A = B @ B.T / 30 + 0.01 * torch.eye(30, dtype=F64)
    metric = sobolev(30, 1 / 30, order=order, boundary="neumann")
    f = lambda x: 0.5 * x @ A @ x - b @ x  # noqa: E731
    plain = minimize(f, torch.zeros(30, dtype=F64), bounds=(-0.5, 0.5))
    s = minimize(f, torch.zeros(30, dtype=F64), bounds=(-0.5, 0.5), metric=metric, max_iterations=150)
    assert s.converged
    torch.testing.assert_close(s.x, plain.x, rtol=1e-9, atol=1e-9)


def test_blocks_in_another_order_than_the_variables_are_refused():
    one = lambda n: Metric(from_diagonal(torch.ones(n, dtype=F64)))  # noqa: E731
    x0 = {"b": torch.zeros(3, dtype=F64), "a": torch.ones(2, dtype=F64)}
    f = lambda x: x["a"].square().sum() + x["b"].square().sum()  # noqa: E731
    with pytest.raises(ValueError, match="metric must have the blocks of the variables in their order"):
        minimize(f, x0, metric=product_metric({"a": one(2), "b": one(3)}))
    assert minimize(f, x0, metric=product_metric({"b": one(3), "a": one(2)})).converged
