"""Local Lipschitz constants of networks, between two certified ends.

    L = sup { |J| : J in the Clarke Jacobian of f at y, |y - x| <= radius }

in the norm from sup to sup, max_k sum_j |J_kj|, or in the spectral norm. The ball is convex, so that
|f(y) - f(z)| <= L |y - z| for all y, z in it. **Upper end:** linear bounds through the graph of the Jacobian
(`_propagate.py`), with branch and bound over activations (`_branch.py`). **Lower end:** the norm at a point that a
search finds (`_search.py`). Both ends hold for the network in exact arithmetic: rounding errors are bounded and added
(`_rounding.py`).

**Source.** Shi, Wang, Zhang, Kolter and Hsieh, "Efficiently computing local Lipschitz constants of neural networks via
bound propagation" (2022), arXiv 2210.07394.
**Differs from the source:** 1. the spectral norm too, by chords of squares and by interval matrices. 2. Rounding is
bounded. 3. See `_branch.py` and `_elementwise.py`.
**Cost:** for one part with layers of width n, n rows through each layer for each layer below it, and the same for each
row of the Jacobian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frechet.calculus.bounds import _norms as norms
from frechet.calculus.bounds._branch import Part, Search, enclosed
from frechet.calculus.bounds._goals import RowSum, Spectral
from frechet.calculus.bounds._graph import Graph
from frechet.calculus.bounds._propagate import Region
from frechet.calculus.bounds._rounding import above, below
from frechet.calculus.bounds._search import best_point, drawn, point_of
from frechet.calculus.bounds._trace import network_of
from frechet.linalg import Status
from frechet.linalg._shown import Result

POINTS = 128  # random points of the search
LOOKS = 7  # starts in a part of the region


@dataclass(frozen=True, eq=False)
class LipschitzBounds(Result):
    """Local Lipschitz constants, each between `lower[i]` and `upper[i]`. The lower one is reached at `points[i]`."""

    lower: Tensor  # (examples,), float64
    upper: Tensor
    points: Tensor
    norm: float
    radius: float
    status: Status
    message: str
    domains: int  # parts of the regions that were bounded

    @property
    def converged(self) -> bool:
        """Whether all ends are as close as was asked for."""
        return self.status is Status.CONVERGED

    def _line(self) -> str:
        low, high = float(self.lower.max()), float(self.upper.max())
        return f"between {low:.5g} and {high:.5g}, radius {self.radius:g}, {self.status}, {self.domains} domains"


def local_lipschitz(
    model: nn.Module,
    x: Tensor,
    radius: float,
    *,
    seed: int,
    norm: float = math.inf,
    outputs: Tensor | None = None,
    rtol: float = 0.01,
    max_domains: int = 200,
    linear: bool = True,
) -> LipschitzBounds:
    """Return lower and upper bounds of a network's Lipschitz constant on a ball around each example.

    Known are linear and convolution layers, batch normalization in evaluation mode, piecewise linear and smooth
    activations, pooling, sums, and what only moves numbers. Anything else is refused by name.

    Args:
        model: maps each example alone to one tensor. It is read in float64, with the weights that are stored.
        x: examples, (N, ...), as the model takes them.
        radius: of the ball, in `norm`, > 0.
        seed: of the search for the lower bounds.
        norm: `math.inf` for the gain from the largest input to the largest output; 2 for the spectral norm.
        outputs: rows of weights (r, K) of the flattened outputs, such as differences of logits. Default: each output.
        rtol: the search ends where upper <= (1 + rtol) lower. Default: 0.01.
        max_domains: how many parts of each region may be bounded; 1 is bound propagation alone. Default: 200.
        linear: False takes intervals instead of linear bounds: cheaper, and much wider.

    Returns:
        `LipschitzBounds`; its status is "converged" where all ends meet within rtol, else "max_iterations". Either way
        both ends hold.

    Example:
        >>> import torch
        >>> from frechet.calculus.bounds import local_lipschitz
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.eye(2)), net[2].weight.copy_(torch.tensor([[1.0, -2.0]]))
        >>> found = local_lipschitz(net, torch.tensor([[1.0, 1.0], [3.0, -1.0]]), 0.5, seed=0)
        >>> found.lower, found.upper
        (tensor([3.0000, 1.0000], dtype=torch.float64), tensor([3.0000, 1.0000], dtype=torch.float64))
    """
    _checked(x, radius, norm, rtol, max_domains)
    network, rows, _ = rows_of("local_lipschitz", model, x, outputs)
    ends, points, domains = [], [], 0
    for example in x.detach().double().cpu():
        region = ball(example.reshape(-1), radius, norm)
        inside = smaller(example.reshape(-1), radius, norm)
        point = highest_point(network, inside, norm, rows, seed)
        lower = _at_point(network, point, rows, norm)
        search = _search(network, region, rows, norm, linear)
        found = Reached(network, rows, norm, inside, seed, point, lower)
        search.run(lower, rtol, max_domains, found.look)
        ends.append((found.lower, max(search.upper(), found.lower)))
        points.append(found.point.reshape(example.shape))
        domains += search.bounded
    lower, upper = torch.tensor(ends, dtype=torch.float64).reshape(-1, 2).unbind(1)
    done = bool((upper <= (1 + rtol) * lower).all())
    widest = float((upper / lower).max())
    message = "" if done else f"the ends are apart by a factor of {widest:.4g} after {domains} domains"
    status = Status.CONVERGED if done else Status.MAX_ITERATIONS
    return LipschitzBounds(lower, upper, torch.stack(points), norm, float(radius), status, message, domains)


def ball(x: Tensor, radius: float, norm: float) -> Region:
    """The ball around x as a region, rounded outwards."""
    low, high = below(x - radius, 1)[None], above(x + radius, 1)[None]
    # the subtraction rounds relative to x as well
    pad = 4 * 2.0**-53 * (x.abs() + radius)
    low, high = low - pad, high + pad
    return Region(low, high) if norm == math.inf else Region(low, high, x, radius)


def smaller(x: Tensor, radius: float, norm: float) -> Region:
    """A ball inside the ball, so that no rounding leads a point out of it."""
    inside = radius * (1 - 1e-12)
    low, high = (x - inside)[None], (x + inside)[None]
    return Region(low, high) if norm == math.inf else Region(low, high, x, inside)


def highest_point(network: Graph, inside: Region, norm: float, rows: Tensor, seed: int) -> Tensor:
    """A point of the region at which the Jacobian is large."""

    def value(J: Tensor) -> Tensor:
        return J.abs().sum(-1).amax(-1) if norm == math.inf else torch.linalg.matrix_norm(J, 2)

    return best_point(network, inside, rows, value, POINTS, seed)


@dataclass(eq=False)
class Reached:
    """The largest norm at a point so far. Parts with large bounds say where to look."""

    network: Graph
    rows: Tensor
    norm: float
    inside: Region
    seed: int
    point: Tensor
    lower: float

    def look(self, part: Part) -> float:
        """The largest norm so far, with a point of this part."""
        low, high = torch.maximum(part.low, self.inside.low[0]), torch.minimum(part.high, self.inside.high[0])
        region = Region(low[None], high[None], self.inside.centre, self.inside.radius)
        starts = torch.cat([self.point[None], drawn(region, LOOKS, self.seed)])
        at = point_of(self.network, region, part.clips, starts)
        if at is not None and bool((low <= high).all()):
            value = _at_point(self.network, at, self.rows, self.norm)
            if value > self.lower:
                self.point, self.lower = at, value
        return self.lower


def _at_point(network: Graph, point: Tensor, rows: Tensor, norm: float) -> float:
    """A lower bound of the norm at one point: intervals of width zero, widened by rounding alone."""
    J = enclosed(network, Region(point[None], point[None]), {}, rows[None], linear=False)
    if norm == math.inf:
        least = norms.least_magnitude(J.low[0], J.high[0])
        return float(below(least.sum(-1), least.shape[-1] + 2).amax().clamp(min=0.0))
    return float(norms.spectral_from_below(J.low[0], J.high[0]))


def _search(network: Graph, region: Region, rows: Tensor, norm: float, linear: bool) -> Search:
    if norm == math.inf:
        goal, groups = RowSum(linear), [row[None] for row in rows]
    else:
        goal, groups = Spectral(linear), [rows]
    parts = [Part(group, region.low[0], region.high[0], {}, math.inf) for group in groups]
    return Search(network, goal, region.centre, region.radius, linear, parts)


def rows_of(name: str, model: nn.Module, x: Tensor, outputs: Tensor | None) -> tuple[Graph, Tensor, torch.Size]:
    """The graph of the model, rows of weights of its outputs, and the shape of its output for one example."""
    network, shape = network_of(name, model, x.detach().cpu())
    K = shape.numel()
    if outputs is None:
        rows = torch.zeros(K, K, dtype=torch.float64)
        return network, rows.fill_diagonal_(1.0), shape
    if outputs.ndim != 2 or outputs.shape[1] != K:
        raise ValueError(f"{name}: outputs must be rows of weights (r, {K}), got shape {tuple(outputs.shape)}")
    return network, outputs.detach().double().cpu(), shape


def checked_examples(name: str, x: object) -> None:
    """Raises for what are no examples."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or len(x) == 0:
        shape = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: x must be a real tensor of examples (N, ...), got {shape}")
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name}: x must be finite")


def _checked(x: object, radius: float, norm: float, rtol: float, max_domains: int) -> None:
    checked_examples("local_lipschitz", x)
    if not 0 < radius < math.inf:
        raise ValueError(f"local_lipschitz: radius must be positive, got {radius}")
    if norm not in (2, math.inf):
        raise ValueError(f"local_lipschitz: norm must be 2 or math.inf, got {norm}")
    if rtol < 0:
        raise ValueError(f"local_lipschitz: rtol must be >= 0, got {rtol}")
    if isinstance(max_domains, bool) or not isinstance(max_domains, int) or max_domains < 1:
        raise ValueError(f"local_lipschitz: max_domains must be an integer >= 1, got {max_domains!r}")
