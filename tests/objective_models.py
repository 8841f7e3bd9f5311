"""Small models, random data and labels for the objectives of `objective_cases`."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def labels(classes: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model in float64 and evaluation mode, its parameters away from their symmetric start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().double().eval()
    for i, p in enumerate(model.parameters()):
        p.data += 0.3 * randn(*p.shape, seed=100 + i)
    return model


class Attention(nn.Module):
    """One block: affine LayerNorm, fused attention, residual, tokens in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        q, k, v = self.qkv(self.norm(h)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(h + mixed.transpose(1, 2).flatten(2))


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        n = self.norm(h)
        return h + self.attention(n, n, n, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **keywords: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 2, **keywords)
        self.cell, self.head = kind(2, 2, batch_first=True), nn.Linear(2, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.cell(self.embed(tokens))[0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(4, 3), nn.Linear(3, 4)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens).tanh())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.GroupNorm(2, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + F.silu(self.norm(self.conv(x)))).mean((2, 3)))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x).sin()


class CausalLM(nn.Module):
    """Keyword arguments in, an object with .logits and, given unshifted labels, .loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(5, 2), nn.GRU(2, 3, batch_first=True), nn.Linear(3, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        logits = self.head(self.cell(self.embed(input_ids) * attention_mask.unsqueeze(-1))[0])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(logits=logits, loss=loss)
