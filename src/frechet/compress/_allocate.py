"""How many bits for which weight: the plan of least predicted increase of the loss within a budget, exactly.

    min sum_i loss_i(b_i)   with   sum_i cost_i(b_i) <= budget

One budget: dynamic programming over the weights. Each state is a cost and the least loss that has it; a state that
another one beats in both is dropped, so that the states after the last weight are the Pareto front. Several budgets, or
more states than MOST: an integer program by HiGHS, and a search that starts from its plan (`_several_budgets.py`).

**Source.** Z. Yao et al. (2021), HAWQ-V3: dyadic neural network quantization, arXiv 2011.10680, for the program.
**Differs from the source.** The front by dynamic programming, which is exact and serves all budgets at once.
**Cost.** States times numbers of bits for each weight; a second for some hundred thousand states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from frechet.compress._sensitivity import Sensitivity
from frechet.compress._several_budgets import within
from frechet.linalg._shown import Result, Rows

MOST = 2_000_000  # states

Losses = Literal["predicted", "measured"]


@dataclass(frozen=True, eq=False)
class BitPlan(Result):
    """Bits for each weight. `predicted` is the sum of the table's entries; `costs` are the sums of each budget's."""

    bits: dict[str, int]
    predicted: float
    bytes: float
    costs: tuple[float, ...]

    def _table(self) -> Rows:
        return ("weight", "bits"), [(n, str(b)) for n, b in self.bits.items()]


def allocate_bits(
    table: Sensitivity,
    budget: float | None = None,
    *,
    limits: Sequence[tuple[Tensor, float]] = (),
    losses: Losses = "predicted",
) -> BitPlan:
    """Return the plan of least increase of the loss within the budgets.

    Args:
        table: the increases, from `sensitivity`.
        budget: the most bytes of all weights together.
        limits: further budgets: costs ``(weights, numbers of bits)``, such as bit operations or measured seconds, and
            the most that their sum may be.
        losses: which column of the table is added up.

    Returns:
        A `BitPlan`. No plan within the budgets has a smaller sum. The sum takes weights for independent: quantize the
            model with `quantized` and measure.

    Raises:
        ValueError: no plan fits, with the smallest cost; the table has no measured losses, or some that are not finite.

    Example:
        >>> import torch
        >>> from frechet.compress import Sensitivity, allocate_bits
        >>> p = torch.tensor([[4.0, 1.0], [9.0, 0.5]])
        >>> table = Sensitivity(("a", "b"), (8, 8), (2, 4), p, p, p, None, 0.0, "", 0)
        >>> allocate_bits(table, 6).bits
        {'a': 2, 'b': 4}
    """
    loss = _losses("allocate_bits", table, losses)
    first = [] if budget is None else [(_bytes(table), budget)]
    limits = [*first, *((_costs("allocate_bits", table, c), m) for c, m in limits)]
    if not limits:
        raise ValueError("allocate_bits: a budget or limits must be given, got none")
    for cost, most in limits:
        if not float(cost.amin(1).sum()) <= most * (1 + 1e-12):
            raise ValueError(
                f"allocate_bits: the budget must be at least {float(cost.amin(1).sum()):.6g}, the cost of the fewest "
                f"bits, got {most:.6g}"
            )
    chosen = None
    if len(limits) == 1:
        front = _front(loss.numpy(), limits[0][0].numpy(), limits[0][1])
        chosen = None if front is None else front[-1]
    if chosen is None:
        chosen = within(loss.numpy(), [(c.numpy(), m) for c, m in limits], MOST)
    return _plan(table, loss, chosen, [c for c, _ in limits])


def pareto_front(table: Sensitivity, *, costs: Tensor | None = None, losses: Losses = "predicted") -> list[BitPlan]:
    """Return all plans that no other one beats in cost and in loss, from the cheapest on.

    Args:
        table: the increases, from `sensitivity`.
        costs: ``(weights, numbers of bits)``. Default: bytes.
        losses: as in `allocate_bits`.

    Raises:
        ValueError: the front has more than two million plans.

    Example:
        >>> import torch
        >>> from frechet.compress import Sensitivity, pareto_front
        >>> p = torch.tensor([[4.0, 1.0], [9.0, 0.5]])
        >>> table = Sensitivity(("a", "b"), (8, 8), (2, 4), p, p, p, None, 0.0, "", 0)
        >>> [(plan.bytes, plan.predicted) for plan in pareto_front(table)]
        [(4.0, 13.0), (6.0, 4.5), (8.0, 1.5)]
    """
    loss, cost = (
        _losses("pareto_front", table, losses),
        _bytes(table) if costs is None else _costs("pareto_front", table, costs),
    )
    front = _front(loss.numpy(), cost.numpy(), math.inf)
    if front is None:
        raise ValueError(f"pareto_front: the front must have at most {MOST} plans; use allocate_bits with a budget")
    return [_plan(table, loss, chosen, [cost]) for chosen in front]


def plot_front(front: Sequence[BitPlan], axes: Any, *, measured: Sequence[float] | None = None) -> Any:
    """Draw the increase of the loss over the bytes of each plan into matplotlib's `axes`; return them.

    Args:
        front: the plans, from `pareto_front`.
        axes: where it is drawn.
        measured: the measured increase of each plan, drawn beside the predicted one. Default: none.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from frechet.compress import BitPlan, plot_front
        >>> figure, axes = plt.subplots()
        >>> _ = plot_front([BitPlan({"w": 2}, 0.5, 10.0, (10.0,)), BitPlan({"w": 4}, 0.1, 20.0, (20.0,))], axes)
        >>> plt.close(figure)
    """
    if measured is not None and len(measured) != len(front):
        raise ValueError(f"plot_front: measured must have {len(front)} numbers, one for each plan, got {len(measured)}")
    at = [plan.bytes for plan in front]
    axes.step(at, [plan.predicted for plan in front], where="post", label="predicted")
    if measured is not None:
        axes.plot(at, list(measured), "x", label="measured")
    axes.set_xlabel("bytes")
    axes.set_ylabel("increase of the loss")
    axes.legend()
    return axes


def _front(loss: np.ndarray, cost: np.ndarray, most: float) -> list[list[int]] | None:
    """The choices of all plans of the front with costs up to `most`, cheapest first; None where states are too many."""
    cheapest_rest = np.concatenate([np.cumsum(cost.min(1)[::-1])[::-1][1:], [0.0]])
    costs, losses = np.zeros(1), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for i in range(len(loss)):
        c, f = (costs[:, None] + cost[i]).ravel(), (losses[:, None] + loss[i]).ravel()
        fits = np.flatnonzero(c + cheapest_rest[i] <= most * (1 + 1e-12))
        order = fits[np.lexsort((f[fits], c[fits]))]
        best = np.minimum.accumulate(f[order])
        kept = order[np.concatenate([[True], best[1:] < best[:-1]])] if len(order) else order
        if len(kept) > MOST:
            return None
        costs, losses = c[kept], f[kept]
        steps.append((kept // loss.shape[1], kept % loss.shape[1]))
    plans = []
    for end in range(len(costs)):
        at, chosen = end, []
        for parents, choices in reversed(steps):
            chosen.append(int(choices[at]))
            at = int(parents[at])
        plans.append(chosen[::-1])
    return plans


def _plan(table: Sensitivity, loss: Tensor, chosen: Sequence[int], costs: Sequence[Tensor]) -> BitPlan:
    rows = torch.arange(len(chosen))
    at = torch.tensor(list(chosen))
    return BitPlan(
        bits={n: table.bits[j] for n, j in zip(table.names, chosen, strict=True)},
        predicted=float(loss[rows, at].sum()),
        bytes=float(_bytes(table)[rows, at].sum()),
        costs=tuple(float(c[rows, at].sum()) for c in costs),
    )


def _bytes(table: Sensitivity) -> Tensor:
    sizes, bits = (torch.tensor(v, dtype=torch.float64) for v in (table.sizes, table.bits))
    return sizes[:, None] * bits / 8


def _costs(name: str, table: Sensitivity, costs: Tensor) -> Tensor:
    expected = (len(table.names), len(table.bits))
    if tuple(costs.shape) != expected or not bool(costs.isfinite().all()):
        raise ValueError(f"{name}: costs must be finite of shape {expected}, got {tuple(costs.shape)}")
    return costs.detach().cpu().double()


def _losses(name: str, table: Sensitivity, losses: str) -> Tensor:
    found = table.measured if losses == "measured" else table.predicted
    if losses not in ("predicted", "measured") or found is None:
        raise ValueError(
            f"{name}: losses must be 'predicted', or 'measured' of a table with measured=True, got {losses!r}"
        )
    if not bool(found.isfinite().all()):
        row = int((~found.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"{name}: the {losses} losses must be finite, got NaN or infinity for '{table.names[row]}'")
    return found.detach().cpu().double()
