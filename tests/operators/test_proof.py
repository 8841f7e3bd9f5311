"""The check proves: it finds what is silently wrong by itself, with every guard of the passes switched off."""

import functools
import importlib
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from frechet import Objective, cross_entropy, squared_error
from frechet.errors import NotDifferentiable, UnusableObjective
from frechet.objective import (
    _functions as functions,
)
from frechet.objective import (
    _guards as guards,
)
from frechet.objective import (
    _model as model,
)
from frechet.objective import (
    _snapshot as snapshot,
)
from frechet.objective import (
    _structure as structure,
)
from frechet.objective.criteria import custom
from frechet.operators import _proof as proof
from frechet.operators.derivatives import _custom_functions as custom_functions
from frechet.operators.derivatives import empirical_fisher

WRONG = (NotDifferentiable, UnusableObjective)


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(kept)


@pytest.fixture
def unguarded(monkeypatch):
    """Passes without what makes them right or tells what is wrong: formulas, installed parameters, copies, refusals."""
    monkeypatch.setattr(functions, "_FORMULAS", {})
    monkeypatch.setattr(functions, "NORMS", {})
    monkeypatch.setattr(functions.Functions, "_installed", lambda self, args: args)
    monkeypatch.setattr(snapshot, "refuse_graph", lambda *_: None)
    alone = lambda self, part, _blocks, batch, y: self.criterion(part, batch).terms(y, batch.targets)  # noqa: E731
    monkeypatch.setattr(snapshot.Snapshot, "terms_of", alone)
    monkeypatch.setattr(model, "put_back", lambda *_: nullcontext())
    monkeypatch.setattr(model, "fresh", lambda tree: tree)
    monkeypatch.setattr(custom_functions, "users_nodes", lambda _: [])
    of = {
        name: importlib.import_module(f"frechet.operators.derivatives._{name}") for name in ("hessian", "gauss_newton")
    }
    monkeypatch.setattr(of["hessian"], "refuse_forgotten", lambda *_: None)
    monkeypatch.setattr(of["gauss_newton"], "check_additive", lambda *_: None)


class Forces(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), norm, nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return -torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]


def forces(norm):
    return Objective(Forces(norm), squared_error(), [(torch.randn(6, 3), torch.randn(6, 3))])


def weight_normed():
    net = nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    return Objective(net, squared_error(), [(torch.randn(6, 3), torch.randn(6, 2))])


class Made(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return torch.exp(-v * v)

    @staticmethod
    def backward(ctx, g):
        (v,) = ctx.saved_tensors
        with torch.no_grad():
            return -2 * v * torch.exp(-v * v) * g


class Waves(nn.Module):
    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(torch.tensor([0.3, 0.7, 1.1]))

    def forward(self, s):
        return s * Made.apply(self.v)


def propagated():
    return Objective(Waves(), squared_error(), [(torch.randn(5, 3), torch.randn(5, 3))])


class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if h.requires_grad:
            h.register_hook(lambda g: -0.3 * g)
        return self.b(h)


def hooked():
    return Objective(Hooked(), squared_error(), [(torch.randn(6, 3), torch.randn(6, 2))])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.mix = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.unembed = functools.partial(F.linear, weight=self.emb.weight)

    def forward(self, i):
        return self.unembed(torch.tanh(self.mix(self.emb(i))))


def tied():
    return Objective(Tied(), cross_entropy(), [(torch.randint(0, 7, (9,)), torch.randint(0, 7, (9,)))])


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.log_s = nn.Linear(3, 2), nn.Parameter(torch.tensor([0.3, -0.4]))

    def forward(self, x):
        return self.net(x)


def learnt_noise():
    m = Noisy()
    loss = custom(lambda f, t: ((f - t) ** 2 * torch.exp(-m.log_s) + m.log_s).sum(1))
    return Objective(m, loss, [(torch.randn(8, 3), torch.randn(8, 2))])


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp, self.layer, self.kept = nn.Linear(1, 1), nn.Linear(3, 3), None

    def forward(self, x):
        if self.kept is None:
            self.kept = self.mlp(torch.linspace(-1, 1, 3)[:, None])[:, 0]
        return self.layer(x * self.kept.exp())


def cached():
    return Objective(Cached().eval(), cross_entropy(), [(torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0]))])


