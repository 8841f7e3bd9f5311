"""Gradients through an inner minimum: d/dtheta outer(x*(theta), theta) with x*(theta) = argmin_x inner(x, theta).

    (H + damping I) v = d outer / dx,    H = d^2 inner / dx^2
    gradient = d outer / dtheta - (d^2 inner / dtheta dx) v

all at a given x near x*: one linear solve by products with H, however many hyperparameters there are. The inverse:

    cg        to a tolerance; preconditioned by a Nystrom approximation of H where a rank is given
    neumann   sum_{i < terms} (I - scale (H + damping I))^i scale: no inner products, one vector fewer
    nystrom   the inverse of a random low-rank approximation of H plus damping: products with H all at once

Each is followed by the true residual r = d outer/dx - (H + damping I) v. With L(x, theta) = outer - <d inner/dx, v>,
the gradient is dL/dtheta, and dL/dx is 0 for the exact v; its error to first order in x* - x and v* - v is

    L_theta,x p - (d^2 inner / dtheta dx) w,   H p = -d inner/dx,   H w = L_x + L_xx p

**Source.** F. Pedregosa (2016), Hyperparameter optimization with approximate gradient, algorithm 1 and theorem 1, arXiv
1602.02355 (cg, the roles of both errors); J. Lorraine, P. Vicol and D. Duvenaud (2020), Optimizing millions of
hyperparameters by implicit differentiation, algorithm 3, arXiv 1911.02590 (neumann); R. Hataya and M. Yamada (2023),
Nystrom method for accurate and scalable implicit differentiation, equation 6, arXiv 2302.09726 (nystrom).

**Differs from the source.** The residual is recomputed and the first-order error estimated; the scale of the Neumann
series is one over an upper estimate of the largest eigenvalue, and a series that grows is stopped.

**Cost.** A product with H per iteration, term or rank, two gradients of outer and inner; five vectors like x for cg,
three for neumann, some ten for each rank for nystrom; one like theta. Without data the inner gradient's graph is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.solutions._approximate_inverse import Inverse, InverseRules
from frechet.calculus.solutions._equations import check_status, point_of, spread
from frechet.calculus.solutions._sensitivity import GraphJacobian
from frechet.errors import NotConverged
from frechet.linalg._result import Solution
from frechet.linalg.systems._cg import CGState
from frechet.operators._operator import SYMMETRIC, Fact, LinearOperator, SymmetricOperator
from frechet.operators.derivatives._products import grads, second_order
from frechet.space import Point, Space, Variables, named

Term = Callable[[Point, Point], Tensor]
STATIONARY = 1e-3  # as `tolerance` of implicit


@dataclass(frozen=True, eq=False)
class Hypergradient:
    """A gradient through an inner minimum, and what is known of its errors.

    `gradient` is shaped like theta, `value` is outer(x, theta). `solve` is the solution v of the linear system with its
    status, `residual` its norm(r) / norm(d outer/dx); `stationarity` is norm(d inner/dx), zero at the minimum.
    `products` counts those with H, of all solves.

    `correction`, shaped like theta, is the first-order effect of both errors (of x, and of v, damping included) on the
    gradient, and `error` its norm: an estimate, no bound. ``gradient + correction`` has an error of second order.
    `inner_error` and `solve_error` are bounds of norm(x - x*) and norm(v - v*) for an inner function whose Hessian has
    no eigenvalue below the given `curvature`. All four are None where they were not asked for.
    """

    gradient: Tensor | dict[str, Tensor]
    value: float
    solve: Solution
    residual: float
    stationarity: float
    products: int
    correction: Tensor | dict[str, Tensor] | None = None
    error: float | None = None
    inner_error: float | None = None
    solve_error: float | None = None

    @property
    def converged(self) -> bool:
        return self.solve.converged

    def checked(self) -> Hypergradient:
        """This gradient if its linear system was solved to the tolerance; raises `NotConverged` otherwise."""
        if self.converged:
            return self
        raise NotConverged(
            f"hypergradient: {self.solve.message}, status '{self.solve.status}', relative residual {self.residual:.3g}",
            self,
        )


def hypergradient(
    outer: Callable[..., Tensor],
    inner: Callable[..., Tensor],
    x: Point,
    theta: Point,
    *,
    inverse: Inverse = "cg",
    damping: float = 0.0,
    rtol: float | None = None,
    max_iterations: int | None = None,
    preconditioner: LinearOperator | None = None,
    rank: int | None = None,
    terms: int | None = None,
    scale: float | None = None,
    seed: int | None = None,
    outer_data: Iterable[Any] | None = None,
    inner_data: Iterable[Any] | None = None,
    curvature: float | None = None,
    correct: bool = False,
    strict: bool = True,
    observe: Callable[[CGState], bool] | None = None,
) -> Hypergradient:
    """Return d/dtheta of outer(x*(theta), theta), at x near x*(theta) = argmin_x inner(x, theta).

    x must be a solution. A result that is not converged raises `NotConverged`. So does an x at which the gradient of
    inner is larger than a change of x by a thousandth makes it, unless ``strict=False`` or the error of x is asked for
    (`correct`, `curvature`).

    With `inner_data` or `outer_data` the functions are called as ``inner(x, theta, batch)``, summed over the batches,
    and hold the graph of one batch at a time. Nothing is raised where the linear system does not converge;
    ``.checked()`` does.

    Args:
        outer: the outer function of x and theta, a scalar.
        inner: the inner function of x and theta, a scalar.
        x: the inner solution, a tensor or a dict of tensors.
        theta: the hyperparameters, a tensor or a dict of tensors.
        inverse: how (H + damping I)^-1 is applied. ``"cg"``: conjugate gradients; ``"neumann"``: `terms` of Neumann's
            series; ``"nystrom"``: a low-rank approximation of H of rank `rank`, from `seed`, with `damping`.
        damping: added to the eigenvalues of H. It biases the gradient where H has eigenvalues near it; `correct`
            estimates this, too.
        rtol: converged means ``norm(r) <= rtol * norm(d outer/dx)`` for the recomputed residual r. Default: sqrt(eps).
        max_iterations: the limit of "cg". Default: that of `cg`.
        preconditioner: for "cg", an operator near the inverse of H + damping I.
        rank: for "cg", the rank of a Nystrom preconditioner (with `seed`, and damping > 0); for "nystrom", that of H.
        terms: the number of terms of "neumann".
        scale: for "neumann", a number below 2 / largest eigenvalue. Default: one is found, from `seed`.
        seed: the seed of what is drawn.
        outer_data: batches of the outer function, an iterable that can be read many times.
        inner_data: batches of the inner function, likewise.
        curvature: a positive lower bound of the eigenvalues of H between x and x*, such as the weight decay of a convex
            problem. It gives ``inner_error = stationarity / curvature`` and ``solve_error = norm(d outer/dx - H v) /
            curvature``.
        correct: with True, `correction` and `error` are computed, for two more solves and third derivatives of inner.
        strict: with False, an x that is not a solution is taken as it is.
        observe: called with each `CGState`; True stops the run.

    Example:
        >>> import torch
        >>> from frechet.calculus import hypergradient
        >>> y, target = torch.tensor([2.0, 4.0]).double(), torch.tensor([1.0, 1.0]).double()
        >>> weight = torch.tensor(1.0, dtype=torch.float64)
        >>> x = y / (1 + weight)  # argmin of the inner function
        >>> h = hypergradient(
        ...     lambda x, c: ((x - target) ** 2).sum(), lambda x, c: ((x - y) ** 2).sum() + c * (x**2).sum(), x, weight
        ... ).checked()
        >>> round(float(h.gradient), 9)  # -2 (x - target)'y / (1 + weight)^2
        -2.0
    """
    if strict:
        check_status("hypergradient", x)
    x = point_of(x)
    rules = InverseRules(
        inverse, damping, rtol, max_iterations, rank, terms, scale, seed, observe, preconditioner
    ).checked()
    if curvature is not None and not 0 < curvature < math.inf:
        raise ValueError(f"hypergradient: curvature must be a number > 0, got {curvature}")
    for name, data in (("outer_data", outer_data), ("inner_data", inner_data)):
        if isinstance(data, Iterator):
            raise TypeError(f"hypergradient: {name} must be iterable more than once, got an iterator; pass a list")
    outside, inside = _terms(outer, outer_data), _terms(inner, inner_data)
    xs, thetas = ([b.detach() for b in named(point).values()] for point in (x, theta))
    problem = _Problem(outside, inside, Variables.of(x), Variables.of(theta), xs, thetas)
    space = problem.space
    with second_order("hypergradient", space.device):
        value, slope = problem.outer_slope()
        graph = problem.inner_graph() if inner_data is None else None
        H = SummedHessian(problem) if graph is None else GraphJacobian(graph.g, graph.xs, space, space, SYMMETRIC)
        solver, setup = rules.solver(H)
        s = solver(slope)
        v, products = s.x, s.products + setup
        left = slope - H @ v if curvature is not None or correct else None
        gradient, stationary = problem.total_derivative(v, graph, retain=correct)
        size, stationarity = float(space.norm(slope)), float(space.norm(stationary))
        if strict and not correct and curvature is None:
            _check_stationary(problem, size, float(space.norm(v)), stationarity)
        found = Hypergradient(
            gradient=problem.theta.unflatten(gradient),
            value=value,
            solve=s,
            residual=s.residual / size if size else 0.0,
            stationarity=stationarity,
            products=products,
        )
        if left is not None:
            found = replace(found, products=products + 1)
        if curvature is not None and left is not None:
            errors = (stationarity / curvature, float(space.norm(left)) / curvature)
            found = replace(found, inner_error=errors[0], solve_error=errors[1])
        if correct and left is not None:
            p = solver(-stationary)
            turned, moved = problem.turned(v, p.x)
            w = solver(left + turned)
            crossed, _ = problem.crossed(w.x, graph, retain=False)
            correction = moved - crossed
            error = _length(problem.theta_space, correction)
            found = replace(
                found,
                correction=problem.theta.unflatten(correction),
                error=error,
                products=found.products + p.products + w.products,
            )
    return found


@dataclass(frozen=True, eq=False)
class _Graph:
    """d inner / dx, and the leaves that it was computed from."""

    g: list[Tensor]
    xs: list[Tensor]
    ts: list[Tensor]


@dataclass(frozen=True, eq=False)
class _Problem:
    """Both functions as sums of terms, at one point."""

    outer: Callable[[], Iterable[Term]]
    inner: Callable[[], Iterable[Term]]
    x: Variables
    theta: Variables
    xs: list[Tensor]
    thetas: list[Tensor]

    @property
    def space(self) -> Space:
        return self.x.space

    @property
    def theta_space(self) -> Space:
        return self.theta.space

    def opened(self, with_theta: bool) -> tuple[list[Tensor], list[Tensor], Callable[[Term], Tensor]]:
        """Leaves for x and theta, and how a term is evaluated at them."""
        xs, x = self.x.leaves(self.xs)
        ts, theta = self.theta.leaves(self.thetas)
        for t in ts:
            t.requires_grad_(with_theta)

        def value(f: Term) -> Tensor:
            y = f(x, theta)
            if not isinstance(y, Tensor) or y.ndim:
                got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
                raise ValueError(f"hypergradient: outer and inner must return a scalar tensor, got {got}")
            return y

        return xs, ts, value

    def outer_slope(self) -> tuple[float, Tensor]:
        """outer and its gradient with respect to x."""
        xs, _, value = self.opened(with_theta=False)
        total, slope = 0.0, self.space.zeros()
        for f in self.outer():
            with torch.enable_grad():
                y = value(f)
                slope += self.space.join(grads(y, xs, None))
            total += float(y.detach())
        if not (math.isfinite(total) and self.space.finite(slope)):
            raise ValueError("hypergradient: outer must be finite with its gradient at x, got NaN or infinity")
        return total, slope

    def inner_graph(self) -> _Graph:
        """The gradient of the one term of the inner function, with the graph that both of its derivatives share."""
        xs, ts, value = self.opened(with_theta=True)
        [f] = self.inner()
        with torch.enable_grad():
            return _Graph(grads(value(f), xs, None, create_graph=True), xs, ts)

    def crossed(self, v: Tensor, graph: _Graph | None, *, retain: bool) -> tuple[Tensor, Tensor]:
        """(d^2 inner / dtheta dx) v, and d inner / dx."""
        vs = self.space.split(v)
        if graph is not None:
            found = self.theta_space.join(grads(graph.g, graph.ts, vs, retain_graph=retain))
            return found, self.space.join([t.detach() for t in graph.g])
        xs, ts, value = self.opened(with_theta=True)
        found, slope = self.theta_space.zeros(), self.space.zeros()
        for f in self.inner():
            with torch.enable_grad():
                g = grads(value(f), xs, None, create_graph=True)
                found += self.theta_space.join(grads(g, ts, vs))
            slope += self.space.join([t.detach() for t in g])
        return found, slope

    def total_derivative(self, v: Tensor, graph: _Graph | None, *, retain: bool) -> tuple[Tensor, Tensor]:
        """dL/dtheta, and d inner / dx."""
        crossed, slope = self.crossed(v, graph, retain=retain)
        found = crossed.neg_()
        _, ts, value = self.opened(with_theta=True)
        for f in self.outer():
            with torch.enable_grad():
                found += self.theta_space.join(grads(value(f), ts, None))
        return found, slope

    def turned(self, v: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """L_xx p and L_theta,x p."""
        xs, ts, value = self.opened(with_theta=True)
        of_x, of_theta = self.space.zeros(), self.theta_space.zeros()
        vs, ps = self.space.split(v), self.space.split(p)
        for sign, terms in ((1, self.outer), (-1, self.inner)):
            for f in terms():
                with torch.enable_grad():
                    g = grads(value(f), xs, None, create_graph=True)
                    g = g if sign > 0 else grads(g, xs, vs, create_graph=True)
                    found = grads(g, [*xs, *ts], ps)
                of_x += sign * self.space.join(found[: len(xs)])
                of_theta += sign * self.theta_space.join(found[len(xs) :])
        return of_x, of_theta


@dataclass(frozen=True, eq=False, repr=False)
class SummedHessian(SymmetricOperator):
    """The Hessian of a sum of terms with respect to x, one term's graph at a time."""

    problem: _Problem

    @property
    def domain(self) -> Space:
        return self.problem.space

    @property
    def facts(self) -> frozenset[Fact]:
        return SYMMETRIC

    def _matmat(self, V: Tensor) -> Tensor:
        space, out = self.domain, self.domain.zeros(V.shape[1])
        xs, _, value = self.problem.opened(with_theta=False)
        for f in self.problem.inner():
            with torch.enable_grad():
                g = grads(value(f), xs, None, create_graph=True)
                for j, v in enumerate(V.T):
                    out[:, j] += space.join(grads(g, xs, space.split(v), retain_graph=j + 1 < V.shape[1]))
        return out


# --- arguments --------------------------------------------------------------------------------------------------------


def _check_stationary(problem: _Problem, size: float, length: float, stationarity: float) -> None:
    """Raise where x is no minimum of inner: `size` is norm(H v), `length` norm(v) of the system that was solved."""
    reach = math.sqrt(sum(b.numel() * spread(b) ** 2 for b in problem.xs))
    allowed = STATIONARY * size / length * reach if length > 0 else math.inf
    if not stationarity <= allowed:
        raise NotConverged(
            f"hypergradient: x must minimize inner, got a gradient of norm {stationarity:.3g} where {allowed:.3g} is "
            "allowed; solve more exactly, ask for the error (correct=True), or pass strict=False to go on",
            None,
        )


def _terms(f: Callable[..., Tensor], data: Iterable[Any] | None) -> Callable[[], Iterable[Term]]:
    if data is None:
        return lambda: [f]
    return lambda: (lambda x, theta, batch=batch: f(x, theta, batch) for batch in data)


def _length(space: Space, t: Tensor) -> float:
    return float(space.norm(t))
