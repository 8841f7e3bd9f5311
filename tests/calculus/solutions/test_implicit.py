import numpy as np
import pytest
import torch
from scipy import optimize
from torch.autograd import forward_ad

from frechet import implicit, least_squares, root
from frechet.calculus import (
    fixed_point_conditions,
    least_squares_conditions,
    root_conditions,
    solution_jacobian,
    stationary_conditions,
)
from frechet.errors import NotConverged
from frechet.operators.derivatives._products import dual_numbers
from frechet.optimize import fixed_point

F64 = torch.float64
with dual_numbers():  # at their first use torch warns of itself
    pass


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


X, Y, U = draw(20, 5, seed=1), draw(20, seed=2), draw(5, seed=3)


def ridge(X, y, penalty):
    return torch.linalg.solve(X.T @ X + penalty * torch.eye(X.shape[1], dtype=X.dtype), X.T @ y)


def ridge_loss(w, X, y, penalty):
    return ((X @ w - y) ** 2).sum() / 2 + penalty * (w @ w) / 2


def opened(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("method", ["auto", "dense", "cg", "minres", "gmres", "lsmr"])
def test_ridge_regression_has_the_derivatives_of_its_closed_form(method):
    conditions = stationary_conditions(ridge_loss, facts="positive_definite")
    solve = implicit(ridge, conditions, method=method, rtol=1e-12)
    inputs = opened(X, Y, torch.tensor(0.3, dtype=F64))
    found = torch.autograd.grad(solve(*inputs) @ U, inputs)
    exact = torch.autograd.grad(ridge(*inputs) @ U, inputs)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(found, exact, strict=True))


def test_both_modes_and_both_orders_agree_with_differences_of_the_full_solve():
    solve = implicit(ridge, stationary_conditions(ridge_loss))
    inputs = opened(X[:4, :2], Y[:4], torch.tensor(0.3, dtype=F64))
    assert torch.autograd.gradcheck(solve, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solve, inputs, check_fwd_over_rev=True)


CUBE = implicit(lambda a: optimize.brentq(lambda x: x**3 - float(a), 0, 9, xtol=1e-15), lambda x, a: x**3 - a)
TRANSFORMS = {
    "reverse": torch.func.grad,
    "forward": lambda f: lambda a: torch.func.jvp(f, (a,), (torch.ones_like(a),))[1],
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
}


@pytest.mark.parametrize("first", TRANSFORMS)
@pytest.mark.parametrize("second", TRANSFORMS)
def test_the_transforms_of_torch_nest_in_any_order(first, second):
    a = torch.tensor(8.0, dtype=F64)
    once = TRANSFORMS[first](CUBE)
    assert float(once(a)) == pytest.approx(1 / 12, abs=1e-12)
    assert float(TRANSFORMS[second](once)(a)) == pytest.approx(-2 / 9 / 32, abs=1e-11)


def test_third_derivatives_are_exact():
    third = torch.func.grad(torch.func.jacfwd(torch.func.grad(CUBE)))
    assert float(third(torch.tensor(8.0, dtype=F64))) == pytest.approx(10 / 27 / 256, abs=1e-11)


def test_dual_numbers_carry_the_derivative():
    with forward_ad.dual_level():
        a = forward_ad.make_dual(torch.tensor(8.0, dtype=F64), torch.tensor(6.0, dtype=F64))
        assert float(forward_ad.unpack_dual(CUBE(a)).tangent) == pytest.approx(0.5, abs=1e-12)


def test_vmap_solves_one_by_one():
    a = torch.tensor([1.0, 8.0, 27.0], dtype=F64)
    assert torch.allclose(torch.func.vmap(torch.func.grad(CUBE))(a), 1 / (3 * torch.tensor([1.0, 4.0, 9.0]).double()))


def test_forward_and_reverse_are_adjoint():
    solve = implicit(ridge, stationary_conditions(ridge_loss))
    penalty = torch.tensor(0.3, dtype=F64)
    t, u = draw(20, 5, seed=5), draw(5, seed=6)
    _, forward = torch.func.jvp(lambda X: solve(X, Y, penalty), (X,), (t,))
    _, pull = torch.func.vjp(lambda X: solve(X, Y, penalty), X)
    assert float(forward @ u) == pytest.approx(float((pull(u)[0] * t).sum()), rel=1e-12)


