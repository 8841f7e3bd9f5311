"""Do updates conflict with a gradient, and what does the rule cost: UPGrad here and in TorchJD, in the same run.

    pip install torchjd quadprog qpsolvers --no-deps
    python benchmarks/aggregate.py [--draws 10000] [--sizes 8 32 128] [--rounds 5]

Cosines: random Jacobians of 2 to 11 gradients in 2 to 24 dimensions, a third with two nearly opposite gradients,
rows scaled by factors that are log-uniform in [1/r, r]. The worst cosine between the update and a gradient, over all
draws whose update is not zero. Time: Gram matrices of m gaussian gradients in 1 000 dimensions and in 1.5 m.
"""

from __future__ import annotations

import argparse

import timing
import torch
from torch import Tensor
from torchjd.aggregation import UPGrad

from frechet.train import upgrad

RATIOS = (1.0, 10.0, 100.0, 1e4)


def drawn(seed: int, ratio: float) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    m, d = (int(torch.randint(2, most, (1,), generator=g)) for most in (12, 25))
    J = torch.randn(m, d, generator=g, dtype=torch.float64)
    if seed % 3 == 0:
        J[0] = -J[1] + 0.05 * torch.randn(d, generator=g, dtype=torch.float64)
    return J * ratio ** (2 * torch.rand(m, 1, generator=g, dtype=torch.float64) - 1)


def worst(update: Tensor, J: Tensor) -> float:
    length = update.norm()
    return float(((J @ update) / (J.norm(dim=1) * length)).min()) if length > 0 else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--sizes", type=int, nargs="*", default=[8, 32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    timing.CLOCK = "cpu"
    torch.set_num_threads(arguments["threads"])
    theirs = UPGrad()
    cells = []
    for ratio in RATIOS:
        found = {"ratio": ratio, "ours": 1.0, "torchjd": 1.0, "zero": 0}
        for seed in range(arguments["draws"] // len(RATIOS)):
            J = drawn(seed, ratio)
            update = J.T @ upgrad(J @ J.T)
            if not bool(update.any()):
                found["zero"] += 1
                continue
            found["ours"] = min(found["ours"], worst(update, J))
            found["torchjd"] = min(found["torchjd"], worst(theirs(J), J))
        cells.append(found)
        print(
            f"ratio {ratio:8.0f}: worst cosine {found['ours']:9.1e} here, {found['torchjd']:9.1e} TorchJD; "
            f"{found['zero']} of {arguments['draws'] // len(RATIOS)} without a direction",
            flush=True,
        )
    for m in arguments["sizes"]:
        for d in (1000, 3 * m // 2):
            J = torch.randn(m, d, generator=torch.Generator().manual_seed(m), dtype=torch.float64)
            G = J @ J.T
            times = timing.interleave(
                {"ours": lambda G=G: upgrad(G), "torchjd": lambda G=G: theirs.gramian_weighting(G)},
                rounds=arguments["rounds"], seed=0,
            )  # fmt: skip
            ours, other = (timing.quartiles(times[name])[0] * 1e3 for name in ("ours", "torchjd"))
            cells.append({"m": m, "d": d, "ours_ms": ours, "torchjd_ms": other})
            print(
                f"m = {m:4}, d = {d:4}: {ours:8.2f} ms here, {other:8.2f} ms TorchJD, {other / ours:6.1f}", flush=True
            )
    timing.write("aggregate", timing.record(arguments, cells=cells))


if __name__ == "__main__":
    main()
