import math

import pytest
import torch
from torch.autograd.profiler import profile

from frechet import NotConverged, Objective, Status, cross_entropy, implicit, minimize
from frechet.calculus import hypergradient, stationary_conditions

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


X, Y, V, Z, T = draw(30, 6, seed=1), draw(30, seed=2), draw(20, 6, seed=3), draw(20, seed=4), draw(6, seed=5)


def inner(w, t):
    return ((X @ w - Y) ** 2).sum() / 2 + (t.exp() * w**2).sum() / 2


def outer(w, t):
    return ((V @ w - Z) ** 2).sum() / 2 + 0.01 * (t**2).sum()


def minimum(t):
    return torch.linalg.solve(X.T @ X + torch.diag(t.exp()), X.T @ Y)


def exact(t):
    t = t.clone().requires_grad_()
    return torch.autograd.grad(outer(minimum(t), t), t)[0]


INVERSES = {
    "cg": {},
    "cg with nystrom": {"rank": 3, "seed": 0, "damping": 1e-10},
    "neumann": {"inverse": "neumann", "terms": 400, "seed": 0},
    "neumann, given scale": {"inverse": "neumann", "terms": 400, "scale": 0.018},
    "nystrom of full rank": {"inverse": "nystrom", "rank": 6, "seed": 0},
}


@pytest.mark.parametrize("inverse", INVERSES)
def test_every_inverse_gives_the_closed_form_of_ridge_weights(inverse):
    h = hypergradient(outer, inner, minimum(T), T, **INVERSES[inverse]).checked()
    assert torch.allclose(h.gradient, exact(T), atol=1e-8)
    assert h.value == pytest.approx(float(outer(minimum(T), T)))
    assert h.stationarity < 1e-12
    assert h.residual <= 1.5e-8


def test_it_agrees_with_differences_of_the_full_solve_of_a_nonlinear_problem():
    labels = (Y > 0).double()

    def loss(w, t):
        z = X @ w
        return (torch.nn.functional.softplus(z) - labels * z).sum() + (t.exp() * w**2).sum() / 2

    def solve(t):
        w = torch.zeros(6, dtype=F64)
        for _ in range(30):
            p = torch.sigmoid(X @ w)
            H = X.T @ ((p * (1 - p))[:, None] * X) + torch.diag(t.exp())
            w = w - torch.linalg.solve(H, X.T @ (p - labels) + t.exp() * w)
        return w

    found = hypergradient(outer, loss, solve(T), T, rtol=1e-12).checked().gradient
    h = 1e-5
    differences = [
        (outer(solve(T + h * e), T + h * e) - outer(solve(T - h * e), T - h * e)) / (2 * h)
        for e in torch.eye(6, dtype=F64)
    ]
    assert torch.allclose(found, torch.stack(differences), atol=1e-8)
    t = T.clone().requires_grad_()
    layer = implicit(solve, stationary_conditions(loss))
    assert torch.allclose(found, torch.autograd.grad(outer(layer(t), t), t)[0], atol=1e-10)


def test_the_recurrence_of_cg_is_the_right_one():
    # betty #15: a wrong recurrence gave a wrong inverse for a year; here with a condition number of 1e4
    d = torch.logspace(0, 4, 50, dtype=F64)
    b = draw(50, seed=6)
    h = hypergradient(
        lambda x, t: b @ x,
        lambda x, t: (d * x**2).sum() / 2 - t @ x,
        torch.zeros(50, dtype=F64),
        torch.zeros(50).double(),
    ).checked()
    assert torch.allclose(h.gradient, b / d, rtol=0, atol=1e-7)


def test_dicts_of_both_come_back_as_dicts():
    x, t = minimum(T), {"low": T[:2], "high": T[2:]}

    def inner_of_dicts(x, t):
        return inner(torch.cat([x["a"], x["b"]]), torch.cat([t["low"], t["high"]]))

    def outer_of_dicts(x, t):
        return outer(torch.cat([x["a"], x["b"]]), torch.cat([t["low"], t["high"]]))

    h = hypergradient(outer_of_dicts, inner_of_dicts, {"a": x[:4], "b": x[4:]}, t, correct=True)
    assert isinstance(h.gradient, dict)
    assert torch.allclose(torch.cat([h.gradient["low"], h.gradient["high"]]), exact(T), atol=1e-8)
    assert isinstance(h.correction, dict)
    assert h.correction["low"].shape == (2,)


