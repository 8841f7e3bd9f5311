"""Residuals of a differential equation and of its conditions at points, as one residual of the parameters.

    r(p) = (w_k / sqrt(N_k) f_k(p, x_ki)),  i = 1..N_k,  k = 1..K,        norm(r)^2 = sum_k w_k^2 mean_i f_k(p, x_ki)^2

u is any function with parameters, a network above all; f_k takes derivatives of it at one point x_ki. Because each
residual sees one point, a row of J is one gradient (`_rows.py`).

**Source** of the weights 1 / sqrt(N_k) and of Gauss-Newton on such residuals: J. Mueller and M. Zeinhofer (2023),
Achieving high accuracy with PINNs via energy natural gradients, arXiv 2302.13163. **Differs from the source:** the
steps are those of `least_squares`, which never forms J'J.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from frechet.objective._torch_internals import in_dispatch_mode, in_transform
from frechet.optimize._least_squares.own_jacobian import OwnJacobian
from frechet.physics._conditions import AtPoint, Condition, Points, Weight, conditions_of
from frechet.physics._domain import Domain, inside
from frechet.physics._one_point import proved
from frechet.physics._rows import PointJacobian, jacobian_matrix, pieces, rows_at
from frechet.space import Point, Variables, euclidean, like, named


@dataclass
class _Known:
    """What the first evaluation found; the one thing here that changes."""

    entries: tuple[int, ...] | None = None  # residuals at a point, for each condition


@dataclass(frozen=True, eq=False, repr=False)
class Collocation(OwnJacobian):
    """Residuals at points, for `least_squares`; made by `collocation`."""

    conditions: tuple[Condition, ...]
    mean: bool
    chunk: int | None
    domain: Domain | None = None
    _known: _Known = field(default_factory=_Known)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the conditions."""
        return tuple(c.name for c in self.conditions)

    def __repr__(self) -> str:
        return f"Collocation({', '.join(f'{c.name}: {len(c)} points' for c in self.conditions)})"

    def __call__(self, parameters: Point) -> dict[str, Tensor]:
        """The residuals ``(N, k)`` of each condition, with their weights; differentiable in the parameters."""
        self.entries(parameters)
        return {c.name: c.values(parameters) for c in self.conditions}

    def entries(self, parameters: Point) -> tuple[int, ...]:
        """The number of residuals at a point, for each condition; the first call proves the conditions."""
        if self._known.entries is None:
            if in_transform() or in_dispatch_mode():
                raise ValueError(
                    "collocation: the residual must be called once with plain tensors, so that it can be checked, got "
                    "a first call inside of a transform; call residual(parameters) before"
                )
            plain = like(parameters, [t.detach() for t in named(parameters).values()])
            self._known.entries = proved(self.conditions, Variables.of(plain), plain)
        return self._known.entries

    def jacobian(self, parameters: Point) -> Tensor:
        """J ``(m, n)``: rows by condition and point, columns in the order of the parameters."""
        entries, plain = self.entries(parameters), _detached(parameters)
        with torch.no_grad():
            return jacobian_matrix(self.conditions, entries, Variables.of(plain), plain, self.chunk)

    def operator(self, parameters: Point) -> PointJacobian:
        """J by its products, `chunk` points at a time: for networks whose J does not fit into memory."""
        entries, plain = self.entries(parameters), _detached(parameters)
        variables = Variables.of(plain)
        space = variables.space
        m = sum(len(c) * k for c, k in zip(self.conditions, entries, strict=True))
        blocks = [t.clone() for t in named(plain).values()]
        image = euclidean(m, space.dtype, space.device)
        return PointJacobian(self.conditions, variables, blocks, entries, self.chunk, image)

    def gram(self, parameters: Point, first: str, second: str | None = None) -> Tensor:
        """The block of J J' between two conditions, or of one: the neural tangent kernel of the residuals."""
        parts = {}
        for name in dict.fromkeys((first, second or first)):
            if name not in self.names:
                raise ValueError(f"Collocation.gram: conditions are {list(self.names)}, got {name!r}")
            parts[name] = self.only(name).jacobian(parameters)
        return parts[first] @ parts[second or first].T

    # --- other points and weights -------------------------------------------------------------------------------------

    def only(self, *names: str) -> Collocation:
        """The same with some of the conditions."""
        kept = [i for i, c in enumerate(self.conditions) if c.name in names]
        known = self._known.entries
        entries = None if known is None else tuple(known[i] for i in kept)
        return replace(self, conditions=tuple(self.conditions[i] for i in kept), _known=_Known(entries))

    def at(self, points: Mapping[str, Points]) -> Collocation:
        """The same conditions at other points; conditions that are not named keep theirs."""
        strange = sorted(set(points) - set(self.names))
        if strange:
            raise ValueError(f"Collocation.at: conditions are {list(self.names)}, got points of {strange}")
        whole = {c.name: points.get(c.name, c.columns) for c in self.conditions}
        return self._with(whole, {c.name: c.weight for c in self.conditions})

    def sample(self, count: int | Mapping[str, int], *, seed: int) -> Collocation:
        """A random part of the points: `count` of each condition at most, drawn without repetition."""
        draw, points, weights = torch.Generator().manual_seed(seed), {}, {}
        for c in self.conditions:
            wanted = count if isinstance(count, int) else count.get(c.name, len(c))
            if wanted < 1:
                raise ValueError(f"Collocation.sample: count of '{c.name}' must be at least 1, got {wanted}")
            some = torch.randperm(len(c), generator=draw)[:wanted].to(c.columns[0].device)
            points[c.name] = c.rows(some)
            weights[c.name] = c.weight[some] if isinstance(c.weight, Tensor) and c.weight.ndim else c.weight
        return self._with(points, weights)

    def weighted(self, weights: Mapping[str, Weight]) -> Collocation:
        """The same with other weights; conditions that are not named keep theirs."""
        strange = sorted(set(weights) - set(self.names))
        if strange:
            raise ValueError(f"Collocation.weighted: conditions are {list(self.names)}, got weights of {strange}")
        return self._with(
            {c.name: c.columns for c in self.conditions},
            {c.name: weights.get(c.name, c.weight) for c in self.conditions},
        )

    def balanced(self, parameters: Point) -> Collocation:
        """The same with weights that give all conditions the same mean square of the rows of J.

        The squares of the weights are the lambda_k = tr(K) / tr(K_k) of the neural tangent kernel K = J J' with blocks
        K_k, traces taken as means over the points, and relative to the first condition.

        Source: S. Wang, X. Yu and P. Perdikaris (2022), When and why PINNs fail to train: a neural tangent kernel
        perspective, algorithm 1, arXiv 2007.14527.
        """
        variables, plain = Variables.of(_detached(parameters)), _detached(parameters)
        entries, sizes = self.entries(parameters), {}
        for c, k in zip(self.conditions, entries, strict=True):
            bare = replace(c, factors=torch.ones_like(c.factors))
            with torch.no_grad():
                total = sum(float(rows.square().sum()) for rows in self._rows(bare, k, variables, plain))
            sizes[c.name] = (total / len(c)) ** 0.5
        first = sizes[self.names[0]]
        return self.weighted({name: first / size for name, size in sizes.items() if size > 0})

    def _rows(self, c: Condition, k: int, variables: Variables, parameters: Point) -> Sequence[Tensor]:
        space = variables.space
        return [
            rows_at(c, variables, parameters, index)
            for index in pieces(c, k * space.dim, space.dtype.itemsize, self.chunk)
        ]

    def _with(self, points: Mapping[str, Points], weights: Mapping[str, Weight]) -> Collocation:
        made = conditions_of({c.name: c.f for c in self.conditions}, points, weights, self.mean)
        inside(self.domain, made)
        return replace(self, conditions=made, _known=_Known(self._known.entries))


