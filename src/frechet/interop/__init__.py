"""Results for SciPy, estimators for scikit-learn, a projector for TorchJD."""

from frechet.interop._optimize_result import to_optimize_result
from frechet.interop._regressor import LeastSquaresRegressor
from frechet.interop._torchjd import dual_cone_projector

__all__ = [
    "LeastSquaresRegressor",
    "dual_cone_projector",
    "to_optimize_result",
]