def test_a_parameter_in_a_dict_and_one_beside_it_get_their_own_gradients():
    # jaxopt #141: gradients of parameters that are not the first argument were wrong
    def F(x, theta, shift):
        return {"b": x["b"] - theta["k"] * x["a"], "a": x["a"] ** 3 - theta["c"] - shift[0]}

    def solver(theta, shift):
        a = (theta["c"] + shift[0]) ** (1 / 3)
        return {"a": a, "b": theta["k"] * a}

    solve = implicit(solver, root_conditions(F))
    c, k, shift = opened(torch.tensor([2.0]).double(), torch.tensor([3.0]).double(), torch.tensor([6.0]).double())
    theta = {"k": k, "c": c, "note": "passed on"}
    out = solve(theta, [shift, None])
    found = torch.autograd.grad(out["a"] + 5 * out["b"], [c, k, shift])
    exact = torch.autograd.grad(solver(theta, [shift])["a"] + 5 * solver(theta, [shift])["b"], [c, k, shift])
    assert torch.allclose(torch.cat(found), torch.cat(exact), atol=1e-12)
    assert out["a"].grad_fn is not None


def test_scipy_least_squares_and_ours_have_the_exact_derivative_and_gauss_newton_another():
    t = torch.linspace(0, 2, 12, dtype=F64)
    y = (2 * torch.exp(-0.7 * t) + 0.2 * draw(12, seed=7)).requires_grad_()

    def r(x, y):
        return x[0] * torch.exp(-x[1] * t) - y

    def by_scipy(y):
        data = y.numpy()
        fun = lambda x: x[0] * np.exp(-x[1] * t.numpy()) - data  # noqa: E731
        return optimize.least_squares(fun, [1.0, 1.0], xtol=1e-15, ftol=1e-15, gtol=1e-15).x

    def ours(y):
        return least_squares(lambda x: r(x, y), torch.ones(2, dtype=F64))

    def jacobian(solve):
        return torch.autograd.functional.jacobian(solve, y.detach())

    h = 1e-5
    eye = torch.eye(12, dtype=F64)
    differences = torch.stack([(ours(y.detach() + h * e).x - ours(y.detach() - h * e).x) / (2 * h) for e in eye], 1)
    exact = jacobian(implicit(ours, least_squares_conditions(r)))
    assert torch.allclose(exact, differences, atol=1e-8)
    assert torch.allclose(jacobian(implicit(by_scipy, least_squares_conditions(r))), exact, atol=1e-6)
    rough = jacobian(implicit(ours, least_squares_conditions(r, gauss_newton=True)))
    assert 1e-4 < float((rough - exact).abs().max()) < 0.2
    fitted = (2 * torch.exp(-0.7 * t)).detach()  # no residual is left: Gauss-Newton is exact
    both = [
        torch.autograd.functional.jacobian(implicit(ours, least_squares_conditions(r, gauss_newton=g)), fitted)
        for g in (True, False)
    ]
    assert torch.allclose(*both, atol=1e-9)


def test_gauss_newton_derivatives_are_differentiable_again():
    def r(x, a):
        return torch.cat([x**2 - a, x - a.sqrt()])

    a = torch.tensor([1.0, 4.0], dtype=F64, requires_grad=True)
    solve = implicit(lambda a: a.sqrt(), least_squares_conditions(r, gauss_newton=True))
    assert torch.autograd.gradgradcheck(solve, a)


def test_our_own_root_and_fixed_point_are_taken_as_they_are():
    a = torch.tensor([0.3, 0.7], dtype=F64, requires_grad=True)
    by_root = implicit(
        lambda a: root(lambda x: x - a * torch.cos(x), torch.zeros(2).double(), rtol=1e-14),
        lambda x, a: x - a * torch.cos(x),
    )
    by_mixing = implicit(
        lambda a: fixed_point(lambda x: a * torch.cos(x), torch.zeros(2, dtype=F64), rtol=1e-14),
        fixed_point_conditions(lambda x, a: a * torch.cos(x)),
    )
    for solve in (by_root, by_mixing):
        x = solve(a)
        exact = torch.cos(x) / (1 + a * torch.sin(x))
        assert torch.allclose(torch.autograd.grad(x.sum(), a)[0], exact, atol=1e-11)


