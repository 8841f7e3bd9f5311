"""Every case of device_cases on a device beside the processor, as one line of JSON: python device_worker.py DEVICE."""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import accelerator
from device_cases import ALGORITHMS, DERIVATIVES, MAKERS, tensors
from frechet import NotDifferentiable, Objective
from module_cases import old_weight_norm
from objective_cases import tanh_mlp

Answer = dict[str, Any]
Place = Callable[[Any], bool]  # is this result where it should be?


def difference(here: list[Tensor], there: list[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(here, there, strict=True):
        assert a.shape == b.shape
        if a.numel():
            finite = a.detach().isfinite()
            size = float(torch.where(finite, a.detach(), 0).abs().max()) or 1.0
            apart = (b.detach().cpu() - a.detach())[finite]
            worst = max(worst, float(apart.abs().max()) / size if apart.numel() else 0.0)
    return worst


def compared(here: Any, work: Callable[[str], Any], device: str, readings: Callable[[], int], where: Place) -> Answer:
    """What `work` gives on the device, beside what it gave on the processor."""
    before = readings()
    try:
        there = work(device)
    except Exception as error:  # any failure is the answer
        return {"failure": f"{type(error).__name__}: {error}"[:300]}
    spent = readings() - before
    return {
        "difference": difference(tensors(here), tensors(there)),
        "there": where(there),
        "readings": spent,
        "iterations": getattr(there, "iterations", None),
    }


def product(
    make: Callable[[], Any], derivative: Callable[[Objective], Any], device: str, times: int = 1
) -> list[Tensor]:
    """A and A' times a few vectors, where the case has this derivative; the model is moved before its objective."""
    ordinary = Objective.__init__

    def moved(self: Objective, model: nn.Module, *arguments: Any, **keywords: Any) -> None:
        ordinary(self, model if device == "cpu" else model.to(device), *arguments, **keywords)

    with patch.object(Objective, "__init__", moved):
        objective = make().objective
    A = derivative(objective)
    V, U = A.domain.random(range(2), 0), A.codomain.random(range(2), 1)
    return [Y for _ in range(times) for Y in (A @ V, A.T @ U)]


def main(device: str) -> None:
    torch.set_num_threads(1)
    readings: Callable[[], int] = accelerator.install().readings if device == accelerator.NAME else lambda: 0
    answers: dict[str, Answer] = {}

    def on_device(result: Any) -> bool:
        return all(t.device.type == torch.device(device).type for t in result)

    for make in MAKERS:
        if make is old_weight_norm and device == accelerator.NAME:
            continue  # PyTorch cannot move its parameters to a device that shares no tensor type with the processor
        for name, derivative in DERIVATIVES.items():
            work = partial(product, make, derivative)
            try:
                here = work("cpu")
            except (ValueError, NotDifferentiable, MemoryError):  # a derivative that this case does not have anywhere
                continue
            answers[f"{make.__name__}: {name}"] = compared(here, work, device, readings, on_device)
    work = partial(product, tanh_mlp, DERIVATIVES["kept hessian"], times=2)
    answers["tanh_mlp: kept hessian, twice"] = compared(work("cpu"), work, device, readings, on_device)
    mixed = torch.ones(2)
    answers["two devices"] = compared(
        mixed, lambda d: mixed + torch.ones(2, device=d), device, readings, lambda result: False
    )
    for name, algorithm in ALGORITHMS.items():
        answers[name] = compared(algorithm("cpu"), algorithm, device, readings, lambda result: True)
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1])
