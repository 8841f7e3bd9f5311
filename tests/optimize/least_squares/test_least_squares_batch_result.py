import pytest
import torch

from frechet.errors import NotConverged
from frechet.optimize._least_squares.least_squares_batch import least_squares_batch
from spectra import F64


def test_each_problem_has_a_sentence():
    def r(x, y):
        return torch.exp(x) - y

    many = least_squares_batch(r, torch.zeros(1, dtype=F64), torch.tensor([[2.0, 2.5], [2.0, 3.0]], dtype=F64))
    assert many.checked() is many
    assert many.message(0).startswith("no step can reduce the cost by more than rounding errors, largest cosine")
    short = least_squares_batch(r, torch.zeros(1, dtype=F64), torch.full((2, 1), 900.0, dtype=F64), max_evaluations=2)
    assert "the limit was reached after" in short.message(1)
    with pytest.raises(NotConverged, match=r"problem 0 stopped with status 'max_iterations' at cost .*: the limit"):
        short.checked()
