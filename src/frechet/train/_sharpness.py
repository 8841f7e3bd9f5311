"""Sharpness-aware minimization: the gradient where the loss of a group of examples is largest nearby.

    SAM     e = rho g / norm(g)                       x+ = step of another optimizer with the gradient at x + e
    ASAM    e = rho T^2 g / norm(T g),   T = |x|

With m the batch is cut into groups of m examples, each with an e of its own, and their gradients are averaged: that is
the m-sharpness of the source, whose groups were those of its devices.

The second gradient is one of the objective on the same batch: gradients are not scaled, batch statistics move once,
microbatches of an accumulation are one batch, and dropout, where it is seeded, draws the same masks.

**Source.** P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur (2021), Sharpness-aware minimization for efficiently improving
generalization, arXiv 2010.01412; J. Kwon, J. Kim, H. Park, I. K. Choi (2021), ASAM, arXiv 2102.11600.
**Differs from the source.** The L2 term of the loss is no part of e, where it is the other optimizer's weight decay.
**Cost** in gradients: the loop's own and one more; with m two more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from frechet.objective import Objective
from frechet.objective._data import Split
from frechet.objective._structure import examples_of, rows_of
from frechet.space import Space
from frechet.train._recorded import Loss, OnObjective, Seen


@torch.no_grad()
def ascent(space: Space, x: Tensor, g: Tensor, *, rho: float, adaptive: bool = False) -> Tensor:
    """Return e ``(n,)``, where the linear model of the loss is largest within rho; zero where g is.

    Args:
        space: the space of the parameters.
        x: the point ``(n,)``.
        g: the gradient ``(n,)``.
        rho: the radius, relative to the parameters with `adaptive`.
        adaptive: whether distances are relative to the parameters (ASAM).

    Example:
        >>> import torch
        >>> from frechet.space import euclidean
        >>> from frechet.train import ascent
        >>> ascent(euclidean(2), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), rho=0.5)
        tensor([0.3000, 0.4000])
    """
    T = x.abs() if adaptive else torch.ones_like(x)
    size = float(space.norm(T * g))
    return rho * T.square() * g / size if 0 < size < math.inf else torch.zeros_like(g)


class SAM(OnObjective):
    """Sharpness-aware steps of another optimizer, in the loop of that optimizer.

    A step comes to its batch as one of `GaussNewton` does. Parameter groups and state are those of the other optimizer.

    Args:
        model: the model, whose forward passes in training mode are heard. `remove_hooks` ends that.
        criterion: what the loop minimizes, as a criterion of frechet's or a torch loss with ``reduction="mean"``.
        base: the optimizer that takes the steps.
        rho: the radius. Usual values are 0.05 to 0.2, for `adaptive` 0.5 to 2.
        adaptive: ASAM in the place of SAM.
        m: how many examples share an e. Default: all of the step's batch on all processes.
        clip: the bound of the norm of the second gradient. Default: none.
        split: as in `GaussNewton`.
        dropout_seed: as in `GaussNewton`.

    Example:
        >>> import torch
        >>> from frechet.train import SAM
        >>> _ = torch.manual_seed(0)
        >>> model, loss_of = torch.nn.Linear(4, 1), torch.nn.MSELoss()
        >>> optimizer = SAM(model, loss_of, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> x = torch.randn(64, 4)
        >>> y = x.sum(1, keepdim=True)
        >>> for _ in range(50):
        ...     optimizer.zero_grad()
        ...     loss = loss_of(model(x), y)
        ...     loss.backward()
        ...     optimizer.step()
        >>> loss.item() < 1e-2
        True
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Loss,
        base: torch.optim.Optimizer,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        m: int | None = None,
        clip: float | None = None,
        split: Split | None = None,
        dropout_seed: int | None = None,
    ) -> None:
        if not isinstance(base, torch.optim.Optimizer):
            raise TypeError(f"SAM: base must be a torch.optim.Optimizer, got {type(base).__name__}")
        for name, value in (("rho", rho), ("clip", 1.0 if clip is None else clip)):
            if not 0 <= value < math.inf:
                raise ValueError(f"SAM: {name} must be a number >= 0, got {value}")
        if m is not None and (isinstance(m, bool) or not isinstance(m, int) or m < 1):
            raise ValueError(f"SAM: m must be an int >= 1, got {m!r}")
        groups = [{"params": list(g["params"])} for g in base.param_groups]
        super().__init__(model, criterion, groups, {}, split=split, dropout_seed=dropout_seed)
        self.base, self._rho, self._adaptive, self._m, self._clip = base, rho, adaptive, m, clip
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def state_dict(self) -> dict[str, Any]:
        """The state of the other optimizer, and the number of the steps."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state."""
        self.base.load_state_dict(state_dict)
        self._share()

    def _step(self, objective: Objective, moving: Mapping[str, Tensor], gradients: bool) -> None:
        space = objective.space
        x = space.join([self._parameter(n).detach().to(space.dtype) for n in space.names])
        kept = torch.zeros_like(x)
        for n in moving:
            kept[space.block(n)] = 1.0
        g = self._second(objective, x, kept, space.join(self._first(space, x, moving)) if gradients else None)
        if self._clip is not None:
            g = g * min(1.0, self._clip / max(float(space.norm(g)), 1e-30))
        for n, block in space.unflatten(g).items():
            if n in moving:
                p = self._parameter(n)
                p.grad = block.to(p.dtype).clone()
        self.base.step()
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1

    def _first(self, space: Space, x: Tensor, moving: Mapping[str, Tensor]) -> list[Tensor]:
        blocks = dict(zip(space.names, space.split(x), strict=True))
        return [
            torch.zeros_like(blocks[n]) if n not in moving else moving[n].grad.to(blocks[n])  # type: ignore[union-attr]
            for n in space.names
        ]

    def _second(self, objective: Objective, x: Tensor, kept: Tensor, first: Tensor | None) -> Tensor:
        """The mean gradient of the groups, each at its own x + e."""
        total, weight = torch.zeros_like(x), 0.0
        for part, terms in self._groups(objective):
            g = kept * part.gradient(x) if first is None or self._m is not None else first
            e = ascent(objective.space, x, g, rho=self._rho, adaptive=self._adaptive)
            total, weight = total + terms * part.gradient(x + e), weight + terms
        return total / weight

    def _groups(self, objective: Objective) -> list[tuple[Objective, float]]:
        """The objective on each group of m examples, and how many of its terms count."""
        if self._m is None:
            return [(objective, 1.0)]
        if len(objective.parts) != 1 or objective.group is not None:
            raise ValueError(
                "SAM: m needs an objective of one data term on one process, got another one; leave m out, or cut the "
                "batch yourself"
            )
        found, snapshot = [], objective.snapshot()
        part = objective.parts[0]
        for batch in part.batches(objective.space.device):
            size = examples_of(batch.inputs, batch.targets)
            for a in range(0, size, self._m):
                rows = slice(a, min(a + self._m, size))
                cut = Seen(rows_of(batch.inputs, rows, size), rows_of(batch.targets, rows, size))
                alone = self._objective([cut])
                terms = float(snapshot.count(part, replace(batch, inputs=cut.inputs, targets=cut.targets)))
                if terms > 0:
                    found.append((alone, terms))
        return found

    def _moved(self, objective: Objective, x: Tensor, gradient: Tensor | None, names: list[str]) -> Tensor:
        raise NotImplementedError  # the other optimizer moves
