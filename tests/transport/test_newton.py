import dataclasses
import itertools

import torch

from frechet.linalg._result import Status
from frechet.linalg.systems._cg import cg
from frechet.operators._constructors import identity
from frechet.space import euclidean
from frechet.transport import _newton as newton
from frechet.transport._newton import Trust, cholesky_solution, newton_step
from frechet.transport._problem import checked, reduced
from frechet.transport._reduced_hessian import ReducedHessian, reduced_hessian
from frechet.transport._scaling import point, sweeps
from transport_problems import F64, problem, uniform


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


def test_systems_that_take_long_are_factored(monkeypatch):
    p, x = begun()
    usual = newton_step(p, x, Trust(), 1e-14)
    never = dataclasses.replace(cg(identity(euclidean(30, F64)), p.b), status=Status.MAX_ITERATIONS)
    monkeypatch.setattr(newton, "cg", lambda *a, **k: never)
    factored = newton_step(p, x, Trust(), 1e-14)
    assert factored.taken
    assert factored.point.error < 1.5 * usual.point.error


def test_the_factored_system_is_the_whole_one_with_a_ridge():
    p, x = begun()
    r = uniform(30) - 0.5
    S = reduced_hessian(x.plan, p.a, p.b, 0.0, 1e-3).dense()
    y = cholesky_solution(x.plan, p.a, 1e-3 * p.b, r)
    assert torch.allclose(y, torch.linalg.solve(S, r), rtol=1e-9)


def test_a_system_that_is_singular_to_rounding_gives_no_step():
    P = torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=F64)
    y = cholesky_solution(P, P.sum(1), torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64))
    assert bool(y.isnan().all())


def test_a_step_that_is_no_number_damps(monkeypatch):
    p, x = begun()
    nothing = dataclasses.replace(cg(identity(euclidean(30, F64)), p.b), x=torch.full((30,), float("nan"), dtype=F64))
    monkeypatch.setattr(newton, "cg", lambda *a, **k: nothing)
    step = newton_step(p, x, Trust(), 1e-14)
    assert not step.taken
    assert step.trust.damping == 4.0


def test_products_are_counted(monkeypatch):
    p, x = begun()
    made, multiply = [], ReducedHessian._matmat
    monkeypatch.setattr(ReducedHessian, "_matmat", lambda self, V: made.append(V.shape[1]) or multiply(self, V))
    step = newton_step(p, x, Trust(), 1e-14)
    assert 0 < step.products == sum(made)
