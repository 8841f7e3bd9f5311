import math

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, fisher, l2, minimize, squared_error, subsample
from frechet.analyze import laplace
from frechet.objective import Penalty
from frechet.objective.criteria import binary_cross_entropy, custom, gaussian, huber, poisson

F64 = torch.float64
EXACT = ("full", "kron", "ekfac", "low_rank")  # of a linear model


def regression(n=30, outputs=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    X, y = torch.randn(n, 4, generator=g, dtype=F64), torch.randn(n, outputs, generator=g, dtype=F64)
    torch.manual_seed(seed)
    return nn.Linear(4, outputs).double(), X, y


def in_batches(X, y, at=11):
    return [(X[:at], y[:at]), (X[at:], y[at:])]


def rows_of(X, outputs):
    """The matrix that takes (weight, bias), flat, to the outputs of all examples."""
    wide = torch.cat([torch.kron(torch.eye(outputs, dtype=F64), x[None]) for x in X])
    return torch.cat([wide, torch.eye(outputs, dtype=F64).repeat(len(X), 1)], 1)


def exact(X, y, prior, center, noise):
    """Mean, covariance and log evidence of the linear-Gaussian model."""
    A = rows_of(X, y.shape[1])
    P = A.T @ A / noise**2 + prior.diag()
    mean = torch.linalg.solve(P, A.T @ y.reshape(-1) / noise**2 + prior * center)
    K = noise**2 * torch.eye(len(A), dtype=F64) + A @ (1 / prior).diag() @ A.T
    normal = torch.distributions.MultivariateNormal(A @ center, K)
    return mean, torch.linalg.inv(P), float(normal.log_prob(y.reshape(-1)))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("structure", EXACT)
def test_a_linear_gaussian_model_has_its_exact_posterior_at_any_point(structure, outputs):
    model, X, y = regression(outputs=outputs)
    n = 5 * outputs
    center = torch.linspace(-1, 1, n, dtype=F64)
    expected = exact(X, y, torch.full((n,), 0.3, dtype=F64), center, 0.7)
    found = laplace(
        Objective(model, squared_error(), in_batches(X, y)),
        structure=structure, prior_precision=0.3, prior_mean=center, noise=0.7, mean="newton", rank=n,
    )  # fmt: skip
    torch.testing.assert_close(found.mean, expected[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.covariance.dense(), expected[1], rtol=1e-10, atol=1e-10)
    assert found.evidence == pytest.approx(expected[2], rel=1e-10)
    torch.testing.assert_close(found.variance, expected[1].diagonal(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("structure", ["full", "low_rank"])
@pytest.mark.parametrize("mean", ["point", "newton"])
def test_a_prior_of_its_own_for_each_parameter(structure, mean):
    model, X, y = regression(outputs=2)
    prior = torch.logspace(-2, 2, 10, dtype=F64)
    zero = torch.zeros(10, dtype=F64)
    expected = exact(X, y, prior, zero, 1.0)
    x = expected[0] if mean == "point" else None  # the evidence at the point is exact at the posterior's mean
    objective = Objective(model, squared_error(), [(X, y)])
    found = laplace(objective, structure=structure, prior_precision=prior, mean=mean, rank=10, x=x)
    torch.testing.assert_close(found.mean, expected[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.covariance.dense(), expected[1], rtol=1e-9, atol=1e-10)
    assert found.evidence == pytest.approx(expected[2], rel=1e-9)
    assert (found.decrement < 1e-12) == (mean == "point")


def test_the_diagonal_is_exact_where_features_are_orthogonal():
    torch.manual_seed(0)
    X = torch.linalg.qr(torch.randn(20, 4, dtype=F64))[0]
    y, model = torch.randn(20, 1, dtype=F64), nn.Linear(4, 1, bias=False).double()
    found = laplace(
        Objective(model, squared_error(), [(X, y)]), structure="diagonal", prior_precision=2.0, mean="newton"
    )
    torch.testing.assert_close(found.variance, torch.full((4,), 1 / 3, dtype=F64), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.mean, (X.T @ y)[:, 0] / 3, rtol=1e-12, atol=1e-12)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def labels(X, classes=3):
    return torch.randint(0, classes, (len(X),), generator=torch.Generator().manual_seed(1))


CRITERIA = {
    "cross_entropy": (cross_entropy, lambda X: labels(X)),
    "binary": (binary_cross_entropy, lambda X: (X[:, :3] > 0).double()),
    "poisson": (poisson, lambda X: labels(X)[:, None].expand(-1, 3).double()),
    "squared_error": (squared_error, lambda X: X[:, :3].clone()),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_the_dense_curvature_is_the_fisher_matrix_of_the_sum(name):
    made, target = CRITERIA[name]
    X = torch.randn(17, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    objective = Objective(network(), made(), in_batches(X, target(X)))
    count = 17 if name == "cross_entropy" else 51
    s = 0.5 if name == "squared_error" else 1.0
    expected = s * count * fisher(objective).dense() + 0.5 * torch.eye(objective.space.dim, dtype=F64)
    for structure in ("full", "low_rank"):
        found = laplace(objective, structure=structure, prior_precision=0.5, rank=objective.space.dim)
        torch.testing.assert_close(found.precision.dense(), expected, rtol=1e-10, atol=1e-9)
    on_diagonal = laplace(objective, structure="diagonal", prior_precision=0.5).precision.dense()
    torch.testing.assert_close(on_diagonal.diagonal(), expected.diagonal(), rtol=1e-10, atol=1e-10)


def test_a_gaussian_with_learnt_variance_has_its_fisher_matrix():
    X, model = torch.randn(15, 4, dtype=F64), nn.Linear(4, 2).double()
    objective = Objective(model, gaussian(), [(X, X[:, :1].clone())])
    found = laplace(objective, structure="full", prior_precision=1.0)
    expected = 15 * fisher(objective).dense() + torch.eye(10, dtype=F64)
    torch.testing.assert_close(found.precision.dense(), expected, rtol=1e-10, atol=1e-10)


def test_a_restricted_posterior_is_that_of_the_last_layer():
    X = torch.randn(20, 4, dtype=F64)
    model, y = network(), labels(X)
    whole = laplace(Objective(model, cross_entropy(), [(X, y)]), structure="full", prior_precision=0.5)
    last = laplace(Objective(model, cross_entropy(), [(X, y)]), structure="full", prior_precision=0.5, restrict="2.*")
    assert last.mean.shape == (18,)
    torch.testing.assert_close(last.precision.dense(), whole.precision.dense()[25:, 25:])


@pytest.mark.parametrize(
    ("criterion", "noise"), [("squared_error", 1.0), ("squared_error", 0.3), ("cross_entropy", 1.0)]
)
def test_the_default_prior_is_that_of_the_penalty_so_that_the_minimum_is_the_mean(criterion, noise):
    X = torch.randn(25, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    made, target = CRITERIA[criterion]
    torch.manual_seed(0)
    objective = Objective(nn.Linear(4, 3).double(), made(), in_batches(X, target(X)), penalty=l2(0.02))
    x = minimize(objective, gtol=1e-12).x
    found = laplace(objective, structure="full", noise=noise, x=x)
    assert found.decrement < 1e-10
    count = 25 if criterion == "cross_entropy" else 75 / (2 * noise**2)
    torch.testing.assert_close(found.prior_precision, torch.full((15,), 0.02 * count, dtype=F64))


def test_a_penalty_enters_by_the_default_prior_alone():
    model, X, y = regression()
    with_penalty, without = (
        laplace(Objective(model, squared_error(), [(X, y)], penalty=p), structure="full", prior_precision=0.7)
        for p in (l2(3.0), None)
    )
    assert with_penalty.evidence == without.evidence
    assert with_penalty.decrement == without.decrement


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("structure", ["kron", "full"])
def test_the_default_prior_is_one_number_where_the_penalty_has_one(dtype, structure):
    X = torch.randn(25, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    objective = Objective(network().to(dtype), cross_entropy(), [(X, labels(X))], penalty=l2(0.0173))
    prior = laplace(objective, structure=structure).prior_precision
    assert bool((prior == prior[0]).all())
    assert float(prior[0]) == pytest.approx(25 * 0.0173, rel=1e-6)


def test_a_penalty_of_some_parameters_more_than_others_is_followed():
    def weighted(blocks):
        return sum((0.3 if n.endswith("bias") else 0.1) / 2 * p.square().sum() for n, p in blocks.items())

    X = torch.randn(25, 4, dtype=torch.float32)
    objective = Objective(network().float(), cross_entropy(), [(X, labels(X))], penalty=Penalty(weighted, convex=True))
    found = laplace(objective, joint=False)
    expected = 25 * found.problem.curvature.domain.vector({"*": 0.1, "*bias": 0.3})
    torch.testing.assert_close(found.prior_precision, expected, rtol=1e-6, atol=0)


def test_a_subsample_stands_for_the_population():
    model, X, y = regression(n=40)
    data = [(x[None], t[None]) for x, t in zip(X, y, strict=True)]
    part = subsample(data, 20, seed=0)
    found = laplace(Objective(model, squared_error(), part), structure="full", prior_precision=1.0)
    kept = [inputs for inputs, _ in part]
    A = rows_of(torch.cat(kept), 1)
    expected = A.T @ A * (40 / len(kept)) + torch.eye(5, dtype=F64)
    torch.testing.assert_close(found.precision.dense(), expected)


def test_single_precision_models_have_a_posterior_in_double():
    model, X, y = regression(outputs=2)
    double = laplace(Objective(model, squared_error(), [(X, y)]), prior_precision=0.5)
    single = laplace(Objective(model.float(), squared_error(), [(X.float(), y.float())]), prior_precision=0.5)
    assert single.mean.dtype == F64
    assert single.evidence == pytest.approx(double.evidence, rel=1e-5)
    torch.testing.assert_close(single.variance, double.variance, rtol=1e-4, atol=1e-6)


def test_training_afterwards_changes_nothing():
    model, X, y = regression()
    found = laplace(Objective(model, squared_error(), [(X, y)]), structure="full", prior_precision=0.5)
    before = found.covariance.dense()
    with torch.no_grad():
        model.weight.add_(1.0)
    torch.testing.assert_close(found.covariance.dense(), before, rtol=0, atol=0)


# --- sentences --------------------------------------------------------------------------------------------------------


def objective_of(criterion=None, penalty=None, weight=1.0):
    model, X, y = regression()
    made = Objective(model, criterion or squared_error(), [(X, y)], penalty=penalty)
    return made if weight == 1.0 else weight * made


def few():
    """Fewer examples than parameters."""
    model, X, y = regression(n=2)
    return Objective(model, squared_error(), [(X, y)])


def dropping():
    X = torch.randn(20, 4, dtype=F64)
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    return Objective(model, cross_entropy(), [(X, labels(X))], dropout_seed=0)


@pytest.mark.parametrize(
    ("objective", "given", "said"),
    [
        (lambda: objective_of(weight=2.0), {}, "weight must be 1, got 2"),
        (lambda: objective_of(huber()), {}, "laplace: the criterion must be a likelihood"),
        (
            lambda: objective_of(custom(lambda f, y: (f - y).abs().sum(1))),
            {},
            "laplace: the criterion must be a likelihood",
        ),
        (objective_of, {"noise": 0.0}, "noise must be a positive number"),
        (objective_of, {"mean": "mode"}, "mean must be 'point' or 'newton'"),
        (objective_of, {"structure": "dense"}, "structure must be one of"),
        (objective_of, {"structure": "low_rank", "rank": 6}, "rank must be between 1 and 5"),
        (objective_of, {"prior_precision": -1.0}, "prior_precision must be positive"),
        (objective_of, {"prior_precision": torch.ones(3)}, r"vector \(5,\)"),
        (lambda: objective_of(penalty=l2(0.0)), {}, "leaves some parameters free"),
        (objective_of, {"structure": "full", "samples": 2}, "'kron' and 'ekfac' alone"),
        (lambda: few(), {"structure": "full", "prior_precision": 1e-20}, "raise prior_precision"),
        (lambda: dropping(), {}, r"dropout_seed; call model\.eval\(\)"),
    ],
)
def test_what_does_not_fit_is_said(objective, given, said):
    with pytest.raises(ValueError, match=said):
        laplace(objective(), **given)


def test_a_penalty_that_is_no_normal_prior_is_refused_as_a_default():
    lasso = Penalty(lambda blocks: sum(p.abs().sum() for p in blocks.values()))
    with pytest.raises(ValueError, match="pass prior_precision="):
        laplace(objective_of(penalty=lasso))
    laplace(objective_of(penalty=lasso), prior_precision=1.0)


def test_factors_refuse_a_prior_that_differs_within_a_layer():
    X = torch.randn(20, 4, dtype=F64)
    objective = Objective(network(), cross_entropy(), [(X, labels(X))])
    with pytest.raises(ValueError, match="joint=False"):
        laplace(objective, structure="kron", prior_precision={"*": 1.0, "*bias": 2.0})
    apart = laplace(objective, structure="kron", prior_precision={"*": 1.0, "*bias": 2.0}, joint=False)
    torch.testing.assert_close(
        apart.precision.dense() - laplace(objective, prior_precision=1.0, joint=False).precision.dense(),
        objective.space.vector({"*": 0.0, "*bias": 1.0}).diag(),
    )


def test_drawn_labels_have_the_exact_factors_as_their_mean():
    X = torch.randn(30, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    objective = Objective(network(), cross_entropy(), [(X, labels(X))])
    exact = laplace(objective, prior_precision=1.0).evidence
    drawn = [laplace(objective, prior_precision=1.0, samples=50, seed=s).evidence for s in range(8)]
    spread = torch.tensor(drawn).std()
    assert abs(sum(drawn) / 8 - exact) < 5 * float(spread) / 8**0.5 + 0.05  # a determinant is not linear
    wide = Objective(nn.Linear(4, 1100).double(), cross_entropy(), [(X, labels(X, 1100))])
    assert math.isfinite(laplace(wide, prior_precision=1.0, samples=1).evidence)


@pytest.mark.parametrize("structure", ["kron", "ekfac", "full", "diagonal"])
def test_scalar_parameters_have_a_posterior(structure):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(4, 3), nn.Parameter(torch.tensor(1.5))

        def forward(self, x):
            return self.layer(x) * self.scale

    torch.manual_seed(0)
    X = torch.randn(20, 4, dtype=F64)
    objective = Objective(Scaled().double(), cross_entropy(), [(X, labels(X))])
    found = laplace(objective, structure=structure, prior_precision=1.0)
    at = objective.space.block("scale").start
    expected = 20 * fisher(objective).dense()[at, at] + 1
    torch.testing.assert_close(found.precision.dense()[at, at], expected)


def test_its_line_says_what_it_is():
    line = repr(laplace(objective_of(), structure="full", prior_precision=1.0))
    assert "full, 5 parameters, prior precision 1, noise 1, log evidence" in line
    assert math.isfinite(laplace(objective_of(), prior_precision=1.0).effective_parameters)
