"""Solutions of differential equations and their derivatives, beside closed forms and the variational equation."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from torch.autograd import gradcheck, gradgradcheck

from frechet.calculus import ode_solution
from frechet.errors import NonFinite, NotConverged

F64 = torch.float64
TIMES = torch.tensor([0.0, 0.4, 1.0], dtype=F64)


def midpoint(f, t, y, h):
    return y + h * f(t + h / 2, y + h / 2 * f(t, y))


def implicit_midpoint(f, t, y, h):
    z = y
    for _ in range(8):  # a fixed point, to rounding for this step
        z = y + h * f(t + h / 2, (y + z) / 2)
    return z


def pendulum(k):
    return lambda t, y: torch.stack([y[1], -k * torch.sin(y[0]) + 0.1 * t])


Y0 = torch.tensor([0.5, 1.0], dtype=F64)
K = torch.tensor(2.0, dtype=F64)


@pytest.mark.parametrize("method", ["RK23", "RK45", "DOP853"])
def test_values_are_those_of_scipy(method):
    found = ode_solution(pendulum(K), Y0, TIMES, method=method, rtol=1e-7, atol=1e-9)
    y = Y0.numpy()
    for i in range(2):
        run = scipy.integrate.solve_ivp(
            lambda t, y: np.array([y[1], -2.0 * math.sin(y[0]) + 0.1 * t]),
            (float(TIMES[i]), float(TIMES[i + 1])),
            y,
            method=method,
            rtol=1e-7,
            atol=1e-9,
        )
        y = run.y[:, -1]
        torch.testing.assert_close(found[i + 1], torch.from_numpy(y.copy()), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("method", ["RK45", "DOP853"])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_first_and_second_derivatives_are_those_of_the_flow(method, checkpoint):
    """y' = A y has y(1) = exp(A) y0."""
    A = torch.tensor([[0.1, 1.0], [-2.0, -0.3]], dtype=F64, requires_grad=True)
    y0 = Y0.clone().requires_grad_()
    found, right = (
        ode_solution(lambda t, y: A @ y, y0, TIMES, method=method, rtol=1e-11, atol=1e-12, checkpoint=checkpoint)[-1],
        torch.linalg.matrix_exp(A) @ y0,
    )
    grads = [torch.autograd.grad(v.pow(2).sum(), (A, y0), create_graph=True) for v in (found, right)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    seconds = [torch.autograd.grad(g[0].pow(2).sum() + g[1].sum(), (A, y0)) for g in grads]
    for one, other in zip(*seconds, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("stepper", [midpoint, implicit_midpoint])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_stepper_of_ones_own_has_the_exact_adjoint_of_its_steps(stepper, checkpoint):
    def f(y0, k, times):
        return ode_solution(pendulum(k), y0, times, stepper=stepper, steps=1, checkpoint=checkpoint)

    given = (Y0.clone().requires_grad_(), K.clone().requires_grad_(), TIMES.clone().requires_grad_())
    assert gradcheck(f, given)
    assert gradgradcheck(f, given, fast_mode=True)


def test_checkpoints_and_transforms_change_nothing():
    def loss(y0, checkpoint=True):
        return ode_solution(pendulum(K), y0, TIMES, stepper=midpoint, steps=4, checkpoint=checkpoint)[-1].pow(2).sum()

    y0 = Y0.clone().requires_grad_()
    (right,) = torch.autograd.grad(loss(y0), y0)
    torch.testing.assert_close(torch.autograd.grad(loss(y0, False), y0)[0], right)
    batch = torch.stack([Y0, 2 * Y0])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(batch)[0], right)
    torch.testing.assert_close(torch.func.jvp(loss, (Y0,), (Y0,))[1], right @ Y0)
    hessian = torch.func.jacfwd(torch.func.grad(loss))(Y0)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(loss, Y0))


def test_checkpoints_keep_one_state_a_step():
    kept = []

    def pack(t):
        kept.append(t.numel())
        return t

    sizes = {}
    for checkpoint in (True, False):
        kept.clear()
        y0 = torch.ones(1000, dtype=F64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            ode_solution(lambda t, y: -torch.tanh(y), y0, TIMES, method="DOP853", checkpoint=checkpoint)
        sizes[checkpoint] = sum(kept)
    assert sizes[True] < 0.2 * sizes[False]


def test_times_may_descend_and_one_time_is_the_start():
    there = ode_solution(pendulum(K), Y0, TIMES)
    back = ode_solution(pendulum(K), there[-1], TIMES.flip(0))
    torch.testing.assert_close(back[-1], Y0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(ode_solution(pendulum(K), Y0, TIMES[:1])[0], Y0)


def test_parameters_of_a_module_have_gradients():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    loss = ode_solution(lambda t, y: net(y), Y0, TIMES, rtol=1e-10, atol=1e-12)[-1].sum()
    loss.backward()
    w = net[0].weight
    e = 1e-5
    with torch.no_grad():
        ends = []
        for s in (e, -2 * e):
            w[0, 0] += s
            ends.append(ode_solution(lambda t, y: net(y), Y0, TIMES, rtol=1e-12, atol=1e-13)[-1].sum())
        w[0, 0] += e
    assert float(w.grad[0, 0]) == pytest.approx(float((ends[0] - ends[1]) / (2 * e)), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: ode_solution(lambda t, y: y**2, torch.ones(1), TIMES[[0, 2]] * 3), NotConverged, "DOP853 failed"),
        (lambda: ode_solution(lambda t, y: y, torch.full((1,), torch.nan), TIMES), NonFinite, "state must be finite"),
        (lambda: ode_solution(lambda t, y: y[:1], torch.ones(2), TIMES), ValueError, "f must return a tensor like y"),
        (lambda: ode_solution(3, torch.ones(2), TIMES), TypeError, "f must be a function"),
        (lambda: ode_solution(lambda t, y: y, torch.ones(2).int(), TIMES), TypeError, "float32 or float64"),
        (lambda: ode_solution(lambda t, y: y, torch.ones(2), TIMES[[0, 2, 1]]), ValueError, "ascending or descending"),
        (lambda: ode_solution(lambda t, y: y, torch.ones(2), TIMES[None]), ValueError, r"shape \(T,\)"),
        (lambda: ode_solution(lambda t, y: y, torch.ones(2), TIMES, method="Radau"), ValueError, "give a stepper"),
        (lambda: ode_solution(lambda t, y: y, torch.ones(2), TIMES, rtol=0.0), ValueError, "rtol and atol"),
        (lambda: ode_solution(lambda t, y: y, torch.ones(2), TIMES, steps=0), ValueError, "steps must be"),
        (
            lambda: ode_solution(lambda t, y: y, torch.ones(2), TIMES.clone().requires_grad_()),
            ValueError,
            "times must not require a gradient",
        ),
        (
            lambda: torch.func.grad(lambda y: ode_solution(lambda t, y: y, y, TIMES).sum())(torch.ones(2)),
            ValueError,
            "give stepper=",
        ),
        (
            lambda: ode_solution(lambda t, y: y, torch.ones(2), TIMES, stepper=lambda f, t, y, h: y[:1]),
            ValueError,
            "must keep the shape",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, error, match):
    with pytest.raises(error, match=match):
        call()
