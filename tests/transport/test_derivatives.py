import functools

import pytest
import torch

from frechet.errors import NonFinite, NotConverged
from frechet.operators.derivatives._hessian import hessian
from frechet.transport import _derivatives as derivatives
from frechet.transport._derivatives import adjoint, transport_plan, transport_potentials, transport_value
from frechet.transport._dual_hessian import dual_hessian
from frechet.transport._sinkhorn import sinkhorn
from transport_problems import F64, INF, masses, problem, uniform

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch's own forward mode
W = uniform(8, 6, seed=11)
SOLVED = {"epsilon": 0.2, "rtol": 1e-14}


def slope(F, x, d, h=2e-4):
    """The derivative along d, by differences of fourth order."""
    with torch.no_grad():
        return float((8 * (F(x + h * d) - F(x - h * d)) - (F(x + 2 * h * d) - F(x - 2 * h * d))) / (12 * h))


def direction(which, like):
    """Of masses: one that keeps their sum."""
    d = uniform(*like.shape, seed=5)
    return 0.1 * (d if which == 0 else d - d.mean())


def moved(arguments, which, x):
    return [x if k == which else y for k, y in enumerate(arguments)]


FUNCTIONS = {
    "value": lambda epsilon, *args: transport_value(*args, epsilon=epsilon, rtol=1e-13),
    "plan": lambda epsilon, *args: (transport_plan(*args, epsilon=epsilon, rtol=1e-13) * W).sum(),
    "potentials": lambda epsilon, *args: sum(
        (x * w).sum()
        for x, w in zip(transport_potentials(*args, epsilon=epsilon, rtol=1e-13), (W[:, 0], W[0]), strict=True)
    ),
}


@pytest.mark.parametrize("epsilon", [0.5, 0.03])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["cost", "a", "b"])
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_gradients_are_those_of_differences(name, which, epsilon):
    arguments = problem()
    F = functools.partial(FUNCTIONS[name], epsilon)
    x = arguments[which].clone().requires_grad_()
    F(*moved(arguments, which, x)).backward()
    d = direction(which, x)
    found = slope(lambda t: F(*moved(arguments, which, t)), arguments[which], d)
    assert float((x.grad * d).sum()) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["cost", "a", "b"])
def test_second_derivatives_of_the_value(which):
    arguments = problem()
    V = functools.partial(FUNCTIONS["value"], 0.05)
    d = direction(which, arguments[which])

    def along(x):
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(V(*moved(arguments, which, x)), x)
        return (gradient * d).sum()

    x = arguments[which].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(V(*moved(arguments, which, x)), x, create_graph=True)
    (second,) = torch.autograd.grad((gradient * d).sum(), x)
    assert float((second * d).sum()) == pytest.approx(slope(along, arguments[which], d), abs=1e-9)


def test_the_gradient_of_the_value_is_the_solution():
    arguments = [x.requires_grad_() for x in problem()]
    transport_value(*arguments, epsilon=0.05).backward()
    cost, a, b = (x.detach() for x in arguments)
    s = sinkhorn(cost, a, b, epsilon=0.05)
    assert torch.allclose(arguments[0].grad, s.plan(), atol=1e-14)
    assert torch.allclose(arguments[1].grad, s.f, atol=1e-14)
    assert torch.allclose(arguments[2].grad, s.g, atol=1e-14)


def test_the_value_is_concave_in_the_cost_and_its_hessian_is_an_operator():
    cost, a, b = problem(4, 3)
    H = hessian(lambda c: transport_value(c, a, b, epsilon=0.1, rtol=1e-13), cost).dense()
    assert torch.allclose(H, H.T, atol=1e-12)
    assert float(torch.linalg.eigvalsh(H).max()) < 1e-12
    # costs of rows and columns move no mass
    u = (uniform(4, seed=2).unsqueeze(1) + uniform(3, seed=3)).flatten()
    assert torch.allclose(H @ u, torch.zeros(12, dtype=F64), atol=1e-12)


def test_two_by_two_has_a_closed_form():
    cost = uniform(2, 2).requires_grad_()
    P = transport_plan(cost, epsilon=0.2, rtol=1e-14)
    c = cost[0, 0] + cost[1, 1] - cost[0, 1] - cost[1, 0]
    expected = 1 / (2 + 2 * torch.exp(c / 0.4))
    assert float(P[0, 0].detach()) == pytest.approx(float(expected.detach()), abs=1e-13)
    found, exact = (torch.autograd.grad(x, cost, retain_graph=True)[0] for x in (P[0, 0], expected))
    assert torch.allclose(found, exact, atol=1e-12)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["cost", "a", "b"])
