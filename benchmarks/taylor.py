"""Laplacians and biharmonic operators by collapsed Taylor mode, beside torch.func and jax.

    python benchmarks/taylor.py [--dimensions 10 100 1000] [--rounds 7] [--threads 1] [--jax PATH] [--gradient]

A tanh network of width 256 and four layers, 16 points, float32. Beside each other in one run: ours; vmapped
forward-over-reverse (`torch.func.jvp` of `torch.func.grad`, all coordinates at once); the trace of a vmapped Hessian;
the usual loop of double backward. The biharmonic operator in five dimensions: ours, and nested Hessians. Where jax can
be imported (from `--jax`, a folder that it was installed to), jax's own forward-over-reverse and
`jax.experimental.jet` run in a process of their own in the same rounds' time. Times are in units of ours within
interleaved rounds; peaks are those of one call above what stood before. With `--gradient` a call includes the gradient
of the mean square in the parameters. Writes results/taylor.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import timing
import torch
from torch import Tensor, nn

from frechet.calculus.taylor import bilaplacian, laplacian
from frechet.recording import peak_above, start_peak

WIDTH, POINTS = 256, 16


def network(d: int, width: int = WIDTH, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(d, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 1)).to(dtype)


def scalar(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda p: net(p).squeeze(-1)


def forward_over_reverse(net: nn.Module, d: int) -> Callable[[Tensor], Tensor]:
    f, E = scalar(net), torch.eye(d)

    def single(p: Tensor) -> Tensor:
        def along(e: Tensor) -> Tensor:
            return (torch.func.jvp(torch.func.grad(f), (p,), (e,))[1] * e).sum()

        return torch.func.vmap(along)(E).sum()

    return torch.func.vmap(single)


def trace_of_hessian(net: nn.Module) -> Callable[[Tensor], Tensor]:
    f = scalar(net)
    return torch.func.vmap(lambda p: torch.func.hessian(f)(p).diagonal().sum())


def double_backward(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def loop(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        total = torch.zeros(len(x))
        for j in range(x.shape[-1]):
            total = total + torch.autograd.grad(g[:, j].sum(), x, retain_graph=True, create_graph=True)[0][:, j]
        return total

    return loop


def call(A: Callable[[Tensor], Tensor], net: nn.Module, x: Tensor, gradient: bool) -> Callable[[], object]:
    parameters = [p for p in net.parameters() if p.ndim == 2]

    def run() -> object:
        if gradient:
            return torch.autograd.grad(A(x).square().mean(), parameters)
        with torch.no_grad():
            return A(x)

    return run


def peak(run: Callable[[], object]) -> float:
    run()
    before = start_peak(torch.device("cpu"))
    run()
    above = peak_above(before, torch.device("cpu"))
    return float("nan") if above is None else above / 2**20


def measured(d: int, rounds: int, gradient: bool) -> dict[str, Any]:
    net = network(d)
    x = torch.randn(POINTS, d, generator=torch.Generator().manual_seed(1))
    exact = laplacian(copy.deepcopy(net).double())(x.double()).squeeze(-1).detach()
    methods = {
        "ours": lambda x: laplacian(net)(x).squeeze(-1),
        "vmap of forward over reverse": forward_over_reverse(net, d),
        "trace of vmapped Hessians": trace_of_hessian(net),
        "loop of double backward": double_backward(net),
    }
    runs = {name: call(A, net, x, gradient) for name, A in methods.items()}
    if not gradient:  # the loop needs a graph
        runs["loop of double backward"] = lambda: methods["loop of double backward"](x)
    times = timing.interleave(runs, rounds=rounds, seed=0)
    ratios = timing.ratios(times, "ours")
    found = {}
    for name, A in methods.items():
        error = float((A(x).detach().double() - exact).norm() / exact.norm())
        median, low, high = timing.quartiles(ratios[name])
        found[name] = {
            "milliseconds": 1e3 * float(np.median(times[name])),
            "ratio": [median, low, high],
            "error": error,
            "peak_mib": peak(runs[name]),
        }
    return found


def biharmonic(rounds: int) -> dict[str, Any]:
    net = network(5, 64, torch.float64)
    x = torch.randn(POINTS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def lap(g: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda p: torch.func.hessian(g)(p).diagonal().sum()

    nested = torch.func.vmap(lap(lap(scalar(net))))
    methods = {
        "ours": lambda x: bilaplacian(net)(x).squeeze(-1),
        "our Laplacian of our Laplacian": lambda x: laplacian(laplacian(net))(x).squeeze(-1),
        "vmap of nested Hessians": nested,
    }
    expected = nested(x).detach()
    runs = {name: call(A, net, x, False) for name, A in methods.items()}
    times = timing.interleave(runs, rounds=rounds, seed=0)
    ratios = timing.ratios(times, "ours")
    return {
        name: {
            "milliseconds": 1e3 * float(np.median(times[name])),
            "ratio": list(timing.quartiles(ratios[name])),
            "error": float(((A(x).detach() - expected).abs() / expected.abs()).max()),
            "peak_mib": peak(runs[name]),
        }
        for name, A in methods.items()
    }


JAX = """
import json, sys, time, numpy as np, jax, jax.numpy as jnp
from jax.experimental.jet import jet
d, width, points, rounds = map(int, sys.argv[1:5])
keys = jax.random.split(jax.random.PRNGKey(0), 5)
sizes = [(d, width), (width, width), (width, width), (width, 1)]
W = [jax.random.normal(k, s) / np.sqrt(s[0]) for k, s in zip(keys, sizes)]
x = jax.random.normal(keys[4], (points, d))
def f(p):
    for w in W[:-1]:
        p = jnp.tanh(p @ w)
    return (p @ W[-1])[0]
