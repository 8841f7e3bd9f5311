"""Results for SciPy and estimators for scikit-learn."""

from frechet.interop._optimize_result import to_optimize_result
from frechet.interop._regressor import LeastSquaresRegressor

__all__ = [
    "LeastSquaresRegressor",
    "to_optimize_result",
]
