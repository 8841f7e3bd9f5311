"""All rules, by the names of ATen's operations."""

from __future__ import annotations

from typing import Any

from frechet.calculus.taylor._arguments import Rule
from frechet.calculus.taylor._bilinear import BILINEAR
from frechet.calculus.taylor._elementary import ELEMENTARY
from frechet.calculus.taylor._factors import FACTORS
from frechet.calculus.taylor._formulas import FORMULAS
from frechet.calculus.taylor._linear import LINEAR
from frechet.calculus.taylor._losses import LOSSES
from frechet.calculus.taylor._matrix import MATRICES
from frechet.calculus.taylor._selection import SELECTION
from frechet.calculus.taylor._series import Frame
from frechet.calculus.taylor._tensor import constant
from frechet.objective._torch_internals import OpOverload


def _detached(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    return constant(args[0]).detach()


RULES: dict[str, Rule] = {
    **LINEAR,
    **BILINEAR,
    **ELEMENTARY,
    **SELECTION,
    **FORMULAS,
    **MATRICES,
    **FACTORS,
    **LOSSES,
    "detach": _detached,
}
