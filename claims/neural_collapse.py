"""H. Dang, T. Tran, S. Osher, H. Tran-The, N. Ho, T. Nguyen (2023), Neural collapse in deep linear networks: from
balanced to imbalanced data, arXiv 2301.00437.

Claim: with squared errors, no bias and weight decay, the class means of free features behind deep linear layers become
orthogonal, of equal lengths for balanced classes, and of lengths that depend on the class's size else.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet import Objective, eigsh, hessian
from frechet.objective.criteria import custom


def collapsed(sizes: list[int]) -> tuple[float, float, torch.Tensor, float, float]:
    """Within-class spread, largest cosine between class means, their lengths, the gradient and the least eigenvalue."""
    torch.manual_seed(0)
    y = torch.cat([torch.full((n,), k) for k, n in enumerate(sizes)])
    Y, d = torch.nn.functional.one_hot(y).double(), 8
    c = 1e-2

    class Free(torch.nn.Module):
        """Features that are parameters, and two linear layers."""

        def __init__(self) -> None:
            super().__init__()
            self.H = torch.nn.Parameter(torch.randn(len(y), d, dtype=torch.float64) / 2)
            self.A = torch.nn.Parameter(torch.randn(d, d, dtype=torch.float64) / 2)
            self.B = torch.nn.Parameter(torch.randn(len(sizes), d, dtype=torch.float64) / 2)

        def forward(self, _: torch.Tensor) -> torch.Tensor:
            fit = (self.H @ self.A.T @ self.B.T - Y).square().sum() / (2 * len(y))
            size = self.H.square().sum() / len(y) + self.A.square().sum() + self.B.square().sum()
            return (fit + c / 2 * size)[None]

    net = Free()
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=4000, tolerance_grad=1e-11, tolerance_change=0.0, history_size=30,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(y).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    H = net.H.detach()
    means = torch.stack([H[y == k].mean(0) for k in range(len(sizes))])
    within = float((H - means[y]).norm() / H.norm())
    unit = torch.nn.functional.normalize(means, dim=1)
    cosines = (unit @ unit.T - torch.eye(len(sizes))).abs().max()
    objective = Objective(net, custom(lambda out, _: out), [(y[None], y[None])])
    g = float(objective.space.norm(objective.gradient()))
    least = float(eigsh(hessian(objective), 1, which="smallest", seed=0).values[0])
    return within, float(cosines), means.norm(dim=1), g, least


def measure() -> Claim:
    """Four classes of ten examples, and classes of 5, 10, 15 and 20."""
    balanced, other = collapsed([10] * 4), collapsed([5, 10, 15, 20])
    lengths = ", ".join(f"{v:.2f}" for v in other[2])
    even = float(balanced[2].std() / balanced[2].mean())
    ordered = bool((other[2][1:] < other[2][:-1] * 0.98).all())
    tight = max(balanced[0], other[0], balanced[1], other[1]) < 1e-2
    return Claim(
        paper="Dang, Tran, Osher, Tran-The, Ho, Nguyen 2023, arXiv 2301.00437",
        claim="class means become orthogonal, with lengths by class sizes",
        theirs="proved for global solutions",
        ours=f"within-class spread {max(balanced[0], other[0]):.0e}, largest cosine {max(balanced[1], other[1]):.0e}; "
        f"lengths vary by {even:.0e} for balanced classes, and are {lengths} for 5, 10, 15, 20 examples; "
        f"gradient {max(balanced[3], other[3]):.0e}, least Hessian eigenvalue {min(balanced[4], other[4]):.0e}",
        verdict="holds" if tight and even < 0.01 and ordered else "holds in part" if tight else "does not hold here",
        why="two linear layers behind free features; that the point is a minimum is checked by its Hessian",
        name="eigsh",
    )
