"""Matrices with a prescribed spectrum, in float64, and operators made of them."""

import torch

from frechet.operators._constructors import from_diagonal, from_matrix

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


def rotated(values, dtype=F64, seed=0):
    """A symmetric operator with the given eigenvalues and random eigenvectors."""
    return from_matrix(with_eigenvalues(values, seed).to(dtype), facts="symmetric")


def outliers(n=4000, dtype=torch.float32):
    """Ten eigenvalues from 20 to 100 above a bulk in [0, 1]."""
    bulk = torch.rand(n - 10, generator=torch.Generator().manual_seed(0))
    return from_diagonal(torch.cat([torch.linspace(20, 100, 10), bulk]).to(dtype))


def true_residuals(A, spectrum):
    V = spectrum.vectors.double()
    return torch.linalg.vector_norm((A @ spectrum.vectors).double() - V * spectrum.values, dim=0)
