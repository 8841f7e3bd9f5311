import itertools

import torch

from frechet.solve.transport import newton
from frechet.solve.transport.newton import Trust, newton_step
from frechet.solve.transport.problem import checked, reduced
from frechet.solve.transport.scaling import point, sweeps
from transport_problems import F64, problem


def begun(epsilon=0.01):
    cost, a, b = problem(40, 30)
    p = reduced(checked("f", cost, a, b, epsilon))
    x, _ = sweeps(p, point(p, torch.zeros(30, dtype=F64), epsilon), 0.0, 30, float("inf"))
    return p, x


def test_steps_converge_quadratically():
    p, x = begun()
    trust, errors = Trust(), [x.error]
    while x.error > 1e-13 and len(errors) < 20:
        step = newton_step(p, x, trust, 1e-14)
        x, trust = step.point, step.trust
        errors.append(x.error)
    assert errors[-1] <= 1e-13
    assert len(errors) < 12
    small = [e for e in errors if e < 1e-3]
    assert len(small) > 2
    assert all(after <= max(1e3 * before**2, 1e-14) for before, after in itertools.pairwise(small))


def test_a_step_that_gains_nothing_is_refused_and_damps():
    p, x = begun(1e-4)
    trust, refused = Trust(damping=1e-3, reach=1e6), 0
    for _ in range(10):
        step = newton_step(p, x, trust, 1e-10)
        if not step.taken:
            refused += 1
            assert step.point is x
            assert step.trust.damping > trust.damping
        x, trust = step.point, step.trust
    assert refused


def test_a_system_beyond_the_limit_is_solved_densely(monkeypatch):
    p, x = begun()
    few = newton_step(p, x, Trust(), 1e-14)
    monkeypatch.setattr(newton, "CG_LIMIT", 1)
    dense = newton_step(p, x, Trust(), 1e-14)
    assert dense.products >= 30
    assert dense.taken
    assert dense.point.error < 1.5 * few.point.error


def test_products_are_counted():
    p, x = begun()
    step = newton_step(p, x, Trust(), 1e-14)
    assert 0 < step.products <= newton.CG_LIMIT + 1
