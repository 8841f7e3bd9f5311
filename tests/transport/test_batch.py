import pytest
import torch

from frechet.errors import NonFinite, NotConverged
from frechet.transport._batch import sinkhorn_batch
from frechet.transport._sinkhorn import sinkhorn
from transport_problems import F64, INF, masses, uniform


def many(*batch, n=9, m=7):
    count = int(torch.tensor(batch).prod())
    cost = uniform(*batch, n, m)
    a = torch.stack([masses(n, seed=s) for s in range(count)]).view(*batch, n)
    b = torch.stack([masses(m, seed=s + 100) for s in range(count)]).view(*batch, m)
    return cost, a, b


@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.01])
def test_each_problem_has_the_solution_that_it_has_alone(epsilon):
    cost, a, b = many(3, 2)
    s = sinkhorn_batch(cost, a, b, epsilon=epsilon).checked()
    assert s.converged.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            one = sinkhorn(cost[i, j], a[i, j], b[i, j], epsilon=epsilon)
            assert torch.allclose(s.plan()[i, j], one.plan(), atol=1e-11)
            assert torch.allclose(s.f[i, j], one.f, atol=1e-11)
            assert float(s.value[i, j]) == pytest.approx(one.value, abs=1e-11)
            assert float(s.dual_value[i, j]) == pytest.approx(one.dual_value, abs=1e-12)


def test_no_batch_and_shared_or_missing_masses():
    cost, a, b = many(4)
    shared = sinkhorn_batch(cost, a[0], b[0], epsilon=0.1).checked()
    assert torch.allclose(shared.plan().sum(-1), a[0].expand(4, 9), atol=1e-11)
    alone = sinkhorn_batch(cost[1], a[0], b[0], epsilon=0.1).checked()
    assert alone.converged.shape == ()
    assert torch.allclose(alone.plan(), shared.plan()[1], atol=1e-11)
    plain = sinkhorn_batch(cost, epsilon=0.1).checked()
    assert torch.allclose(plain.plan().sum(-2), torch.full((4, 7), 1 / 7, dtype=F64), atol=1e-11)


def test_missing_masses_differ_from_problem_to_problem():
    cost, a, b = many(3)
    a[0, 2], a[1, 5], b[2, 0] = 0.0, 0.0, 0.0
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    s = sinkhorn_batch(cost, 2 * a, 2 * b, epsilon=0.1).checked()
    for i in range(3):
        one = sinkhorn(cost[i], 2 * a[i], 2 * b[i], epsilon=0.1)
        assert torch.allclose(s.plan()[i], one.plan(), atol=1e-11)
        assert torch.allclose(s.g[i], one.g, atol=1e-11)


def test_a_batch_that_is_cut_short_says_how_many_are_left():
    cost, a, b = many(5)
    cost[0] = 0.0  # this one needs no sweep
    s = sinkhorn_batch(cost, a, b, epsilon=0.01, max_iterations=3)
    assert s.sweeps == 3
    assert s.converged.tolist() == [True, False, False, False, False]
    with pytest.raises(NotConverged, match=r"sinkhorn_batch: 4 of 5 problems did not converge in 3 sweeps \(largest"):
        s.checked()
    assert not bool(sinkhorn_batch(cost, a, b, epsilon=0.05, rtol=0.0).converged[1:].any())


def test_float32():
    cost, a, b = (x.float() for x in many(4))
    s = sinkhorn_batch(cost, a, b, epsilon=0.02).checked()
    assert s.plan().dtype == torch.float32
    assert float(s.marginal_error.max()) < 1e-4


def test_wrong_arguments():
    cost, a, b = many(2)
    with pytest.raises(TypeError, match="sinkhorn_batch: cost must be a floating-point tensor, got list"):
        sinkhorn_batch([1.0], epsilon=1.0)
    with pytest.raises(ValueError, match=r"sinkhorn_batch: cost must have shape \(..., n, m\) with no empty axis, got"):
        sinkhorn_batch(cost[0, 0], epsilon=1.0)
    with pytest.raises(ValueError, match="sinkhorn_batch: cost must not require grad: the result carries no graph"):
        sinkhorn_batch(cost.clone().requires_grad_(), epsilon=1.0)
    with pytest.raises(ValueError, match="sinkhorn_batch: epsilon must be a number > 0, got -1"):
        sinkhorn_batch(cost, epsilon=-1)
    with pytest.raises(
        ValueError, match="sinkhorn_batch: rtol and max_iterations must be numbers >= 0, got None and -1"
    ):
        sinkhorn_batch(cost, epsilon=1.0, max_iterations=-1)
    with pytest.raises(TypeError, match=r"sinkhorn_batch: a must be torch\.float64 on cpu, as cost is"):
        sinkhorn_batch(cost, a.float(), epsilon=1.0)
    with pytest.raises(ValueError, match=r"sinkhorn_batch: b must have shape \(2, 7\), got \(3, 7\)"):
        sinkhorn_batch(cost, a, b[:1].expand(3, 7), epsilon=1.0)
    with pytest.raises(ValueError, match="sinkhorn_batch: b must be finite and >= 0"):
        sinkhorn_batch(cost, a, -b, epsilon=1.0)
    with pytest.raises(ValueError, match="sinkhorn_batch: a and b must have the same sum in each problem"):
        sinkhorn_batch(cost, a, 2 * b, epsilon=1.0)
    with pytest.raises(ValueError, match="sinkhorn_batch: a must have a positive sum in each problem"):
        sinkhorn_batch(cost, 0 * a, 0 * b, epsilon=1.0)
    cost[1, 2, 3] = INF
    with pytest.raises(NonFinite, match=r"sinkhorn_batch: cost must be finite, got inf at \(1, 2, 3\)"):
        sinkhorn_batch(cost, epsilon=1.0)
