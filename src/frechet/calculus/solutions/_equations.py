"""Conditions at a solution as functions of lists of tensors, checked, with the operator that is their Jacobian.

The tensors are, in this order: the unknowns z (the blocks of x, then multipliers), what is held fixed at the solution
(masks of the active set), and the tensors p among the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.solutions._conditions import Conditions, tensors_of
from frechet.calculus.solutions._plain_function import Pulled, Pushed, TensorFunction, opened_for_gradients
from frechet.calculus.solutions._sensitivity import GraphJacobian, Rules, solved
from frechet.errors import NotConverged
from frechet.objective._torch_internals import tree_flatten, tree_unflatten
from frechet.operators._operator import Fact, LinearOperator
from frechet.operators.derivatives._products import second_order
from frechet.space import Point, Space, named


@dataclass(eq=False)
class Layout:
    """How tensors make up x and the multipliers; known when x is."""

    single: bool = True
    names: tuple[str, ...] = ()
    multipliers: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()

    def point(self, blocks: Sequence[Tensor]) -> Point:
        return blocks[0] if self.single else dict(zip(self.names, blocks, strict=True))


@dataclass(frozen=True, eq=False)
class Equations:
    """Equations of lists of tensors, `residual(*z, *p)` shaped like z, whose root for the tensors p `find` returns.

    After z `find` returns what is held fixed; it comes between z and p in the arguments of `residual` and `model`.
    """

    find: Callable[[Sequence[Tensor]], list[Tensor]]
    residual: TensorFunction
    rules: Rules
    facts: frozenset[Fact]
    model: TensorFunction | None = None

    def jacobian(self, args: Sequence[Tensor], n: int, what: str) -> LinearOperator:
        """The operator dF/dz, or the Gauss-Newton matrix in its place; n tensors are z."""
        space = space_of(args[:n])
        with second_order(what, space.device), torch.enable_grad():
            opened = opened_for_gradients([a.detach() for a in args], range(n))
            if self.model is None:
                return GraphJacobian(self.residual(*opened), opened[:n], space, space, self.facts)
            ys = self.model(*opened)
        J = GraphJacobian(ys, opened[:n], space, space_of([y.detach() for y in ys]))
        return J.T @ J

    def transposed_product(self, args: Sequence[Tensor], n: int, w: Sequence[Tensor]) -> list[Tensor]:
        """(dF/dz)' w as a differentiable function."""
        if self.model is None:
            return Pulled(self.residual, tuple(range(n)), len(args))(*args, *w)
        return self._model_product(args, n, w)

    def product(self, args: Sequence[Tensor], n: int, v: Sequence[Tensor]) -> list[Tensor]:
        """dF/dz v as a differentiable function."""
        if self.model is None:
            return Pushed(self.residual, tuple(range(n)), len(args))(*args, *v)
        return self._model_product(args, n, v)

    def _model_product(self, args: Sequence[Tensor], n: int, v: Sequence[Tensor]) -> list[Tensor]:
        assert self.model is not None
        z = tuple(range(n))
        return Pulled(self.model, z, len(args))(*args, *Pushed(self.model, z, len(args))(*args, *v))

    def adjoint(self, n: int, count: int) -> Equations:
        """Those of w in (dF/dz)' w = u, where p are the arguments of `residual` and u."""

        def find(p: Sequence[Tensor]) -> list[Tensor]:
            A = self.jacobian(p[:count], n, "implicit")
            u = A.domain.join(p[count:])
            w = solved(A, u.unsqueeze(1), self.rules, "implicit: reverse mode", transposed=True)
            return A.domain.split(w[:, 0].clone())

        def residual(*wp: Tensor) -> list[Tensor]:
            w, args, u = wp[:n], wp[n : n + count], wp[n + count :]
            return [a - b for a, b in zip(self.transposed_product(args, n, w), u, strict=True)]

        return Equations(find, residual, self.rules, self.facts)

    def tangent(self, n: int, count: int, moved: tuple[int, ...]) -> Equations:
        """Those of d in dF/dz d + dF/dp t = 0, where p are the arguments of `residual` and the directions t."""
        push = Pushed(self.residual, moved, count)

        def find(p: Sequence[Tensor]) -> list[Tensor]:
            A = self.jacobian(p[:count], n, "implicit")
            with second_order("implicit", A.domain.device), torch.enable_grad():
                rhs = A.domain.join([-y.detach() for y in push(*p)])
            d = solved(A, rhs.unsqueeze(1), self.rules, "implicit: forward mode")
            return A.domain.split(d[:, 0].clone())

        def residual(*dp: Tensor) -> list[Tensor]:
            d, args, t = dp[:n], dp[n : n + count], dp[n + count :]
            return [a + b for a, b in zip(self.product(args, n, d), push(*args, *t), strict=True)]

        return Equations(find, residual, self.rules, self.facts)


