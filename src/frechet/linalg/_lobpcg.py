"""The eigenpairs at one end of the spectrum of a symmetric A, by blocks and with a preconditioner.

Rayleigh-Ritz on [X, P, K R]: the Ritz vectors, their last change, and the (preconditioned) residuals.

**Source.** A. Knyazev 2001, "Toward the optimal preconditioned eigensolver", doi 10.1137/S1064827500366124, with the
basis of U. Hetmaniuk and R. Lehoucq 2006, doi 10.1016/j.jcp.2006.02.007.

**Differs from the source.** A is applied to the new directions only, the images of X and P follow in the coefficients;
a few pairs more are carried than were asked for.

Cost: one product per open pair and iteration, about eight blocks of memory.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from frechet.linalg._basis import combine
from frechet.linalg._eigsh_run import STREAM, EigshState, Run, applied, spectrum
from frechet.linalg._result import Spectrum, Status
from frechet.linalg._symmetry import refuse_asymmetric_matrix
from frechet.operators._operator import LinearOperator
from frechet.space import Space


def lobpcg(run: Run, wanted: int, x0: Tensor | None, preconditioner: LinearOperator | None) -> Spectrum:
    A, space, state = run.A, run.A.domain, run.resume
    b = min(space.dim, wanted + max(2, wanted // 4))
    if state is not None and state.image is not None:
        Q, AQ, theta = state.basis, state.image, state.matrix[0].numpy()
        b, products, iterations, scale = len(theta), state.products, state.iterations, state.scale
    else:
        Q = space.orthonormalize(_guesses(space, x0, b, run.seed))[0]
        AQ, scale = applied(A, Q, 0.0, 0)
        b, products, iterations = min(b, Q.shape[1]), Q.shape[1], 0
        Q, AQ, theta = _improved(run, Q, AQ, b, Q.shape[1])
    while True:
        R = AQ[:, :b] - Q[:, :b] * torch.from_numpy(theta).to(Q)
        residuals = space.norm(R).cpu().numpy()
        best = run.indices(b, wanted)
        done = run.converged(theta[best], residuals[best], scale)
        open_ = np.flatnonzero(~run.converged(theta, residuals, scale))
        if run.observe is not None:
            state = EigshState(
                run.fingerprint, torch.from_numpy(theta[best]), torch.from_numpy(residuals[best]), products, iterations,
                Q, AQ, torch.from_numpy(theta)[None], 0, scale, None,
            )  # fmt: skip
            if run.observe(state):
                status = Status.STOPPED
                break
        if bool(done.all()):
            status = Status.CONVERGED
            break
        if products >= run.limit:
            status = Status.MAX_ITERATIONS
            break
        W = R[:, torch.from_numpy(open_).to(R.device)]
        W = _complement(space, Q, W if preconditioner is None else preconditioner @ W)
        if W.shape[1] == 0:
            status = Status.STAGNATED
            break
        AW, scale = applied(A, W, scale, products)
        products, iterations = products + W.shape[1], iterations + 1
        Q, AQ, theta = _improved(run, torch.cat([Q.T, W.T]).T, torch.cat([AQ.T, AW.T]).T, b, b)
    order = torch.from_numpy(best).to(Q.device)
    vectors = Q[:, order].T.contiguous().T
    return spectrum(run, theta[best], residuals[best], done, vectors, scale, iterations, products, status)


def _improved(run: Run, Q: Tensor, AQ: Tensor, b: int, x: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """[X, P], A [X, P] and the values of X: the b best Ritz vectors of span Q, and their part outside x old columns."""
    # Q is orthonormal up to drift: its Gram matrix keeps rounding from adding up over the iterations
    L = np.linalg.inv(np.linalg.cholesky(run.A.domain.gram(Q, Q).cpu().numpy()))
    H = L @ run.A.domain.gram(Q, AQ).cpu().numpy() @ L.T
    refuse_asymmetric_matrix(run.A, torch.from_numpy(H), "eigsh")
    theta, S = np.linalg.eigh((H + H.T) / 2)
    chosen = slice(-b, None) if run.which == "largest" else slice(b)
    C, theta = S[:, chosen], theta[chosen]
    D = C.copy()
    D[:x] = 0.0
    for _ in range(2):
        D -= C @ (C.T @ D)
    U, size, _ = np.linalg.svd(D, full_matrices=False)
    C = L.T @ np.concatenate([C, U[:, size > 1e-6]], 1)
    return combine(Q, C), combine(AQ, C), theta


def _complement(space: Space, Q: Tensor, W: Tensor) -> Tensor:
    """An orthonormal basis of what W adds to the span of the orthonormal Q."""
    for _ in range(2):
        W = W / space.norm(W).clamp_min(torch.finfo(torch.float64).tiny).to(W)
        for _ in range(2):
            W = W - Q @ space.gram(Q, W).to(W)
        size = space.norm(W)
        W = space.orthonormalize(W[:, (size > 100 * space.eps).to(W.device)])[0]
    return W


def _guesses(space: Space, x0: Tensor | None, b: int, seed: int) -> Tensor:
    """The start block, filled up with random vectors."""
    missing = b if x0 is None else max(b - x0.shape[1], 0)
    drawn = space.random(range(STREAM, STREAM + missing), seed, "gaussian")
    return drawn if x0 is None else torch.cat([x0.T, drawn.T]).T
