"""Small transport problems for the tests."""

import math

import torch
from scipy.optimize import linear_sum_assignment

F64 = torch.float64


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def masses(n, seed=0):
    a = uniform(n, seed=seed) + 0.1
    return a / a.sum()


def problem(n=8, m=6, seed=0):
    """Cost U[0, 1] and uneven masses."""
    return uniform(n, m, seed=seed), masses(n, seed + 1), masses(m, seed + 2)


def by_sweeps(cost, a, b, epsilon, sweeps=20000):
    """Potentials by the textbook's iteration in the log domain, with sum a f = sum b g."""
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(sweeps):
        f = -epsilon * torch.logsumexp((g - cost) / epsilon + b.log(), 1)
        g = -epsilon * torch.logsumexp((f.unsqueeze(1) - cost) / epsilon + a.log().unsqueeze(1), 0)
    t = (float(b @ g) - float(a @ f)) / 2
    return f + t, g - t


def plan_of(f, g, cost, a, b, epsilon):
    return torch.exp((f.unsqueeze(1) + g - cost) / epsilon) * torch.outer(a, b)


def assignment(cost):
    """The least mean cost of a permutation."""
    rows, columns = linear_sum_assignment(cost.numpy())
    return float(cost[rows, columns].mean())


INF = math.inf
