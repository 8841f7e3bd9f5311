"""Derivatives at kinks: from either side, and whether what autograd returns is one of Clarke's.

For piecewise smooth f the one-sided derivative along v is the limit of the derivative at x + h v, h -> 0+, since no
other kink lies near. Two points h and 4 h give it to second order, (4 D(h) - D(4 h)) / 3; of a ladder of h the value
that agrees best with the next decides, and their difference is the error.

Clarke's derivative at x is the convex hull of the limits of gradients around x. They are taken from random directions,
and the distance of autograd's gradient to their hull is found by non-negative least squares. A positive distance is an
error of the program, such as relu(x) - relu(-x), which is x with derivative one, and zero by autograd.

**Source.** Lee, Park and Aiken, "On the correctness of automatic differentiation for neural networks with
machine-representable parameters" (2023), arXiv 2301.13370; Clarke, "Optimization and nonsmooth analysis" (1983).
**Cost:** 2 times 8 forward derivatives; 2 gradients for each sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.linalg._shown import Result
from frechet.space import euclidean

RUNGS = 8


@dataclass(frozen=True, eq=False)
class OneSided(Result):
    """The derivatives of f along v at x: from x + h v (`right`), from x - h v (`left`), and autograd's."""

    right: Tensor
    left: Tensor
    autograd: Tensor
    error: Tensor  # of right and left
    kink: Tensor  # bool: right and left differ by more than the error

    @property
    def agrees(self) -> Tensor:
        """Whether autograd's derivative is between the two sides, up to the error."""
        low, high = torch.minimum(self.left, self.right), torch.maximum(self.left, self.right)
        return (self.autograd >= low - self.error) & (self.autograd <= high + self.error)

    def _line(self) -> str:
        return f"right {self.right.tolist()}, left {self.left.tolist()}, autograd {self.autograd.tolist()}"


def one_sided_derivative(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> OneSided:
    """Return the derivatives of f along v from both sides, and autograd's between them or not.

    Args:
        f: a function of one tensor, made of torch functions with a forward derivative.
        x: the point.
        v: the direction, of x's shape.

    Example:
        >>> import torch
        >>> from frechet.calculus.kinks import one_sided_derivative
        >>> x, one = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
        >>> found = one_sided_derivative(torch.relu, x, one)
        >>> float(found.left), float(found.right), bool(found.kink), bool(found.agrees)
        (0.0, 1.0, True, True)
    """
    if x.shape != v.shape or not x.is_floating_point():
        raise ValueError(f"one_sided_derivative: v must have the shape of x, {tuple(x.shape)}, got {tuple(v.shape)}")
    x, v = x.detach(), v.detach()
    size = max(float(v.abs().max()), torch.finfo(x.dtype).tiny)
    # from below a rounding of x's, up by 4^7: the second-order term and rounding are both small on the way
    step = torch.finfo(x.dtype).eps ** (2 / 3) * (1 + float(x.abs().max())) / size

    def slope(h: float) -> Tensor:
        return torch.func.jvp(f, (x + h * v,), (v,))[1].detach()

    ends, errors = [], []
    for sign in (1.0, -1.0):
        ladder = [slope(sign * step * 4.0**k) for k in range(RUNGS)]
        better = torch.stack([(4 * a - b) / 3 for a, b in itertools.pairwise(ladder)])
        off = (better[1:] - better[:-1]).abs()
        best = off.argmin(0, keepdim=True)
        ends.append(better.gather(0, best).squeeze(0))
        errors.append(off.gather(0, best).squeeze(0))
    error = errors[0] + errors[1]
    scale = ends[0].abs() + ends[1].abs()
    error = error + 64 * torch.finfo(x.dtype).eps ** (2 / 3) * (1 + scale)
    right, left = ends
    return OneSided(right, left, slope(0.0), error, (right - left).abs() > 4 * error)


@dataclass(frozen=True, eq=False)
class ClarkeCheck(Result):
    """Autograd's gradient beside Clarke's derivative at a point."""

    gradient: Tensor  # autograd's
    distance: float  # to the convex hull of limits of gradients around the point
    tolerance: float
    kink: bool  # whether limits of gradients differ
    samples: int

    @property
    def passed(self) -> bool:
        """Whether autograd's gradient is an element of Clarke's derivative."""
        return self.distance <= self.tolerance

    def _line(self) -> str:
        where = "a kink" if self.kink else "a smooth point"
        told = "is" if self.passed else "is not"
        return f"{where}, autograd's gradient {told} Clarke's, distance {self.distance:.3g}"


def clarke_check(f: Callable[[Tensor], Tensor], x: Tensor, *, seed: int, samples: int = 64) -> ClarkeCheck:
    """Test whether autograd's gradient of f at x lies in Clarke's generalized gradient.

    At a smooth point that is whether it is right. The hull is that of the gradients that samples found: in many
    dimensions a kink of many pieces needs more of them.

    Args:
        f: a function of one tensor that returns a scalar tensor.
        x: the point.
        seed: of the directions.
        samples: how many points around x, >= 2.

    Example:
        >>> import torch
        >>> from frechet.calculus.kinks import clarke_check
        >>> x = torch.zeros(1, dtype=torch.float64)
        >>> clarke_check(lambda x: x.abs().sum(), x, seed=0).passed
        True
        >>> clarke_check(lambda x: (torch.relu(x) - torch.relu(-x)).sum(), x, seed=0)
        ClarkeCheck(a smooth point, autograd's gradient is not Clarke's, distance 1)
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise ValueError(f"clarke_check: samples must be an integer >= 2, got {samples!r}")
    x = x.detach()

    def gradient(at: Tensor) -> Tensor:
        return torch.func.grad(f)(at).detach()

    V = euclidean(x.numel(), x.dtype, x.device).random(range(samples), seed, "gaussian").T
    step = torch.finfo(x.dtype).eps ** (1 / 3) * (1 + float(x.abs().max()))
    limits = []
    for v in V:
        u = (v / v.abs().max()).reshape(x.shape)
        # linear extrapolation to the point, within one piece
        limits.append((2 * gradient(x + step / 2 * u) - gradient(x + step * u)).flatten())
    G, g = torch.stack(limits).double(), gradient(x).flatten().double()
    size = 1 + float(G.abs().max())
    tolerance = 100 * float(torch.finfo(x.dtype).eps) ** (1 / 2) * size
    spread = float((G - G.mean(0)).abs().max())
    return ClarkeCheck(g.reshape(x.shape), _distance(G, g), tolerance, spread > tolerance, samples)


def _distance(G: Tensor, g: Tensor) -> float:
    """The distance of g to the convex hull of G's rows: weights >= 0, whose sum of one weighs heavily."""
    off = (G - g).cpu().numpy()
    heavy = 1e4 * (1 + float(np.abs(off).max()))
    A = np.vstack([off.T, heavy * np.ones(len(off))])
    w, _ = scipy.optimize.nnls(A, np.concatenate([np.zeros(off.shape[1]), [heavy]]))
    return float(np.sqrt(np.square(off.T @ (w / w.sum())).sum()))
