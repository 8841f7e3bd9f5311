"""Where an optimizer's step turns unstable, against companion matrices and the optimizers themselves."""

import math

import numpy as np
import pytest
import torch

from frechet.analyze import StepRule, stable_learning_rate, step_rule

P = [torch.zeros(1, requires_grad=True)]


def companion(rule, rate, l):
    """(x, m) -> (x', m') for g = l x, plus coupled decay."""
    b, c, A, C, w = rule.momentum, rule.fresh, rule.of_gradient, rule.of_momentum, rule.weight_decay
    pull = l if rule.decoupled else l + w
    shrink = 1 - rate * w if rule.decoupled else 1.0
    return np.array([[shrink - rate * (A + C * c) * pull, -rate * C * b], [c * pull, b]])


def radius(M):
    return np.abs(np.linalg.eigvals(M)).max()


def threshold(rule, rate):
    """The largest stable curvature, by bisection on the spectral radius."""
    low, high = 1e-3 / rate, 1e5 / rate
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if radius(companion(rule, rate, middle)) <= 1 + 1e-13 else (low, middle)
    return low


SGD = torch.optim.SGD
CASES = [
    (SGD(P, lr=0.1), 2.0),
    (SGD(P, lr=0.1, momentum=0.9), 3.8),
    (SGD(P, lr=0.1, momentum=0.5, dampening=0.5), 6.0),
    (SGD(P, lr=0.1, momentum=0.9, nesterov=True), 3.8 / 2.8),
    (SGD(P, lr=0.1, momentum=0.95, nesterov=True), 3.9 / 2.9),
    (torch.optim.Adam(P, lr=0.1), 38.0),
    (torch.optim.AdamW(P, lr=0.1, weight_decay=0.0), 38.0),
    (torch.optim.Adam(P, lr=0.1, betas=(0.0, 0.9)), 2.0),
    (torch.optim.RMSprop(P, lr=0.1, momentum=0.9), 3.8),
    (torch.optim.RMSprop(P, lr=0.1), 2.0),
    (torch.optim.Adagrad(P, lr=0.1), 2.0),
    (torch.optim.Adadelta(P, lr=0.1), 2.0),
    (torch.optim.Adamax(P, lr=0.1), 38.0),
    (torch.optim.RAdam(P, lr=0.1), 38.0),
]


@pytest.mark.parametrize(("optimizer", "expected"), CASES, ids=lambda x: type(x).__name__)
def test_thresholds_are_those_of_the_companion_matrix(optimizer, expected):
    rule = step_rule(optimizer)
    assert rule.threshold == pytest.approx(expected, rel=1e-12)
    assert threshold(rule, 0.1) * 0.1 == pytest.approx(expected, rel=1e-10)
    assert rule.largest_curvature(0.1) == pytest.approx(expected / 0.1, rel=1e-12)
    assert rule.largest_rate(expected / 0.1) == pytest.approx(0.1, rel=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_weight_decay_takes_its_part(decoupled, momentum, nesterov):
    A, C = (1.0, momentum) if nesterov or not momentum else (0.0, 1.0)
    rule = StepRule("any", momentum, 1.0, A, C, weight_decay=0.5, decoupled=decoupled)
    assert threshold(rule, 0.1) == pytest.approx(rule.largest_curvature(0.1), rel=1e-10)
    assert rule.largest_rate(rule.largest_curvature(0.1)) == pytest.approx(0.1, rel=1e-12)


def test_decoupled_decay_of_gradient_descent_is_two_less_rate_times_decay():
    rule = StepRule("any", weight_decay=0.5, decoupled=True)
    assert 0.1 * rule.largest_curvature(0.1) == pytest.approx(2 - 0.05, rel=1e-14)


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.8, "dampening": 0.3},
     {"weight_decay": 2.0}, {"momentum": 0.9, "weight_decay": 3.0}],
)  # fmt: skip
@pytest.mark.parametrize(("factor", "stable"), [(0.98, True), (1.02, False)])
def test_torch_sgd_decays_below_the_threshold_and_grows_above(settings, factor, stable):
    x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimizer = SGD([x], lr=0.1, **settings)
    curvature = factor * step_rule(optimizer).largest_curvature(0.1)
    for _ in range(600):
        optimizer.zero_grad()
        (curvature * x * x / 2).sum().backward()
        optimizer.step()
    assert (abs(x.item()) < 1) is stable


def test_nadam_takes_the_weights_of_its_present_step():
    x = torch.tensor([1.0], requires_grad=True)
    optimizer = torch.optim.NAdam([x], lr=0.1, betas=(0.9, 0.999), momentum_decay=100.0)
    x.grad = torch.ones(1)
    for _ in range(400):
        optimizer.step()
    # mu = b and no bias is left: 2 (1 + b) / ((1 - b) (1 + 2 b))
    assert step_rule(optimizer).threshold == pytest.approx(3.8 / (0.1 * 2.8), rel=1e-6)


class Sign(torch.optim.Optimizer):
    def step(self, closure=None):
        pass


class Renamed(torch.optim.AdamW):
    pass


class Wrapped(torch.optim.Optimizer):
    """As Accelerate wraps an optimizer."""

    def __init__(self, inner):
        self.optimizer = inner


def test_a_subclass_that_inherits_its_step_is_known_and_a_wrapper_is_opened():
    assert step_rule(Renamed(P, lr=0.1)).threshold == pytest.approx(38.0)
    assert step_rule(Wrapped(SGD(P, lr=0.1))).threshold == 2.0


@pytest.mark.parametrize("make", [lambda: Sign(P, {}), lambda: torch.optim.LBFGS(P), lambda: torch.optim.Rprop(P)])
def test_of_an_unknown_optimizer_it_says_what_is_not_known(make):
    optimizer = make()
    with pytest.raises(ValueError, match=f"the stability limit of {type(optimizer).__name__} is not known"):
        step_rule(optimizer)


def test_bad_arguments():
    with pytest.raises(ValueError, match="maximize=True"):
        step_rule(SGD(P, lr=0.1, maximize=True))
    with pytest.raises(ValueError, match="group must be one of 1 groups, got 1"):
        step_rule(SGD(P, lr=0.1), 1)
    with pytest.raises(TypeError, match="optimizer must be a"):
        step_rule(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("optimizer", "expected"), CASES, ids=lambda x: type(x).__name__)
def test_stable_learning_rate_takes_an_optimizer(optimizer, expected):
    found = stable_learning_rate(4.0, 1.0, optimizer=optimizer)
    assert found is not None
    assert (found.value, found.lower, found.upper) == pytest.approx((expected / 4, expected / 5, expected / 3))
    assert stable_learning_rate(-1.0, optimizer=optimizer) is None


def test_stable_learning_rate_by_settings_is_that_by_optimizer():
    optimizer = SGD(P, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5)
    by_hand = StepRule("mine", 0.9, 1.0, 1.0, 0.9, weight_decay=0.5)
    assert stable_learning_rate(4.0, optimizer=optimizer) == stable_learning_rate(4.0, optimizer=by_hand)
