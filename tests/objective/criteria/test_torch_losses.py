import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frechet.objective import Objective
from frechet.objective.criteria import binary_cross_entropy, cross_entropy, custom, squared_error
from frechet.objective.criteria._torch_losses import as_criterion
from laws import close
from objective_cases import labels, mlp, ragged, randn

F64 = torch.float64
X, real = randn(5, 2), randn(5, 3, seed=1)
classes, bits, soft = labels(3, 5), (real > 0).double(), real.softmax(1)
weight = torch.tensor([0.5, 2.0, 1.0], dtype=F64)
ignored = classes.clone()
ignored[:2] = 7

SAME = {
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), classes),
    "CrossEntropyLoss, weight and smoothing": (nn.CrossEntropyLoss(weight=weight, label_smoothing=0.3), classes),
    "CrossEntropyLoss, ignore_index": (nn.CrossEntropyLoss(ignore_index=7), ignored),
    "CrossEntropyLoss, weight and ignore_index": (nn.CrossEntropyLoss(weight=weight, ignore_index=7), ignored),
    "CrossEntropyLoss, probabilities": (nn.CrossEntropyLoss(), soft),
    "cross_entropy": (F.cross_entropy, classes),
    "MSELoss": (nn.MSELoss(), real),
    "mse_loss": (F.mse_loss, real),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(), bits),
    "BCEWithLogitsLoss, pos_weight": (nn.BCEWithLogitsLoss(pos_weight=weight), bits),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, bits),
    "PoissonNLLLoss": (nn.PoissonNLLLoss(), bits),
    "poisson_nll_loss": (F.poisson_nll_loss, bits),
    "HuberLoss": (nn.HuberLoss(delta=0.4), real),
    "huber_loss": (F.huber_loss, real),
    "SmoothL1Loss": (nn.SmoothL1Loss(), real),
    "smooth_l1_loss": (F.smooth_l1_loss, real),
}


@pytest.mark.parametrize("name", SAME)
def test_a_mapped_loss_is_torchs_mean_over_the_whole_data_set(name):
    loss, targets = SAME[name]
    model = mlp(nn.Tanh(), 3)
    objective = Objective(model, loss, ragged(X, targets))
    expected = loss(model(X), targets)
    close(objective.value(), expected.detach())
    gradient = torch.autograd.grad(expected, list(model.parameters()))
    close(objective.gradient(), objective.space.join(gradient))


def test_a_mean_of_batch_means_would_be_another_number():
    loss, targets = SAME["CrossEntropyLoss, weight and ignore_index"]
    model, batches = mlp(nn.Tanh(), 3), ragged(X, targets, sizes=(3, 2))
    naive = torch.stack([loss(model(a), b).detach() for a, b in batches]).mean()
    assert abs(float(naive - Objective(model, loss, batches).value())) > 1e-3


def test_torchs_class_axis_is_kept():
    outputs, targets = randn(4, 3, 3), labels(3, 4, 3)
    close(as_criterion(nn.CrossEntropyLoss()).terms(outputs, targets).sum() / 12, F.cross_entropy(outputs, targets))


def test_a_criterion_is_taken_as_it_is():
    criterion = cross_entropy()
    assert as_criterion(criterion) is criterion


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss, nn.HuberLoss])
def test_other_reductions_are_refused(kind, reduction):
    message = rf"{kind.__name__} must have reduction='mean', got '{reduction}'.*scale by \(c \* objective\)"
    with pytest.raises(ValueError, match=message):
        as_criterion(kind(reduction=reduction))


@pytest.mark.parametrize(
    ("loss", "fix"),
    [
        (nn.NLLLoss(), r"drop the log_softmax and use cross_entropy\(\)"),
        (F.nll_loss, r"drop the log_softmax and use cross_entropy\(\)"),
        (nn.BCELoss(), r"drop the sigmoid and use binary_cross_entropy\(\)"),
        (F.binary_cross_entropy, r"drop the sigmoid and use binary_cross_entropy\(\)"),
        (nn.L1Loss(), r"use huber\(delta\)"),
        (F.l1_loss, r"use huber\(delta\)"),
        (nn.GaussianNLLLoss(), r"use gaussian\(\)"),
        (F.gaussian_nll_loss, r"use gaussian\(\)"),
        (nn.KLDivLoss(), r"use cross_entropy\(\) with probabilities"),
        (F.kl_div, r"use cross_entropy\(\) with probabilities"),
    ],
)
def test_losses_of_another_kind_are_refused_with_the_fix(loss, fix):
    with pytest.raises(TypeError, match=f"cannot be used: .*{fix}"):
        as_criterion(loss)


@pytest.mark.parametrize("loss", [cross_entropy, squared_error, binary_cross_entropy, custom, nn.CrossEntropyLoss])
def test_what_was_not_called_is_refused(loss):
    name = loss.__name__
    with pytest.raises(
        TypeError, match=rf"criterion must be a Criterion, got the function {name}; call it: {name}\(\)"
    ):
        as_criterion(loss)


@pytest.mark.parametrize("loss", [lambda a, b: (a - b).mean(), None, [1], "mse", nn.Linear(1, 1)])
def test_what_is_unknown_is_refused(loss):
    with pytest.raises(TypeError, match=r"one of frechet's criteria or a torch loss, got .*custom\(lambda outputs"):
        as_criterion(loss)


@pytest.mark.parametrize(
    "loss",
    [
        nn.BCEWithLogitsLoss(weight=weight),
        nn.PoissonNLLLoss(full=True),
        nn.PoissonNLLLoss(log_input=False),
        nn.SmoothL1Loss(beta=0.5),
        nn.SoftMarginLoss(),
    ],
)
def test_settings_without_a_criterion_are_refused(loss):
    with pytest.raises(TypeError, match="with these settings has no criterion of the same meaning; wrap it as custom"):
        as_criterion(loss)
