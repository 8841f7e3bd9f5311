"""Derivatives of marched solutions: exact for the numbers that come back, in every nesting, with few states kept."""

from itertools import pairwise

import pytest
import torch

from frechet import Objective, gauss_newton, hessian, jacobian, least_squares, minimize, squared_error
from frechet.errors import NonFinite, NotConverged
from frechet.physics import implicit_step, march
from spectra import gaussian
from stefan import stefan_cost, stefan_point

F64 = torch.float64
W, ONE = 0.5 * gaussian(3, 3), torch.ones(2, dtype=F64)


def tanh_step(y, u, p):
    return y + 0.1 * torch.tanh(p["W"] @ y + u) * p["c"]


def cost(y0, u, W, c, checkpoints=None):
    run = march(tanh_step, y0, u, parameters={"W": W, "c": c}, checkpoints=checkpoints)
    return 0.1 * (run.outputs**2).sum() + run.final.sin().sum()


ARGUMENTS = (gaussian(3, seed=1), gaussian(20, 3, seed=2), W, torch.tensor(1.3, dtype=F64))


# --- values and bits --------------------------------------------------------------------------------------------------


def test_states_are_those_of_the_loop():
    y, states = ARGUMENTS[0], [ARGUMENTS[0]]
    for u in ARGUMENTS[1]:
        y = tanh_step(y, u, {"W": W, "c": ARGUMENTS[3]})
        states.append(y)
    run = march(tanh_step, ARGUMENTS[0], ARGUMENTS[1], parameters={"W": W, "c": ARGUMENTS[3]})
    assert torch.equal(run.outputs, torch.stack(states))
    assert torch.equal(run.final, y)
    assert run.steps == 20


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 7, 19, 20])
def test_checkpoints_do_not_change_a_bit(checkpoints):
    x = [t.clone().requires_grad_() for t in ARGUMENTS]
    kept, less = (torch.autograd.grad(cost(*x, c), x) for c in (0, checkpoints))
    assert all(torch.equal(a, b) for a, b in zip(kept, less, strict=True))
    assert torch.equal(cost(*ARGUMENTS, 0), cost(*ARGUMENTS, checkpoints))


