import itertools
import math

import pytest
import torch

from frechet.calculus.taylor import jet, tangents
from frechet.calculus.taylor._tangents import prefactor, solutions

F64 = torch.float64
INDICES = [(1,), (4,), (1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (1, 1, 1), (2, 1, 1)]


@pytest.mark.parametrize("index", INDICES)
def test_a_jet_gives_its_mixed_derivative_and_no_other_one(index):
    """On every monomial that the jet could see: all degrees up to its order."""
    found, n = tangents(index), len(index)
    x, e = torch.zeros(n, dtype=F64), torch.eye(n, dtype=F64)
    curve = [torch.zeros(n, dtype=F64) for _ in range(found.order)]
    for j, p in enumerate(found.orders):
        curve[p - 1] = e[j]
    powers = [m for m in itertools.product(range(found.order + 1), repeat=n) if sum(m) <= found.order]
    if len(powers) > 150:
        reachable = [m for m in powers if sum(a * p for a, p in zip(m, found.orders, strict=True)) <= found.order]
        powers = reachable
    exponents = torch.tensor(powers, dtype=F64)

    def monomials(x):
        return torch.stack([math.prod((x[j] ** int(m[j]) for j in range(n)), start=x[0] * 0 + 1) for m in powers])

    last = jet(monomials, x, curve)[1][-1] / found.factor
    expected = torch.tensor([float(math.prod(math.factorial(i) for i in m)) * (m == index) for m in powers], dtype=F64)
    torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)
    assert len(exponents) >= 2


@pytest.mark.parametrize("index", INDICES)
def test_no_jet_of_lower_order_is_clean(index):
    found = tangents(index)
    assert list(solutions(found.orders, found.order)) == [index]
    for order in range(sum(index), found.order):
        for orders in itertools.permutations(range(1, order + 1), len(index)):
            if sum(m * p for m, p in zip(index, orders, strict=True)) == order:
                assert len(list(solutions(orders, order))) > 1


def test_published_jets():
    assert prefactor((2, 1), (2, 3)) == 105
    assert prefactor((1, 1), (2, 3)) == 10
    assert prefactor((3, 1), (3, 4)) == 200200
    assert list(solutions((3, 4), 13)) == [(3, 1)]
    # the 9-jet that is published for u_xxxy has the factor 1260, and mixes it with u_yyy
    assert prefactor((3, 1), (2, 3)) == 1260
    assert sorted(solutions((2, 3), 9)) == [(0, 3), (3, 1)]


@pytest.mark.parametrize("index", [(), (0, 1), (1.0,), (True,)])
def test_wrong_indices(index):
    with pytest.raises(ValueError, match="tangents: index must be a tuple of integers >= 1"):
        tangents(index)
