"""Y. Bahri, E. Dyer, J. Kaplan, J. Lee, U. Sharma (2021), Explaining neural scaling laws, arXiv 2102.06701.

Claim: where the kernel's spectrum falls as i^-(1 + a), the test loss of kernel regression falls with the number of data
as D^-a, and that of random features with their number as P^-a: one exponent for both.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.analyze import fit_power_law

M = 4000


def risk(data: int, features: int, a: float, seed: int) -> float:
    """The test loss of least squares of least norm on random features, for a target of the teacher's own kernel."""
    draw = torch.Generator().manual_seed(seed)
    i = torch.arange(1, M + 1, dtype=torch.float64)
    root = i ** (-(1 + a) / 2)
    w = torch.randn(M, generator=draw, dtype=torch.float64)
    X = torch.randn(data, M, generator=draw, dtype=torch.float64) * root
    Z = torch.randn(M, features, generator=draw, dtype=torch.float64) / features**0.5
    F = X @ Z
    v = torch.linalg.lstsq(F, (X @ w)[:, None], driver="gelsd").solution[:, 0]
    return float(((w - Z @ v).square() * root.square()).sum())


def measure() -> Claim:
    """Exponents in data (many features) and in features (many data) for two spectra, by fits with intervals."""
    sizes, told, holds = (16, 32, 64, 128), [], []
    for a in (0.5, 1.0):
        ends = []
        for by_data in (True, False):
            pairs = [(s, risk(s, 1500, a, k) if by_data else risk(1500, s, a, k)) for s in sizes for k in range(4)]
            x, y = torch.tensor(pairs, dtype=torch.float64).T
            law = fit_power_law(x, y)
            low, high = sorted((-law.interval()[0], -law.interval()[1]))
            ends.append((-law.exponents[0], low, high))
        holds.append(all(abs(v - a) < 0.2 * a or low <= a <= high for v, low, high in ends))
        told.append(f"a = {a:g}: " + ", ".join(f"{v:.2f} [{low:.2f}, {high:.2f}]" for v, low, high in ends))
    return Claim(
        paper="Bahri, Dyer, Kaplan, Lee, Sharma 2021, arXiv 2102.06701",
        claim="the spectrum's exponent is that of the loss in the data and in the features",
        theirs="a duality of the two exponents in the resolution-limited regimes",
        ours=f"exponents in data and in features, {'; '.join(told)}",
        verdict="holds" if all(holds) else "holds in part" if any(holds) else "does not hold here",
        why="Gaussian features with a spectrum of 4000 values, sizes 16 to 128 against 1500, four draws",
        name="fit_power_law",
    )
