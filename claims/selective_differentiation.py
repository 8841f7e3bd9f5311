"""S. Bhatia, F. Dangel (2024), Lowering PyTorch's memory consumption for selective differentiation, arXiv 2404.12406.

Claim: layers that keep only what the wanted derivatives need lower memory where parameters are frozen, at no cost in
time, and change no gradient. Here: ten convolutions with batch norm in evaluation, of which few are trained.
"""

from __future__ import annotations

import time

import torch
from claim import Claim
from torch import nn

from frechet.calculus.memory import memory_lean, saved_bytes


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(10):
        layers += [nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def spent(model: nn.Module, x: torch.Tensor) -> float:
    start = time.perf_counter()
    wanted = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(model(x).square().sum(), wanted)
    return time.perf_counter() - start


def measure() -> Claim:
    """Bytes that the graphs keep, the largest difference of gradients, and times."""
    x = torch.rand(8, 3, 48, 48)
    shares, differences, times = {}, [], []
    for name, trained in (("all", range(30)), ("the last convolution", [27]), ("the first and last", [0, 27])):
        net = network().requires_grad_(False)
        for i in trained:
            net[i].requires_grad_(True)
        lean, wanted = memory_lean(net), [p for p in net.parameters() if p.requires_grad]
        a, b = (torch.autograd.grad(m(x).square().sum(), wanted) for m in (lean, net))
        differences += [float((s - t).abs().max() / t.abs().max().clamp(min=1e-30)) for s, t in zip(a, b, strict=True)]
        shares[name] = saved_bytes(lean, x) / saved_bytes(net, x)
        pairs = sorted(spent(lean, x) / spent(net, x) for _ in range(7))
        times.append(pairs[3])
    return Claim(
        paper="Bhatia, Dangel 2024, arXiv 2404.12406",
        claim="keeping only what wanted derivatives need lowers memory without more time or other gradients",
        theirs="4 795 to 2 237 MiB where the last of ten layers is trained, at equal times",
        ours="kept of torch's bytes: " + ", ".join(f"{k} {v:.0%}" for k, v in shares.items())
        + f"; gradients equal to {max(differences):.0e}; time {min(times):.2f} to {max(times):.2f} of plain",
        verdict="holds" if shares["the first and last"] < 0.2 and max(times) < 1.15 else "holds in part",
        why="frozen layers need no inputs, and rectifiers need bits, whose packing takes some time",
        name="memory_lean",
    )  # fmt: skip
