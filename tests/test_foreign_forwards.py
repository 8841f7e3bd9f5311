"""What forward passes leave behind, return and take, each as a family, against differences of plain training code."""

import itertools
import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from frechet import (
    NotDifferentiable,
    Objective,
    UnusableObjective,
    cross_entropy,
    empirical_fisher,
    gauss_newton,
    hessian,
    linearize,
    squared_error,
)
from frechet.analyze import example_gradients, gradient_gram, ntk_matrix
from frechet.objective import Penalty
from frechet.objective.criteria import custom
from test_foreign_models import agrees, close, slopes, sound


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(kept)


# --- what a pass leaves in attributes ---------------------------------------------------------------------------------


class Leaving(nn.Module):
    """Keeps an auxiliary loss where its criterion finds it."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(3, 4), nn.Linear(4, 2), how
        self.aux, self.losses, self.table = None, [], {}

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if self.how == "scalar":
            self.aux = h.square().mean(0).square().sum()
        elif self.how == "one for each example":
            self.aux = h.square().sum(1)
        elif self.how == "new attribute":
            self.late = h.exp().mean()
        elif self.how == "list":
            self.losses.clear()
            self.losses.append(h.square().mean())
            self.losses.append(self.b.weight.square().sum())
        elif self.how == "new list":
            self.losses = [h.square().mean()]
        elif self.how == "dict":
            self.table["kl"] = h.square().mean()
        return self.b(h)

    def extra(self):
        if self.how in ("scalar", "one for each example"):
            return self.aux
        if self.how == "new attribute":
            return self.late
        return sum(self.losses) if "list" in self.how else self.table["kl"]


LEFT = ["scalar", "one for each example", "new attribute", "list", "new list", "dict"]


@pytest.mark.parametrize("how", LEFT)
@pytest.mark.parametrize("called", [False, True])
def test_a_criterion_reads_what_the_forward_pass_left_in_attributes(how, called):
    model, x, y = Leaving(how), torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    if called:  # something else is left there from before
        model(torch.randn(6, 3))

    def terms(out, t):
        return F.cross_entropy(out, t, reduction="none") + model.extra()

    o = Objective(model, custom(terms), [(x, y)])
    reference = agrees(o, lambda: terms(model(x), y).mean())
    for memory in (None, 0):
        close(linearize(hessian(o), memory=memory).dense(), reference)
    assert "the criterion" in o.check().coupled
    for ask in (gauss_newton, lambda q: empirical_fisher(q, per="example")):
        with pytest.raises(UnusableObjective, match="left in an attribute of the model, which is no output"):
            ask(o) @ torch.randn(o.space.dim)
    for ask in (example_gradients, gradient_gram):
        with pytest.raises(UnusableObjective, match="left in an attribute of the model, which is no output"):
            ask(o)


def test_a_mask_that_the_forward_pass_left_is_a_constant_of_the_criterion():
    class Masking(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.mask = nn.Linear(3, 2), None

        def forward(self, x):
            self.mask = (x.sum(1) > 0).double()
            return torch.tanh(self.a(x))

    model, x, y = Masking(), torch.randn(6, 3), torch.randn(6, 2)
    model(torch.randn(6, 3))
    o = Objective(model, custom(lambda f, t: model.mask * (f - t).square().sum(1), convex=True), [(x, y)])
    mask = (x.sum(1) > 0).double()
    agrees(o, lambda: (mask * (model(x) - y).square().sum(1)).mean())
    paired = Objective(model, custom(lambda f, t: t[1] * (f - t[0]).square().sum(1)), [(x, (y, mask))])
    close(sound(gauss_newton(o)).dense(), gauss_newton(paired).dense())


@pytest.mark.parametrize("how", LEFT)
def test_a_penalty_that_reads_what_an_earlier_pass_left_is_told(how):
    model, x, y = Leaving(how), torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    model(x)
    o = Objective(
        model, cross_entropy(), [(x, y)], penalty=Penalty(lambda _: 0.3 * torch.as_tensor(model.extra()).sum())
    )
    for ask in (Objective.value, Objective.gradient, Objective.check, lambda q: hessian(q) @ torch.randn(26)):
        with pytest.raises(UnusableObjective, match="in an earlier forward pass and kept"):
            ask(o)


# --- what is asked of parameters --------------------------------------------------------------------------------------


class Scaled(nn.Parameter):
    def doubled(self):
        return self * 2


class Asking(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.a, self.how = nn.Linear(3, 2), how
        self.a.weight.width = 3.0
        self.w = Scaled(torch.randn(2, 3)) if how == "subclass" else None

    def forward(self, x):
        if self.how == "attribute":
            return torch.tanh(self.a(x)) / self.a.weight.width
        if self.how == "class":
            return torch.tanh(self.a(x)) * (2 if isinstance(self.a.weight, nn.Parameter) else 1)
        if self.how == "parameters":
            return torch.tanh(self.a(x)) * sum(p.ndim for p in self.parameters() if isinstance(p, nn.Parameter))
        return torch.tanh(self.a(x) + x @ self.w.doubled().T)


@pytest.mark.parametrize("how", ["attribute", "class", "parameters", "subclass"])
def test_models_that_ask_parameters_for_their_class_and_attributes(how):
    model, x, y = Asking(how), torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    o = Objective(model, cross_entropy(), [(x, y)])
    reference = agrees(o, lambda: F.cross_entropy(model(x), y))
    close(linearize(hessian(o)).dense(), reference)
    close(sound(gauss_newton(o)).dense(), gauss_newton(o, route="reverse").dense())
    G = torch.stack([slopes(model, lambda i=i: F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])) for i in range(5)])
    close(gradient_gram(o).matrix, G @ G.T)
    close(example_gradients(o, route="loop").squared_norms, G.square().sum(1))


# --- random numbers ---------------------------------------------------------------------------------------------------


class Redrawn(nn.Module):
    def __init__(self, again, draw):
        super().__init__()
        self.a, self.b, self.again, self.draw = nn.Linear(3, 4), nn.Linear(4, 2), again, draw

    def block(self, x):
        h = self.a(x)
        if self.draw == "dropout":
            h = F.dropout(h, 0.5)
        elif self.draw == "random":
            h = h * random.uniform(0.5, 2)
        return torch.tanh(h)

    def forward(self, x):
        h = checkpoint(self.block, x, use_reentrant=False, preserve_rng_state=False) if self.again else self.block(x)
        return self.b(h)


@pytest.mark.parametrize("draw", ["dropout", "random"])
def test_checkpoints_draw_the_same_numbers_when_they_run_again(draw):
    plain, x, y = Redrawn(False, draw), torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    again = Redrawn(True, draw)
    again.load_state_dict(plain.state_dict())
    o, p = (Objective(m, cross_entropy(), [(x, y)], dropout_seed=0) for m in (again, plain))
    close(o.gradient(), p.gradient())
    close(hessian(o).dense(), hessian(p).dense())
    close(gauss_newton(o).dense(), gauss_newton(p).dense())
    assert all(claim.proved for claim in o.check().proved)


# --- what a model returns ---------------------------------------------------------------------------------------------


class Policy(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(3, 3), nn.Linear(3, 2), kind

    def forward(self, x):
        h = torch.tanh(self.a(x))
        m, s = self.b(h).unbind(1)
        normal = torch.distributions.Normal(m, F.softplus(s) + 0.1)
        match self.kind:
            case "normal":
                return normal
            case "categorical":
                return torch.distributions.Categorical(logits=h)
            case "actor and critic":
                return torch.distributions.Categorical(logits=h), m
            case "independent":
                return torch.distributions.Independent(torch.distributions.Normal(h, 0.5 + h.square()), 1)
            case "transformed":
                return torch.distributions.TransformedDistribution(
                    normal, [torch.distributions.AffineTransform(0.3 * s, 1.5), torch.distributions.ExpTransform()]
                )
        parts = torch.distributions.Normal(h, torch.ones_like(h))
        return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=h), parts)


@pytest.mark.parametrize("kind", ["normal", "categorical", "actor and critic", "independent", "transformed", "mixture"])
def test_distributions_are_outputs(kind):
    model, x = Policy(kind), torch.randn(5, 3)
    y = torch.tensor([0, 1, 2, 1, 0]) if "cat" in kind or "actor" in kind else torch.rand(5) + 0.2
    y = torch.randn(5, 3) if kind == "independent" else y

    def terms(out, t):
        if kind == "actor and critic":
            return -out[0].log_prob(t) + (out[1] - t).square() - 0.1 * out[0].entropy()
        return -out.log_prob(t)

    o = Objective(model, custom(terms), [(x[:3], y[:3]), (x[3:], y[3:])])
    reference = agrees(o, lambda: terms(model(x), y).mean())
    close(linearize(hessian(o)).dense(), reference)
    G = torch.stack([slopes(model, lambda i=i: terms(model(x[i : i + 1]), y[i : i + 1]).mean()) for i in range(5)])
    close(empirical_fisher(o, per="example").dense(), G.T @ G / 5)
    close(gradient_gram(o).matrix, G @ G.T)
    sound(gauss_newton(o))
    if kind == "categorical":  # its logits are an ordinary output
        plain = Objective(model, cross_entropy(), [(x, y)])
        agrees(plain, lambda: terms(model(x), y).mean())
        bare = nn.Sequential(model.a, nn.Tanh(), nn.Identity(), model.b)[:3]
        close(gauss_newton(plain).dense()[:12, :12], gauss_newton(Objective(bare, cross_entropy(), [(x, y)])).dense())


@pytest.mark.parametrize("returned", ["one", "one of each batch", "two"])
def test_terms_and_examples_must_agree_in_number(returned):
    class Losses(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x, y):
            losses = F.cross_entropy(self.a(x), y, reduction="none")
            return losses[:2] if returned == "two" else losses.mean().reshape(1)

    model, x, y = Losses(), torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    data = [
        ((x[:4], y[:4]), y[:4] if returned == "one" else None),
        ((x[4:], y[4:]), y[4:] if returned == "one" else None),
    ]
    o = Objective(model, custom(lambda out, _: out), data)
    for ask in (Objective.value, Objective.gradient, Objective.check, lambda q: gauss_newton(q) @ torch.randn(8)):
        with pytest.raises(ValueError, match=r"terms must return one value per example.*count=lambda targets: 1"):
            ask(o)
    if returned != "two":
        o = Objective(model, custom(lambda out, _: out, additive=False, count=lambda _: 1), data)
        agrees(o, lambda: sum(F.cross_entropy(model.a(x[s]), y[s]) for s in (slice(4), slice(4, 6))) / 2)


# --- what a model takes -----------------------------------------------------------------------------------------------


@dataclass
class Record:
    a: torch.Tensor
    b: torch.Tensor


class Takes(nn.Module):
    """Takes its inputs as one structure."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(3, 2), nn.Conv1d(1, 2, 2), kind

    def forward(self, given):
        if self.kind == "dict":
            a, b = given["a"], given["b"]
        elif self.kind == "record":
            a, b = given.a, given.b
        elif self.kind == "nested":
            (a,), b = given[0], given[1]["b"]
        else:
            a, b = given
        return torch.tanh(self.a(a) + self.b(b[:, None]).mean(2))


