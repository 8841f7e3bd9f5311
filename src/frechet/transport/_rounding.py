"""Plans with exact marginals and at most k nonzeros per column, near one that misses its row sums.

Where the k-th and the next entry of columns are tied at the dual maximum, the columns of `_cardinality.py` need not add
up to the rows. A good plan near them with supports of k entries is a mixed-integer linear problem over the few best
entries of each column and row:

    min <C, T> + lambda sum |T - T0|    over T >= 0 with T 1 = a, T' 1 = b,
                                             T_ij <= min(a_i, b_j) z_ij, z binary, sum_i z_ij <= k

where lambda = gamma mean(b) / k stands for the slope of gamma / 2 |T|^2.
Only its supports are taken; the plan on them is a convex problem for the caller.

**Source.** The formulation is the standard one of a fixed-charge transportation problem: W. M. Hirsch and G. B. Dantzig
(1968), The fixed charge problem, doi 10.1002/nav.3800150306. Solved by HiGHS through SciPy.

**Cost.** Exponential at worst; it ends after `NODES` nodes of the search.
"""

from __future__ import annotations

import numpy as np
import scipy

NODES = 10  # of the search, which ends with what it has found
ENOUGH = 0.3  # relative gap at which it ends: any plan serves, and near ones are likely to be good
WIDER = 6  # entries of a column beside the k best, and of a row, that may be used
LARGEST = 1500  # entries in all, beyond which no search is made: the plain search would take minutes


def supports(score: np.ndarray, T: np.ndarray, a: np.ndarray, b: np.ndarray, k: int, gamma: float) -> np.ndarray | None:
    """A mask ``(n, m)`` with at most k entries per column that carries a plan from a to b; None where none is found.

    `score` is alpha_i - C_ij, `T` is the plan to stay near.
    """
    n, m = score.shape
    # a plan between masses of which no parts have equal sums is connected; few different masses have many such parts
    if k * m < n + m - 1 and 2 * (len(np.unique(a)) + len(np.unique(b))) > n + m:
        return None
    best = np.argsort(-score, axis=0, kind="stable")[: min(k + WIDER, n)]
    allowed = T > 0
    allowed[best, np.arange(m)] = True
    allowed[np.arange(n)[:, None], np.argsort(-score, axis=1, kind="stable")[:, : min(WIDER, m)]] = True
    i, j = np.nonzero(allowed)
    size = len(i)
    if size > LARGEST:
        return None
    most, near = np.minimum(a[i], b[j]), T[i, j]
    worse = (score.max(0) - score)[i, j]  # C_ij up to what the marginals fix
    slope = gamma * b.mean() / k
    ones, at, none = np.ones(size), np.arange(size), np.zeros(size)
    # T = near + up - down, in the unknowns (up, down, z)
    rows = scipy.sparse.csr_matrix((np.r_[ones, -ones], (np.r_[i, i], np.r_[at, size + at])), shape=(n, 3 * size))
    columns = scipy.sparse.csr_matrix((np.r_[ones, -ones], (np.r_[j, j], np.r_[at, size + at])), shape=(m, 3 * size))
    used = scipy.sparse.csr_matrix(
        (np.r_[ones, -ones, -most], (np.r_[at, at, at], np.r_[at, size + at, 2 * size + at])), shape=(size, 3 * size)
    )
    counted = scipy.sparse.csr_matrix((ones, (j, 2 * size + at)), shape=(m, 3 * size))
    of_rows, of_columns = a - T.sum(1), b - T.sum(0)
    of_columns = of_columns + (of_rows.sum() - of_columns.sum()) / m  # equal sums to rounding
    found = scipy.optimize.milp(
        np.r_[slope + worse, slope - worse, none],
        integrality=np.r_[none, none, ones],
        bounds=scipy.optimize.Bounds(0, np.r_[most, near, ones]),
        constraints=scipy.optimize.LinearConstraint(
            scipy.sparse.vstack([rows, columns, used, counted]),  # pyright: ignore[reportArgumentType]
            np.r_[of_rows, of_columns, np.full(size + m, -np.inf)],  # pyright: ignore[reportArgumentType]
            np.r_[of_rows, of_columns, -near, np.full(m, float(k))],  # pyright: ignore[reportArgumentType]
        ),
        options={"node_limit": NODES, "mip_rel_gap": ENOUGH},
    )
    if found.x is None:
        return None
    mask = np.zeros((n, m), dtype=bool)
    chosen = found.x[2 * size :] > 0.5
    mask[i[chosen], j[chosen]] = True
    return mask
