"""Small operators with their dense matrices in float64, made without the code under test."""

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.operators._closed_form import inverse, square_root
from frechet.operators._constructors import (
    block_diagonal,
    from_callable,
    from_diagonal,
    from_factors,
    from_matrix,
    identity,
    kronecker,
    restriction,
)
from frechet.operators._inverse_fisher import inverse_fisher
from frechet.operators._operator import LinearOperator
from frechet.space import Space, euclidean

F64 = torch.float64


@dataclass(frozen=True, eq=False)
class Case:
    name: str
    operator: LinearOperator
    dense: Tensor

    def __repr__(self) -> str:
        return self.name


def random(m, n, seed=0):
    return torch.randn(m, n, dtype=F64, generator=torch.Generator().manual_seed(seed))


def definite(n, seed=0):
    X = random(n, n, seed)
    return X @ X.T + torch.eye(n, dtype=F64)


def definite_operator(n, seed=0, domain=None):
    return from_matrix(definite(n, seed), domain=domain, facts="positive_definite")


NAMED = Space(("layer.weight", "layer.bias", "head"), ((2, 2), (2,), (1,)), F64)


def structured_cases():
    wide, tall, square = random(3, 5), random(5, 3, 1), random(5, 5, 2)
    P5, P3 = definite(5, 3), definite(3, 4)
    signs = torch.tensor([1.0, -2.0, 0.5, 3.0, -0.1], dtype=F64)
    positive = signs.abs()
    U = random(5, 2, 5)
    W, J, S = from_matrix(wide), from_matrix(tall), from_matrix(square)
    D5, D3 = definite_operator(5, 3), definite_operator(3, 4)
    E5 = identity(D5.domain)
    K = kronecker(D3, D5)
    EK, I5, I15 = identity(K.domain), torch.eye(5, dtype=F64), torch.eye(15, dtype=F64)
    named = random(7, 7, 6)
    kept = [0, 1, 2, 3, 6]
    shifted = U @ U.T + 0.5 * I5
    fisher = named[:3].T @ named[:3] / 3 + 0.1 * torch.eye(7, dtype=F64)
    stretch = torch.arange(7) // 3
    same = stretch[:, None] == stretch
    eigenvalues, Q = torch.linalg.eigh(torch.kron(P3, P5) + 0.3 * I15)
    pairs = {
        "identity": (identity(euclidean(4, F64)), torch.eye(4, dtype=F64)),
        "one entry": (from_matrix(torch.tensor([[3.0]], dtype=F64)), torch.tensor([[3.0]], dtype=F64)),
        "no rows": (from_matrix(torch.zeros(0, 3, dtype=F64)), torch.zeros(0, 3, dtype=F64)),
        "diagonal": (from_diagonal(signs), torch.diag(signs)),
        "positive diagonal": (from_diagonal(positive), torch.diag(positive)),
        "wide matrix": (W, wide),
        "tall matrix": (J, tall),
        "definite matrix": (D5, P5),
        "named blocks": (from_matrix(named, domain=NAMED), named),
        "to named blocks": (from_matrix(random(7, 2), codomain=NAMED), random(7, 2)),
        "low rank": (from_factors(U), U @ U.T),
        "indefinite low rank": (from_factors(U, signs[:2]), (U * signs[:2]) @ U.T),
        "kronecker": (kronecker(W, J), torch.kron(wide, tall)),
        "definite kronecker": (K, torch.kron(P3, P5)),
        "nested kronecker": (
            kronecker(kronecker(J, D3), from_matrix(random(2, 2))),
            torch.kron(torch.kron(tall, P3), random(2, 2)),
        ),
        "block diagonal": (block_diagonal(W, J, S), torch.block_diag(wide, tall, square)),
        "definite blocks": (block_diagonal(D3, D5), torch.block_diag(P3, P5)),
        "restriction": (restriction(NAMED, ["*.weight", "head"]), torch.eye(7, dtype=F64)[kept]),
        "scaled": (-2.5 * W, -2.5 * wide),
        "scaled definite": (D5 / 4, P5 / 4),
        "sum": (W + 2 * J.T - W / 2, wide / 2 + 2 * tall.T),
        "damped": (D5 + 0.5 * E5, P5 + 0.5 * I5),
        "product": (W @ S @ J, wide @ square @ tall),
        "scaled product": ((2.0 * W) @ (-0.5 * J), -wide @ tall),
        "congruence": (J @ D3 @ J.T, tall @ P3 @ tall.T),
        "gram of a product": ((W @ S).T @ (W @ S), (wide @ square).T @ (wide @ square)),
        "gram of a kronecker": (kronecker(W, J).T @ kronecker(W, J), torch.kron(wide.T @ wide, tall.T @ tall)),
        "transposed sum": ((W + J.T).T, wide.T + tall),
        "callable": (from_callable(lambda V: wide @ V, W.domain, W.codomain, rmatmat=lambda U: wide.T @ U), wide),
        "symmetric callable": (from_callable(lambda V: V.flip(0), euclidean(4, F64), facts="symmetric"), _flip(4)),
        "inverse of a shifted low rank": (inverse(from_factors(U) + 0.5 * E5), torch.linalg.inv(shifted)),
        "root of a shifted kronecker": (square_root(K + 0.3 * EK), (Q * eigenvalues.sqrt()) @ Q.T),
        "inverse of a fisher": (inverse_fisher(named[:3], 0.1, domain=NAMED), torch.linalg.inv(fisher)),
        "inverse of a fisher in blocks": (inverse_fisher(named[:3], 0.1, block=3), torch.linalg.inv(fisher * same)),
    }
    return [Case(name, A, M) for name, (A, M) in pairs.items()]


def _flip(n):
    return torch.eye(n, dtype=F64).flip(0)
