import pytest
import torch

from counting import counting
from frechet.operators._constructors import from_matrix
from frechet.optimize._constrained.slack_rows import SlackRows, slack_rows
from spectra import F64, gaussian


def problem(n, e, i, spread):
    J = gaussian((e + i) * n).reshape(e + i, n)
    equal, slack = torch.arange(0, e), torch.arange(e, e + i)
    D = 10.0 ** (-spread * torch.linspace(0, 1, n + i, dtype=F64))
    tail = torch.cat([torch.zeros(e, i, dtype=F64), -torch.eye(i, dtype=F64)])
    return J, torch.cat([J, tail], 1) * D, D, equal, slack


@pytest.mark.parametrize(("n", "e", "i"), [(5, 2, 3), (3, 1, 9), (6, 0, 4), (1, 0, 1), (6, 3, 12)])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_answers_are_those_of_the_pseudo_inverse(n, e, i, spread):
    J, A, D, equal, slack = problem(n, e, i, spread)
    rows = slack_rows(from_matrix(A), from_matrix(J), D, equal, slack)
    P = torch.linalg.pinv(A, rtol=1e-14)
    b, g = gaussian(e + i), gaussian(n + i)
    assert isinstance(rows, SlackRows)
    assert torch.allclose(rows.least_norm(b), P @ b, rtol=1e-7, atol=1e-7)
    assert torch.allclose(rows.multipliers(g), -P.T @ g, rtol=1e-7, atol=1e-7)
    assert torch.allclose(rows.project(g), g - P @ (A @ g), atol=1e-8)


def test_products_grow_with_the_variables_and_not_with_the_inequalities():
    counts = []
    for i in (20, 200):
        J, A, D, equal, slack = problem(4, 0, i, 1.0)
        counted, count = counting(from_matrix(J))
        slack_rows(from_matrix(A), counted, D, equal, slack)
        counts.append(count.total)
    assert counts[0] == counts[1] <= 2 * 4 + 2
