"""The Fréchet distance between Gaussians fitted to features, through the small matrix.

d^2 = |m - m'|^2 + tr S + tr S' - 2 tr (S S')^(1/2), which is FID for features of an Inception network. With n samples
of d features, n < d, everything is done with n x d and n x n matrices (`_bures.py`).

**Source.** Heusel et al., "GANs trained by a two time-scale update rule" (2017); Mathiasen and Hvilshøj,
"Backpropagating through Fréchet Inception Distance" (2020); Liu et al., "An improved evaluation framework for
generative adversarial networks" (2018), for classes. **Differs from the sources:** all sums in float64; no ridge is
added in silence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from frechet.calculus.distances._bures import Bures
from frechet.calculus.distances._gaussian import Gaussian, moments


def frechet_distance(x: Tensor | Gaussian, y: Tensor | Gaussian, *, ridge: float = 0.0) -> Tensor:
    """Return the squared Fréchet distance between the Gaussians of two sets of features, as FID is defined.

    It is differentiable twice in the features, in time and memory of an n x n matrix where there are fewer samples than
    features. Sums are in float64, and the result has the dtype of the features. The estimate has a bias that falls as
    1/n.

    Args:
        x: features ``(n, d)`` of n >= 2 samples, or a `Gaussian`.
        y: the same for the reference.
        ridge: a variance that is added to each feature of both, >= 0; the work then grows as d^3.

    Raises:
        NotDifferentiable: in the backward, where the samples of x lack directions in which y varies although they are
            as many as would fill them, as after a collapse to one point: the distance has a kink there.

    Example:
        >>> import torch
        >>> from frechet.calculus.distances import frechet_distance
        >>> x = torch.tensor([[0.0], [2.0]]).requires_grad_()
        >>> d = frechet_distance(x, torch.tensor([[3.0], [3.0 + 2 ** 0.5], [3.0 - 2 ** 0.5]]))
        >>> d  # means 1 and 3, both with variance 2
        tensor(4., grad_fn=<ToCopyBackward0>)
    """
    if not 0 <= ridge < math.inf:
        raise ValueError(f"frechet_distance: ridge must be a number >= 0, got {ridge}")
    m, L = _moments("frechet_distance", x)
    c, K = _moments("frechet_distance", y)
    if m.shape != c.shape:
        raise ValueError(f"frechet_distance: x and y must have as many features, got {m.numel()} and {c.numel()}")
    K, c = K.to(L.device), c.to(m.device)
    if ridge:
        extra = math.sqrt(ridge) * torch.eye(m.numel(), dtype=L.dtype, device=L.device)
        L, K = torch.cat([L, extra]), torch.cat([K, extra])
    found = (m - c).square().sum() + Bures.apply(L, K)[0]
    dtypes = [t.dtype for t in (x, y) if isinstance(t, Tensor)]
    return found.to(dtypes[0]) if dtypes else found


def class_frechet_distance(
    x: Tensor,
    y: Tensor | Mapping[int, Gaussian],
    x_classes: Tensor,
    y_classes: Tensor | None = None,
    *,
    weights: Mapping[int, float] | None = None,
    ridge: float = 0.0,
) -> Tensor:
    """Return the sum over classes of weight times Fréchet distance between the features of that class.

    Args:
        x: features ``(n, d)``.
        y: features of the reference ``(m, d)``, or a Gaussian for each class.
        x_classes: the class of each sample of x, integers ``(n,)``.
        y_classes: that of each sample of y; left out where y is a mapping.
        weights: the weight of each class. Default: its share in y, or equal ones where y is a mapping.
        ridge: see `frechet_distance`.

    Returns:
        The distance. Each class of y needs two samples in x.

    Example:
        >>> import torch
        >>> from frechet.calculus.distances import class_frechet_distance
        >>> x, k = torch.tensor([[0.0], [2.0], [7.0], [9.0]]), torch.tensor([0, 0, 1, 1])
        >>> class_frechet_distance(x + 1, x, k, k)
        tensor(1.)
    """
    name = "class_frechet_distance"
    if not isinstance(y, Mapping):
        if y_classes is None or y_classes.shape != y.shape[:1]:
            raise ValueError(
                f"{name}: y_classes must give the class of each of the {len(y)} samples of y; pass (m,) integers"
            )
        classes = [int(k) for k in y_classes.unique()]
        parts: Mapping[int, Tensor | Gaussian] = {k: y[y_classes == k] for k in classes}
        shares = {k: len(parts[k]) / len(y) for k in classes}  # type: ignore[arg-type]
    else:
        parts, shares = dict(y), {k: 1 / len(y) for k in y}
    if x_classes.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: x_classes must give the class of each of the {len(x)} samples, got {tuple(x_classes.shape)}"
        )
    unknown = sorted(set(x_classes.unique().tolist()) - set(parts))
    if unknown:
        raise ValueError(
            f"{name}: x must hold classes of y alone, got class {unknown[0]} of which y has none; leave it out"
        )
    given = shares if weights is None else weights
    if set(given) != set(parts):
        raise ValueError(f"{name}: weights must be given for the classes {sorted(parts)}, got {sorted(given)}")
    few = [k for k in parts if int((x_classes == k).sum()) < 2 and given[k]]
    if few:
        raise ValueError(
            f"{name}: x must have at least 2 samples of each class, got fewer of class {few[0]}; draw more"
        )
    terms = [given[k] * frechet_distance(x[x_classes == k], part, ridge=ridge) for k, part in parts.items() if given[k]]
    return torch.stack(terms).sum()


def _moments(name: str, x: Tensor | Gaussian) -> tuple[Tensor, Tensor]:
    return (x.mean, x.factor) if isinstance(x, Gaussian) else moments(name, x)
