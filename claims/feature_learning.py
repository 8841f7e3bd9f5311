"""G. Yang, E. J. Hu (2021), Feature learning in infinite-width neural networks, arXiv 2011.14522.

Claim: in the tangent kernel's parametrization features and kernel stay as the width grows; in the maximal update
parametrization they move at every width.
"""

from __future__ import annotations

import torch
from claim import Claim
from sklearn.datasets import load_digits
from torch import nn

from frechet import Objective, squared_error
from frechet.analyze import fit_power_law, ntk_drift, ntk_matrix


class Net(nn.Module):
    """f = v relu(A x): one parametrization divides the outputs by the width's root, the other by the width."""

    def __init__(self, width: int, maximal: bool) -> None:
        super().__init__()
        self.A, self.v = nn.Parameter(torch.randn(width, 64)), nn.Parameter(torch.randn(1, width))
        self.power = 1.0 if maximal else 0.5

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.A.T / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x) @ self.v.T / self.A.shape[0] ** self.power


def measure() -> Claim:
    """Forty digits, 100 steps; the rate of the maximal update grows with the width, as its rules say."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.from_numpy(X[:40] / 16), torch.from_numpy(y[:40] % 2 * 2.0 - 1)[:, None]
    widths, moved = (64, 256, 1024), {}
    for maximal in (False, True):
        for width in widths:
            for seed in range(5):
                torch.manual_seed(seed)
                model = Net(width, maximal).double()
                objective = Objective(model, squared_error(), [(X, y)])
                before, h = ntk_matrix(objective).matrix, model.features(X).detach()
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * (width if maximal else 1))
                for _ in range(100):
                    optimizer.zero_grad()
                    (model(X) - y).square().mean().backward()
                    optimizer.step()
                drift = ntk_drift(before, ntk_matrix(objective).matrix).relative
                change = float((model.features(X).detach() - h).norm() / h.norm())
                moved.setdefault(maximal, []).append((width, drift, change))
    slopes, told = {}, []
    for maximal, rows in moved.items():
        table = torch.tensor(rows, dtype=torch.float64)
        laws = [fit_power_law(table[:, 0], table[:, i]) for i in (1, 2)]
        slopes[maximal] = [law.interval() for law in laws]
        ends = ", ".join(f"{law.exponents[0]:.2f} [{law.interval()[0]:.2f}, {law.interval()[1]:.2f}]" for law in laws)
        told.append(f"{'maximal update' if maximal else 'tangent kernel'}: {ends}")
    lazy = all(high < -0.1 for _, high in slopes[False])
    moving = all(low < 0 < high or low > 0 for low, high in slopes[True])
    return Claim(
        paper="Yang, Hu 2021, arXiv 2011.14522",
        claim="features move at every width in the maximal update parametrization alone",
        theirs="an alternative of two: feature learning or kernel training",
        ours="exponents in the width of the kernel's drift and of the features' change, " + "; ".join(told),
        verdict="holds" if lazy and moving else "holds in part" if lazy or moving else "does not hold here",
        why="one hidden layer, 100 steps of gradient descent on 40 digits, widths 64 to 1024, five seeds",
        name="ntk_drift",
    )
