"""Questions of public issue trackers on curvature of people's own models, each answered beside an independent value.

A job is the smallest model that is of the asker's kind. The reference never calls the library: differences of the
gradients that `loss.backward()` leaves, one example at a time, or a closed form, in float64. The name of each thread is
its repository and number on GitHub.
"""

import math
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frechet import (
    NotDifferentiable,
    Objective,
    causal_lm,
    cross_entropy,
    diagonal,
    eigsh,
    empirical_fisher,
    fisher,
    gauss_newton,
    hessian,
    linearize,
    solve,
    squared_error,
    trace,
)
from frechet.analyze import example_gradients, gradient_gram, layer_traces
from frechet.objective.criteria import custom
from frechet.operators import identity
from test_foreign_models import agrees, close, curvature, slopes


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(kept)


def rows(model, losses):
    """The gradients of some losses, each by a backward pass of its own."""
    return torch.stack([slopes(model, loss) for loss in losses])


def test_influence_through_a_model_that_takes_a_list_of_tensors_of_several_shapes():
    """aleximmer/Laplace 283: the loader gives a list of three tensors that cannot be stacked."""

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 2), nn.Conv1d(1, 2, 2), nn.Embedding(4, 2)

        def forward(self, x):
            a, b, c = x
            return torch.tanh(self.a(a) + self.b(b[:, None]).mean(2)) * self.c(c)

    model, y = Three(), torch.tensor([0, 1, 1, 0, 1, 0])
    x = [torch.randn(6, 3), torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 1, 0])]
    o = Objective(model, cross_entropy(), [(x, y)])
    agrees(o, lambda: F.cross_entropy(model(x), y))
    G = rows(model, [lambda i=i: F.cross_entropy(model([t[i : i + 1] for t in x]), y[i : i + 1]) for i in range(6)])
    J = rows(model, [lambda i=i, k=k: model(x)[i, k] for i in range(6) for k in range(2)])
    p = torch.softmax(model(x).detach(), 1)
    C = torch.block_diag(*[torch.diag(q) - q[:, None] * q for q in p]) / 6
    damped = J.T @ C @ J + 0.1 * torch.eye(o.space.dim)
    A = gauss_newton(o)
    influence = solve(A + 0.1 * identity(A.domain), G[0], rtol=1e-12).x
    close(G @ influence, G @ torch.linalg.solve(damped, G[0]))
    close(gradient_gram(o).matrix, G @ G.T)


def test_gradients_of_sequences_with_tied_embeddings():
    """meta-pytorch/opacus 413: gradients of single sequences where the output layer is the embedding; padding."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.h, self.o = nn.Embedding(7, 3), nn.Linear(3, 3), nn.Linear(3, 7, bias=False)
            self.o.weight = self.e.weight

        def forward(self, input_ids, attention_mask=None):
            h = self.e(input_ids).cumsum(1)
            return self.o(torch.tanh(self.h(h)))

    model, ids = Tied(), torch.randint(1, 7, (4, 5))
    mask = (torch.arange(5) < torch.tensor([[5], [3], [4], [2]])).long()
    o = Objective(model, cross_entropy(), [{"input_ids": ids, "attention_mask": mask}], split=causal_lm)

    def loss(i):
        logits, next_one, kept = model(ids[i : i + 1])[0, :-1], ids[i, 1:], mask[i, 1:].bool()
        return F.cross_entropy(logits[kept], next_one[kept], reduction="sum") * 4 / int(mask[:, 1:].sum())

    G = rows(model, [lambda i=i: loss(i) for i in range(4)])
    assert G.shape[1] == 21 + 12
    close(gradient_gram(o).matrix, G @ G.T)
    close(example_gradients(o).squared_norms, G.square().sum(1))
    close(diagonal(empirical_fisher(o, per="example"), seed=0, method="exact").value, G.square().mean(0))
    close(hessian(o).dense(), curvature(model, lambda: sum(loss(i) for i in range(4)) / 4))


def test_the_trace_of_a_residual_network_that_tracks_batch_statistics():
    """pytorch/functorch 986: the trace of the Hessian in training mode, in-place activations, running statistics."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.n = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)

        def forward(self, x):
            return x + F.elu(self.n(self.c(x)), inplace=True)

    model = nn.Sequential(nn.Conv2d(1, 2, 1), Block(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 2)).train()
    x, y = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 1, 0, 1])
    o = Objective(model, cross_entropy(), [(x[:3], y[:3]), (x[3:], y[3:])])
    statistics = [b.clone() for b in model.buffers()]
    found = trace(linearize(hessian(o)), seed=0, products=30)
    assert all(torch.equal(a, b) for a, b in zip(statistics, model.buffers(), strict=True))
    parts = ((x[:3], y[:3]), (x[3:], y[3:]))
    reference = curvature(model, lambda: sum(F.cross_entropy(model(a), b, reduction="sum") for a, b in parts) / 5)
    close(hessian(o).dense(), reference)
    low, high = found.interval()
    assert float(low) <= float(reference.trace()) <= float(high)
    assert float(high - low) < 2 * abs(float(reference.trace()))
    blocks = layer_traces(hessian(o), seed=0, probes=200)
    low, high = blocks.blocks[0].trace.interval(0.999)
    assert float(low) <= float(reference[:2, :2].trace()) <= float(high)


