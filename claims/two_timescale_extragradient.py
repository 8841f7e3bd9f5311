"""J. Chae, K. Kim, D. Kim (2024), Two-timescale extragradient for finding local minimax points, arXiv 2305.16242;
Y.-G. Hsieh, F. Iutzeler, J. Malick, P. Mertikopoulos (2019), On the convergence of single-call stochastic
extra-gradient methods, arXiv 1908.08465; M. Heusel et al. (2017), GANs trained by a two time-scale update
rule, arXiv 1706.08500.

Claims: with x on a slower scale, extragradient goes to local minimax points even where f_yy is singular, and runs away
from others; single-call variants converge as extragradient does, for one gradient a step; plain steps with two rates
converge where equal rates do not.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.train import MinimaxState, is_local_minimax, minimax_step


def run(f, ratio: float, method: str, steps: int, lr: float = 0.3, n: int = 2) -> float:
    """The distance from the origin, relative to the start, after so many steps."""
    x, y = torch.full((n,), 0.1, dtype=torch.float64), torch.full((n,), 0.1, dtype=torch.float64)
    start, state = float(torch.cat([x, y]).norm()), MinimaxState()
    for _ in range(steps):
        x, y, state = minimax_step(f, x, y, state, lr=lr, method=method, ratio=ratio)
    return float(torch.cat([x, y]).norm()) / start


def game(bend: float):
    """f_yy = diag(-1, 0) is singular; the restricted Schur complement is bend + 1."""
    return lambda x, y: 0.5 * bend * x[0] ** 2 + x[0] * y[0] - 0.5 * y[0] ** 2 + x[1] * y[1]


def bilinear(x, y):
    return (x * y).sum()


def plain(ratio: float) -> float:
    """Gradient descent-ascent on a local minimax point whose f_xx is negative."""
    x = y = 0.1
    for _ in range(4000):
        slope = (-1.0 * x + 2.0 * y, 2.0 * x - 2.0 * y)  # of -x^2/2 + 2 x y - y^2: max over y is x^2/2
        x, y = x - 0.01 / ratio * slope[0], y + 0.01 * slope[1]
    return (x * x + y * y) ** 0.5 / (0.02**0.5)


def measure() -> Claim:
    """Where the steps go, beside what the test of second order says."""
    origin = torch.zeros(2, dtype=torch.float64)
    good, bad = game(2.0), game(-2.0)
    verdicts = [is_local_minimax(f, origin, origin) for f in (good, bad)]
    near, away = run(good, 20.0, "extragradient", 4000), run(bad, 20.0, "extragradient", 400)
    single = {m: run(bilinear, 1.0, m, 200) for m in ("extragradient", "past", "optimistic", "reflected")}
    equal, slow = plain(0.25), plain(10.0)
    ok = [near < 0.1, away > 10, verdicts[0].verdict != "no", verdicts[1].verdict == "no", max(single.values()) < 0.01,
          slow < 1e-3 < 1 < equal]  # fmt: skip
    return Claim(
        paper="Chae, Kim, Kim 2024, arXiv 2305.16242; Hsieh et al. 2019, arXiv 1908.08465; Heusel et al. 2017",
        claim="two time scales lead to local minimax points, singular f_yy included; one gradient a step is enough",
        theirs="converges to points that satisfy the second-order condition, without the assumption on f_yy",
        ours=f"distance from the point: {near:.1e} where the restricted Schur complement is 3, {away:.1e} where it is "
        f"-1 (tests: {verdicts[0].verdict}, {verdicts[1].verdict}); on x'y after 200 steps "
        + ", ".join(f"{m} {v:.0e}" for m, v in single.items())
        + f"; plain steps {slow:.0e} with x ten times slower, {equal:.0e} with x four times faster",
        verdict="holds" if all(ok) else "holds in part" if any(ok) else "does not hold here",
        why="the test is undecided where f_yy has a zero eigenvalue that no second derivative settles",
        name="train.minimax_step",
    )
