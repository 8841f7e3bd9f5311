"""Matrix calculus: functions and factors of matrices with exact first and second derivatives."""

from frechet.calculus.matrices._guarded import cholesky, eigh, qr, svd
from frechet.calculus.matrices._matrix_function import expm, logm, matrix_function, sqrtm
from frechet.calculus.matrices._projector import polar, spectral_projector
from frechet.calculus.matrices._sylvester import kronecker_solve, lyapunov, sylvester

__all__ = [
    "cholesky",
    "eigh",
    "expm",
    "kronecker_solve",
    "logm",
    "lyapunov",
    "matrix_function",
    "polar",
    "qr",
    "spectral_projector",
    "sqrtm",
    "svd",
    "sylvester",
]
