"""Random models, criteria and batches of the kinds that people bring, and their derivatives without the library.

A model is a chain of blocks on tensors ``(examples, 3, 4)``, each drawn from `BLOCKS`; batches are drawn from `FORMS`.
`truth` gives products by double backward of losses that are written here; `differences` of gradients decide where these
and an operator disagree, as torch's own second derivatives of some layers are wrong.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from frechet.objective import Objective, l2
from frechet.objective.criteria import binary_cross_entropy, cross_entropy, custom, poisson, squared_error
from frechet.space import generator

T, D, OUT = 3, 4, 3
Block = Callable[..., Tensor]


class Cube(torch.autograd.Function):
    """x^3, by a backward that is itself differentiable."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 3 * x**2


def _linear(r: random.Random) -> nn.Module:
    return nn.Linear(D, D, bias=r.random() < 0.7)


# --- blocks: (random) -> (modules, f(modules, h, extras)) -----------------------------------------------------------


def dense(r):
    act = r.choice([torch.tanh, F.gelu, F.silu, F.softplus, torch.sin, torch.sigmoid, F.elu, torch.relu])
    return [_linear(r)], lambda m, h, x: act(m[0](h))


def conv1d(r):
    mode = r.choice(["zeros", "circular", "replicate", "reflect"])
    conv = nn.Conv1d(T, T, 3, padding=1, padding_mode=mode, groups=r.choice([1, 3]))
    return [conv], lambda m, h, x: m[0](h).tanh()


def conv2d(r):
    return [nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 1)], lambda m, h, x: m[1](m[0](h.unsqueeze(1)).sin())[:, 0]


def deconvolution(r):
    return [nn.ConvTranspose1d(T, T, 3, padding=1)], lambda m, h, x: m[0](h).tanh()


def normalized(r):
    make = r.choice(
        [
            lambda: nn.LayerNorm(D),
            lambda: nn.GroupNorm(1, T),
            lambda: nn.BatchNorm1d(T),
            lambda: nn.RMSNorm(D),
            lambda: nn.InstanceNorm1d(T, affine=True),
        ]
    )
    return [_linear(r), make()], lambda m, h, x: m[1](m[0](h))


def weight_normalized(r):
    return [parametrizations.weight_norm(nn.Linear(D, D))], lambda m, h, x: m[0](h).tanh()


def attention(r):
    if r.random() < 0.5:
        causal = torch.ones(T, T, dtype=torch.bool).triu(1)
        a = nn.MultiheadAttention(D, 2, batch_first=True)
        return [a], lambda m, h, x: h + m[0](h, h, h, attn_mask=causal, need_weights=False)[0]

    def f(m, h, x):
        q, k, v = m[0](h).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return [nn.Linear(D, 3 * D)], f


def encoder_layer(r):
    return [nn.TransformerEncoderLayer(D, 2, 6, dropout=0.0, batch_first=True)], lambda m, h, x: m[0](h)


def recurrent(r):
    make = r.choice([nn.LSTM, nn.GRU, nn.RNN])
    return [make(D, D, batch_first=True)], lambda m, h, x: m[0](h)[0]


def spectrum(r):
    """Complex numbers with bits of conjugation and negation, as real weights seen as complex ones."""
    way = r.randrange(5)

    def f(m, h, x):
        z = torch.fft.rfft(m[0](h))
        w = torch.view_as_complex(m[1].w)
        match way:
            case 0:
                return torch.fft.irfft(z * w.conj(), n=D)
            case 1:
                return torch.fft.irfft(z.conj() + w, n=D) + z.conj().imag.sum(-1, keepdim=True)
            case 2:
                return ((z * w).abs() + 0.1).sqrt().sum(-1, keepdim=True) * h
            case 3:
                return torch.view_as_real(z.conj() * w).flatten(2)[..., :D]
            case _:
                return (z.conj() * z + w * z).real.sum(-1, keepdim=True).tanh() + h

    return [_linear(r), Weight(1, 3, 2)], f


def embedded(r):
    bag = r.random() < 0.3
    table = nn.EmbeddingBag(5, D, mode="sum") if bag else nn.Embedding(5, D)

    def f(m, h, x):
        e = m[0](x["tokens"])
        return h + (e.unsqueeze(1) if bag else e)

    return [table], f


def residual(r):
    return [_linear(r)], lambda m, h, x: h + m[0](h).tanh()


def tied(r):
    return [_linear(r)], lambda m, h, x: m[0](m[0](h).tanh()).sin()


