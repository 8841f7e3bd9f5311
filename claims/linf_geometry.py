"""S. Xie, M. A. Mohamadi, Z. Li (2024), Adam exploits l-infinity geometry of loss landscape via coordinate-wise
adaptivity, arXiv 2410.08198.

Claim: Adam gains from a Hessian whose entries have a small sum of absolute values. In randomly rotated coordinates that
sum grows and Adam gets worse, while SGD and eigenvalues stay as they are. Tried on a one-layer transformer over
characters: every weight matrix W is Q V R with random orthogonal Q and R, and V is trained.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from claim import Claim
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as mean_loss

from frechet import Objective, cross_entropy, eigsh, hessian
from frechet.linalg import entrywise_norm

WIDTH, CONTEXT, STEPS = 32, 24, 300
STORY = Path(str(getattr(find_spec("this"), "origin", ""))).read_text()  # 1 000 characters that come with Python
LETTERS, PLACES = torch.tensor([ord(c) for c in STORY]).unique(return_inverse=True)
TEXT, N = PLACES.unfold(0, CONTEXT + 1, 1), len(LETTERS)


class Causal(nn.TransformerEncoderLayer):
    def forward(self, src: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(src, nn.Transformer.generate_square_subsequent_mask(CONTEXT))


class Turn(nn.Module):
    def __init__(self, W: Tensor) -> None:
        super().__init__()
        self.Q, self.R = (nn.Buffer(nn.init.orthogonal_(torch.empty(n, n))) for n in W.shape)

    def forward(self, V: Tensor) -> Tensor:
        return self.Q @ V @ self.R

    def right_inverse(self, W: Tensor) -> Tensor:
        return self.Q.T @ W @ self.R.T


def trained(turned: bool, optimizer: type, rate: float) -> tuple[float, nn.Module]:
    """The mean loss of the last 10 steps, and the network."""
    torch.manual_seed(0)
    layer = Causal(WIDTH, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    net = nn.Sequential(nn.Embedding(N, WIDTH), layer, nn.Linear(WIDTH, N))
    places = [(m, n) for m in net.modules() for n, p in m.named_parameters(recurse=False) if p.ndim == 2]
    for module, name in places if turned else []:
        nn.utils.parametrize.register_parametrization(module, name, Turn(getattr(module, name)))
    run, draw, last = optimizer(net.parameters(), rate), torch.Generator().manual_seed(1), 0.0
    for k in range(STEPS):
        batch = TEXT[torch.randint(len(TEXT), (32,), generator=draw)]
        loss = mean_loss(net(batch[:, :-1]).mT, batch[:, 1:])
        run.zero_grad()
        loss.backward()
        run.step()
        last += loss.item() / 10 if k >= STEPS - 10 else 0.0
    return last, net


def measure() -> Claim:
    """Losses in both bases, and norms of the Hessian where SGD ends, which is the same network in both."""
    adam = [trained(turned, torch.optim.Adam, 3e-3)[0] for turned in (False, True)]
    (first, net), (second, turned_net) = (trained(turned, torch.optim.SGD, 0.3) for turned in (False, True))
    data = [(TEXT[::12, :-1], TEXT[::12, 1:])]
    H, T = (hessian(Objective(n, cross_entropy(), data)) for n in (net, turned_net))
    plain, rotated = (entrywise_norm(A, seed=0, products=300) for A in (H, T))
    low, high = (tuple(round(float(v) / H.shape[0], 1) for v in e.interval()) for e in (plain, rotated))
    tops = [float(eigsh(A, 1, rtol=1e-3, seed=0).values[0]) for A in (H, T)]
    return Claim(
        paper="Xie, Mohamadi, Li 2024, arXiv 2410.08198",
        claim="Adam gains from a small entrywise norm of the Hessian, which a rotation destroys; SGD does not notice",
        theirs="GPT-2: Adam is worse after a rotation, SGD is not; the norm grows where Adam gets worse",
        ours=f"loss after {STEPS} steps: Adam {adam[0]:.2f}, rotated {adam[1]:.2f}; SGD {first:.4f}, {second:.4f}; "
        f"norm by parameter {low}, rotated {high} (95 %); largest eigenvalue {tops[0]:.2f}, {tops[1]:.2f}",
        verdict="holds" if abs(first - second) < 1e-2 and adam[1] > adam[0] and high[0] > low[1] else "holds in part",
        why="eigenvalues do not depend on the basis, the sum of absolute entries and Adam's steps do; one seed",
        name="linalg.entrywise_norm",
    )
