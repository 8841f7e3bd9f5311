"""The four problems on which products are timed: a model, a loss, and batches that depend on nothing but their number.

    mlp      784-512-512-10, tanh, 512 examples, cross-entropy               669 706 parameters
    resnet   ResNet-20 for 32 x 32 images, 64 examples, cross-entropy        272 474 parameters
    gpt      4 layers, width 256, 4 heads, 1 000 words, 8 x 128 tokens     3 704 320 parameters
    tiny     2-64-64-1, tanh, 1 000 points, squared error                      4 417 parameters

Weights are random (seeded); nothing here depends on training. Normalization layers get weights, biases and running
statistics that differ from their initial ones and zeros, because products through fresh ones hide mistakes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, its loss (a mean over examples or tokens), and `draw(generator)`: one float32 batch on the CPU."""

    name: str
    model: nn.Module
    loss: nn.Module
    draw: Callable[[torch.Generator], Batch]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def dim(self) -> int:
        return sum(p.numel() for p in self.parameters)

    def batch(self, number: int = 0) -> Batch:
        """Batch `number`, always the same one, in the model's dtype and on its device."""
        inputs, targets = self.draw(torch.Generator().manual_seed(1000 + number))
        like = self.parameters[0]
        moved = [t.to(like) if t.is_floating_point() else t.to(like.device) for t in (inputs, targets)]
        return moved[0], moved[1]

    def to(self, *where: torch.dtype | torch.device | str) -> Problem:
        """This problem with a copy of the model in another dtype or on another device."""
        model = copy.deepcopy(self.model)
        for target in where:
            model = model.to(target)
        return replace(self, model=model)


class TokenCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy with the classes on the last axis, for outputs of any shape; a mean over all tokens."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input.flatten(0, -2), target.flatten())


def mlp() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10))

    def draw(generator: torch.Generator) -> Batch:
        return torch.randn(512, 784, generator=generator), torch.randint(10, (512,), generator=generator)

    return Problem("mlp", model, TokenCrossEntropy(), draw)


class Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet() -> Problem:
    """ResNet-20 with projection shortcuts, in evaluation mode, running statistics close to those of its inputs."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width in (16, 32, 64):
        for block in range(3):
            layers.append(Residual(channels, width, 2 if block == 0 and width > 16 else 1))
            channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    _perturb_normalization(model)

    def draw(generator: torch.Generator) -> Batch:
        return torch.randn(64, 3, 32, 32, generator=generator), torch.randint(10, (64,), generator=generator)

    with torch.no_grad():
        for number in range(10):
            model(draw(torch.Generator().manual_seed(number))[0])
    return Problem("resnet", model.eval(), TokenCrossEntropy(), draw)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.attention(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        x = x + self.projection(mixed)
        return x + self.contract(F.gelu(self.expand(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, layers: int = 4, width: int = 256, heads: int = 4, words: int = 1000, length: int = 128) -> None:
        super().__init__()
        self.word = nn.Embedding(words, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                scale = 1 / math.sqrt(2 * layers) if name.endswith(("projection.weight", "contract.weight")) else 1.0
                nn.init.normal_(p, std=0.02 * scale)

    def forward(self, words: Tensor) -> Tensor:
        positions = torch.arange(words.shape[1], device=words.device)
        return self.head(self.norm(self.blocks(self.word(words) + self.position(positions))))


def gpt() -> Problem:
    torch.manual_seed(0)
    model = GPT()
    _perturb_normalization(model)

    def draw(generator: torch.Generator) -> Batch:
        text = torch.randint(1000, (8, 129), generator=generator)
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()

    return Problem("gpt", model, TokenCrossEntropy(), draw)


def tiny() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def draw(generator: torch.Generator) -> Batch:
        x = torch.randn(1000, 2, generator=generator)
        return x, (3 * x[:, :1]).sin() * x[:, 1:]

    return Problem("tiny", model, nn.MSELoss(), draw)


def _perturb_normalization(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.1)
            nn.init.normal_(module.bias, std=0.1)


PROBLEMS: dict[str, Callable[[], Problem]] = {"mlp": mlp, "resnet": resnet, "gpt": gpt, "tiny": tiny}
