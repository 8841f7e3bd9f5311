"""The metric of an optimizer: one number that says how far its steps are from turning unstable.

With s_i = eta_i / P_i (A_i + C_i c_i / (1 + b_i)) / (2 - eta_i w_i) for every parameter (`step_rule.py`), decoupled
decay in the denominator and coupled decay W in the curvature, the step first turns unstable, by a flip, where

    lambda_max( S^1/2 (H + W) S^1/2 ) = 1,        S = diag(s)

This is exact for fixed H and P and for a momentum, rate and decay of its own in every group of parameters: x' = -x with
m' = -m says x = S (H + W) x. At equal s it is the learning rate over the largest stable one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from frechet.analyze._run.step_rule import StepRule, known, preconditioner, rate_of, step_rule, unwrapped
from frechet.linalg._shown import Result
from frechet.objective import Objective
from frechet.operators._constructors import from_callable
from frechet.operators._operator import LinearOperator
from frechet.operators._structured import refuse_sharded
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class StepMetric(Result):
    """`speed` is s, `decay` the coupled weight decay W, both flat ``(n,)``; a parameter that does not move has s = 0.

    `rules` are those of the parameter groups, and `rates` their learning rates. `uniform` is s where all parameters
    have one s and one decay: then `largest` is the largest stable eigenvalue of the Hessian itself.
    """

    speed: Tensor = field(repr=False)
    decay: Tensor = field(repr=False)
    rules: tuple[StepRule, ...]
    rates: tuple[float, ...]
    uniform: float | None
    space: Space = field(repr=False)

    @property
    def largest(self) -> float | None:
        """The largest stable eigenvalue of the Hessian; None where the parameters' steps differ."""
        if self.uniform is None:
            return None
        return (1 / self.uniform if self.uniform > 0 else float("inf")) - float(self.decay[0])

    def index(self, H: LinearOperator) -> LinearOperator:
        """S^1/2 (H + W) S^1/2, whose largest eigenvalue is 1 at the limit of stability."""
        root, decay = self.speed.sqrt(), self.decay

        def product(V: Tensor) -> Tensor:
            U = (V.T * root).T
            return (((H @ U).T + decay * U.T) * root).T

        return from_callable(product, domain=self.space, codomain=self.space, facts="symmetric")


def optimizer_metric(optimizer: Optimizer, objective: Objective) -> StepMetric:
    """Return the metric in which an optimizer's steps are stable up to curvature 1, at its present state.

    Raises ValueError where the optimizer's rule is not known, or its preconditioner is not there before its first step.

    Args:
        optimizer: an optimizer of the objective's model. Parameters that it does not hold, that are frozen or that it
            has never moved have speed 0.
        objective: the objective, whose model has the parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, eigsh, hessian, squared_error
        >>> from frechet.analyze import optimizer_metric
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, squared_error(), [(torch.eye(2), torch.zeros(2, 1))])  # H = I
        >>> metric = optimizer_metric(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5), objective)
        >>> round(float(eigsh(metric.index(hessian(objective)), 1, seed=0).values[0]), 4)  # 0.5 / (2 (1 + 0.5))
        0.1667
    """
    inner, space = unwrapped(optimizer), objective.space
    refuse_sharded("optimizer_metric", space)
    kind = known(inner)
    rules = tuple(step_rule(inner, i) for i in range(len(inner.param_groups)))
    names = {id(p): n for n, p in objective.model.named_parameters()}
    speed, decay, moved = space.zeros(), space.zeros(), False
    for rule, settings in zip(rules, inner.param_groups, strict=True):
        rate = rate_of(settings)
        room = 2 - rate * rule.weight_decay if rule.decoupled else 2.0
        if room <= 0:
            raise ValueError(
                f"optimizer_metric: rate times weight decay must be below 2, got {rate * rule.weight_decay:g}"
            )
        for p in settings["params"]:
            name = names.get(id(p))
            if name not in space.names or not p.requires_grad:
                continue
            P = preconditioner(inner, kind, settings, p)
            moved = moved or P is not None
            if P is None:
                continue
            block = space.block(name)
            values = (rate * rule.gain / room) / (P.reshape(-1).to(speed) if isinstance(P, Tensor) else P)
            speed[block] = values
            decay[block] = 0.0 if rule.decoupled else rule.weight_decay
    if not moved:
        raise ValueError(
            f"optimizer_metric: {type(inner).__name__} must hold parameters of the objective's model that it has "
            "moved, got none; its preconditioner is known after its first step"
        )
    same = bool((speed == speed[0]).all()) and bool((decay == decay[0]).all())
    return StepMetric(
        speed, decay, rules, tuple(rate_of(s) for s in inner.param_groups), float(speed[0]) if same else None, space
    )
