import pytest
import torch

from cases import F64, random, structured_cases
from frechet.operators import block_diagonal, from_callable, from_matrix, kronecker, submatrix
from frechet.operators._structured import Permuted

CASES = structured_cases()


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_entries_are_those_of_the_dense_matrix(case):
    m, n = case.dense.shape
    for rows, columns in (([], [0, 1, 0]), (range(m), range(n)), ([m - 1, 0, 0], [n - 1]), ([0], [])):
        i, j = ([k for k in ks if 0 <= k < size] for ks, size in ((rows, m), (columns, n)))
        found = submatrix(case.operator, i, torch.tensor(j, dtype=torch.int32))
        torch.testing.assert_close(found, case.dense[i][:, j], rtol=1e-10, atol=1e-10)
    if m == n:
        torch.testing.assert_close(submatrix(case.operator, [n - 1, 0]), case.dense[[n - 1, 0]][:, [n - 1, 0]])


def test_reorderings_and_what_they_hold():
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for inner in (kronecker(from_matrix(random(3, 3)), from_matrix(random(2, 2))), from_matrix(random(6, 6))):
        A = Permuted(inner, order, from_matrix(random(6, 6)).domain)
        torch.testing.assert_close(submatrix(A, [0, 5, 2], [1, 4]), A.dense()[[0, 5, 2]][:, [1, 4]])


def test_structure_is_read_and_products_are_taken_where_there_is_none():
    asked = []

    def product(V):
        asked.append(V.shape[1])
        return 2 * V

    A = from_callable(product, 10, facts="symmetric", dtype=F64)
    beside = block_diagonal(A, from_matrix(random(4, 4)))
    assert submatrix(beside, [11, 12]).shape == (2, 2)
    assert asked == []
    assert torch.equal(submatrix(beside, [3], list(range(14))), 2 * torch.eye(14, dtype=F64)[[3]])
    assert asked == [1]  # the fewer of rows and columns


def test_wrong_indices_are_named():
    A = from_matrix(random(3, 2))
    for call, sentence in (
        (lambda: submatrix(A, [0, 3], [0]), "submatrix: rows must lie between 0 and 2, got 0 to 3"),
        (lambda: submatrix(A, [0], [-1]), "submatrix: columns must lie between 0 and 1, got -1 to -1"),
        (lambda: submatrix(A, [0]), r"columns must be given for an A that is not square, got shape \(3, 2\)"),
        (lambda: submatrix(A, torch.tensor([True]), [0]), "rows must be a list of indices, got torch.bool"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
