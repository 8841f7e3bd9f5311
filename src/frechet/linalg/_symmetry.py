"""Whether an operator that was declared symmetric is: a test that costs no product.

The algorithms for symmetric operators compute numbers u'A v and v'A u anyway, and use one of the two. For a symmetric A
they agree up to the noise of the products; for random u and v their root mean square difference is that of the
entries of A - A'.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frechet.operators._operator import Fact, LinearOperator

# Allowed differences relative to the size of the products. Products in float32 may run through bfloat16 (autocast),
# whose noise is up to 1e-2; in float64 they may run through float32.
COARSE, FINE = 0.05, 1e-4


def refuse_asymmetric(A: LinearOperator, Z: Tensor, Y: Tensor, caller: str) -> None:
    """Raise unless the numbers z_i'y_j of random probes Z and their products Y = A Z are symmetric up to noise.

    Nothing is tested where A is not said to be symmetric.
    """
    k = Z.shape[1]
    if k < 2 or Fact.SYMMETRIC not in A.facts:
        return
    M = A.domain.gram(Z, Y)
    # z_i'y_j is about |y_j|, for probes with E z z' = I
    refuse_asymmetric_matrix(A, M, caller, math.hypot(*A.domain.norm(Y).tolist()) * math.sqrt(k))


def refuse_asymmetric_matrix(A: LinearOperator, M: Tensor, caller: str, size: float | None = None) -> None:
    """Raise unless M is symmetric up to the noise of products; `size` is about its norm, which is the default."""
    # in units of the largest entry, whose squares are numbers
    unit = float(M.abs().max()) if M.numel() else 0.0
    if not (unit > 0.0 and math.isfinite(unit)):
        return
    whole = float(torch.linalg.matrix_norm(M / unit)) if size is None else size / unit
    apart = float(torch.linalg.matrix_norm((M - M.T) / unit)) / math.sqrt(2)
    allowed = COARSE if A.domain.eps > 1e-10 else FINE
    if apart > allowed * whole:
        raise ValueError(
            f"{caller}: A must be symmetric, as its facts say, got u'A v and v'A u that differ by {apart / whole:.2g} "
            f"of their size in {A!r}; leave the fact out if A is not symmetric, or mend its products"
        )
