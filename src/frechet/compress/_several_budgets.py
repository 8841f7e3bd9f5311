"""The plan of least loss within several budgets: an integer program for a plan that fits, then an exact search.

    min sum_i loss_i(b_i)   with   sum_i cost_ik(b_i) <= most_k   for all budgets k

HiGHS solves the program to absolute tolerances: its plan may break a budget by 1e-6 of it, and miss the least loss by
1e-6 of the largest one, which can be many times the least. So its plan is only where the search starts. The search
goes through the weights. A state is the costs and the loss of what was chosen. It is dropped where no completion fits,
or where for multipliers l >= 0 the bound

    loss + sum_k l_k (cost_k - most_k) + sum over the rest of min_b (loss_i(b) + sum_k l_k cost_ik(b))

is above the loss of the best plan that is known. With the multipliers of the linear program few states stay.

**Source.** M. Fisher (1981), The Lagrangian relaxation method for solving integer programming problems, Management
Science 27, for the bound.
**Cost.** A few integer programs and one linear program; states times numbers of bits for each weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Limits = Sequence[tuple[np.ndarray, float]]  # costs (weights, numbers of bits), and the most that they may add up to
FITS = 1 + 1e-12  # rounding of a sum of costs
TIGHTER = (0.0, 3e-6, 1e-4, 1e-2)  # a program with budgets this much smaller finds plans that fit, as HiGHS breaks 1e-6
SCALINGS = 6  # of losses, each after those that no better plan can have were taken out


def within(loss: np.ndarray, limits: Limits, most: int) -> list[int]:
    """The choice for each weight; where more than `most` states stay, the best one that is known.

    Raises:
        ValueError: no plan fits.
    """
    floor = loss.min(1, keepdims=True)
    excess = loss - floor  # >= 0
    best, allowed, unit = None, np.ones_like(loss, dtype=bool), np.inf
    for _ in range(SCALINGS):
        scale = float(excess[allowed].max()) or 1.0
        if scale > unit / 10:
            break
        unit = scale
        found = _program(np.where(allowed, excess / unit, 0.0), allowed, limits)
        if found is not None and (best is None or _total(excess, found) < _total(excess, best)):
            best = found
        if best is None:
            break
        allowed &= excess <= _total(excess, best) * FITS
    searched = _searched(excess, allowed, limits, unit, best, most)
    if searched is not None:
        return searched
    if best is None:
        raise ValueError("allocate_bits: a plan must fit all budgets, got none; raise them")
    return best


def _total(values: np.ndarray, chosen: list[int]) -> float:
    return float(values[np.arange(len(chosen)), chosen].sum())


def _rows(limits: Limits, tighter: float) -> list[tuple[np.ndarray, float]]:
    """The budgets as rows whose right-hand side is 1 where it is not 0."""
    scaled = [(cost, most, abs(most) or 1.0) for cost, most in limits]
    return [(cost.reshape(1, -1) / size, (most - tighter * abs(most)) / size) for cost, most, size in scaled]


def _program(loss: np.ndarray, allowed: np.ndarray, limits: Limits) -> list[int] | None:
    """A plan that fits, by HiGHS; None where it finds none."""
    import scipy.optimize

    n, k = loss.shape
    upper: Any = allowed.ravel().astype(float)  # scipy's stubs know numbers alone
    one = scipy.optimize.LinearConstraint(np.kron(np.eye(n), np.ones((1, k))), 1, 1)
    for tighter in TIGHTER:
        rows = [scipy.optimize.LinearConstraint(c, -np.inf, m) for c, m in _rows(limits, tighter)]
        found: Any = scipy.optimize.milp(
            loss.ravel(), constraints=[one, *rows], integrality=np.ones(n * k),
            bounds=scipy.optimize.Bounds(0, upper), options={"mip_rel_gap": 0.0},
        )  # fmt: skip
        if found.x is None:
            return None
        chosen = found.x.reshape(n, k).argmax(1).tolist()
        if all(_total(cost, chosen) <= most * FITS for cost, most in limits):
            return chosen
    return None


def _multipliers(loss: np.ndarray, allowed: np.ndarray, limits: Limits) -> np.ndarray:
    """Of the budgets in the linear program, for the limits as they are; 0 where it has no solution."""
    import scipy.optimize

    n, k = loss.shape
    rows = _rows(limits, 0.0)
    found: Any = scipy.optimize.linprog(
        loss.ravel(), A_ub=np.concatenate([c for c, _ in rows]), b_ub=[m for _, m in rows],
        A_eq=np.kron(np.eye(n), np.ones((1, k))), b_eq=np.ones(n),
        bounds=np.stack([np.zeros(n * k), allowed.ravel().astype(float)], 1),
    )  # fmt: skip
    if found.x is None:
        return np.zeros(len(limits))
    return np.maximum(-found.ineqlin.marginals, 0.0) / np.array([abs(most) or 1.0 for _, most in limits])


def _searched(
    excess: np.ndarray, allowed: np.ndarray, limits: Limits, unit: float, best: list[int] | None, most: int
) -> list[int] | None:
    """The best plan of all, or None where none fits or more than `most` states stay."""
    n, k = excess.shape
    cost, room = np.stack([c for c, _ in limits]), np.array([m for _, m in limits])  # (budgets, n, k)
    l = unit * _multipliers(np.where(allowed, excess / unit, 0.0), allowed, limits)
    least = np.where(allowed, cost, np.inf).min(2)
    lagrangian = np.where(allowed, excess + np.tensordot(l, cost, 1), np.inf).min(1)
    costs, losses = np.zeros((len(limits), 1)), np.zeros(1)
    bound = np.inf if best is None else _total(excess, best) * FITS
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for i in range(n):
        c = (costs[:, :, None] + cost[:, i, None, :]).reshape(len(limits), -1)
        f = (losses[:, None] + np.where(allowed[i], excess[i], np.inf)).ravel()
        fits = (c + least[:, i + 1 :].sum(1, keepdims=True) <= (room * FITS)[:, None]).all(0)
        terms = f + l @ c + lagrangian[i + 1 :].sum()
        rounding = 1e-12 * (np.abs(terms) + l @ np.abs(room))
        kept = np.flatnonzero(fits & (f <= bound) & (terms - l @ room <= bound + rounding))
        if len(kept) > most:
            return None
        costs, losses = c[:, kept], f[kept]
        steps.append((kept // k, kept % k))
    if not len(losses):
        return None
    at, chosen = int(losses.argmin()), []
    for parents, choices in reversed(steps):
        chosen.append(int(choices[at]))
        at = int(parents[at])
    return chosen[::-1]