def branching(r):
    way = r.randrange(5)

    def f(m, h, x):
        s = x["x"]
        match way:
            case 0:
                return m[0](h).tanh() if bool(s.sum() > 0) else m[0](h).sin()
            case 1:
                return m[0](h).tanh() * (1 + abs(s.flatten()[0].item()) if s.numel() else 1)
            case 2:
                rows = (s[:, 0, 0] > 0).nonzero()[:, 0]
                return h.index_add(0, rows, m[0](h[rows]).tanh())
            case 3:
                return torch.where(s > 0, m[0](h).tanh(), m[0](h).sin())
            case _:
                return m[0](h).tanh() * len(s[:, 0, 0].unique())

    return [_linear(r)], f


def laid_out(r):
    way = r.randrange(3)

    def f(m, h, x):
        s = x["x"]
        if way == 0:
            return m[0](h).tanh() if s.is_contiguous() else m[0](h).sin()
        if way == 1:
            return m[0](h).tanh() * (1 + s.stride(-1))
        return m[0](h) + s.as_strided((1, 1, D), (D, D, 1), s.storage_offset())

    return [_linear(r)], f


def in_place(r):
    way = r.randrange(5)

    def f(m, h, x):
        h = m[0](h)
        match way:
            case 0:
                h = h * 1.0
                h[:, 0] *= 2
                return h.add_(x["x"])
            case 1:
                out = torch.empty_like(h)
                out[..., :2] = h[..., 2:]
                out[..., 2:] = h[..., :2].tanh()
                return out
            case 2:
                return F.silu(h, inplace=True).masked_fill_(x["x"] > 0, 0.5)
            case 3:
                out = h.new_zeros(h.shape)
                out.index_put_((torch.arange(len(h)), torch.zeros(len(h), dtype=torch.long)), h[:, 1].sin())
                return out + h
            case _:
                z = torch.zeros_like(x["x"])
                z[:, 1:].copy_(x["x"][:, :-1])
                return (h + z).tanh_()

    return [_linear(r)], f


def viewed(r):
    way = r.randrange(6)

    def f(m, h, x):
        h = m[0](h)
        match way:
            case 0:
                return h.transpose(1, 2).reshape(len(h), T, D).tanh()
            case 1:
                return h.flip(1).roll(1, 2).tanh()
            case 2:
                return h.unfold(2, 2, 1).sin().sum(-1).sum(-1, keepdim=True).expand(-1, -1, D) + h
            case 3:
                return torch.cat(h.chunk(2, -1)[::-1], -1).cos()
            case 4:
                return torch.stack(h.unbind(1)[::-1], 1).sin()
            case _:
                return torch.einsum("bij,bkj->bik", h, h).tanh() @ h

    return [_linear(r)], f


def reduced(r):
    way = r.randrange(5)

    def f(m, h, x):
        h = m[0](h)
        match way:
            case 0:
                return h.cumsum(1).sin()
            case 1:
                return h - h.logsumexp(-1, keepdim=True)
            case 2:
                return h.softmax(-1) * h
            case 3:
                return h.sort(-1).values.tanh()
            case _:
                return h + h.amax(1, keepdim=True).sin()

    return [_linear(r)], f


def checkpointed(r):
    return [_linear(r), _linear(r)], lambda m, h, x: checkpoint(
        lambda h: m[1](m[0](h).tanh()).sin(), h, use_reentrant=False
    )


def by_function(r):
    return [_linear(r)], lambda m, h, x: 0.1 * Cube.apply(m[0](h))


def transformed(r):
    way = r.randrange(2)

    def f(m, h, x):
        if way:
            return torch.func.vmap(lambda row: (row * row.sum()).tanh())(m[0](h))
        return torch.func.grad(lambda z: z.sin().sum())(m[0](h))

    return [_linear(r)], f


def hooked(r):
    layer = _linear(r)
    layer.register_forward_hook(lambda _m, _i, out: out * 1.5)
    return [layer], lambda m, h, x: m[0](h).tanh()


def through_numpy(r):
    """Inputs that are prepared by NumPy, in memory that PyTorch makes or does not make."""
    way = r.randrange(4)

    def f(m, h, x):
        a = x["x"].detach().resolve_conj().numpy()
        if way == 0:
            z = torch.from_numpy(np.tanh(a))
        elif way == 1:
            z = torch.empty_like(x["x"])
            z.numpy()[...] = a**2
        elif way == 2:
            z = torch.zeros_like(x["x"])
            z.numpy()[...] = np.sin(a)
        else:
            z = x["x"].clone()
            z.numpy()[:, 0] *= 2
        return m[0](h + z).tanh()

    return [_linear(r)], f


