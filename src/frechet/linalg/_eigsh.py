"""Eigenpairs at the ends of the spectrum of a symmetric A, by products alone.

Two methods: ``lanczos`` with thick restarts (`_thick_restart.py`), one product a step, and ``lobpcg`` (`_lobpcg.py`),
on blocks and with a preconditioner. The sources are there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._basis import Storage, kept_as
from frechet.linalg._eigsh_run import EigshState, Run, Which
from frechet.linalg._krylov import check_symmetric
from frechet.linalg._lobpcg import lobpcg
from frechet.linalg._result import Spectrum, Status
from frechet.linalg._thick_restart import thick_restart
from frechet.operators._operator import LinearOperator
from frechet.space import Space

Method = Literal["lanczos", "lobpcg"]


@torch.no_grad()
def eigsh(
    A: LinearOperator,
    k: int,
    *,
    seed: int,
    which: Which = "largest",
    rtol: float = 1e-3,
    atol: float = 0.0,
    max_products: int | None = None,
    method: Method = "lanczos",
    basis: int | None = None,
    storage: Storage = "device",
    x0: Tensor | None = None,
    copies: bool = False,
    preconditioner: LinearOperator | None = None,
    observe: Callable[[EigshState], bool] | None = None,
    resume: EigshState | None = None,
) -> Spectrum:
    """Estimate the k algebraically largest or smallest eigenpairs of a symmetric A, or k from each end.

    Two eigenvalues within the tolerance may be taken for one, which shifts the rest of the list. For k > 1 the run goes
    on to a twentieth of the tolerance: less than 1 % of the runs on uniform random spectra skip an eigenvalue then
    (`docs/error-bars.md`), for a seventh more products. A multiple eigenvalue is a blind spot of every method that
    starts from one vector: it is listed once, unless `copies` is True or the Krylov space ends, as for operators of low
    rank, and rounding does not hide the end.

    Args:
        A: the operator ``(n, n)``, with the fact `symmetric`. One that is not symmetric all the same shows in the
            projected matrix without a product: see Raises. A smaller asymmetry enters the residuals.
        k: how many, at most n.
        seed: of the random vectors.
        which: "largest", "smallest" or "both": 2 k pairs, or all n where the ends meet. Default: "largest".
        rtol: relative tolerance. A pair has converged when ``||A v - lambda v|| <= max(rtol |lambda|, atol, 10 eps
            ||A||)``, where ||A|| is the largest norm of a product so far. Default: 1e-3.
        atol: absolute tolerance on the same norm, in the unit of A. Default: 0.
        max_products: the most products. A run that ends there has the status `max_iterations` and the best pairs so
            far, fewer than k if fewer than k products were allowed. Default: 50 `basis`.
        method: "lanczos", or "lobpcg", which works on blocks, takes a preconditioner, and finds one end. It pays where
            a good preconditioner is at hand. Default: "lanczos".
        basis: how many vectors are kept. Default: max(2 k + 30, 40).
        storage: where they are kept: "device", "host", or rounded to "float16", "bfloat16" or "float32" (`_basis.py`).
            Rounded ones leave residuals of up to about u ||A||, u = 2^-11, 2^-8 or 2^-24: they are measured by k more
            products, within `max_products`. Where they miss a tolerance that the iteration has met, the status is
            `stagnated`. The value of a pair is better than its residual: by about the residual's square over the
            distance to the next eigenvalue. Default: "device".
        x0: guesses of the wanted vectors ``(n, j)``, such as those of an earlier operator. Lanczos starts from their
            sum, lobpcg from the block. Default: random.
        copies: whether to go on from random vectors orthogonal to all that was found, until another copy, or an
            eigenvalue that `x0` had missed, would have shown with probability 0.99. Where this leaves the residuals
            open, k more products measure them. Default: False.
        preconditioner: for lobpcg, a positive definite operator, about the inverse of A - lambda (of lambda - A for the
            largest). Default: none.
        observe: is called with an `EigshState` after each test of convergence. The run stops if it returns True.
            Default: none.
        resume: an `EigshState` of the same call, from which the run goes on. Default: none.

    Returns:
        A `Spectrum`: `values` descending, `vectors` ``(n, k)`` orthonormal. `residuals` are the norms of the tolerance;
            each bounds the distance of its value to the spectrum. They come from the projected matrix without a product
            (``||T[j:] s||``, exact for exact products), with 10 eps ||A|| added in quadrature for the rounding of the
            products, which is typical and not a bound. The status `stagnated` says that rounding or asymmetry kept a
            residual above its tolerance.

    Raises:
        NonFinite: a product holds a NaN; the message has its number.
        ValueError: u'A v and v'A u differ by 5 % of their size (float64: 1e-4).

    Example:
        >>> import torch
        >>> from frechet import eigsh, from_diagonal
        >>> A = from_diagonal(torch.cat([torch.tensor([9.0, 5.0, -7.0]), torch.linspace(0, 1, 97)]))
        >>> spectrum = eigsh(A, 1, which="both", seed=0, rtol=1e-5)
        >>> [round(x, 3) for x in spectrum.values.tolist()], bool(spectrum.converged.all())
        ([9.0, -7.0], True)
    """
    wanted = _check(A, k, which, rtol, atol, max_products, method, basis, storage, x0, copies, preconditioner)
    space = A.domain
    if wanted == 0:
        empty = torch.zeros(0, dtype=torch.float64)
        return Spectrum(empty, space.zeros(0), empty, empty.bool(), 0, 0, Status.CONVERGED, space=space)
    size = min(space.dim, max(2 * wanted + 30, 40) if basis is None else basis)
    limit = 50 * max(size, 40) if max_products is None else max_products
    fingerprint = (repr(space), method, k, which, seed, size, copies, storage)
    if resume is not None and resume.fingerprint != fingerprint:
        raise ValueError(
            "eigsh: resume must come from the same call, got (space, method, k, which, seed, basis, copies, storage) = "
            f"{resume.fingerprint} for {fingerprint}"
        )
    run = Run(A, k, which, seed, rtol, atol, limit, fingerprint, observe, resume)
    if method == "lobpcg":
        return lobpcg(run, wanted, x0, preconditioner)
    return thick_restart(run, wanted, size, x0, copies, storage)


def _check(
    A: LinearOperator, k: int, which: str, rtol: float, atol: float, max_products: int | None, method: str,
    basis: int | None, storage: Storage, x0: Tensor | None, copies: bool, preconditioner: LinearOperator | None,
) -> int:  # fmt: skip
    """The number of pairs to find; raises on bad arguments."""
    _check_request(A, k, which, rtol, atol, max_products, method)
    space, n = A.domain, A.domain.dim
    wanted = min(n, 2 * k) if which == "both" else k
    if method == "lobpcg" and (which == "both" or copies or basis is not None or storage != "device"):
        raise ValueError(
            "eigsh: which='both', copies, basis and storage must be left out with method='lobpcg'; use 'lanczos'"
        )
    if kept_as(space, storage, "eigsh")[0] != space.dtype and max_products is not None and max_products <= wanted:
        raise ValueError(
            f"eigsh: max_products must be above {wanted} with storage='{storage}', whose residuals take one product a "
            f"pair, got {max_products}"
        )
    if method == "lanczos" and preconditioner is not None:
        raise ValueError("eigsh: preconditioner must be None with method='lanczos', got one; use method='lobpcg'")
    if preconditioner is not None:
        check_symmetric(preconditioner, "eigsh", "pass a symmetric positive definite preconditioner")
        if preconditioner.domain != space:
            raise ValueError(f"eigsh: preconditioner must act on {space!r}, got {preconditioner!r}")
    if x0 is not None:
        _check_start(space, x0)
    need = min(n, wanted + 5)
    if basis is not None and basis < need:
        raise ValueError(f"eigsh: basis must be at least {need} for {wanted} pairs, got {basis}")
    return wanted


def _check_request(
    A: LinearOperator, k: int, which: str, rtol: float, atol: float, max_products: int | None, method: str
) -> None:
    check_symmetric(A, "eigsh", "for singular values use svds(A, k)")
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= A.domain.dim:
        raise ValueError(f"eigsh: k must be an int between 0 and the dimension {A.domain.dim}, got {k!r}")
    if which not in ("largest", "smallest", "both"):
        raise ValueError(f"eigsh: which must be 'largest', 'smallest' or 'both', got {which!r}")
    if method not in ("lanczos", "lobpcg"):
        raise ValueError(f"eigsh: method must be 'lanczos' or 'lobpcg', got {method!r}")
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"eigsh: rtol and atol must be non-negative, got {rtol} and {atol}")
    if max_products is not None and max_products < 1:
        raise ValueError(f"eigsh: max_products must be positive, got {max_products}")


def _check_start(space: Space, x0: Tensor) -> None:
    fits = x0.ndim == 2 and x0.shape[0] == space.length
    if not fits or x0.dtype != space.dtype or x0.device != space.device:
        got = f"{tuple(x0.shape)}, {x0.dtype}, {x0.device}"
        raise ValueError(f"eigsh: x0 must be a block ({space.length}, j) of {space!r}, got {got}")
    if not space.finite(x0):
        raise NonFinite("eigsh: x0 holds a NaN or an infinity")
