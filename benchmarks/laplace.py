"""Laplace approximations here and in laplace-torch, in the same run: equal posteriors, calibration, time.

    python benchmarks/laplace.py [--networks 3] [--rounds 3] [--threads 1]

A network is trained on the digits 0 to 4 of scikit-learn; 5 to 9 are out of distribution. For each structure: the
largest difference of log evidence and probabilities at one prior; then, each with the prior precision that its own
search for the largest evidence finds, the negative log-likelihood, the calibration error and the accuracy on held-out
digits 0 to 4, and how often a digit of 5 to 9 is less confident than one of 0 to 4 (AUROC). Times of the fit, the
search and the predictions are medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

import timing
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from frechet import Objective, cross_entropy, l2
from frechet.analyze import calibration, laplace, predict, tune_evidence

sys.path = [p for p in sys.path if p != __file__.rpartition("/")[0]]  # this file has the name of the peer's package
STRUCTURES = {
    # ours: (theirs, their backend, their layers, our restriction)
    "diagonal": ("diag", "BackPackGGN", "all", None),
    "kron": ("kron", "CurvlinopsGGN", "all", None),
    "full": ("full", "BackPackGGN", "last_layer", "4.*"),
}


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """Training and held-out digits 0 to 4, and all digits 5 to 9."""
    data = load_digits()
    X, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    X, y = X[order], y[order]
    known = y < 5
    inside, labels = X[known], y[known]
    return (inside[:450], labels[:450]), (inside[450:], labels[450:]), X[~known]


def trained(seed: int, X: Tensor, y: Tensor, steps: int = 600) -> nn.Module:
    """A network after weak weight decay, as confident as networks are."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), y) + sum(p.square().sum() for p in model.parameters()) * 5e-5
        loss.backward()
        optimizer.step()
    return model.eval()


def scores(inside: Tensor, labels: Tensor, outside: Tensor) -> dict[str, float]:
    found = calibration(inside, labels)
    ours, others = inside.max(1).values, outside.max(1).values
    above = (ours[:, None] > others).double() + 0.5 * (ours[:, None] == others)
    return {
        "nll": found.nll, "ece": found.ece, "ece_of_chance": found.ece_of_chance, "accuracy": found.accuracy,
        "auroc": float(above.mean()),
    }  # fmt: skip


class Theirs:
    """laplace-torch on one network."""

    def __init__(self, model: nn.Module, structure: str, X: Tensor, y: Tensor) -> None:
        import laplace as peer
        from laplace import curvature

        kind, backend, layers, _ = STRUCTURES[structure]
        self.loader = DataLoader(TensorDataset(X, y), batch_size=len(X))
        self.made = lambda: peer.Laplace(
            model, "classification", subset_of_weights=layers, hessian_structure=kind,
            backend=getattr(curvature, backend), prior_precision=1.0,
        )  # fmt: skip

    def fit(self) -> Any:
        found = self.made()
        found.fit(self.loader)
        return found

    @staticmethod
    def tuned(found: Any) -> Any:
        found.optimize_prior_precision(method="marglik", pred_type="glm", link_approx="probit")
        return found


def compared(seed: int, structure: str, rounds: int) -> dict[str, Any]:
    (X, y), (held, labels), outside = digits()
    model = trained(seed, X, y)
    objective = Objective(model, cross_entropy(), [(X, y)], penalty=l2(1e-4))

    def fit() -> Any:
        return laplace(
            objective, structure=structure, prior_precision=1.0, joint=False, restrict=STRUCTURES[structure][3]
        )

    theirs = Theirs(model, structure, X, y)
    a, b = fit(), theirs.fit()
    evidence = float(b.log_marginal_likelihood())
    equal = {
        "evidence": abs(a.evidence - evidence) / abs(evidence),
        "probabilities": float((predict(a, held).probabilities - b(held, link_approx="probit")).abs().max()),
    }
    ours, other = tune_evidence(a), Theirs.tuned(b)
    with torch.no_grad():
        point = scores(model(held).softmax(1), labels, model(outside).softmax(1))
    rows = {
        "point": point,
        "ours": scores(predict(ours, held).probabilities, labels, predict(ours, outside).probabilities),
        "theirs": scores(
            other(held, link_approx="probit").detach(), labels, other(outside, link_approx="probit").detach()
        ),
    }
    rows["ours"]["evidence"], rows["theirs"]["evidence"] = ours.evidence, float(other.log_marginal_likelihood())
    rows["ours"]["prior"], rows["theirs"]["prior"] = float(ours.prior_precision[0]), float(other.prior_precision)
    times = timing.interleave(
        {
            "fit": fit, "their fit": theirs.fit,
            "search": lambda: tune_evidence(a), "their search": lambda: Theirs.tuned(theirs.fit()),
            "predict": lambda: predict(ours, held), "their predict": lambda: other(held, link_approx="probit"),
        },
        rounds=rounds, seed=0,
    )  # fmt: skip
    medians = {name: timing.quartiles(t)[0] for name, t in times.items()}
    medians["their search"] -= medians["their fit"]
    return {"seed": seed, "structure": structure, "equal": equal, "scores": rows, "seconds": medians}


def line(c: dict[str, Any]) -> str:
    told = [
        f"{who:6} nll {s['nll']:.4f} ece {s['ece']:.4f} ({s['ece_of_chance']:.4f}) acc {s['accuracy']:.3f} "
        f"auroc {s['auroc']:.3f}" + (f" prior {s['prior']:.3g} evidence {s['evidence']:.2f}" if "prior" in s else "")
        for who, s in c["scores"].items()
    ]
    t = c["seconds"]
    times = "  ".join(f"{k} {1e3 * t[k]:.1f} / {1e3 * t['their ' + k]:.1f} ms" for k in ("fit", "search", "predict"))
    e = c["equal"]
    head = f"{c['structure']} {c['seed']}: evidence {e['evidence']:.1e} probabilities {e['probabilities']:.1e}  {times}"
    return "\n    ".join([head, *told])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    timing.CLOCK = "cpu"
    torch.set_num_threads(arguments["threads"])
    warnings.simplefilter("ignore")
    cells = []
    for structure in STRUCTURES:
        for seed in range(arguments["networks"]):
            cells.append(compared(seed, structure, arguments["rounds"]))
            print(line(cells[-1]), flush=True)
    timing.write("laplace", timing.record(arguments, cells=cells))


if __name__ == "__main__":
    main()