def test_an_activation_that_assigns_by_a_mask():
    """pytorch/functorch 823: a leaky activation written with a boolean mask, which has a dynamic shape."""

    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            h = self.a(x).clone()
            h[h <= 0] = h[h <= 0] * 0.2
            return self.b(h).exp()

    model, x, y = Leaky(), torch.randn(6, 3), torch.randn(6, 2)
    o = Objective(model, squared_error(), [(x, y)])
    reference = agrees(o, lambda: F.mse_loss(model(x), y))
    close(linearize(hessian(o)).dense(), reference)
    G = rows(model, [lambda i=i: F.mse_loss(model(x[i : i + 1]), y[i : i + 1]) for i in range(6)])
    close(gradient_gram(o).matrix, G @ G.T)


def test_the_kinetic_energy_of_a_wave_function():
    """pytorch/functorch 977: log |det| of orbitals, its Laplacian in the inputs, and gradients of single samples."""

    class Kinetic(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, r):
            r = r.detach().requires_grad_()
            log = torch.linalg.slogdet(self.b(torch.tanh(self.a(r))))[1]
            (g,) = torch.autograd.grad(log.sum(), r, create_graph=True)
            g = g.flatten(1)
            seconds = [torch.autograd.grad(g[:, k].sum(), r, create_graph=True)[0].flatten(1)[:, k] for k in range(4)]
            return -(sum(seconds) + g.square().sum(1)) / 2

    model, r = Kinetic(), torch.randn(4, 2, 2)
    o = Objective(model, custom(lambda e, _: torch.tanh(e)), [r], split=lambda b: (b, None))
    agrees(o, lambda: torch.tanh(model(r)).mean())
    G = rows(model, [lambda i=i: torch.tanh(model(r[i : i + 1])).mean() for i in range(4)])
    close(example_gradients(o).squared_norms, G.square().sum(1))


