"""G. Yang, J. B. Simon, J. Bernstein (2023), A spectral condition for feature learning, arXiv 2310.17813.

Claim: features are learnt at every width where weights and updates have spectral norms of order sqrt(out / in); the
maximal update rules give that, and the usual parametrization with one rate does not.
"""

from __future__ import annotations

import torch
from claim import Claim
from sklearn.datasets import load_digits

from frechet.analyze import Hyperparameters, fit_power_law, scale_for_width, spectral_check

ROLES = {"0.weight": "input", "2.weight": "hidden", "4.weight": "output"}


def updates(width: int, scaled: bool, seed: int) -> dict[str, float]:
    """Update norms over sqrt(out / in) after ten steps of Adam, by matrix."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.from_numpy(X).float() / 16, torch.from_numpy(y)
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, width, bias=False), torch.nn.ReLU(), torch.nn.Linear(width, width, bias=False),
        torch.nn.ReLU(), torch.nn.Linear(width, 10, bias=False),
    )  # fmt: skip
    groups = []
    for name, p in net.named_parameters():
        old = Hyperparameters(2e-3, deviation=float(p.detach().std()))
        new = scale_for_width(old, width / 64, role=ROLES[name], optimizer="adam")
        if scaled and name == "4.weight":  # the usual deviation has the root of the width already
            p.data.mul_((64 / width) ** 0.5)
        groups.append({"params": [p], "lr": new.rate if scaled else old.rate})
    optimizer = torch.optim.Adam(groups)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for _ in range(10):
        rows = torch.randint(0, len(y), (64,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
        optimizer.step()
    return {m.name: m.update_ratio or 0.0 for m in spectral_check(net, before).matrices}


def measure() -> Claim:
    """Widths 64 to 512, three seeds: the exponent of the update ratio in the width, for each matrix."""
    widths = (64, 128, 256, 512)
    x = torch.tensor([w for w in widths for _ in range(3)], dtype=torch.float64)
    slopes = {}
    for scaled in (True, False):
        rows = [updates(w, scaled, s) for w in widths for s in range(3)]
        for name, role in ROLES.items():
            law = fit_power_law(x, torch.tensor([r[name] for r in rows], dtype=torch.float64))
            slopes[scaled, role] = law.exponents[0]
    told = {s: ", ".join(f"{r} {slopes[s, r]:.2f}" for r in ("input", "hidden", "output")) for s in (True, False)}
    flat = all(abs(v) < 0.25 for (s, _), v in slopes.items() if s)
    grows = max(v for (s, _), v in slopes.items() if not s) > 0.5
    return Claim(
        paper="Yang, Simon, Bernstein 2023, arXiv 2310.17813",
        claim="update norms over sqrt(out / in) do not depend on the width under the maximal update rules",
        theirs="of order one at every width",
        ours=f"exponents in the width of the update ratio, Adam: with the rules {told[True]}; with one "
        f"rate {told[False]}",
        verdict="holds" if flat and grows else "holds in part" if grows else "does not hold here",
        why="ten steps on digits at widths 64 to 512: the rank of an update decides, and no rule knows it",
        name="spectral_check",
    )
