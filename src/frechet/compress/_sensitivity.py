"""What storing each weight in few bits does to the loss: predicted from curvature, and measured beside.

With e = Q(w) - w on one weight, zero elsewhere, g the gradient and H the Hessian or the Gauss-Newton matrix,

    quadratic   e'H e / 2, exact: one product for each weight and number of bits, in blocks
    taylor      g'e + e'H e / 2
    trace       tr(H_ww) |e|^2 / (2 n), with an interval: one block of products for all weights (HAWQ-V2)

The trace takes the rounding error for isotropic; the quadratic form knows its direction. At a minimum the gradient
vanishes; away from it "taylor" has the first-order part too.

**Source.** Z. Dong et al. (2020), HAWQ-V2: Hessian aware trace-weighted quantization of neural networks, arXiv
1911.03852.
**Differs from the source.** (1) The factor 1/2, so that predictions are losses. (2) An interval. (3) The exact forms.
**Cost.** "trace": `probes` products. Others: as many products as weights times numbers of bits; "taylor" a gradient
more. Measured: as many passes over the data without derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor

from frechet.analyze import layer_traces
from frechet.compress._quantizer import uniform
from frechet.errors import NonFinite
from frechet.linalg._shown import Result, Rows
from frechet.objective import Objective
from frechet.operators.derivatives import gauss_newton, hessian

Method = Literal["quadratic", "taylor", "trace"]
Curvature = Literal["gauss_newton", "hessian"]
BLOCK = 16  # products at a time


@dataclass(frozen=True, eq=False)
class Sensitivity(Result):
    """The increase of the loss for each weight (row) and number of bits (column), all other weights as they are."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    bits: tuple[int, ...]
    predicted: Tensor  # (weights, numbers of bits) float64
    lower: Tensor
    upper: Tensor  # equal to `predicted` where the method draws nothing
    measured: Tensor | None
    loss: float
    method: str
    products: int

    def _line(self) -> str:
        return f"{len(self.names)} weights, bits {self.bits}, {self.method}, {self.products} products"

    def _table(self) -> Rows:
        rows = []
        for i, name in enumerate(self.names):
            told = [f"{float(p):.3g}" for p in self.predicted[i]]
            if self.measured is not None:
                told = [f"{t} ({float(m):.3g})" for t, m in zip(told, self.measured[i], strict=True)]
            rows.append((name, str(self.sizes[i]), *told))
        return ("weight", "size", *(f"{b} bits" for b in self.bits)), rows

    def plot(self, axes: Any) -> Any:
        """Draw the predictions over the numbers of bits into matplotlib's `axes`; returns them."""
        for i, name in enumerate(self.names):
            axes.semilogy(self.bits, self.predicted[i].clamp_min(1e-12), marker="o", label=name)
        axes.set_xlabel("bits")
        axes.set_ylabel("increase of the loss")
        axes.legend()
        return axes