def tensors_among(inputs: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The tensors in nested inputs, and what makes such inputs of other tensors."""
    leaves, tree = tree_flatten(inputs)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def rebuilt(tensors: Sequence[Tensor]) -> Any:
        filled = list(leaves)
        for i, t in zip(places, tensors, strict=True):
            filled[i] = t
        return tree_unflatten(filled, tree)

    return [leaves[i] for i in places], rebuilt


def at_solution(
    given: Conditions, rules: Rules, rebuilt: Callable[[Sequence[Tensor]], tuple[Any, ...]], layout: Layout
) -> Equations:
    """The conditions as functions of z (x, then multipliers), what is held fixed, and the tensors of the inputs."""

    def taken(args: Sequence[Tensor]) -> tuple[Point, dict[str, Tensor], dict[str, Tensor], tuple[Any, ...]]:
        a = len(layout.names)
        b = a + len(layout.multipliers)
        c = b + len(layout.fixed)
        m = dict(zip(layout.multipliers, args[a:b], strict=True))
        return layout.point(args[:a]), m, dict(zip(layout.fixed, args[b:c], strict=True)), rebuilt(args[c:])

    def residual(*args: Tensor) -> list[Tensor]:
        of_x, of_m = given.equations(*taken(args))
        blocks = list(args[: len(layout.names)])
        if isinstance(of_x, Mapping) and not layout.single and set(of_x) == set(layout.names):
            of_x = {n: of_x[n] for n in layout.names}
        rows = [*tensors_of(of_x), *(of_m[n] for n in layout.multipliers)]
        parts = [*blocks, *args[len(blocks) : len(blocks) + len(of_m)]]
        size, wanted = sum(r.numel() for r in rows), sum(b.numel() for b in parts)
        if size != wanted:
            raise ValueError(
                f"implicit: conditions must return as many numbers as there are unknowns, got {size} for {wanted}"
            )
        if all(r.shape == b.shape for r, b in zip(rows, parts, strict=False)) and len(rows) == len(parts):
            return rows
        flat = torch.cat([r.reshape(-1) for r in rows]).split([b.numel() for b in parts])
        return [r.view(b.shape) for r, b in zip(flat, parts, strict=True)]

    def model(*args: Tensor) -> list[Tensor]:
        assert given.model is not None
        x, _, _, inputs = taken(args)
        return tensors_of(given.model(x, *inputs))

    return Equations(_nowhere, residual, rules, given.facts, None if given.model is None else model)


def _nowhere(_p: Sequence[Tensor]) -> list[Tensor]:
    raise AssertionError("equations of a given solution do not find one")


def complete(
    given: Conditions, x: Point, inputs: tuple[Any, ...], returned: object, layout: Layout, batch: bool
) -> list[Tensor]:
    """z and what is held fixed at x; fills in the layout."""
    layout.single = isinstance(x, Tensor)
    blocks = named(x)
    layout.names = tuple(blocks)
    m: dict[str, Tensor] = {}
    fixed: dict[str, Tensor] = {}
    if given.complete is not None:
        with (
            second_order("implicit", space_of(list(blocks.values())).device),
            torch.enable_grad(),
        ):
            m, fixed = given.complete(x, inputs, returned)
    layout.multipliers, layout.fixed = tuple(m), tuple(fixed)
    shapes = [b.shape[:1] for b in (*blocks.values(), *m.values())]
    if batch and (len(set(shapes)) > 1 or not shapes[0]):
        raise ValueError(
            f"implicit: batch=True needs unknowns with one common axis 0, got sizes {[list(s) for s in shapes]}"
        )
    return [*(b.detach().clone() for b in blocks.values()), *(t.detach() for t in m.values()), *fixed.values()]


def check_solution(
    method: str, equations: Equations, args: Sequence[Tensor], layout: Layout, name: str, tolerance: float
) -> None:
    """Raise where conditions do not hold at the solution, do not depend on it, or use tensors that no input holds."""
    n = len(layout.names) + len(layout.multipliers)
    space = space_of(args[:n])
    floating = [i for i, a in enumerate(args) if a.is_floating_point()]
    with second_order(method, space.device), torch.enable_grad():
        opened = opened_for_gradients(args, floating)
        ys = equations.residual(*opened)
    leaves, known = _leaves(ys), {id(t) for t in opened}
    strange = next((t for t in leaves if id(t) not in known), None)
    if strange is not None:
        raise ValueError(
            f"{method}: conditions must use tensors that require grad only as inputs, got one of shape "
            f"{tuple(strange.shape)} that is closed over or made inside, and would get no derivative; pass it as an "
            "argument (parameters of a model: dict(model.named_parameters()) and torch.func.functional_call), or "
            "detach it"
        )
    if space.dim and not any(t is leaf for t in opened[:n] for leaf in leaves):
        raise ValueError(
            f"{method}: conditions must depend on x by torch operations, got a result that does not (numpy, .item() "
            "and .detach() cut the graph)"
        )
    r = space.join([y.detach() for y in ys])
    unit = space.random(0, 0)
    v = space.join([u * spread(a) for u, a in zip(space.split(unit), args[:n], strict=True)])
    A = GraphJacobian(ys, opened[:n], space, space, equations.facts)
    left, scale = float(A.domain.norm(r)), float(A.domain.norm(A @ v))
    if not left <= tolerance * scale:
        raise ValueError(
            f"{method}: the conditions of a {name} must hold at the solution, got norm(F) = {left:.3g} where tolerance "
            f"= {tolerance:g} allows {tolerance * scale:.3g}; solve more exactly, or correct the conditions"
        )


def check_status(method: str, returned: object) -> None:
    """Raise `NotConverged` where a result, or one of a tuple, says that it is no solution."""
    if isinstance(returned, tuple | list):
        for part in returned:
            check_status(method, part)
        return
    for name in ("converged", "success"):
        said = getattr(returned, name, None)
        if said is None or callable(said) or bool(torch.as_tensor(said).all()):
            continue
        whys = (getattr(returned, n, None) for n in ("reason", "message"))
        why = next((f": {w}" for w in whys if isinstance(w, str) and w), "")
        raise NotConverged(
            f"{method}: the solution must be converged, got a result with {name} = False and status "
            f"'{getattr(returned, 'status', None)}'{why}; solve it, or pass strict=False to go on with it as it is",
            returned,
        )


def point_of(found: Any) -> Point:
    """The point of a solver's result, or the point itself."""
    point: Point = found if isinstance(found, Tensor | Mapping) else getattr(found, "x", found)
    return point


def spread(block: Tensor) -> float:
    """The root mean square of the entries, 1 where they are zero."""
    mean = float(block.square().mean()) if block.numel() else 0.0
    return mean**0.5 if mean > 0 else 1.0


def _leaves(ys: Sequence[Tensor]) -> list[Tensor]:
    """The leaves of the graph of `ys`."""
    found, seen = [y for y in ys if y.requires_grad and y.grad_fn is None], set()
    waiting = [y.grad_fn for y in ys]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of nodes that accumulate into a leaf
        if isinstance(leaf, Tensor):
            found.append(leaf)
        waiting += [above for above, _ in node.next_functions]
    return found


def space_of(blocks: Sequence[Tensor]) -> Space:
    """The space of vectors made of these blocks, named by number."""
    return Space.of({str(i): b for i, b in enumerate(blocks)})