def test_a_convolution_in_factors():
    """f-dangel/backpack 340: second derivatives of a module of one's own, a convolution as a sum of outer products."""

    class Factored(nn.Module):
        def __init__(self):
            super().__init__()
            self.u = nn.Parameter(torch.randn(2))
            self.v = nn.ParameterList([nn.Parameter(torch.randn(n, 2)) for n in (2, 1, 3, 3)])

        def forward(self, x):
            return F.conv2d(x, torch.einsum("r,or,ir,hr,wr->oihw", self.u, *self.v), padding=1)

    model = nn.Sequential(Factored(), nn.Softplus(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    x, y = torch.randn(4, 1, 5, 5), torch.tensor([0, 1, 1, 0])
    o = Objective(model, cross_entropy(), [(x, y)])
    reference = agrees(o, lambda: F.cross_entropy(model(x), y))
    close(diagonal(hessian(o), seed=0, method="exact").value, reference.diagonal())
    top = eigsh(linearize(hessian(o)), 3, seed=0, rtol=1e-8)
    close(top.values.sort().values, torch.linalg.eigvalsh(reference)[-3:], 1e-6)
    part = hessian(o, restrict="0.v.*")
    close(part.dense(), reference[2:20, 2:20])


def test_a_spatial_transformer():
    """amirgholami/PyHessian 7: eigenvalues of a network that samples its input on a grid of its own."""

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.c = nn.Linear(16, 6), nn.Linear(16, 2)
            with torch.no_grad():
                self.l.weight *= 0.1
                self.l.bias.copy_(torch.tensor([1.0, 0, 0.1, 0, 1, 0.07]))

        def forward(self, x):
            grid = F.affine_grid(self.l(x.flatten(1)).view(-1, 2, 3), list(x.shape), align_corners=False)
            return self.c(F.grid_sample(x, grid, align_corners=False).flatten(1))

    model, x, y = Transformer(), torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 1])
    o = Objective(model, cross_entropy(), [(x, y)])
    reference = agrees(o, lambda: F.cross_entropy(model(x), y))
    found = eigsh(hessian(o), 2, seed=0, which="both", rtol=1e-8)
    ends = torch.linalg.eigvalsh(reference)
    close(found.values.sort().values, torch.cat([ends[:2], ends[-2:]]), 1e-6)


def test_the_marginal_likelihood_of_a_gaussian_process():
    """GPflow/GPflowOpt 39: the Hessian in hyperparameters, through a Cholesky factor; the model returns its law."""

    class Process(nn.Module):
        def __init__(self):
            super().__init__()
            self.length, self.scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor(0.2))
            self.noise = nn.Parameter(torch.tensor(-2.0))

        def forward(self, x):
            d = ((x[:, None] - x[None]) / self.length.exp()).square().sum(-1)
            K = self.scale.exp() * torch.exp(-d / 2) + self.noise.exp() * torch.eye(len(x))
            return torch.distributions.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=K)

    model, x = Process(), torch.randn(8, 2)
    y = torch.sin(x[:, 0])
    one = custom(lambda law, t: -law.log_prob(t)[None], additive=False, count=lambda _: 1)
    o = Objective(model, one, [(x, y)])
    reference = agrees(o, lambda: -model(x).log_prob(y))
    close(linearize(hessian(o)).dense(), reference)
    # the curvature in the noise alone, by hand: K' = noise * I
    K = model(x).covariance_matrix.detach()
    inverse, s = torch.linalg.inv(K), float(model.noise.detach().exp())
    a = inverse @ y
    first = s / 2 * inverse.trace() - s / 2 * a @ a
    second = -(s**2) / 2 * (inverse @ inverse).trace() + s**2 * a @ inverse @ a
    close(hessian(o, restrict="noise").dense(), (first + second).reshape(1, 1))


def test_fisher_products_of_a_policy():
    """Stable-Baselines-Team/stable-baselines3-contrib 38: products for TRPO, the Hessian of a divergence to itself."""

    class Policy(nn.Module):
        def __init__(self, law):
            super().__init__()
            self.a, self.b, self.law = nn.Linear(4, 5), nn.Linear(5, 3), law

        def forward(self, x):
            logits = self.b(torch.tanh(self.a(x)))
            return torch.distributions.Categorical(logits=logits) if self.law else logits

    model, x, taken = Policy(True), torch.randn(6, 4), torch.tensor([0, 1, 2, 1, 0, 2])
    with torch.no_grad():
        old = torch.distributions.Categorical(logits=model(x).logits)
    divergence = lambda: torch.distributions.kl_divergence(old, model(x)).mean()  # noqa: E731
    reference = curvature(model, divergence)
    bare = Policy(False)
    bare.load_state_dict(model.state_dict())
    for made in (bare, model):
        F_ = fisher(Objective(made, cross_entropy(), [(x, taken)]))
        close(F_.dense(), reference)
        g, v = slopes(model, lambda: -model(x).log_prob(taken).mean()), torch.randn(len(reference))
        close(linearize(F_) @ v, reference @ v)
        step = solve(F_ + 0.1 * identity(F_.domain), g, rtol=1e-12).x
        assert float(step @ (reference @ step)) > 0
        close(step, torch.linalg.solve(reference + 0.1 * torch.eye(len(v)), g))