def test_forbidden_pairs_and_missing_masses(which):
    cost, a, b = problem()
    cost[0, 1:4] = INF
    a[3], b[5] = 0.0, 0.0
    arguments = [cost, a / a.sum(), b / b.sum()]
    F = functools.partial(FUNCTIONS["plan"], 0.1)
    x = arguments[which].clone().requires_grad_()
    F(*moved(arguments, which, x)).backward()
    assert bool(torch.isfinite(x.grad).all())
    d = direction(which, x)
    d = torch.where(arguments[which] == 0, 0.0, d)
    if which:
        d = torch.where(arguments[which] == 0, 0.0, d - d.sum() / (arguments[which] > 0).sum())
    d = torch.where(torch.isinf(arguments[which]), 0.0, d)
    found = slope(lambda t: F(*moved(arguments, which, t)), arguments[which], d)
    assert float((x.grad * d).sum()) == pytest.approx(found, abs=1e-9)


def test_mass_that_appears_has_the_derivative_from_above():
    cost, a, b = problem()
    a[3] = 0.0
    a = a / a.sum()
    d = torch.zeros(8, dtype=F64)
    d[3], d[0] = 1.0, -1.0
    for name in ("value", "plan"):
        F = functools.partial(FUNCTIONS[name], 0.1)
        x = a.clone().requires_grad_()
        F(cost, x, b).backward()
        h = 1e-5
        f = [float(F(cost, a + k * h * d, b)) for k in range(4)]
        one_sided = (-11 * f[0] + 18 * f[1] - 9 * f[2] + 2 * f[3]) / (6 * h)
        assert float((x.grad * d).sum()) == pytest.approx(one_sided, abs=1e-6)


def test_masses_of_any_sum_and_the_other_orientation():
    cost, a, b = problem()
    for c, p, q in ((cost, 3 * a, 3 * b), (cost.T, b, a)):
        x = c.clone().requires_grad_()
        w = W if c.shape == W.shape else W.T
        (transport_plan(x, p, q, epsilon=0.1) * w).sum().backward()
        d = uniform(*c.shape, seed=7)
        F = lambda t, p=p, q=q, w=w: (transport_plan(t, p, q, epsilon=0.1, rtol=1e-13) * w).sum()  # noqa: E731
        assert float((x.grad * d).sum()) == pytest.approx(slope(F, c, d, 1e-4), abs=1e-8)


def test_the_adjoint_system_dense_and_by_products(monkeypatch):
    cost, a, b = problem(20, 15)
    P = sinkhorn(cost, a, b, epsilon=0.05).plan()
    p, q = uniform(20, seed=3), uniform(15, seed=4)
    q = q + (p.sum() - q.sum()) / 15
    H = dual_hessian(P, 1.0)
    for limit in (4096, 0):
        monkeypatch.setattr(derivatives, "DENSE", limit)
        x, y = adjoint(P, p, q)
        assert torch.allclose(H @ torch.cat([x, y]), torch.cat([p, q]), atol=1e-9)


def test_a_plan_in_all_but_pieces_says_so():
    P = torch.tensor([[0.5, 1e-30], [1e-30, 0.5]], dtype=F64)
    with pytest.raises(NotConverged, match=r"transport: the adjoint system left a relative .*raise epsilon"):
        adjoint(P, torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64))


def test_uniform_masses_and_float32_by_default():
    x = uniform(5, 4).float().requires_grad_()
    P = transport_plan(x, epsilon=0.2)
    assert P.dtype == torch.float32
    P[0, 0].backward()
    y = x.detach().double().requires_grad_()
    transport_plan(y, epsilon=0.2)[0, 0].backward()
    assert torch.allclose(x.grad.double(), y.grad, atol=1e-4)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="transport: cost must be a tensor, got list"):
        transport_value([[1.0]], epsilon=1.0)
    with pytest.raises(ValueError, match="transport_plan: a and b must have the same sum"):
        transport_plan(uniform(3, 3), masses(3), 2 * masses(3), epsilon=1.0)
    with pytest.raises(NonFinite, match="transport_value: cost must be finite"):
        transport_value(uniform(3, 3) * float("nan"), epsilon=1.0)
    with pytest.raises(NotConverged, match="no plan exists"):
        transport_value(torch.full((2, 2), INF, dtype=F64), epsilon=1.0)


# --- every mode, every order ------------------------------------------------------------------------------------------

ALL = [transport_value, transport_plan, transport_potentials]
BLOCKS = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)) == 0  # pairs between two problems


def by_logits(f, cost, x, y):
    """f of masses that have the sum one for all x and y."""
    return f(cost, x.softmax(0), y.softmax(0), **SOLVED)


def in_blocks(f, cost):
    a, b = masses(4), masses(4)
    for z in (a, b):
        z[:2] /= 2 * z[:2].sum()
        z[2:] /= 2 * z[2:].sum()
    return f(torch.where(BLOCKS, INF, cost), a, b, **SOLVED)


def with_an_empty_row(f, cost):
    a = torch.tensor([0.4, 0.0, 0.6], dtype=F64)
    return f(cost, a, masses(4) / masses(4).sum(), **SOLVED)


