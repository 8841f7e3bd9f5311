"""Derivatives by plain reverse mode, written out: the unit of time, the kept-graph product, and the truth.

No library's product is used to judge another's. Vectors are flat, in the order of `model.parameters()`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from models import Batch, Problem
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]


def flatten(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def split(v: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    parts = v.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


def gradient(problem: Problem, batch: Batch) -> tuple[Tensor, ...]:
    """The unit: one gradient of the loss on one batch."""
    inputs, targets = batch
    return torch.autograd.grad(problem.loss(problem.model(inputs), targets), problem.parameters)


def kept_hessian(problem: Problem, batch: Batch) -> Product:
    """v -> H v by a second backward pass through a gradient's graph that is kept."""
    inputs, targets = batch
    parameters = problem.parameters
    gradients = torch.autograd.grad(problem.loss(problem.model(inputs), targets), parameters, create_graph=True)

    def product(v: Tensor) -> Tensor:
        return flatten(torch.autograd.grad(gradients, parameters, split(v, parameters), retain_graph=True))

    return product


def kept_gauss_newton(problem: Problem, batch: Batch) -> Product:
    """v -> J' C J v with the model's and the loss's graphs kept; J v as the derivative of J' u with respect to u."""
    inputs, targets = batch
    parameters = problem.parameters
    outputs = problem.model(inputs)
    u = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, parameters, u, create_graph=True)
    leaf = outputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(problem.loss(leaf, targets), leaf, create_graph=True)

    def product(v: Tensor) -> Tensor:
        (pushed,) = torch.autograd.grad(pulled, u, split(v, parameters), retain_graph=True)
        (curved,) = torch.autograd.grad(slope, leaf, pushed, retain_graph=True)
        return flatten(torch.autograd.grad(outputs, parameters, curved, retain_graph=True))

    return product


KEPT = {"hessian": kept_hessian, "gauss_newton": kept_gauss_newton}


def dense_hessian(problem: Problem, batches: list[Batch]) -> Tensor:
    """The Hessian (n, n) of the mean over equal batches, in the model's dtype, by n products with unit vectors."""
    n, workers = problem.dim, torch.get_num_threads()
    H = torch.zeros(n, n, dtype=problem.parameters[0].dtype)

    def fill(rows: range) -> None:
        unit = torch.zeros(n, dtype=H.dtype)
        for batch in batches:
            product = kept_hessian(problem, batch)
            for j in rows:
                unit[j] = 1.0
                H[j] += product(unit) / len(batches)
                unit[j] = 0.0

    # small operations: a thread for each share of the rows is faster than threads inside the operations
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(fill, [range(i, n, workers) for i in range(workers)]))
    torch.set_num_threads(workers)
    return (H + H.T) / 2