def test_graphs_of_several_sizes_in_one_batch():
    """rusty1s/pytorch_scatter 323: single gradients where nodes are added up by index, which vmap cannot batch."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x, edges, graph):
            h = torch.tanh(self.a(x))
            h = torch.zeros_like(h).scatter_add(0, edges[1, :, None].expand(-1, 3), h[edges[0]])
            return self.b(h.new_zeros(int(graph.max()) + 1, 3).scatter_add(0, graph[:, None].expand(-1, 3), h))

    model, sizes, y = Network(), [3, 5, 4, 3], torch.tensor([0, 1, 1, 0])
    graphs = [(torch.randn(n, 3), torch.randint(0, n, (2, 6))) for n in sizes]
    x, starts = torch.cat([a for a, _ in graphs]), [0, 3, 8, 12]
    edges = torch.cat([e + s for (_, e), s in zip(graphs, starts, strict=True)], 1)
    o = Objective(model, cross_entropy(), [((x, edges, torch.arange(4).repeat_interleave(torch.tensor(sizes))), y)])

    def loss(i):
        a, e = graphs[i]
        return F.cross_entropy(model(a, e, torch.zeros(len(a), dtype=torch.long)), y[i : i + 1])

    agrees(o, lambda: sum(loss(i) for i in range(4)) / 4)
    G = rows(model, [lambda i=i: loss(i) for i in range(4)])
    close(gradient_gram(o).matrix, G @ G.T)
    close(empirical_fisher(o, per="example").dense(), G.T @ G / 4)


def test_routed_experts_that_keep_their_balancing_loss():
    """zefang-liu/AdaMoLE 3: each layer of experts leaves its auxiliary loss in an attribute."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.g, self.e, self.layer_loss = nn.Linear(3, 3), nn.ModuleList(nn.Linear(3, 3) for _ in range(3)), None

        def forward(self, x):
            p = torch.softmax(self.g(x), 1)
            value, index = p.topk(2, 1)
            y = torch.zeros_like(x)
            for k, expert in enumerate(self.e):
                row, slot = torch.where(index == k)
                if len(row):
                    y = y.index_add(0, row, torch.tanh(expert(x[row])) * value[row, slot][:, None])
            self.layer_loss = 3 * (p.mean(0) * F.one_hot(index[:, 0], 3).double().mean(0)).sum()
            return x + y

    model = nn.Sequential(Experts(), nn.Linear(3, 2))
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
    model(torch.randn(4, 3))  # an evaluation before leaves another value there

    def terms(out, t):
        balance = sum(m.layer_loss for m in model.modules() if isinstance(m, Experts))
        return F.cross_entropy(out, t, reduction="none") + 0.1 * balance

    o = Objective(model, custom(terms), [(x, y)])
    reference = agrees(o, lambda: terms(model(x), y).mean())
    close(linearize(hessian(o)).dense(), reference)


def test_a_width_that_is_kept_with_the_weight():
    """microsoft/mup 72: a readout divides by a width that is an attribute of its weight."""

    class Readout(nn.Linear):
        def forward(self, x):
            return super().forward(x / self.weight.infshape[0])

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Readout(4, 2))
    model[2].weight.infshape = (2.5, None)
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    o = Objective(model, cross_entropy(), [(x, y)])
    reference = agrees(o, lambda: F.cross_entropy(model(x), y))
    close(linearize(hessian(o)).dense(), reference)
    G = rows(model, [lambda i=i: F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) for i in range(5)])
    close(gradient_gram(o).matrix, G @ G.T)


