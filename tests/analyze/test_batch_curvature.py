"""The largest eigenvalue of a batch's Hessian: the measurement against dense ones, and what is predicted for it."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from frechet import Objective, cross_entropy, squared_error
from frechet.analyze import batch_curvature


def softmax_regression():
    """Softmax regression on digits in 20 principal components, trained, and the Hessian on any examples."""
    X, y = load_digits(return_X_y=True)
    X, y = X[:600] / 16, torch.from_numpy(y[:600])
    X = X - X.mean(0)
    X = torch.from_numpy(X @ np.linalg.svd(X, full_matrices=False)[2][:20].T)
    model = nn.Linear(20, 10, bias=False).double()
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
    p = model(X).softmax(1).detach()
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]

    def dense(rows):
        return torch.einsum("nck,ni,nj->cikj", S[rows], X[rows], X[rows]).reshape(200, 200) / len(rows)

    return Objective(model, cross_entropy(), [(X[:400], y[:400]), (X[400:], y[400:])]), dense


@pytest.fixture(scope="module")
def found():
    objective, dense = softmax_regression()
    sizes = [16, 32, 64, 128, 256]
    return batch_curvature(objective, sizes, seed=0, batches=12, top=20, probes=16), dense, sizes


def test_the_measurement_agrees_with_dense_hessians_of_other_draws(found):
    result, dense, _ = found
    draw = torch.Generator().manual_seed(7)
    for row in result.batches:
        tops = torch.stack(
            [torch.linalg.eigvalsh(dense(torch.randperm(600, generator=draw)[: row.batch_size]))[-1] for _ in range(40)]
        )
        error = (float(row.measured.standard_error) ** 2 + float(tops.var()) / 40) ** 0.5
        assert abs(float(row.measured) - float(tops.mean())) < 3.5 * error
    assert result.full == pytest.approx(float(torch.linalg.eigvalsh(dense(torch.arange(600)))[-1]), rel=1e-4)


def test_the_prediction_is_within_fifteen_percent_where_it_says_that_it_is_valid(found):
    """Dense means of many draws; one variance for all entries of the noise misses by 47 % at 32 examples."""
    result, dense, _ = found
    draw = torch.Generator().manual_seed(8)
    valid = [row for row in result.batches if row.valid]
    assert [row.batch_size for row in valid] == [32, 64, 128, 256] or len(valid) == 5
    for row in valid:
        tops = [
            float(torch.linalg.eigvalsh(dense(torch.randperm(600, generator=draw)[: row.batch_size]))[-1])
            for _ in range(80)
        ]
        assert row.predicted == pytest.approx(np.mean(tops), rel=0.15), row.batch_size


def test_rates_grow_with_the_batch_in_proportion_below_the_critical_size_and_saturate_above(found):
    result, _, _ = found
    rates = [row.largest_rate().value for row in result.batches]
    assert rates == sorted(rates)
    assert 16 < result.critical < 128
    at_critical = result.full + result.spread * (1 - result.critical / 600) / result.critical
    assert at_critical == pytest.approx(2 * result.full)
    assert rates[-1] < 2 / result.full
    for row in result.batches:
        assert row.least_damping(0.1) == pytest.approx(0.05 * float(row.measured))
    assert "batch size" in result._table()[0]


def test_examples_that_are_all_alike_have_no_spread():
    X = torch.ones(8, 2, dtype=torch.float64)
    objective = Objective(nn.Linear(2, 1).double(), squared_error(), [(X, torch.zeros(8, 1).double())])
    result = batch_curvature(objective, [1, 4], seed=0, batches=3)
    assert result.spread == pytest.approx(0.0, abs=1e-12)
    for row in result.batches:
        assert float(row.measured) == pytest.approx(result.full)
        assert row.predicted == pytest.approx(result.full)


def test_bad_arguments():
    objective = Objective(nn.Linear(2, 1), squared_error(), [(torch.eye(2), torch.zeros(2, 1))])
    with pytest.raises(ValueError, match="batches must be at least 2"):
        batch_curvature(objective, [1], seed=0, batches=1)
    with pytest.raises(ValueError, match="batch_size must lie between 1 and the 2 examples, got 3"):
        batch_curvature(objective, [3], seed=0)
    norm = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    coupled = Objective(norm, squared_error(), [(torch.eye(2), torch.zeros(2, 2))])
    with pytest.raises(Exception, match="normalizes by the statistics of the batch"):
        batch_curvature(coupled, [1], seed=0)
