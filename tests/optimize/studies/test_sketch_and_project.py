from itertools import pairwise

import pytest
import torch

from counting import counting
from frechet.linalg._result import Status
from frechet.operators._constructors import from_matrix
from frechet.optimize.studies._sketch_and_project import sketch_and_project
from spectra import F64, gaussian

A = gaussian(80).reshape(8, 10)


def test_blocks_as_wide_as_the_rows_are_exact_in_one_step():
    b = gaussian(8)
    s = sketch_and_project(from_matrix(A), b, seed=0, block=32, rtol=1e-9)
    assert s.converged
    assert s.iterations == 1
    assert torch.allclose(s.x, torch.linalg.pinv(A) @ b, atol=1e-9)  # nearest to zero


def test_the_error_never_grows_and_the_residual_is_the_definition():
    b, sizes = gaussian(8), []
    exact = torch.linalg.pinv(A) @ b
    for k in range(1, 15):
        s = sketch_and_project(from_matrix(A), b, seed=1, block=2, rtol=0.0, max_iterations=k)
        sizes.append(float((s.x - exact).square().sum()))
        assert s.residual == pytest.approx(float((A @ s.x - b).square().sum()) ** 0.5, rel=1e-9)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(sizes))
    assert s.status is Status.MAX_ITERATIONS
    assert sketch_and_project(from_matrix(A), b, seed=1, block=4, rtol=1e-4, max_iterations=2000).converged


def test_the_seed_decides_and_products_are_counted():
    b = gaussian(8)
    counted, count = counting(from_matrix(A))
    one = sketch_and_project(counted, b, seed=3, block=3, rtol=1e-3)
    again, other = (sketch_and_project(from_matrix(A), b, seed=s, block=3, rtol=1e-3) for s in (3, 4))
    assert count.total == one.products == 4 * one.iterations + 1
    assert torch.equal(one.x, again.x)
    assert not torch.equal(one.x, other.x)


def test_zero_and_infinite_right_hand_sides_have_their_status():
    assert sketch_and_project(from_matrix(A), torch.zeros(8, dtype=F64), seed=0).iterations == 0
    s = sketch_and_project(from_matrix(A), torch.full((8,), torch.inf, dtype=F64), seed=0)
    assert s.status is Status.NONFINITE
