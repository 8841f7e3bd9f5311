"""Backward hooks and backwards that are no linear map, or that leave part of their graph behind, each as a family.

What such a model's gradients are the derivative of, or whether they are any function's, is asked of every operator,
recorded or not; what has no answer is one sentence before any number.
"""

import pytest
import torch
from torch import nn

from frechet import (
    NotDifferentiable,
    Objective,
    cross_entropy,
    empirical_fisher,
    fisher,
    gauss_newton,
    hessian,
    jacobian,
    linearize,
    ntk,
    squared_error,
)

HOOKS = {
    "clips": lambda g: g.clamp(-0.1, 0.1),
    "normalizes": lambda g: g / g.norm().clamp(min=1e-30),
    "adds": lambda g: g + 1,
    "halves without a graph": lambda g: g.detach() * 0.5 + g * 0.5,
}


class Hooked(nn.Module):
    def __init__(self, how, where):
        super().__init__()
        self.a, self.b, self.hook, self.where = nn.Linear(2, 3), nn.Linear(3, 2), HOOKS[how], where
        if where == "module":
            self.b.register_full_backward_hook(lambda _m, gi, _go: tuple(self.hook(g) for g in gi))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if self.where == "tensor" and h.requires_grad:
            h.register_hook(self.hook)
        return self.b(h)


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(kept)


OPERATORS = {
    "hessian": hessian,
    "gauss_newton": gauss_newton,
    "fisher": fisher,
    "empirical_fisher": lambda o: empirical_fisher(o, per="example"),
    "jacobian": jacobian,
    "ntk": ntk,
}


@pytest.mark.parametrize("how", HOOKS)
@pytest.mark.parametrize("where", ["tensor", "module"])
@pytest.mark.parametrize("which", OPERATORS)
def test_hooks_that_are_no_linear_map_or_lose_a_graph_are_told_by_every_operator(how, where, which):
    model, data = Hooked(how, where), [(torch.randn(4, 2), torch.randn(4, 2))]
    o, make = Objective(model, squared_error(), data), OPERATORS[which]
    sentence = "must be derivatives of the gradient|must be the adjoint of the backward pass|got another vector"
    v = torch.randn(o.space.dim if which != "ntk" else 8)
    with pytest.raises(NotDifferentiable, match=sentence):
        make(o) @ v
    with pytest.raises(NotDifferentiable, match=sentence):
        linearize(make(o)) @ v
    with pytest.raises(NotDifferentiable, match=sentence):
        linearize(make(o), memory=0) @ v


@pytest.mark.parametrize("how", ["clips", "normalizes", "adds"])
def test_a_transposed_jacobian_through_a_hook_that_is_no_linear_map_is_told(how):
    model, data = Hooked(how, "tensor"), [(torch.randn(4, 2), torch.randn(4, 2))]
    with pytest.raises(NotDifferentiable, match="got another vector: a backward hook"):
        jacobian(Objective(model, squared_error(), data)).T @ torch.randn(8)

    def f(x):
        h = x * x
        if h.requires_grad:
            h.register_hook(HOOKS[how])
        return h * h

    with pytest.raises(NotDifferentiable, match="got another vector: a backward hook"):
        jacobian(f, torch.randn(3)).T @ torch.randn(3)


def test_hooks_of_functions_are_told():
    def f(x):
        h = x * x
        if h.requires_grad:
            h.register_hook(lambda g: -0.3 * g)
        return h * h

    x, v = torch.randn(3), torch.randn(3)
    with pytest.raises(NotDifferentiable, match="must be derivatives of the gradient"):
        hessian(lambda y: f(y).sum(), x) @ v
    J = jacobian(f, x)
    assert torch.allclose(J @ v, J.T @ v)  # diagonal
    assert torch.allclose(J @ v, -0.3 * 4 * x**3 * v)


class Equilibrium(nn.Module):
    """A fixed point whose gradient comes from a hook that solves the adjoint equation."""

    def __init__(self, graph):
        super().__init__()
        self.w, self.u, self.out, self.graph = nn.Linear(3, 3), nn.Linear(2, 3), nn.Linear(3, 2), graph
        with torch.no_grad():
            self.w.weight *= 0.3

    def step(self, z, x):
        return torch.tanh(self.w(z) + self.u(x))

    def forward(self, x):
        with torch.no_grad():
            z = torch.zeros(len(x), 3)
            for _ in range(60):
                z = self.step(z, x)
        z = self.step(z, x)
        at = z.detach().requires_grad_()
        again = self.step(at, x)

        def adjoint(g):
            y = g
            for _ in range(60):
                y = torch.autograd.grad(again, at, y, retain_graph=True, create_graph=self.graph)[0] + g
            return y

        if z.requires_grad:
            z.register_hook(adjoint)
        return self.out(z)


def test_an_equilibrium_model_has_gauss_newton_products_where_its_hook_keeps_the_graph():
    model, data = Equilibrium(True), [(torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))]
    o = Objective(model, cross_entropy(), data)
    x, y = data[0]
    n, h = o.space.dim, 1e-6
    columns = []
    for p in model.parameters():
        for i in range(p.numel()):
            ends = []
            for s in (h, -h):
                p.data.view(-1)[i] += s
                ends.append(model(x).detach())
                p.data.view(-1)[i] -= s
            columns.append(((ends[0] - ends[1]) / (2 * h)).reshape(-1))
    J = torch.stack(columns, 1)
    q = torch.softmax(model(x).detach(), 1)
    C = torch.block_diag(*[torch.diag(r) - r[:, None] * r for r in q]) / len(y)
    reference = J.T @ C @ J
    for A in (gauss_newton(o), linearize(gauss_newton(o)), fisher(o)):
        assert A.shape == (n, n)
        assert float((A.dense() - reference).norm() / reference.norm()) < 1e-6
    o = Objective(Equilibrium(False), cross_entropy(), data)
    for make in (gauss_newton, fisher, lambda q: linearize(gauss_newton(q))):
        with pytest.raises(NotDifferentiable, match="without create_graph=True"):
            make(o) @ torch.randn(n)


@pytest.mark.parametrize("c", [2.0, -1.0, 0.5])
@pytest.mark.parametrize("per", ["example", "term"])
@pytest.mark.parametrize("memory", [None, 0])
def test_a_factor_is_squared_in_recorded_second_moments(c, per, memory):
    model, x, y = nn.Linear(3, 2), torch.randn(5, 3), torch.randint(0, 2, (5,))
    o = Objective(model, cross_entropy(), [(x[:3], y[:3]), (x[3:], y[3:])])
    both = c * o + 3 * Objective(model, cross_entropy(), [(x, y)])
    for objective in (c * o, both):
        A = empirical_fisher(objective, per=per)
        assert torch.allclose(linearize(A, memory=memory).dense(), A.dense(), rtol=1e-9, atol=1e-12)
