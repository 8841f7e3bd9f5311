import math

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, squared_error
from frechet.analyze import evidence_gradient, laplace, tune_evidence, with_prior

F64 = torch.float64
STRUCTURES = ("full", "kron", "ekfac", "diagonal", "low_rank")


def objective_of(criterion, n=24):
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, 3, generator=g, dtype=F64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    if criterion == "cross_entropy":
        return Objective(model, cross_entropy(), [(X, (X[:, 0] > 0).long())])
    return Objective(model, squared_error(), [(X, torch.sin(2 * X[:, :2]))])


def posterior(criterion, structure, mean):
    given = {"noise": 0.6} if criterion == "squared_error" else {}
    return laplace(objective_of(criterion), structure=structure, prior_precision=0.8, mean=mean, rank=9, **given)


@pytest.mark.parametrize("mean", ["point", "newton"])
@pytest.mark.parametrize("criterion", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_gradient_of_the_evidence_is_that_of_its_value(structure, criterion, mean):
    found = posterior(criterion, structure, mean)
    gradient = evidence_gradient(found)
    blocks = [("0.weight", "0.bias"), ("2.weight", "2.bias")]  # on which every structure takes a prior
    h = 1e-5
    for names in blocks:
        at = torch.cat([torch.arange(26)[found.problem.curvature.domain.block(n)] for n in names])
        moved = []
        for sign in (1, -1):
            prior = found.prior_precision.clone()
            prior[at] *= math.exp(sign * h)
            moved.append(with_prior(found, prior_precision=prior).evidence)
        slope = (moved[0] - moved[1]) / (2 * h)
        assert float(gradient.prior_precision[at].sum()) == pytest.approx(slope, rel=1e-6, abs=1e-7)
    if found.noise is None:
        assert gradient.noise is None
    else:
        up, down = (with_prior(found, noise=0.6 * math.exp(sign * h)).evidence for sign in (1, -1))
        assert gradient.noise == pytest.approx((up - down) / (2 * h), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("structure", ["full", "diagonal", "low_rank"])
def test_the_gradient_holds_for_single_entries(structure):
    found = posterior("squared_error", structure, "newton")
    gradient, h = evidence_gradient(found).prior_precision, 1e-5
    for i in (0, 7, 13, 25):
        moved = []
        for sign in (1, -1):
            prior = found.prior_precision.clone()
            prior[i] *= math.exp(sign * h)
            moved.append(with_prior(found, prior_precision=prior).evidence)
        assert float(gradient[i]) == pytest.approx((moved[0] - moved[1]) / (2 * h), rel=1e-5, abs=1e-7)


def linear(n=40):
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, 3, generator=g, dtype=F64)
    y = X @ torch.tensor([[2.0], [-1.0], [0.0]], dtype=F64) + 0.5 * torch.randn(n, 1, generator=g, dtype=F64)
    torch.manual_seed(0)
    return nn.Linear(3, 1).double(), X, y


@pytest.mark.parametrize("by", ["one", "block"])
def test_the_tuned_prior_and_noise_have_the_largest_exact_evidence(by):
    model, X, y = linear()
    found = laplace(Objective(model, squared_error(), [(X, y)]), structure="full", prior_precision=1.0, mean="newton")
    tuned = tune_evidence(found, by=by, gtol=1e-8)
    A = torch.cat([X, torch.ones(len(X), 1, dtype=F64)], 1)

    def exact(logs):
        prior = (logs[:1].expand(4) if by == "one" else torch.cat([logs[:1].expand(3), logs[1:2]])).exp()
        K = (2 * logs[-1]).exp() * torch.eye(len(X), dtype=F64) + (A / prior) @ A.T
        return torch.distributions.MultivariateNormal(torch.zeros(len(X), dtype=F64), K).log_prob(y[:, 0])

    chosen = [tuned.prior_precision[0], tuned.prior_precision[3]][: 1 if by == "one" else 2]
    logs = torch.stack([*(c.log() for c in chosen), torch.tensor(math.log(tuned.noise), dtype=F64)]).requires_grad_()
    value = exact(logs)
    assert tuned.evidence == pytest.approx(float(value.detach()), rel=1e-10)
    (slope,) = torch.autograd.grad(value, logs, create_graph=True)
    assert float(slope.detach().abs().max()) < 1e-6
    curvature = torch.autograd.functional.hessian(exact, logs.detach())
    assert float(torch.linalg.eigvalsh(curvature).max()) < 0


def test_a_prior_for_each_entry_switches_off_what_the_data_do_not_need():
    model, X, y = linear(200)
    objective = Objective(model, squared_error(), [(X, y)])
    tuned = tune_evidence(laplace(objective, structure="full", prior_precision=1.0, mean="newton"), by="entry")
    assert float(tuned.prior_precision[2]) > 20 * float(tuned.prior_precision[:2].max())
    assert tuned.noise == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("criterion", ["squared_error", "cross_entropy"])
def test_tuning_ends_where_the_gradient_does(structure, criterion):
    found = posterior(criterion, structure, "point")
    tuned = tune_evidence(found, by="block")
    assert tuned.evidence > found.evidence
    gradient, space = evidence_gradient(tuned), found.problem.curvature.domain
    together = [("0.weight", "0.bias"), ("2.weight", "2.bias")]
    groups = together if structure in ("kron", "ekfac") else [(n,) for n in space.names]
    for names in groups:
        assert abs(sum(float(gradient.prior_precision[space.block(n)].sum()) for n in names)) < 1e-4
    assert gradient.noise is None or abs(gradient.noise) < 1e-4
    assert "evaluations" in tuned.message


def test_the_noise_can_stay():
    found = posterior("squared_error", "full", "point")
    tuned = tune_evidence(found, noise=False)
    assert tuned.noise == found.noise
    assert float(evidence_gradient(tuned).prior_precision.sum()) == pytest.approx(0, abs=1e-4)


def test_another_prior_is_the_posterior_made_with_it():
    found = posterior("squared_error", "kron", "newton")
    other = with_prior(found, prior_precision=3.0, noise=0.2)
    made = laplace(objective_of("squared_error"), prior_precision=3.0, noise=0.2, mean="newton")
    torch.testing.assert_close(other.covariance.dense(), made.covariance.dense())
    assert other.evidence == pytest.approx(made.evidence, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: tune_evidence(p, by="layer"), "by must be"),
        (lambda p: with_prior(p, prior_precision=-1.0), "positive number or vector"),
        (lambda p: with_prior(p, prior_precision=torch.ones(3)), "positive number or vector"),
        (lambda p: with_prior(p, noise=1.0), "noise must be positive, and there must be one"),
    ],
)
def test_what_does_not_fit_is_said(call, said):
    with pytest.raises(ValueError, match=said):
        call(posterior("cross_entropy", "full", "point"))