TAKEN = {
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, b),
    "dict": lambda a, b: {"a": a, "b": b},
    "record": Record,
    "nested": lambda a, b: [(a,), {"b": b}],
}


@pytest.mark.parametrize("kind", TAKEN)
def test_models_that_take_one_structure(kind):
    model, a, b, y = Takes(kind), torch.randn(6, 3), torch.randn(6, 5), torch.tensor([0, 1, 1, 0, 1, 0])
    make = TAKEN[kind]
    o = Objective(model, cross_entropy(), [(make(a[:4], b[:4]), y[:4]), (make(a[4:], b[4:]), y[4:])])
    reference = agrees(o, lambda: F.cross_entropy(model(make(a, b)), y))
    close(linearize(hessian(o)).dense(), reference)
    close(hessian(o.in_pieces(2)).dense(), reference)
    one = lambda i: F.cross_entropy(model(make(a[i : i + 1], b[i : i + 1])), y[i : i + 1])  # noqa: E731
    G = torch.stack([slopes(model, lambda i=i: one(i)) for i in range(6)])
    close(gradient_gram(o).matrix, G @ G.T)
    close(empirical_fisher(o, per="example").dense(), G.T @ G / 6)


class Graphs:
    """Several graphs as one, as libraries for graph networks make them."""

    def __init__(self, graphs):
        self.x = torch.cat([x for x, _ in graphs])
        first = torch.tensor([0, *[len(x) for x, _ in graphs]]).cumsum(0)
        self.edges = torch.cat([e + f for (_, e), f in zip(graphs, first[:-1], strict=True)], 1)
        self.of = torch.repeat_interleave(torch.arange(len(graphs)), torch.tensor([len(x) for x, _ in graphs]))

    @property
    def number(self):
        return int(self.of[-1]) + 1


