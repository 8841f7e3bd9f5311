"""Forbidden pairs: whether a plan exists, and which allowed pairs no plan can use.

A plan is a flow from rows to columns along allowed pairs, so max flow = min cut decides: no plan exists exactly where
some rows hold more mass than all columns that they reach. Given one plan, a pair (i, j) carries mass in some other plan
iff it lies on a cycle of the residual graph: i and j in one strongly connected component. All other pairs are zero in
every plan. Without them the dual problem attains its maximum, in every component by itself; with them the potentials
would run to infinity.

**Source.** L. R. Ford and D. R. Fulkerson (1956), Maximal flow through a network, doi 10.4153/CJM-1956-045-5; the flow
is SciPy's, in integers.

**Differs from the source.** Masses are rounded to 2^-30 of the total. A flow below that rounding counts as zero where
it is also small beside both masses, and a shortfall below it is no infeasibility: the iteration then decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

UNITS = 1 << 30
SMALL = 1e-3  # of the smaller mass


@dataclass(frozen=True, eq=False)
class Pattern:
    """Pairs that can carry mass, and the components into which they fall apart."""

    allowed: Tensor  # (n, m)
    row: Tensor  # (n,), component of each row
    column: Tensor  # (m,)
    count: int

    @property
    def T(self) -> Pattern:
        return Pattern(self.allowed.T, self.column, self.row, self.count)


def pattern(allowed: Tensor, a: Tensor, b: Tensor) -> Pattern | str:
    """The pairs that carry mass in some plan with the marginals a and b, or a sentence that says why there is none."""
    n, m = allowed.shape
    units = [np.maximum(np.rint(x.double().cpu().numpy() * UNITS), 1).astype(np.int32) for x in (a, b)]
    i, j = np.nonzero(allowed.cpu().numpy())
    source, sink = n + m, n + m + 1
    ends = (
        np.concatenate([np.full(n, source), i, n + np.arange(m)]),
        np.concatenate([np.arange(n), n + j, np.full(m, sink)]),
    )
    capacity = np.concatenate([units[0], np.full(len(i), UNITS, dtype=np.int32), units[1]])
    size = (n + m + 2, n + m + 2)
    graph = scipy.sparse.csr_matrix((capacity, ends), shape=size)
    flow = scipy.sparse.csgraph.maximum_flow(graph, source, sink)
    if flow.flow_value < min(int(u.sum()) for u in units) - (n + m):
        return _cut(graph, flow.flow, source, n, a, b)
    moved = np.asarray(flow.flow[i, n + j]).ravel()
    carried = (moved > n + m) | (moved > SMALL * np.minimum(units[0][i], units[1][j]))
    residual = scipy.sparse.csr_matrix(
        (
            np.ones(len(i) + int(carried.sum())),
            (np.concatenate([i, n + j[carried]]), np.concatenate([n + j, i[carried]])),
        ),
        shape=(n + m, n + m),
    )
    _, label = scipy.sparse.csgraph.connected_components(residual, directed=True, connection="strong")
    kept = label[i] == label[n + j]
    # a row whose mass drowns in the rounding of the flow keeps its pairs
    lost = [np.bincount(x[kept], minlength=k) == 0 for x, k in ((i, n), (j, m))]
    kept |= lost[0][i] | lost[1][j]
    i, j = i[kept], j[kept]
    mask = np.zeros((n, m), dtype=bool)
    mask[i, j] = True
    count, label = scipy.sparse.csgraph.connected_components(
        scipy.sparse.csr_matrix((np.ones(len(i)), (i, n + j)), shape=(n + m, n + m)), directed=False
    )
    where = torch.from_numpy(label.astype(np.int64)).to(a.device)
    return Pattern(torch.from_numpy(mask).to(a.device), where[:n], where[n:], int(count))


def _cut(
    graph: scipy.sparse.csr_matrix, flow: scipy.sparse.csr_matrix, source: int, n: int, a: Tensor, b: Tensor
) -> str:
    """The rows with too much mass: those that the source still reaches when the flow is full."""
    left = graph - flow
    left.data = np.maximum(left.data, 0)
    left.eliminate_zeros()
    reached = scipy.sparse.csgraph.breadth_first_order(left, source, return_predecessors=False)
    rows = np.sort(reached[reached < n])
    columns = np.sort(reached[(reached >= n) & (reached < source)]) - n
    here, there = (
        float(x[torch.from_numpy(k.astype(np.int64)).to(x.device)].sum()) for x, k in ((a, rows), (b, columns))
    )
    listed = ", ".join(map(str, rows[:5].tolist())) + (", ..." if len(rows) > 5 else "")
    return (
        f"no plan exists: {len(rows)} rows ({listed}) hold {here:.6g} of the mass, and the {len(columns)} columns that "
        f"they may go to take {there:.6g}"
    )