def test_the_gradient_is_that_of_the_plain_loop():
    x = [t.clone().requires_grad_() for t in ARGUMENTS]
    y, total = x[0], 0.1 * (x[0] ** 2).sum()
    for u in x[1]:
        y = tanh_step(y, u, {"W": x[2], "c": x[3]})
        total = total + 0.1 * (y**2).sum()
    right = torch.autograd.grad(total + y.sin().sum(), x)
    for a, b in zip(torch.autograd.grad(cost(*x), x), right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


NESTINGS = {
    "reverse": torch.func.jacrev,
    "forward": torch.func.jacfwd,
    "reverse over reverse": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "forward over reverse": lambda f: torch.func.jacfwd(torch.func.jacrev(f)),
    "reverse over forward": lambda f: torch.func.jacrev(torch.func.jacfwd(f)),
    "forward over forward": lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
}
THIRD = {
    "forward outside": lambda f: torch.func.jacfwd(torch.func.jacfwd(torch.func.jacrev(f))),
    "reverse outside": lambda f: torch.func.jacrev(torch.func.jacfwd(torch.func.jacfwd(f))),
}


@pytest.mark.parametrize("nesting", THIRD)
def test_third_derivatives_are_those_of_the_loop(nesting):
    d, c = THIRD[nesting], ARGUMENTS[3]
    near = lambda checkpoints: lambda c: cost(ARGUMENTS[0], ARGUMENTS[1][:3], W, c, checkpoints)  # noqa: E731
    torch.testing.assert_close(d(near(2))(c), d(near(0))(c), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("argument", [0, 2, 3])
@pytest.mark.parametrize("nesting", NESTINGS)
def test_every_nesting_gives_the_derivatives_of_the_loop(nesting, argument):
    def f(x, checkpoints):
        given = list(ARGUMENTS)
        given[1], given[argument] = ARGUMENTS[1][:3], x
        return cost(*given, checkpoints)

    d, x = NESTINGS[nesting], ARGUMENTS[argument]
    torch.testing.assert_close(d(lambda x: f(x, 2))(x), d(lambda x: f(x, 0))(x), rtol=1e-11, atol=1e-12)


def test_dual_numbers_over_a_backward_pass_keep_both_directions():
    x, v = ARGUMENTS[2].clone().requires_grad_(), gaussian(3, 3, seed=4)
    J = lambda W: cost(*ARGUMENTS[:2], W, ARGUMENTS[3], 4)  # noqa: E731
    with torch.autograd.forward_ad.dual_level():
        d = torch.autograd.forward_ad.make_dual(x, v)
        (g,) = torch.autograd.grad(J(d), d, create_graph=True)
        tangent = torch.autograd.forward_ad.unpack_dual(g).tangent
    right = torch.func.jvp(torch.func.grad(lambda W: cost(*ARGUMENTS[:2], W, ARGUMENTS[3], 0)), (x.detach(),), (v,))[1]
    torch.testing.assert_close(tangent, right, rtol=1e-11, atol=1e-12)


def test_a_batch_of_starts_is_marched_by_vmap():
    Y = gaussian(4, 3, seed=8)
    found = torch.func.vmap(torch.func.grad(lambda y: cost(y, *ARGUMENTS[1:], 4)))(Y)
    right = torch.stack([torch.func.grad(lambda y: cost(y, *ARGUMENTS[1:], 0))(y) for y in Y])
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-13)


def test_gradcheck_in_both_modes():
    x = [t.clone().requires_grad_() for t in (ARGUMENTS[0], ARGUMENTS[1][:2], ARGUMENTS[3])]
    f = lambda y0, u, c: cost(y0, u, W, c, 2)  # noqa: E731
    assert torch.autograd.gradcheck(f, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True)


# --- memory -----------------------------------------------------------------------------------------------------------


def states_kept(M, checkpoints, second):
    """The most states that graphs and nodes of segments hold at once in a gradient."""
    n, live, most = 1000, 0, 0

    def pack(t):
        nonlocal live, most
        if t.numel() != n:
            return t
        live += 1
        most = max(most, live)
        return Kept(t, drop)

    def drop():
        nonlocal live
        live -= 1

    y0 = torch.ones(n, dtype=F64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.t if isinstance(kept, Kept) else kept):
        run = march(lambda y: y.sin() * y, y0, steps=M, output=lambda y: y[0], checkpoints=checkpoints)
        (g,) = torch.autograd.grad(run.final.sum(), y0, create_graph=second)
        if second:
            torch.autograd.grad(g.sum(), y0)
    return most


class Kept:
    def __init__(self, t, drop):
        self.t, self.drop = t, drop

    def __del__(self):
        self.drop()


@pytest.mark.parametrize("second", [False, True])
def test_the_states_that_are_kept_grow_as_the_square_root_of_the_steps(second):
    few, many = states_kept(100, None, second), states_kept(900, None, second)
    assert many <= 3.3 * few  # 9 times as many steps
    all_few, all_many = states_kept(100, 0, second), states_kept(900, 0, second)
    assert all_many >= 8 * all_few
    assert many <= all_many / 5


# --- the inverse Stefan problem ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("which", "name", "bound"), [(0, "s", 1e-7), (1, "g", 1e-11), (2, "f", 1e-9)])
def test_the_gradient_of_the_stefan_problem_is_that_of_its_values(which, name, bound):
    J, x = stefan_cost(), stefan_point()
    g = torch.func.grad(J, argnums=which)(*x)
    v = gaussian(len(x[which]), seed=which)
    errors = []
    for eps in (1e-2, 1e-3, 1e-4, 1e-5):
        ahead, behind = ([t + c * eps * v if i == which else t for i, t in enumerate(x)] for c in (1, -1))
        difference = (J(*ahead) - J(*behind)) / (2 * eps)
        errors.append(float((difference - g @ v).abs() / difference.abs()))
    assert min(errors) <= bound, (name, errors)


def test_the_remainder_of_the_stefan_gradient_has_slope_two_and_its_hessian_is_symmetric():
    cost = stefan_cost()
    x = dict(zip("sgf", stefan_point(), strict=True))
    J = lambda x: cost(x["s"], x["g"], x["f"])  # noqa: E731
    g = torch.func.grad(J)(x)
    v = {name: 0.1 * gaussian(len(b), seed=3) for name, b in x.items()}
    first = sum((g[name] * v[name]).sum() for name in x)
    remainders = [
        float(J({name: x[name] + eps * v[name] for name in x}) - J(x) - eps * first) for eps in (4e-3, 2e-3, 1e-3)
    ]
    slopes = [torch.tensor(a / b).abs().log2().item() for a, b in pairwise(remainders)]
    assert all(abs(s - 2) <= 0.02 for s in slopes), slopes
    H = hessian(J, x)
    a, b = H.domain.random(0, 1), H.domain.random(1, 1)
    left, right = float(H.domain.inner(a, H @ b)), float(H.domain.inner(b, H @ a))
    assert abs(left - right) <= 1e-12 * float(H.domain.norm(a) * H.domain.norm(H @ b))
    by_forward = torch.func.jvp(torch.func.grad(J), (x,), (H.domain.unflatten(a),))[1]
    torch.testing.assert_close(H @ a, H.domain.flatten(by_forward), rtol=1e-10, atol=1e-11)


# --- van der Pol ------------------------------------------------------------------------------------------------------


def test_the_gradient_of_an_orbit_is_far_nearer_than_that_of_an_adjoint_integrated_backwards():
    mu, T = torch.tensor(1.3, dtype=F64), 6.0

    def field(y, mu):
        return torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])

    def rk4(y, h, mu):
        a = field(y, mu)
        b = field(y + h / 2 * a, mu)
        c = field(y + h / 2 * b, mu)
        d = field(y + h * c, mu)
        return y + h / 6 * (a + 2 * b + 2 * c + d)

    def loss(z, M):
        h = torch.full((M,), T / M, dtype=F64)
        return (march(rk4, z[:2], h, parameters=z[2], output=lambda y: y[0]).final ** 2).sum()

    def gradient(z, M):
        z = z.clone().requires_grad_()
        return torch.autograd.grad(loss(z, M), z)[0]

    z = torch.tensor([2.0, 0.0, float(mu)], dtype=F64)
    g = gradient(z, 150)
    exact = gradient(z, 600)  # of 1 / 256 of its error
    error = float((g - exact).abs().max() / exact.abs().max())
    assert error <= 2e-5  # odeint_adjoint of torchdiffeq has 1.6e-3 at rtol 1e-6, backprop through its solver 1.3e-5
    H = hessian(lambda z: loss(z, 60), z).dense()  # which odeint's dopri5 does not give
    torch.testing.assert_close(H, H.T, rtol=1e-9, atol=1e-9)
    e = 1e-5 * torch.eye(3, dtype=F64)[2]
    torch.testing.assert_close(H[2], (gradient(z + e, 60) - gradient(z - e, 60)) / 2e-5, rtol=1e-5, atol=1e-5)