def test_an_equilibrium_layer_with_a_backward_hook():
    """locuslab/deq 25: second derivatives where a hook solves for the gradient, which it does without a graph."""

    class Equilibrium(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.u, self.o = nn.Linear(3, 3), nn.Linear(2, 3), nn.Linear(3, 2)
            with torch.no_grad():
                self.w.weight *= 0.3

        def forward(self, x):
            with torch.no_grad():
                z = torch.zeros(len(x), 3)
                for _ in range(60):
                    z = torch.tanh(self.w(z) + self.u(x))
            z = torch.tanh(self.w(z) + self.u(x))
            at = z.detach().requires_grad_()
            again = torch.tanh(self.w(at) + self.u(x))

            def adjoint(g):
                y = g
                for _ in range(60):
                    y = torch.autograd.grad(again, at, y, retain_graph=True)[0] + g
                return y

            if z.requires_grad:
                z.register_hook(adjoint)
            return self.o(z)

    model, x, y = Equilibrium(), torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    o = Objective(model, cross_entropy(), [(x, y)])
    close(o.gradient(), slopes(model, lambda: F.cross_entropy(model(x), y)))
    v = torch.randn(o.space.dim)
    for ask in (hessian, lambda q: linearize(hessian(q)), gauss_newton, lambda q: linearize(gauss_newton(q))):
        with pytest.raises(NotDifferentiable, match="backward hook"):
            ask(o) @ v
    with pytest.raises(NotDifferentiable, match="without create_graph=True"):
        o.check()


@pytest.mark.parametrize("barred", [-1e4, -math.inf])
def test_a_random_field_with_barred_transitions(barred):
    """allenai/allennlp 4478: a chain's likelihood with transitions that may not happen; several lengths."""

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.t = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 4))

        def forward(self, x, tags, mask):
            emitted, bars = self.e(x), torch.zeros(4, 4, dtype=torch.bool)
            bars[0, 1] = bars[2, 3] = True
            t = self.t.masked_fill(bars, barred)
            a, score = emitted[:, 0], emitted[:, 0].gather(1, tags[:, :1])[:, 0]
            for k in range(1, x.shape[1]):
                a = torch.where(mask[:, k, None], torch.logsumexp(a[:, :, None] + t, 1) + emitted[:, k], a)
                step = emitted[:, k].gather(1, tags[:, k : k + 1])[:, 0] + t[tags[:, k - 1], tags[:, k]]
                score = score + torch.where(mask[:, k], step, 0)
            return torch.logsumexp(a, 1) - score

    model, x, tags = Field(), torch.randn(3, 5, 3), torch.zeros(3, 5, dtype=torch.long)
    mask = torch.arange(5) < torch.tensor([[5], [3], [2]])
    o = Objective(model, custom(lambda losses, _: losses), [((x, tags, mask), None)])
    reference = agrees(o, lambda: model(x, tags, mask).mean())
    close(linearize(hessian(o)).dense(), reference)
    G = rows(model, [lambda i=i: model(x[i : i + 1], tags[i : i + 1], mask[i : i + 1]).mean() for i in range(3)])
    close(gradient_gram(o).matrix, G @ G.T)


def test_inputs_of_a_tokenizer_that_the_model_takes_whole():
    """f-dangel/curvlinops 86: the model takes the batch as it is, a mapping that is no dict, labels and all."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.o = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, batch):
            mask = batch["attention_mask"].double()[..., None]
            return self.o(torch.tanh((self.e(batch["input_ids"]) * mask).sum(1) / mask.sum(1)))

    model, y = Whole(), torch.tensor([0, 2, 1, 0, 1])
    ids, mask = torch.randint(0, 9, (5, 4)), (torch.rand(5, 4) < 0.7).long() | torch.tensor([1, 0, 0, 0])
    batch = UserDict({"input_ids": ids, "attention_mask": mask, "labels": y})
    for o in (
        Objective(model, cross_entropy(), [batch]),
        Objective(model, cross_entropy(), [batch], split=lambda b: (b, b["labels"])),
    ):
        reference = agrees(o, lambda: F.cross_entropy(model(batch), y))
        close(linearize(hessian(o)).dense(), reference)
        singles = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(5)]
        G = rows(model, [lambda one=one: F.cross_entropy(model(one), one["labels"]) for one in singles])
        close(gradient_gram(o).matrix, G @ G.T)
