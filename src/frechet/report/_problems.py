"""Built-in problems on real data: each trains a small model in seconds and returns its objective.

    digits       convolutional net on 1 797 handwritten digits of 8 x 8 pixels (scikit-learn's copy of UCI optdigits)
    digits-mlp   tanh network on the same digits
    text         causal transformer on English text: the reference documentation that ships with Python
    regression   tanh network on the diabetes study of Efron et al. 2004 (442 patients, scikit-learn), squared error

Nothing is downloaded. Training is by Adam with a cosine schedule from a fixed seed and leaves torch's generator alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from pydoc_data.topics import topics  # a generated module of Python's own reference text

import torch
from torch import Tensor, nn

from frechet.objective import Objective, causal_lm
from frechet.objective.criteria import cross_entropy, squared_error


def _fit(objective: Objective, batches: list[object], *, epochs: int, learning_rate: float) -> Objective:
    """Train the objective's model on `batches` by Adam; returns the objective, with the model in evaluation mode."""
    model = objective.model.train()
    part = objective.parts[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for epoch in range(epochs):
        for i in torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch)).tolist():
            inputs, targets = part.split(batches[i])
            outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
            loss = part.criterion.terms(outputs, targets).sum() / part.criterion.count(targets).to(outputs.dtype)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    return objective


def _batches(X: Tensor, y: Tensor, size: int) -> list[object]:
    return list(zip(X.split(size), y.split(size), strict=True))


def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the built-in digits need scikit-learn: pip install 'frechet[examples]', or give a file of your own "
            "(frechet report path/to/file.py:make)"
        ) from error
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # they come in writers' order
    X = torch.from_numpy(images).float().div_(16.0)[order]
    return X, torch.from_numpy(labels).long()[order]


def digits() -> Objective:
    """A convolutional net with 5 263 parameters and ReLU on the digits."""
    X, y = _digits()
    X = X.view(-1, 1, 8, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 15),
            nn.ReLU(),
            nn.Linear(15, 10),
        )
        objective = Objective(model, cross_entropy(), _batches(X, y, 600))
        return _fit(objective, _batches(X, y, 64), epochs=12, learning_rate=3e-3)


def digits_mlp() -> Objective:
    """A tanh network 64-32-32-10 on the digits."""
    X, y = _digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
        objective = Objective(model, cross_entropy(), _batches(X, y, 600))
        return _fit(objective, _batches(X, y, 64), epochs=15, learning_rate=3e-3)


def regression() -> Objective:
    """A tanh network 10-16-16-1 on the standardized diabetes data, squared error."""
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise ImportError("the built-in regression needs scikit-learn: pip install 'frechet[examples]'") from error
    features, disease = load_diabetes(return_X_y=True)
    X, y = torch.from_numpy(features).float(), torch.from_numpy(disease).float().view(-1, 1)
    X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
        objective = Objective(model, squared_error(), _batches(X, y, 442))
        return _fit(objective, _batches(X, y, 64), epochs=60, learning_rate=3e-3)


# --- text -------------------------------------------------------------------------------------------------------------


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class CausalTransformer(nn.Module):
    """Two blocks of causal attention over characters, affine LayerNorm, tied output."""

    def __init__(self, words: int, length: int, width: int = 32, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.05)
        self.register_buffer("mask", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # padding stands at the end, so causality alone keeps it from the tokens before it
        length = input_ids.shape[1]
        x = self.tokens(input_ids) + self.positions(torch.arange(length, device=input_ids.device))
        mask = self.get_buffer("mask")[:length, :length]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


def _sentences(number: int, length: int) -> list[str]:
    prose = (re.sub(r"\s+", " ", p).strip() for text in topics.values() for p in text.split("\n\n"))
    found = (s for p in prose for s in re.split(r"(?<=[.])\s+", p) if re.fullmatch(r"[A-Z][A-Za-z ,;'()\-]{20,}[.]", s))
    return [s[:length] for s in islice(found, number)]


def text() -> Objective:
    """A causal character transformer on sentences of Python's reference, padded, the padding ignored."""
    length = 48
    sentences = _sentences(240, length)
    alphabet = sorted(set("".join(sentences)))
    number = {c: i + 1 for i, c in enumerate(alphabet)}  # 0 is padding
    ids = torch.zeros(len(sentences), length, dtype=torch.long)
    for row, sentence in zip(ids, sentences, strict=True):
        row[: len(sentence)] = torch.tensor([number[c] for c in sentence])
    data = [{"input_ids": b, "attention_mask": (b != 0).long()} for b in ids.split(80)]
    small: list[object] = [{"input_ids": b, "attention_mask": (b != 0).long()} for b in ids.split(32)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CausalTransformer(len(alphabet) + 1, length)
        objective = Objective(model, cross_entropy(), data, split=causal_lm)
        return _fit(objective, small, epochs=40, learning_rate=5e-3)


PROBLEMS: dict[str, Callable[[], Objective]] = {
    "digits": digits,
    "digits-mlp": digits_mlp,
    "text": text,
    "regression": regression,
}
