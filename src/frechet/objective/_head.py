"""An output layer that is never multiplied out: the sum of terms of h W' + b, in chunks of the rows of h.

A language model's last layer turns hidden states h ``(rows, d)`` into logits ``(rows, V)``. With a vocabulary of
V = 50 000 these are by far the largest tensor there is, and derivatives take several of them. With a criterion that is
a sum over rows, phi(h, W, b) = sum_t f(W h_t + b), and s, C its score and Hessian in the logits z of a chunk,

    d phi        = <s, dz>,    dz = dh W' + h dW' + db
    grad phi     = (s W, s'h, sum s)
    d grad phi   = (c W + s dW, c'h + s'dh, sum c),    c = C dz

need one chunk of logits at a time. Both lines of derivatives are written out as autograd functions, in reverse and in
forward mode, so every product that differentiates the total twice is exact and holds one chunk. A third derivative is
exact too, but keeps all chunks.

The model runs with this layer replaced by the identity. Whatever it did to the layer's output afterwards it would now
do to h, so the tensor that it returns must be that output itself, or rows of it: seen in memory, at every pass.

**Source.** The backward of the fused linear cross entropy, Hsu et al., "Liger Kernel" (2024), arXiv 2410.10989.
**Differs from the source.** (1) Second derivatives, (2) any criterion that is a sum over rows, (3) chunks are computed
again instead of a gradient kept from the forward pass, so that the sum may be weighted later.
**Cost** in multiplications of rows x d x V: value 1; gradient 4, where kept logits need 3; Hessian product 11 for the
first vector and 7 for each further one (9 and 6); Gauss-Newton product 5 and 4 (the same). Rows without a term that
counts, such as padding, are left out before all of them. Memory: three to five chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frechet.errors import UnusableObjective
from frechet.objective.criteria._criterion import Criterion

CHUNK_BYTES = 1 << 25  # of one chunk's logits


@dataclass(frozen=True, eq=False)
class Head:
    """The linear layer that a model ends in; `weight` and `bias` are its parameters' names in the model."""

    name: str
    module: nn.Linear
    weight: str
    bias: str | None
    rows: int | None  # per chunk; None: as many as `CHUNK_BYTES` hold

    def chunk(self, dtype: torch.dtype) -> int:
        """The rows that go through the layer at once, with logits of this dtype."""
        return self.rows or max(1, CHUNK_BYTES // max(1, self.module.out_features * dtype.itemsize))

    @contextmanager
    def bypassed(self) -> Iterator[list[tuple[Tensor, int]]]:
        """The layer returns its input inside; the list holds what it returned, with the tensor's version."""
        seen: list[tuple[Tensor, int]] = []

        def identity(input: Tensor) -> Tensor:
            h = input.contiguous()
            seen.append((h, h._version))
            return h

        attributes = self.module.__dict__  # in front of the class's method, for this one module
        kept = attributes.get("forward")
        attributes["forward"] = identity
        try:
            yield seen
        finally:
            del attributes["forward"]
            if kept is not None:
                attributes["forward"] = kept

    def before(self, run: Callable[[], Tensor]) -> Tensor:
        """The hidden states that a model, called by `run`, gives to its head."""
        with self.bypassed() as seen:
            try:
                y = run()
            except (RuntimeError, ValueError, IndexError) as error:
                if not seen:
                    raise
                raise UnusableObjective(
                    f"Objective: the model must do nothing to the output of head '{self.name}', got {error!s:.120} "
                    "with the head left out; leave head= out"
                ) from error
        self._require_last(y, seen)
        return y

    def _require_last(self, y: Tensor, seen: list[tuple[Tensor, int]]) -> None:
        """Raise unless the model's output `y` is what the bypassed layer returned, or rows of it."""
        if len(seen) != 1:
            raise UnusableObjective(
                f"Objective: head '{self.name}' must be called once by the model's forward pass, got {len(seen)} "
                "calls; leave head= out"
            )
        ((h, version),) = seen
        width = self.module.in_features
        same = y.untyped_storage().data_ptr() == h.untyped_storage().data_ptr() and h._version == version
        rows = y.ndim > 1 and y.shape[-1] == width and (y.stride(-1) == 1 or width == 1)
        aligned = all(step % width == 0 for step in (y.storage_offset() - h.storage_offset(), *y.stride()[:-1]))
        if not (same and rows and aligned):
            raise UnusableObjective(
                f"Objective: the model's output must be that of head '{self.name}' itself, or a choice of its rows, "
                "got something computed from it (scaling, soft-capping, a cut of the classes, a copy); leave head= "
                "out, or move that step into the criterion"
            )


def head_of(model: nn.Module, name: str, rows: int | None) -> Head:
    """The head called `name`; raises where it is not a plain linear layer of the model."""
    modules = dict(model.named_modules())
    module = modules.get(name)
    if module is None:
        linear = [n for n, m in modules.items() if isinstance(m, nn.Linear)]
        raise ValueError(
            f"Objective: head must name a module of the model, got {name!r}; linear ones are {linear[-4:]}"
        )
    if (
        not isinstance(module, nn.Linear)
        or type(module).forward is not nn.Linear.forward
        or module._parameters.get("weight") is None
    ):
        raise TypeError(
            f"Objective: head must be a torch.nn.Linear with a weight of its own, got {type(module).__name__} at "
            f"'{name}'; an adapter, a quantization or a normalization of the head's weight must be merged first, or "
            "leave head= out"
        )
    if rows is not None and rows < 1:
        raise ValueError(f"Objective: head_rows must be at least 1, got {rows}")
    names = {id(p): n for n, p in model.named_parameters()}
    return Head(name, module, names[id(module.weight)], None if module.bias is None else names[id(module.bias)], rows)


@dataclass(frozen=True, eq=False)
class HeadRows:
    """One batch before its head: the hidden states that count, the head's parameters, each row's criterion and target.

    `hidden` and the parameters may carry a graph or tangents.
    """

    hidden: Tensor  # as the model returned them, (..., d)
    h: Tensor  # (rows, d)
    W: Tensor  # (V, d)
    b: Tensor | None
    criterion: Criterion
    targets: Tensor
    kept: Tensor | None  # the rows' numbers in the batch; None: all
    step: int  # rows per chunk

    def chunks(self) -> Iterator[slice]:
        """The rows in order, `step` at a time."""
        return (slice(a, a + self.step) for a in range(0, self.h.shape[0], self.step))

    def select(self, tangent: Tensor) -> Tensor:
        """The rows ``(rows, d)`` of a tensor shaped like the hidden states."""
        flat = tangent.reshape(-1, self.hidden.shape[-1])
        return flat if self.kept is None else flat[self.kept]

    def spread(self, rows: Tensor) -> Tensor:
        """Rows in their places in a tensor shaped like the hidden states, zero elsewhere: the transpose of `select`."""
        if self.kept is None:
            return rows.view(self.hidden.shape)
        flat = rows.new_zeros(math.prod(self.hidden.shape[:-1]), rows.shape[1])
        flat[self.kept] = rows
        return flat.view(self.hidden.shape)

    def examples(self) -> Tensor:
        """The example that each row belongs to ``(rows,)``."""
        numbers = self.kept
        if numbers is None:
            numbers = torch.arange(self.h.shape[0], device=self.h.device)
        return numbers.div(max(1, math.prod(self.hidden.shape[1:-1])), rounding_mode="floor")

    def per_example(self, values: Tensor) -> Tensor:
        """Sums ``(examples,)`` of values of rows."""
        return values.new_zeros(self.hidden.shape[0]).index_add(0, self.examples(), values)

    def terms(self) -> Tensor:
        """The value of each row ``(rows,)``, twice differentiable in hidden states and parameters at one chunk each."""
        value: Tensor = _Terms.apply(self.h, self.W, self.b, self)  # type: ignore[assignment]
        return value


def rows_of(head: Head, criterion: Criterion, hidden: Tensor, state: Mapping[str, Tensor], targets: Any) -> HeadRows:
    """The rows of a batch with the `hidden` states that the model returned while `head` was bypassed."""
    W, b = state[head.weight], None if head.bias is None else state[head.bias]
    rows = criterion.rows((*hidden.shape[:-1], W.shape[0]), targets)
    flat = hidden.reshape(-1, hidden.shape[-1])
    h = flat if rows.kept is None else flat[rows.kept]
    return HeadRows(hidden, h, W, b, rows.criterion, rows.targets, rows.kept, head.chunk(W.dtype))


# --- derivatives ------------------------------------------------------------------------------------------------------


def slopes(
    rows: HeadRows, g: Tensor, h: Tensor, W: Tensor, b: Tensor | None, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradient of sum_t g_t f_t in (h, W, b), where wanted."""
    gh, gW, gb = [], torch.zeros_like(W) if wanted[1] else None, None
    for c in rows.chunks():
        s = rows.criterion.score(F.linear(h[c], W, b), rows.targets[c]) * g[c, None]
        if wanted[0]:
            gh.append(s @ W)
        if gW is not None:
            gW = gW.addmm_(s.T, h[c])
        if wanted[2]:
            gb = s.sum(0) if gb is None else gb + s.sum(0)
    if wanted[2] and gb is None:
        gb = W.new_zeros(W.shape[0])
    return _stacked(gh, h) if wanted[0] else None, gW, gb


def pushed(h: Tensor, W: Tensor, dh: Tensor | None, dW: Tensor | None, db: Tensor | None) -> Tensor | None:
    """dz = dh W' + h dW' + db on one chunk; None stands for zero."""
    dz = None if dh is None else dh @ W.T
    if dW is not None:
        dz = h @ dW.T if dz is None else torch.addmm(dz, h, dW.T)
    if db is not None:
        dz = db.expand(h.shape[0], -1) if dz is None else dz + db
    return dz


def slope_tangents(
    rows: HeadRows,
    point: tuple[Tensor, Tensor, Tensor, Tensor | None],
    tangent: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The derivative along `tangent` of the gradient in (g, h, W, b) of sum_t g_t f_t, where wanted."""
    g, h, W, b = point
    dg, dh, dW, db = tangent
    along, th, tW, tb = [], [], torch.zeros_like(W) if wanted[2] else None, None
    for c in rows.chunks():
        z, y = F.linear(h[c], W, b), rows.targets[c]
        s = rows.criterion.score(z, y)
        dz = pushed(h[c], W, None if dh is None else dh[c], dW, db)
        if wanted[0]:
            along.append(g.new_zeros(len(z)) if dz is None else (s * dz).sum(1))
        u = None if dz is None else rows.criterion.hessian_product(z, y, dz) * g[c, None]
        del z, dz
        if dg is not None:
            u = s * dg[c, None] if u is None else u + s * dg[c, None]
        s = s * g[c, None]
        if wanted[1]:
            piece = torch.zeros_like(h[c]) if u is None else u @ W
            th.append(piece if dW is None else torch.addmm(piece, s, dW))
        if tW is not None:
            tW = tW if u is None else tW.addmm_(u.T, h[c])
            tW = tW if dh is None else tW.addmm_(s.T, dh[c])
        if wanted[3] and u is not None:
            tb = u.sum(0) if tb is None else tb + u.sum(0)
    if wanted[3] and tb is None:
        tb = W.new_zeros(W.shape[0])
    return _stacked(along, g) if wanted[0] else None, _stacked(th, h) if wanted[1] else None, tW, tb


def _stacked(pieces: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(pieces) if pieces else torch.zeros_like(like)


class _Terms(torch.autograd.Function):
    """f_t of every row, from (h, W, b)."""

    @staticmethod
    def forward(h: Tensor, W: Tensor, b: Tensor | None, rows: HeadRows) -> Tensor:
        values = [rows.criterion.terms(F.linear(h[c], W, b), rows.targets[c]) for c in rows.chunks()]
        return torch.cat(values) if values else h.new_zeros(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.rows = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if grads[0] is None:
            return None, None, None, None
        return *_Slopes.apply(grads[0], *ctx.saved_tensors, ctx.rows, ctx.needs_input_grad[:3]), None  # type: ignore[misc]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (h, W, b), rows = ctx.saved_tensors, ctx.rows
        dh, dW, db, _ = tangents
        values = []
        for c in rows.chunks():
            dz = pushed(h[c], W, None if dh is None else dh[c], dW, db)
            if dz is not None:
                values.append((rows.criterion.score(F.linear(h[c], W, b), rows.targets[c]) * dz).sum(1))
        return torch.cat(values) if values else h.new_zeros(h.shape[0])


class _Slopes(torch.autograd.Function):
    """`slopes` as a function of (g, h, W, b)."""

    @staticmethod
    def forward(g: Tensor, h: Tensor, W: Tensor, b: Tensor | None, rows: HeadRows, wanted: tuple[bool, ...]) -> Any:
        return slopes(rows, g, h, W, b, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.rows, ctx.wanted = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        point = ctx.saved_tensors
        tangents = slope_tangents(ctx.rows, point, (None, *grads), ctx.needs_input_grad[:4])
        return *tangents, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return slope_tangents(ctx.rows, ctx.saved_tensors, tangents[:4], (False, *ctx.wanted))[1:]