# --- implicit steps ---------------------------------------------------------------------------------------------------


def test_an_implicit_step_solves_its_equation_and_has_its_derivatives():
    euler = implicit_step(lambda z, y, u: z - y + 0.2 * (z**3 - u))
    y0, u = torch.tensor([0.3, -0.4], dtype=F64), gaussian(3, 2, seed=5)
    run = march(euler, y0, u)
    for k in range(3):
        y, z = run.outputs[k], run.outputs[k + 1]
        assert float((z - y + 0.2 * (z**3 - u[k])).abs().max()) <= 1e-11

    def J(u):
        return march(euler, y0, u, checkpoints=2).final.square().sum()

    v, eps = gaussian(3, 2, seed=6), 1e-5
    g = torch.func.grad(J)(u)
    assert float((g * v).sum()) == pytest.approx(float((J(u + eps * v) - J(u - eps * v)) / (2 * eps)), rel=1e-8)
    hv = torch.func.jvp(torch.func.grad(J), (u,), (v,))[1]
    around = (torch.func.grad(J)(u + eps * v) - torch.func.grad(J)(u - eps * v)) / (2 * eps)
    torch.testing.assert_close(hv, around, rtol=1e-6, atol=1e-8)


def test_states_and_controls_may_be_dicts():
    step = implicit_step(
        lambda z, y, u: {"a": z["a"] - y["a"] - 0.1 * z["b"], "b": z["b"] - y["b"] + 0.1 * z["a"] * u["k"]}
    )
    y0 = {"a": torch.ones(2, dtype=F64), "b": torch.zeros(2, dtype=F64)}
    run = march(
        step, y0, {"k": torch.ones(4, dtype=F64)}, output=lambda y: {"energy": (y["a"] ** 2 + y["b"] ** 2).sum()}
    )
    assert set(run.final) == {"a", "b"}
    assert run.outputs["energy"].shape == (5,)
    assert bool((run.outputs["energy"].diff() < 0).all())


