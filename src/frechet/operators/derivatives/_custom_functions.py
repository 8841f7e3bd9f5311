"""Functions of `torch.autograd.Function` whose backward leaves no graph, or one that forgets an input.

Autograd counts what such a backward returns as a constant, so second derivatives through it would silently miss terms.

1. *No graph* (a backward under no_grad, in NumPy or in C++): its cotangent carries a graph and its result does not,
   without being zero. Seen in the pass itself.
2. *A forgotten input* (an intermediate result that the forward saved, a factor made by NumPy): with everything that the
   backward saved taken from passes at x + d and x - d, its result moves by more than the graph knows of,

       B(g; S+) - B(g; S-)    beside    sum_i dB/dS_i (S+_i - S-_i).

   Both steps d and d/4 must tell the same, so a mask that switches between the two is no fault.

A product J v in reverse mode is the derivative of J'u in u. Where a backward, or a backward hook, is not linear in what
it is given, or takes derivatives inside without a graph, J v is not the adjoint of J'u (`refuse_nonadjoint`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.errors import NotDifferentiable
from frechet.objective._torch_internals import (
    cotangents_like,
    function_of,
    in_transform,
    is_users_function,
    nodes_of,
)
from frechet.space import Space, generator

MISSING = 0.05  # relative difference from which a term counts as missing
CHANGES = (
    "of the model changes gradients, which then are those of no function; ask for Gauss-Newton or Fisher products, or "
    "take the derivatives without it"
)


def users_nodes(nodes: Iterable[Any]) -> list[Any]:
    """Those of the nodes that the user's own functions made; none inside of a torch.func transform."""
    if in_transform():
        return []
    return [node for node in nodes if is_users_function(node)]


@contextmanager
def refused_cuts(nodes: Iterable[Any]) -> Iterator[None]:
    """Raise where a backward pass inside, with create_graph, goes through one of the nodes that leaves no graph."""
    suspects: list[tuple[Any, tuple[Tensor | None, ...]]] = []
    handles = []
    for node in users_nodes(nodes):

        def look(found: tuple[Any, ...], given: tuple[Any, ...], node: Any = node) -> None:
            if any(isinstance(f, Tensor) and not f.requires_grad for f in _wanted(node, found)):
                suspects.append((node, given))

        handles.append(node.register_hook(look))
    try:
        yield
        # a cotangent without a graph, or of zeros, says nothing: these backwards run once more, with one that has both
        cut = [node for node, given in suspects if _is_cut(node, _applied(node, _drawn(given)))]
    finally:
        for handle in handles:
            handle.remove()
    if cut:
        raise NotDifferentiable(
            f"the backward of {_name(cut[0])} leaves no graph (it runs under no_grad, or outside of PyTorch), so its "
            "second derivative would silently be left out; write the backward in differentiable operations on what was "
            "saved"
        )


def _name(node: Any) -> str:
    made = function_of(node)
    assert made is not None
    return made.__name__


