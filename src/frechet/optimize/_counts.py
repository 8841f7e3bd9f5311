"""What a run has spent: one counter for functions without and with constraints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """Evaluations of the functions, gradients, and products with the Hessian; the only part of a run that changes."""

    evaluations: int = 0
    gradients: int = 0
    products: int = 0