# --- inside of what it is for -----------------------------------------------------------------------------------------


def test_least_squares_and_minimize_fit_the_rate_and_the_start_of_a_reaction():
    t = torch.full((30,), 0.1, dtype=F64)

    def observed(x):
        return march(lambda y, h, k: y + h * (-k * y**2), x[0], t, parameters=x[1]).outputs

    truth = torch.tensor([2.0, 0.7], dtype=F64)
    data, x0 = observed(truth), torch.tensor([1.0, 0.2], dtype=F64)
    s = least_squares(lambda x: observed(x) - data, x0)
    assert s.converged
    torch.testing.assert_close(s.x, truth, rtol=1e-10, atol=0)
    assert s.standard_errors is not None
    m = minimize(lambda x: (observed(x) - data).square().sum(), x0)
    torch.testing.assert_close(m.x, truth, rtol=1e-6, atol=0)


class Flow(torch.nn.Module):
    """Ten steps of y' = net(y)."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()

    def forward(self, x):
        def step(y, p):
            return y + 0.1 * torch.func.functional_call(self.net, p, (y,))

        return march(step, x, parameters=dict(self.net.named_parameters()), steps=10, checkpoints=3).final


def test_an_objective_of_a_model_that_marches_has_its_curvature():
    torch.manual_seed(0)
    model = Flow()
    data = [(gaussian(4, 2, seed=1), gaussian(4, 2, seed=2)), (gaussian(3, 2, seed=3), gaussian(3, 2, seed=4))]
    objective = Objective(model, squared_error(), data)
    assert objective.check().coupled == ()  # and what it proves did not raise
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}

    def value(p):
        total = 0.0
        for x, y in data:
            z = x
            for _ in range(10):
                z = z + 0.1 * torch.func.functional_call(
                    model.net, {n.removeprefix("net."): b for n, b in p.items()}, (z,)
                )
            total = total + (z - y).square().sum()
        return total / 14

    space = objective.space
    v = space.random(0, 1)
    for A, B in ((hessian(objective), hessian(value, plain)), (gauss_newton(objective), None)):
        if B is not None:
            torch.testing.assert_close(A @ v, B @ v, rtol=1e-9, atol=1e-11)
        assert float(space.inner(v, A @ v)) == pytest.approx(float(space.inner(v, A.T @ v)), rel=1e-10)
    J = jacobian(objective)
    torch.testing.assert_close(gauss_newton(objective) @ v, J.T @ (J @ v) * (2 / 14), rtol=1e-9, atol=1e-11)


# --- a step that fails ------------------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_is_named():
    with pytest.raises(
        NonFinite, match=r"step 3 of 0 to 9 gave NaN or infinity from a state whose largest entry is 1e\+"
    ):
        march(lambda y: y**2, torch.full((2,), 1e50, dtype=F64), steps=10) if False else march(
            lambda y, u: y / u,
            torch.full((2,), 1e10, dtype=F64),
            torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1, 1, 1]).double(),
        )


def test_an_equation_without_a_root_is_named_and_the_state_before_is_kept():
    step = implicit_step(lambda z, y, u: z**2 + u)
    u = torch.tensor([-1.0, -1.0, 1.0, -1.0], dtype=F64)[:, None]
    with pytest.raises(NotConverged, match="step 2 of 0 to 3 was not solved") as caught:
        march(step, torch.ones(1, dtype=F64), u)
    torch.testing.assert_close(caught.value.result, torch.ones(1, dtype=F64))


def test_an_error_of_the_step_says_in_which_step_it_was():
    def step(y, u):
        if float(u) == 2.0:
            raise ValueError("the table ends")
        return y

    with pytest.raises(ValueError, match="the table ends") as caught:
        march(step, torch.ones(1), torch.arange(5.0))
    assert caught.value.__notes__ == ["march: step 2 of 0 to 4"]


GRAD = torch.tensor(2.0, dtype=F64, requires_grad=True)


@pytest.mark.parametrize(
    "around",
    [
        lambda f: f(GRAD),
        lambda f: torch.func.grad(f)(GRAD.detach()),
        lambda f: torch.func.jvp(f, (GRAD.detach(),), (GRAD.detach(),)),
        lambda f: torch.func.vmap(f)(torch.ones(3, dtype=F64)),
        lambda f: torch.func.hessian(f)(GRAD.detach()),
    ],
    ids=["autograd", "grad", "jvp", "vmap", "hessian"],
)
def test_what_a_step_closes_over_is_refused_where_its_derivative_would_be_lost(around):
    with pytest.raises(
        ValueError, match=r"got .* that is closed over and would get no derivative; pass it in parameters="
    ):
        around(lambda c: march(lambda y, u: y + c * u, ONE, torch.ones(3, dtype=F64), checkpoints=2).final.sum())
    found = march(lambda y, u: y + GRAD * u, torch.ones(2, dtype=F64), torch.ones(3, dtype=F64), checkpoints=0)
    assert float(torch.autograd.grad(found.final.sum(), GRAD)[0]) == 6.0  # the plain graph sees it


def test_dual_numbers_that_a_step_closes_over_are_refused():
    with torch.autograd.forward_ad.dual_level():
        c = torch.autograd.forward_ad.make_dual(torch.ones((), dtype=F64), torch.ones((), dtype=F64))
        with pytest.raises(ValueError, match="closed over"):
            march(lambda y, u: y + c * u, ONE, torch.ones(3, dtype=F64), checkpoints=2)


def test_a_step_may_differentiate_an_energy_itself():
    def leap(y, h, k):
        force = lambda q: -torch.func.grad(lambda q: (k * q**4).sum())(q)  # noqa: E731
        p = y[1] + h / 2 * force(y[0])
        q = y[0] + h * p
        return torch.stack([q, p + h / 2 * force(q)])

    def J(k, checkpoints):
        y0 = torch.tensor([[1.0, 0.5], [0.0, 0.2]], dtype=F64)
        return march(leap, y0, torch.full((9,), 0.1, dtype=F64), parameters=k, checkpoints=checkpoints).final.sum()

    k = torch.tensor([0.3, 0.4], dtype=F64)
    for d in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        torch.testing.assert_close(d(lambda k: J(k, 3))(k), d(lambda k: J(k, 0))(k), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: march(lambda y, u: y[:1], ONE, torch.ones(3)), r"step 0 of 0 to 2 must return a state like the first"),
        (lambda: march(lambda y, u: y.float(), ONE, torch.ones(3)), r"got torch.float32 \(2,\)"),
        (lambda: march(lambda y, u: None, ONE, torch.ones(3)), "got NoneType"),
        (
            lambda: march(lambda y, u: {"b": y["a"]}, {"a": ONE}, torch.ones(3)),
            r"\['a'\] of shapes \(2,\), got \['b'\]",
        ),
        (
            lambda: march(lambda y, u: y, ONE, {"a": torch.ones(3), "b": torch.ones(4)}),
            "controls must have the steps along",
        ),
        (lambda: march(lambda y, u: y, ONE, torch.ones(3), steps=4), "controls must have the 4 steps along axis 0"),
        (lambda: march(lambda y: y, ONE), "steps must be an int >= 0 where there are no controls, got None"),
        (lambda: march(lambda y, u: y.mul_(2), ONE.clone(), torch.ones(3)), "must not change its arguments in place"),
        (lambda: march(lambda y, u: y, ONE, torch.ones(3), checkpoints=4), "checkpoints must be an int from 0 to"),
        (lambda: march(lambda y, u: y, ONE, torch.ones(3), checkpoints=-1), "checkpoints must be an int from 0 to"),
    ],
)
def test_sizes_and_forms_that_do_not_fit_are_told(call, told):
    with pytest.raises((ValueError, TypeError), match=told):
        call()


def test_other_kinds_are_told():
    with pytest.raises(TypeError, match="step must be a function"):
        march(ONE, ONE)
    with pytest.raises(TypeError, match=r"state must be a floating tensor or a dict of such, got torch\.int64"):
        march(lambda y: y, torch.ones(2, dtype=torch.long), steps=2)
    with pytest.raises(TypeError, match="output must return a tensor or a dict"):
        march(lambda y: y, ONE, steps=2, output=lambda y: float(y.sum()))


@pytest.mark.parametrize("checkpoints", [0, None])
def test_no_steps_are_the_start(checkpoints):
    run = march(lambda y, u: y + u, ONE, torch.ones(0, 2, dtype=F64), checkpoints=checkpoints)
    assert torch.equal(run.final, ONE)
    assert torch.equal(run.outputs, ONE[None])


# --- steps that run again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoints", [1, 3, 6])
def test_random_steps_draw_the_same_again(checkpoints):
    def gradient(checkpoints):
        torch.manual_seed(3)
        y = torch.ones(50, dtype=F64, requires_grad=True)
        run = march(lambda y: y + 0.1 * torch.dropout(y, 0.5, True), y, steps=6, checkpoints=checkpoints)
        (g,) = torch.autograd.grad(run.final.square().sum(), y, create_graph=True)
        (h,) = torch.autograd.grad(g.sum(), y)
        return run.final.detach(), g.detach(), h, torch.rand(2)

    for a, b in zip(gradient(checkpoints), gradient(0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=0)  # and what is drawn afterwards is the same


def test_steps_that_do_otherwise_when_they_run_again_are_refused():
    calls = []

    def step(y):
        calls.append(1)
        return y * len(calls)

    y = torch.ones(2, dtype=F64, requires_grad=True)
    run = march(step, y, steps=4, checkpoints=2)
    with pytest.raises(
        ValueError, match="step must do the same when it runs again, got another result in the steps 2 to 3"
    ):
        torch.autograd.grad(run.final.sum(), y)


@pytest.mark.parametrize("checkpoints", [0, 2])
@pytest.mark.parametrize(
    ("output", "told"),
    [
        (lambda y: torch.zeros(int(y) + 1), r"got {'output': \(2,\)}, then {'output': \(3,\)}"),
        (lambda y: {"a": y} if y < 2 else {"b": y}, r"got {'a': \(\)}, then {'b': \(\)}"),
        (lambda y: {"a": y} if y < 2 else y, r"got {'a': \(\)}, then {'output': \(\)}"),
    ],
    ids=["shape", "names", "kind"],
)
def test_outputs_that_change_their_form_are_told(output, told, checkpoints):
    with pytest.raises(ValueError, match="output must return one form for all states, " + told):
        march(lambda y: y + 1, torch.zeros((), dtype=F64), steps=4, output=output, checkpoints=checkpoints)


@pytest.mark.parametrize(
    ("y", "u", "p", "told"),
    [
        (ONE / 0, ONE, ONE, "the state"),
        (ONE, ONE / 0, ONE, "controls"),
        (ONE, ONE, ONE / 0, "parameters"),
        (ONE, ONE / 0, ONE / 0, "controls and parameters"),
    ],
)
def test_numbers_that_are_not_finite_are_told_by_where_they_came_in(y, u, p, told):
    with pytest.raises(
        NonFinite, match=f"step 0 of 0 to 1 must be given finite numbers, got NaN or infinity in {told}"
    ):
        march(lambda y, u, p: y * u + p, y, u, parameters=p)


def test_a_module_is_no_nest_of_parameters_and_a_bool_no_count():
    with pytest.raises(TypeError, match=r"parameters must be tensors, got a module Linear; pass dict\("):
        march(lambda y, p: p(y), ONE, steps=2, parameters=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="checkpoints must be an int from 0 to"):
        march(lambda y: y, ONE, steps=2, checkpoints=True)
