"""A thousand small least-squares problems in one call beside a loop over SciPy's `least_squares`.

    python benchmarks/batch.py [--count 1000] [--sample 100]

Exponential decays with an offset, 20 points and 3 parameters each, all tolerances at rounding but in the row that says
so. SciPy's loop runs over `sample` of the problems and is scaled up. Seconds are processor time with one thread. Writes
results/batch.json.
"""

from __future__ import annotations

import argparse

import numpy as np
import timing
import torch
from scipy.optimize import least_squares as scipy_least_squares
from torch import Tensor

from frechet.optimize import least_squares_batch

TIGHT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    timing.CLOCK = "cpu"
    torch.set_num_threads(arguments["threads"])
    count, sample = arguments["count"], min(arguments["sample"], arguments["count"])

    g = torch.Generator().manual_seed(0)
    t = torch.linspace(0, 4, 20, dtype=torch.float64)
    true = torch.rand(count, 3, generator=g, dtype=torch.float64) + torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    noise = 0.01 * torch.randn(count, 20, generator=g, dtype=torch.float64)
    y = true[:, :1] * torch.exp(-true[:, 1:2] * t) + true[:, 2:] + noise
    start = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    T, Y, x0 = t.numpy(), y.numpy(), start.numpy()

    def residual(x: Tensor, y: Tensor) -> Tensor:
        return x[0] * torch.exp(-x[1] * t) + x[2] - y

    derivative = torch.func.jacfwd(residual)

    def by_torch(i: int) -> np.ndarray:
        return scipy_least_squares(
            lambda x: residual(torch.from_numpy(x), y[i]).numpy(),
            x0,
            lambda x: derivative(torch.from_numpy(x), y[i]).numpy(),
            **TIGHT,
        ).x

    def by_hand(i: int, tolerances: dict[str, float]) -> np.ndarray:
        def J(x: np.ndarray) -> np.ndarray:
            e = np.exp(-x[1] * T)
            return np.stack([e, -x[0] * T * e, np.ones_like(T)], 1)

        return scipy_least_squares(lambda x: x[0] * np.exp(-x[1] * T) + x[2] - Y[i], x0, J, **tolerances).x

    few = max(sample // 4, 1)
    rows = {
        "one call of frechet": (lambda: least_squares_batch(residual, start, y).checked(), count),
        "scipy, the same residual and autodiff": (lambda: [by_torch(i) for i in range(few)], few),
        "scipy, NumPy, Jacobian by hand": (lambda: [by_hand(i, TIGHT) for i in range(sample)], sample),
        "scipy, NumPy, by hand, its tolerances": (lambda: [by_hand(i, {}) for i in range(sample)], sample),
    }
    times = timing.interleave({name: f for name, (f, _) in rows.items()}, rounds=arguments["rounds"], seed=0)
    medians = {name: timing.quartiles(times[name])[0] * count / rows[name][1] for name in rows}
    print(f"{count} problems of 20 points and 3 parameters{'seconds':>16}{'over one call':>16}")
    for name, seconds in medians.items():
        print(f"{name:<40}{seconds:18.4f}{seconds / medians['one call of frechet']:16.1f}")
    found = least_squares_batch(residual, start, y).x[:sample].numpy()
    difference = max(float(np.abs(by_hand(i, TIGHT) - found[i]).max()) for i in range(sample))
    print(f"largest difference of a parameter from scipy's: {difference:.1e}")
    timing.write("batch", timing.record(arguments, clock="cpu", seconds=medians, difference=difference))


if __name__ == "__main__":
    main()
