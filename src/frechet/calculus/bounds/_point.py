"""A graph at single points: its values, and its Jacobian with kinks rounded where that is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from frechet.calculus.bounds._graph import Graph


def values_at(graph: Graph, X: Tensor) -> list[Tensor]:
    """The value of every node at points X (points, n)."""
    found: list[Tensor] = []
    for node in graph.nodes:
        if node.affine is not None:
            found.append(node.affine.apply(found[node.parents[0]]) + node.affine.shift())
        elif node.function is not None:
            found.append(node.function.values(found[node.parents[0]]))
        elif node.parents:
            found.append(torch.stack([s * found[p] for p, s in zip(node.parents, node.signs, strict=True)]).sum(0))
        else:
            found.append(X)
    return found


def jacobian_at(graph: Graph, X: Tensor, rows: Tensor, width: float = 0.0) -> Tensor:
    """rows J at points X (points, n), with rows (r, outputs): (points, r, n). Differentiable in X."""
    values = values_at(graph, X)
    arriving: dict[int, Tensor] = {graph.output: rows.expand(len(X), *rows.shape)}
    for i in reversed(range(1, graph.output + 1)):
        G = arriving.pop(i, None)
        if G is None:
            continue
        node = graph.nodes[i]
        for p, sign in zip(node.parents, node.signs or (1,), strict=True):
            if node.affine is not None:
                part = node.affine.back(G)
            elif node.function is not None:
                part = G * node.function.slope_at(values[p], width).unsqueeze(1)
            else:
                part = sign * G
            arriving[p] = arriving[p] + part if p in arriving else part
    return arriving.get(0, X.new_zeros(len(X), len(rows), X.shape[1]))
