"""Matrix-free linear algebra: eigenvalues, estimates, functions of operators, sketches, linear systems."""

from frechet.linalg._density import Density, DensityState, spectral_density
from frechet.linalg._diagonal import diagonal
from frechet.linalg._eigsh import eigsh
from frechet.linalg._eigsh_run import EigshState
from frechet.linalg._entrywise import EntrywiseNorm, entrywise_norm
from frechet.linalg._frobenius import frobenius_norm
from frechet.linalg._function import apply_function
from frechet.linalg._krylov import Arnoldi, GolubKahan, Lanczos, arnoldi, golub_kahan, lanczos
from frechet.linalg._log_determinant import log_determinant
from frechet.linalg._precondition import jacobi, nystrom, pivoted_cholesky
from frechet.linalg._result import Estimate, Solution, Spectrum, Status
from frechet.linalg._sequential import EstimateState
from frechet.linalg._sketch import gaussian_sketch, hadamard_sketch, sparse_sign_sketch
from frechet.linalg._svds import svds
from frechet.linalg._trace import trace
from frechet.linalg.systems._cg import CGState, cg
from frechet.linalg.systems._gmres import GmresState, gmres
from frechet.linalg.systems._lsmr import LsmrState, lsmr
from frechet.linalg.systems._minres import MinresState, minres
from frechet.linalg.systems._sketched_lstsq import SketchedSolution, sketched_lstsq
from frechet.linalg.systems._solve import solve

__all__ = [
    "Arnoldi",
    "CGState",
    "Density",
    "DensityState",
    "EigshState",
    "EntrywiseNorm",
    "Estimate",
    "EstimateState",
    "GmresState",
    "GolubKahan",
    "Lanczos",
    "LsmrState",
    "MinresState",
    "SketchedSolution",
    "Solution",
    "Spectrum",
    "Status",
    "apply_function",
    "arnoldi",
    "cg",
    "diagonal",
    "eigsh",
    "entrywise_norm",
    "frobenius_norm",
    "gaussian_sketch",
    "gmres",
    "golub_kahan",
    "hadamard_sketch",
    "jacobi",
    "lanczos",
    "log_determinant",
    "lsmr",
    "minres",
    "nystrom",
    "pivoted_cholesky",
    "sketched_lstsq",
    "solve",
    "sparse_sign_sketch",
    "spectral_density",
    "svds",
    "trace",
]
