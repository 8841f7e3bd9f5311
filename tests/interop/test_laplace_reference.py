"""The backend for laplace-torch against posteriors by hand, where laplace-torch is not installed as well.

A stand-in of the two classes that the backend builds on, and dense posteriors that share no code with the library:
Jacobians by `jacrev`, factors by loops over examples, evidence by determinants.
"""

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from frechet import Objective, cross_entropy, squared_error
from frechet.analyze import laplace, predict
from frechet.interop import laplace_backend

F64, NOISE, PRIOR = torch.float64, 0.4, 0.6


class StandIn:
    """What laplace-torch's own base class sets."""

    def __init__(self, model, likelihood):
        self.model, self.likelihood, self.subnetwork_indices = model, likelihood, None
        classes = likelihood == "classification"
        self.lossfunc = nn.CrossEntropyLoss(reduction="sum") if classes else nn.MSELoss(reduction="sum")
        self.factor = 1.0 if classes else 0.5
        self.params = [p for p in model.parameters() if p.requires_grad]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    package, curvature, utils = (ModuleType(n) for n in ("laplace", "laplace.curvature", "laplace.utils"))
    made: Any = curvature
    made.GGNInterface = StandIn
    made = utils
    made.Kron = list
    for module in (package, curvature, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def problem(likelihood):
    g = torch.Generator().manual_seed(0)
    X = torch.randn(21, 4, generator=g, dtype=F64)
    y = torch.randint(0, 3, (21,), generator=g) if likelihood == "classification" else torch.sin(X[:, :3])
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), X, y


def jacobians(model, X):
    """The outputs, and their Jacobians ``(examples, outputs, n)``."""
    named = {n: p.detach() for n, p in model.named_parameters()}
    J = vmap(jacrev(lambda q, x: functional_call(model, q, (x[None],))[0]), (None, 0))(named, X)
    return model(X).detach(), torch.cat([J[n].flatten(2) for n in named], 2)


def output_hessians(f, likelihood):
    if likelihood == "regression":
        return torch.eye(f.shape[1], dtype=F64).expand(len(f), -1, -1)
    p = f.softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None]


def by_hand(model, X, likelihood, structure):
    """The curvature of the log-likelihood, without the noise."""
    f, J = jacobians(model, X)
    C = output_hessians(f, likelihood)
    H = torch.einsum("nap,nab,nbq->pq", J, C, J)
    if structure == "full":
        return H
    if structure == "diag":
        return H.diagonal().diag()
    blocks, first = [], model[0](X)
    inputs = {"0": X, "2": torch.tanh(first).detach()}
    back = {"2": torch.eye(3, dtype=F64).expand(len(X), 3, 3)}
    back["0"] = back["2"] @ model[2].weight.detach() * (1 - inputs["2"].square())[:, None]
    for name in ("0", "2"):
        B = sum(b.T @ c @ b for b, c in zip(back[name], C, strict=True))
        A = sum(torch.outer(a, a) for a in inputs[name]) / len(X)
        blocks += [torch.kron(B, A), B]
    return torch.block_diag(*blocks)


def summed(backend, X, y, structure):
    """What a backend gives for two batches, put together as laplace-torch does."""
    parts = [(X[:8], y[:8]), (X[8:], y[8:])]
    if structure == "full":
        return sum(backend.full(a, b)[1] for a, b in parts)
    if structure == "diag":
        return sum(backend.diag(a, b)[1] for a, b in parts).diag()
    factors = [backend.kron(a, b, len(X))[1] for a, b in parts]
    pairs = [[sum(M) for M in zip(*both, strict=True)] for both in zip(*factors, strict=True)]
    return torch.block_diag(*(torch.kron(*p) if len(p) == 2 else p[0] for p in pairs))


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
@pytest.mark.parametrize("structure", ["full", "diag", "kron"])
def test_curvature_evidence_and_predictions_are_those_by_hand(likelihood, structure):
    model, X, y = problem(likelihood)
    H = by_hand(model, X, likelihood, structure)
    backend = laplace_backend()(model, likelihood)
    torch.testing.assert_close(summed(backend, X, y, structure), H, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(backend.jacobians(X)[0], jacobians(model, X)[1], rtol=1e-9, atol=1e-11)
    regression = likelihood == "regression"
    s = 1 / NOISE**2 if regression else 1.0
    P = s * H + PRIOR * torch.eye(len(H), dtype=F64)
    f, theta = model(X).detach(), torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    if regression:
        log_likelihood = float(torch.distributions.Normal(f, NOISE).log_prob(y).sum())
    else:
        log_likelihood = -float(nn.functional.cross_entropy(f, y, reduction="sum"))
    evidence = log_likelihood - PRIOR / 2 * float(theta @ theta)
    evidence += (len(H) * math.log(PRIOR) - float(torch.logdet(P))) / 2
    ours = laplace(
        Objective(model, squared_error() if regression else cross_entropy(), [(X[:8], y[:8]), (X[8:], y[8:])]),
        structure="diagonal" if structure == "diag" else structure, prior_precision=PRIOR, joint=False,
        noise=NOISE if regression else 1.0,
    )  # fmt: skip
    assert ours.evidence == pytest.approx(evidence, rel=1e-9)
    new = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    mean, J = jacobians(model, new)
    covariance = J @ torch.linalg.inv(P) @ J.mT
    told = predict(ours, new)
    torch.testing.assert_close(told.covariance, covariance, rtol=1e-8, atol=1e-10)
    if not regression:
        variance = covariance.diagonal(dim1=1, dim2=2)
        probit = (mean / (1 + math.pi / 8 * variance).sqrt()).softmax(1)
        torch.testing.assert_close(told.probabilities, probit, rtol=1e-8, atol=1e-10)
