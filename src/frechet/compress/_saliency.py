"""What the removal of each weight, or of each group of weights, is predicted to do to the loss.

With weights w, gradient g, Hessian H, and a group c of weights that go together (a channel, a neuron, a head),

    magnitude   |w_c|^2                              no curvature: the base line
    obd         sum_c w_i^2 F_ii / 2                 the diagonal of the empirical Fisher matrix (optimal brain damage)
    obs         w_c' ([H^-1]_cc)^-1 w_c / 2          the inverse of the curvature (optimal brain surgeon), others moving
    apoptosis   |sum_c w_i (H w)_i|                  one product for all groups (optimal brain apoptosis)
    quadratic   -g_c'w_c + w_c'H w_c / 2             a product for each group: the change of the loss to second order

The product with H has all entries between layers, as a channel's weights in one layer act on those of the next; with
``across=False`` "quadratic" leaves out what lies between parameters.

**Source.** Y. LeCun, J. Denker, S. Solla (1989), Optimal brain damage, NeurIPS; B. Hassibi, D. Stork (1993), Optimal
brain surgeon, NeurIPS; M. Sun et al. (2025), Optimal brain apoptosis, ICLR, arXiv 2502.17941.
**Differs from the source.** The product is the objective's own, in any architecture, where the source propagates
tangents through layers that it knows.
**Cost.** obd: the gradient of each example. obs: the entries of the inverse in each group. apoptosis: one product.
quadratic: a gradient and one product for each group, or with ``across=False`` for each group and parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from frechet.compress._inverses import example_second_moments
from frechet.linalg import diagonal
from frechet.objective import Objective
from frechet.operators import submatrix
from frechet.operators._eigendecomposition import double
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives import hessian
from frechet.space import Space

Ranking = Literal["magnitude", "obd", "obs", "apoptosis", "quadratic"]
RANKINGS = ("magnitude", "obd", "obs", "apoptosis", "quadratic")
BLOCK = 16  # products at a time


def groups_along(space: Space, axes: Mapping[str, int], number: int) -> list[Tensor]:
    """Return groups of weights that go together: for each, the indices in the flat vector.

    Each named parameter is cut along its axis into `number` equal stretches, and stretch i of all of them is group i. A
    channel of a convolution is a row of its weight, its bias, and a column of the next layer's weight; a head of an
    attention is a stretch of rows of the projections in, and of columns of the one out.

    Args:
        space: the space of the parameters, such as ``objective.space``.
        axes: for each parameter's name, the axis that is cut.
        number: how many groups.

    Raises:
        ValueError: a name or an axis is not there, or `number` does not divide the axis.

    Example:
        >>> from frechet import Space
        >>> from frechet.compress import groups_along
        >>> space = Space(("0.weight", "0.bias", "2.weight"), ((2, 3), (2,), (1, 4)))
        >>> groups_along(space, {"0.weight": 0, "0.bias": 0, "2.weight": 1}, 2)
        [tensor([0, 1, 2, 6, 8, 9]), tensor([ 3,  4,  5,  7, 10, 11])]
    """
    parts = []
    for name, axis in axes.items():
        if name not in space.names:
            raise ValueError(f"groups_along: axes must name trainable parameters, got {name!r}; see objective.space")
        shape = space.shapes[space.names.index(name)]
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"groups_along: the axis of '{name}' must be one of {len(shape)}, got {axis}")
        if number < 1 or shape[axis] % number:
            raise ValueError(f"groups_along: number must divide axis {axis} of '{name}' {shape}, got {number}")
        block = space.block(name)
        at = torch.arange(block.start, block.stop, device=space.device).view(shape)
        parts.append(at.movedim(axis, 0).reshape(number, -1))
    if not parts:
        raise ValueError("groups_along: axes must name a parameter, got none")
    return list(torch.cat(parts, 1))


def checked_groups(what: str, groups: Sequence[Tensor], size: int) -> list[Tensor]:
    """The groups as indices, each weight once; masks become indices."""
    found = []
    for c in groups:
        given = torch.as_tensor(c)
        if given.dtype == torch.bool and given.shape == (size,):
            given = given.nonzero()[:, 0]
        wrong = given.is_floating_point() or given.dtype == torch.bool or given.ndim != 1 or not len(given)
        if wrong or not 0 <= int(given.min()) <= int(given.max()) < size or len(given.unique()) < len(given):
            raise ValueError(
                f"{what}: each group must be indices from 0 to {size - 1}, each of them once, or a mask ({size},), got "
                f"{given.dtype} of shape {tuple(given.shape)}"
            )
        found.append(given.long())
    return found


@torch.no_grad()
def saliency(
    objective: Objective,
    ranking: Ranking,
    *,
    inverse: LinearOperator | None = None,
    groups: Sequence[Tensor] | None = None,
    across: bool = True,
    x: Tensor | None = None,
) -> Tensor:
    """Return what the removal of each weight is predicted to add to the loss, or another measure that ranks them.

    Args:
        objective: the objective.
        ranking: ``"magnitude"``, ``"obd"``, ``"obs"``, ``"apoptosis"`` or, of groups, ``"quadratic"``, see the module.
        inverse: the inverse of the curvature at x, for ``"obs"``.
        groups: the indices of the weights of each group, such as those of `groups_along`. Default: each weight alone.
        across: whether ``"quadratic"`` counts the curvature between different parameters.
        x: the point ``(n,)``. Default: the model's present parameters.

    Returns:
        A tensor ``(n,)``, or of one number for each group. "quadratic" has a sign: removal may lower the loss.

    Raises:
        ValueError: the ranking is unknown, or what it needs is missing.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.compress import saliency
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
        >>> objective = Objective(model, squared_error(), [(torch.eye(2), torch.tensor([[1.0], [2.0]]))])
        >>> saliency(objective, "apoptosis")  # H = I
        tensor([1., 4.])
        >>> saliency(objective, "quadratic", groups=[torch.tensor([0, 1])])
        tensor([2.5000], dtype=torch.float64)
    """
    if ranking not in RANKINGS:
        raise ValueError(f"saliency: ranking must be one of {', '.join(RANKINGS)}, got {ranking!r}")
    if ranking == "obs" and inverse is None:
        raise ValueError("saliency: inverse must be given for ranking='obs', such as one of inverse_curvature")
    point = objective.point if x is None else x
    if groups is None:
        if ranking == "quadratic":
            raise ValueError("saliency: groups must be given for ranking='quadratic', got None")
        if inverse is not None and ranking == "obs":
            return point.square() / (2 * diagonal(inverse, method="exact").value)
        found = _of_weights(objective, ranking, point)
        return found.abs() if ranking == "apoptosis" else found
    groups = checked_groups("saliency", groups, len(point))
    if inverse is not None and ranking == "obs":
        return torch.stack([_alone(point[c], submatrix(inverse, c)) for c in groups])
    if ranking == "quadratic":
        return _quadratic(objective, point, groups, across)
    found = _of_weights(objective, ranking, point)
    sums = torch.stack([double(found[c]).sum() for c in groups])
    return sums.abs() if ranking == "apoptosis" else sums


def _of_weights(objective: Objective, ranking: Ranking, point: Tensor) -> Tensor:
    """The part of each weight, which is added up over a group."""
    if ranking == "magnitude":
        return point.square()
    if ranking == "obd":
        return point.square() * example_second_moments(objective, point).to(point) / 2
    return point * (hessian(objective, x=point) @ point)


def _alone(w: Tensor, S: Tensor) -> Tensor:
    """w'S^-1 w / 2."""
    S = double(S)
    triangle = torch.linalg.cholesky((S + S.T) / 2)
    return torch.linalg.solve_triangular(triangle, double(w)[:, None], upper=False).square().sum() / 2


def _quadratic(objective: Objective, point: Tensor, groups: Sequence[Tensor], across: bool) -> Tensor:
    space, g, H = objective.space, objective.gradient(point), hessian(objective, x=point)
    found = torch.stack([-(double(g[c]) @ double(point[c])) for c in groups])
    pieces = list(enumerate(groups))
    if not across:
        pieces = [(i, part) for i, c in pieces for part in _by_parameter(space, c)]
    for a in range(0, len(pieces), BLOCK):
        chunk = pieces[a : a + BLOCK]
        V = space.zeros(len(chunk))
        for j, (_, c) in enumerate(chunk):
            V[c, j] = point[c]
        HV = H @ V
        for j, (i, _) in enumerate(chunk):
            found[i] += space.inner(V[:, j], HV[:, j]).to(found.device) / 2
    return found


def _by_parameter(space: Space, c: Tensor) -> list[Tensor]:
    """The parts of a group in each parameter."""
    parts = [c[(block.start <= c) & (c < block.stop)] for block in (space.block(n) for n in space.names)]
    return [p for p in parts if len(p)]
