"""Models, losses and data as people bring them, each kind as a family, against differences of plain training code.

The reference knows nothing of the library: it moves the model's parameters in place, calls `loss` as a training loop
does, and takes central differences of the gradients that `loss.backward()` leaves, in float64.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

from frechet import (
    Objective,
    check_operator,
    cross_entropy,
    empirical_fisher,
    gauss_newton,
    hessian,
    jacobian,
    l2,
    squared_error,
)
from frechet.analyze import example_gradients, gradient_gram
from frechet.objective import Penalty
from frechet.objective.criteria import custom

CLOSE = 1e-6


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(kept)


def slopes(model, loss):
    """The gradient that a training loop sees."""
    for p in model.parameters():
        p.grad = None
    loss().backward()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad.to_dense()).reshape(-1) for p in trained(model)]
    )


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def curvature(model, loss, h=1e-5):
    """The dense Hessian by differences of these gradients."""
    columns = []
    for p in trained(model):
        for i in range(p.numel()):
            ends = []
            for s in (h, -h):
                p.data.view(-1)[i] += s
                ends.append(slopes(model, loss))
                p.data.view(-1)[i] -= s
            columns.append((ends[0] - ends[1]) / (2 * h))
    return torch.stack(columns, 1)


def close(found, expected, tolerance=CLOSE):
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * max(float(expected.norm()), 1e-12)


def agrees(objective, loss):
    """Value, gradient, Hessian as an operator, and the whole check, against plain training code."""
    model = objective.model
    reference, g = curvature(model, loss), slopes(model, loss)
    value = float(loss().detach())
    for _ in range(2):  # nothing is left behind by a first pass
        assert abs(float(objective.value()) - value) <= CLOSE * max(abs(value), 1.0)
        close(objective.gradient(), g)
        H = hessian(objective)
        close(H.dense(), reference)
    objective.check()
    return reference


def sound(A, seed=0):
    assert check_operator(A, seed=seed).failed == ()
    return A


class Forces(nn.Module):
    """Returns a derivative of its energy in the inputs."""

    def __init__(self, norm, how):
        super().__init__()
        self.first, self.norm, self.last, self.how = nn.Linear(3, 4), norm, nn.Linear(4, 1), how

    def energy(self, x):
        return self.last(torch.tanh(self.norm(torch.tanh(self.first(x)))))

    def forward(self, x):
        if self.how == "func":
            return -torch.func.grad(lambda z: self.energy(z).sum())(x)
        if self.how == "jacrev":
            return -torch.func.jacrev(lambda z: self.energy(z).sum())(x)
        if self.how == "vjp":
            return -torch.func.vjp(lambda z: self.energy(z).sum(), x)[1](torch.ones(()))[0]
        if self.how == "functional":
            return -torch.autograd.functional.jacobian(lambda z: self.energy(z).sum(), x, create_graph=True)
        if self.how == "enabled":
            with torch.enable_grad():
                return self._grad(x)
        return self._grad(x)

    def _grad(self, x):
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


NORMS = {
    "none": nn.Identity,
    "layer": lambda: nn.LayerNorm(4),
    "batch": lambda: nn.BatchNorm1d(4, track_running_stats=False),  # torch.func refuses to move statistics
    "group": lambda: nn.GroupNorm(2, 4),
    "rms": lambda: nn.RMSNorm(4),
    "weight": lambda: weight_norm(nn.Linear(4, 4)),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)).eval(),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("how", ["plain", "enabled", "func", "jacrev", "vjp", "functional"])
def test_models_that_differentiate_themselves(norm, how):
    model = Forces(NORMS[norm](), how)
    if norm == "spectral":
        model.eval()
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    o = Objective(model, squared_error(), [(x, y)])
    if norm == "weight":  # plain training code takes torch's fused kernel, whose second derivative is wrong
        here, h = o.point, 1e-5
        ends = [(o.gradient(here + h * e) - o.gradient(here - h * e)) / (2 * h) for e in torch.eye(len(here))]
        close(hessian(o).dense(), torch.stack(ends, 1))
        o.check()
    else:
        agrees(o, lambda: F.mse_loss(model(x), y))
    G = sound(gauss_newton(o)).dense()
    close(G, gauss_newton(o, route="reverse").dense())


class Residual(nn.Module):
    """A differential equation's residual, written in several ways."""

    def __init__(self, how):
        super().__init__()
        self.net, self.how = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), how

    def forward(self, x):
        if self.how == "hessian":
            return torch.func.vmap(torch.func.hessian(lambda t: self.net(t[None])[0, 0]))(x)[:, 0] + self.net(x)
        if self.how == "jvp":
            one = torch.ones_like(x)
            return torch.func.jvp(lambda z: torch.func.jvp(self.net, (z,), (one,))[1], (x,), (one,))[1] + self.net(x)
        if self.how == "forward over reverse":
            return torch.func.vmap(torch.func.jacfwd(torch.func.jacrev(lambda t: self.net(t[None])[0, 0])))(x)[:, 0]
        x = x.detach().requires_grad_()
        u = self.net(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return torch.autograd.grad(du.sum(), x, create_graph=True)[0] + u


@pytest.mark.parametrize("how", ["grad", "hessian", "jvp", "forward over reverse"])
def test_residuals_of_differential_equations(how):
    model, x = Residual(how), torch.linspace(0, 1, 6)[:, None]
    o = Objective(model, squared_error(), [(x, torch.sin(x))])
    agrees(o, lambda: F.mse_loss(model(x), torch.sin(x)))
    G = sound(gauss_newton(o))
    close(G.dense(), gauss_newton(o, route="reverse").dense())
    if G.route == "reverse":
        assert "forward mode" in G.way.reason
    found = example_gradients(o)
    close(found.gradient, o.gradient())


class Learner(nn.Module):
    """Takes a gradient step inside of its forward pass."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)

    def forward(self, x):
        w, b = self.net.weight, self.net.bias
        loss = F.linear(x[:3], w, b).tanh().square().mean()
        gw, gb = torch.autograd.grad(loss, (w, b), create_graph=True)
        return F.linear(x, w - 0.3 * gw, b - 0.3 * gb).tanh()


def test_a_model_with_an_inner_gradient_step():
    model, x, y = Learner(), torch.randn(6, 2), torch.randn(6, 1)
    agrees(Objective(model, squared_error(), [(x, y)]), lambda: F.mse_loss(model(x), y))


# --- parameters -------------------------------------------------------------------------------------------------------


class Tempered(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(3, 2), kind
        if kind == "weight norm of all":
            self.layer = nn.utils.weight_norm(nn.Linear(3, 2), dim=None)
        elif kind != "rezero":
            self.scale = nn.Parameter(torch.tensor(0.5))
        else:
            self.gates = nn.ParameterList([nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.zeros(()))])

    def forward(self, x):
        if self.kind == "temperature":
            return self.layer(x) * self.scale.exp()
        if self.kind == "rezero":
            return self.layer(x + self.gates[0] * torch.tanh(x)) * (1 + self.gates[1])
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", ["temperature", "rezero", "weight norm of all"])
def test_parameters_without_an_axis(kind):
    model, x, y = Tempered(kind), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    o = Objective(model, cross_entropy(), [(x, y)])
    H = sound(hessian(o)).dense()
    sound(gauss_newton(o))
    if kind != "weight norm of all":
        close(H, curvature(model, lambda: F.cross_entropy(model(x), y)))
    o.check()


class Reached(nn.Module):
    """Reads a parameter of its own by another way than its module."""

    def __init__(self, how):
        super().__init__()
        self.emb, self.mix, self.how = nn.Embedding(5, 3), nn.Linear(3, 3), how
        weight = self.emb.weight
        self.unembed = functools.partial(F.linear, weight=weight)
        self.closure = lambda h: h @ weight.T
        self.held = [weight]
        self.table = {"w": (weight, 1)}
        self.method = weight.T.__class__

    def forward(self, i):
        h = torch.tanh(self.mix(self.emb(i)))
        if self.how == "partial":
            return self.unembed(h)
        if self.how == "closure":
            return self.closure(h)
        if self.how == "list":
            return torch.stack(self.held)[0].matmul(h.T).T
        if self.how == "dict":
            return torch.einsum("nd,vd->nv", h, self.table["w"][0])
        return sum(F.linear(h, p) for p in self.parameters() if p.shape == (5, 3))


@pytest.mark.parametrize("how", ["partial", "closure", "list", "dict", "parameters"])
def test_parameters_that_are_read_by_another_way_than_their_module(how):
    model, i, y = Reached(how), torch.tensor([0, 1, 4, 2, 2]), torch.tensor([1, 0, 3, 4, 1])
    o = Objective(model, cross_entropy(), [(i, y)])
    agrees(o, lambda: F.cross_entropy(model(i), y))
    x = o.point + 0.1
    before = [p.detach().clone() for p in model.parameters()]
    G = gauss_newton(o, x=x).dense()
    elsewhere = o.gradient(x)
    for p, block in zip(model.parameters(), o.space.unflatten(x).values(), strict=True):
        p.data.copy_(block)
    close(elsewhere, slopes(model, lambda: F.cross_entropy(model(i), y)))
    close(G, gauss_newton(o).dense())
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.log_s = nn.Linear(3, 2), nn.Parameter(torch.tensor([0.3, -0.4]))

    def forward(self, x):
        return self.net(x)


def test_parameters_in_the_criterion():
    model, x, y = Noisy(), torch.randn(8, 3), torch.randn(8, 2)

    def terms(f, t):
        return ((f - t) ** 2 * torch.exp(-model.log_s) + model.log_s).sum(1)

    o = Objective(model, custom(terms), [(x[:5], y[:5]), (x[5:], y[5:])])
    reference = agrees(o, lambda: terms(model(x), y).mean())
    # the model is linear in its parameters, so its Gauss-Newton matrix with the noise as an argument is the Hessian
    close(sound(gauss_newton(o)).dense(), reference)
    G = torch.stack([slopes(model, lambda i=i: terms(model(x[i : i + 1]), y[i : i + 1]).sum()) for i in range(8)])
    close(sound(empirical_fisher(o, per="example")).dense(), G.T @ G / 8)
    close(gradient_gram(o).matrix, G @ G.T)
    shifted = (o.point + 0.5).requires_grad_()
    (g,) = torch.autograd.grad(o.value(shifted), shifted)
    close(g, o.gradient(shifted.detach()))


def test_parameters_in_a_penalty():
    model, x, y = nn.Linear(2, 1), torch.randn(4, 2), torch.randn(4, 1)
    o = Objective(model, squared_error(), [(x, y)], penalty=Penalty(lambda _: model.weight.pow(4).sum()))
    agrees(o, lambda: F.mse_loss(model(x), y) + model.weight.pow(4).sum())


class Caching(nn.Module):
    """Keeps what it computed from its parameters, outside of training."""

    def __init__(self, how):
        super().__init__()
        self.mlp, self.layer, self.how = nn.Linear(1, 1), nn.Linear(3, 3), how
        self.kept, self.table, self.items = None, {}, []

    def bias(self):
        return self.mlp(torch.linspace(-1, 1, 3)[:, None])[:, 0]

    def forward(self, x):
        if self.how == "attribute":
            if self.kept is None:
                self.kept = self.bias()
            return self.layer(x * self.kept.exp())
        if self.how == "dict":
            return self.layer(x * self.table.setdefault(len(x), self.bias()).exp())
        if self.how == "new attribute":
            if not hasattr(self, "late"):
                self.late = self.bias()
            return self.layer(x * self.late.exp())
        if not self.items:
            self.items.append(self.bias())
        return self.layer(x * self.items[0].exp())


@pytest.mark.parametrize("how", ["attribute", "dict", "new attribute", "list"])
def test_caches_of_what_was_computed_from_parameters(how):
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    model = Caching(how).eval()
    o = Objective(model, cross_entropy(), [(x, y)])

    def loss():
        model.kept, model.table, model.items = None, {}, []
        model.__dict__.pop("late", None)
        return F.cross_entropy(model(x), y)

    H, v = hessian(o), torch.randn(o.space.dim)
    first, second = H @ v, H @ v
    o.value()
    third = hessian(o) @ v
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert model.kept is None
    assert not model.table
    assert not model.items
    close(first, curvature(model, loss) @ v)


def test_a_cache_outside_of_the_model_is_told():
    model, kept = nn.Linear(2, 2), {}

    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            if "w" not in kept:
                kept["w"] = self.inner.weight.exp()
            return x @ kept["w"]

    o = Objective(Outside(), squared_error(), [(torch.randn(3, 2), torch.randn(3, 2))])
    o.gradient()
    with pytest.raises(Exception, match="computed from its parameters in an earlier pass and kept"):
        o.gradient()


# --- what is written into ---------------------------------------------------------------------------------------------


class Writing(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.layer, self.what = nn.Linear(3, 2), what
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        if self.what == "inputs":
            x = x.sub_(0.5).div_(0.25)
        elif self.what == "buffer":
            self.mean.mul_(0.9).add_(0.1 * x.mean(0).detach())
            x = x - self.mean
        elif self.what == "counter":
            self.seen += 1
            x = x * (1 + 0.1 * self.seen)
        elif self.what == "attribute":
            self.calls = getattr(self, "calls", 0) + 1
            x = x * self.calls
        return self.layer(x)


@pytest.mark.parametrize("what", ["inputs", "buffer", "counter", "attribute"])
@pytest.mark.parametrize("train", [True, False])
def test_models_that_write_into_what_is_not_their_own(what, train):
    model, x, y = Writing(what).train(train), torch.rand(6, 3), torch.randint(0, 2, (6,))
    kept, state = x.clone(), {k: t.clone() for k, t in model.state_dict().items()}
    o = Objective(model, cross_entropy(), [(x, y)])
    H, v = hessian(o), torch.randn(8)
    assert torch.equal(H @ v, H @ v)
    assert float(o.value()) == float(o.value())
    assert torch.equal(gauss_newton(o) @ v, gauss_newton(o) @ v)
    o.check()
    assert torch.equal(x, kept)
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())
    assert "calls" not in model.__dict__


def test_criteria_that_write_into_outputs_and_targets():
    model, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2)
    kept = y.clone()
    o = Objective(model, custom(lambda f, t: f.sub_(t.mul_(2)).square().sum(1)), [(x, y)])
    plain = Objective(model, custom(lambda f, t: (f - 2 * t).square().sum(1)), [(x, y)])
    for make in (hessian, gauss_newton, lambda q: empirical_fisher(q, per="example")):
        close(make(o).dense(), make(plain).dense())
    assert torch.equal(y, kept)


def test_an_activation_that_writes_into_the_input():
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    kept = x.clone()
    o = Objective(nn.Sequential(nn.SiLU(inplace=True), nn.Linear(3, 2), nn.Tanh()), squared_error(), [(x, y)])
    v = torch.randn(8)
    assert torch.equal(hessian(o) @ v, hessian(o) @ v)
    assert torch.equal(x, kept)


# --- hooks and checkpoints --------------------------------------------------------------------------------------------


class Hooked(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(3, 4), nn.Linear(4, 2), how
        if how == "module":
            self.a.register_full_backward_hook(lambda _m, gi, _go: tuple(None if g is None else -0.3 * g for g in gi))
        if how == "module before":
            self.b.register_full_backward_pre_hook(lambda _m, go: tuple(0.5 * g for g in go))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if self.how in ("tensor", "looking") and h.requires_grad:
            h.register_hook((lambda g: -0.3 * g) if self.how == "tensor" else (lambda g: None))
        return self.b(h)


@pytest.mark.parametrize("how", ["tensor", "module before", "looking"])
def test_backward_hooks_are_part_of_every_product(how):
    model, x, y = Hooked(how), torch.randn(6, 3), torch.randn(6, 2)
    o = Objective(model, squared_error(), [(x, y)])
    J = torch.stack([slopes(model, lambda i=i, j=j: model(x)[i, j]) for i in range(6) for j in range(2)])
    A = jacobian(o)
    close(A.dense(), J)
    close(A.T.dense(), J.T)
    close(sound(gauss_newton(o)).dense(), J.T @ J * (2 / 12))
    assert gauss_newton(o).route in ("reverse", "forward")
    if how == "looking":
        agrees(o, lambda: F.mse_loss(model(x), y))
    else:
        with pytest.raises(Exception, match="hessian: products must be derivatives of the gradient"):
            hessian(o) @ torch.randn(o.space.dim)
        claims = [p.claim for p in o.check().proved if not p.proved]
        assert "the gradient is the slope of the loss (backward hooks" in claims[0]


def test_a_checkpointed_module_with_weight_norm():
    class Checkpointed(nn.Module):
        def __init__(self, m):
            super().__init__()
            self.m = m

        def forward(self, x):
            return checkpoint(self.m, x, use_reentrant=False)

    x, y = torch.randn(4, 3), torch.randn(4, 2)
    inner = nn.Sequential(weight_norm(nn.Linear(3, 3)), nn.GELU(approximate="tanh"))
    last = nn.Linear(3, 2)
    direct = Objective(nn.Sequential(inner, last), squared_error(), [(x, y)])
    o = Objective(nn.Sequential(Checkpointed(inner), last), squared_error(), [(x, y)])
    close(o.gradient(), direct.gradient())
    close(hessian(o).dense(), hessian(direct).dense())
    close(gauss_newton(o).dense(), gauss_newton(direct).dense())


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    y: torch.Tensor
    w: torch.Tensor


class Named(NamedTuple):
    y: torch.Tensor
    w: torch.Tensor


TARGETS = {
    "tuple": lambda y, w: (y, w),
    "list": lambda y, w: [y, w],
    "dict": lambda y, w: {"w": w, "y": y},
    "record": Case,
    "named tuple": Named,
    "one for each": lambda y, w: [{"y": a, "w": b} for a, b in zip(y, w, strict=True)],
}


def taken(t):
    if isinstance(t, list) and isinstance(t[0], dict):
        return torch.stack([e["y"] for e in t]), torch.stack([e["w"] for e in t])
    if isinstance(t, dict):
        return t["y"], t["w"]
    return (t.y, t.w) if isinstance(t, Case) else tuple(t)


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_of_any_structure(kind):
    model, x, y, w = nn.Linear(3, 1), torch.randn(8, 3), torch.randn(8, 1), torch.rand(8) + 0.2
    make = TARGETS[kind]

    def terms(f, t):
        a, b = taken(t)
        return b * (f - a).square().sum(1)

    loss = custom(terms, count=lambda t: taken(t)[1].sum())
    o = Objective(model, loss, [(x[:6], make(y[:6], w[:6])), (x[6:], make(y[6:], w[6:]))])
    scale = 8 / float(w.sum())
    G = torch.cat([2 * (model(x) - y) * x, 2 * (model(x) - y)], 1).detach() * w[:, None] * scale
    close(empirical_fisher(o, per="example").dense(), G.T @ G / 8)
    close(gradient_gram(o).matrix, G @ G.T)
    close(example_gradients(o).squared_norms, G.square().sum(1))
    pieces = o.in_pieces(2)
    assert max(len(b.inputs) for b in pieces.batches()) == 2
    close(hessian(pieces).dense(), hessian(o).dense())
    agrees(o, lambda: (w * (model(x) - y).square().sum(1)).sum() / w.sum())


def test_batches_without_targets():
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    o = Objective(model, custom(lambda f, _: f.square().sum(1)), [x[:4], x[4:]], split=lambda b: (b, None))
    paired = Objective(model, custom(lambda f, _: f.square().sum(1)), [(x[:4], x[:4]), (x[4:], x[4:])])
    agrees(o, lambda: model(x).square().sum(1).mean())
    close(empirical_fisher(o, per="example").dense(), empirical_fisher(paired, per="example").dense())
    close(example_gradients(o).squared_norms, example_gradients(paired).squared_norms)
    close(hessian(o.in_pieces(2)).dense(), hessian(o).dense())


def test_a_count_that_does_not_add_up_over_pieces_is_told():
    o = Objective(nn.Linear(3, 2), custom(lambda f, _: f.square().sum(1), count=lambda _: 4), [(torch.randn(4, 3), 0)])
    with pytest.raises(Exception, match="count must add up over pieces"):
        o.in_pieces(2)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_empty_batches(where):
    model, x, y = nn.Linear(3, 4), torch.randn(6, 3), torch.randint(0, 4, (6,))
    data = [(x[:3], y[:3]), (x[3:], y[3:])]
    full = Objective(model, cross_entropy(), list(data))
    data.insert(where, (x[:0], y[:0]))
    o = Objective(model, cross_entropy(), data)
    for make in (hessian, gauss_newton, lambda q: empirical_fisher(q, per="example"), jacobian):
        close(make(o).dense(), make(full).dense())
    close(example_gradients(o).squared_norms, example_gradients(full).squared_norms)
    close(gradient_gram(o).matrix, gradient_gram(full).matrix)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.r, self.l = nn.GRU(2, 3), nn.Linear(3, 2)

    def forward(self, p):
        return self.l(self.r(p)[1][-1])


def test_packed_sequences_and_named_tuples_are_one_argument_where_the_model_takes_one():
    model, y = Tagger(), torch.tensor([0, 1, 1])
    p = pack_sequence([torch.randn(n, 2) for n in (4, 3, 1)])
    o = Objective(model, cross_entropy(), [(p, y)])
    agrees(o, lambda: F.cross_entropy(model(p), y))
    with pytest.raises(TypeError, match="a PackedSequence cannot be cut into examples"):
        o.in_pieces(1)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, b):
            return self.layer(b.y) * b.w

    class Spread(Pair):
        def forward(self, y, w):
            return self.layer(y) * w

    pair, t = Named(torch.randn(4, 2), torch.rand(4, 1)), torch.randn(4, 1)
    for m in (Pair(), Spread()):
        agrees(
            Objective(m, squared_error(), [(pair, t)]),
            lambda m=m: F.mse_loss(m(pair) if type(m) is Pair else m(*pair), t),
        )


def test_sparse_and_jagged_inputs():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, A):
            return A @ self.b(torch.tanh(A @ self.a(x)))

    A, x, y = (torch.rand(7, 7) < 0.4).double(), torch.randn(7, 3), torch.randint(0, 2, (7,))
    model = Graph()
    dense = Objective(model, cross_entropy(), [((x, A), y)])
    o = Objective(model, cross_entropy(), [((x, A.to_sparse()), y)])
    for make in (hessian, gauss_newton, lambda q: empirical_fisher(q, per="example")):
        close(make(o).dense(), make(dense).dense())

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.k = nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, t):
            return self.k(torch.tanh(self.l(t))).values()

    pieces = [torch.randn(n, 2) for n in (4, 3, 1)]
    jagged = torch.nested.nested_tensor(pieces, layout=torch.jagged)
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    model = Tokens()
    o = Objective(model, cross_entropy(), [(jagged, labels)])

    def plain():
        return F.cross_entropy(model.k(torch.tanh(model.l(torch.cat(pieces)))), labels)

    agrees(o, plain)
    gauss_newton(o).dense()


def test_sparse_gradients():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 2))

        def forward(self, i):
            return torch.tanh(F.embedding(i, self.w, sparse=True))

    model, i, y = Table(), torch.tensor([0, 2, 2, 5]), torch.tensor([0, 1, 1, 0])
    o = Objective(model, cross_entropy(), [(i, y)])
    agrees(o, lambda: F.cross_entropy(model(i), y))
    assert example_gradients(o).examples == 4


# --- outputs ----------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    policy: torch.Tensor
    value: torch.Tensor


class Heads(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.a, self.b, self.kind = nn.Linear(3, 3), nn.Linear(3, 4), nn.Linear(3, 1), kind

    def forward(self, x):
        h = torch.tanh(self.body(x))
        p, v = self.a(h), self.b(h)
        if self.kind == "tuple":
            return p, v, None
        if self.kind == "dict":
            return {"policy": p, "value": v, "step": 3}
        return Answer(p, v)


def heads(out):
    return (
        (out[0], out[1])
        if isinstance(out, tuple)
        else ((out["policy"], out["value"]) if isinstance(out, dict) else (out.policy, out.value))
    )


@pytest.mark.parametrize("kind", ["tuple", "dict", "record"])
def test_several_losses_on_several_heads_are_one_objective(kind):
    model, x = Heads(kind), torch.randn(6, 3)
    actions, returns = torch.tensor([0, 1, 2, 3, 0, 1]), torch.randn(6)

    def terms(out, t):
        p, v = heads(out)
        return F.cross_entropy(p, t[0], reduction="none") + 0.5 * (v[:, 0] - t[1]) ** 2

    o = Objective(
        model, custom(terms, convex=True), [(x[:4], (actions[:4], returns[:4])), (x[4:], (actions[4:], returns[4:]))]
    )
    agrees(o, lambda: terms(model(x), (actions, returns)).mean())
    joined = nn.Sequential(model)
    joined.forward = lambda z: torch.cat(heads(model(z)), 1)
    flat = Objective(
        joined,
        custom(
            lambda f, t: (
                terms((f[:, :4], f[:, 4:]), t)
                if False
                else F.cross_entropy(f[:, :4], t[0], reduction="none") + 0.5 * (f[:, 4] - t[1]) ** 2
            )
        ),
        [(x, (actions, returns))],
    )
    close(sound(gauss_newton(o)).dense(), gauss_newton(flat).dense())
    close(empirical_fisher(o, per="example").dense(), empirical_fisher(flat, per="example").dense())
    close(example_gradients(o).squared_norms, example_gradients(flat).squared_norms)


def test_objectives_on_wrappers_of_one_model_add_up():
    body = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    one, two = nn.Sequential(body, nn.Linear(3, 2)), nn.Sequential(body, nn.Linear(3, 1))
    x, y, z, t = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]), torch.randn(4, 3), torch.randn(4, 1)
    a = Objective(one, cross_entropy(), [(x, y)], penalty=l2(0.3))
    b = Objective(two, squared_error(), [(z[:3], t[:3]), (z[3:], t[3:])])
    o = a + 0.5 * b

    def loss():
        decay = 0.15 * sum((p * p).sum() for p in one.parameters())
        return F.cross_entropy(one(x), y) + decay + 0.5 * F.mse_loss(two(z), t)

    assert o.space.dim == 3 * 3 + 3 + 8 + 4
    agrees(o, loss)
    G = sound(gauss_newton(o))
    assert G.shape == (24, 24)
    close((o + b).gradient(), slopes(o.model, lambda: loss() + F.mse_loss(two(z), t)))
    with pytest.raises(ValueError, match="one and the same model object, or of modules that share parameters"):
        a + Objective(nn.Linear(3, 1), squared_error(), [(z, t)])


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(4, 4), nn.Linear(2, 4)

    def forward(self, x):
        mu, log_v = self.enc(x).chunk(2, 1)
        z = mu + torch.randn_like(mu) * torch.exp(log_v / 2)
        return {"x": self.dec(z), "mu": mu, "log_v": log_v}


def test_a_variational_autoencoder():
    model, x = Autoencoder(), torch.randn(5, 4)

    def terms(out, t):
        kl = (out["mu"] ** 2 + out["log_v"].exp() - 1 - out["log_v"]).sum(1) / 2
        return (out["x"] - t).square().sum(1) + kl

    o = Objective(model, custom(terms), [(x, x)], dropout_seed=0)
    H = sound(hessian(o))
    v = torch.randn(o.space.dim)
    h = 1e-5
    close(H @ v, (o.gradient(o.point + h * v) - o.gradient(o.point - h * v)) / (2 * h))
    sound(gauss_newton(o))
    o.check()


def test_contrastive_losses_have_products_and_no_single_examples():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = nn.Linear(3, 2), nn.Linear(4, 2)
            self.logit_scale = nn.Parameter(torch.tensor(0.2))

        def forward(self, a, b):
            return F.normalize(self.image(a), dim=1), F.normalize(self.text(b), dim=1), self.logit_scale.exp()

    def clip(out, _):
        a, b, scale = out
        logits, own = scale * a @ b.T, torch.arange(len(a))
        return F.cross_entropy(logits, own, reduction="none") + F.cross_entropy(logits.T, own, reduction="none")

    model, a, b = Pair(), torch.randn(5, 3), torch.randn(5, 4)
    for additive in (True, False):
        o = Objective(model, custom(clip, additive=additive), [((a, b), None)])
        agrees(o, lambda: clip(model(a, b), None).mean())
        sound(gauss_newton(o))
        assert "the criterion" in o.check().coupled
        for ask in (example_gradients, gradient_gram, lambda q: empirical_fisher(q, per="example").dense()):
            with pytest.raises(Exception, match=r"one example each|additive=False|one row for each example"):
                ask(o)
        with pytest.raises(Exception, match=r"couples the examples|additive=False"):
            o.in_pieces(2)


@pytest.mark.parametrize("which", ["squares", "custom"])
def test_complex_outputs(which):
    class Scan(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(3, 4)

        def forward(self, x):
            return torch.fft.fft(self.l(x)) * self.l(x).exp()

    model, x, y = Scan(), torch.randn(5, 3), torch.randn(5, 4, dtype=torch.complex128)
    criterion = nn.MSELoss() if which == "squares" else custom(lambda f, t: (f - t).abs().square().sum(1) / 4)
    o = Objective(model, criterion, [(x, y)])
    agrees(o, lambda: (model(x) - y).abs().square().mean())
    G = torch.stack(
        [slopes(model, lambda i=i: (model(x[i : i + 1]) - y[i : i + 1]).abs().square().mean()) for i in range(5)]
    )
    close(empirical_fisher(o, per="example").dense(), G.T @ G / 5)
    close(gradient_gram(o).matrix, G @ G.T)
    sound(gauss_newton(o))
    with pytest.raises(TypeError, match="needs real outputs"):
        Objective(model, cross_entropy(), [(x, torch.tensor([0, 1, 2, 3, 0]))]).value()


@pytest.mark.parametrize("width", [2, 3])
def test_weights_that_are_seen_as_complex(width):
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.l = nn.Parameter(torch.randn(2, 2, 3, 2)), nn.Conv1d(1, 2, 1)
            self.p = nn.Conv1d(2, width - 1, 1)

        def forward(self, x):
            x = self.l(x)
            h = torch.einsum("bim,iom->bom", torch.fft.rfft(x)[..., :3], torch.view_as_complex(self.w))
            return self.p(torch.tanh(torch.fft.irfft(h, n=8) + x))

    model, x, y = Spectral(), torch.randn(4, 1, 8), torch.randn(4, width - 1, 8)
    o = Objective(model, squared_error(), [(x, y)])
    n = o.space.dim
    V = torch.randn(3, n).T
    reference = curvature(model, lambda: F.mse_loss(model(x), y))
    close(hessian(o) @ V, reference @ V)
    for route in ("reverse", "forward"):
        close(gauss_newton(o, route=route) @ V, gauss_newton(o) @ V.contiguous())
    f = hessian(
        lambda d: (torch.view_as_complex(d["w"]).abs() ** 3).sum() * d["a"].sum(),
        {"a": torch.ones(3), "w": torch.ones(2, 2)},
    )
    assert math.isfinite(float((f @ torch.randn(2, 7).T).norm()))


@pytest.mark.parametrize("c", [2.0, -1.0, 0.5])
@pytest.mark.parametrize("per", ["example", "term"])
def test_a_factor_is_squared_in_second_moments_and_not_in_curvature(c, per):
    model, x, y = nn.Linear(3, 2), torch.randn(5, 3), torch.randint(0, 2, (5,))
    o = Objective(model, cross_entropy(), [(x, y)])
    close((empirical_fisher(c * o, per=per)).dense(), c**2 * empirical_fisher(o, per=per).dense())
    for make in (hessian, gauss_newton):
        close(make(c * o).dense(), c * make(o).dense())


# --- what cannot work is one sentence ---------------------------------------------------------------------------------


def told(objective):
    try:
        objective.check()
    except Exception as error:
        return str(error)
    return ""


def test_mistakes_are_told_with_their_place():
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    y = torch.tensor([0, 1, 0])
    wide = told(Objective(net, cross_entropy(), [(torch.randn(3, 4), y), (torch.randn(3, 5), y)]))
    assert "in batch 1, module '0' (Linear)" in wide
    arrays = told(Objective(net, cross_entropy(), [(torch.randn(3, 4).numpy(), y)]))
    assert "got NumPy arrays in the inputs" in arrays
    swapped = custom(lambda f, t: F.cross_entropy(t, f, reduction="none"))
    assert "the criterion raised" in told(Objective(net, swapped, [(torch.randn(3, 4), y)]))
    with pytest.raises(Exception, match="parameter 'weight' is on the meta device"):
        Objective(nn.Linear(2, 2, device="meta"), cross_entropy(), [(torch.randn(3, 2), y)])
    assert "fix what it draws with Objective" in told(
        Objective(Autoencoder(), custom(lambda o, t: o["x"].sum(1)), [(torch.randn(3, 4), y)])
    )
