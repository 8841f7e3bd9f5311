"""What can be learnt from products alone."""

from frechet.linalg.density import Density, DensityState, spectral_density
from frechet.linalg.diagonal import diagonal
from frechet.linalg.eigsh import EigshState, eigsh
from frechet.linalg.frobenius import frobenius_norm
from frechet.linalg.function import apply_function
from frechet.linalg.krylov import Arnoldi, GolubKahan, Lanczos, arnoldi, golub_kahan, lanczos
from frechet.linalg.log_determinant import log_determinant
from frechet.linalg.precondition import jacobi, nystrom, pivoted_cholesky
from frechet.linalg.result import Estimate, Solution, Spectrum, Status
from frechet.linalg.sequential import EstimateState
from frechet.linalg.sketch import gaussian_sketch, hadamard_sketch, sparse_sign_sketch
from frechet.linalg.svds import svds
from frechet.linalg.trace import trace

__all__ = [
    "Arnoldi",
    "Density",
    "DensityState",
    "EigshState",
    "Estimate",
    "EstimateState",
    "GolubKahan",
    "Lanczos",
    "Solution",
    "Spectrum",
    "Status",
    "apply_function",
    "arnoldi",
    "diagonal",
    "eigsh",
    "frobenius_norm",
    "gaussian_sketch",
    "golub_kahan",
    "hadamard_sketch",
    "jacobi",
    "lanczos",
    "log_determinant",
    "nystrom",
    "pivoted_cholesky",
    "sparse_sign_sketch",
    "spectral_density",
    "svds",
    "trace",
]
