"""What holds at a solution: equations F(x, inputs) = 0, from whatever the user has of the problem.

    root                 F(x, inputs) = 0
    fixed point          g(x, inputs) = x                       F = x - g
    stationary point     of f(x, inputs)                        F = df/dx, a symmetric Jacobian
    least squares        of r(x, inputs)                        F = J'r
    constrained minimum  f, equalities, inequalities, bounds    the equations of Karush, Kuhn and Tucker (`_kkt.py`)

`implicit`, `solution_jacobian` take any of these; a plain function counts as a root. All of them are written in torch,
of tensors that are passed, never closed over; what finds x need not be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.operators._operator import NONE, PSD, SYMMETRIC, Fact
from frechet.operators._structured import declared
from frechet.operators.derivatives._products import grads
from frechet.space import Point, like, named

Blocks = dict[str, Tensor]
# the multipliers, and tensors such as masks that are found at the solution and do not vary with it
Completion = Callable[[Point, Sequence[object], object], tuple[Blocks, Blocks]]


@dataclass(frozen=True, eq=False)
class Conditions:
    """Equations for x, and for multipliers where there are any, whose number is that of the unknowns.

    Made by `root_conditions`, `fixed_point_conditions`, `stationary_conditions`, `least_squares_conditions` and
    `kkt_conditions`. `facts` are those of the Jacobian with respect to the unknowns. `equations(x, multipliers, fixed,
    inputs)` returns the equations that belong to x, shaped like it, and those that belong to each multiplier;
    `complete(x, inputs, returned)` finds multipliers and what is held fixed, `returned` being what the solver gave.
    `model` is r of the Gauss-Newton matrix that stands for the Jacobian, where one does.
    """

    name: str
    equations: Callable[[Point, Blocks, Blocks, Sequence[object]], tuple[Point, Blocks]]
    facts: frozenset[Fact] = NONE
    complete: Completion | None = None
    model: Callable[..., object] | None = None


def as_conditions(method: str, given: Conditions | Callable[..., Point]) -> Conditions:
    """`given`, a plain function as a root."""
    if isinstance(given, Conditions):
        return given
    if not callable(given):
        raise TypeError(
            f"{method}: conditions must be a function F(x, *inputs) or made by one such as stationary_conditions(f), "
            f"got {type(given).__name__}"
        )
    return root_conditions(given)


def root_conditions(F: Callable[..., Point], *, facts: Fact | str | Iterable[Fact | str] = ()) -> Conditions:
    """Return the conditions F(x, *inputs) = 0, with as many equations as x has entries.

    Args:
        F: the equations, a function of x and the inputs.
        facts: what is known of dF/dx, such as ``"symmetric"``.

    Example:
        >>> import torch
        >>> from frechet.calculus import root_conditions, solution_jacobian
        >>> a = torch.tensor([4.0, 9.0])
        >>> D = solution_jacobian(root_conditions(lambda x, a: x**2 - a), a.sqrt(), a)
        >>> D @ torch.ones(2)  # 1 / (2 sqrt(a))
        tensor([0.2500, 0.1667])
    """
    return Conditions("root", lambda x, _m, _fixed, inputs: (F(x, *inputs), {}), declared(facts))


def fixed_point_conditions(g: Callable[..., Point], *, facts: Fact | str | Iterable[Fact | str] = ()) -> Conditions:
    """Return the conditions g(x, *inputs) = x.

    A projected or proximal gradient step has such a fixed point too: lasso, box and simplex constraints by their
    operators.

    Args:
        g: the map, a function of x and the inputs that returns what x is.
        facts: what is known of I - dg/dx, such as ``"symmetric"``.
    """

    def equations(x: Point, _m: Blocks, _fixed: Blocks, inputs: Sequence[object]) -> tuple[Point, Blocks]:
        y = g(x, *inputs)
        if isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape:
            return x - y, {}
        if isinstance(x, Mapping) and isinstance(y, Mapping) and _shapes(x) == _shapes({n: y[n] for n in x if n in y}):
            return {n: b - y[n] for n, b in x.items()}, {}
        raise ValueError(f"fixed_point_conditions: g must return what x is, {_shapes(x)}, got {_shapes(y)}")

    return Conditions("fixed point", equations, declared(facts))


def stationary_conditions(
    f: Callable[..., Tensor], *, facts: Fact | str | Iterable[Fact | str] = Fact.SYMMETRIC
) -> Conditions:
    """Return the conditions df/dx (x, *inputs) = 0: x is a minimum, a maximum or a saddle of the scalar f.

    Args:
        f: the function of x and the inputs. It may return one value per problem of a batch: they are added up.
        facts: what is known of the Hessian. With ``"positive_definite"``, a strict minimum, systems are solved by `cg`,
            which notices where the Hessian has negative curvature.

    Example:
        >>> import torch
        >>> from frechet import implicit
        >>> from frechet.calculus import stationary_conditions
        >>> mean = implicit(lambda y: y.mean(), stationary_conditions(lambda x, y: ((x - y) ** 2).sum()))
        >>> y = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
        >>> torch.autograd.grad(mean(y), y)[0]
        tensor([0.3333, 0.3333, 0.3333])
    """

    def equations(x: Point, _m: Blocks, _fixed: Blocks, inputs: Sequence[object]) -> tuple[Point, Blocks]:
        return gradient_of(lambda x: f(x, *inputs), x), {}

    return Conditions("stationary point", equations, declared(facts) | SYMMETRIC)


def least_squares_conditions(r: Callable[..., object], *, gauss_newton: bool = False) -> Conditions:
    """Return the conditions J'r = 0 for the residuals r(x, *inputs), where J = dr/dx.

    These are the exact second-order conditions: d(J'r)/dx is J'J + sum_i r_i d^2 r_i/dx^2.

    Args:
        r: the residuals, a function of x and the inputs to a tensor or a dict of tensors.
        gauss_newton: with True, J'J stands for the derivative above. It is cheaper and never indefinite. The derivative
            of the solution is then wrong by what the residuals at the solution leave, and right where they vanish.
    """

    def equations(x: Point, _m: Blocks, _fixed: Blocks, inputs: Sequence[object]) -> tuple[Point, Blocks]:
        def half(x: Point) -> Tensor:
            return torch.stack([b.square().sum() / 2 for b in tensors_of(r(x, *inputs))]).sum()

        return gradient_of(half, x), {}

    return Conditions("least squares", equations, PSD if gauss_newton else SYMMETRIC, model=r if gauss_newton else None)


# --- derivatives and shapes -------------------------------------------------------------------------------------------


def gradient_of(f: Callable[[Point], object], x: Point) -> Point:
    """df/dx shaped like x, a node of the graph wherever x or what f closes over are."""
    opened = [b.view_as(b) if b.requires_grad else b.detach().requires_grad_() for b in named(x).values()]
    value = f(like(x, opened))
    if not isinstance(value, Tensor):
        raise TypeError(f"stationary_conditions: f must return a scalar tensor, got {type(value).__name__}")
    return like(x, grads(value.sum(), opened, None, create_graph=True))


def tensors_of(value: object) -> list[Tensor]:
    """The tensors of a tensor or of a dict of tensors."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping) and all(isinstance(t, Tensor) for t in value.values()):
        return list(value.values())
    raise TypeError(f"conditions: functions must return a tensor or a dict of tensors, got {type(value).__name__}")


def _shapes(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{n!r}: {_shapes(b)}" for n, b in value.items()) + "}"
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
