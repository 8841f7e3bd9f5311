"""Derivatives as linear operators: exact products, matrix-free linear algebra, and what curvature says of a model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from frechet import linalg, objective, operators, recording, space
from frechet.errors import LostRank, NoClosedForm, NonFinite, NotConverged, NotDifferentiable, UnusableObjective
from frechet.linalg import (
    Density,
    Estimate,
    Solution,
    Spectrum,
    Status,
    diagonal,
    eigsh,
    log_determinant,
    solve,
    spectral_density,
    svds,
    trace,
)
from frechet.objective import Objective, causal_lm, l2, subsample
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators import LinearOperator, check_operator, from_callable, from_diagonal, from_matrix, identity
from frechet.operators.derivatives import (
    empirical_fisher,
    fisher,
    gauss_newton,
    gauss_newton_product,
    hessian,
    hessian_product,
    jacobian,
    jacobian_product,
    ntk,
)
from frechet.recording import linearize
from frechet.space import Space

if TYPE_CHECKING:  # these rooms are imported when they are first used, by __getattr__ below
    from frechet import analyze, calculus, compress, interop, optimize, physics, train, transport
    from frechet.analyze import plan
    from frechet.calculus import implicit
    from frechet.optimize import LeastSquaresSolution, MinimizeSolution, least_squares, minimize, root
    from frechet.transport import TransportSolution, sinkhorn

__version__ = "0.1.0"

__all__ = [
    "Density",
    "Estimate",
    "LeastSquaresSolution",
    "LinearOperator",
    "LostRank",
    "MinimizeSolution",
    "NoClosedForm",
    "NonFinite",
    "NotConverged",
    "NotDifferentiable",
    "Objective",
    "Solution",
    "Space",
    "Spectrum",
    "Status",
    "TransportSolution",
    "UnusableObjective",
    "analyze",
    "calculus",
    "causal_lm",
    "check_operator",
    "compress",
    "cross_entropy",
    "diagonal",
    "eigsh",
    "empirical_fisher",
    "fisher",
    "from_callable",
    "from_diagonal",
    "from_matrix",
    "gauss_newton",
    "gauss_newton_product",
    "hessian",
    "hessian_product",
    "identity",
    "implicit",
    "interop",
    "jacobian",
    "jacobian_product",
    "l2",
    "least_squares",
    "linalg",
    "linearize",
    "log_determinant",
    "minimize",
    "ntk",
    "objective",
    "operators",
    "optimize",
    "physics",
    "plan",
    "recording",
    "root",
    "sinkhorn",
    "solve",
    "space",
    "spectral_density",
    "squared_error",
    "subsample",
    "svds",
    "trace",
    "train",
    "transport",
]

_LATER = {
    "analyze": ("plan",),
    "calculus": ("implicit",),
    "compress": (),
    "interop": (),
    "optimize": ("LeastSquaresSolution", "MinimizeSolution", "least_squares", "minimize", "root"),
    "physics": (),
    "train": (),
    "transport": ("TransportSolution", "sinkhorn"),
}


def __getattr__(name: str) -> Any:
    """Import the room that `name` is, or that holds `name`: half of the library loads when it is first used."""
    for room, names in _LATER.items():
        if name == room or name in names:
            module = import_module(f"frechet.{room}")
            globals().update({room: module} | {n: getattr(module, n) for n in names})
            return globals()[name]
    raise AttributeError(f"module 'frechet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
