"""Reduced models: u = D(z) with few latents z, and their velocity from the full equation u_t = N(u).

    velocity    dz/dt = argmin |J dz/dt - N(D(z))|,  J = dD/dz
    defect      |(I - J J^+) N| / |N|, the part of the full velocity that no change of the latents gives

A defect of zero means that the trajectory stays on the manifold of the decoder, and the reduced model is exact there.

**Source.** K. Lee and K. Carlberg (2020), Model reduction of dynamical systems on nonlinear manifolds using deep
convolutional autoencoders, equation 3.7, doi 10.1016/j.jcp.2019.108973.
**Differs from the source:** a decoder whose Jacobian lacks rank is refused, and the defect comes with the velocity.
**Cost.** One Jacobian of the decoder by forward mode, as many directions as latents, and its QR factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.objective._torch_internals import in_transform


@dataclass(frozen=True, eq=False)
class LatentVelocity:
    """The velocity ``(r,)`` of the latents, and the defect, both differentiable in the latents."""

    velocity: Tensor
    defect: Tensor


def galerkin_velocity(
    decoder: Callable[[Tensor], Tensor],
    field: Callable[[Tensor], Tensor],
    z: Tensor,
    *,
    weights: Tensor | None = None,
) -> LatentVelocity:
    """Return the velocity of the latents of a reduced model, and the part of the full velocity that it misses.

    Args:
        decoder: D, from latents ``(r,)`` to a state of any shape.
        field: N, from a state to its time derivative, of the same shape.
        z: the latents ``(r,)``.
        weights: quadrature weights of the entries of a state, positive, shaped like it. Default: 1.

    Raises:
        ValueError: the Jacobian of the decoder lacks rank at z, so that velocities are not unique.

    Example:
        >>> import torch
        >>> from frechet.physics import galerkin_velocity
        >>> x = torch.arange(64, dtype=torch.float64) * (2 * torch.pi / 64)
        >>> def wave(z):  # amplitude and phase
        ...     return z[0] * torch.sin(x - z[1])
        >>> def transport(u):  # u_t = -3 u_x - 0.1 u, by Fourier series
        ...     k = torch.fft.rfftfreq(64, 1 / 64, dtype=torch.float64)
        ...     return -3 * torch.fft.irfft(1j * k * torch.fft.rfft(u), 64) - 0.1 * u
        >>> found = galerkin_velocity(wave, transport, torch.tensor([2.0, 0.5], dtype=torch.float64))
        >>> found.velocity.round(decimals=10), float(found.defect) < 1e-12
        (tensor([-0.2000,  3.0000], dtype=torch.float64), True)
    """
    if not isinstance(z, Tensor) or z.ndim != 1:
        got = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"galerkin_velocity: z must be a vector (r,), got {got}")
    u = decoder(z)
    N = field(u)
    if not isinstance(N, Tensor) or N.shape != u.shape:
        got = tuple(N.shape) if isinstance(N, Tensor) else type(N).__name__
        raise ValueError(f"galerkin_velocity: field must return a state {tuple(u.shape)}, got {got}")
    if u.numel() < z.numel():
        raise ValueError(f"galerkin_velocity: a state must have at least the {z.numel()} entries of z, got {u.numel()}")
    J = torch.func.jacfwd(decoder)(z).reshape(u.numel(), z.numel())
    n = N.reshape(-1)
    if weights is not None:
        if weights.shape != u.shape:
            raise ValueError(
                f"galerkin_velocity: weights must have the shape {tuple(u.shape)}, got {tuple(weights.shape)}"
            )
        root = weights.reshape(-1).sqrt()
        J, n = root[:, None] * J, root * n
    Q, R = torch.linalg.qr(J)
    _check_rank(R, J.shape)
    inside = Q.mT @ n
    velocity = torch.linalg.solve_triangular(R, inside[:, None], upper=True)[:, 0]
    left = n - Q @ inside
    size = n.square().sum()
    defect = torch.where(size > 0, left.square().sum() / torch.where(size > 0, size, 1.0), 0.0)
    return LatentVelocity(velocity, _root(defect))


def _root(square: Tensor) -> Tensor:
    """The square root, with a derivative of zero at zero."""
    safe = torch.where(square > 0, square, 1.0)
    return torch.where(square > 0, safe.sqrt(), 0.0)


def _check_rank(R: Tensor, shape: torch.Size) -> None:
    if in_transform():  # values are hidden there
        return
    values = torch.linalg.svdvals(R.detach())
    least = torch.finfo(R.dtype).eps * max(shape) * float(values[0]) if len(values) else 0.0
    if not math.isfinite(float(values.sum())):
        raise ValueError("galerkin_velocity: the Jacobian of decoder must be finite at z, got NaN or infinity")
    rank = int((values > least).sum())
    if rank < shape[1]:
        raise ValueError(
            f"galerkin_velocity: the Jacobian of decoder must have rank {shape[1]} at z, got {rank}, so velocities are "
            "not unique there; drop latents that do nothing"
        )