class Messages(nn.Module):
    def __init__(self, spread):
        super().__init__()
        self.a, self.b, self.c, self.spread = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2), spread

    def forward(self, *given):
        x, edges, of = given if self.spread else (given[0].x, given[0].edges, given[0].of)
        h = torch.tanh(self.a(x))
        h = h + torch.zeros_like(h).index_add(0, edges[1], torch.tanh(self.b(h[edges[0]])))
        return self.c(h.new_zeros(int(of[-1]) + 1, 3).index_add(0, of, h))


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("sizes", [(6,), (4, 2)])  # two graphs, and edges with two rows
def test_graph_networks_have_gradients_of_single_graphs(spread, sizes):
    graphs = [(torch.randn(3 + i % 3, 3), torch.randint(0, 3 + i % 3, (2, 5))) for i in range(6)]
    y, model = torch.tensor([0, 1, 1, 0, 1, 0]), Messages(spread)

    def batch(a, b):
        g = Graphs(graphs[a:b])
        return ((g.x, g.edges, g.of) if spread else g), y[a:b]

    def called(inputs):
        return model(*inputs) if spread else model(inputs)

    ends = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    o = Objective(model, cross_entropy(), [batch(a, b) for a, b in itertools.pairwise(ends)])
    reference = agrees(o, lambda: F.cross_entropy(called(batch(0, 6)[0]), y))
    close(linearize(hessian(o)).dense(), reference)
    G = torch.stack(
        [slopes(model, lambda i=i: F.cross_entropy(called(batch(i, i + 1)[0]), y[i : i + 1])) for i in range(6)]
    )
    close(empirical_fisher(o, per="example").dense(), G.T @ G / 6)
    for route in (None, "loop"):
        close(example_gradients(o, route=route).squared_norms, G.square().sum(1))
        close(gradient_gram(o, route=route).matrix, G @ G.T)
    J = torch.stack([slopes(model, lambda i=i, k=k: called(batch(0, 6)[0])[i, k]) for i in range(6) for k in range(2)])
    close(ntk_matrix(o).matrix, J @ J.T)
    assert o.check().coupled == ()
    with pytest.raises(UnusableObjective, match="some input must have one row for each of"):
        o.in_pieces(2)