def collocation(
    residual_at: AtPoint | Mapping[str, AtPoint],
    points: Points | Mapping[str, Points],
    *,
    weights: Mapping[str, Weight] | Weight | None = None,
    mean: bool = True,
    domain: Domain | None = None,
    chunk: int | None = None,
) -> Collocation:
    """Return the residuals of a differential equation and its conditions at points, to be given to `least_squares`.

    Their Jacobian takes one gradient for each point, all in one pass; the plain call of `least_squares` takes it, and
    the method that suits networks. The first evaluation proves that residuals see one point each, are finite and
    depend on the parameters, and names the condition that does not.

    Args:
        residual_at: a function of the parameters and of ONE point, to a number or a tensor of k numbers (a system). A
            dict gives each condition its own, by the names of `points`. Derivatives in the point come from
            `frechet.calculus.taylor` or `torch.func`.
        points: for each condition a tensor ``(N, d)``, one point in a row, or a tuple of tensors with N rows, as points
            with measured values; residual_at then gets a row of each. A tensor alone is one condition.
        weights: of each condition a number >= 0, or one for each point ``(N,)``, by which its residuals are multiplied.
            Default: 1.
        mean: divide residuals by the square root of the number of points of their condition, so that the cost is half
            the sum of mean squares. With False residuals are what residual_at returns, as statistics wants them: divide
            by the standard deviation there, and give ``absolute_sigma=True`` to `least_squares`.
        domain: where all points must lie: a pair of lower and upper limits, numbers or tensors ``(d,)``, or a function
            of points ``(N, d)`` to booleans ``(N,)``. Default: anywhere.
        chunk: the most points whose gradients are held at a time, >= 1. Default: 64 MiB of them.

    Example:
        >>> import torch
        >>> from frechet import least_squares
        >>> from frechet.calculus.taylor import differential_operator
        >>> from frechet.physics import collocation
        >>> def equation(p, x):  # u'' + u = 0 for u = p_0 + p_1 x + ... + p_8 x^8
        ...     def u(x):
        ...         return sum(c * x[..., 0] ** k for k, c in enumerate(p))
        ...     return differential_operator(u, "u_xx + u", variables="x")(x)
        >>> def start(p, x):  # u(0) = 0, u'(0) = 1
        ...     return torch.stack([p[0], p[1] - 1])
        >>> x = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
        >>> residual = collocation({"equation": equation, "start": start}, {"equation": x, "start": x[:1]})
        >>> s = least_squares(residual, torch.ones(9, dtype=torch.float64))
        >>> s.converged, abs(float(s.x.sum()) - float(torch.tensor(1.0).double().sin())) < 1e-8
        (True, True)
    """
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"collocation: chunk must be an integer >= 1 or None, got {chunk!r}")
    conditions = conditions_of(residual_at, points, weights, mean)
    inside(domain, conditions)
    return Collocation(conditions, mean, chunk, domain)


def _detached(parameters: Point) -> Point:
    return like(parameters, [t.detach() for t in named(parameters).values()])
