"""How gradients pass through the layers of a model: moments of |J u|^2, J the Jacobian of each layer in the inputs.

For a direction u on the unit sphere of the inputs, drawn for each example, one forward-mode pass gives J u for the
outputs of all layers at once. The mean over directions is |J|_F^2 / (size of the input). Where gradients neither vanish
nor explode, the mean of log |J u|^2 stays flat in depth.

**Source.** H. Tseran, G. Montúfar (2023), Expected gradients of maxout networks and consequences to parameter
initialization, arXiv 2301.06956.
**Cost.** A forward pass with tangents for each probe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frechet.linalg._shown import Result, Rows
from frechet.operators.derivatives._products import dual_numbers, second_order
from frechet.space import euclidean
from frechet.train._jacobian_penalties import refuse_coupled_examples


@dataclass(frozen=True, eq=False)
class JacobianMoments(Result):
    """For each layer, in the order of its first call: moments of |J u|^2 over examples and directions."""

    names: tuple[str, ...]
    means: Tensor  # (layers,) float64
    variances: Tensor  # (layers,)
    log_means: Tensor  # (layers,) of log |J u|^2; -inf where a tangent vanished
    samples: int

    def _table(self) -> Rows:
        numbers = torch.stack([self.means, self.variances, self.log_means], 1).tolist()
        rows = [(name, *(f"{x:.4g}" for x in row)) for name, row in zip(self.names, numbers, strict=True)]
        return ("layer", "mean", "variance", "mean log"), rows


def jacobian_moments(
    model: nn.Module, inputs: Tensor, *, seed: int, probes: int = 10, along: Tensor | None = None
) -> JacobianMoments:
    """Return the moments of |J u|^2 for the Jacobian J of every layer's output in the inputs.

    Layers are all modules that return a tensor, in the order in which they end; the model itself is "", the last.

    Args:
        model: takes the inputs, with the examples on axis 0.
        inputs: floating ``(m, ...)``.
        seed: of the directions u, unit vectors.
        probes: how many directions are drawn for each example.
        along: directions shaped like the inputs, such as the inputs, which are scaled to unit length. Default: drawn.

    Returns:
        A `JacobianMoments`.

    Raises:
        ValueError: a module couples the examples of a batch.
        NotDifferentiable: an operation has no forward mode.

    Example:
        >>> import torch
        >>> from frechet.train import jacobian_moments
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False))
        >>> for layer in model:
        ...     _ = torch.nn.init.orthogonal_(layer.weight)
        >>> jacobian_moments(model, torch.randn(8, 4), seed=0).means.round(decimals=4)
        tensor([1., 1., 1.], dtype=torch.float64)
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.ndim < 2 or not inputs.numel():
        raise ValueError("jacobian_moments: inputs must be a floating tensor (examples, ...) with entries")
    if probes < 1:
        raise ValueError(f"jacobian_moments: probes must be at least 1, got {probes}")
    if along is not None and (along.shape != inputs.shape or not bool(along.flatten(1).any(1).all())):
        raise ValueError(
            f"jacobian_moments: along must have the inputs' shape {tuple(inputs.shape)} and no row of zeros, got "
            f"{tuple(along.shape)}"
        )
    refuse_coupled_examples("jacobian_moments", (model,), coupled=False)
    x, m = inputs.detach(), len(inputs)
    seen: dict[str, list[Tensor]] = {}
    space = euclidean(x.numel(), torch.float64, "cpu")
    with second_order("jacobian_moments", x.device), torch.no_grad():
        for probe in range(probes):
            drawn = space.random(probe, seed, "gaussian") if along is None else along.detach().double().cpu()
            u = drawn.reshape(m, -1)
            u = (u * u.square().sum(1, keepdim=True).rsqrt()).view(x.shape).to(x.device, x.dtype)
            with dual_numbers(), _tangents(model, seen, m):
                model(torch.autograd.forward_ad.make_dual(x, u))
    squares = {name: torch.cat(rows) for name, rows in seen.items()}
    return JacobianMoments(
        names=tuple(squares),
        means=torch.stack([s.mean() for s in squares.values()]),
        variances=torch.stack([s.var() if len(s) > 1 else s.new_zeros(()) for s in squares.values()]),
        log_means=torch.stack([s.log().mean() for s in squares.values()]),
        samples=m * probes,
    )


@contextmanager
def _tangents(model: nn.Module, seen: dict[str, list[Tensor]], m: int) -> Iterator[None]:
    """Keep |tangent|^2 of each example in the outputs of all layers inside; of a layer's first call."""
    fresh: set[str] = set()

    def keep(name: str, output: Any) -> None:
        if name in fresh or not isinstance(output, Tensor) or output.ndim < 1 or len(output) != m:
            return
        fresh.add(name)
        tangent = torch.autograd.forward_ad.unpack_dual(output).tangent
        rows = output.new_zeros(m) if tangent is None else tangent.reshape(m, -1).square().sum(1)
        seen.setdefault(name, []).append(rows.double().cpu())

    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: keep(name, out))
        for name, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
