"""Divided differences of a function at close, equal and distant points.

f[x, y] = (f(y) - f(x)) / (y - x), f[x, x] = f'(x), and f[x, y, z] = (f[y, z] - f[x, y]) / (z - x),
f''(x) / 2 at x = y = z.

The quotient loses eps |f| / |y - x|. The formula of Hermite and Genocchi, f[x, y] = int_0^1 f'(x + s (y - x)) ds, loses
nothing at close points, and is taken by Gauss's rule. Two rules of different order tell its error: the value with the
smaller error is returned. Derivatives of f come from Taylor mode.

**Source.** Higham, "Functions of Matrices" (2008), appendix B.16. **Cost** at points that are
close: 20 values of f' for f[x, y], 136 of f'' for f[x, y, z]; none at the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frechet.calculus.taylor import jet

Pointwise = Callable[[Tensor], Tensor]
Triple = tuple[Tensor, Tensor, Tensor]
FINE, COARSE = 12, 8  # nodes on a segment: exact to 1e-16 where no singularity is nearer than its length
FINE_TRIANGLE, COARSE_TRIANGLE = 10, 6  # nodes on each side of a triangle
PIECE = 2**14  # triples whose integrals are taken at once
JUMP = 0.1  # part of f' that is a kink and not curvature
LOST_FIRST, LOST = 8.0, 100.0  # multiples of eps that quotients of each order may lose before an integral is tried


@dataclass(frozen=True)
class Scalar:
    """A function of one number with its divided differences; each function takes tensors that broadcast."""

    name: str
    value: Pointwise
    first: Callable[[Tensor, Tensor], Tensor]
    second: Callable[[Triple, Triple], Tensor]  # of (x, y, z) and (f[x, y], f[y, z], f[x, z])
    zeros: bool = False  # whether eigenvalues that are 0 up to rounding count as 0


def smooth(name: str, f: Pointwise) -> Scalar:
    """Return f with divided differences from its derivatives."""
    return Scalar(name, f, lambda x, y: _first(f, x, y), lambda xyz, of: _second(f, xyz, of))


def square_root() -> Scalar:
    """Return the square root, whose differences are sums of roots without cancellation; infinite at two zeros."""

    def first(x: Tensor, y: Tensor) -> Tensor:
        return 1 / (x.sqrt() + y.sqrt())

    def second(xyz: Triple, _: Triple) -> Tensor:
        a, b, c = (x.sqrt() for x in xyz)
        return -1 / ((a + b) * (b + c) * (a + c))

    return Scalar("sqrtm", torch.sqrt, first, second, zeros=True)


def sign(name: str, *, zeros: bool = False) -> Scalar:
    """Return the sign, constant on each side: points with the same sign have the difference zero."""
    f = torch.sign

    def first(x: Tensor, y: Tensor) -> Tensor:
        rise = f(y) - f(x)
        return torch.where(rise == 0, torch.zeros_like(rise), rise / torch.where(rise == 0, 1.0, y - x))

    return Scalar(name, f, first, lambda xyz, of: _quotient(xyz, of)[0], zeros)


def _derivative(f: Pointwise, x: Tensor, order: int) -> Tensor:
    """f' or f'' at all entries of x at once."""
    flat = x.reshape(-1)
    if not flat.numel():
        return x
    return jet(f, flat, torch.ones_like(flat), order)[1][order - 1].reshape(x.shape)


def _legendre(nodes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss's rule on [0, 1]."""
    at, weight = np.polynomial.legendre.leggauss(nodes)
    return like.new_tensor((at + 1) / 2), like.new_tensor(weight / 2)


def _first(f: Pointwise, x: Tensor, y: Tensor) -> Tensor:
    x, y = torch.broadcast_tensors(x, y)
    eps, gap = torch.finfo(x.dtype).eps, y - x
    fx, fy = f(x), f(y)
    found = (fy - fx) / gap
    lost = torch.where(gap == 0, torch.inf, eps * (fx.abs() + fy.abs()) / gap.abs())
    close = (gap == 0) | ~(lost <= LOST_FIRST * eps * found.abs())
    if not bool(close.any()):
        return found
    start, length, lost = x[close].unsqueeze(-1), gap[close].unsqueeze(-1), lost[close]

    def integral(nodes: int) -> Tensor:
        at, weight = _legendre(nodes, x)
        return _derivative(f, start + length * at, 1) @ weight

    fine = integral(FINE)
    fine = torch.where((fine - integral(COARSE)).abs() <= lost + 4 * eps * fine.abs(), fine, found[close])
    size = torch.maximum(x.abs(), y.abs()).amax()
    found[close] = torch.where(_kink(f, start[:, 0], length[:, 0], size), torch.nan, fine)
    return found


def _kink(f: Pointwise, x: Tensor, gap: Tensor, size: Tensor) -> Tensor:
    """Whether f' jumps at x by more than a tenth, where x and x + gap are equal up to rounding."""
    eps = torch.finfo(x.dtype).eps
    step = torch.maximum(eps**0.5 * x.abs(), eps * torch.where(size == 0, torch.ones_like(size), size)) + gap.abs()
    left, right = _derivative(f, x - step, 1), _derivative(f, x + step, 1)
    jumps = (right - left).abs() > JUMP * torch.maximum(left.abs(), right.abs())
    return jumps & (gap.abs() <= eps**0.5 * torch.maximum(x.abs(), eps**0.5 * size))


def _quotient(xyz: Triple, of: Triple) -> Triple:
    """The difference of second order over the longest of three gaps, that gap, and the size of what was subtracted."""
    x, y, z, xy, yz, xz = torch.broadcast_tensors(*xyz, *of)
    gaps = torch.stack([z - x, y - x, z - y])
    rises = torch.stack([yz - xy, yz - xz, xz - xy])
    sizes = torch.stack([yz.abs() + xy.abs(), yz.abs() + xz.abs(), xz.abs() + xy.abs()])
    longest = gaps.abs().argmax(0, keepdim=True)
    gap, rise, size = (t.gather(0, longest)[0] for t in (gaps, rises, sizes))
    return torch.where(rise == 0, torch.zeros_like(rise), rise / gap), gap.abs(), size


def _second(f: Pointwise, xyz: Triple, of: Triple) -> Tensor:
    found, gap, size = _quotient(xyz, of)
    eps = torch.finfo(found.dtype).eps
    lost = eps * size / gap
    close = (gap == 0) | ~(lost <= LOST * eps * found.abs())
    if not bool(close.any()):
        return found
    pieces = list(zip(*(t[close].split(PIECE) for t in torch.broadcast_tensors(*xyz)), strict=True))
    fine, coarse = (
        torch.cat([_triangle(f, x, y, z, nodes) for x, y, z in pieces]) for nodes in (FINE_TRIANGLE, COARSE_TRIANGLE)
    )
    lost = torch.where(gap == 0, torch.inf, lost)[close]
    found[close] = torch.where((fine - coarse).abs() <= lost + 4 * eps * fine.abs(), fine, found[close])
    return found


def _triangle(f: Pointwise, x: Tensor, y: Tensor, z: Tensor, nodes: int) -> Tensor:
    """int_0^1 int_0^1 s f''(x + s (y - x) + s t (z - y)) dt ds."""
    at, weight = _legendre(nodes, x)
    s, t = at.repeat_interleave(nodes), at.repeat(nodes)
    w = weight.repeat_interleave(nodes) * weight.repeat(nodes) * s
    points = x.unsqueeze(-1) + (y - x).unsqueeze(-1) * s + (z - y).unsqueeze(-1) * (s * t)
    return _derivative(f, points, 2) @ w
