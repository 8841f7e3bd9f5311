"""A. Jacot, F. Gabriel, C. Hongler (2018), Neural tangent kernel: convergence and generalization in neural networks,
arXiv 1806.07572.

Claim: as the width grows, training follows the kernel of the start, and the kernel stays.
"""

from __future__ import annotations

import torch
from claim import Claim
from sklearn.datasets import load_digits
from torch import nn

from frechet import Objective, squared_error
from frechet.analyze import fit_power_law, ntk_drift, ntk_matrix, ntk_prediction


class Net(nn.Module):
    """One hidden layer of ReLU in the kernel's parametrization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.A, self.v = nn.Parameter(torch.randn(width, 64)), nn.Parameter(torch.randn(1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.A.T / 8) @ self.v.T / self.A.shape[0] ** 0.5


def measure() -> Claim:
    """Forty digits, odd against even, 200 steps at half of the largest stable rate; four seeds at each width."""
    X, y = load_digits(return_X_y=True)
    X = torch.from_numpy(X[:80] / 16).double()
    y = torch.from_numpy(y[:80] % 2 * 2.0 - 1)[:, None]
    widths, errors, drifts = (32, 128, 512, 2048), [], []
    for width in widths:
        for seed in range(4):
            torch.manual_seed(seed)
            model = Net(width).double()
            train, test = (Objective(model, squared_error(), [(X[s], y[s])]) for s in (slice(40), slice(40, 80)))
            rate = ntk_prediction(train, 0, 1e-3).largest_rate / 2
            found = ntk_prediction(train, 200, rate, on=test)
            before = ntk_matrix(test).matrix
            optimizer = torch.optim.SGD(model.parameters(), lr=rate)
            for _ in range(200):
                optimizer.zero_grad()
                (model(X[:40]) - y[:40]).square().mean().backward()
                optimizer.step()
            after = model(X[40:]).detach().reshape(-1)
            errors.append(float((after - found.outputs).norm() / (after - found.start).norm()))
            drifts.append(ntk_drift(before, ntk_matrix(test).matrix).relative)
    w = torch.tensor([x for x in widths for _ in range(4)], dtype=torch.float64)
    laws = [fit_power_law(w, torch.tensor(v, dtype=torch.float64)) for v in (errors, drifts)]
    slopes = [f"{law.exponents[0]:.2f} [{law.interval()[0]:.2f}, {law.interval()[1]:.2f}]" for law in laws]
    means = ", ".join(f"{sum(errors[4 * i : 4 * i + 4]) / 4:.3f}" for i in range(4))
    return Claim(
        paper="Jacot, Gabriel, Hongler 2018, arXiv 1806.07572",
        claim="wide networks train as the kernel of their start predicts, and the kernel stays",
        theirs="exact in the infinite limit",
        ours=f"error of the predicted test outputs over their move at widths 32, 128, 512, 2048: {means}; exponent in "
        f"the width {slopes[0]}, that of the kernel's drift {slopes[1]}",
        verdict="holds" if all(law.interval()[1] < -0.3 for law in laws) else "holds in part",
        why="one hidden layer and 200 steps of gradient descent on 40 digits",
        name="ntk_prediction",
    )
