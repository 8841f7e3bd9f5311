"""T. Uscidda, M. Cuturi (2023), The Monge gap: a regularizer to learn all transport maps, arXiv 2302.04953.

Claims: the gap vanishes for optimal maps and is the cost above the optimum otherwise; as a regularizer it makes a
network an optimal map, without restricting its architecture.
"""

from __future__ import annotations

import torch
from claim import Claim
from scipy.optimize import linear_sum_assignment

from frechet.transport import monge_gap, transport_value

N, STEPS, EPSILON = 60, 150, 0.05


def squared(x, y):
    return (x[:, None] - y).square().sum(-1)


def exact_gap(x, y) -> float:
    """mean cost of x_i -> y_i above that of the best assignment of the same points."""
    C = squared(x, y).detach()
    rows, columns = linear_sum_assignment(C.numpy())
    return float(C.diagonal().mean() - C[rows, columns].mean())


def measure() -> Claim:
    """The gap for small epsilon beside the linear program, and what training does to it."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(N, 2, generator=draw, dtype=torch.float64)
    y = torch.randn(N, 2, generator=draw, dtype=torch.float64)
    off = abs(float(monge_gap(x, y, epsilon=1e-3, cost=squared)) - exact_gap(x, y)) / exact_gap(x, y)
    target = 0.5 * torch.randn(N, 2, generator=draw, dtype=torch.float64) + 2.0
    ends = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)).double()
        with torch.no_grad():
            model[2].weight *= -6  # begins by turning the plane inside out
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(STEPS):
            optimizer.zero_grad()
            z = model(x)
            fit = (
                transport_value(squared(z, target), epsilon=EPSILON)
                - transport_value(squared(z, z), epsilon=EPSILON) / 2
            )
            loss = fit + (weight * monge_gap(x, z, epsilon=EPSILON, cost=squared) if weight else 0.0)
            loss.backward()
            optimizer.step()
        ends[weight] = exact_gap(x, model(x))
    good = off < 0.01 and ends[1.0] < 0.05 * ends[0.0]
    return Claim(
        paper="Uscidda, Cuturi 2023, arXiv 2302.04953",
        claim="the Monge gap measures how far a map is from optimal, and makes networks optimal maps",
        theirs="zero if and only if the map is optimal; maps fitted with it are closer to optimal than those of ICNNs",
        ours=f"{off:.1%} from the linear program; gap after training {ends[0.0]:.3f} without, {ends[1.0]:.4f} with it",
        verdict="holds" if good else "holds in part" if off < 0.01 else "does not hold here",
        why="its gradient is that of the transport cost, which is the solution itself",
        name="monge_gap",
    )
