"""The same two products through every library: thin adapters, nothing of ours in between.

An adapter takes a problem and its batches and returns v -> product, for flat vectors ``(n,)``; where `blocks` is true
also for ``(n, k)``. Versions that these adapters were written for and run with: curvlinops-for-pytorch 3.0.1,
PyHessian 0.1, hessian-eigenthings 1.0.0a5. All three take means of batch means or weight batches by their examples; on
equal batches that is the same matrix as ours.

    frechet, recorded    linearize(A, memory=0): the operations are recorded, nothing that they compute is kept
    curvlinops           jvp of jacrev under vmap, recomputed for each block
    PyHessian            double backward, recomputed for a data loader, kept graph for one batch; no Gauss-Newton
    hessian-eigenthings  double backward, recomputed; jvp and vjp for Gauss-Newton (its exact modes)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from models import Batch, Problem
from reference import Product, flatten, split
from torch import Tensor, nn

Data = Iterable[Batch]
Adapter = Callable[[Problem, Data], Product]


@dataclass(frozen=True)
class Library:
    """One row of the table. `package` must be importable; `keeps` says that the graph is kept between products."""

    name: str
    package: str
    hessian: Adapter | None
    gauss_newton: Adapter | None
    keeps: bool = False
    blocks: bool = False

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


def objective(problem: Problem, data: Data):
    from frechet import Objective, cross_entropy, squared_error

    criterion = squared_error() if isinstance(problem.loss, nn.MSELoss) else cross_entropy(class_dim=-1)
    return Objective(problem.model, criterion, data)


def frechet_hessian(problem: Problem, data: Data) -> Product:
    from frechet import hessian

    H = hessian(objective(problem, data))
    return lambda v: H @ v


def frechet_gauss_newton(problem: Problem, data: Data) -> Product:
    from frechet import gauss_newton

    G = gauss_newton(objective(problem, data))
    return lambda v: G @ v


def recorded_hessian(problem: Problem, data: Data) -> Product:
    from frechet import hessian, linearize

    H = linearize(hessian(objective(problem, data)), memory=0)
    return lambda v: H @ v


def recorded_gauss_newton(problem: Problem, data: Data) -> Product:
    from frechet import gauss_newton, linearize

    G = linearize(gauss_newton(objective(problem, data)), memory=0)
    return lambda v: G @ v


def curvlinops_operator(problem: Problem, data: Data, kind: str = "HessianLinearOperator"):
    import curvlinops

    return getattr(curvlinops, kind)(problem.model, problem.loss, problem.parameters, data, check_deterministic=False)


def curvlinops_hessian(problem: Problem, data: Data) -> Product:
    H = curvlinops_operator(problem, data)
    return lambda v: H @ v


def curvlinops_gauss_newton(problem: Problem, data: Data) -> Product:
    G = curvlinops_operator(problem, data, "GGNLinearOperator")
    return lambda v: G @ v


def pyhessian_operator(problem: Problem, data: Data | None = None, batch: Batch | None = None):
    from pyhessian import hessian

    device = problem.parameters[0].device.type
    source = {"dataloader": data} if batch is None else {"data": batch}
    return hessian(problem.model, problem.loss, cuda=device == "cuda", **source)


def pyhessian_hessian(problem: Problem, data: Data) -> Product:
    H, parameters = pyhessian_operator(problem, data), problem.parameters
    return lambda v: flatten(tuple(H.dataloader_hv_product(split(v, parameters))[1]))


def pyhessian_kept(problem: Problem, data: Data) -> Product:
    from pyhessian.utils import hessian_vector_product

    (batch,) = data
    H, parameters = pyhessian_operator(problem, batch=batch), problem.parameters
    problem.model.zero_grad()  # it leaves gradients with their graphs on the model
    return lambda v: flatten(hessian_vector_product(H.gradsH, H.params, split(v, parameters)))


def eigenthings_operator(problem: Problem, data: Data):
    from hessian_eigenthings import HessianOperator, supervised_loss

    return HessianOperator(problem.model, data, supervised_loss(problem.loss), method="autograd")


def eigenthings_hessian(problem: Problem, data: Data) -> Product:
    return eigenthings_operator(problem, data).matvec


def eigenthings_gauss_newton(problem: Problem, data: Data) -> Product:
    from hessian_eigenthings import GGNOperator, supervised_forward, supervised_loss_of_output

    return GGNOperator(problem.model, data, supervised_forward, supervised_loss_of_output(problem.loss)).matvec


def of_columns(product: Product) -> Product:
    """The product with a block ``(n, k)``, a column at a time, for libraries that take single vectors only."""

    def block(V: Tensor) -> Tensor:
        out = torch.empty_like(V.T)
        for j, v in enumerate(V.T):
            out[j] = product(v)
        return out.T

    return block


OURS = ("frechet", "frechet, recorded")
LIBRARIES = (
    Library(OURS[0], "frechet", frechet_hessian, frechet_gauss_newton, blocks=True),
    Library(OURS[1], "frechet", recorded_hessian, recorded_gauss_newton, blocks=True),
    Library("curvlinops", "curvlinops", curvlinops_hessian, curvlinops_gauss_newton, blocks=True),
    Library("PyHessian", "pyhessian", pyhessian_hessian, None),
    Library("PyHessian, kept graph", "pyhessian", pyhessian_kept, None, keeps=True),
    Library("hessian-eigenthings", "hessian_eigenthings", eigenthings_hessian, eigenthings_gauss_newton),
)
