import pytest
import torch

from counting import counting
from frechet.operators._constructors import from_matrix
from frechet.optimize._constrained.projection import rows_of
from spectra import F64, gaussian


def low_rank(m, n, r):
    return gaussian(m * r).reshape(m, r) @ gaussian(r * n + 1)[1:].reshape(r, n)


@pytest.mark.parametrize(
    ("m", "n", "r"), [(3, 5, 3), (5, 3, 3), (4, 6, 2), (6, 6, 6), (1, 1, 1), (7, 3, 2), (4, 5, 0), (30, 50, 20)]
)
@pytest.mark.parametrize("start", ["none", "zero", "in range"])
def test_answers_are_those_of_the_pseudo_inverse(m, n, r, start):
    A = low_rank(m, n, r)
    P = torch.linalg.pinv(A) if r else torch.zeros(n, m, dtype=F64)
    b, g = gaussian(m), gaussian(n)
    starts = {"none": None, "zero": torch.zeros(m, dtype=F64), "in range": A @ g}
    rows = rows_of(from_matrix(A), starts[start])
    assert rows.rank == r
    assert torch.allclose(rows.least_norm(b), P @ b, atol=1e-10)
    assert torch.allclose(rows.multipliers(g), -P.T @ g, atol=1e-10)
    assert torch.allclose(rows.project(g), g - P @ (A @ g), atol=1e-10)


def test_equal_singular_values_do_not_end_it_early():
    # one Krylov space of a multiple of orthonormal rows has dimension one, and sign vectors repeat in three dimensions
    A = torch.diag(torch.tensor([2.0, 1.0, 2.0, 2.0], dtype=F64))[:3]
    assert rows_of(from_matrix(A)).rank == 3
    assert rows_of(from_matrix(torch.eye(5, dtype=F64))).rank == 5


def test_projection_leaves_rounding_errors_in_the_range_alone():
    A = torch.diag(torch.logspace(0, -7, 8, dtype=F64)) @ low_rank(8, 20, 8)
    rows = rows_of(from_matrix(A))
    p = rows.project(1e6 * gaussian(20))
    assert float((A @ p).abs().max()) < 1e-9
    assert rows.rank == 8


def test_costs_two_products_per_rank():
    A, count = counting(from_matrix(low_rank(30, 50, 12)))
    rows = rows_of(A)
    assert count.total <= 2 * 12 + 3
    before = count.total
    rows.project(gaussian(50)), rows.multipliers(gaussian(50)), rows.least_norm(gaussian(30))
    assert count.total == before


def test_where_nothing_may_be_kept_the_answers_come_by_lsmr():
    A = low_rank(10, 15, 6)
    kept, free = rows_of(from_matrix(A)), rows_of(from_matrix(A), entries=0)
    assert free.rank is None
    b, g = gaussian(10), gaussian(15)
    for name, v in (("least_norm", b), ("multipliers", g), ("project", g)):
        assert torch.allclose(getattr(kept, name)(v), getattr(free, name)(v), atol=1e-8)
