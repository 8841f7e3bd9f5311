import pytest
import torch

from frechet.transport._sinkhorn import sinkhorn
from transport_problems import F64, problem, uniform


def test_barycenters_are_means_of_the_plan():
    cost, a, b = problem()
    a[2] = 0
    a = a / a.sum()
    s = sinkhorn(cost, a, b, epsilon=0.05).checked()
    y = uniform(6, 2, seed=4)
    P, means = s.plan(), s.barycentric(y)
    kept = a > 0
    assert torch.allclose(means[kept], (P @ y / a.unsqueeze(1))[kept], atol=1e-11)
    assert bool((means[2] >= y.amin(0)).all() & (means[2] <= y.amax(0)).all())
    with pytest.raises(ValueError, match=r"barycentric: y must have shape \(6, d\), got \(5, 2\)"):
        s.barycentric(y[:5])


def test_values_are_what_they_say():
    cost, a, b = problem()
    s = sinkhorn(cost, a, b, epsilon=0.05, max_iterations=2)
    P = s.plan()
    assert s.value == pytest.approx(float((P * cost).sum()), rel=1e-12)
    entropy = float(torch.xlogy(P, P / torch.outer(a, b)).sum())
    assert s.regularized_value == pytest.approx(s.value + 0.05 * entropy, rel=1e-12)
    assert s.dual_value == pytest.approx(float(a @ s.f + b @ s.g - 0.05 * (P.sum() - 1)), rel=1e-12)
    assert float(a @ s.f) == pytest.approx(float(b @ s.g), abs=1e-15)
    assert s.iterations == s.sweeps + s.newton_steps
    assert not s.converged
    assert len(repr(s)) < 1500


def test_nothing_given_is_changed():
    cost, a, b = problem()
    before = [x.clone() for x in (cost, a, b)]
    s = sinkhorn(cost, a, b, epsilon=0.05)
    s.unregularized_bounds()
    assert all(torch.equal(x, y) for x, y in zip(before, (cost, a, b), strict=True))
    assert s.f.dtype == F64
