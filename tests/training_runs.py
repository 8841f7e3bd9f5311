"""Small training runs with everything that a monitor must leave as it is."""

import random

import numpy as np
import torch
from torch import nn

from frechet import Objective, cross_entropy, squared_error


class Attention(nn.Module):
    """Tokens, attention with dropout of its own, and a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.body = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.body(self.embed(ids)).mean(1))


class Noisy(nn.Module):
    """Draws from three generators in each forward pass, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        if self.training:
            x = x + 0.01 * torch.randn_like(x) * random.random() * float(np.random.rand())
        return self.layer(x)


def made(name):
    """A model, its batches and its loss."""
    torch.manual_seed(0)
    y = torch.randint(0, 3, (40,))
    if name == "attention":
        return Attention(), torch.randint(0, 7, (40, 5)), y
    if name == "noisy":
        return Noisy(), torch.randn(40, 4), y
    if name == "norms":
        layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
        return nn.Sequential(*layers), torch.randn(40, 4), y
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(40, 4), y


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
}


def probe(model, X, y):
    return Objective(model, cross_entropy(), [(X[i : i + 8], y[i : i + 8]) for i in range(0, 32, 8)])


def run(name, optimizer_name="sgd", monitor=None, steps=12, wrap=lambda m: m, before=None):
    """Train; the whole state at the end. `monitor(objective)` makes the monitor."""
    model, X, y = made(name)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    watch = None if monitor is None else monitor(probe(model, X, y))
    trained = wrap(model)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    model.train()
    losses = []
    for step in range(1, steps + 1):
        if before is not None:
            before(step, model, optimizer)
        rows = torch.randint(0, 40, (8 if step % 5 else 6,))  # a batch of another shape now and then

        def closure(rows=rows):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(trained(X[rows]), y[rows])
            loss.backward()
            losses.append(loss.item())
            return loss

        optimizer.step(closure)
        if watch is not None:
            watch.step(step, optimizer)
    return state_of(model, optimizer, losses), watch


def state_of(model, optimizer, losses):
    """All that training depends on, as tensors and bytes."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    inner = [
        {k: v.clone() if isinstance(v, torch.Tensor) else repr(v) for k, v in optimizer.state[p].items()}
        for p in optimizer.state
    ]
    drawn = (torch.rand(3), np.random.rand(3).tolist(), [random.random() for _ in range(3)])
    flags = [m.training for m in model.modules()]
    needed = [p.requires_grad for p in model.parameters()]
    return {n: t.detach().clone() for n, t in tensors.items()}, gradients, inner, drawn, flags, needed, losses


def same(a, b):
    """Whether two states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def least_squares_model(seed=0, rows=12):
    """A linear model whose Hessian is known."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 1, bias=False).double()
    X, y = torch.randn(rows, 3, dtype=torch.float64), torch.randn(rows, 1, dtype=torch.float64)
    objective = Objective(model, squared_error(), [(X[i : i + 3], y[i : i + 3]) for i in range(0, rows, 3)])
    return model, objective, 2 * X.T @ X / rows
