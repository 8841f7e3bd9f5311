"""The gradient of the Fréchet distance (FID): the small matrix beside dense matrices, time and error in one process.

    python benchmarks/frechet_distance.py [--features 2048] [--samples 256] [--reference 10000] [--rounds 3] [--clock
    cpu]

Features are a random mixture with a spectrum that falls as 1/k, like those of a trained network. The reference is given
by mean and covariance, as FID files hold it. `dense` is the closed form with d x d roots: A = R (R S R)^(-1/2) R, R the
root of the reference's covariance, computed once outside of the clock for both. `autograd` is the sum of roots of
eigenvalues of R S R through `torch.linalg.eigvalsh`, as one writes it; its error comes from roots of rounding errors.
Errors are relative to the largest entry of the dense gradient. Writes results/frechet_distance.json.
"""

from __future__ import annotations

import argparse
import statistics

import timing
import torch
from torch import Tensor

from frechet.calculus.distances import frechet_distance, gaussian

F64 = torch.float64


def drawn(n: int, d: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, dtype=F64, generator=torch.Generator().manual_seed(99)) / d**0.5
    scale = (1.0 / torch.arange(1, d + 1, dtype=F64)) ** 0.5
    return (torch.randn(n, d, dtype=F64, generator=draw) * scale) @ mix


def power(S: Tensor, p: float) -> Tensor:
    lam, V = torch.linalg.eigh((S + S.T) / 2)
    keep = lam > len(S) * torch.finfo(S.dtype).eps * lam.max()
    return (V[:, keep] * lam[keep] ** p) @ V[:, keep].T


def dense(x: Tensor, mean: Tensor, R: Tensor) -> Tensor:
    n, c = len(x), x - x.mean(0)
    A = R @ power(R @ (c.T @ c / (n - 1)) @ R, -0.5) @ R
    return 2 * (x.mean(0) - mean) / n + 2 * (c - c @ A) / (n - 1)


def by_autograd(x: Tensor, mean: Tensor, R: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    c = x - x.mean(0)
    S = c.T @ c / (len(x) - 1)
    lam = torch.linalg.eigvalsh(R @ S @ R)
    roots = lam.clamp(min=1e-14 * float(lam.detach().max())).sqrt().sum()
    return torch.autograd.grad((x.mean(0) - mean).square().sum() + S.trace() - 2 * roots, x)[0]


def small(x: Tensor, reference) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(frechet_distance(x, reference), x)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("features", 2048), ("samples", 256), ("reference", 10000), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--clock", choices=timing.CLOCKS, default="cpu")
    args = parser.parse_args()
    timing.restart(args.threads)
    timing.CLOCK = args.clock
    torch.set_num_threads(args.threads)
    x, y = drawn(args.samples, args.features, 0), drawn(args.reference, args.features, 1) + 0.1
    S = torch.cov(y.T)
    R, reference = power(S, 0.5), gaussian(y.mean(0), S)
    ways = {
        "small": lambda: small(x, reference),
        "dense": lambda: dense(x, y.mean(0), R),
        "autograd": lambda: by_autograd(x, y.mean(0), R),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Tensor] = {}
    for _ in range(args.rounds):
        for name, go in ways.items():
            start = timing.now()
            found[name] = go()
            seconds[name].append(timing.now() - start)
    unit = statistics.median(seconds["dense"])
    rows = {}
    print(f"{args.features} features, {args.samples} samples, {args.rounds} rounds, {args.clock} time, one gradient")
    for name in ways:
        error = float((found[name] - found["dense"]).abs().max() / found["dense"].abs().max())
        middle = statistics.median(seconds[name])
        rows[name] = {"seconds": seconds[name], "of_dense": middle / unit, "error": error}
        print(f"  {name:9s} {middle:8.3f} s   {middle / unit:6.3f} of dense   error {error:.1e}")
    timing.write("frechet_distance", timing.record(vars(args), rows=rows))


if __name__ == "__main__":
    main()
