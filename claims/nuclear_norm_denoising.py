"""C. Scarvelis, J. Solomon (2024), Nuclear norm regularization for deep learning, arXiv 2405.14544.

Claim: for compositions f = g h the mean of |Jg|_F^2 + |Jh|_F^2 has the minimizers of the Jacobian's nuclear norm; so a
denoiser trained on noisy images alone, by mean |f(y) - y|^2 + 2 noise^2 |J|_*, performs nearly as well as one that is
trained with the clean images.

Measured: linear maps on Gaussian data, where the minimizer is known in closed form (the Wiener filter); and a network
with a latent layer on noisy digits, beside the same network trained with clean digits and without any penalty.
"""

from __future__ import annotations

import math

import torch
from claim import Claim
from sklearn.datasets import load_digits
from torch import Tensor, nn

from frechet.train import jacobian_nuclear

NOISE = 0.35


def pair(width: int, latent: int, linear: bool, seed: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    if linear:
        return nn.Linear(width, latent, bias=False), nn.Linear(latent, width, bias=False)
    return (
        nn.Sequential(nn.Linear(width, 128), nn.ELU(), nn.Linear(128, latent)),
        nn.Sequential(nn.Linear(latent, 128), nn.ELU(), nn.Linear(128, width)),
    )


def trained(clean: Tensor, noise: float, how: str, linear: bool, steps: int, seed: int = 0) -> tuple[nn.Module, ...]:
    h, g = pair(clean.shape[1], clean.shape[1] if linear else 32, linear, seed)
    optimizer = torch.optim.Adam([*h.parameters(), *g.parameters()], 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(1000 + seed)
    noisy = clean + noise * torch.randn(clean.shape, generator=draw)  # one noisy copy of each image
    for step in range(steps):
        rows = slice(None) if linear else torch.randint(0, len(clean), (256,), generator=draw)
        optimizer.zero_grad()
        if how == "penalized":
            outputs, penalty = jacobian_nuclear(h, g, noisy[rows], seed=step, projections=None if linear else 1)
        else:
            outputs, penalty = g(h(noisy[rows])), torch.zeros(())
        target = clean[rows] if how == "supervised" else noisy[rows]
        ((outputs - target).square().sum(1).mean() + 2 * noise**2 * penalty).backward()
        optimizer.step()
        schedule.step()
    return h, g


def measure() -> Claim:
    draw = torch.Generator().manual_seed(0)
    scales = torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5, 0.2])
    X = torch.randn(4000, 6, generator=draw) * scales
    h, g = trained(X, 1.0, "penalized", True, 1500)
    found = (g.weight @ h.weight).detach()  # type: ignore[operator]
    wiener = torch.diag(scales**2 / (scales**2 + 1))
    off = float(((found - wiener).square().sum() / wiener.square().sum()).sqrt())
    images = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    new = images[1400:]
    noisy = new + NOISE * torch.randn(new.shape, generator=draw)
    decibels = {"noisy": -10 * math.log10(NOISE**2)}
    for how in ("penalized", "supervised", "plain"):
        h, g = trained(images[:1400], NOISE, how, False, 800)
        with torch.no_grad():
            decibels[how] = -10 * math.log10(float((g(h(noisy)) - new).square().mean()))
    gap, gain = decibels["supervised"] - decibels["penalized"], decibels["penalized"] - decibels["noisy"]
    return Claim(
        paper=__doc__.splitlines()[0],
        claim="The product form trains a denoiser on noisy images alone, nearly as good as a supervised one.",
        theirs="nearly the quality of a supervised denoiser",
        ours=f"linear: {off:.2f} of the norm away from the closed form; "
        + ", ".join(f"{k} {v:.1f} dB" for k, v in decibels.items()),
        verdict="holds" if gap < 1.0 and off < 0.1 else "holds in part" if gain > 2.0 else "does not hold here",
        why="The divergence of the denoiser, which unbiased risk estimation needs, is at most the nuclear norm.",
        name="frechet.train.jacobian_nuclear",
    )