def test_batches_of_data_are_summed_one_graph_at_a_time():
    train = [(X[i : i + 7], Y[i : i + 7]) for i in range(0, 30, 7)]
    held = [(V[i : i + 6], Z[i : i + 6]) for i in range(0, 20, 6)]

    def on_batch(w, t, batch):
        A, b = batch
        return ((A @ w - b) ** 2).sum() / 2 + len(b) / 30 * (t.exp() * w**2).sum() / 2

    def outer_on_batch(w, t, batch):
        A, b = batch
        return ((A @ w - b) ** 2).sum() / 2 + len(b) / 20 * 0.01 * (t**2).sum()

    x = minimum(T) + 0.01 * draw(6, seed=7)
    given = {"correct": True, "rtol": 1e-12}
    whole = hypergradient(outer, inner, x, T, **given)
    parts = hypergradient(outer_on_batch, on_batch, x, T, outer_data=held, inner_data=train, **given)
    assert torch.allclose(whole.gradient, parts.gradient, atol=1e-10)
    assert torch.allclose(whole.correction, parts.correction, atol=1e-10)
    assert (whole.products, whole.value) == (parts.products, pytest.approx(parts.value))


def test_objectives_are_functions_of_x():
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3).double()
    labels = torch.arange(30) % 3
    train = Objective(model, cross_entropy(), [(X[:20], labels[:20])])
    held = Objective(model, cross_entropy(), [(X[20:], labels[20:])])
    t = torch.full((train.space.dim,), -3.0, dtype=F64)

    def loss(x, t):
        return train.value(x) + (t.exp() * x**2).sum() / 2

    def solve(t):
        x = train.point
        for _ in range(25):
            g = torch.func.grad(lambda x: loss(x, t))(x)
            x = x - torch.linalg.solve(torch.autograd.functional.hessian(lambda x: loss(x, t), x), g)
        return x

    found = hypergradient(lambda x, t: held.value(x), loss, solve(t), t, rtol=1e-12).checked().gradient
    for i in (0, 20):
        e = torch.zeros_like(t)
        e[i] = 1e-4
        assert float(found[i]) == pytest.approx(
            float(held.value(solve(t + e)) - held.value(solve(t - e))) / 2e-4, abs=1e-8
        )


@pytest.mark.parametrize("rough", [{"rtol": 1e-12}, {"rtol": 1e-2}, {"damping": 0.5, "rtol": 1e-12}])
def test_the_first_order_error_is_what_is_left_to_the_exact_gradient(rough):
    def bent(w, t):
        return inner(w, t) + (w**4).sum() + (t * w**3).sum() / 3

    w = minimum(T)
    for _ in range(20):
        slope = torch.autograd.functional.jacobian(lambda w: bent(w, T), w)
        w = w - torch.linalg.solve(torch.autograd.functional.hessian(lambda w: bent(w, T), w), slope)
    best = hypergradient(outer, bent, w, T, rtol=1e-13).checked().gradient
    h = hypergradient(outer, bent, w + 1e-3 * draw(6, seed=8), T, correct=True, **rough)
    before, after = (float((g - best).square().sum().sqrt()) for g in (h.gradient, h.gradient + h.correction))
    assert 0.7 * before < h.error < 1.4 * before
    assert after < before / (5 if "damping" in rough or h.residual > 1e-8 else 50)


def test_errors_are_bounded_by_the_curvature():
    x = minimum(T) + 1e-2 * draw(6, seed=9)
    least = float(torch.linalg.eigvalsh(X.T @ X + torch.diag(T.exp()))[0])
    h = hypergradient(outer, inner, x, T, rtol=1e-1, curvature=least)
    v = torch.linalg.solve(X.T @ X + torch.diag(T.exp()), V.T @ (V @ x - Z))
    assert float((x - minimum(T)).square().sum().sqrt()) <= h.inner_error * (1 + 1e-12)
    assert 0 < float((h.solve.x - v).square().sum().sqrt()) <= h.solve_error * (1 + 1e-12)
    assert h.correction is None


def test_products_are_counted():
    count = 0

    def counted(x, t):
        nonlocal count
        count += 1
        return inner(x, t)

    plain = hypergradient(outer, counted, minimum(T), T)
    assert plain.products == plain.solve.products == plain.solve.iterations + 1
    assert count == 1  # one graph has the Hessian and the mixed derivative
    count = 0
    neumann = hypergradient(outer, counted, minimum(T), T, inverse="neumann", terms=5, scale=0.01)
    assert (neumann.products, neumann.solve.status) == (5, Status.MAX_ITERATIONS)
    nystrom = hypergradient(outer, counted, minimum(T), T, inverse="nystrom", rank=3, seed=0, damping=1.0)
    assert nystrom.products == 3 + 1


def test_what_is_not_solved_is_told_and_raises_when_checked():
    few = hypergradient(outer, inner, minimum(T), T, inverse="neumann", terms=3, scale=0.01)
    assert few.residual > 0.01
    with pytest.raises(NotConverged, match=r"neumann: 3 terms, scale 0\.01, status 'max_iterations'"):
        few.checked()
    wild = hypergradient(outer, inner, minimum(T), T, inverse="neumann", terms=300, scale=1.0)
    assert (wild.solve.status, wild.solve.iterations < 20) == (Status.STAGNATED, True)
    assert "the terms grow, so scale = 1 is above 2 / the largest eigenvalue" in wild.solve.message
    saddle = hypergradient(outer, lambda x, t: -inner(x, t), minimum(T), T)
    with pytest.raises(NotConverged, match=r"not positive definite.* 'indefinite'"):
        saddle.checked()
    with pytest.raises(NotConverged, match="nystrom: the inverse of the approximation"):
        hypergradient(outer, inner, minimum(T), T, inverse="nystrom", rank=2, seed=0, damping=1.0).checked()


