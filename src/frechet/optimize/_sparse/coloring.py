"""Coloring: blocks of columns that no row reads together share a color, and one product finds all columns of a color.

Blocks are the vertices of a graph, with an edge where a row reads both. The greedy rule gives each vertex, those with
most neighbours first, the least color that no neighbour has. As many products as there are colors find the whole
Jacobian.

**Source.** A. Curtis, M. Powell and J. Reid (1974), On the estimation of sparse Jacobian matrices,
doi 10.1093/imamat/13.1.117; the order: D. Welsh and M. Powell (1967), doi 10.1093/comjnl/10.1.85.

**Cost.** Linear in the edges of the graph.
"""

from __future__ import annotations

import numpy as np
import scipy


def meetings(reads: list[np.ndarray], count: int) -> scipy.sparse.csr_array:
    """The graph ``(count, count)``: which vertices stand in one row of an array ``(G, k)``; -1 stands for none."""
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for index in reads:
        for a in range(index.shape[1]):
            for b in range(a + 1, index.shape[1]):
                pair = index[:, (a, b)]
                pair = pair[(pair >= 0).all(1) & (pair[:, 0] != pair[:, 1])]
                pairs.append(np.unique(np.sort(pair, 1), axis=0))
    edges = np.concatenate(pairs)
    ends = np.concatenate([edges, edges[:, ::-1]])
    graph = scipy.sparse.csr_array((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    graph.sum_duplicates()
    return graph


def colored(graph: scipy.sparse.csr_array) -> np.ndarray:
    """The color of each vertex, from 0 up."""
    start, neighbours = graph.indptr, graph.indices
    count = len(start) - 1
    colors = np.full(count, -1, dtype=np.int64)
    degrees = np.diff(start)
    colors[degrees == 0] = 0
    for v in np.argsort(-degrees, kind="stable")[: int((degrees > 0).sum())].tolist():
        taken = np.zeros(degrees[v] + 2, dtype=bool)
        near = colors[neighbours[start[v] : start[v + 1]]]
        taken[near[(near >= 0) & (near <= degrees[v])]] = True
        colors[v] = int(np.argmin(taken))
    return colors