def test_examples_that_only_the_last_of_a_batch_couples_are_seen():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.r, self.o = nn.GRU(2, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.o(self.r(x)[0])

    x, y = torch.randn(4, 5, 2), torch.randn(4, 5, 2)  # time on axis 0
    assert "the model" in Objective(Causal(), squared_error(), [(x, y)]).check().coupled


def test_models_that_take_one_size_of_batch():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x):
            assert len(x) == 4, "Guard failed"
            return torch.tanh(self.a(x))

    model, x, y = Fixed(), torch.randn(8, 3), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    o = Objective(model, cross_entropy(), [(x[:4], y[:4]), (x[4:], y[4:])])
    agrees(o, lambda: (F.cross_entropy(model(x[:4]), y[:4]) + F.cross_entropy(model(x[4:]), y[4:])) / 2)
    for ask in (example_gradients, gradient_gram, ntk_matrix):
        with pytest.raises(UnusableObjective, match="must take example 0 alone, but it raised AssertionError: Guard"):
            ask(o)


def test_embedding_bags_with_offsets():
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.o = nn.EmbeddingBag(7, 3, mode="sum"), nn.Linear(3, 2)

        def forward(self, ids, offsets):
            return self.o(torch.tanh(self.e(ids, offsets)))

    model, ids, y = Bags(), torch.tensor([0, 1, 2, 3, 4, 5, 6, 1, 1]), torch.tensor([0, 1, 1, 0])
    starts = torch.tensor([0, 3, 3, 5])
    o = Objective(model, cross_entropy(), [((ids, starts), y)])
    agrees(o, lambda: F.cross_entropy(model(ids, starts), y))
    with pytest.raises(UnusableObjective, match="give batches of one example each"):
        example_gradients(o)
    ends = [*starts.tolist(), 9]
    single = [((ids[ends[i] : ends[i + 1]], torch.tensor([0])), y[i : i + 1]) for i in range(4)]
    one = Objective(model, cross_entropy(), single)
    G = torch.stack([slopes(model, lambda b=b: F.cross_entropy(model(*b[0]), b[1])) for b in single])
    close(example_gradients(one).squared_norms, G.square().sum(1))
    close(hessian(one).dense(), hessian(o).dense())


