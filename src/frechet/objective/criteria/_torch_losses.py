"""torch's losses as criteria of the same meaning: its class axis 1, its weights, its denominators.

What has no such meaning raises with the fix: `reduction="sum"` and `"none"` (an objective always divides by the number
of terms), losses on probabilities (their Gauss-Newton matrix is another one), losses without a second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch.nn.functional as F
from torch import nn

from frechet.objective._torch_internals import AnyLoss
from frechet.objective.criteria import _criterion as c
from frechet.objective.criteria._criterion import Criterion
from frechet.objective.criteria._cross_entropy import cross_entropy
from frechet.objective.criteria._custom import custom

_FUNCTIONS: dict[Callable[..., object], Callable[[], Criterion]] = {
    F.cross_entropy: lambda: cross_entropy(class_dim=1),
    F.mse_loss: c.squared_error,
    F.binary_cross_entropy_with_logits: c.binary_cross_entropy,
    F.poisson_nll_loss: c.poisson,
    F.huber_loss: c.huber,
    F.smooth_l1_loss: c.huber,
}
_REFUSED: dict[object, str] = {
    nn.NLLLoss: "it is linear in log-probabilities; drop the log_softmax and use cross_entropy()",
    F.nll_loss: "it is linear in log-probabilities; drop the log_softmax and use cross_entropy()",
    nn.BCELoss: "it acts on probabilities; drop the sigmoid and use binary_cross_entropy()",
    F.binary_cross_entropy: "it acts on probabilities; drop the sigmoid and use binary_cross_entropy()",
    nn.L1Loss: "its second derivative vanishes; use huber(delta)",
    F.l1_loss: "its second derivative vanishes; use huber(delta)",
    nn.GaussianNLLLoss: "it takes the variance as a third argument; let the model return (mean, log variance) on the "
    "last axis and use gaussian()",
    F.gaussian_nll_loss: "it takes the variance as a third argument; let the model return (mean, log variance) on the "
    "last axis and use gaussian()",
    nn.KLDivLoss: "use cross_entropy() with probabilities as targets",
    F.kl_div: "use cross_entropy() with probabilities as targets",
}
_UNCALLED = (cross_entropy, c.squared_error, c.binary_cross_entropy, c.gaussian, c.poisson, c.huber, custom)


def as_criterion(loss: object) -> Criterion:
    """The criterion meant by `loss`: a criterion itself, a torch loss module, or a torch loss function."""
    if isinstance(loss, Criterion):
        return loss
    name = getattr(loss, "__name__", type(loss).__name__)
    if isinstance(loss, Hashable):
        refused = _REFUSED.get(type(loss)) or _REFUSED.get(loss)
        if refused is not None:
            raise TypeError(f"Objective: criterion {name} cannot be used: {refused}")
        if loss in _UNCALLED or isinstance(loss, type):
            raise TypeError(f"Objective: criterion must be a Criterion, got the function {name}; call it: {name}()")
        if isinstance(loss, AnyLoss):
            return _from_module(loss)
        if callable(loss) and loss in _FUNCTIONS:
            return _FUNCTIONS[loss]()
    raise TypeError(
        f"Objective: criterion must be one of frechet's criteria or a torch loss, got {name}; wrap a loss of your own "
        "as custom(lambda outputs, targets: per_example_losses)"
    )


def _from_module(loss: AnyLoss) -> Criterion:
    name = type(loss).__name__
    if loss.reduction != "mean":
        raise ValueError(
            f"Objective: {name} must have reduction='mean', got {loss.reduction!r}; an objective is the sum of all "
            f"terms divided by their number: use {name}() and scale by (c * objective)"
        )
    match loss:
        case nn.CrossEntropyLoss():
            return cross_entropy(
                ignore_index=loss.ignore_index,
                label_smoothing=loss.label_smoothing,
                weight=loss.weight,
                class_dim=1,
            )
        case nn.MSELoss():
            return c.squared_error()
        case nn.BCEWithLogitsLoss() if loss.weight is None:
            return c.binary_cross_entropy(pos_weight=loss.pos_weight)
        case nn.PoissonNLLLoss() if loss.log_input and not loss.full:
            return c.poisson()
        case nn.HuberLoss():
            return c.huber(loss.delta)
        case nn.SmoothL1Loss() if loss.beta == 1:
            return c.huber(1.0)
    raise TypeError(
        f"Objective: {name} with these settings has no criterion of the same meaning; wrap it as "
        "custom(lambda outputs, targets: per_example_losses)"
    )
