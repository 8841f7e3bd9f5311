import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from frechet.transport._feasible import pattern
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


def small(seed):
    """A pattern and masses in units of a twentieth, so that subsets of equal mass happen."""
    n = 4 + seed % 2
    masses_of = {4: [5, 5, 5, 5], 5: [4, 1, 5, 6, 4]}
    return uniform(4, n, seed=seed) < 0.55, *(torch.tensor(masses_of[k], dtype=F64) / 20 for k in (4, n))


@pytest.mark.parametrize("seed", range(14))
def test_it_agrees_with_linear_programs(seed):
    allowed, a, b = small(seed)
    most, found = largest_entries(allowed, a, b), pattern(allowed, a, b)
    if most is None:
        assert isinstance(found, str)
        assert found.startswith("no plan exists")
    else:
        assert torch.equal(found.allowed, most > 1e-9)
        for i, j in found.allowed.nonzero().tolist():
            assert found.row[i] == found.column[j]


def test_all_answers_occur_above():
    found = [(small(s)[0], pattern(*small(s))) for s in range(14)]
    plans = [(allowed, p) for allowed, p in found if not isinstance(p, str)]
    assert 3 < len(plans) < 11
    assert sum(not torch.equal(allowed, p.allowed) for allowed, p in plans) > 1


@pytest.mark.parametrize("first", [0, 5])
def test_tiny_masses_keep_their_pairs(first):
    a = torch.full((6,), 1e-14, dtype=F64)
    a[first] = 1 - 5e-14
    allowed = torch.ones(6, 2, dtype=torch.bool)
    found = pattern(allowed, a, torch.tensor([0.5, 0.5], dtype=F64))
    assert bool(found.allowed.any(1).all())


def test_components_are_counted():
    found = pattern(torch.eye(5, dtype=torch.bool), masses(5), masses(5))
    assert found.count == 5
    assert sorted(found.row.tolist()) == list(range(5))
    assert torch.equal(found.T.row, found.column)
