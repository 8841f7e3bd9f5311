"""Results for SciPy, estimators for scikit-learn, monitors for trainers of other libraries, a projector for TorchJD,
a backend for laplace-torch."""

from frechet.interop._accelerate import AcceleratedMonitor, for_accelerate
from frechet.interop._laplace import laplace_backend
from frechet.interop._lightning import for_lightning
from frechet.interop._optimize_result import to_optimize_result
from frechet.interop._regressor import LeastSquaresRegressor
from frechet.interop._torchjd import dual_cone_projector
from frechet.interop._transformers import for_transformers

__all__ = [
    "AcceleratedMonitor",
    "LeastSquaresRegressor",
    "dual_cone_projector",
    "for_accelerate",
    "for_lightning",
    "for_transformers",
    "laplace_backend",
    "to_optimize_result",
]
