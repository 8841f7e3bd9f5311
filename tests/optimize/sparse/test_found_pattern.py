import pytest
import torch

from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._sparse import levenberg_marquardt
from frechet.optimize._sparse.structure import structured
from sparse_problems import gaussian
from spectra import F64


@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 70), (70, 5), (40, 40)])
@pytest.mark.parametrize("zero", [True, False])
def test_the_pattern_is_that_of_the_matrix(m, n, zero, monkeypatch):
    """Of a quadratic function, too, whose Jacobian vanishes at zero."""
    A = torch.where(torch.rand(m, n, generator=torch.Generator().manual_seed(m)) < 0.4, gaussian(1, m, n), 0.0)
    seen = []

    def kept(declared, space, single, returned):
        seen.append(torch.from_numpy(declared.toarray() != 0))
        return structured(declared, space, single, returned)

    monkeypatch.setattr(levenberg_marquardt, "structured", kept)
    x0 = torch.zeros(n, dtype=F64) if zero else gaussian(2, n)
    least_squares(lambda x: A @ x**2 - 1, x0, structure="find", max_evaluations=3)
    assert torch.equal(seen[0], A != 0)


def test_a_second_point_that_is_not_finite_is_left_out():
    s = least_squares(
        lambda x: torch.log(1e-3 - x.abs()) - torch.log(torch.tensor(5e-4)), torch.full((3,), 1e-4), structure="find"
    )
    assert s.converged, s.message


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="structure must be 'find', index tensors or a pattern, got 'sparse'"):
        least_squares(lambda x: x - 1, torch.zeros(3, dtype=F64), structure="sparse")
