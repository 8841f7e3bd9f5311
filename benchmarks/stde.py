"""A sine-Gordon equation in many dimensions, trained with estimated Laplacians; and what a step costs in each.

    python benchmarks/stde.py [--train 1000] [--steps 10000] [--seconds 300] [--cost 1000 100000 1000000] [--probes 16]
        [--law rademacher] [--solution 7] [--plain 1000] [--floor 128]

Laplacian u + sin u = g in the unit ball with u = 0 on its surface. The solution is the two-body one of Hu, Shukla,
Karniadakis and Kawaguchi, u = (1 - |x|^2) sum_i c_i sin(x_i + cos x_{i+1} + x_{i+1} cos x_i), c normal. The model is
(1 - |x|^2) net(x), a tanh network of four layers of width 128; 100 points a step, with radii uniform in [0, 1]; Adam,
whose rate falls linearly from 1e-3 to 0 over `--steps`. Losses are squares of one estimate, as published.

The error is judged beside the best multiple of 1 - |x|^2: skill = error / error of that, on 2 000 fresh points. Beside
it stands the best affine skill: that of 1 - |x|^2 times the best affine function of x, |x|^2 and |x|^4, fitted to the
values of the solution. What is left below it is a quadratic form in x with some 2 000 independent coefficients. One
network knows nothing of its zeros, so it looks for d(d + 1)/2 = 500 500 of them, and sees 1 000 000 points.

The width of the first layer bounds the skill from below. The network is a function of 128 linear features. Of a
quadratic form x'Qx on the sphere such a function explains at most the 128 largest squared eigenvalues of Q - t, for one
t that |x|^2 takes away. `--floor` prints what is left, and the skill of the function that attains it: with 128 features
0.022 at d = 1 000, with 256 0.0145, with 1 000 0.0006. So no training of this network has a skill of 0.02.

Relative errors depend on c: the best affine error is 0.0122 / |sum c| for d = 1 000 (six draws of c, 0.0117 to 0.0128).
Published relative errors at d = 1 000 are 5.4e-4 with estimates and 5.5e-4 with exact Laplacians; their c is not given.
That is the best affine error where |sum c| = 22.6, and sum c has the standard deviation 31.6. `--seconds` stops the
training early, and the table says after how many steps. `--solution` is the seed of c. `--law` is that of the probes:
at the solution, 16 Rademacher probes have the standard error 13, 16 coordinates 207.
Each finished cell is one line of results/stde.jsonl.

Cost: one step (estimate, loss, gradient) with the same probes at each dimension, in all and without the first linear
layer, whose weight alone has d columns; and the peak of memory above what stood before.

`--plain` times a step beside that of stochastic dimension gradient descent as it is usually written in PyTorch: one
backward pass for the gradient and one for each of 100 sampled coordinates, all kept for the gradient of the loss.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, Literal

import timing
import torch
from torch import Tensor, nn

from frechet.calculus.taylor import laplacian, stde
from frechet.recording import peak_above, start_peak

WIDTH = 128

Law = Literal["sparse", "gaussian", "rademacher"]


class Rest(nn.Module):
    """The network after its first linear layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Tanh()]
        for _ in range(3):
            layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Linear(WIDTH, 1))

    def forward(self, h: Tensor) -> Tensor:
        return self.layers(h).squeeze(-1)


