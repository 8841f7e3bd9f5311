"""Three first-order rules in a few lines each, on the digits, beside AdamW.

    python examples/first_order_rules.py

TVLARS: layer-wise rates norm(p) / norm(g) that warm up and decay along a sigmoid, then heavy ball. AdaMomentum: Adam
with the squares of the momentum in the denominator, in the place of those of gradients. Random scaling: each step of
any optimizer times a number with an exponential distribution, of mean 1, as in theories of the last iterate.
They are examples and no part of the library: first-order optimizers are other libraries' work.
"""

from __future__ import annotations

import math

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

STEPS = 300


def tvlars(p: Tensor, g: Tensor, state: dict[str, Tensor], step: int, lr: float, decay: float = 1e-2) -> None:
    """p moves by lr phi norm(p) / norm(g) g with momentum, phi = 1 / (1 + exp(decay (step - delay)))."""
    phi = 1 / (1 + math.exp(decay * (step - STEPS / 2)))
    ratio = float(p.norm() / g.norm().clamp_min(1e-12)) if float(p.norm()) > 0 else 1.0
    m = state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(phi * min(ratio, 10.0) * g)
    p.sub_(lr * m)


def adamomentum(p: Tensor, g: Tensor, state: dict[str, Tensor], step: int, lr: float, eps: float = 1e-8) -> None:
    """p moves by lr m / sqrt(v), both without their bias, where v averages m^2 + eps."""
    m = state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(0.1 * g)
    v = state.setdefault("v", torch.zeros_like(p)).mul_(0.999).add_(0.001 * m.square() + eps)
    p.sub_(lr * (m / (1 - 0.9**step)) / (v / (1 - 0.999**step)).sqrt())


def randomly_scaled(p: Tensor, g: Tensor, state: dict[str, Tensor], step: int, lr: float) -> None:
    """SGD with momentum, whose step is multiplied by a number of mean 1."""
    m = state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(g)
    draw = torch.Generator().manual_seed(step)
    p.sub_(lr * float(torch.empty(()).exponential_(1.0, generator=draw)) * m)


RULES = {"TVLARS": (tvlars, 0.01), "AdaMomentum": (adamomentum, 1e-3), "random scaling": (randomly_scaled, 0.05)}


def run() -> dict[str, float]:
    """The error of each rule on 497 digits that it did not see."""
    images, labels = load_digits(return_X_y=True)
    X, y = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
    loss, errors = nn.CrossEntropyLoss(), {}
    for name in ("AdamW", *RULES):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        params = list(model.parameters())
        adam, states = torch.optim.AdamW(params, lr=3e-3), [{} for _ in params]
        for step in range(1, STEPS + 1):
            rows = torch.randint(0, 1300, (64,))
            model.zero_grad()
            loss(model(X[rows]), y[rows]).backward()
            if name == "AdamW":
                adam.step()
                continue
            rule, lr = RULES[name]
            with torch.no_grad():
                for p, state in zip(params, states, strict=True):
                    assert p.grad is not None
                    rule(p, p.grad, state, step, lr)
        with torch.no_grad():
            errors[name] = float((model(X[1300:]).argmax(1) != y[1300:]).float().mean())
    return errors


def main() -> None:
    for name, error in run().items():
        print(f"{name:15} {100 * error:.1f} % wrong")


if __name__ == "__main__":
    main()
