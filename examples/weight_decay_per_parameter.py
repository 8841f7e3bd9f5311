"""Does every weight deserve its own weight decay, and can 650 of them be tuned at once?

    python examples/weight_decay_per_parameter.py [picture.png]

Multinomial logistic regression on the handwritten digits of scikit-learn, from 150 training images: 650 weights, and
as many decays exp(theta). A grid tunes one decay for all of them, as is usual. From its best point on, Adam follows the
hypergradient: each step fits the model to convergence (Newton's method with conjugate gradients) and solves one linear
system, where a difference quotient would fit it 651 times. The loss on 647 images that neither fit nor tune anything
shows what is gained; the 1000 images that tune are not fitted in either way. The picture shows the losses along the
way, and how far each pixel of each digit is held down.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

from frechet import LinearOperator, from_diagonal, hessian
from frechet.calculus import hypergradient
from frechet.linalg import cg

TRAIN, VALIDATION = 150, 1000
STEPS, RATE, EVERY = 21, 0.2, 10
CURVATURE = 0.01  # of the loss, about, in one weight
GRID = [10.0**k for k in (-2, -3, -3.5, -4, -4.5, -5)]


@dataclass(frozen=True)
class Found:
    grid: list[tuple[float, float, float]]  # decay, validation and test loss
    steps: list[tuple[float, float]]  # validation and test loss
    errors: list[tuple[int, float, float]]  # step, norm of the hypergradient, its error
    theta: Tensor
    accuracy: tuple[float, float]  # on the test images: one decay, many
    seconds: float


def images() -> list[tuple[Tensor, Tensor]]:
    """Training, validation and test images with their digits; a constant is the last feature."""
    X, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    X = torch.from_numpy(X)[order] / 16
    X, y = torch.cat([X, torch.ones(len(X), 1, dtype=X.dtype)], 1), torch.from_numpy(y)[order]
    ends = [0, TRAIN, TRAIN + VALIDATION, len(y)]
    return [(X[a:b], y[a:b]) for a, b in pairwise(ends)]


SETS = images()


def loss(w: Tensor, part: int) -> Tensor:
    X, y = SETS[part]
    return cross_entropy(X @ w.view(-1, 10), y)


def inner(w: Tensor, theta: Tensor) -> Tensor:
    return loss(w, 0) + (theta.exp() * w**2).sum() / 2


def outer(w: Tensor, theta: Tensor) -> Tensor:
    return loss(w, 1)


def scaling(theta: Tensor) -> LinearOperator:
    """Decays that differ by orders of magnitude make systems that are easy again when each weight has its own unit."""
    return from_diagonal(1 / (theta.detach().exp() + CURVATURE))


def fit(w: Tensor, theta: Tensor) -> Tensor:
    """The minimum of the inner function near w: Newton's method, each step shortened until the function falls."""
    for _ in range(50):
        w = w.detach().requires_grad_()
        value = inner(w, theta)
        (g,) = torch.autograd.grad(value, w)
        w, value, norm = w.detach(), value.detach(), float(g.square().sum().sqrt())
        if norm < 1e-7:
            break
        H = hessian(lambda w: inner(w, theta), w)
        step = cg(H, -g, preconditioner=scaling(theta), rtol=min(0.1, norm**0.5)).x
        t = 1.0
        while float(inner(w + t * step, theta)) > float(value) + 1e-4 * t * float(g @ step) + 1e-14:
            t /= 2
        w = w + t * step
    return w


def run() -> Found:
    begun = time.perf_counter()
    n = SETS[0][0].shape[1] * 10
    w, grid, best = torch.zeros(n, dtype=torch.float64), [], (float("inf"), w0 := torch.zeros(n).double(), w0)
    for decay in GRID:
        theta = torch.full((n,), decay, dtype=torch.float64).log()
        w = fit(w, theta)
        grid.append((decay, float(loss(w, 1)), float(loss(w, 2))))
        best = min(best, (grid[-1][1], theta, w), key=lambda b: b[0])

    theta, w = best[1].clone().requires_grad_(), best[2]
    one = accuracy(w)
    optimizer = torch.optim.Adam([theta], lr=RATE)
    steps, errors = [], []
    for step in range(STEPS):
        w = fit(w, theta.detach())
        found = hypergradient(
            outer, inner, w, theta, rtol=1e-4, preconditioner=scaling(theta), correct=step % EVERY == 0
        )
        found.checked()
        steps.append((found.value, float(loss(w, 2))))
        if found.error is not None:
            errors.append((step, float(torch.as_tensor(found.gradient).square().sum().sqrt()), found.error))
        theta.grad = found.gradient  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
    return Found(
        grid, steps, errors, theta.detach(), (one, accuracy(fit(w, theta.detach()))), time.perf_counter() - begun
    )


def accuracy(w: Tensor) -> float:
    X, y = SETS[2]
    return float(((X @ w.view(-1, 10)).argmax(1) == y).double().mean())


def picture(found: Found, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    left.plot([s[0] for s in found.steps], label="validation")
    left.plot([s[1] for s in found.steps], label="test")
    left.axhline(min(g[1] for g in found.grid), color="C0", ls=":", label="validation, best single decay")
    left.axhline(min(found.grid, key=lambda g: g[1])[2], color="C1", ls=":", label="test, best single decay")
    left.set(xlabel="step of Adam", ylabel="loss", title="650 decays, tuned together")
    left.legend(fontsize=8)
    decays = found.theta.view(-1, 10)[:64].T.reshape(10, 8, 8) / torch.log(torch.tensor(10.0))
    tiles = decays.reshape(2, 5, 8, 8).permute(0, 2, 1, 3).reshape(16, 40)
    shown = right.imshow(tiles.numpy(), cmap="viridis")
    for i in range(1, 5):
        right.axvline(8 * i - 0.5, color="white", lw=1)
    right.axhline(7.5, color="white", lw=1)
    right.set(title="log10 of the decay of each pixel, digits 0 to 4 and 5 to 9", xticks=[], yticks=[])
    figure.colorbar(shown, ax=right, shrink=0.6)
    figure.savefig(path, dpi=120)


def main() -> None:
    found = run()
    print("one decay for all weights:  decay  validation  test")
    for decay, validation, test in found.grid:
        print(f"{decay:33.1e} {validation:11.4f} {test:5.4f}")
    print("\none decay for each weight:  step   validation  test   hypergradient, its error")
    for i, norm, error in found.errors:
        print(f"{i:32d} {found.steps[i][0]:12.4f} {found.steps[i][1]:6.4f} {norm:12.1e} {error:9.0e}")
    print(f"\ntest accuracy {found.accuracy[0]:.3f} with one decay, {found.accuracy[1]:.3f} with {len(found.theta)}")
    path = Path(next(iter(sys.argv[1:]), "weight_decay_per_parameter.png"))
    with mpl.rc_context({"font.size": 9}):
        picture(found, path)
    print(f"{found.seconds:.1f} s, wrote {path}")


if __name__ == "__main__":
    main()
