"""The update of an optimizer as a linear map of the gradient, and the curvature at which it turns unstable.

    m' = b m + c g,    x' = (1 - eta w) x - eta P^-1 (A g + C m')            g = H x, P a fixed diagonal

The first instability, for a growing curvature l of P^-1/2 H P^-1/2, is a flip: x' = -x with m' = -m, so

    eta l (A + C c / (1 + b)) = 2 - eta w

| optimizer | b | c | A | C | largest stable eta l |
| --- | --- | --- | --- | --- | --- |
| gradient descent | 0 | 1 | 1 | 0 | 2 |
| SGD with momentum b, dampening d | b | 1 - d | 0 | 1 | 2 (1 + b) / (1 - d) |
| the same, nesterov=True | b | 1 | 1 | b | 2 (1 + b) / (1 + 2 b) |
| Adam and its family | b | 1 - b | 0 | 1 | 2 (1 + b) / (1 - b) |

A decay that is added to the gradient is a curvature, H + w; a decoupled one takes eta w of the 2.

**Source.** Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability" (2021), arXiv
2103.00065, appendix B, and "Adaptive gradient methods at the edge of stability" (2022), arXiv 2207.14484.
**Differs from the source.** (1) One formula for all rules, with weight decay and with groups of parameters that have
their own. (2) torch's Nesterov step, which looks ahead from the new buffer.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from frechet.linalg._shown import Result


@dataclass(frozen=True)
class StepRule(Result):
    """The step of an optimizer, linear in the gradient: m' = b m + c g, then x' = (1 - eta w) x - eta (A g + C m').

    `momentum` is b, `fresh` is c, `of_gradient` is A, `of_momentum` is C, `weight_decay` is w. Where `decoupled` is
    False, w x is added to the gradient instead. Where `preconditioned`, a diagonal P divides the step, and curvature
    means that of P^-1/2 H P^-1/2.
    """

    name: str
    momentum: float = 0.0
    fresh: float = 1.0
    of_gradient: float = 1.0
    of_momentum: float = 0.0
    weight_decay: float = 0.0
    decoupled: bool = False
    preconditioned: bool = False

    @property
    def gain(self) -> float:
        """A + C c / (1 + b): how strongly the step answers to a gradient that changes its sign each time."""
        return self.of_gradient + self.of_momentum * self.fresh / (1 + self.momentum)

    @property
    def threshold(self) -> float:
        """The largest stable rate times curvature, without weight decay."""
        return 2 / self.gain

    def largest_curvature(self, rate: float) -> float:
        """The largest stable curvature at a learning rate."""
        if rate == 0:
            return math.inf
        room = 2 - rate * self.weight_decay if self.decoupled else 2.0
        return room / (rate * self.gain) - (0.0 if self.decoupled else self.weight_decay)

    def largest_rate(self, curvature: float) -> float:
        """The largest stable learning rate at a curvature; infinite where none is too large."""
        pull = self.gain * curvature + self.weight_decay * (1.0 if self.decoupled else self.gain)
        return 2 / pull if pull > 0 else math.inf


def step_rule(optimizer: Optimizer, group: int = 0) -> StepRule:
    """Return the step of a torch optimizer as a linear map of the gradient, for one of its parameter groups.

    Known are SGD (momentum, dampening, Nesterov), Adam, AdamW, AMSGrad, NAdam, RAdam, Adamax, RMSprop, Adagrad and
    Adadelta, and classes that inherit their `step`. `ValueError` says what is not known of any other.

    Args:
        optimizer: the optimizer, or what Accelerate or Lightning wrap it in.
        group: the number of the parameter group.

    Example:
        >>> import torch
        >>> from frechet.analyze import step_rule
        >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9, nesterov=True)
        >>> round(step_rule(sgd).threshold, 4)  # less than the 2 of gradient descent
        1.3571
    """
    inner = unwrapped(optimizer)
    if not 0 <= group < len(inner.param_groups):
        raise ValueError(f"step_rule: group must be one of {len(inner.param_groups)} groups, got {group}")
    settings = inner.param_groups[group]
    if settings.get("maximize"):
        raise ValueError(
            f"step_rule: the optimizer must minimize, got {type(inner).__name__} with maximize=True, whose limit is "
            "one of the negated Hessian"
        )
    states = (inner.state.get(p) for p in settings["params"])
    return _RULES[known(inner)](settings, type(inner).__name__, next((s for s in states if s), {}))


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside of what Accelerate (`optimizer`) and Lightning (`_optimizer`) wrap it in."""
    while not type(optimizer).__module__.startswith("torch.optim"):
        inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_optimizer", None)
        if not isinstance(inner, Optimizer) or inner is optimizer:
            break
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"step_rule: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def known(optimizer: Optimizer) -> type[Optimizer]:
    """The class of torch whose step an optimizer takes; raises ValueError where it takes one of its own."""
    step = inspect.unwrap(type(optimizer).step)
    for kind in _RULES:
        if step is inspect.unwrap(kind.step):
            return kind
    raise ValueError(
        f"step_rule: the stability limit of {type(optimizer).__name__} is not known: its step is not one of "
        f"{', '.join(kind.__name__ for kind in _RULES)}; the sharpness is measured, with no limit to compare it with"
    )