def sensitivity(
    objective: Objective,
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    *,
    quantizer: Callable[[Tensor, int], Tensor] = uniform,
    method: Method = "quadratic",
    curvature: Curvature = "gauss_newton",
    measured: bool = False,
    seed: int | None = None,
    probes: int = 100,
    level: float = 0.95,
    x: Tensor | None = None,
    weights: str | Iterable[str] | None = None,
) -> Sensitivity:
    """Estimate what storing each weight in few bits does to the loss.

    Args:
        objective: the objective, best in evaluation and near a minimum.
        bits: the numbers of bits that are tried.
        quantizer: a function of a weight and a number of bits that returns the weight as it is read back. Give the one
            that will be deployed.
        method: ``"quadratic"``, ``"taylor"`` or ``"trace"``, see the module.
        curvature: ``"gauss_newton"``, which is never negative for convex criteria, or ``"hessian"``.
        measured: whether the loss is evaluated with each weight quantized, too.
        seed: the seed of the probes, for ``"trace"``.
        probes: how many, for ``"trace"``.
        level: of the interval of the trace.
        x: the point ``(n,)``. Default: the model's present parameters.
        weights: glob patterns of the parameters. Default: all with at least two axes.

    Returns:
        A `Sensitivity`. Its interval is that of the estimated trace: it says nothing of the quadratic model itself,
            which `measured` does.

    Raises:
        ValueError: no parameter matches, a number of bits is wrong, or a seed is missing.
        NonFinite: the quantizer returns what is not finite.

    Example:
        >>> import torch
        >>> from frechet import Objective, cross_entropy
        >>> from frechet.compress import allocate_bits, sensitivity
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> objective = Objective(model, cross_entropy(), [(torch.randn(64, 8), torch.randint(0, 3, (64,)))])
        >>> table = sensitivity(objective, (2, 4, 8))
        >>> table.predicted.shape, bool((table.predicted[:, 0] > table.predicted[:, 2]).all())
        (torch.Size([2, 3]), True)
        >>> allocate_bits(table, 100).bytes <= 100
        True
    """
    space, point = objective.space, objective.point if x is None else x
    names = _weights(objective, weights)
    widths = tuple(bits)
    if not widths:
        raise ValueError("sensitivity: bits must have at least one number, got none")
    if method not in ("quadratic", "taylor", "trace"):
        raise ValueError(f"sensitivity: method must be 'quadratic', 'taylor' or 'trace', got {method!r}")
    if method == "trace" and seed is None:
        raise ValueError("sensitivity: seed must be given for method='trace', got None")
    errors = _errors(objective, point, names, widths, quantizer)
    A = {"gauss_newton": gauss_newton, "hessian": hessian}[curvature](objective, x=point)
    shape = (len(names), len(widths))
    if method == "trace":
        assert seed is not None
        traces = layer_traces(A, seed=seed, probes=probes, level=level)
        scale = torch.stack([e.double().square().sum(0) for e in errors]) / 2
        sizes = torch.tensor([float(len(e)) for e in errors], dtype=torch.float64)
        found = {t.name: t.trace for t in traces.blocks}
        low, value, high = (
            scale * (torch.tensor([pick(found[n]) for n in names], dtype=torch.float64) / sizes)[:, None]
            for pick in (
                lambda t: float(t.interval(level)[0]), lambda t: float(t.value), lambda t: float(t.interval(level)[1])
            )
        )  # fmt: skip
        products = probes
    else:
        value = _quadratic(A, objective, names, errors).view(shape) / 2
        if method == "taylor":
            g = objective.gradient(point)
            value = value + torch.stack(
                [(g[space.block(n)].double() @ e.double()) for n, e in zip(names, errors, strict=True)]
            )
        low = high = value
        products = shape[0] * shape[1]
    loss = float(objective.value(point))
    return Sensitivity(
        names=names,
        sizes=tuple(len(e) for e in errors),
        bits=widths,
        predicted=value,
        lower=low,
        upper=high,
        measured=_measured(objective, point, names, errors, loss) if measured else None,
        loss=loss,
        method=f"{method} form of the {curvature.replace('_', '-')}" if method != "trace" else f"trace of {curvature}",
        products=products,
    )


