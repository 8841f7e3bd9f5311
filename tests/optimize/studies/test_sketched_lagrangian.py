import math
from itertools import pairwise

import pytest
import torch

from frechet import minimize
from frechet.optimize import Constraint
from frechet.optimize.studies import sketched_lagrangian
from spectra import F64, gaussian

START = torch.tensor([1.2, 0.7, -0.4, 0.5, 0.3, -0.2, 0.6, 0.1], dtype=F64)


def f(x):
    return ((x - 2) ** 4).sum() + (x[1:] * x[:-1]).sum() + torch.exp(x).sum() + 3 * x[::2].square().sum()


def c(x):
    return torch.stack([x @ x - 4.0, x[0] - x[1] * x[2] - 1.0])


def residuals(seed):
    sizes = []
    s = sketched_lagrangian(
        f, START, c, seed=seed, gtol=1e-13, ctol=1e-13, max_iterations=30,
        observe=lambda t: bool(sizes.append(max(t.residual, t.infeasibility))),
    )  # fmt: skip
    return s, sizes


def test_the_order_of_convergence_is_above_one_and_the_solution_that_of_minimize():
    s, sizes = residuals(0)
    assert s.residual < 1e-9
    assert s.infeasibility < 1e-9
    tail = [r for r in sizes if 1e-12 < r < 1e-1]
    orders = [math.log(b) / math.log(a) for a, b in pairwise(tail)]
    assert max(orders) > 1.4
    assert orders[-1] > 1.2
    best = minimize(f, START, constraints=c, method="augmented", gtol=1e-12, ctol=1e-12)
    assert torch.allclose(s.x, best.x, atol=1e-7)
    assert torch.allclose(s.multipliers[0], best.multipliers[0], atol=1e-6)
    assert s.method == "Newton on an exact augmented Lagrangian, by sketches"


def test_the_seed_decides_the_sketches():
    one, again, other = (residuals(seed)[1] for seed in (5, 5, 6))
    assert one == again
    assert len(one) > 2
    assert one[1:] != other[1:]


def test_quadratic_program_with_equalities_is_the_dense_kkt_solution():
    n, m = 12, 4
    H, J, g, b = gaussian(n * n).reshape(n, n), gaussian(m * n).reshape(m, n), gaussian(n), gaussian(m)
    H = H @ H.T + torch.eye(n, dtype=F64)
    K = torch.cat([torch.cat([H, J.T], 1), torch.cat([J, torch.zeros(m, m, dtype=F64)], 1)])
    dense = torch.linalg.solve(K, torch.cat([-g, b]))
    start = torch.zeros(n, dtype=F64)
    s = sketched_lagrangian(lambda x: 0.5 * x @ (H @ x) + g @ x, start, lambda x: J @ x - b, seed=0)
    assert s.converged
    assert torch.allclose(s.x, dense[:n], atol=1e-8)
    assert torch.allclose(s.multipliers[0], dense[n:], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"block": 0}, r"sketched_lagrangian: block must be >= 1, got 0"),
        (
            {"constraints": Constraint(lambda x: x, -1.0, 1.0)},
            r"sketched_lagrangian: constraints must be equalities, got inequalities; take minimize",
        ),
    ],
)
def test_arguments(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        sketched_lagrangian(f, START, **{"constraints": c, "seed": 0, **arguments})