def rate_of(settings: Mapping[str, Any]) -> float:
    """The learning rate of a parameter group."""
    return float(settings["lr"])


def preconditioner(optimizer: Optimizer, kind: type[Optimizer], settings: Mapping[str, Any], p: Tensor) -> Any:
    """P of one parameter, a tensor like it or a number; None where the optimizer has not moved it yet."""
    if kind not in _PRECONDITIONERS:
        return 1.0
    state = optimizer.state.get(p)
    return _PRECONDITIONERS[kind](settings, state) if state else None


# --- what each class of torch.optim does ------------------------------------------------------------------------------


def _sgd(s: Mapping[str, Any], name: str, _: Mapping[str, Any]) -> StepRule:
    b, decay = float(s["momentum"]), float(s["weight_decay"])
    if b == 0:
        return StepRule("gradient descent" if name == "SGD" else name, weight_decay=decay)
    if s["nesterov"]:
        return StepRule("SGD with Nesterov's momentum", b, 1.0, 1.0, b, decay)
    return StepRule("SGD with momentum", b, 1 - float(s["dampening"]), 0.0, 1.0, decay)


def _adam(s: Mapping[str, Any], name: str, _: Mapping[str, Any]) -> StepRule:
    b, decay = float(s["betas"][0]), float(s["weight_decay"])
    return StepRule(name, b, 1 - b, 0.0, 1.0, decay, bool(s.get("decoupled_weight_decay", False)), True)


def _nadam(s: Mapping[str, Any], name: str, state: Mapping[str, Any]) -> StepRule:
    b, decay, d = float(s["betas"][0]), float(s["weight_decay"]), float(s["momentum_decay"])
    t, product = float(state.get("step", 0.0)), float(state.get("mu_product", 0.0))
    mu, following = (b * (1 - 0.5 * 0.96 ** (i * d)) for i in (t, t + 1))
    A, C = (1 - mu) / (1 - product), following / (1 - product * following)
    return StepRule(name, b, 1 - b, A, C, decay, bool(s["decoupled_weight_decay"]), True)


def _rmsprop(s: Mapping[str, Any], name: str, _: Mapping[str, Any]) -> StepRule:
    b, decay = float(s["momentum"]), float(s["weight_decay"])
    return StepRule(name, b, 1.0, 0.0, 1.0, decay, False, True)


def _plain(s: Mapping[str, Any], name: str, _: Mapping[str, Any]) -> StepRule:
    return StepRule(name, weight_decay=float(s["weight_decay"]), preconditioned=True)


Rule = Callable[[Mapping[str, Any], str, Mapping[str, Any]], StepRule]
_RULES: dict[type[Optimizer], Rule] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.NAdam: _nadam,
    torch.optim.RAdam: _adam,
    torch.optim.Adamax: _adam,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _plain,
    torch.optim.Adadelta: _plain,
}


def _of_adam(s: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    b1, b2, t = float(s["betas"][0]), float(s["betas"][1]), float(state["step"])
    square = state["max_exp_avg_sq"] if s.get("amsgrad") else state["exp_avg_sq"]
    return ((square / (1 - b2**t)).sqrt() + s["eps"]) * (1 - b1**t)


def _of_nadam(s: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    return (state["exp_avg_sq"] / (1 - float(s["betas"][1]) ** float(state["step"]))).sqrt() + s["eps"]


def _of_radam(s: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    b1, b2, t = float(s["betas"][0]), float(s["betas"][1]), float(state["step"])
    most = 2 / (1 - b2) - 1
    rho = most - 2 * t * b2**t / (1 - b2**t)
    corrected = 1 - b1**t
    if rho <= 5:  # it does not divide by the second moment yet
        return torch.full_like(state["exp_avg"], corrected)
    rectified = math.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
    return (state["exp_avg_sq"].sqrt() + s["eps"]) / math.sqrt(1 - b2**t) * (corrected / rectified)


def _of_adamax(s: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    return state["exp_inf"] * (1 - float(s["betas"][0]) ** float(state["step"]))


def _of_rmsprop(s: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    square = state["square_avg"]
    if s["centered"]:
        square = (square - state["grad_avg"].square()).clamp(min=0)
    return square.sqrt() + s["eps"]


def _of_adagrad(s: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    return (state["sum"].sqrt() + s["eps"]) * (1 + (float(state["step"]) - 1) * s["lr_decay"])


def _of_adadelta(s: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    return ((state["square_avg"] + s["eps"]) / (state["acc_delta"] + s["eps"])).sqrt()


_PRECONDITIONERS: dict[type[Optimizer], Callable[[Mapping[str, Any], Mapping[str, Any]], Any]] = {
    torch.optim.Adam: _of_adam,
    torch.optim.NAdam: _of_nadam,
    torch.optim.RAdam: _of_radam,
    torch.optim.Adamax: _of_adamax,
    torch.optim.RMSprop: _of_rmsprop,
    torch.optim.Adagrad: _of_adagrad,
    torch.optim.Adadelta: _of_adadelta,
}
