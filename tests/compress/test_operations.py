import itertools

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, squared_error
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
    with pytest.raises(
        ValueError, match=r"rows must be weights of Linear, Conv or Embedding layers that are called, got '0\.bias'"
    ):
        bit_operations(o, table)


class Shared(nn.Module):
    """Two layers with one weight, an embedding tied to the layer of logits, and a layer that is never called."""

    def __init__(self, tied):
        super().__init__()
        self.tokens, self.a, self.b = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.logits, self.idle = nn.Linear(4, 7, bias=False), nn.Linear(4, 4)
        if tied:
            self.b.weight, self.logits.weight = self.a.weight, self.tokens.weight

    def forward(self, x):
        return self.logits(self.b(self.a(self.tokens(x))))


@pytest.mark.parametrize("tied", [False, True])
def test_layers_with_one_weight_are_counted_together(tied):
    torch.manual_seed(0)
    tokens = torch.randint(0, 7, (6, 5))
    o = Objective(Shared(tied), cross_entropy(class_dim=-1), [(tokens, tokens)])
    table = sensitivity(o, (2,), weights=["tokens.weight", "a.weight", "b.weight", "logits.weight"])
    counts = dict(zip(table.names, (bit_operations(o, table, activation_bits=1)[:, 0] / 2).tolist(), strict=True))
    assert counts == (
        {"tokens.weight": 5 * 28, "a.weight": 2 * 5 * 16}
        if tied
        else {"tokens.weight": 0, "a.weight": 5 * 16, "b.weight": 5 * 16, "logits.weight": 5 * 28}
    )
    with pytest.raises(ValueError, match=r"layers that are called, got 'idle\.weight'; leave it out"):
        bit_operations(o, sensitivity(o, (2,), weights=["idle.weight"]))


@pytest.mark.parametrize(
    ("layer", "shape", "count"),
    [
        (lambda: nn.Conv2d(4, 8, 3, groups=2), (4, 6, 6), 8 * 16 * 2 * 9),
        (lambda: nn.Conv1d(4, 8, 3, stride=2), (4, 7), 8 * 3 * 4 * 3),
        (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 3, 3), 36 * 3 * 4),
        (lambda: nn.ConvTranspose1d(4, 6, 3), (4, 5), 20 * 6 * 3),
        (lambda: nn.Linear(4, 3), (5, 4), 5 * 12),
    ],
)
def test_each_kind_of_layer_counts_its_multiplications(layer, shape, count):
    torch.manual_seed(0)
    net = nn.Sequential(layer(), nn.Flatten())
    X = torch.randn(3, *shape)
    o = Objective(net, squared_error(), [(X, torch.zeros_like(net(X).detach()))])
    assert float(bit_operations(o, sensitivity(o, (2,)), activation_bits=1)[0, 0]) == 2 * count


def test_several_data_terms_are_refused():
    o = objective()
    with pytest.raises(ValueError, match="bit_operations: objective must have one data term, got 2"):
        bit_operations(o + o, sensitivity(o, (2,)))
