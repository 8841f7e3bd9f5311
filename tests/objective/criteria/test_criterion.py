import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch.autograd.function import once_differentiable

from frechet.errors import NotDifferentiable
from frechet.objective.criteria import binary_cross_entropy, custom, gaussian, huber, poisson, squared_error
from laws import close
from objective_cases import randn

F64 = torch.float64
f, y = randn(4, 3), randn(4, 3, seed=1)
bits, counts = (y > 0).double(), y.abs().round()
weight = torch.tensor([0.5, 2.0, 1.0], dtype=F64)

CASES = {  # criterion, outputs, targets, torch's own mean
    "squared_error": (squared_error(), f, y, F.mse_loss),
    "binary": (binary_cross_entropy(), f, bits, F.binary_cross_entropy_with_logits),
    "binary, soft": (binary_cross_entropy(), f, y.sigmoid(), F.binary_cross_entropy_with_logits),
    "binary, weighted": (
        binary_cross_entropy(pos_weight=weight),
        f,
        bits,
        lambda a, b: F.binary_cross_entropy_with_logits(a, b, pos_weight=weight),
    ),
    "poisson": (poisson(), f, counts, F.poisson_nll_loss),
    "huber": (huber(0.7), f, y, lambda a, b: F.huber_loss(a, b, delta=0.7)),
    "gaussian": (gaussian(), randn(4, 6), y, lambda a, b: F.gaussian_nll_loss(a[:, :3], b, a[:, 3:].exp())),
    "custom": (
        custom(lambda a, b: (a - b).pow(4).sum(1) + a.prod(1)),
        f,
        y,
        lambda a, b: ((a - b).pow(4).sum(1) + a.prod(1)).mean(),
    ),
}
cases = pytest.mark.parametrize("name", CASES)


def total(criterion, outputs, targets):
    return criterion.terms(outputs, targets).sum()


@cases
def test_total_over_count_is_torchs_mean(name):
    criterion, outputs, targets, mean = CASES[name]
    terms = criterion.terms(outputs, targets)
    assert terms.shape == (4,)
    close(terms.sum() / criterion.count(targets), mean(outputs, targets))
    halves = sum(total(criterion, outputs[s], targets[s]) for s in (slice(3), slice(3, 4)))
    close(halves / sum(criterion.count(targets[s]) for s in (slice(3), slice(3, 4))), mean(outputs, targets))


@cases
def test_score_and_hessian_product_are_the_derivatives(name):
    criterion, outputs, targets, _ = CASES[name]
    u = randn(*outputs.shape, seed=5)

    def value(a):
        return total(criterion, a, targets)

    close(criterion.score(outputs, targets), torch.autograd.functional.jacobian(value, outputs))
    close(criterion.hessian_product(outputs, targets, u), torch.autograd.functional.hvp(value, outputs, u)[1])


@cases
def test_float32_targets_of_a_float64_model_are_converted(name):
    criterion, outputs, targets, _ = CASES[name]
    assert criterion.terms(outputs, targets.float()).dtype == F64


def grid(name, outputs):
    """(labels, probabilities) whose expectations are the likelihood's: enumeration or Gauss-Hermite quadrature."""
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(12))
    weights = weights / math.sqrt(2 * math.pi)
    match name:
        case "squared_error":
            return [(outputs + z / math.sqrt(2), w) for z, w in zip(nodes, weights, strict=True)]
        case "gaussian":
            m, log_v = outputs.chunk(2, -1)
            return [(m + (log_v / 2).exp() * z, w) for z, w in zip(nodes, weights, strict=True)]
        case "binary":
            p = outputs.sigmoid()
            return [(torch.zeros_like(p), 1 - p), (torch.ones_like(p), p)]
    rate = outputs.exp().numpy()
    return [(torch.full_like(outputs, k), torch.from_numpy(stats.poisson.pmf(k, rate))) for k in range(80)]


@pytest.mark.parametrize("name", ["squared_error", "binary", "poisson", "gaussian"])
def test_fisher_product_is_the_expected_outer_product_of_the_score(name):
    criterion, outputs, targets, _ = CASES[name]
    u, expected = randn(*outputs.shape, seed=5), torch.zeros_like(outputs)
    for label, probability in grid(name, outputs):
        projected = criterion.project(criterion.score(outputs, label), u)
        share = torch.as_tensor(probability)
        share = torch.cat([share, share], -1) if name == "gaussian" and share.ndim else share
        expected += share * projected
    close(criterion.fisher_product(outputs, targets, u), expected)