def test_the_lasso_moves_on_its_support_only():
    step, weight = 0.02, 3.0

    def prox(x, y):
        z = x - step * X.T @ (X @ x - y)
        return z.sign() * (z.abs() - step * weight).clamp(min=0)

    def solver(y):
        x = torch.zeros(5, dtype=F64)
        for _ in range(3000):
            x = prox(x, y)
        return x

    y = 3 * X @ torch.tensor([1.0, 0.0, -2.0, 0.0, 0.5], dtype=F64) / 3 + 0.1 * Y
    x = solver(y)
    support = x != 0
    assert 0 < int(support.sum()) < 5
    found = torch.autograd.functional.jacobian(implicit(solver, fixed_point_conditions(prox)), y)
    assert torch.allclose(found[support], torch.linalg.pinv(X[:, support]), atol=1e-9)
    assert float(found[~support].abs().max()) < 1e-12


def test_the_graph_does_not_grow_with_the_iterations():
    def kept(iterations):
        count = 0

        def pack(t):
            nonlocal count
            count += t.numel()
            return t

        def solver(a):
            x = torch.ones_like(a)
            for _ in range(iterations):
                x = (x + a / x) / 2
            return x

        a = torch.full((100,), 2.0, dtype=F64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            implicit(solver, lambda x, a: x**2 - a)(a)
        return count

    assert kept(8) == kept(800)


def test_what_a_derivative_cost_is_seen_and_counted():
    d = torch.tensor([1.0] * 100 + [2.0] * 100 + [5.0] * 100, dtype=F64)
    calls, seen = [], []

    def F(x, b):
        calls.append(1)
        return d * x - b

    b = draw(300, seed=8).requires_grad_()
    solve = implicit(lambda b: b / d, root_conditions(F, facts="positive_definite"), observe=seen.append)
    x = solve(b)
    assert len(calls) == 1
    x.sum().backward()
    assert torch.allclose(b.grad, 1 / d)
    assert len(calls) == 3  # the graph of the solve, and the gradient with respect to the input
    assert [s.message.split(":")[1] for s in seen] == [" reverse mode by cg (positive definite)"]
    assert seen[0].products == 3 + 1  # three eigenvalues, and the true residual
    assert seen[0].residual < 1e-8


def test_float32_and_numpy_results_come_back_in_the_dtype_of_the_inputs():
    a = torch.tensor([4.0, 9.0], requires_grad=True)
    x = implicit(lambda a: np.sqrt(a.numpy().astype(np.float64)), lambda x, a: x**2 - a)(a)
    assert x.dtype is torch.float32
    assert torch.allclose(torch.autograd.grad(x.sum(), a)[0], torch.tensor([0.25, 1 / 6]))


def test_a_solver_may_use_autograd_and_an_input_may_be_the_solution():
    def descent(a):
        x = torch.zeros_like(a, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=0.25)
        for _ in range(80):
            optimizer.zero_grad()
            ((x - a) ** 2).sum().backward()
            optimizer.step()
        return x

    a = torch.tensor([1.0, -2.0], dtype=F64, requires_grad=True)
    f = stationary_conditions(lambda x, a: ((x - a) ** 2).sum())
    for solver in (descent, lambda a: a):
        x = implicit(solver, f)(a)
        assert x.data_ptr() != a.data_ptr()
        assert torch.allclose(torch.autograd.grad(x.sum(), a)[0], torch.ones(2, dtype=F64))


def test_no_unknowns_are_a_solution_too():
    a = torch.ones(3, dtype=F64, requires_grad=True)
    x = implicit(lambda a: a[:0], lambda x, a: x * a.sum())(a)
    assert x.shape == (0,)
    assert torch.autograd.grad(x.sum(), a)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"solver": 3}, TypeError, "implicit: solver must be a function of the inputs, got int"),
        ({"conditions": 3}, TypeError, "implicit: conditions must be a function"),
        ({"tolerance": 0.0}, ValueError, "implicit: tolerance must be > 0, got 0.0"),
        ({"inputs": (1,)}, TypeError, "implicit: inputs must hold a floating tensor"),
        ({"solver": lambda a: "x"}, TypeError, "implicit: solver must return tensors, arrays .* got str"),
        (
            {"solver": lambda a: torch.ones(2, dtype=torch.int64)},
            TypeError,
            "must return floating numbers, got torch.int",
        ),
        ({"solver": lambda a: a * torch.nan}, ValueError, "implicit: solver must return finite numbers"),
    ],
)
def test_bad_arguments_are_named(change, error, match):
    given = {"solver": torch.sqrt, "conditions": lambda x, a: x**2 - a, "inputs": (torch.ones(2),), **change}
    inputs = given.pop("inputs")
    with pytest.raises(error, match=match):
        implicit(given.pop("solver"), given.pop("conditions"), **given)(*inputs)