@pytest.mark.parametrize("structure", ["full", "kron", "diagonal"])
def test_groups_of_parameters_have_priors_of_their_own(structure):
    found = posterior("cross_entropy", structure, "point")
    grouped, blocks = (tune_evidence(found, by=by, gtol=1e-8) for by in (["0.*", "*"], "block"))
    prior = found.problem.curvature.domain.unflatten(grouped.prior_precision)
    for layer in ("0", "2"):
        values = torch.cat([prior[f"{layer}.{name}"].flatten() for name in ("weight", "bias")])
        assert float(values.max() - values.min()) < 1e-9
    slopes = evidence_gradient(grouped).prior_precision
    for names in (("0.weight", "0.bias"), ("2.weight", "2.bias")):
        at = torch.cat([torch.arange(26)[found.problem.curvature.domain.block(n)] for n in names])
        assert abs(float(slopes[at].sum())) < 1e-5
    assert tune_evidence(found, gtol=1e-8).evidence <= grouped.evidence + 1e-9
    if structure == "kron":  # whose blocks are the layers
        assert grouped.evidence == pytest.approx(blocks.evidence, rel=1e-9)
    everything = tune_evidence(found, by=["*"], gtol=1e-8)
    assert everything.evidence == pytest.approx(tune_evidence(found, gtol=1e-8).evidence, rel=1e-9)


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (["0.*"], r"by must match every parameter, got \['0.\*'\] without '2.weight'; end with '\*'"),
        (["*", "0.*"], r"each pattern of by must be the first to match a parameter, got '0.\*'"),
        (["7.*", "*"], r"each pattern of by must be the first to match a parameter, got '7.\*'"),
    ],
)
def test_patterns_that_miss_are_named(by, said):
    with pytest.raises(ValueError, match=said):
        tune_evidence(posterior("cross_entropy", "full", "point"), by=by)