def constant_of_its_own(r):
    layer = _linear(r)
    layer.table = torch.linspace(0.5, 1.5, D)
    return [layer], lambda m, h, x: (m[0](h) * m[0].table).tanh()


def extras(r):
    """What is in a batch beside the inputs: optional keys, numbers by type and value, nested tensors."""

    def f(m, h, x):
        h = m[0](h)
        h = h if x.get("scale") is None else h * x["scale"]
        h = h if x.get("shift") is None else h + x["shift"]
        h = h * (3.0 if x.get("times") is True else 1.5 if isinstance(x.get("times"), float) else 1.0)
        z = x.get("z")
        return (h if z is None else h + (z * z).imag.sum(-1, keepdim=True)).tanh()

    return [_linear(r)], f


def dropped(r):
    way = r.randrange(4)

    def f(m, h, x):
        if way == 0:
            return m[1](m[0](h)).tanh()
        if way == 1:  # a layer is left out by Python's generator
            return m[0](h).tanh() if random.random() < 0.5 else h
        if way == 2:
            return m[0](h).tanh() * float(np.random.rand())
        return m[0](h).tanh() + 0.1 * torch.randn_like(h)

    return [_linear(r), nn.Dropout(0.4)], f


BLOCKS = (
    *(dense, dense, dense, conv1d, conv2d, deconvolution, normalized, normalized, weight_normalized, attention),
    *(encoder_layer, recurrent, spectrum, spectrum, embedded, residual, tied, branching, laid_out, in_place, viewed),
    *(reduced, checkpointed, by_function, transformed, hooked, through_numpy, constant_of_its_own, extras, extras),
)


class Weight(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(*shape))


class Chain(nn.Module):
    """Blocks one after the other, and outputs ``(examples, OUT)``."""

    def __init__(self, r: random.Random, makers: list[Any]) -> None:
        super().__init__()
        self.modules_of, self.functions = nn.ModuleList(), []
        for make in makers:
            modules, f = make(r)
            self.modules_of.append(nn.ModuleList(modules))
            self.functions.append(f)
        self.last = nn.Linear(D, OUT)

    def forward(self, x: Any, **more: Any) -> Tensor:
        x, nested = x if isinstance(x, tuple) else (x, {})
        given = {"x": x, **nested, **more}
        h = x
        for modules, f in zip(self.modules_of, self.functions, strict=True):
            h = f(modules, h, given)
        return self.last(h.mean(1))


# --- data -------------------------------------------------------------------------------------------------------------


class Refilled:
    """A loader that fills one buffer again and again."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        most = max(len(inputs["x"]) for inputs, _ in self.batches)
        buffer, labels = torch.empty(most, T, D), None
        for inputs, targets in self.batches:
            x = buffer[: len(inputs["x"])]
            x.copy_(inputs["x"])
            labels = torch.empty(most, *targets.shape[1:], dtype=targets.dtype) if labels is None else labels
            y = labels[: len(targets)]
            y.copy_(targets)
            yield {**inputs, "x": x}, y


class Anew:
    """Batches that are made anew each time."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        for inputs, targets in self.batches:
            yield {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}, targets.clone()


def _laid(r: random.Random, x: Tensor) -> Tensor:
    """The numbers of `x` in another layout."""
    match r.randrange(7):
        case 0:
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        case 1:
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        case 2:
            return torch.cat([torch.zeros(1, T, D), x])[1:]  # begins inside its storage
        case 3:
            return x[:1].expand(len(x), T, D)
        case 4:
            return torch.stack([x, x], -1)[..., 0]
        case 5:
            return x.clone().requires_grad_()
        case _:
            return x


def _inputs(r: random.Random, n: int, keys: list[str], odd: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"x": torch.randn(n, T, D)}
    made["tokens"] = torch.randint(0, 5, (n, T))
    for key in keys:
        made[key] = {
            "scale": lambda: torch.randn(n, 1, D),
            "shift": lambda: torch.randn(n, 1, 1),
            "times": lambda: r.choice([True, 1, 1.0]) if odd else 1,
            "note": lambda: r.choice(["a", "b"]) if odd else "a",
            "array": lambda: np.ones(2),
            "z": lambda: r.choice([torch.Tensor.conj, torch.Tensor.clone])(
                torch.randn(n, T, 3, dtype=torch.complex128)
            ),
        }[key]()
    if odd:
        made["x"] = _laid(r, made["x"])
        items = list(made.items())
        r.shuffle(items)
        made = dict(items)
    return made