def joined(first: Sensitivity, second: Sensitivity) -> Sensitivity:
    """Return one table with the rows of both, such as those of weights and of activations, to plan them together.

    Args:
        first: a table.
        second: another one of the same objective, with the same numbers of bits and other names.

    Returns:
        A `Sensitivity`. Its measured losses are there where both tables have them.

    Raises:
        ValueError: the numbers of bits or the losses differ, or a name is in both.

    Example:
        >>> import torch
        >>> from frechet.compress import Sensitivity, allocate_bits, joined
        >>> p = torch.tensor([[4.0, 1.0]], dtype=torch.float64)
        >>> weights = Sensitivity(("0.weight",), (8,), (2, 4), p, p, p, None, 0.0, "", 0)
        >>> inputs = Sensitivity(("0",), (16,), (2, 4), p / 8, p / 8, p / 8, None, 0.0, "", 0)
        >>> allocate_bits(joined(weights, inputs), 8).bits
        {'0.weight': 4, '0': 2}
    """
    if first.bits != second.bits:
        raise ValueError(f"joined: both tables must have the same bits, got {first.bits} and {second.bits}")
    if twice := sorted({*first.names} & {*second.names}):
        raise ValueError(f"joined: names must be different, got '{twice[0]}' in both tables")
    if not math.isclose(first.loss, second.loss, rel_tol=1e-5, abs_tol=1e-12):
        raise ValueError(
            f"joined: both tables must be of one objective, got losses {first.loss:.6g} and {second.loss:.6g}; leave "
            "penalties out of both"
        )
    pairs = {n: (getattr(first, n), getattr(second, n)) for n in ("predicted", "lower", "upper")}
    both = None
    if first.measured is not None and second.measured is not None:
        both = torch.cat([first.measured.cpu(), second.measured.cpu()])
    return Sensitivity(
        names=first.names + second.names,
        sizes=first.sizes + second.sizes,
        bits=first.bits,
        **{n: torch.cat([a.cpu(), b.cpu()]) for n, (a, b) in pairs.items()},
        measured=both,
        loss=first.loss,
        method=first.method if first.method == second.method else f"{first.method}; {second.method}",
        products=first.products + second.products,
    )


def _weights(objective: Objective, patterns: str | Iterable[str] | None) -> tuple[str, ...]:
    space = objective.space
    if patterns is None:
        found = tuple(n for n, s in zip(space.names, space.shapes, strict=True) if len(s) > 1)
    else:
        globs = [patterns] if isinstance(patterns, str) else list(patterns)
        found = tuple(n for n in space.names if any(fnmatchcase(n, g) for g in globs))
    if not found and patterns is None:
        raise ValueError(
            "sensitivity: a trainable parameter must have two axes or more, got none; name others by weights="
        )
    if not found:
        raise ValueError(f"sensitivity: weights must match a trainable parameter, got {patterns!r}")
    return found


def _errors(
    objective: Objective, point: Tensor, names: Sequence[str], widths: Sequence[int],
    quantizer: Callable[[Tensor, int], Tensor],
) -> list[Tensor]:  # fmt: skip
    """Q(w) - w as columns ``(size, numbers of bits)``, for each weight."""
    blocks = objective.space.unflatten(point)
    found = []
    for name in names:
        w = blocks[name].detach()
        columns = []
        for b in widths:
            q = quantizer(w.clone(), b)  # it may round in place
            if not isinstance(q, Tensor) or q.shape != w.shape:
                got = tuple(q.shape) if isinstance(q, Tensor) else type(q).__name__
                raise ValueError(f"sensitivity: quantizer must return shape {tuple(w.shape)} for '{name}', got {got}")
            if not bool(q.isfinite().all()):
                raise NonFinite(f"sensitivity: quantizer must return finite numbers, got NaN or infinity for '{name}'")
            columns.append((q - w).reshape(-1))
        found.append(torch.stack(columns, 1))
    return found


def _quadratic(A: Any, objective: Objective, names: Sequence[str], errors: Sequence[Tensor]) -> Tensor:
    """e'A e for each column of each weight, in float64."""
    space = objective.space
    pairs = [(n, e[:, j]) for n, e in zip(names, errors, strict=True) for j in range(e.shape[1])]
    found = []
    for first in range(0, len(pairs), BLOCK):
        chunk = pairs[first : first + BLOCK]
        V = space.zeros(len(chunk))
        for j, (n, e) in enumerate(chunk):
            V[space.block(n), j] = e
        AV = A @ V
        found += [float(space.inner(V[:, j], AV[:, j])) for j in range(len(chunk))]
    return torch.tensor(found, dtype=torch.float64)


def _measured(
    objective: Objective, point: Tensor, names: Sequence[str], errors: Sequence[Tensor], loss: float
) -> Tensor:
    rows = []
    for name, e in zip(names, errors, strict=True):
        row = []
        for j in range(e.shape[1]):
            moved = point.clone()
            moved[objective.space.block(name)] += e[:, j]
            row.append(float(objective.value(moved)) - loss)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)
