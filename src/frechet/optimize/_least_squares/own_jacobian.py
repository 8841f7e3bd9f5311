"""A residual that brings its own Jacobian, as a matrix and as products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from torch import Tensor

from frechet.operators._operator import LinearOperator
from frechet.optimize._least_squares.residual import Parameters, Residual

LARGEST = 1 << 27  # entries of a dense Jacobian: a gibibyte in float64
DEAR = 1 << 36  # m n min(m, n), the cost of its factors: about twenty seconds on one core


class OwnJacobian(ABC):
    """A function of parameters to a tensor or a dict of tensors, with the Jacobian of their entries.

    `least_squares` takes it as any residual, and asks it for the Jacobian where ``jacobian`` is ``"auto"``, ``"dense"``
    or ``"products"``.
    """

    @abstractmethod
    def __call__(self, parameters: Parameters) -> object:
        """The residual, differentiable in the parameters."""

    @abstractmethod
    def jacobian(self, parameters: Parameters) -> Tensor:
        """The matrix ``(m, n)``, columns in the order of the parameters."""

    @abstractmethod
    def operator(self, parameters: Parameters) -> LinearOperator:
        """The same map by its products."""


def in_products(jacobian: object, m: int, n: int) -> bool:
    """Whether products serve, and not the matrix: it is cheap to form here, and its factors are more exact."""
    return jacobian == "products" or (jacobian == "auto" and (m * n > LARGEST or m * n * min(m, n) > DEAR))


def with_products(problem: Residual, jacobian: object) -> Residual:
    """The problem, its Jacobian asked for by products."""
    own = problem.function
    return (
        replace(problem, jacobian=own.operator) if isinstance(own, OwnJacobian) and not callable(jacobian) else problem
    )


def method_for(method: str, problem: Residual, shape: tuple[int, ...]) -> str:
    """The method of a call. Residuals with their own Jacobian are those of networks: long curved valleys."""
    if method != "auto":
        return method
    if not isinstance(problem.function, OwnJacobian) or problem.rho is not None:
        return "levenberg-marquardt"
    m, n = shape
    return "target-ratio" if n >= m else "adaptive-damping"