def test_an_outer_function_that_ignores_x_needs_no_solve():
    h = hypergradient(lambda x, t: (t**2).sum() + 0 * x.sum(), inner, minimum(T), T).checked()
    assert torch.allclose(h.gradient, 2 * T)
    assert (h.residual, h.solve.iterations) == (0, 0)


def test_float32_and_scalars():
    x, c = torch.tensor([1.0, 2.0]), torch.tensor(1.0)
    h = hypergradient(
        lambda x, c: (x**2).sum(), lambda x, c: ((x - 2 * x.detach()) ** 2).sum() + c * (x**2).sum(), x, c
    )
    assert h.checked().gradient.shape == ()
    assert float(h.gradient) == pytest.approx(-5, rel=1e-5)  # -2 x'x / (1 + c)


def peak_bytes(work):
    """The most that is allocated at once while `work` runs, above what was allocated before."""
    with profile(profile_memory=True) as measured:
        kept = work()
    events = [e for e in measured.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        now += e.nbytes()
        most = max(most, now)
    assert kept is not None
    return most


def test_a_hyperparameter_for_every_weight_fits_into_the_memory_of_two_gradients_and_the_solver():
    n = 1_000_000
    x, t = torch.linspace(0.5, 1.5, n), torch.zeros(n)
    y = x * 2

    def loss(x, t):
        return ((x.tanh() - y) ** 2).sum() + (t.exp() * x**2).sum()

    def gradient():
        a, b = x.clone().requires_grad_(), t.clone().requires_grad_()
        return torch.autograd.grad(loss(a, b), [a, b])

    one = peak_bytes(gradient)
    vector = 4 * n
    cost = peak_bytes(lambda: hypergradient(lambda x, t: (x**2).sum(), loss, x, t, max_iterations=10, strict=False))
    assert 4 * vector < one
    assert cost < 2 * one + 8 * vector


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"inverse": "lu"}, ValueError, "inverse must be one of 'cg', 'neumann', 'nystrom', got 'lu'"),
        ({"curvature": 0.0}, ValueError, "curvature must be a number > 0, got 0.0"),
        (
            {"inverse": "nystrom", "rank": 3, "seed": 0, "observe": bool},
            ValueError,
            "observe must come with",
        ),
        ({"inner_data": iter([1])}, TypeError, "inner_data must be iterable more than once"),
        ({"inner": lambda x, t: x}, ValueError, r"must return a scalar tensor, got shape \(6,\)"),
        ({"outer": lambda x, t: 3.0}, ValueError, "must return a scalar tensor, got float"),
        ({"outer": lambda x, t: x.sum() * math.nan}, ValueError, "outer must be finite with its gradient"),
    ],
)
def test_bad_arguments_are_named(change, error, match):
    given = {"outer": outer, "inner": inner, **change}
    with pytest.raises(error, match=f"hypergradient: .*{match}"):
        hypergradient(given.pop("outer"), given.pop("inner"), minimum(T), T, **given)


def test_an_inner_function_that_bends_down_everywhere_has_no_neumann_scale():
    with pytest.raises(ValueError, match="inner Hessian must have a positive eigenvalue, got"):
        hypergradient(outer, lambda x, t: -(x**2).sum(), minimum(T), T, inverse="neumann", seed=0)


def test_an_x_that_is_no_minimum_of_inner_is_refused_unless_that_is_wanted():
    y, c = torch.tensor([2.0, 4.0]).double(), torch.tensor(1.0).double()

    def inner(x, c):
        return ((x - y) ** 2).sum() + c * (x**2).sum()

    def outer(x, c):
        return ((x - 1) ** 2).sum()

    exact = hypergradient(outer, inner, y / (1 + c), c).gradient
    with pytest.raises(NotConverged, match="x must minimize inner"):
        hypergradient(outer, inner, y / (1 + c) + 0.1, c)
    assert hypergradient(outer, inner, y / (1 + c) + 0.1, c, strict=False).stationarity > 0.1
    assert hypergradient(outer, inner, y / (1 + c) + 0.1, c, correct=True).error > 0
    early = minimize(lambda x: inner(x, c) + (x**4).sum(), y, max_iterations=1)
    with pytest.raises(NotConverged, match="hypergradient: the solution must be converged"):
        hypergradient(outer, lambda x, c: inner(x, c) + (x**4).sum(), early, c)
    solved = minimize(lambda x: inner(x, c), y)
    assert float(hypergradient(outer, inner, solved, c).gradient) == pytest.approx(float(exact))