class Model(nn.Module):
    """(1 - |x|^2) net(x)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(d, WIDTH), Rest()

    def forward(self, x: Tensor) -> Tensor:
        return (1 - torch.linalg.vecdot(x, x)) * self.rest(self.first(x))


def two_body(c: Tensor) -> Callable[[Tensor], Tensor]:
    def u(x: Tensor) -> Tensor:
        a, b = x[..., :-1], x[..., 1:]
        return (1 - (x * x).sum(-1)) * (c * torch.sin(a + torch.cos(b) + b * torch.cos(a))).sum(-1)

    return u


def forcing(c: Tensor, x: Tensor) -> Tensor:
    """g = Laplacian u + sin u of the two-body solution, in closed form."""
    a, b = x[..., :-1], x[..., 1:]
    g = a + torch.cos(b) + b * torch.cos(a)
    g_a, g_b = 1 - b * torch.sin(a), torch.cos(a) - torch.sin(b)
    sine, cosine = c * torch.sin(g), c * torch.cos(g)
    s = sine.sum(-1)
    curvature = (cosine * (-b * torch.cos(a) - torch.cos(b)) - sine * (g_a**2 + g_b**2)).sum(-1)
    slope = (cosine * (g_a * a + g_b * b)).sum(-1)
    r = (x * x).sum(-1)
    total = (1 - r) * curvature - 4 * slope - 2 * x.shape[-1] * s
    return total + torch.sin((1 - r) * s)


def points(n: int, d: int, generator: torch.Generator) -> Tensor:
    z = torch.randn(n, d, generator=generator)
    return z / z.norm(dim=-1, keepdim=True) * torch.rand(n, 1, generator=generator)


def skill(model: Callable[[Tensor], Tensor], u: Callable[[Tensor], Tensor], d: int) -> dict[str, float]:
    x = points(2000, d, torch.Generator().manual_seed(99))
    with torch.no_grad():
        truth, ours, bump = u(x), model(x), 1 - (x * x).sum(-1)
        best = (truth @ bump) / (bump @ bump) * bump
        error, trivial = ((p - truth).norm() / truth.norm() for p in (ours, best))
    return {"error": float(error), "trivial": float(trivial), "skill": float(error / trivial)}


def best_affine(u: Callable[[Tensor], Tensor], d: int) -> Callable[[Tensor], Tensor]:
    """1 - |x|^2 times an affine function of (x, |x|^2, |x|^4), fitted by least squares to 12 d values of u."""

    def features(x: Tensor) -> Tensor:
        r = torch.linalg.vecdot(x, x)[:, None]
        return ((1 - r) * torch.cat([torch.ones_like(r), r, r * r, x], 1)).double()

    x = points(12 * d, d, torch.Generator().manual_seed(5))
    F, y = features(x), u(x).double()
    w = torch.linalg.solve(F.T @ F, F.T @ y)
    return lambda x: (features(x) @ w).to(x.dtype)


def quadratic_part(c: Tensor) -> Tensor:
    """Half the Hessian at 0 of the sum of sines: tridiagonal."""
    c = c.double()
    sine, both = 0.5 * torch.sin(torch.ones(())) * c, 0.5 * (torch.sin(torch.ones(())) + torch.cos(torch.ones(()))) * c
    zero = c.new_zeros(1)
    return torch.diag(-torch.cat([sine, zero]) - torch.cat([zero, both])) - torch.diag(sine, 1) - torch.diag(sine, -1)


def floor(d: int, features: int, solution: int) -> dict[str, float]:
    """The least skill of functions of so many linear features and |x|^2, and that of the best such function."""
    c = torch.randn(d - 1, generator=torch.Generator().manual_seed(solution))
    u = two_body(c)
    eigenvalues, V = torch.linalg.eigh(quadratic_part(c))

    def left(t: float) -> float:
        return float((eigenvalues - t).square().sort().values[: d - features].sum())

    t = min(torch.linspace(-1.5, 1.5, 301).tolist(), key=left)
    chosen = (eigenvalues - t).abs().argsort(descending=True)[:features]
    W, weights = V[:, chosen], (eigenvalues - t)[chosen]

    def explained(x: Tensor) -> Tensor:
        r = torch.linalg.vecdot(x, x)
        return ((1 - r) * ((x.double() @ W).square() @ weights)).to(x.dtype)

    rest = best_affine(lambda x: u(x) - explained(x), d)
    attained = skill(lambda x: rest(x) + explained(x), u, d)["skill"]
    affine = skill(best_affine(u, d), u, d)["skill"]
    whole = float((eigenvalues - eigenvalues.mean()).square().sum())
    return {"features": features, "floor": affine * (left(t) / whole) ** 0.5, "attained": attained}


def train(d: int, steps: int, seconds: float, probes: int, law: Law, solution: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, draw = Model(d), torch.Generator().manual_seed(1)
    c = torch.randn(d - 1, generator=torch.Generator().manual_seed(solution))
    u = two_body(c)
    small = points(2, d, draw).double()
    exact = two_body(c.double())
    closed, by_series = forcing(c.double(), small), laplacian(exact)(small) + torch.sin(exact(small))
    assert float((closed - by_series).abs().max()) < 1e-8 * float(by_series.abs().max() + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / steps)
    start, done = time.process_time(), 0
    for k in range(steps):
        x = points(100, d, draw)
        estimate = stde(model, x, "u_ii", probes=probes, seed=k, law=law).value
        loss = (estimate + torch.sin(model(x)) - forcing(c, x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        done = k + 1
        if time.process_time() - start > seconds:
            break
    spent = time.process_time() - start
    return {
        "d": d,
        "steps": done,
        "of": steps,
        "seconds": spent,
        "steps_per_second": done / spent,
        **skill(model, u, d),
        "best_affine": skill(best_affine(u, d), u, d)["skill"],
    }


def cost(d: int, probes: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Model(d)
    x = points(100, d, torch.Generator().manual_seed(1))
    parameters = list(model.parameters())
    rest = [p for p in model.rest.parameters() if p.ndim == 2]
    with torch.no_grad():
        h = model.first(x)
    W = torch.randn(probes, WIDTH, generator=torch.Generator().manual_seed(3)) / d**0.5

    def step() -> object:
        e = stde(model, x, "u_ii", probes=probes, seed=0).value
        return torch.autograd.grad((e + torch.sin(model(x))).square().mean(), parameters)

    def after_first() -> object:  # what follows the first layer: its images of the probes are directions
        e = laplacian(model.rest, directions=W)(h)
        return torch.autograd.grad((e + torch.sin(model.rest(h))).square().mean(), rest)

    def first_alone() -> object:  # x, the images of the probes and the gradient of the weight, each once
        with torch.no_grad():
            return model.first(x), model.first(x[:probes]), h.T @ x

    times = timing.interleave({"step": step, "after": after_first, "first": first_alone}, rounds=rounds, seed=0)
    before = start_peak(torch.device("cpu"))
    step()
    above = peak_above(before, torch.device("cpu"))
    found = {name: timing.quartiles(t)[0] * 1e3 for name, t in times.items()}
    return {"d": d, "milliseconds": found, "peak_mib": None if above is None else above / 2**20}


def beside_plain(d: int, coordinates: int, rounds: int) -> dict[str, Any]:
    """One step with the same sampled coordinates, by `stde` and by one backward pass for each coordinate."""
    torch.manual_seed(0)
    model = Model(d)
    x = points(100, d, torch.Generator().manual_seed(1))
    parameters = list(model.parameters())
    chosen = torch.randperm(d, generator=torch.Generator().manual_seed(2))[:coordinates].tolist()

    def gradient(estimate: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((estimate + torch.sin(model(x))).square().mean(), parameters)

    def ours() -> object:
        return gradient(stde(model, x, "u_ii", probes=coordinates, seed=0, law="sparse").value)

    def plain() -> object:
        at = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(at).sum(), at, create_graph=True)
        rows = [torch.autograd.grad(slope[:, i].sum(), at, create_graph=True)[0][:, i] for i in chosen]
        return gradient(d / coordinates * torch.stack(rows).sum(0))

    times = timing.interleave({"stde": ours, "plain": plain}, rounds=rounds, seed=0)
    return {"d": d, "milliseconds": {name: timing.quartiles(t)[0] * 1e3 for name, t in times.items()}}


def written(kind: str, cell: dict[str, Any], arguments: dict[str, Any]) -> None:
    timing.RESULTS.mkdir(exist_ok=True)
    with (timing.RESULTS / "stde.jsonl").open("a") as file:
        file.write(json.dumps({"kind": kind, **timing.record(arguments, **cell)}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, nargs="*", default=[1000])
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--cost", type=int, nargs="*", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--plain", type=int, nargs="*", default=[1000])
    parser.add_argument("--floor", type=int, nargs="*", default=[128], help="numbers of linear features, at d = 1 000")
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--law", choices=["sparse", "gaussian", "rademacher"], default="rademacher")
    parser.add_argument("--solution", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    timing.CLOCK = "cpu"
    torch.set_num_threads(arguments["threads"])
    for d in arguments["cost"]:
        cell = cost(d, arguments["probes"], arguments["rounds"])
        written("cost", cell, arguments)
        t = cell["milliseconds"]
        print(
            f"d = {d:8}: step {t['step']:9.2f} ms, after the first layer {t['after']:7.2f} ms, the first layer's "
            f"products "
            f"{t['first']:9.2f} ms, peak {cell['peak_mib'] or float('nan'):8.1f} MiB",
            flush=True,
        )
    for d in arguments["plain"]:
        cell = beside_plain(d, 100, arguments["rounds"])
        written("plain", cell, arguments)
        t = cell["milliseconds"]
        print(
            f"d = {d:8}, 100 coordinates: step {t['stde']:.1f} ms, one backward pass for each {t['plain']:.1f} ms, "
            f"{t['plain'] / t['stde']:.1f} times",
            flush=True,
        )
    for features in arguments["floor"]:
        cell = floor(1000, features, arguments["solution"])
        written("floor", cell, arguments)
        print(
            f"d = 1000: functions of {features} linear features have a skill of at least {cell['floor']:.4f}, the best "
            f"one {cell['attained']:.4f}",
            flush=True,
        )
    for d in arguments["train"]:
        cell = train(
            d, arguments["steps"], arguments["seconds"], arguments["probes"], arguments["law"], arguments["solution"]
        )
        written("train", cell, arguments)
        print(
            f"d = {d}: {cell['steps']} of {cell['of']} steps, {cell['steps_per_second']:.1f} a second; relative error "
            f"{cell['error']:.2e}, of a multiple of 1 - |x|^2 {cell['trivial']:.2e}, skill {cell['skill']:.3f}, best "
            f"affine {cell['best_affine']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
