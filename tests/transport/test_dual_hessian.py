import torch

from frechet.operators._check import check_operator
from frechet.operators.derivatives._hessian import hessian
from frechet.transport._sinkhorn import sinkhorn
from transport_problems import F64, INF, problem, uniform


def test_it_is_the_hessian_of_the_dual_function():
    cost, a, b = problem(7, 5)
    cost[0, 1] = INF
    s = sinkhorn(cost, a, b, epsilon=0.1).checked()

    def phi(x):
        P = torch.exp((x["f"].unsqueeze(1) + x["g"] - cost) / 0.1) * torch.outer(a, b)
        return 0.1 * P.sum() - a @ x["f"] - b @ x["g"]

    H, V = s.hessian(), uniform(12, 3)
    assert torch.allclose(H @ V, hessian(phi, {"f": s.f, "g": s.g}) @ V, atol=1e-12)
    assert not check_operator(H, seed=0).failed


def test_its_null_space_is_the_gauge():
    cost, a, b = problem(7, 5)
    H = sinkhorn(cost, a, b, epsilon=0.1).hessian()
    gauge = torch.cat([torch.ones(7, dtype=F64), -torch.ones(5, dtype=F64)])
    assert torch.allclose(H @ gauge, torch.zeros(12, dtype=F64), atol=1e-15)
    values = torch.linalg.eigvalsh(H.dense())
    assert abs(float(values[0])) < 1e-14
    assert float(values[1]) > 1e-3