class Normalizing(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(3, 2)

    def forward(self, x):
        return self.l(x.sub_(0.5).div_(0.25))


def writing():
    return Objective(Normalizing(), cross_entropy(), [(torch.rand(6, 3), torch.randint(0, 2, (6,)))])


CASES = {
    "forces, layer norm": lambda: forces(nn.LayerNorm(8)),
    "forces, batch norm": lambda: forces(nn.BatchNorm1d(8)),
    "weight norm": weight_normed,
    "a backward without a graph": propagated,
    "a backward hook": hooked,
    "a parameter by another way": tied,
    "a parameter in the criterion": learnt_noise,
    "a cache": cached,
    "inputs written into": writing,
}


@pytest.mark.parametrize("case", CASES)
def test_the_check_finds_it_without_the_guards(case, unguarded):
    if case == "a backward hook":  # on purpose: told, and no end
        found = CASES[case]().check().proved
        assert "change gradients" in next(p.claim for p in found if not p.proved)
        return
    with pytest.raises(WRONG):
        CASES[case]().check()


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("a backward hook", "a backward without a graph")])
def test_with_the_guards_all_is_proved(case):
    found = CASES[case]().check()
    assert all(p.proved for p in found.proved), found.proved
    assert len(found.proved) >= 4


def test_a_second_moment_on_another_scale_is_found(monkeypatch):
    o = 2.0 * Objective(nn.Linear(3, 2), squared_error(), [(torch.randn(5, 3), torch.randn(5, 2))])
    o.check()
    made = empirical_fisher
    monkeypatch.setattr(proof, "empirical_fisher", lambda q, **k: 0.5 * made(q, **k))
    with pytest.raises(NotDifferentiable, match="the second moment is that of the examples' slopes"):
        o.check()


def test_examples_counted_wrong_are_found(monkeypatch):
    loss = custom(lambda f, t: t[1] * (f - t[0]).square().sum(1), count=lambda t: t[1].sum())
    o = Objective(nn.Linear(3, 1), loss, [(torch.randn(6, 3), (torch.randn(6, 1), torch.rand(6)))])
    o.check()
    summed = snapshot.Snapshot._summed
    monkeypatch.setattr(snapshot.Snapshot, "_summed", lambda *of: (*summed(*of)[:2], 1))
    with pytest.raises(NotDifferentiable, match="the second moment is that of the examples' slopes"):
        o.check()


def test_every_operator_is_seen_to_be_proved(monkeypatch):
    o = Objective(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), squared_error(), [(torch.randn(5, 3), torch.randn(5, 2))])
    for name, claim in (
        ("hessian", "the Hessian is the derivative of the gradient"),
        ("gauss_newton", "Gauss-Newton products are those of the outputs' Jacobian"),
    ):
        made = getattr(proof, name)
        with monkeypatch.context() as patch:
            patch.setattr(proof, name, lambda *a, made=made, **k: 1.02 * made(*a, **k))
            with pytest.raises(NotDifferentiable, match=claim):
                o.check()


def test_in_single_precision_the_proof_is_made_in_double():
    torch.set_default_dtype(torch.float32)
    for activation in (nn.Tanh(), nn.ReLU(), nn.GELU()):
        net = nn.Sequential(nn.Linear(6, 32), activation, nn.Linear(32, 32), activation, nn.Linear(32, 3))
        before = [p.detach().clone() for p in net.parameters()]
        found = Objective(net, nn.CrossEntropyLoss(), [(torch.randn(40, 6), torch.randint(0, 3, (40,)))]).check()
        assert all(p.proved for p in found.proved), found.proved
        assert all(p.difference < 1e-4 for p in found.proved)
        assert all(
            torch.equal(a, b) and b.dtype == torch.float32 for a, b in zip(before, net.parameters(), strict=True)
        )


def test_a_model_that_cannot_run_in_double_is_looked_at_in_its_own_precision():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(3, 2)

        def forward(self, x):
            assert x.dtype == torch.float32
            return torch.tanh(self.l(x))

    torch.set_default_dtype(torch.float32)
    found = Objective(Single(), squared_error(), [(torch.randn(6, 3), torch.randn(6, 2))]).check()
    assert len(found.proved) == 6


def test_all_parameters_unreached_is_an_error():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(4, 3)

        def forward(self, x):
            with torch.no_grad():
                return self.f(x)

    o = Objective(Frozen(), cross_entropy(), [(torch.randn(12, 4), torch.randint(0, 3, (12,)))])
    with pytest.raises(UnusableObjective, match=r"no gradient for any of 2 blocks .*torch.no_grad"):
        o.check()


def test_structures_are_the_ones_that_guards_use():
    assert guards.nodes_of is custom_functions.nodes_of
    assert structure.fresh is model.fresh


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("place", ["targets", "inputs", "weights", "shifted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_units_of_the_data_do_not_matter(scale, place, dtype):
    torch.set_default_dtype(dtype)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    x, y = torch.randn(12, 5), torch.randn(12, 1)
    if place == "targets":
        y = scale * y
    elif place == "inputs":
        x = scale * x
    elif place == "weights":
        net[2].weight.data.mul_(scale)
    else:  # large outputs beside large targets: small losses
        net[2].bias.data.add_(scale)
        y = scale + y
    Objective(net, squared_error(), [(x, y)]).check()  # no derivative is wrong
