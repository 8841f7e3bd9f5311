"""The exceptions of the library. Each says what happened, with the values, and what to do.

Wrong arguments raise the built-in `TypeError` (kind) or `ValueError` (value); the classes here are for the cases in
which a caller may want to catch this one thing.
"""

from __future__ import annotations


class NoClosedForm(TypeError):
    """A structure question (`inverse`, `square_root`) was asked of an operator without that structure."""


class NonFinite(ArithmeticError):
    """A NaN or an infinity, with the place where it first appeared."""


class UnusableObjective(ValueError):
    """An objective that is not one fixed function: dropout, batch statistics, a shuffling loader, a wrong loss."""


class NotConverged(RuntimeError):
    """An algorithm stopped before its tolerance. `result` is what it had reached."""

    def __init__(self, message: str, result: object) -> None:
        super().__init__(message)
        self.result = result


class NotDifferentiable(RuntimeError):
    """An operation of the model or the loss that lacks the derivative a product needs."""


class LostRank(RuntimeError):
    """Another process of the group ended, or did not answer within the group's timeout."""