def _applied(node: Any, given: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """What the backward of a node returns for these cotangents, with their graph."""
    with torch.enable_grad():
        fresh = [None if g is None else g.detach().clone().requires_grad_(g.is_floating_point()) for g in given]
        found = node.apply(*fresh)
    return found if isinstance(found, tuple) else (found,)


def _drawn(given: Sequence[Tensor | None]) -> list[Tensor | None]:
    def like(j: int, g: Tensor | None) -> Tensor | None:
        if g is None or not g.is_floating_point():
            return g
        return torch.randn(g.shape, generator=generator(1, j), dtype=torch.float64).to(g.device, g.dtype)

    return [like(j, g) for j, g in enumerate(given)]


def _wanted(node: Any, found: Sequence[Any]) -> list[Any]:
    """What a backward returned for inputs that have a gradient."""
    return [f for f, (behind, _) in zip(found, node.next_functions, strict=False) if behind is not None]


def _is_cut(node: Any, found: Sequence[Any]) -> bool:
    return any(isinstance(f, Tensor) and not f.requires_grad and bool((f != 0).any()) for f in _wanted(node, found))


@dataclass(frozen=True, eq=False)
class _Seen:
    """The custom nodes of one evaluation, and what each has saved."""

    nodes: list[Any]

    def saved(self, i: int) -> list[Tensor]:
        node = self.nodes[i]
        kept = [*node.saved_tensors, *node.__dict__.values()]
        return [t for t in kept if isinstance(t, Tensor) and t.is_floating_point()]


def refuse_forgotten(f: Callable[[list[Tensor]], Tensor], leaves: list[Tensor]) -> None:
    """Raise where the graph of a backward in f does not know all that the backward depends on; `f` is deterministic."""

    def seen(step: float) -> _Seen:
        with torch.enable_grad():
            point = [(x.detach() + step * d).requires_grad_() for x, d in zip(leaves, directions, strict=True)]
            return _Seen(users_nodes(nodes_of([f(point)])))

    eps = torch.finfo(leaves[0].dtype).eps
    directions = [_direction(x, j) for j, x in enumerate(leaves)]
    center, h = seen(0.0), (1e-6 if eps < 1e-10 else 1e-2)
    if not center.nodes:
        return
    around = {s: (seen(s * h), seen(-s * h)) for s in (1.0, 0.25)}
    for i, node in enumerate(center.nodes):
        missing = {s: _missing(center, plus, minus, i, eps) for s, (plus, minus) in around.items()}
        far, near = missing[1.0], missing[0.25]
        if far is not None and near is not None and far[0] and near[0] and 2 < far[1] / near[1] < 8:
            raise NotDifferentiable(
                f"the backward of {_name(node)} depends on its inputs by a way that autograd cannot follow (an "
                "intermediate result of its forward, a factor made outside of PyTorch), so its second derivative would "
                "silently miss terms; compute the backward from saved inputs by differentiable operations"
            )


def refuse_changed(
    space: Space, x: Tensor, product: Callable[[Tensor], Tensor], gradient: Callable[[Tensor], Tensor]
) -> None:
    """Raise where a Hessian's product is not the derivative of the gradient: backward hooks act twice in a product."""
    v = space.random(0, 0)
    exact = product(v)
    h = space.eps ** (1 / 3) * max(float(space.norm(x)), 1.0) / max(float(space.norm(v)), 1e-300)
    seen = [(gradient(x + c * h * v) - gradient(x - c * h * v)) / (2 * c * h) for c in (1.0, 0.25)]
    size = max(float(space.norm(seen[1])), float(space.norm(exact)))
    agree = float(space.norm(seen[0] - seen[1])) <= 0.02 * size
    if agree and float(space.norm(seen[1] - exact)) > 0.1 * size:
        raise NotDifferentiable(
            f"hessian: products must be derivatives of the gradient, got {float(space.norm(exact)):.6g} in size "
            f"where differences give {float(space.norm(seen[1])):.6g}: a backward hook {CHANGES}"
        )


def refuse_nonlinear(what: str, y: Tensor, leaves: Sequence[Tensor]) -> None:
    """Raise where the backward pass from y is not linear in the cotangent, so that it is the product of no matrix."""
    w = [_like(y, j) for j in (0, 1)]
    with torch.enable_grad():
        one, two, both = (
            _dense(torch.autograd.grad(y, list(leaves), c, True, allow_unused=True)) for c in (w[0], w[1], w[0] + w[1])
        )
    size = sum(float(t.square().sum()) for found in (one, two) for t in found if t is not None) ** 0.5
    rows = zip(one, two, both, strict=True)
    off = sum(
        float((a + b - c).square().sum()) for a, b, c in rows if a is not None and b is not None and c is not None
    )
    if off**0.5 > 1e4 * torch.finfo(y.dtype).eps * size:
        raise NotDifferentiable(
            f"{what}: J'(u + w) must be J'u + J'w, got another vector: a backward hook or a torch.autograd.Function is "
            "not linear in the gradient that it is given (it clips, normalizes or adds to it); leave it out"
        )


def refuse_nonadjoint(what: str, y: Tensor, leaves: Sequence[Tensor], u: Tensor, transposed: Sequence[Tensor]) -> None:
    """Raise where the derivative in u of `transposed` = J'u is not the adjoint of the backward pass from y."""
    reached = [j for j, t in enumerate(transposed) if t.requires_grad]
    w = _drawn([y])[0]
    if not reached or w is None:
        return
    v = [_like(leaves[j], j) for j in reached]
    with torch.enable_grad():
        pulled = _dense(torch.autograd.grad(y, [leaves[j] for j in reached], w, True, allow_unused=True))
        (pushed,) = _dense(torch.autograd.grad([transposed[j] for j in reached], [u], v, True, allow_unused=True))
    across = sum(float((p * a).sum()) for p, a in zip(pulled, v, strict=True) if p is not None)
    back = 0.0 if pushed is None else float((pushed * w).sum())
    length = sum(float(a.square().sum()) for a in v) ** 0.5
    size = max(
        length * sum(float(p.square().sum()) for p in pulled if p is not None) ** 0.5,
        float(w.norm()) * (0.0 if pushed is None else float(pushed.norm())),
    )
    if abs(across - back) > 1e4 * torch.finfo(y.dtype).eps * size:
        raise NotDifferentiable(
            f"{what}: J v must be the adjoint of the backward pass, got u'(J v) = {back:.6g} and (J'u)'v = "
            f"{across:.6g}: a backward hook or a torch.autograd.Function is not linear in the gradient that it is "
            "given, or calls autograd.grad without create_graph=True; write it in differentiable operations that are "
            "linear in that gradient, or leave it out"
        )


def _like(x: Tensor, j: int) -> Tensor:
    return torch.randn(x.shape, generator=generator(3, j), dtype=torch.float64).to(x.device, x.dtype)


def _dense(found: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [g if g is None or g.layout is torch.strided else g.to_dense() for g in found]


def _direction(x: Tensor, j: int) -> Tensor:
    drawn = torch.randn(x.shape, generator=generator(0, j), dtype=torch.float64).to(x.device, x.dtype)
    size = float(x.detach().abs().mean()) if x.numel() else 0.0
    return drawn * (size or 1.0)


@torch.enable_grad()
def _missing(center: _Seen, plus: _Seen, minus: _Seen, i: int, eps: float) -> tuple[bool, float] | None:
    """Whether a term is missing in node i, and the size of what its graph does not know; None: cannot be told."""
    nodes = (center.nodes, plus.nodes, minus.nodes)
    if any([function_of(n) for n in other] != [function_of(n) for n in nodes[0]] for other in nodes[1:]):
        return None
    given = [
        torch.randn(shape, generator=generator(1, i, j), dtype=torch.float64).to(device, dtype)
        for j, (shape, dtype, device) in enumerate(cotangents_like(nodes[0][i]))
    ]
    here, above, below = (_applied(n[i], given) for n in nodes)
    moved, size, known = 0.0, 0.0, None
    for j, (b, p, m) in enumerate(zip(here, above, below, strict=True)):
        if not isinstance(b, Tensor) or not b.is_floating_point():
            continue
        r = torch.randn(b.shape, generator=generator(2, i, j), dtype=torch.float64).to(b.device, b.dtype)
        moved += float((r * (p - m).detach()).sum())
        size += float((r * b.detach()).abs().sum())
        known = (r * b).sum() if known is None else known + (r * b).sum()
    kept = [k for k, t in enumerate(center.saved(i)) if t.requires_grad]
    told = 0.0
    if known is not None and known.requires_grad and kept:
        ts, ps, ms = center.saved(i), plus.saved(i), minus.saved(i)
        found = torch.autograd.grad(known, [ts[k] for k in kept], retain_graph=True, allow_unused=True)
        told = sum(
            float((g * (ps[k] - ms[k]).detach()).sum()) for g, k in zip(found, kept, strict=True) if g is not None
        )
    off = moved - told
    return abs(off) > MISSING * (abs(moved) + abs(told)) + 1e3 * eps * size, off if off else 1e-300
