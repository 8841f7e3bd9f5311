"""Every case of device_cases on a device beside the processor, as one line of JSON: python device_worker.py DEVICE."""

import json
import sys
from collections.abc import Callable
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


def compared(f: Callable[[str], Any], device: str, readings: Callable[[], int], where: Callable[[Any], bool]) -> Answer:
    here = f("cpu")
    before = readings()
    try:
        there = f(device)
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
            try:
                product(make, derivative, "cpu")
            except (ValueError, NotDifferentiable, MemoryError):  # a derivative that this case does not have anywhere
                continue
            answers[f"{make.__name__}: {name}"] = compared(
                lambda d, m=make, f=derivative: product(m, f, d), device, readings, on_device
            )
    answers["tanh_mlp: kept hessian, twice"] = compared(
        lambda d: product(tanh_mlp, DERIVATIVES["kept hessian"], d, times=2), device, readings, on_device
    )
    answers["two devices"] = compared(
        lambda d: torch.ones(2) + torch.ones(2, device=d), device, readings, lambda result: False
    )
    for name, algorithm in ALGORITHMS.items():
        answers[name] = compared(algorithm, device, readings, lambda result: True)
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1])
