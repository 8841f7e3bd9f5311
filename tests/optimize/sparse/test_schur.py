import pytest
import torch
from scipy import sparse

from frechet.optimize._sparse import schur, symbolic
from frechet.optimize._sparse.block_jacobian import BlockJacobian
from frechet.optimize._sparse.schur import factored_normal
from frechet.optimize._sparse.steps import Steps
from frechet.optimize._sparse.symbolic import elimination, profile
from sparse_problems import PROBLEMS, gaussian, structure_of
from spectra import F64

FORMS = ("as chosen", "pairs", "sparse", "pairs, few at a time")


def random_jacobian(name, seed=0):
    structure = structure_of(PROBLEMS[name]())
    values = []
    for k, group in enumerate(structure.groups):
        found = gaussian(seed + k, *group.rows.shape, group.columns.shape[1])
        values.append(torch.where((group.columns >= 0)[:, None, :], found, 0.0))
    return BlockJacobian(structure, tuple(values))


def dense(J):
    return torch.stack([J.times(e) for e in torch.eye(J.structure.n, dtype=F64)], 1)


def forced(form, monkeypatch):
    if form != "as chosen":
        monkeypatch.setattr(symbolic, "STACKED", 0)
    if form == "sparse":
        monkeypatch.setattr(symbolic, "SMALL", -1)
        monkeypatch.setattr(symbolic, "THIN", 2.0)
    if form == "pairs, few at a time":
        monkeypatch.setattr(schur, "CHUNK", 1)


@pytest.mark.parametrize("name", PROBLEMS)
def test_products_are_those_of_the_dense_matrix(name):
    J = random_jacobian(name)
    A, u, v = dense(J), gaussian(7, J.structure.m), gaussian(8, J.structure.n)
    rows = gaussian(9, J.structure.m)
    assert torch.allclose(J.transposed_times(u), A.T @ u)
    assert torch.allclose(J.squares(), A.square().sum(0))
    assert torch.allclose(dense(J.scaled(v)), A * v)
    assert torch.allclose(dense(J.weighted(rows)), rows[:, None] * A)
    assert torch.allclose(dense(J.absolute()), A.abs())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_solution_is_that_of_the_dense_normal_equations(name, form, monkeypatch):
    forced(form, monkeypatch)
    J = random_jacobian(name)
    plan = elimination(J.structure)
    assert plan is not None
    assert plan.dense == (form != "sparse" or not plan.size)
    A, b = dense(J), gaussian(3, J.structure.n)
    shift = 0.1 + gaussian(4, J.structure.n).abs()
    factor = factored_normal(plan, J, shift)
    assert factor is not None
    exact = torch.linalg.solve(A.T @ A + torch.diag(shift), b)
    assert torch.allclose(factor.solve(b), exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["bundle", "poses", "independent"])
def test_an_indefinite_matrix_has_no_factor(name, form, monkeypatch):
    forced(form, monkeypatch)
    J = random_jacobian(name)
    plan = elimination(J.structure)
    shift = torch.ones(J.structure.n, dtype=F64)
    shift[-1] = -1e6
    assert factored_normal(plan, J, shift) is None
    assert factored_normal(plan, J, torch.full_like(shift, torch.nan)) is None


@pytest.mark.parametrize("factors", [True, False])
@pytest.mark.parametrize("mu", [1.0, 1e-3, 0.0])
@pytest.mark.parametrize("name", PROBLEMS)
def test_steps_are_those_of_singular_values(name, mu, factors):
    """Undamped ones, too, in what J sees of them, with columns in any units and some of them held."""
    J = random_jacobian(name)
    n, r = J.structure.n, gaussian(5, J.structure.m)
    J = J.scaled(10.0 ** torch.linspace(-6, 6, n, dtype=F64))
    columns = J.squares().sqrt()
    D, free = torch.where(columns > 0, columns, 1.0), columns > 0
    free[::4] = False
    A = dense(J)[:, free] / D[free]
    if mu > 0:
        expected = -torch.linalg.solve(A.T @ A + mu * torch.eye(A.shape[1], dtype=F64), A.T @ r)
    else:
        expected = -torch.linalg.pinv(A, rtol=1e-10) @ r
    p, _ = Steps.of(J.structure, factors).solve(J, r, D, free, mu, 1e-12)
    assert bool((p[~free] == 0).all())
    found = (p * D)[free]
    assert torch.allclose(A @ found, A @ expected, atol=1e-5 if mu == 0 else 1e-7)
    if mu > 0:
        assert torch.allclose(found, expected, atol=1e-7)


def test_what_does_not_fit_is_not_factored(monkeypatch):
    structure = structure_of(PROBLEMS["bundle"]())
    monkeypatch.setattr(symbolic, "STACKED", 0)
    monkeypatch.setattr(symbolic, "MOST", 40)
    assert elimination(structure) is None
    assert Steps.of(structure, True).plan is None
    assert "lsmr" in Steps.of(structure, True).name


def test_the_profile_bounds_the_fill_and_knows_full_columns():
    n = 60
    band = torch.eye(n).bool() | torch.diag(torch.ones(n - 1), 1).bool() | torch.diag(torch.ones(n - 1), -1).bool()
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    S = sparse.csr_array(band[shuffled][:, shuffled].numpy())
    assert profile(S) <= 2 * n
    band[0], band[:, 0] = True, True
    S = sparse.csr_array(band[shuffled][:, shuffled].numpy())
    assert profile(S) <= 4 * n
