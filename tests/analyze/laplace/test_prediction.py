import math

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, jacobian, squared_error
from frechet.analyze import draw, laplace, predict
from frechet.errors import NonFinite
from frechet.objective.criteria import binary_cross_entropy, poisson

F64 = torch.float64
STRUCTURES = ("full", "kron", "ekfac", "diagonal", "low_rank")


def inputs(n=20, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(outputs=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def posterior(criterion, structure="full", outputs=2, **given):
    X = inputs()
    y = {
        "squared_error": X[:, :1].expand(-1, outputs).clone(),
        "cross_entropy": (X[:, 0] > 0).long(),
        "binary": (X[:, :1] > 0).double().expand(-1, outputs),
        "poisson": (X[:, :1] > 0).double().expand(-1, outputs),
    }[criterion]
    made = {"cross_entropy": cross_entropy, "binary": binary_cross_entropy, "poisson": poisson}
    criterion = made.get(criterion, squared_error)()
    objective = Objective(network(outputs), criterion, [(X, y)])
    return laplace(objective, structure=structure, prior_precision=0.5, rank=9, **given)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("mean", ["point", "newton"])
def test_linearized_outputs_are_those_of_the_dense_jacobian(structure, mean):
    found = posterior("squared_error", structure, mean=mean, noise=0.3)
    X = inputs(7, seed=1)
    model = found.problem.objective.model
    J = jacobian(Objective(model, squared_error(), [(X, torch.zeros(7, 2, dtype=F64))])).dense().view(7, 2, -1)
    expected = torch.einsum("mcn,nk,mdk->mcd", J, found.covariance.dense(), J)
    with torch.no_grad():
        center = model(X) + J @ (found.mean - found.problem.point)
    told = predict(found, X)
    torch.testing.assert_close(told.covariance, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(told.outputs, center, rtol=1e-10, atol=1e-12)
    both = (expected.diagonal(dim1=1, dim2=2) + 0.09).sqrt()
    torch.testing.assert_close(told.standard_deviation, both, rtol=1e-10, atol=1e-12)
    assert told.probabilities is None


@pytest.mark.parametrize("structure", STRUCTURES)
def test_draws_have_the_covariance_of_the_posterior(structure):
    found = posterior("squared_error", structure)
    s, prior = 1 / (2 * found.noise**2), found.prior_precision
    R = found.problem.curvature.root(s, prior).dense()
    torch.testing.assert_close(R @ R.T, found.covariance.dense(), rtol=1e-9, atol=1e-11)
    space = found.problem.curvature.domain
    z = space.random(range(4), 0, "gaussian")
    torch.testing.assert_close(draw(found, 4, seed=0), found.mean[:, None] + R @ z, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(draw(found, 2, seed=0), draw(found, 4, seed=0)[:, :2])


def test_low_rank_draws_follow_a_prior_of_each_parameter():
    X = inputs()
    objective = Objective(network(), squared_error(), [(X, X[:, :2].clone())])
    prior = torch.logspace(-1, 1, objective.space.dim, dtype=F64)
    found = laplace(objective, structure="low_rank", rank=6, prior_precision=prior)
    R = found.problem.curvature.root(0.5, prior).dense()
    torch.testing.assert_close(R @ R.T, found.covariance.dense(), rtol=1e-9, atol=1e-11)


def test_sampled_outputs_of_a_linear_model_are_the_linearized_ones():
    X = inputs()
    torch.manual_seed(0)
    objective = Objective(nn.Linear(3, 2).double(), squared_error(), [(X, X[:, :2].clone())])
    found = laplace(objective, structure="full", prior_precision=0.5, mean="newton")
    one, many = predict(found, X), predict(found, X, how="sampled", samples=4000, seed=0)
    error = (one.covariance.diagonal(dim1=1, dim2=2) / 4000).sqrt()
    assert float(((one.outputs - many.outputs) / error).abs().max()) < 4.5  # 40 numbers
    torch.testing.assert_close(one.covariance, many.covariance, rtol=0.15, atol=0.01)


@pytest.mark.parametrize("link", ["probit", "mc"])
def test_softmax_probabilities_are_near_those_of_very_many_draws(link):
    found = posterior("cross_entropy", outputs=3)
    X = inputs(6, seed=2)
    told = predict(found, X, link=link, samples=4000, seed=1)
    z = torch.randn(200_000, 6, 3, dtype=F64, generator=torch.Generator().manual_seed(5))
    L = torch.linalg.cholesky(told.covariance + 1e-12 * torch.eye(3, dtype=F64))
    true = (told.outputs + torch.einsum("mij,smj->smi", L, z)).softmax(2).mean(0)
    assert float((told.probabilities.sum(1) - 1).abs().max()) < 1e-12
    assert float((told.probabilities - true).abs().max()) < {"probit": 0.05, "mc": 0.03}[link]


def test_logistic_probabilities_are_integrals():
    found = posterior("binary")
    X = inputs(5, seed=3)
    told = predict(found, X)
    assert told.link == "quadrature"
    variance = told.covariance.diagonal(dim1=1, dim2=2)
    for m, v, p in zip(told.outputs.flatten(), variance.flatten(), told.probabilities.flatten(), strict=True):
        z = torch.linspace(-12, 12, 20_001, dtype=F64)  # the trapezoidal rule converges geometrically here
        weights = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * float(z[1] - z[0])
        assert float(p) == pytest.approx(float((torch.sigmoid(m + v.sqrt() * z) * weights).sum()), abs=1e-8)
    near = predict(found, X, link="probit").probabilities
    assert float((near - told.probabilities).abs().max()) < 0.02


def test_a_class_axis_in_the_middle_is_followed():
    X = torch.randn(8, 3, dtype=F64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 4))).double()  # (examples, classes, places)
    y = torch.zeros(8, 4, dtype=torch.long)
    found = laplace(Objective(model, cross_entropy(class_dim=1), [(X, y)]), prior_precision=1.0)
    for given in ({}, {"link": "mc", "seed": 0}, {"how": "sampled", "seed": 0}):
        shares = predict(found, X, **given).probabilities
        torch.testing.assert_close(shares.sum(1), torch.ones(8, 4, dtype=F64))


def test_regression_intervals_cover():
    """Data drawn from the model that the posterior is of: 95 % of new observations lie in the intervals."""
    g = torch.Generator().manual_seed(0)
    inside = []
    for _ in range(60):
        w = torch.randn(4, 1, generator=g, dtype=F64)
        X, new = torch.randn(12, 4, generator=g, dtype=F64), torch.randn(40, 4, generator=g, dtype=F64)
        y, unseen = (Z @ w + 0.5 * torch.randn(len(Z), 1, generator=g, dtype=F64) for Z in (X, new))
        objective = Objective(nn.Linear(4, 1, bias=False).double(), squared_error(), [(X, y)])
        found = laplace(objective, structure="full", prior_precision=1.0, noise=0.5, mean="newton")
        told = predict(found, new)
        inside.append(((unseen - told.outputs).abs() <= 1.959964 * told.standard_deviation).double().mean())
    share = torch.stack(inside)
    error = float(share.std()) / math.sqrt(len(share))
    assert abs(float(share.mean()) - 0.95) < 3.3 * error


def test_models_that_take_dicts_and_convolutions():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

        def forward(self, images):
            return self.head(self.conv(images).tanh().mean((2, 3)))

    X = torch.randn(9, 1, 5, 5, dtype=F64)
    torch.manual_seed(0)
    data = [{"images": X, "labels": (X.mean((1, 2, 3)) > 0).long()}]
    objective = Objective(Net().double(), cross_entropy(), data)
    for structure in ("full", "kron"):
        found = laplace(objective, structure=structure, prior_precision=1.0)
        told = predict(found, {"images": X})
        J = jacobian(objective).dense().view(9, 2, -1)
        expected = torch.einsum("mcn,nk,mdk->mcd", J, found.covariance.dense(), J)
        torch.testing.assert_close(told.covariance, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("criterion", "given", "said"),
    [
        ("squared_error", {"how": "glm"}, "how must be"),
        ("squared_error", {"how": "sampled"}, "seed must be given"),
        ("squared_error", {"link": "probit"}, "link must be left out"),
        ("poisson", {"link": "probit"}, "link must be left out"),
        ("cross_entropy", {"link": "mc"}, "seed must be given"),
        ("cross_entropy", {"link": "quadrature"}, "logistic outputs alone"),
        ("cross_entropy", {"link": "bridge"}, "link must be 'probit'"),
        ("cross_entropy", {"link": "mc", "seed": 0, "samples": 1}, "samples must be at least 2"),
        ("cross_entropy", {"how": "sampled", "link": "mc", "seed": 0}, "average over the samples"),
    ],
)
def test_what_does_not_fit_is_said(criterion, given, said):
    with pytest.raises(ValueError, match=said):
        predict(posterior(criterion), inputs(), **given)


def test_inputs_that_give_no_number_are_named():
    X = inputs(4)
    X[2, 0] = math.nan
    with pytest.raises(NonFinite, match="example 2"):
        predict(posterior("squared_error"), X)


def test_no_inputs_are_refused():
    for given in ({}, {"how": "sampled", "seed": 0}):
        with pytest.raises(ValueError, match="at least one example"):
            predict(posterior("squared_error"), inputs(4)[:0], **given)