def test_operators_of_a_library_without_a_second_derivative_are_told():
    @torch.library.custom_op("frechet_tests::cube_slope", mutates_args=())
    def slope(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(3 * x.numpy() ** 2 * g.numpy())

    @torch.library.custom_op("frechet_tests::cube", mutates_args=())
    def cube(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy() ** 3)

    cube.register_autograd(
        lambda ctx, g: torch.ops.frechet_tests.cube_slope(ctx.saved_tensors[0], g),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    )

    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x):
            return torch.ops.frechet_tests.cube(self.a(x))

    model, x, y = Uses(), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    o = Objective(model, cross_entropy(), [(x, y)])
    close(o.gradient(), slopes(model, lambda: F.cross_entropy(model(x), y)))
    for ask in (lambda q: hessian(q) @ torch.randn(8), lambda q: gauss_newton(q) @ torch.randn(8), Objective.check):
        with pytest.raises(NotDifferentiable, match="lacks the derivative that this product needs"):
            ask(o)


class Opaque:
    """Holds a tensor where nobody looks."""

    def __init__(self, t):
        self.t = t


def test_tensors_in_objects_that_cannot_be_seen():
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x):
            y = self.a(x)
            return {"y": y, "extra": Opaque(torch.tanh(y)), "kind": "any"}

    model, x, y = Returns(), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])

    def terms(out, t):
        return F.cross_entropy(out["y"], t, reduction="none") + out["extra"].t.square().sum(1)

    o = Objective(model, custom(terms), [(x, y)])
    agrees(o, lambda: terms(model(x), y).mean())
    assert "the criterion" in o.check().coupled
    with pytest.raises(UnusableObjective, match="got Opaque among them, on which the loss depends"):
        gauss_newton(o) @ torch.randn(8)
    for ask in (example_gradients, lambda q: empirical_fisher(q, per="example") @ torch.randn(8)):
        with pytest.raises(UnusableObjective, match=r"must see one example each|got Opaque among them"):
            ask(o)
    unread = Objective(model, custom(lambda out, t: F.cross_entropy(out["y"], t, reduction="none")), [(x, y)])
    plain = Objective(model.a, cross_entropy(), [(x, y)])
    close(gauss_newton(unread).dense(), gauss_newton(plain).dense())
    close(empirical_fisher(unread, per="example").dense(), empirical_fisher(plain, per="example").dense())


def test_what_a_check_measures_keeps_no_graph():
    class Force(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, r):
            r = r.detach().requires_grad_()
            return torch.autograd.grad(self.b(torch.tanh(self.a(r))).sum(), r, create_graph=True)[0]

    o = Objective(Force(), custom(lambda f, t: (f - t).square().sum(1)), [(torch.randn(4, 2), torch.randn(4, 2))])
    snapshot = o.snapshot()
    blocks = snapshot.space.unflatten(snapshot.x)
    for batch in o.batches():
        with torch.no_grad(), snapshot.running():
            assert not snapshot.forward(blocks, batch).requires_grad
            assert not snapshot.terms(o.parts[0], blocks, batch).requires_grad
