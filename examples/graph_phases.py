"""How far do four labels go? Classification of points by an energy of phases on their graph.

    python examples/graph_phases.py

Two half moons of points are joined to their neighbours. A function u on the points is near 1 on one moon and near -1 on
the other where it minimizes the Ginzburg-Landau energy

    E(u) = eps/2 u'L u + sum (u^2 - 1)^2 / (4 eps) + weight/2 sum over labelled points (u - label)^2

with the Laplacian L of the graph. Steps are implicit in the convex part and in c u^2 / 2, explicit in the rest: that is
descent by E' in the metric M = (1/tau + c) I + eps L + weight P. The energy of that flow never rises. As a flow the
split has the time step tau / (1 + c tau) only, whatever tau is. A large eps leaves one minimum near, to which momentum
brings little; a small eps leaves many, and either descent may end in a poor one. The accuracy stands beside that of
label propagation, the harmonic function on the graph with the labels as its values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import scipy.sparse
import scipy.sparse.linalg
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from frechet.operators import Metric, applied, from_callable
from frechet.physics import Descent, metric_descent
from frechet.space import euclidean

F64 = torch.float64
EPS, WEIGHT, NEIGHBOURS, STEPS = 4.0, 50.0, 10, (0.1, 1.0, 10.0)
CONCAVE = 2 / EPS  # makes (u^2 - 1)^2 / (4 eps) - c u^2 / 2 concave for |u| <= 1


@dataclass(frozen=True)
class Row:
    tau: float
    flow: Descent
    momentum: Descent
    rises: int  # steps of the flow in which the energy rose
    accuracies: tuple[float, float]  # on the points without label
    propagated: float  # the accuracy of label propagation


def moons(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (count, 2) and labels 1 or -1."""
    angle = math.pi * torch.rand(count, dtype=F64, generator=generator)
    side = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0).to(F64)
    x = torch.stack([torch.cos(angle) * side + (side < 0), torch.sin(angle) * side + 0.5 * (side < 0)], 1)
    return x + 0.1 * torch.randn(count, 2, dtype=F64, generator=generator), side


def laplacian(x: Tensor) -> scipy.sparse.csc_array:
    """D - W of the graph of nearest neighbours, symmetric, with Gaussian weights."""
    distance, index = cKDTree(x.numpy()).query(x.numpy(), NEIGHBOURS + 1)
    n, scale = len(x), distance[:, -1].mean()
    weights = torch.exp(-(torch.from_numpy(distance[:, 1:] / scale) ** 2)).reshape(-1).numpy()
    rows = torch.arange(n).repeat_interleave(NEIGHBOURS).numpy()
    W = scipy.sparse.csc_array((weights, (rows, index[:, 1:].reshape(-1))), shape=(n, n))
    W = W.maximum(W.T)
    return scipy.sparse.csc_array(scipy.sparse.diags_array(W.sum(0)) - W)


def run(count: int = 400, labels: int = 4, seed: int = 0) -> list[Row]:
    """Descend for each tau, with and without momentum."""
    generator = torch.Generator().manual_seed(seed)
    x, truth = moons(count, generator)
    L, space = laplacian(x), euclidean(count, F64)
    known = torch.zeros(count, dtype=F64)
    known[:labels] = 1  # the moons take turns

    def matrix(A: scipy.sparse.csc_array):
        def product(V: Tensor) -> Tensor:
            return torch.from_numpy(A @ V.numpy())

        return from_callable(product, space, facts="positive_semidefinite")

    G = matrix(L)
    hard = scipy.sparse.csc_array(scipy.sparse.diags_array(1e6 * known.numpy()) + L)
    harmonic = torch.from_numpy(scipy.sparse.linalg.spsolve(hard, 1e6 * (known * truth).numpy()))

    def accuracy(u: Tensor) -> float:
        return float((u.sign() == truth)[labels:].double().mean())

    def energy(u: Tensor) -> Tensor:
        phases = (u * u - 1).square().sum() / (4 * EPS)
        return EPS / 2 * (u * applied(G, u)).sum() + phases + WEIGHT / 2 * (known * (u - truth).square()).sum()

    rows = []
    for tau in STEPS:
        diagonal = 1 / tau + CONCAVE + WEIGHT * known
        A = scipy.sparse.csc_array(scipy.sparse.diags_array(diagonal.numpy()) + EPS * L)
        factors = scipy.sparse.linalg.splu(A)
        mass = from_callable(lambda V, A=A: torch.from_numpy(A @ V.numpy()), space, facts="positive_definite")
        inverse = from_callable(
            lambda V, f=factors: torch.from_numpy(f.solve(V.numpy())), space, facts="positive_definite"
        )
        found = [
            metric_descent(energy, known * truth, metric=Metric(mass, inverse), momentum=momentum, gtol=1e-6)
            for momentum in (False, True)
        ]
        right = [accuracy(s.x) for s in found if isinstance(s.x, Tensor)]
        rises = sum(b > a + 1e-10 * abs(a) for a, b in pairwise(found[0].energies))
        rows.append(Row(tau, found[0], found[1], rises, (right[0], right[1]), accuracy(harmonic)))
    return rows


def main() -> None:
    print("tau    steps: flow, momentum   accuracy        energy")
    rows = run()
    for row in rows:
        a, b = row.accuracies
        print(
            f"{row.tau:<6g} {row.flow.iterations:11d}, {row.momentum.iterations:8d}   {a:.1%}, {b:.1%}    "
            f"{row.flow.energies[-1]:.3f}, {row.momentum.energies[-1]:.3f}; rose {row.rises} times in the flow"
        )
    print(f"label propagation: {rows[0].propagated:.1%}")


if __name__ == "__main__":
    main()
