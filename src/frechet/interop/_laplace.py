"""Curvature for laplace-torch: `Laplace(model, "classification", backend=laplace_backend())`.

laplace-torch asks a backend for Jacobians, and for the curvature of a batch as a matrix, a diagonal or Kronecker
factors. Here they are those of `frechet.analyze.laplace`: exact expectations over labels, also for embeddings,
normalizations, weights that are used several times, and any module between the layers.

A parameter of two or more axes has the factors (B, A) of `kfac` with ``joint=False``, one of one axis its matrix B, or
the exact diagonal for the scale of a normalization. Over batches laplace-torch adds B and averages A.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frechet.analyze._laplace.curvature import summed_fisher
from frechet.analyze._laplace.example_rows import ExampleRows
from frechet.analyze._single_examples import ExampleRoute, by_route
from frechet.errors import UnusableObjective
from frechet.objective import Batch, Objective
from frechet.objective._kernels import ordinary_mode
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators.derivatives import Kfac, KroneckerFactors, kfac
from frechet.operators.derivatives._kfac_layers import is_transposed

NAME = "laplace_backend"


def laplace_backend() -> Any:
    """Return a backend for laplace-torch that takes its curvature from here.

    Returns:
        A subclass of `laplace.curvature.GGNInterface`, for ``backend=``: of all weights or of the last layer, with
        ``hessian_structure`` "full", "diag" or "kron".

    Raises:
        ImportError: laplace-torch is not installed.
    """
    try:
        from laplace.curvature import GGNInterface  # type: ignore[reportMissingImports]
        from laplace.utils import Kron  # type: ignore[reportMissingImports]
    except ImportError as e:
        raise ImportError("laplace_backend: laplace-torch must be installed; pip install laplace-torch") from e

    class FrechetGGN(Curvature, GGNInterface):  # type: ignore[misc]
        made = Kron

    return FrechetGGN


class Curvature:
    """The methods that laplace-torch calls. Its own base class, the next one, sets the attributes."""

    made: Any  # laplace.utils.Kron
    model: nn.Module
    likelihood: str
    lossfunc: nn.Module
    factor: float
    params: list[Tensor]
    subnetwork_indices: Tensor | None

    def jacobians(self, x: Any, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """The Jacobians ``(examples, outputs, n)`` and the outputs."""
        if enable_backprop:
            return super().jacobians(x, enable_backprop=True)  # type: ignore[misc]
        J, y = self._jacobians(x)
        return self._chosen(J, -1), y

    def last_layer_jacobians(self, x: Any, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """The same in the last layer's parameters."""
        if enable_backprop:
            return super().last_layer_jacobians(x, enable_backprop=True)  # type: ignore[misc]
        return self._jacobians(x)

    def full(self, x: Any, y: Tensor, N: int = 0) -> tuple[Tensor, Tensor]:
        """The loss and the curvature ``(n, n)``."""
        return self._loss(x, y), self._chosen(self._chosen(self._fisher(x, y, dense=True), 0), 1)

    def diag(self, x: Any, y: Tensor, N: int = 0) -> tuple[Tensor, Tensor]:
        """The loss and the diagonal of the curvature."""
        return self._loss(x, y), self._chosen(self._fisher(x, y, dense=False), 0)

    def kron(self, x: Any, y: Tensor, N: int) -> tuple[Tensor, Any]:
        """The loss and the factors of each parameter, for one batch of N examples in all."""
        objective, names = self._objective(x, y)
        K = kfac(objective, kind="fisher", joint=False, restrict=names)
        scale = self.factor * float(objective.parts[0].criterion.count(y))
        return self._loss(x, y), self.made(factors_by_parameter(K, objective.model, names, scale, len(y) / N))

    def _objective(self, x: Any, y: Tensor | None) -> tuple[Objective, list[str]]:
        """The objective on one batch, and the names of the parameters."""
        made = cross_entropy() if self.likelihood == "classification" else squared_error()
        inputs = [dict(x)] if isinstance(x, Mapping) else x  # an objective would spread a mapping into keywords
        wanted = {id(p) for p in self.params}
        names = [n for n, p in self.model.named_parameters() if id(p) in wanted]
        return Objective(self.model, made, [(inputs, y)]), names

    def _jacobians(self, x: Any) -> tuple[Tensor, Tensor]:
        objective, names = self._objective(x, None)
        snapshot = objective.snapshot()
        space, (batch,) = snapshot.space.restrict(names), objective.batches()

        def run(route: ExampleRoute) -> tuple[Tensor, Tensor]:
            rows = ExampleRows.of(NAME, snapshot, space, route)
            with snapshot.running(), ordinary_mode(space.device), torch.no_grad(), snapshot.installed(rows.blocks):
                found = rows.on(Batch(batch.inputs, None, 0))
                return torch.cat([J for _, _, J in found.jacobians()]), found.y

        return by_route(NAME, None, objective, run)

    def _fisher(self, x: Any, y: Tensor, dense: bool) -> Tensor:
        objective, names = self._objective(x, y)
        snapshot = objective.snapshot()
        space = snapshot.space.restrict(names)
        found = by_route(NAME, None, objective, lambda way: summed_fisher(NAME, snapshot, space, dense, way))
        return self.factor * found.to(space.dtype)

    def _loss(self, x: Any, y: Tensor) -> Tensor:
        with torch.no_grad():
            return self.factor * self.lossfunc(self.model(x), y)

    def _chosen(self, t: Tensor, axis: int) -> Tensor:
        return t if self.subnetwork_indices is None else t.index_select(axis, self.subnetwork_indices)


def factors_by_parameter(K: Kfac, model: nn.Module, names: list[str], scale: float, share: float) -> list[list[Tensor]]:
    """What laplace-torch keeps of each parameter: B times `scale` and A times `share`."""
    parameters, found = dict(model.named_parameters()), {}
    for f in K.layers:
        sizes = [parameters[n].numel() for n in f.names]
        if f.diagonal is not None:
            parts = f.diagonal.split(sizes)
            found |= {n: [(scale * d.diag()).to(parameters[n])] for n, d in zip(f.names, parts, strict=True)}
        else:
            (name,) = f.names
            found[name] = _pair(f, parameters[name], _turned(model, name), scale, share)
    return [found[n] for n in names]


def _pair(f: KroneckerFactors, parameter: Tensor, turned: bool, scale: float, share: float) -> list[Tensor]:
    A, B = f.inputs, f.outputs
    assert A is not None  # by the caller
    assert B is not None
    A = A.diag()[None] if A.ndim == 1 else A
    if len(B) > 1:
        raise UnusableObjective(
            f"{NAME}: '{f.names[0]}' belongs to a convolution in {len(B)} groups, for which laplace-torch has no "
            "factors; use frechet.analyze.laplace"
        )
    if parameter.ndim == 1:
        return [(scale * B[0] * A[0]).to(parameter)]
    pair = [scale * B[0], share * A[0]]
    return [M.to(parameter) for M in (reversed(pair) if turned else pair)]


def _turned(model: nn.Module, name: str) -> bool:
    """Whether the first axis of a parameter is that of the layer's inputs, or of tokens."""
    module = model.get_submodule(name.rpartition(".")[0])
    return isinstance(module, nn.Embedding) or is_transposed(module)
