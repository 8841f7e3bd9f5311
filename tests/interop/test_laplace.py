import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from frechet import Objective, cross_entropy, squared_error
from frechet.analyze import laplace, predict
from frechet.interop import laplace_backend

F64 = torch.float64


@pytest.fixture
def peer():
    """laplace-torch, whose own imports and calls warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("laplace", exc_type=ImportError)


class Gaps(nn.Module):
    """An embedding, a layer that is used twice, a normalization."""

    def __init__(self):
        super().__init__()
        self.table, self.body = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.head(self.norm(self.body(self.body(self.table(tokens)).tanh())).mean(1))


def network(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def classes(n=21):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=g, dtype=F64), torch.randint(0, 3, (n,), generator=g)


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
@pytest.mark.parametrize("structure", ["full", "diag", "kron"])
@pytest.mark.parametrize("layers", ["all", "last_layer"])
def test_its_posterior_is_ours(peer, likelihood, structure, layers):
    model, (X, y) = network(), classes()
    made = cross_entropy() if likelihood == "classification" else squared_error()
    y = y if likelihood == "classification" else torch.sin(X[:, :3])
    loader = DataLoader(TensorDataset(X, y), batch_size=8)
    noise = {} if likelihood == "classification" else {"sigma_noise": 0.4}
    theirs = peer.Laplace(
        model, likelihood, subset_of_weights=layers, hessian_structure=structure, backend=laplace_backend(),
        prior_precision=0.6, **noise,
    )  # fmt: skip
    theirs.fit(loader)
    own = {"diag": "diagonal"}.get(structure, structure)
    ours = laplace(
        Objective(model, made, list(loader)), structure=own, prior_precision=0.6, joint=False,
        noise=0.4 if noise else 1.0, restrict="2.*" if layers == "last_layer" else None,
    )  # fmt: skip
    assert float(theirs.log_marginal_likelihood()) == pytest.approx(ours.evidence, rel=1e-8)
    new = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    told = predict(ours, new)
    if likelihood == "classification":
        torch.testing.assert_close(theirs(new, link_approx="probit"), told.probabilities, rtol=1e-7, atol=1e-9)
    else:
        mean, covariance = theirs(new)
        torch.testing.assert_close(mean, told.outputs, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(covariance, told.covariance, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("structure", ["full", "diag", "kron"])
def test_layers_that_its_own_backends_do_not_know(peer, structure):
    torch.manual_seed(0)
    model = Gaps().double()
    tokens = torch.randint(0, 7, (12, 5))
    y = torch.randint(0, 3, (12,))
    loader = DataLoader(TensorDataset(tokens, y), batch_size=12)
    theirs = peer.Laplace(
        model, "classification", subset_of_weights="all", hessian_structure=structure, backend=laplace_backend(),
        prior_precision=0.6,
    )  # fmt: skip
    theirs.fit(loader)
    own = {"diag": "diagonal"}.get(structure, structure)
    ours = laplace(Objective(model, cross_entropy(), list(loader)), structure=own, prior_precision=0.6, joint=False)
    assert float(theirs.log_marginal_likelihood()) == pytest.approx(ours.evidence, rel=1e-8)


def test_a_model_that_takes_a_mapping(peer):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, batch):
            return self.layer(batch["input_ids"])

    torch.manual_seed(0)
    model, (X, y) = Net().double(), classes()
    backend = laplace_backend()(model, "classification")
    _, H = backend.full({"input_ids": X}, y)
    plain = laplace_backend()(model.layer, "classification")
    torch.testing.assert_close(H, plain.full(X, y)[1])
    _, factors = backend.kron({"input_ids": X}, y, len(y))
    for ours, theirs in zip(factors.kfacs, plain.kron(X, y, len(y))[1].kfacs, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_without_laplace_torch_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "laplace.curvature", None)
    with pytest.raises(ImportError, match="laplace-torch must be installed"):
        laplace_backend()
