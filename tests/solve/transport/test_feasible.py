import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from frechet.solve.transport.feasible import pattern
from transport_problems import F64, masses, uniform


def largest_entries(allowed, a, b):
    """The largest mass that each pair can carry, by one linear program per pair; None where there is no plan."""
    n, m = allowed.shape
    A = np.zeros((n + m, n * m))
    for i, j in itertools.product(range(n), range(m)):
        A[i, i * m + j] = A[n + j, i * m + j] = 1
    bounds = [(0, None if k else 0) for k in allowed.flatten().tolist()]
    found = torch.zeros(n * m, dtype=F64)
    for k in range(n * m):
        r = linprog(-np.eye(n * m)[k], A_eq=A, b_eq=np.concatenate([a, b]), bounds=bounds)
        if r.status == 2:
            return None
        found[k] = -r.fun
    return found.view(n, m)


@pytest.mark.parametrize("seed", range(12))
def test_it_agrees_with_linear_programs(seed):
    n, m = 4, 5
    allowed = uniform(n, m, seed=seed) < 0.55
    # masses in units of a twentieth, so that subsets of equal mass happen
    a, b = (torch.tensor(x, dtype=F64) / 20 for x in ([5, 5, 4, 6], [4, 1, 5, 6, 4]))
    most, found = largest_entries(allowed, a, b), pattern(allowed, a, b)
    if most is None:
        assert isinstance(found, str)
        assert found.startswith("no plan exists")
    else:
        assert torch.equal(found.allowed, most > 1e-9)
        for i, j in found.allowed.nonzero().tolist():
            assert found.row[i] == found.column[j]


def test_both_answers_occur_above():
    a, b = (torch.tensor(x, dtype=F64) / 20 for x in ([5, 5, 4, 6], [4, 1, 5, 6, 4]))
    answers = [isinstance(pattern(uniform(4, 5, seed=s) < 0.55, a, b), str) for s in range(12)]
    assert 2 < sum(answers) < 10


def test_tiny_masses_keep_their_pairs():
    a = torch.tensor([1e-14, 1 - 1e-14], dtype=F64)
    allowed = torch.tensor([[True, False], [True, True]])
    found = pattern(allowed, a, torch.tensor([0.5, 0.5], dtype=F64))
    assert bool(found.allowed[0, 0])


def test_components_are_counted():
    found = pattern(torch.eye(5, dtype=torch.bool), masses(5), masses(5))
    assert found.count == 5
    assert sorted(found.row.tolist()) == list(range(5))
    assert torch.equal(found.T.row, found.column)
