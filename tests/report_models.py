"""Thirteen kinds of models as people bring them, in tiny random configurations: each function returns an objective."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frechet.objective import Objective, causal_lm
from frechet.objective.criteria import cross_entropy, custom, squared_error

WORDS = 40


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, WORDS, (rows, length), generator=_generator(seed))


def _texts() -> list[dict[str, Tensor]]:
    """Two batches of padded sequences."""
    batches = []
    for seed in (0, 1):
        ids = _ids(6, 8, seed)
        mask = torch.ones_like(ids)
        mask[0, 5:], mask[3, 6:] = 0, 0
        batches.append({"input_ids": ids * mask, "attention_mask": mask})
    return batches


def gpt2_model() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(config).eval()


def gpt2() -> Objective:
    return Objective(gpt2_model(), cross_entropy(), _texts(), split=causal_lm)


def llama() -> Objective:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Objective(LlamaForCausalLM(config).eval(), cross_entropy(), _texts(), split=causal_lm)


def t5() -> Objective:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=WORDS, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    batches = [{**b, "labels": _ids(6, 5, 7)} for b in _texts()]
    model = T5ForConditionalGeneration(config).eval()
    return Objective(model, cross_entropy(), batches, split=lambda b: (b, b["labels"]))


def vit() -> Objective:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    pixels = torch.randn(12, 3, 8, 8, generator=_generator())
    labels = torch.arange(12) % 3
    data = [{"pixel_values": p, "labels": y} for p, y in zip(pixels.split(6), labels.split(6), strict=True)]
    return Objective(ViTForImageClassification(config).eval(), cross_entropy(), data)


def lora() -> Objective:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    wrapped = get_peft_model(
        gpt2_model(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    )
    with torch.no_grad():  # B is zero at the start, where the gradient in A vanishes
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    return Objective(wrapped.eval(), cross_entropy(), _texts(), split=causal_lm)


def bf16() -> Objective:
    model = gpt2_model().to(torch.bfloat16)
    return Objective(model, cross_entropy(), _texts(), split=causal_lm, dtype=torch.float32)


class Recurrent(nn.Module):
    """An LSTM over packed sequences with a padding row."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8, padding_idx=0)
        self.rnn = nn.LSTM(8, 10, batch_first=True)
        self.head = nn.Linear(10, 3)

    def forward(self, ids: Tensor) -> Tensor:
        lengths = (ids != 0).sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][0][-1])


def lstm() -> Objective:
    torch.manual_seed(0)
    ids = _ids(12, 7)
    ids[2, 4:], ids[7, 5:] = 0, 0
    data = [(x, y) for x, y in zip(ids.split(6), (torch.arange(12) % 3).split(6), strict=True)]
    return Objective(Recurrent(), cross_entropy(), data)


class Residual(nn.Module):
    """u'' + pi^2 sin(pi x) of a network u, as physics-informed networks compute it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        (du,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
        return ddu + math.pi**2 * torch.sin(math.pi * x)


def pinn() -> Objective:
    torch.manual_seed(0)
    X = torch.linspace(0, 1, 24)[:, None]
    return Objective(Residual(), nn.MSELoss(), [(x, torch.zeros_like(x)) for x in X.split(12)])


class DeepONet(nn.Module):
    """An operator network: a branch for the function's samples, a trunk for the place."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 8))
        self.trunk = nn.Sequential(nn.Linear(1, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, functions: Tensor, places: Tensor) -> Tensor:
        return torch.einsum("bk,pk->bp", self.branch(functions), self.trunk(places[0]))


def deeponet() -> Objective:
    torch.manual_seed(0)
    places = torch.linspace(0, 1, 5)[:, None]
    functions = torch.randn(12, 6, generator=_generator())
    targets = functions.cumsum(1)[:, :5] / 6
    data = [
        ({"functions": f, "places": places.expand(len(f), -1, -1)}, t)
        for f, t in zip(functions.split(6), targets.split(6), strict=True)
    ]
    return Objective(DeepONet(), squared_error(), data)


class Autoencoder(nn.Module):
    """A variational autoencoder that draws in its forward pass and returns three tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 6))
        self.decoder = nn.Sequential(nn.Linear(3, 10), nn.Tanh(), nn.Linear(10, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


def evidence(outputs: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
    """The negative evidence lower bound of every example."""
    recon, mean, log_variance = outputs
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return (recon - x).square().sum(1) + divergence


def vae() -> Objective:
    torch.manual_seed(0)
    X = torch.randn(12, 8, generator=_generator())
    data = [(x, x) for x in X.split(6)]
    return Objective(Autoencoder(), custom(evidence, count=len), data, dropout_seed=0)


class Denoiser(nn.Module):
    """The error of a diffusion model's noise prediction, time and noise drawn in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        t, noise = torch.rand(len(x), 1), torch.randn_like(x)
        mixed = (1 - t).sqrt() * x + t.sqrt() * noise
        return self.net(torch.cat([mixed, t], 1)) - noise


def denoiser() -> Objective:
    torch.manual_seed(0)
    X = torch.randn(24, 4, generator=_generator())
    return Objective(Denoiser(), squared_error(), [(x, torch.zeros_like(x)) for x in X.split(12)], dropout_seed=0)


class TwoViews(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 5))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([F.normalize(self.encoder(v), dim=1) for v in (a, b)], 1)


def contrast(outputs: Tensor, _targets: Tensor) -> Tensor:
    """InfoNCE: the loss of an example reads every other one of its batch."""
    a, b = outputs.chunk(2, 1)
    return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)), reduction="none")


def infonce() -> Objective:
    torch.manual_seed(0)
    X = torch.randn(16, 6, generator=_generator())
    noise = torch.randn(16, 6, generator=_generator(1))
    data = [
        ({"a": a, "b": b}, torch.zeros(len(a))) for a, b in zip(X.split(8), (X + 0.1 * noise).split(8), strict=True)
    ]
    return Objective(TwoViews(), custom(contrast, count=len), data)


class Messages(nn.Module):
    """A graph network: each batch is a set of graphs, whose nodes exchange messages along edges."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 4))
        self.nodes = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, pairs: Tensor) -> Tensor:
        graphs, nodes, width = x.shape
        source, target = pairs[..., 0], pairs[..., 1]
        first = x.gather(1, source[..., None].expand(-1, -1, width))
        second = x.gather(1, target[..., None].expand(-1, -1, width))
        messages = self.edges(torch.cat([first, second], 2))
        sums = torch.zeros(graphs, nodes, width, dtype=x.dtype).scatter_add(
            1, target[..., None].expand(-1, -1, width), messages
        )
        return self.head((x + self.nodes(torch.cat([x, sums], 2))).mean(1))


def graph() -> Objective:
    torch.manual_seed(0)
    X = torch.randn(12, 5, 4, generator=_generator())
    pairs = torch.randint(0, 5, (12, 9, 2), generator=_generator(1))
    y = torch.arange(12) % 3
    data = [({"x": x, "pairs": p}, t) for x, p, t in zip(X.split(6), pairs.split(6), y.split(6), strict=True)]
    return Objective(Messages(), cross_entropy(), data)


KINDS: dict[str, Callable[[], Objective]] = {
    "T5": t5,
    "LSTM": lstm,
    "GPT-2": gpt2,
    "Llama": llama,
    "ViT": vit,
    "LoRA": lora,
    "PINN": pinn,
    "DeepONet": deeponet,
    "VAE": vae,
    "denoiser": denoiser,
    "InfoNCE": infonce,
    "bf16": bf16,
    "graph": graph,
}
