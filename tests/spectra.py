"""Matrices with a prescribed spectrum, in float64."""

import torch

F64 = torch.float64


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def orthogonal(n, seed=0):
    return torch.linalg.qr(gaussian(n, n, seed=seed))[0]


def with_eigenvalues(values, seed=0):
    values = torch.as_tensor(values, dtype=F64)
    Q = orthogonal(values.numel(), seed)
    M = (Q * values) @ Q.T
    return (M + M.T) / 2


def with_singular_values(m, n, values, seed=0):
    values = torch.as_tensor(values, dtype=F64)
    r = values.numel()
    return (orthogonal(m, seed)[:, :r] * values) @ orthogonal(n, seed + 1)[:, :r].T


def geometric(n, condition):
    return torch.logspace(0, -torch.log10(torch.tensor(float(condition))).item(), n, dtype=F64)
