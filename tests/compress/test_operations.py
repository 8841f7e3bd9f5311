import itertools

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy
from frechet.compress import allocate_bits, bit_operations, sensitivity


def objective():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3), nn.LayerNorm(3))
    return Objective(net, cross_entropy(), [(torch.randn(7, 1, 8, 8), torch.randint(0, 3, (7,))) for _ in range(2)])


def test_multiplications_are_counted_for_one_example():
    table = sensitivity(objective(), (2, 4, 8))
    convolution, linear = 4 * 36 * 9, 144 * 3
    expected = torch.tensor([[convolution], [linear]], dtype=torch.float64)
    bits = torch.tensor(table.bits, dtype=torch.float64)
    assert torch.equal(bit_operations(objective(), table), expected * bits**2)
    assert torch.equal(bit_operations(objective(), table, activation_bits=8), expected * bits * 8)


def test_a_plan_keeps_a_budget_of_bit_operations_and_one_of_bytes():
    o = objective()
    table = sensitivity(o, (2, 4, 8))
    costs = bit_operations(o, table)
    plan = allocate_bits(table, 250, limits=[(costs, 1e5)])
    fitting = [
        float(table.predicted[0, i] + table.predicted[1, j])
        for i, j in itertools.product(range(3), repeat=2)
        if 36 * table.bits[i] / 8 + 432 * table.bits[j] / 8 <= 250 and float(costs[0, i] + costs[1, j]) <= 1e5
    ]
    assert 0 < len(fitting) < 9
    assert plan.predicted == pytest.approx(min(fitting))
    assert plan.costs[0] <= 250
    assert plan.costs[1] <= 1e5


def test_a_row_that_is_no_layer_is_named():
    o = objective()
    table = sensitivity(o, (2, 4), weights="*")
    with pytest.raises(ValueError, match=r"rows must be weights of Linear and Conv layers, got '0\.bias'"):
        bit_operations(o, table)
