"""Small objectives of several kinds with the functions of their single examples, written without the library."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from frechet.objective import Objective, causal_lm, l2
from frechet.objective.criteria import cross_entropy, squared_error


class Tokens(nn.Module):
    """A small transformer with affine normalization and a padding mask."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.body = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, dropout=0.0)
        self.head = nn.Linear(4, 6)

    def forward(self, input_ids, attention_mask):
        return {"logits": self.head(self.body(self.embed(input_ids), src_key_padding_mask=attention_mask == 0))}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def token_batch(size, length=5):
    ids = torch.randint(0, 6, (size, length))
    mask = torch.ones_like(ids)
    for i in range(size):
        mask[i, length - 1 - i % 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def tensors(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def problem(name):
    """An objective, its one-example functions by other code, and the flat point."""
    torch.manual_seed(0)
    if name == "mlp":
        model, data = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), [(4, 3, 2), (1, 3, 2)]
        batches = [(tensors(b, i), tensors(b, o)) for b, i, o in data]
        loss, criterion, split = lambda y, t: ((y - t) ** 2).sum(), squared_error(), None
    elif name == "conv":
        model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.GroupNorm(1, 2), nn.GELU("tanh"), nn.Flatten(), nn.Linear(8, 3))
        batches = [(tensors(b, 1, 3, 3), torch.randint(0, 3, (b,))) for b in (3, 2)]
        loss, criterion, split = lambda y, t: F.cross_entropy(y, t, reduction="sum"), nn.CrossEntropyLoss(), None
    elif name == "lstm":
        model, batches = Recurrent(), [(tensors(b, 4, 2), torch.randint(0, 2, (b,))) for b in (2, 2)]
        loss, criterion, split = lambda y, t: F.cross_entropy(y, t, reduction="sum"), cross_entropy(), None
    else:
        model, batches, criterion, split = Tokens(), [token_batch(b) for b in (3, 2)], cross_entropy(), causal_lm
        loss = lambda y, t: F.cross_entropy(y["logits"].flatten(0, 1), t.flatten(), reduction="sum")  # noqa: E731
    model = model.double().eval()
    objective = 2.0 * Objective(model, criterion, batches, split=split, penalty=l2(0.3))
    singles = []
    for batch in batches:
        inputs, targets = (split or (lambda b: b))(batch)
        for i in range(targets.shape[0]):
            one = {k: v[i : i + 1] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[i : i + 1]
            singles.append((one, targets[i : i + 1]))
    counts = [t.numel() if t.is_floating_point() else int((t != -100).sum()) for _, t in singles]
    scale = 2.0 * len(singles) / sum(counts)

    def function(i):
        one, target = singles[i]
        keywords = one if isinstance(one, dict) else {}

        def f(x):
            state = objective.space.unflatten(x)
            args = () if keywords else (one,)
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no double backward
                y = torch.func.functional_call(model, state, args, keywords)
            return scale * loss(y, target) + 0.3 * (x * x).sum()

        return f

    return objective, [function(i) for i in range(len(singles))]


def gradient(f, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]