# --- solutions that say that they are none ----------------------------------------------------------------------------


def unfinished():
    """Results of every kind that are not converged, at a point where the conditions hold to a thousandth."""
    from types import SimpleNamespace

    from scipy.optimize import OptimizeResult

    x = torch.tensor([2.0 + 1e-4], dtype=torch.float64)
    return {
        "frechet": root(lambda x: x**3 - 8, torch.tensor([2.1], dtype=torch.float64), max_iterations=1),
        "scipy": OptimizeResult(x=x.numpy(), success=False, message="too few iterations"),
        "many": SimpleNamespace(x=x, converged=torch.tensor([True, False])),
    }


@pytest.mark.parametrize("kind", ["frechet", "scipy", "many"])
def test_a_result_that_is_not_converged_is_refused(kind):
    returned = unfinished()[kind]
    a = torch.tensor([8.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(NotConverged, match="implicit: the solution must be converged"):
        implicit(lambda a: returned, lambda x, a: x**3 - a)(a)
    y = implicit(lambda a: returned, lambda x, a: x**3 - a, strict=False, tolerance=0.1)(a)
    assert float(torch.autograd.grad(y.sum(), a)[0]) == pytest.approx(1 / 12, rel=0.1)
    with pytest.raises(NotConverged, match="solution_jacobian: the solution must be converged"):
        solution_jacobian(lambda x, a: x**3 - a, returned, a.detach())


@pytest.mark.parametrize("n", [2, 200])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("mode", ["jvp", "jacfwd", "vjp", "jacrev", "operator", "adjoint"])
def test_a_solution_that_is_not_isolated_is_refused_in_both_modes(mode, symmetric, n):
    half = n // 2

    def F(x, a):  # only the differences of the halves are fixed
        d = x[:half] - x[half:] - a
        return torch.cat([d, -d])

    conditions = root_conditions(F, facts="symmetric") if symmetric else F
    x = implicit(lambda a: torch.cat([a, 0 * a]).detach(), conditions)
    a = torch.full((half,), 3.0, dtype=torch.float64)
    t = torch.ones(half, dtype=torch.float64)
    u = torch.cat([t, 0 * t])
    ask = {
        "jvp": lambda: torch.func.jvp(x, (a,), (t,)),
        "jacfwd": lambda: torch.func.jacfwd(lambda a: x(a)[:1])(a),
        "vjp": lambda: torch.func.vjp(x, a)[1](u),
        "jacrev": lambda: torch.func.jacrev(lambda a: x(a)[:1])(a),
        "operator": lambda: solution_jacobian(conditions, u * 3, a) @ t,
        "adjoint": lambda: solution_jacobian(conditions, u * 3, a).T @ u,
    }[mode]
    with pytest.raises(NotConverged, match="singular"):
        ask()


def test_one_problem_of_a_batch_that_is_not_isolated_is_refused_in_both_modes():
    scale = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)

    def F(x, a):
        return scale * x - torch.stack([a, a * scale[:, 1]], 1)

    x = implicit(lambda a: torch.stack([a, a], 1).detach(), F, batch=True)
    a, t = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    with pytest.raises(NotConverged, match="singular"):
        torch.func.jvp(x, (a,), (t,))
    with pytest.raises(NotConverged, match="singular"):
        torch.func.vjp(x, a)[1](torch.ones(2, 2, dtype=torch.float64))
