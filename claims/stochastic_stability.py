"""L. Wu, W. J. Su (2023), The implicit regularization of dynamical stability in stochastic gradient descent, arXiv
2305.17490.

Claim: a minimum that is stable for SGD with one example a step has a Hessian trace below 2 / rate; for gradient descent
only the largest eigenvalue must be below.
"""

from __future__ import annotations

import torch
from claim import Claim
from sklearn.datasets import load_digits

from frechet import Objective, eigsh, hessian, squared_error, trace


def ended(X: torch.Tensor, y: torch.Tensor, rate: float, batch: int, steps: int) -> tuple[float, float, float]:
    """The loss, trace and largest eigenvalue where training from one start ends."""
    torch.manual_seed(0)
    W, v = torch.randn(30, 64, dtype=torch.float64) / 4, torch.randn(30, dtype=torch.float64) * 0.8
    draw = torch.Generator().manual_seed(1)
    n = len(y)
    for _ in range(steps):
        rows = torch.arange(n) if batch == n else torch.randint(0, n, (batch,), generator=draw)
        x = X[rows]
        h = torch.tanh(x @ W.T)
        r = 2 * (h @ v - y[rows]) / len(rows)
        back = r[:, None] * v * (1 - h * h)
        v, W = v - rate * (r @ h), W - rate * (back.T @ x)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 30, bias=False), torch.nn.Tanh(), torch.nn.Linear(30, 1, bias=False)
    )
    model.double()
    model[0].weight.data.copy_(W)
    model[2].weight.data.copy_(v[None])
    objective = Objective(model, squared_error(), [(X, y[:, None])])
    H = hessian(objective)
    return float(objective.value()), float(trace(H, products=400, seed=0)), float(eigsh(H, 1, seed=0).values[0])


def measure() -> Claim:
    """One network on 40 digits, odd against even, at one rate, by gradient descent and by SGD."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.from_numpy(X[:40] / 16), torch.from_numpy(y[:40] % 2 * 2.0 - 1)
    rate = 0.03
    full = ended(X, y, rate, 40, 12000)
    single = ended(X, y, rate, 1, 60000)
    below = single[1] <= 2 / rate
    above = full[1] > 2 / rate >= full[2] * 0.98
    return Claim(
        paper="Wu, Su 2023, arXiv 2305.17490",
        claim="SGD ends with a Hessian trace below 2 / rate; gradient descent bounds the largest eigenvalue alone",
        theirs="tr H <= 2 / rate for stable minima of SGD with one example; lambda_1 <= 2 / rate for gradient descent",
        ours=f"2 / rate = {2 / rate:.1f}: SGD tr H = {single[1]:.1f}, lambda_1 = {single[2]:.1f} at loss "
        f"{single[0]:.1e}; gradient descent tr H = {full[1]:.1f}, lambda_1 = {full[2]:.1f} at loss {full[0]:.1e}",
        verdict="holds" if below and above else "holds in part" if below else "does not hold here",
        why="both interpolate the data from one start at one rate",
        name="trace",
    )