FAMILY = {
    "masses": (by_logits, lambda: [uniform(3, 4), uniform(3, seed=1), uniform(4, seed=2)]),
    "wide": (by_logits, lambda: [uniform(4, 2), uniform(4, seed=1), uniform(2, seed=2)]),
    "blocks": (in_blocks, lambda: [uniform(4, 4)]),
    "an empty row": (with_an_empty_row, lambda: [uniform(3, 4)]),
}


@pytest.mark.parametrize("case", FAMILY)
@pytest.mark.parametrize("f", ALL, ids=lambda f: f.__name__)
def test_first_and_second_derivatives_in_both_modes(f, case):
    F, inputs = FAMILY[case]
    F, xs = functools.partial(F, f), [x.requires_grad_() for x in inputs()]
    fast = case != "masses"  # along one random direction, where the other case sees every entry
    assert torch.autograd.gradcheck(F, xs, check_forward_ad=True, fast_mode=fast)
    assert torch.autograd.gradgradcheck(F, xs, check_fwd_over_rev=True, fast_mode=fast)


def first(y):
    """The one tensor of a result, or its parts in one."""
    return torch.cat([part.reshape(-1) for part in y]) if isinstance(y, tuple) else y


@pytest.mark.parametrize("f", ALL, ids=lambda f: f.__name__)
def test_transforms_of_torch_func(f):
    cost = uniform(3, 4)
    F = lambda c: first(f(c, **SOLVED))  # noqa: E731
    S = lambda c: F(c).square().sum()  # noqa: E731
    J = torch.autograd.functional.jacobian(F, cost)
    H = torch.autograd.functional.hessian(S, cost)
    costs, d = torch.stack([cost, 2 * cost, cost.flip(0)]), uniform(3, 4, seed=3)
    close = functools.partial(torch.allclose, rtol=1e-9, atol=1e-9)
    assert close(torch.func.jacrev(F)(cost), J)
    assert close(torch.func.jacfwd(F)(cost), J)
    assert close(torch.func.jvp(F, (cost,), (d,))[1], torch.tensordot(J, d, 2))
    assert close(torch.func.hessian(S)(cost), H)
    assert close(torch.func.jacrev(torch.func.jacrev(S))(cost), H)
    assert close(torch.func.jacfwd(torch.func.grad(S))(cost), H)
    assert close(torch.func.vmap(F)(costs), torch.stack([F(c) for c in costs]))
    each = torch.stack([torch.func.grad(S)(c) for c in costs])
    assert close(torch.func.vmap(torch.func.grad(S))(costs), each)
    assert close(torch.func.grad(lambda cs: torch.func.vmap(S)(cs).sum())(costs), each)
    assert close(torch.func.vmap(torch.func.hessian(S))(costs)[0], H)
    assert close(torch.func.vmap(F, in_dims=2)(costs.permute(1, 2, 0)), torch.stack([F(c) for c in costs]))
    third = torch.func.jvp(lambda c: torch.func.hessian(S)(c), (cost,), (d,))[1]
    h = 1e-4
    assert torch.allclose(
        third, (torch.func.hessian(S)(cost + h * d) - torch.func.hessian(S)(cost - h * d)) / (2 * h), atol=1e-4
    )


@pytest.mark.parametrize("f", ALL, ids=lambda f: f.__name__)
def test_masses_of_a_batch_and_one_cost(f):
    cost, many = uniform(3, 4), torch.stack([masses(3), masses(3).flip(0)])
    many = many / many.sum(1, keepdim=True)
    F = lambda a: first(f(cost, a, **SOLVED))  # noqa: E731
    assert torch.allclose(torch.func.vmap(F)(many), torch.stack([F(a) for a in many]))


def test_a_gradient_of_the_value_needs_no_system(monkeypatch):
    def refuse(*_args):
        raise AssertionError("a system was solved")

    monkeypatch.setattr(derivatives, "adjoint", refuse)
    cost = uniform(3, 4)
    V = lambda c: transport_value(c, **SOLVED)  # noqa: E731
    P = transport_plan(cost, **SOLVED)
    assert torch.allclose(torch.func.grad(V)(cost), P)
    assert torch.allclose(torch.func.jvp(V, (cost,), (cost,))[1], (P * cost).sum())


@pytest.mark.parametrize("f", ALL, ids=lambda f: f.__name__)
def test_bad_numbers_are_named_under_transforms_too(f):
    F = lambda c: first(f(c, **SOLVED)).sum()  # noqa: E731
    bad = torch.full((3, 4), torch.nan, dtype=F64)
    for run in (torch.func.grad(F), lambda c: torch.func.vmap(F)(c[None]), torch.func.jacfwd(F)):
        with pytest.raises(NonFinite, match=f"{f.__name__}: cost must be finite"):
            run(bad)