def _data(r: random.Random, targets: Callable[[int], Tensor]) -> Any:
    sizes = r.choice([(3,), (3, 3), (3, 3, 3), (4, 4, 2), (2, 2, 2, 1), (3, 4, 3)])
    keys = r.sample(["scale", "shift", "times", "note", "z", "array"], r.randrange(0, 4))
    mixed = r.random() < 0.35  # batches that are not all of one form
    batches = []
    for i, n in enumerate(sizes):
        odd = mixed and i > 0 and r.random() < 0.6
        some = r.sample(keys, r.randrange(len(keys) + 1)) if odd and r.random() < 0.5 else keys
        batches.append((_inputs(r, n, some, odd), targets(n)))
    match r.randrange(6):
        case 0:
            return Refilled(batches)
        case 1:
            return Anew(batches)
        case 2:  # nested
            return [({"x": (inputs["x"], {k: v for k, v in inputs.items() if k != "x"})}, y) for inputs, y in batches]
    return batches


# --- objectives -------------------------------------------------------------------------------------------------------


def _quartic(f: Tensor, y: Tensor) -> Tensor:
    return (f - y).pow(4).sum(1) + f.cos().sum(1)


CRITERIA: dict[str, tuple[Callable[[], Any], Callable[[int], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "cross entropy": (
        cross_entropy,
        lambda n: torch.randint(0, OUT, (n,)),
        lambda f, y: F.cross_entropy(f, y, reduction="sum"),
    ),
    "squared error": (squared_error, lambda n: torch.randn(n, OUT), lambda f, y: ((f - y) ** 2).sum()),
    "custom": (lambda: custom(_quartic), lambda n: torch.randn(n, OUT), lambda f, y: _quartic(f, y).sum()),
    "binary": (
        binary_cross_entropy,
        lambda n: torch.randint(0, 2, (n, OUT)).double(),
        lambda f, y: F.binary_cross_entropy_with_logits(f, y, reduction="sum"),
    ),
    "poisson": (poisson, lambda n: torch.poisson(torch.ones(n, OUT)), lambda f, y: (f.exp() - y * f).sum()),
}


@dataclass(eq=False)
class Drawn:
    """A random objective, and what it adds up, written without the library."""

    seed: int
    names: list[str]
    objective: Objective
    total: Callable[[Tensor, Tensor], Tensor]
    per_term: bool  # whether terms are the outputs and not the examples
    strength: float
    copies: int

    def batches(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        yield from self.objective.parts[0].data

    def outputs(self, params: dict[str, Tensor], inputs: dict[str, Any], index: int) -> Tensor:
        seed = self.objective.dropout_seed
        if seed is not None:
            drawn = generator(seed, index).initial_seed() % 2**32
            torch.manual_seed(drawn)
            np.random.seed(drawn)
            random.seed(drawn)
        x, more = inputs["x"], {k: v for k, v in inputs.items() if k != "x"}
        for name, p in params.items():  # until the derivatives are taken: checkpoints read them again
            module, _, key = name.rpartition(".")
            self.objective.model.get_submodule(module)._parameters[key] = p
        return self.objective.model(x, **more)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """The model with its own parameters and buffers afterwards."""
        held = [(kept, dict(kept)) for m in self.objective.model.modules() for kept in (m._parameters, m._buffers)]
        for kept, _ in held:
            if kept and all(not isinstance(t, nn.Parameter) for t in kept.values()):
                kept.update({name: t if t is None else t.clone() for name, t in kept.items()})
        try:
            yield
        finally:
            for kept, before in held:
                kept.update(before)


def draw(seed: int) -> Drawn:
    """Random objective number `seed`, in float64."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    makers = [r.choice(BLOCKS) for _ in range(r.randrange(1, 4))]
    seeded = r.random() < 0.12
    if seeded:
        makers.insert(r.randrange(len(makers) + 1), dropped)
    model = Chain(r, makers).double()
    model.train(seeded or (normalized in makers and r.random() < 0.5))
    name = r.choice(list(CRITERIA))
    make, targets, total = CRITERIA[name]
    strength = r.choice([0.0, 0.0, 0.3])
    objective = Objective(
        model,
        make(),
        _data(r, targets),
        penalty=l2(strength) if strength else None,
        dropout_seed=seed if seeded else None,
    )
    twice = r.random() < 0.08
    names = [m.__name__ for m in makers]
    whole = objective + objective if twice else objective
    return Drawn(
        seed, [name, *names], whole, total, name in ("squared error", "binary", "poisson"), strength, 1 + twice
    )


# --- their derivatives, without the library ---------------------------------------------------------------------------


def _count(drawn: Drawn) -> int:
    return sum(y.numel() if drawn.per_term else len(y) for _, y in drawn.batches())


def _params(drawn: Drawn) -> tuple[list[str], list[Tensor], tuple[int, ...]]:
    named = [(n, p.detach()) for n, p in drawn.objective.model.named_parameters()]
    return [n for n, _ in named], [p for _, p in named], tuple(p.numel() for _, p in named)


def _summed(drawn: Drawn, of_batch: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor], flat: Tensor) -> Tensor:
    """The sum over batches of `of_batch`, given the outputs as a function of the flat parameters, and the targets."""
    names, params, sizes = _params(drawn)
    out = torch.zeros(())
    for index, (inputs, y) in enumerate(drawn.batches()):

        def outputs(p: Tensor, inputs: Any = inputs, index: int = index) -> Tensor:
            blocks = {n: b.view_as(q) * 1.0 for n, b, q in zip(names, p.split(sizes), params, strict=True)}
            return drawn.outputs(blocks, inputs, index)

        with sdpa_kernel(SDPBackend.MATH), drawn.unchanged():
            out = out + of_batch(outputs, y)
    return out


def _point(drawn: Drawn) -> Tensor:
    return torch.cat([p.reshape(-1) for p in _params(drawn)[1]])


def true_hessian(drawn: Drawn, V: Tensor) -> Tensor:
    """H V by double backward."""
    x = _point(drawn)

    def of_batch(outputs: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        p = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(drawn.total(outputs(p), y), p, create_graph=True)
        if not g.requires_grad:
            return torch.zeros_like(V)
        return torch.stack([torch.autograd.grad(g, p, v, retain_graph=True, allow_unused=True)[0] for v in V.T], 1)

    return drawn.copies * (_summed(drawn, of_batch, x) / _count(drawn) + drawn.strength * V)


STEPS = (1e-5, 1e-6, 1e-7)  # of differences: kinks may lie within the longer ones


def differences(drawn: Drawn, V: Tensor) -> Tensor:
    """H V by central differences of gradients, which are right where second derivatives of torch's are not.

    Of the steps that agree best with the next shorter one.
    """
    x = _point(drawn)

    def gradient(at: Tensor) -> Tensor:
        def of_batch(outputs: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
            p = at.clone().requires_grad_()
            return torch.autograd.grad(drawn.total(outputs(p), y), p)[0]

        return _summed(drawn, of_batch, at) / _count(drawn)

    def along(v: Tensor) -> Tensor:
        found = []
        for step in STEPS:
            far = [gradient(x + c * step * v) - gradient(x - c * step * v) for c in (1, 2)]
            found.append((8 * far[0] - far[1]) / (12 * step))
        apart = [float((a - b).norm()) for a, b in itertools.pairwise(found)]
        return found[min(range(len(apart)), key=apart.__getitem__)]

    return drawn.copies * (torch.stack([along(v) for v in V.T], 1) + drawn.strength * V)


def true_jacobian(drawn: Drawn) -> list[Tensor]:
    """The dense Jacobian of the outputs of each batch."""
    found: list[Tensor] = []

    def of_batch(outputs: Callable[[Tensor], Tensor], _y: Tensor) -> Tensor:
        p = _point(drawn).requires_grad_()
        f = outputs(p).reshape(-1)
        found.append(torch.stack([torch.autograd.grad(u, p, retain_graph=True)[0] for u in f]))
        return torch.zeros(())

    _summed(drawn, of_batch, _point(drawn))
    return found


def true_gauss_newton(drawn: Drawn, jacobians: list[Tensor], V: Tensor) -> Tensor:
    """J' H J V with the loss's Hessian in the outputs."""
    at = iter(jacobians)

    def of_batch(outputs: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        J, f = next(at), outputs(_point(drawn)).detach()
        H = torch.autograd.functional.hessian(lambda u: drawn.total(u.view_as(f), y), f.reshape(-1))
        return J.T @ (H @ (J @ V))

    return drawn.copies * (_summed(drawn, of_batch, _point(drawn)) / _count(drawn) + drawn.strength * V)