E = jnp.eye(d)
def reverse(p):
    return jax.vmap(lambda e: jnp.vdot(jax.jvp(jax.grad(f), (p,), (e,))[1], e))(E).sum()
def taylor(p):
    return jax.vmap(lambda e: jet(f, (p,), ((e, jnp.zeros_like(e)),))[1][1])(E).sum()
found = {}
runs = {"jax: forward over reverse, jitted": jax.jit(jax.vmap(reverse)), "jax: jet, jitted": jax.jit(jax.vmap(taylor))}
values = {n: np.asarray(g(x)) for n, g in runs.items()}
times = {n: [] for n in runs}
for _ in range(rounds):
    for n, g in runs.items():
        k = max(1, int(0.02 / max(1e-9, min(times[n], default=0.02))))
        start = time.process_time()
        for _ in range(k):
            g(x).block_until_ready()
        times[n].append((time.process_time() - start) / k)
a, b = values.values()
agree = float(np.abs(a - b).max() / np.abs(a).max())
print(json.dumps({n: {"milliseconds": 1e3 * float(np.median(t)), "agree": agree} for n, t in times.items()}))
"""


def by_jax(path: str | None, d: int, rounds: int) -> dict[str, Any]:
    """jax's times in a process of its own, with one thread."""
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    if path:
        environment["PYTHONPATH"] = path
    arguments = [sys.executable, "-c", JAX, *map(str, (d, WIDTH, POINTS, rounds))]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def shown(title: str, table: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, row in table.items():
        told = f"  {name:36} {row['milliseconds']:9.2f} ms"
        if "ratio" in row:
            told += "   x {:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"])
        if "peak_mib" in row:
            told += f"   peak {row['peak_mib']:7.1f} MiB   error {row['error']:.1e}"
        print(told, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jax", default=None, help="a folder that jax was installed to")
    parser.add_argument("--gradient", action="store_true", help="with the gradient in the parameters")
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    timing.CLOCK = "cpu"
    torch.set_num_threads(arguments["threads"])
    results: dict[str, Any] = {"laplacian": {}}
    for d in arguments["dimensions"]:
        table = measured(d, arguments["rounds"], arguments["gradient"])
        if not arguments["gradient"]:
            table |= by_jax(arguments["jax"], d, arguments["rounds"])
        results["laplacian"][d] = table
        shown(f"Laplacian, d = {d}", table)
    results["biharmonic"] = biharmonic(arguments["rounds"])
    shown("biharmonic operator, d = 5, float64", results["biharmonic"])
    suffix = "_gradient" if arguments["gradient"] else ""
    timing.write(f"taylor{suffix}", timing.record({**arguments, "jax": bool(arguments["jax"])}, **results))


if __name__ == "__main__":
    main()
