"""An inner product <u, v> = u'M v on a space, and the Riesz map M^-1 that turns derivatives into gradients.

The derivative of F at x is a linear form: DF h = g'h, with g what backpropagation gives. The gradient in the inner
product is the vector r with <r, h> = DF h for all h, so M r = g. The two are different things: under a change of
variables x = R y the derivative becomes R'g and the gradient R^-1 r. Only gradients are steps, and the size of a
derivative is its dual norm sqrt(g'M^-1 g), the largest slope along a vector of norm one.

A factor R with R R' = M^-1 is the change of variables x = R y in which the inner product is y'y. R z of a normal z has
the covariance M^-1.

**Source.** Schwedes, Ham, Funke and Piggott, "Mesh dependence in PDE-constrained optimisation" (2017), chapter 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NoClosedForm
from frechet.objective._torch_internals import in_dispatch_mode, in_transform
from frechet.operators._applied import applied
from frechet.operators._closed_form import inverse as closed_inverse
from frechet.operators._closed_form import square_root
from frechet.operators._constructors import block_diagonal
from frechet.operators._operator import Fact, LinearOperator
from frechet.space import Space

PROBES = 5  # random vectors whose squares are looked at: each misses a metric that is as often negative by one half
NEGATIVE = 1.0  # root of eps of the product of norms: what rounding in an ill-conditioned metric may leave


@dataclass(frozen=True, eq=False, repr=False)
class Metric:
    """An inner product u'M v; `cg`, `minimize` and `least_squares` take it as ``metric=``.

    What its methods return is differentiable, so that a penalty may be written with them.

    Args:
        mass: M, positive definite: from vectors to covectors.
        inverse: the Riesz map M^-1, positive definite: from covectors to vectors. Default: by the structure of `mass`.
        factor: R with R R' = M^-1. Default: by the structure of `mass`, where that has one; `least_squares` and samples
            need it.

    Example:
        >>> import torch
        >>> from frechet import from_diagonal
        >>> from frechet.operators import Metric
        >>> weights = torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64)  # of the trapezoidal rule
        >>> L2 = Metric(from_diagonal(weights))
        >>> u = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        >>> covector = torch.func.grad(lambda u: 0.5 * (weights * u**2).sum())(u)
        >>> covector, L2.riesz(covector)  # the derivative has the weights in it, the gradient is the function u
        (tensor([0.5000, 2.0000, 1.5000], dtype=torch.float64), tensor([1., 2., 3.], dtype=torch.float64))
    """

    mass: LinearOperator
    inverse: LinearOperator
    factor: LinearOperator | None

    def __init__(
        self, mass: LinearOperator, inverse: LinearOperator | None = None, *, factor: LinearOperator | None = None
    ) -> None:
        _check_definite("mass", mass)
        if inverse is None:
            try:
                inverse = closed_inverse(mass)
            except NoClosedForm as error:
                raise NoClosedForm(
                    f"Metric: inverse must be given where mass has no closed form, got {mass!r}; pass the Riesz map"
                ) from error
            factor = _root(inverse) if factor is None else factor
        _check_definite("inverse", inverse)
        for name, given in (("inverse", inverse), ("factor", factor)):
            if given is not None and given.shape != mass.shape:
                raise ValueError(f"Metric: {name} must have the shape of mass {mass.shape}, got {given.shape}")
            if given is not None and given.domain.dtype != mass.domain.dtype:
                raise TypeError(f"Metric: {name} must be {mass.domain.dtype}, got {given.domain.dtype}")
        object.__setattr__(self, "mass", mass)
        object.__setattr__(self, "inverse", inverse)
        object.__setattr__(self, "factor", factor)
        self._prove()

    def _prove(self) -> None:
        """One random vector: M^-1 M v = v, and R R'c = M^-1 c; v'M v > 0 for a few."""
        space, factor = self.mass.domain, self.factor
        for i in range(PROBES):
            v = space.random(i, 0)
            c = self.mass @ v
            self._checked_square(space.inner(v, c), v, c)
        v = space.random(0, 0)
        c = self.mass @ v
        pairs = [("inverse @ mass", self.inverse @ c)]
        if factor is not None:
            pairs.append(("factor @ factor.T @ mass", factor @ (factor.T @ c)))
        for told, back in pairs:
            error = float(space.norm(back - v)) / max(float(space.norm(v)), 1e-300)
            if not error <= space.eps**0.25:  # loose: the condition of M may be large
                raise ValueError(
                    f"Metric: {told} must be the identity, got a vector changed by {error:.3g} of its norm; correct "
                    "what was given"
                )

    def __repr__(self) -> str:
        factor = "" if self.factor is None else ", with a factor"
        return f"Metric({self.mass.domain!r}{factor})"

    @property
    def space(self) -> Space:
        """The space of the vectors."""
        return self.mass.domain

    def inner(self, u: Tensor | Mapping[str, Tensor], v: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return u'M v of two vectors, tensors with n entries or dicts of the blocks."""
        return self.space.inner(self._flat(u), applied(self.mass, self._flat(v)))

    def norm(self, v: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return sqrt(v'M v) of a vector."""
        flat = self._flat(v)
        unit = _unit(flat)
        scaled = flat / unit
        product = applied(self.mass, scaled)
        return unit * self._checked_square(self.space.inner(scaled, product), scaled, product).clamp(min=0).sqrt()

    def riesz(self, covector: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return the gradient ``(n,)``: the vector r with r'M h = covector'h for all h."""
        return applied(self.inverse, self._flat(covector))

    def covector(self, v: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return M v ``(n,)``: the linear form h -> v'M h."""
        return applied(self.mass, self._flat(v))

    def _checked_square(self, square: Tensor, v: Tensor, product: Tensor) -> Tensor:
        """A square v'M v or c'M^-1 c, which is negative only by rounding."""
        if in_transform() or in_dispatch_mode():  # values are hidden there
            return square
        value, size = float(square.detach()), float(self.space.norm(v.detach()) * self.space.norm(product.detach()))
        if value < -NEGATIVE * self.space.eps**0.5 * size:
            raise ValueError(
                f"Metric: the square of a norm must be positive, got {value:.3g} for vectors whose product of norms is "
                f"{size:.3g}; mass was declared positive definite and is not"
            )
        return square

    def _flat(self, given: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The vector of a tensor or of named blocks in any shape, such as the values on a grid; (n, k) stays."""
        space = self.space
        if isinstance(given, Mapping):
            sizes = dict(zip(space.names, space.sizes, strict=True))
            fits = given.keys() == sizes.keys() and all(given[name].numel() == size for name, size in sizes.items())
            if not fits:
                got = {name: tuple(t.shape) for name, t in given.items()}
                raise ValueError(f"Metric: a dict must hold blocks with {sizes} entries, got {got}")
            return torch.cat([given[name].reshape(-1) for name in space.names])
        if given.ndim != 1 and given.shape[:1] != (space.dim,) and given.numel() == space.dim:
            return given.reshape(-1)
        return given

    def dual_norm(self, covector: Tensor) -> Tensor:
        """Return sqrt(c'M^-1 c) of a covector ``(n,)``, or those of the columns of a block ``(n, k)``."""
        unit = _unit(covector)  # squares of small and of large covectors leave the range of the dtype
        scaled = covector / unit
        columns, raised = (t.T if t.ndim > 1 else t[None] for t in (scaled, applied(self.inverse, scaled)))
        pairs = list(zip(columns, raised, strict=True))
        squares = [self._checked_square(self.space.inner(c, r), c, r) for c, r in pairs]
        if not squares:
            return self.space.norm(covector)
        roots = unit.reshape(-1) * torch.stack(squares).clamp(min=0).sqrt()
        return roots if covector.ndim > 1 else roots[0]


def product_metric(metrics: Mapping[str, Metric], *, weights: Mapping[str, float] | None = None) -> Metric:
    """Return the inner product of a dict of variables, the weighted sum of those of its blocks.

    Args:
        metrics: the metric of each block, in the order of the variables.
        weights: factors > 0 of blocks. Default: 1.

    Example:
        >>> import torch
        >>> from frechet import from_diagonal
        >>> from frechet.operators import Metric, product_metric
        >>> one = Metric(from_diagonal(torch.ones(2)))
        >>> product_metric({"heat": one, "source": one}, weights={"source": 4.0}).mass @ torch.ones(4)
        tensor([1., 1., 4., 4.])
    """
    if not metrics:
        raise ValueError("product_metric: metrics must hold at least one block, got none")
    given = dict(weights or {})
    unknown = sorted(set(given) - set(metrics))
    if unknown or any(not (0 < w < math.inf) for w in given.values()):
        raise ValueError(f"product_metric: weights must be numbers > 0 of {sorted(metrics)}, got {given}")
    c = [float(given.get(name, 1.0)) for name in metrics]
    parts = list(metrics.values())
    shapes = tuple(
        shape for m in parts for shape in (m.space.shapes if len(m.space.shapes) == 1 else ((m.space.dim,),))
    )
    space = Space(tuple(metrics), shapes, parts[0].space.dtype, parts[0].space.device)

    def joined(blocks: list[LinearOperator]) -> LinearOperator:
        return block_diagonal(*blocks, domain=space, codomain=space)

    mass = joined([w * m.mass for w, m in zip(c, parts, strict=True)])
    riesz = joined([(1 / w) * m.inverse for w, m in zip(c, parts, strict=True)])
    factors = [m.factor for m in parts]
    known = [f for f in factors if f is not None]
    factor = joined([w**-0.5 * f for w, f in zip(c, known, strict=True)]) if len(known) == len(parts) else None
    return Metric(mass, riesz, factor=factor)


def check_metric(caller: str, metric: object, space: Space) -> Metric:
    """A metric on the vectors of `space`."""
    if not isinstance(metric, Metric):
        raise TypeError(f"{caller}: metric must be a Metric, got {type(metric).__name__}; write Metric(mass)")
    if metric.space.dim != space.dim or metric.space.dtype != space.dtype or metric.space.device != space.device:
        raise ValueError(f"{caller}: metric must be one on {space!r}, got {metric!r}")
    mine, theirs = (list(zip(s.names, s.sizes, strict=True)) for s in (metric.space, space))
    if len(mine) > 1 and len(theirs) > 1 and mine != theirs:
        raise ValueError(
            f"{caller}: metric must have the blocks of the variables in their order, {dict(theirs)}, got {dict(mine)}; "
            "name them so in product_metric"
        )
    return metric


def _unit(v: Tensor) -> Tensor:
    """A power of two near the largest entry of each column, by which squares stay in range; a constant."""
    with torch.no_grad():
        largest = v.abs().amax(0) if v.numel() else v.new_ones(v.shape[1:])
        usable = (largest > 0) & largest.isfinite()
        return torch.where(usable, torch.exp2(torch.where(usable, largest, 1.0).log2().round()), 1.0)


def _check_definite(name: str, given: object) -> None:
    if not isinstance(given, LinearOperator):
        raise TypeError(
            f"Metric: {name} must be a LinearOperator, got {type(given).__name__}; wrap a matrix with from_matrix(M, "
            "facts='positive_definite')"
        )
    if Fact.POSITIVE_DEFINITE not in given.facts:
        raise ValueError(
            f"Metric: {name} must be positive definite, got {given!r} without that fact; declare "
            "facts='positive_definite' where it is made"
        )


def _root(inverse: LinearOperator) -> LinearOperator | None:
    try:
        return square_root(inverse)
    except NoClosedForm:
        return None
