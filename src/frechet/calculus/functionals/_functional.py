"""Functionals of functions, and their Fréchet derivatives as functions.

F[u] = int L(x, u, Du, D^2u) dx has the derivative DF[u] h = int (L_u h + L_p . Dh + L_q : D^2h) dx, which is
int (dF/du) h dx + boundary terms, with dF/du = L_u - div L_p + div div L_q and, with the outer normal n,
boundary = int_faces (L_p - div L_q) . n h + (L_q n) . Dh. F[u] = int int K(x, y, u(x), u(y)) dx dy has
dF/du(x) = int K_3(x, y, u(x), u(y)) + K_4(y, x, u(y), u(x)) dy and no boundary terms. u may have m components, as a
curve or a displacement has; then h has as many, and products of u-like things are sums over components.

**Source.** Gelfand and Fomin, "Calculus of Variations" (1963); Lin, "Automatic functional differentiation in JAX"
(2023). **Differs from the source:** (1) boundary terms are there, and not assumed to vanish; (2) derivatives of u come
from one pass in Taylor mode, so that nothing is nested in u. **Cost:** derivatives of u up to twice the order of the
density.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from frechet.calculus.functionals._density import (
    Density,
    Derivatives,
    Function,
    State,
    partial,
    second_total_derivative,
    total_derivative,
    variation,
)
from frechet.calculus.functionals._domain import Box

Order = Literal[0, 1, 2]


class Functional(ABC):
    """A number for each function of points ``(N, d) -> (N,)`` or ``(N, m)``; call it with the function."""

    @abstractmethod
    def __call__(self, u: Function) -> Tensor:
        """Return F[u], differentiable in whatever u is made of."""

    @abstractmethod
    def derivative_at(self, u: Function, x: Tensor) -> Tensor:
        """Return dF/du at points ``(N, d)``, shaped as u there, without boundary terms."""

    @abstractmethod
    def along(self, u: Function, h: Function) -> Tensor:
        """Return DF[u] h, with all boundary terms."""

    @abstractmethod
    def boundary_along(self, u: Function, h: Function) -> Tensor:
        """Return the part of DF[u] h that is an integral over the boundary."""

    @abstractmethod
    def second_along(self, u: Function, h: Function, k: Function) -> Tensor:
        """Return the second variation along h and k, which is symmetric in them."""


@dataclass(frozen=True)
class FunctionalDerivative:
    """The Fréchet derivative of F at u: a function of points, and a linear form on functions.

    Attributes:
        functional: F.
        u: the function at which F is differentiated.
    """

    functional: Functional
    u: Function

    def __call__(self, x: Tensor) -> Tensor:
        """Return dF/du at points ``(N, d)``, shaped as u there."""
        return self.functional.derivative_at(self.u, x)

    def along(self, h: Function) -> Tensor:
        """Return DF[u] h by quadrature of the first variation, with all boundary terms."""
        return self.functional.along(self.u, h)

    def boundary(self, h: Function) -> Tensor:
        """Return what DF[u] h has beyond the integral of dF/du times h."""
        return self.functional.boundary_along(self.u, h)

    def second(self, h: Function, k: Function) -> Tensor:
        """Return the second variation along h and k."""
        return self.functional.second_along(self.u, h, k)


def functional_derivative(F: Functional, u: Function) -> FunctionalDerivative:
    """Return the Fréchet derivative of a functional at u, as a function of points.

    Args:
        F: made by `local_functional`, `nonlocal_functional` or `composed_functional`.
        u: a function of points ``(N, d) -> (N,)``, or ``(N, m)`` for m components, made of torch functions, which
            takes each point alone.

    Example:
        >>> import torch
        >>> from frechet.calculus.functionals import box, functional_derivative, local_functional
        >>> energy = local_functional(lambda x, u, du: (du ** 2).sum(-1) / 2, box(0.0, 1.0), order=1)
        >>> u = lambda x: torch.sin(3 * x[..., 0])
        >>> x = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
        >>> torch.allclose(functional_derivative(energy, u)(x), 9 * u(x))  # -u''
        True
    """
    return FunctionalDerivative(F, u)


@dataclass(frozen=True)
class Local(Functional):
    """int L(x, u, Du, D^2u) dx."""

    density: Density
    domain: Box
    order: int

    def __call__(self, u: Function) -> Tensor:
        return self.domain.integral(
            self._values(self._derivatives(u, self.domain.points, self.order).state(self.order))
        )

    def derivative_at(self, u: Function, x: Tensor) -> Tensor:
        at = self._derivatives(u, x, 2 * self.order)
        z, d = at.state(self.order), x.shape[-1]
        self._values(z)
        found = partial(self.density, 1)(z)
        firsts = [at.state(self.order, (i,)) for i in range(d)] if self.order else []
        for i, zi in enumerate(firsts):
            found = found - total_derivative(partial(self.density, 2), z, zi)[..., i]
        if self.order == 2:
            for i, j in ((i, j) for i in range(d) for j in range(d)):
                zij = at.state(self.order, (i, j))
                second = second_total_derivative(partial(self.density, 3), z, firsts[i], firsts[j], zij)
                found = found + second[..., i, j]
        return found

    def along(self, u: Function, h: Function) -> Tensor:
        z = self._derivatives(u, self.domain.points, self.order).state(self.order)
        zh = variation(self._derivatives(h, self.domain.points, self.order), self.order)
        return self.domain.integral(total_derivative(self._values, z, zh))

    def second_along(self, u: Function, h: Function, k: Function) -> Tensor:
        x = self.domain.points
        z = self._derivatives(u, x, self.order).state(self.order)
        zh, zk = (variation(self._derivatives(f, x, self.order), self.order) for f in (h, k))
        zero = tuple(torch.zeros_like(part) for part in z)
        return self.domain.integral(second_total_derivative(self._values, z, zk, zh, zero))

    def boundary_along(self, u: Function, h: Function) -> Tensor:
        total = self.domain.weights.new_zeros(())
        if not self.order:
            return total
        for x, weights, normal in self.domain.faces():
            at = self._derivatives(u, x, 2 * self.order - 1)
            z, d = at.state(self.order), x.shape[-1]
            test = self._derivatives(h, x, 1)
            _, value, slope = test.state(1)
            momentum = partial(self.density, 2)(z)
            if self.order == 2:
                moment = _symmetric(partial(self.density, 3)(z))
                for j in range(d):
                    spread = total_derivative(partial(self.density, 3), z, at.state(self.order, (j,)))
                    momentum = momentum - _symmetric(spread)[..., j]
                total = total + torch.tensordot(weights, _at_each_point((moment @ normal) * slope), 1)
            total = total + torch.tensordot(weights, _at_each_point((momentum @ normal) * value), 1)
        return total

    def _derivatives(self, u: Function, x: Tensor, order: int) -> Derivatives:
        return Derivatives.of("functional", u, x, order)

    def _values(self, z: State) -> Tensor:
        found = self.density(*z)
        if not isinstance(found, Tensor) or found.shape != z[0].shape[:-1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"local_functional: density must return a value for each point, {tuple(z[0].shape[:-1])}, got {got}"
            )
        return found


@dataclass(frozen=True)
class Nonlocal(Functional):
    """int int K(x, y, u(x), u(y)) dx dy."""

    kernel: Density
    domain: Box

    def __call__(self, u: Function) -> Tensor:
        return self.domain.integral(self.domain.integral(self._values(*self._pairs(u, self.domain.points)).mT))

    def derivative_at(self, u: Function, x: Tensor) -> Tensor:
        a, b, s, t = self._pairs(u, x)
        one = torch.func.grad(lambda s: self._values(a, b, s, t).sum())(s)
        other = torch.func.grad(lambda s: self._values(b, a, t, s).sum())(s)
        return torch.einsum("nm...,m->n...", one + other, self.domain.weights)

    def along(self, u: Function, h: Function) -> Tensor:
        x = self.domain.points
        return self.domain.integral(_at_each_point(self.derivative_at(u, x) * h(x)))

    def boundary_along(self, u: Function, h: Function) -> Tensor:
        return self.domain.weights.new_zeros(())

    def second_along(self, u: Function, h: Function, k: Function) -> Tensor:
        x = self.domain.points

        def slope(t: Tensor) -> Tensor:
            return self.along(lambda p: u(p) + t * k(p), h)

        zero = x.new_zeros(())
        return torch.func.jvp(slope, (zero,), (torch.ones_like(zero),))[1]

    def _pairs(self, u: Function, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, n = self.domain.points, len(x)
        s, t = u(x), u(y)
        shape = (n, len(y))
        return (
            x[:, None].expand(*shape, x.shape[-1]),
            y[None].expand(*shape, y.shape[-1]),
            s[:, None].expand(*shape, *s.shape[1:]),
            t[None].expand(*shape, *t.shape[1:]),
        )

    def _values(self, x: Tensor, y: Tensor, s: Tensor, t: Tensor) -> Tensor:
        found = self.kernel(x, y, s, t)
        if not isinstance(found, Tensor) or found.shape != x.shape[:-1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"nonlocal_functional: kernel must return a value for each pair, {tuple(x.shape[:-1])}, got {got}"
            )
        return found


@dataclass(frozen=True)
class Composed(Functional):
    """g(F_1[u], F_2[u], ...)."""

    g: Callable[..., Tensor]
    parts: tuple[Functional, ...]

    def __call__(self, u: Function) -> Tensor:
        return self.g(*(F(u) for F in self.parts))

    def derivative_at(self, u: Function, x: Tensor) -> Tensor:
        return self._chain(u, [F.derivative_at(u, x) for F in self.parts])

    def along(self, u: Function, h: Function) -> Tensor:
        return self._chain(u, [F.along(u, h) for F in self.parts])

    def boundary_along(self, u: Function, h: Function) -> Tensor:
        return self._chain(u, [F.boundary_along(u, h) for F in self.parts])

    def second_along(self, u: Function, h: Function, k: Function) -> Tensor:
        values = torch.stack([F(u) for F in self.parts])
        first, other = (torch.stack([F.along(u, f) for F in self.parts]) for f in (h, k))

        def slope(v: Tensor) -> Tensor:
            return torch.func.jvp(lambda v: self.g(*v.unbind()), (v,), (first,))[1]

        mixed = torch.func.jvp(slope, (values,), (other,))[1]
        return mixed + self._chain(u, [F.second_along(u, h, k) for F in self.parts])

    def _chain(self, u: Function, changes: list[Tensor]) -> Tensor:
        values = torch.stack([F(u) for F in self.parts])
        weights = torch.func.grad(lambda v: self.g(*v.unbind()))(values)
        return sum((w * c for w, c in zip(weights, changes, strict=True)), start=torch.zeros_like(changes[0]))


def _at_each_point(product: Tensor) -> Tensor:
    """Sum over components and derivatives, (N, ...) -> (N,)."""
    return product.flatten(1).sum(1) if product.ndim > 1 else product


def _symmetric(q: Tensor) -> Tensor:
    return (q + q.mT) / 2


def local_functional(density: Density, domain: Box, *, order: Order) -> Functional:
    """Return u -> int L(x, u, Du, D^2u) dx over a box.

    Args:
        density: L, a function of ``x (N, d)``, ``u (N,)`` and, by order, ``Du (N, d)`` and ``D^2u (N, d, d)``, to
            ``(N,)``. It takes each point alone. For u with m components these are ``(N, m)``, ``(N, m, d)`` and
            ``(N, m, d, d)``.
        domain: the box, with its quadrature.
        order: the highest derivative of u in L.

    Example:
        >>> import torch
        >>> from frechet.calculus.functionals import box, local_functional
        >>> length = local_functional(lambda x, u, du: (1 + du[..., 0] ** 2).sqrt(), box(0.0, 1.0), order=1)
        >>> length(lambda x: x[..., 0])
        tensor(1.4142, dtype=torch.float64)
    """
    if not callable(density):
        raise TypeError(f"local_functional: density must be a function, got {type(density).__name__}")
    if order not in (0, 1, 2):
        raise ValueError(f"local_functional: order must be 0, 1 or 2, got {order!r}")
    return Local(density, domain, order)


def nonlocal_functional(kernel: Density, domain: Box) -> Functional:
    """Return u -> int int K(x, y, u(x), u(y)) dx dy over a box.

    Args:
        kernel: K, a function of ``x (N, M, d)``, ``y (N, M, d)``, ``u(x) (N, M)`` and ``u(y) (N, M)``, to ``(N, M)``.
            For u with m components u(x) and u(y) are ``(N, M, m)``.
        domain: the box, with its quadrature. All pairs of nodes are formed.

    Example:
        >>> from frechet.calculus.functionals import box, nonlocal_functional
        >>> overlap = nonlocal_functional(lambda x, y, s, t: s * t, box(0.0, 1.0))
        >>> overlap(lambda x: 2 * x[..., 0]).round(decimals=6)
        tensor(1., dtype=torch.float64)
    """
    if not callable(kernel):
        raise TypeError(f"nonlocal_functional: kernel must be a function, got {type(kernel).__name__}")
    return Nonlocal(kernel, domain)


def composed_functional(g: Callable[..., Tensor], *parts: Functional) -> Functional:
    """Return u -> g(F_1[u], F_2[u], ...), as a quotient or a penalized sum; the chain rule serves all derivatives.

    Args:
        g: a smooth function of as many numbers as there are functionals.
        parts: the functionals.

    Example:
        >>> from frechet.calculus.functionals import box, composed_functional, local_functional
        >>> domain = box(0.0, 1.0)
        >>> bending = local_functional(lambda x, u, du: (du ** 2).sum(-1), domain, order=1)
        >>> mass = local_functional(lambda x, u: u ** 2, domain, order=0)
        >>> composed_functional(lambda a, b: a / b, bending, mass)(lambda x: x[..., 0])  # Rayleigh's quotient
        tensor(3., dtype=torch.float64)
    """
    if not parts:
        raise ValueError("composed_functional: parts must hold at least one functional, got none")
    return Composed(g, parts)
