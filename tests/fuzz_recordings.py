"""Plain, linearized and `memory=0` products of random objectives beside each other and beside the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives import gauss_newton, hessian, jacobian
from frechet.recording import linearize
from random_objectives import Drawn, differences, draw, true_gauss_newton, true_hessian, true_jacobian

BOUND = 1e-6  # of relative differences, in float64


@dataclass
class Tally:
    """What happened, in linearizations and batches; and what went wrong, in words."""

    objectives: int = 0
    without_product: int = 0  # whose plain product raises, or is not finite
    comparisons: int = 0
    linearizations: int = 0
    refused: int = 0
    batches: int = 0
    recorded: int = 0
    wrong: list[str] = field(default_factory=list)
    why: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        return [
            f"objectives {self.objectives} ({self.without_product} more have no plain product)",
            f"wrong {len(self.wrong)} of {self.comparisons} comparisons",
            f"refused {self.refused} of {self.linearizations} linearizations",
            f"served by recordings {self.recorded} of {self.batches} batches",
        ]


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


def compare(seed: int, tally: Tally) -> None:
    """Draw an objective and compare its products."""
    torch.set_default_dtype(torch.float64)
    try:
        drawn = draw(seed)
        _compare(drawn, tally)
    finally:
        torch.set_default_dtype(torch.float32)


def _compare(drawn: Drawn, tally: Tally) -> None:
    made = [
        *(("hessian", hessian, True), ("gauss_newton", gauss_newton, True), ("jacobian", jacobian, False)),
    ]
    before = tally.comparisons
    jacobians: list[Tensor] | None = None
    for name, make, symmetric in made:
        try:
            A = make(drawn.objective)
            V = A.domain.random(range(3), drawn.seed, "gaussian")
            plain = A @ V
        except Exception as error:
            tally.why[f"no plain product: {type(error).__name__}"] += 1
            continue
        if name == "hessian":
            truth = _hessian(drawn, V, plain)
        else:
            jacobians = true_jacobian(drawn) if jacobians is None else jacobians
            J = torch.cat(jacobians * (drawn.copies if name == "jacobian" else 1))
            truth = J @ V if name == "jacobian" else true_gauss_newton(drawn, jacobians, V)
        maps: list[tuple[str, Callable[[LinearOperator], Tensor], Tensor]] = [
            ("A @ V", lambda B, V=V: B @ V, truth),
            ("A @ v", lambda B, V=V: (B @ V[:, 1].clone())[:, None], truth[:, 1:2]),
        ]
        if not symmetric:
            U = A.codomain.random(range(2), drawn.seed, "gaussian")
            maps.append(("A.T @ U", lambda B, U=U: B.T @ U, J.T @ U))
        _hold(drawn, f"plain {name}", A, maps, tally)
        for memory in (None, 0):
            tally.linearizations += 1
            try:
                L = linearize(A, memory)
            except Exception as error:
                tally.refused += 1
                tally.wrong.append(f"{drawn.seed} {drawn.names} {name} memory={memory}: {type(error).__name__} {error}")
                continue
            tally.batches += len(L.served)
            tally.recorded += len(L.served) - L.plain
            if L.plain:
                tally.why[L.message.split("by plain products: ")[1][:120]] += L.plain
            _hold(drawn, f"linearized {name}, memory={memory}", L, maps, tally)
    if tally.comparisons > before:
        tally.objectives += 1
    else:
        tally.without_product += 1


def _hessian(drawn: Drawn, V: Tensor, plain: Tensor) -> Tensor:
    """H V by double backward, or by differences of gradients where that is missing or disagrees."""
    try:
        found = true_hessian(drawn, V)
    except NotImplementedError:  # torch has no second derivative, the library has a formula
        return differences(drawn, V)
    return found if off(plain, found) < BOUND else differences(drawn, V)


def _hold(drawn: Drawn, what: str, A: LinearOperator, maps: list, tally: Tally) -> None:
    for how, product, truth in maps:
        tally.comparisons += 1
        try:
            error = off(product(A), truth)
        except Exception as raised:
            tally.wrong.append(f"{drawn.seed} {drawn.names} {what}, {how}: {type(raised).__name__} {raised}")
            continue
        if not error < BOUND:
            tally.wrong.append(f"{drawn.seed} {drawn.names} {what}, {how}: off by {error:.1e}")