@pytest.mark.parametrize("name", ["squared_error", "binary", "poisson", "gaussian"])
def test_drawn_labels_have_the_likelihoods_moments(name):
    criterion, outputs, targets, _ = CASES[name]
    n = 20_000
    rows = outputs[:1].expand(n, -1)
    drawn = criterion.sample(rows, targets[:1].expand(n, -1), torch.Generator().manual_seed(0))
    assert drawn.dtype == F64
    p = outputs[:1].sigmoid()
    mean, variance = {
        "squared_error": lambda: (outputs[:1], torch.full((1, 3), 0.5, dtype=F64)),
        "binary": lambda: (p, p * (1 - p)),
        "poisson": lambda: (outputs[:1].exp(), outputs[:1].exp()),
        "gaussian": lambda: (outputs[:1, :3], outputs[:1, 3:].exp()),
    }[name]()
    assert float(((drawn.mean(0) - mean) / (variance / n).sqrt()).abs().max()) < 4.5
    assert float((drawn.var(0) / variance - 1).abs().max()) < 0.06


@pytest.mark.parametrize("name", ["squared_error", "binary", "poisson", "gaussian"])
def test_drawing_in_batches_draws_the_same_labels(name):
    criterion, outputs, targets, _ = CASES[name]
    whole = criterion.sample(outputs, targets, torch.Generator().manual_seed(7))
    g = torch.Generator().manual_seed(7)
    parts = [criterion.sample(outputs[s], targets[s], g) for s in (slice(1), slice(1, 4))]
    assert torch.equal(whole, torch.cat(parts))


def test_convexity_is_said_right():
    assert [CASES[n][0].convex for n in CASES] == [True, True, True, True, True, True, False, False]
    assert custom(lambda a, b: a.sum(1), convex=True).convex


def test_gaussian_targets_may_have_further_axes():
    outputs, targets = randn(2, 5, 4), randn(2, 5, 2)
    assert gaussian().terms(outputs, targets).shape == (2,)
    assert int(gaussian().count(targets)) == 20


def test_the_terms_of_a_custom_criterion_are_counted_as_told():
    per_element = custom(lambda a, b: (a - b) ** 2, count=lambda b: b.numel())
    close(per_element.terms(f, y).sum() / per_element.count(y), F.mse_loss(f, y))
    assert int(custom(lambda a, b: (a - b) ** 2).count(y)) == 4


def test_a_custom_loss_that_is_linear_has_no_curvature():
    assert not bool(custom(lambda a, b: (a * b).sum(1)).hessian_product(f, y, f).any())


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a**2

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def test_a_custom_loss_marked_once_differentiable_is_refused():
    with pytest.raises(NotDifferentiable, match="the backward of Once is marked once_differentiable"):
        custom(lambda a, b: Once.apply(a).sum(1)).hessian_product(f, y, f)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("custom", "gaussian")])
def test_targets_of_another_shape_are_refused(name):
    with pytest.raises(ValueError, match=r"targets must have the outputs' shape \(4, 3\), got \(4,\); reshape one"):
        CASES[name][0].terms(f, y[:, 0])


def test_other_bad_input_is_refused():
    for outputs in (randn(4, 1), randn(4, 3), randn(4, 4)):
        with pytest.raises(ValueError, match=r"gaussian: outputs must hold mean and log variance side by side"):
            gaussian().terms(outputs, y[:, :1])
    with pytest.raises(ValueError, match="huber: delta must be positive, got 0"):
        huber(0)
    with pytest.raises(ValueError, match="binary_cross_entropy: pos_weight must be non-negative, got -1"):
        binary_cross_entropy(pos_weight=-1.0)
    for reduced in (lambda a, b: (a - b).sum(), lambda a, b: (a - b).flatten()):
        with pytest.raises(ValueError, match=r"custom: terms must return one value per example, shape \(4,\)"):
            custom(reduced).terms(f, y)
    for name in ("huber", "binary, weighted", "custom"):
        for ask in (CASES[name][0].fisher_product, lambda a, b, u, c=CASES[name][0]: c.sample(a, b, None)):
            with pytest.raises(ValueError, match=r"fisher: .* likelihood"):
                ask(f, bits, f)
