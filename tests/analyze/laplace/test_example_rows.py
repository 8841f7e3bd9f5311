import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, fisher, jacobian
from frechet.analyze import laplace, predict
from frechet.errors import UnusableObjective

F64 = torch.float64


class Bare(nn.Module):
    """A parameter in no layer, and a weight that is used twice in different ways."""

    def __init__(self, tied=False):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.rand(4)) if not tied else None
        self.tied = tied

    def forward(self, x):
        x = self.first(x).tanh()
        x = x @ self.first.weight if self.tied else x * self.scale
        return self.last(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.last = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.cell(x.view(len(x), 2, 2))[0][:, -1])


class Tokens(nn.Module):
    """Embedding, normalization, a layer that is called twice, positions."""

    def __init__(self):
        super().__init__()
        self.table, self.body = nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 4)
        self.norm, self.last = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.norm(self.body(self.body(self.table(x)).tanh())).mean(1))


def floats(n=9):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=F64)


MODELS = {
    "layers": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), floats),
    "a bare parameter": (Bare, floats),
    "a weight used elsewhere": (lambda: Bare(tied=True), floats),
    "recurrent": (Recurrent, floats),
    "tokens": (Tokens, lambda n=9: torch.randint(0, 5, (n, 4), generator=torch.Generator().manual_seed(0))),
    "grouped convolutions": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (4, 1)), nn.Conv1d(4, 4, 3, padding=1, groups=2), nn.GroupNorm(2, 4), nn.Flatten(),
            nn.Linear(4, 3),
        ),
        floats,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_curvature_and_predictions_are_dense_ones(name):
    made, inputs = MODELS[name]
    torch.manual_seed(0)
    model, X = made().double(), inputs()
    objective = Objective(model, cross_entropy(), [(X[:4], torch.arange(4) % 3), (X[4:], torch.arange(5) % 3)])
    n = objective.space.dim
    expected = 9 * fisher(objective, route="reverse").dense() + torch.eye(n, dtype=F64)
    full = laplace(objective, structure="full", prior_precision=1.0)
    torch.testing.assert_close(full.precision.dense(), expected, rtol=1e-9, atol=1e-10)
    diagonal = laplace(objective, structure="diagonal", prior_precision=1.0)
    torch.testing.assert_close(diagonal.precision.dense(), expected.diagonal().diag(), rtol=1e-9, atol=1e-10)
    J = jacobian(objective, route="reverse").dense().view(9, 3, n)
    told = predict(full, X)
    torch.testing.assert_close(
        told.covariance, torch.einsum("mcn,nk,mdk->mcd", J, full.covariance.dense(), J), rtol=1e-8, atol=1e-10
    )


class Coupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0))


def test_examples_that_depend_on_each_other_are_refused():
    objective = Objective(Coupled().double(), cross_entropy(), [(floats(), torch.arange(9) % 3)])
    for structure in ("full", "diagonal"):
        with pytest.raises(UnusableObjective, match="couples the examples"):
            laplace(objective, structure=structure, prior_precision=1.0)


def test_few_rows_at_a_time_give_the_same(monkeypatch):
    from frechet.analyze import _single_examples

    torch.manual_seed(0)
    model, X = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), floats()
    objective = Objective(model, cross_entropy(), [(X, torch.arange(9) % 3)])
    whole = laplace(objective, structure="full", prior_precision=1.0)
    told = predict(whole, X)
    monkeypatch.setattr(_single_examples, "CHUNK_BYTES", 8 * objective.space.dim * 4)
    parts = laplace(objective, structure="full", prior_precision=1.0)
    torch.testing.assert_close(parts.precision.dense(), whole.precision.dense())
    torch.testing.assert_close(predict(parts, X).covariance, told.covariance)
