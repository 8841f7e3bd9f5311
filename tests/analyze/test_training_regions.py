"""Regions of a training Jacobian: of a quadratic in closed form, null directions of a network counted by hand."""

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, squared_error
from frechet.analyze import adam_update, sgd_update, training_jacobian, training_regions, trajectory

DOUBLE = torch.float64


def quadratic(curvatures):
    """L = 1/2 sum_i h_i w_i^2, by rows of a least-squares problem; h_i = 0 is a weight that no row sees."""
    h = torch.tensor(curvatures, dtype=DOUBLE)
    n = len(h)
    model = nn.Linear(n, 1, bias=False).double()
    X = torch.diag((h * n / 2).sqrt())
    return Objective(model, squared_error(), [(X, torch.zeros(n, 1, dtype=DOUBLE))])


@pytest.mark.parametrize("update", [sgd_update(0.5), sgd_update(0.5, momentum=0.3)])
def test_of_a_quadratic_they_are_those_of_its_eigenvalues(update):
    objective = quadratic([0.0, 0.0, 1e-4, 0.012, 1.0, 9.0])
    rows = [torch.arange(6)] * 8
    found = training_regions(trajectory(objective, rows, update))
    assert found.trivial == 2
    assert (found.chaotic, found.bulk, found.stable, found.between) == (1, 1, 1, 1)
    dense = training_jacobian(trajectory(objective, rows, update)).dense()
    expected = torch.linalg.svdvals(dense)
    assert torch.allclose(torch.cat([found.values, torch.ones(2, dtype=DOUBLE)]).sort().values, expected.sort().values)
    assert torch.allclose(found.alignments, torch.ones(4, dtype=DOUBLE))
    assert float((found.null[2:]).abs().max()) < 1e-7


def test_null_directions_of_a_network_are_dark_inputs_and_shifts_of_logits():
    torch.manual_seed(0)
    X, y = torch.randn(30, 4, dtype=DOUBLE), torch.randint(0, 3, (30,))
    X[:, 1] = 0
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    objective = Objective(model, cross_entropy(), [(X, y)])
    rows = [torch.randperm(30)[:10] for _ in range(6)]
    for update in (sgd_update(0.5), adam_update(0.01, eps=1e-3)):
        found = training_regions(trajectory(objective, rows, update))
        assert found.trivial == 3 + 4  # a dark input for each hidden unit; a shift by each hidden unit and the bias
        names = objective.space.unflatten(found.null[:, 0])
        assert set(names) == {"0.weight", "0.bias", "2.weight", "2.bias"}
        J = training_jacobian(trajectory(objective, rows, update))
        if update.name == "SGD":
            assert torch.allclose(J @ found.null, found.null, atol=1e-7)
            assert torch.allclose(J.T @ found.null, found.null, atol=1e-7)
        assert found.trivial + len(found.values) == objective.space.dim
        assert found.chaotic + found.bulk + found.stable + found.between == len(found.values)


def test_bad_arguments():
    objective = quadratic([1.0, 2.0])
    run = trajectory(objective, [torch.arange(2)], sgd_update(0.1))
    with pytest.raises(ValueError, match="needs 0 < width <= margin < 1"):
        training_regions(run, width=0.2)
    single = Objective(nn.Linear(2, 1), squared_error(), [(torch.eye(2), torch.zeros(2, 1))])
    with pytest.raises(ValueError, match="must be in float64"):
        training_regions(trajectory(single, [torch.arange(2)], sgd_update(0.1)))
    large = Objective(
        nn.Linear(4000, 1).double(),
        squared_error(),
        [(torch.ones(1, 4000, dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE))],
    )
    with pytest.raises(ValueError, match="needs at most 3000 parameters, got 4001"):
        training_regions(trajectory(large, [torch.arange(1)], sgd_update(0.1)))
