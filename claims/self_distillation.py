"""K. Borup, L. N. Andersen (2021), Even your teacher needs guidance: ground-truth targets dampen regularization imposed
by self-distillation, NeurIPS, arXiv 2102.13088.

Claim: self-distillation with targets of weight a converges to the ridge regression with c / a in place of c; without
targets every step regularizes more. A suitable weight generalizes better than the teacher.
"""

from __future__ import annotations

import torch
from claim import Claim
from sklearn.datasets import load_diabetes

from frechet import Objective, squared_error
from frechet.analyze import ntk_matrix, self_distillation


def measure() -> Claim:
    """The kernel of a wide network at its start, on the diabetes data; errors on held-out patients."""
    X, y = load_diabetes(return_X_y=True)
    X = torch.from_numpy(X / X.std(0))
    y = torch.from_numpy((y - y.mean()) / y.std())
    torch.manual_seed(0)
    order = torch.randperm(len(y))
    X, y = X[order], y[order]
    net = torch.nn.Sequential(torch.nn.Linear(10, 1024), torch.nn.Tanh(), torch.nn.Linear(1024, 1)).double()
    K = ntk_matrix(Objective(net, squared_error(), [(X, y[:, None])])).matrix
    inner, cross = K[:200, :200], K[200:, :200]
    ridge, gaps, parameters, gains = 3000.0, [], [], {}
    for weight in (0.0, 0.2, 0.5):
        found = self_distillation(inner, y[:200], ridge=ridge, weight=weight, steps=200)
        parameters.append([float(found.parameters[t]) for t in (0, 1, 5)])
        errors = [float((cross @ found.coefficients[t].reshape(-1) - y[200:]).square().mean()) for t in (0, 1, 5)]
        gains[weight] = errors
        if weight:
            direct = torch.linalg.solve(inner + ridge / weight * torch.eye(200, dtype=K.dtype), y[:200])
            gaps.append(float((found.coefficients[-1].reshape(-1) - direct).norm() / direct.norm()))
    less = all(a > b > c for a, b, c in parameters)
    damped = parameters[0][2] < parameters[1][2] < parameters[2][2]
    told = ", ".join(f"{w:g}: {p[0]:.1f}, {p[1]:.1f}, {p[2]:.1f}" for w, p in zip(gains, parameters, strict=True))
    errors = ", ".join(f"{w:g}: {e[0]:.3f}, {e[1]:.3f}, {e[2]:.3f}" for w, e in gains.items())
    exact = max(gaps) < 1e-8
    return Claim(
        paper="Borup, Andersen 2021, arXiv 2102.13088",
        claim="targets of weight a dampen the regularization of self-distillation, whose limit is ridge c / a",
        theirs="a closed form",
        ours=f"distance from the limit after 200 steps {max(gaps):.0e}; effective parameters after 0, 1 and 5 steps by "
        f"weight {told}; held-out errors {errors}",
        verdict="holds" if exact and less and damped else "holds in part" if exact else "does not hold here",
        why="kernel ridge regression with the tangent kernel of a network of width 1024",
        name="self_distillation",
    )
