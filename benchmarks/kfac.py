"""K-FAC and EK-FAC here and in curvlinops, in the same run: are they equal, and what do they cost?

    python benchmarks/kfac.py [--rounds 5] [--threads 1]

For each network, kind and treatment of shared weights: the largest relative difference of products with ten random
vectors; and the time of the factors, of a product with one vector, and of a product with the inverse of the operator
plus 0.01, in gradients of the whole data. Weight and bias are separate blocks, curvlinops' default.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import timing
import torch
from curvlinops import EKFACLinearOperator, KFACInverseLinearOperator, KFACLinearOperator
from torch import Tensor, nn

from frechet import Objective, cross_entropy, identity, squared_error
from frechet.operators import inverse
from frechet.operators.derivatives import kfac

KINDS = {"fisher": "type-2", "empirical_fisher": "empirical", "forward_only": "forward-only"}


def networks() -> dict[str, tuple[nn.Module, Any, Any, Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    labels = torch.randint(0, 10, (128,), generator=g)
    mlp = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Tanh(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    head = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 8))
    X, images = torch.randn(128, 64, generator=g), torch.randn(128, 1, 8, 8, generator=g)
    Z, y = torch.randn(128, 32, generator=g), torch.randn(128, 8, generator=g)
    return {
        "mlp": (mlp, cross_entropy(), nn.CrossEntropyLoss(), X, labels),
        "convolutions": (net, cross_entropy(), nn.CrossEntropyLoss(), images, labels),
        "regression": (head, squared_error(), nn.MSELoss(), Z, y),
    }


def theirs(kind: str, sharing: str, corrected: bool, model: nn.Module, loss: nn.Module, X: Tensor, y: Tensor) -> Any:
    made = EKFACLinearOperator if corrected else KFACLinearOperator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made(
            model, loss, list(model.parameters()), [(X, y)], fisher_type=KINDS[kind], kfac_approx=sharing,
            check_deterministic=False,
        )  # fmt: skip


def product(A: Any, v: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = A @ v
    return found if isinstance(found, Tensor) else torch.cat([p.reshape(-1) for p in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    timing.CLOCK = "cpu"
    torch.set_num_threads(arguments["threads"])
    cells = []
    for name, (model, criterion, loss, X, y) in networks().items():
        double = (model.double(), X.double(), y.double() if y.is_floating_point() else y)
        for kind in KINDS:
            for sharing in ("expand", "reduce"):
                for corrected in (False, True):
                    if corrected and kind == "forward_only":
                        continue
                    cells.append(
                        compared(name, kind, sharing, corrected, criterion, loss, *double, arguments["rounds"])
                    )
                    print(line(cells[-1]), flush=True)
    timing.write("kfac", timing.record(arguments, cells=cells))


def compared(
    name: str, kind: str, sharing: str, corrected: bool, criterion: Any, loss: Any, model: nn.Module, X: Tensor,
    y: Tensor, rounds: int,
) -> dict[str, Any]:  # fmt: skip
    objective = Objective(model, criterion, [(X, y)])

    def ours() -> Any:
        return kfac(objective, kind=kind, sharing=sharing, corrected=corrected, joint=False)  # type: ignore[arg-type]

    def other() -> Any:
        A = theirs(kind, sharing, corrected, model, loss, X, y)
        product(A, torch.zeros(objective.space.dim, dtype=torch.float64))
        return A

    A, B = ours(), other()
    off = 0.0
    for seed in range(10):
        v = torch.randn(A.domain.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        mine, their = A @ v, product(B, v)
        off = max(off, float((mine - their).norm() / their.norm()))
    inverted = inverse(A + 0.01 * identity(A.domain))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = KFACInverseLinearOperator(B, damping=0.01, use_exact_damping=True)
    leaves = list(model.parameters())

    def gradient() -> object:
        return torch.autograd.grad(loss(model(X), y), leaves)

    acts: dict[str, Callable[[], object]] = {
        "gradient": gradient,
        "ours": ours, "theirs": other,
        "our product": lambda: A @ v, "their product": lambda: product(B, v),
        "our inverse": lambda: inverted @ v, "their inverse": lambda: product(peer, v),
    }  # fmt: skip
    acts["their inverse"]()
    times = {k: timing.quartiles(t)[0] for k, t in timing.interleave(acts, rounds=rounds, seed=0).items()}
    unit = times.pop("gradient")
    return {
        "network": name, "kind": kind, "sharing": sharing, "corrected": corrected, "difference": off,
        "gradients": {k: t / unit for k, t in times.items()},
    }  # fmt: skip


def line(c: dict[str, Any]) -> str:
    g = c["gradients"]
    pairs = (("ours", "theirs"), ("our product", "their product"), ("our inverse", "their inverse"))
    told = "  ".join(f"{g[a]:7.2f} {g[b]:7.2f}" for a, b in pairs)
    which = f"{c['network']:13} {c['kind']:17} {c['sharing']:7} {'ek' if c['corrected'] else '  '}"
    return f"{which} {c['difference']:.1e}  {told}"


if __name__ == "__main__":
    main()
