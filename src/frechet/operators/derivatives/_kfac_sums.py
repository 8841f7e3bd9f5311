"""What one batch adds to the factors of a layer, from its calls and the slopes that come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from frechet.operators.derivatives._kfac_layers import Call

Sharing = Literal["expand", "reduce"]


@dataclass(eq=False)
class Factored:
    """Sums of one batch for one layer."""

    sharing: Sharing
    padded: bool = False
    calls: list[Call] = field(default_factory=list)
    live: list[Tensor] = field(default_factory=list)  # rows that a loss reaches, for each call
    B: Tensor | None = None

    def add(self, own: list[tuple[Call, Tensor]]) -> None:
        """The slopes of one column."""
        if not own:
            return
        self.calls = [c for c, _ in own]
        rows = [_kept(c, c.slopes(b)) for c, b in own]
        if self.padded:
            reached = [(r != 0).flatten(2).any(2) for r in rows]
            self.live = [old | new for old, new in zip(self.live, reached, strict=True)] if self.live else reached
        elif not self.live:
            self.live = [r.new_ones(r.shape[:2], dtype=torch.bool) for r in rows]
        if self.sharing == "reduce" and self.calls[0].layer.kind != "embedding":
            rows = [torch.stack([r.sum(1) for r in rows]).sum(0).unsqueeze(1)]
        found = sum((_second_moment(r) for r in rows), start=_second_moment(rows[0]) * 0)
        self.B = found if self.B is None else self.B + found

    def flat(self, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """A, the number of its rows, and B in one vector."""
        if self.B is None:  # the layer was not called, or nothing depends on it
            return torch.zeros(sum(torch.Size(s).numel() for s in shapes), dtype=torch.float64)
        device = self.B.device
        layer = self.calls[0].layer
        if layer.kind == "embedding":
            tokens = self._rows()
            A, count = torch.bincount(tokens, minlength=shapes[0][0]).double(), len(tokens)
        elif self.sharing == "expand":
            rows = self._rows()
            A, count = _second_moment(rows.unsqueeze(0)), len(rows)
        else:
            A, count = self._reduced()
        number = torch.tensor([float(count)], dtype=torch.float64, device=device)
        return torch.cat([A.reshape(-1), number, self.B.reshape(-1)])

    def _rows(self) -> Tensor:
        """The inputs that count, of all calls."""
        found = []
        for c, live in zip(self.calls, self.live, strict=True):
            rows, counted = c.inputs, self._counted(c, live)
            found.append(rows.flatten(0, 1) if bool(counted.all()) else rows[counted])
        return torch.cat(found)

    def _reduced(self) -> tuple[Tensor, int]:
        """A over the examples' mean inputs."""
        total, number = None, None
        for c, live in zip(self.calls, self.live, strict=True):
            weight = self._counted(c, live).to(c.output.dtype)
            rows = (c.inputs * weight[:, :, None, None]).sum(1)
            total = rows if total is None else total + rows
            number = weight.sum(1) if number is None else number + weight.sum(1)
        assert total is not None  # by `flat`
        assert number is not None
        mean = total / number.clamp_min(1)[:, None, None]
        return _second_moment(mean.unsqueeze(1)), len(mean)

    def _counted(self, call: Call, live: Tensor) -> Tensor:
        """Which rows ``(examples, t)`` count in A."""
        pad = getattr(call.layer.module, "padding_idx", None)
        return live if pad is None else live & (call.inputs != pad)


def _kept(call: Call, rows: Tensor) -> Tensor:
    """Slopes of an embedding without those of its padding token, whose row gets no gradient."""
    pad = getattr(call.layer.module, "padding_idx", None)
    return rows if pad is None else rows * (call.inputs != pad)[:, :, None, None]


def _second_moment(rows: Tensor) -> Tensor:
    """sum r r' over rows ``(..., groups, size)`` as ``(groups, size, size)``, in float64."""
    flat = rows.reshape(-1, *rows.shape[-2:]).transpose(0, 1)
    return (flat.transpose(1, 2) @ flat).double()


@dataclass(eq=False)
class Turned:
    """Gradients of a layer in the eigenbasis of its factors; the inputs are turned once for each call."""

    Q_A: Tensor | None  # None: the inputs are tokens
    Q_B: Tensor
    columns: slice  # of the inputs
    inputs: dict[int, Tensor] = field(default_factory=dict)

    def squares(self, own: list[tuple[Call, Tensor]]) -> Tensor:
        """The sum over examples of the squares of their gradients, flat, in float64."""
        pairs = [(self._slopes(c, b), self._inputs(c)) for c, b in own]
        if self.Q_A is not None and len(pairs) == 1 and pairs[0][0].shape[1] == 1:  # one vector of each example
            b, a = (rows[:, 0].square() for rows in pairs[0])
            return torch.einsum("ngo,ngi->goi", b, a).double().reshape(-1)
        total: Tensor | None = None
        for (b, a), (call, _) in zip(pairs, own, strict=True):
            if self.Q_A is None:
                g = b.new_zeros(len(b), _tokens(call), b.shape[-1])
                g.scatter_add_(1, a[:, :, None].expand(-1, -1, b.shape[-1]), b[:, :, 0])
            else:
                g = torch.einsum("ntgo,ntgi->ngoi", b, a)
            total = g if total is None else total + g
        assert total is not None  # a layer was called
        return total.double().square().sum(0).reshape(-1)

    def _slopes(self, call: Call, b: Tensor) -> Tensor:
        rows = _kept(call, call.slopes(b))
        return torch.einsum("ntgo,gop->ntgp", rows, self.Q_B.to(rows))

    def _inputs(self, call: Call) -> Tensor:
        if self.Q_A is None:
            return call.inputs
        if id(call) not in self.inputs:
            rows = call.inputs[..., self.columns]
            self.inputs[id(call)] = torch.einsum("ntgi,gij->ntgj", rows, self.Q_A.to(rows))
        return self.inputs[id(call)]


def _tokens(call: Call) -> int:
    module: Any = call.layer.module
    return module.num_embeddings


def example_gradients(call: Call, b: Tensor, at: slice = slice(None)) -> Tensor:
    """Each example's gradient ``(examples, size)`` of the layer's block, for the examples at `at`."""
    if call.layer.kind == "scale":
        return call.gradients(b)[at]
    rows, inputs = _kept(call, call.slopes(b))[at], call.inputs[at]
    if call.layer.kind == "embedding":
        g = rows.new_zeros(len(rows), _tokens(call), rows.shape[-1])
        return g.scatter_add_(1, inputs[:, :, None].expand(-1, -1, rows.shape[-1]), rows[:, :, 0]).flatten(1)
    return torch.einsum("ntgo,ntgi->ngoi", rows, inputs).flatten(1)


def gradient(call: Call, b: Tensor) -> Tensor:
    """The sum of the examples' gradients, in the order of the layer's block."""
    if call.layer.kind == "scale":
        return call.gradients(b).sum(0)
    rows, inputs = _kept(call, call.slopes(b)), call.inputs
    if call.layer.kind == "embedding":
        g = rows.new_zeros(_tokens(call), rows.shape[-1])
        return g.index_add_(0, inputs.reshape(-1), rows.reshape(-1, rows.shape[-1])).reshape(-1)
    return torch.einsum("ntgo,ntgi->goi", rows, inputs).reshape(-1)
