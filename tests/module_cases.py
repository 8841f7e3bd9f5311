"""Small objectives around the modules that people use, for the same tests as those of `objective_cases`."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from frechet.objective import Objective
from frechet.objective.criteria import custom, squared_error
from frechet.space import generator
from objective_cases import Case, on, plain_attention, ragged
from objective_models import randn, seeded

CAUSAL = torch.ones(3, 3, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[False, False, True], [False, False, False], [False, True, True]])
SEED = 3  # of dropout masks


class Around(nn.Module):
    """f(modules, inputs...)."""

    def __init__(self, f: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.f, self.inner = f, nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.f(self.inner, *inputs)


def around(f: Callable[..., Tensor], *makers: Callable[[], nn.Module]) -> nn.Module:
    return seeded(lambda: Around(f, *(make() for make in makers)))


def fitted(name: str, model: nn.Module, *inputs: Tensor, outputs: Any = None, sizes=(2, 1), **keywords: Any) -> Case:
    """Squared error to random targets; `outputs` where torch's own call of the model is no reference."""
    outputs = outputs or on(model, *inputs)
    with torch.no_grad():
        Y = randn(*plain_attention(outputs)(dict(model.named_parameters())).shape, seed=9)
    data = [(b[:-1], b[-1]) for b in ragged(*inputs, Y, sizes=sizes)]
    return Case(
        name, Objective(model, squared_error(), data, **keywords), outputs, lambda f: ((f - Y) ** 2).sum(), Y.numel()
    )


def by_batch(model: nn.Module, X: Tensor, sizes=(2, 1), seed: int | None = None) -> Callable[..., Tensor]:
    """The outputs batch by batch, with copies of the buffers, and torch's draws of each batch from `seed`."""
    kept = {name: b.clone() for name, b in model.named_buffers()}

    def outputs(p):
        parts = []
        with torch.random.fork_rng(devices=[]):
            for i, x in enumerate(X.split(list(sizes))):
                if seed is not None:
                    torch.manual_seed(generator(seed, i).initial_seed() % 2**32)
                buffers = {name: b.clone() for name, b in kept.items()}
                parts.append(functional_call(model, {**p, **buffers}, (x,)))
        return torch.cat(parts)

    return outputs


def linear(m: int, n: int) -> Callable[[], nn.Module]:
    return functools.partial(nn.Linear, m, n)


# --- attention --------------------------------------------------------------------------------------------------------


def attention_with_masks() -> Case:
    def f(m, x, padded):
        return m[0](x, x, x, attn_mask=CAUSAL.to(x), key_padding_mask=padded.double())[0]

    model = around(f, lambda: nn.MultiheadAttention(2, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True))
    return fitted("attention with masks", model, randn(3, 3, 2), PADDED)


def frozen_encoder_layer() -> Case:
    """In evaluation mode with frozen parameters torch takes its fast path, without any derivative."""

    def make():
        return nn.TransformerEncoderLayer(2, 1, 2, norm_first=True, batch_first=True)

    model = around(lambda m, x: m[1](m[0](x)), linear(2, 2), make)
    model.inner[1].requires_grad_(False)
    return fitted("frozen encoder layer", model, randn(3, 3, 2))


def padded_encoder() -> Case:
    def make():
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(2, 2, 2, activation="gelu", batch_first=True), 1)

    model = around(lambda m, x, p: m[0](x, src_key_padding_mask=p), make)
    return fitted("padded encoder", model, randn(3, 3, 2), PADDED)


def decoder_layer() -> Case:
    def f(m, x):
        return m[0](x, x.flip(1), tgt_mask=CAUSAL.to(x.device), tgt_is_causal=True)

    model = around(f, lambda: nn.TransformerDecoderLayer(2, 1, 1, bias=False, activation="gelu", batch_first=True))
    return fitted("decoder layer", model, randn(3, 3, 2))


def functional_attention() -> Case:
    """A boolean and a float mask, a scale, and fewer key heads than query heads."""

    def f(m, x):
        q = m[0](x).unflatten(-1, (2, 2)).transpose(1, 2)
        k, v = m[1](x).unflatten(-1, (2, 1, 2)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=~CAUSAL.to(x.device), enable_gqa=True)
        h = h + F.scaled_dot_product_attention(q, h, h, attn_mask=CAUSAL.to(x), scale=0.7)
        return h.transpose(1, 2).flatten(2)

    return fitted("functional attention", around(f, linear(2, 4), linear(2, 4)), randn(3, 3, 2))


# --- normalization ----------------------------------------------------------------------------------------------------


def normalized(name: str, norm: Callable[[], nn.Module], *shape: int) -> Case:
    model = around(lambda m, x: m[1](m[0](x)).sin(), linear(shape[-1], shape[-1]), norm)
    return fitted(name, model, randn(3, *shape))


def layer_norm_over_two_axes() -> Case:
    return normalized("layer norm, two axes", lambda: nn.LayerNorm((2, 3)), 2, 3)


def rms_norm() -> Case:
    return normalized("RMS norm", lambda: nn.RMSNorm(3), 3)


def instance_norm() -> Case:
    return normalized("instance norm", lambda: nn.InstanceNorm1d(2, affine=True), 2, 3)


def instance_norm_with_running_statistics() -> Case:
    return normalized("instance norm, running", lambda: nn.InstanceNorm1d(2, track_running_stats=True), 2, 3)


def training(norm: Callable[[], nn.Module], first: Callable[[], nn.Module], *shape: int, train: bool = True) -> Case:
    model = around(lambda m, x: m[1](m[0](x)).sin(), first, norm).train(train)
    X = randn(5, *shape)
    return fitted(norm().__class__.__name__, model, X, outputs=by_batch(model, X, (3, 2)), sizes=(3, 2))


def batch_norm_in_training() -> Case:
    return training(lambda: nn.BatchNorm1d(2), linear(2, 2), 2)


def batch_norm_of_images_in_training() -> Case:
    return training(lambda: nn.BatchNorm2d(2, momentum=None), lambda: nn.Conv2d(1, 2, 2), 1, 3, 3)


def batch_norm_of_volumes_in_training() -> Case:
    return training(lambda: nn.BatchNorm3d(2, affine=False), lambda: nn.Conv3d(1, 2, 2), 1, 2, 3, 2)


def batch_norm_without_running_statistics() -> Case:
    return training(lambda: nn.BatchNorm1d(2, track_running_stats=False), linear(2, 2), 2, train=False)


def instance_norm_in_training() -> Case:
    return training(lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True), linear(3, 3), 2, 3)


# --- reparametrized layers --------------------------------------------------------------------------------------------


def old_weight_norm() -> Case:
    X = randn(3, 2)

    def by_hand(p):  # torch's kernel has a wrong second derivative
        g, v = p["inner.0.weight_g"], p["inner.0.weight_v"]
        h = F.linear(X, v * g / (v * v).sum(1, keepdim=True).sqrt(), p["inner.0.bias"])
        return F.linear(h.tanh(), p["inner.1.weight"])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = around(
            lambda m, x: m[1](m[0](x).tanh()),
            lambda: nn.utils.weight_norm(nn.Linear(2, 2)),
            lambda: nn.Linear(2, 1, bias=False),
        )
    return fitted("old weight norm", model, X, outputs=by_hand)


def spectral_norm() -> Case:
    model = around(lambda m, x: m[0](x).tanh(), lambda: parametrizations.spectral_norm(nn.Linear(2, 3)))
    return fitted("spectral norm", model, randn(3, 2))


def old_spectral_norm() -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = around(lambda m, x: m[0](x).tanh(), lambda: nn.utils.spectral_norm(nn.Linear(2, 3)))
    return fitted("old spectral norm", model, randn(3, 2))


def orthogonal() -> Case:
    # by its default, the matrix exponential, products of vectors 1e6 times as long are the same to 9 digits only
    model = around(
        lambda m, x: m[0](x).tanh(), lambda: parametrizations.orthogonal(nn.Linear(3, 3), orthogonal_map="cayley")
    )
    return fitted("orthogonal", model, randn(3, 3))


# --- recurrence and embeddings ----------------------------------------------------------------------------------------


def packed_lstm() -> Case:
    def f(m, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(m[0](packed)[0], batch_first=True, total_length=3)[0]

    model = around(f, lambda: nn.LSTM(2, 2, bidirectional=True, proj_size=1, batch_first=True))
    return fitted("packed LSTM", model, randn(3, 3, 2), torch.tensor([3, 1, 2]))


def elman_network() -> Case:
    return fitted("RNN", around(lambda m, x: m[0](x)[0], lambda: nn.RNN(2, 3, batch_first=True)), randn(3, 3, 2))


def cells() -> Case:
    def f(m, x):
        return m[0](m[1](x)[0])

    return fitted("cells", around(f, lambda: nn.GRUCell(2, 2), lambda: nn.LSTMCell(2, 2)), randn(3, 2))


def padded_embedding() -> Case:
    model = around(lambda m, t: m[1](m[0](t).tanh()), lambda: nn.Embedding(4, 2, padding_idx=0), linear(2, 2))
    return fitted("padded embedding", model, torch.tensor([[0, 1], [2, 2], [3, 0]]))


BAGS = torch.tensor([[0, 1, 3], [2, 2, 1], [3, 3, 3]])


def bag(mode: str) -> Case:
    def rows(p):
        table, pieces = p["inner.0.weight"], []
        for t in BAGS:
            kept = table[t[t != 3]]  # row 3 is the padding, and the last bag is empty
            number = max(len(kept), 1) if mode == "mean" else 1
            pieces.append(kept.amax(0) if mode == "max" and len(kept) else kept.sum(0) / number)
        return F.linear(torch.stack(pieces), p["inner.1.weight"], p["inner.1.bias"]).tanh()

    model = around(
        lambda m, t: m[1](m[0](t)).tanh(), lambda: nn.EmbeddingBag(4, 2, mode=mode, padding_idx=3), linear(2, 2)
    )
    return fitted(f"embedding bag, {mode}", model, BAGS, outputs=rows)


def summed_bags() -> Case:
    return bag("sum")


def mean_bags() -> Case:
    return bag("mean")


def largest_of_bags() -> Case:
    return bag("max")


# --- images -----------------------------------------------------------------------------------------------------------


def upsampling_net() -> Case:
    def f(m, x):
        h = F.silu(m[0](x), inplace=True)
        return F.pixel_shuffle(F.interpolate(m[1](h), scale_factor=2, mode="bilinear"), 2).tanh()

    model = around(f, lambda: nn.ConvTranspose2d(1, 2, 2, stride=2), lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2))
    return fitted("upsampling net", model, randn(3, 1, 2, 2))


def pooling_net() -> Case:
    def f(m, x):
        h = m[0](x)
        pools = (F.avg_pool2d(h, 2), F.max_pool2d(h, 2), F.adaptive_avg_pool2d(h, 2), F.adaptive_max_pool2d(h, 2))
        return torch.cat([F.prelu(q, m[1].weight) for q in (*pools, F.lp_pool2d(h, 2, 2))], 1).sin()

    model = around(f, lambda: nn.Conv2d(1, 2, 2, padding_mode="circular", padding=1), lambda: nn.PReLU(2))
    return fitted("pooling net", model, randn(3, 1, 3, 3))


def gelu_and_silu() -> Case:
    def f(m, x):
        return F.gelu(m[0](x), approximate="tanh") * m[2](F.silu(x + m[1](m[0](x))))

    make = (linear(2, 2), lambda: nn.GELU(approximate="tanh"), nn.SiLU)
    return fitted("GELU and SiLU", around(f, *make), 3 * randn(3, 2))


def gated_by_hard_sigmoid() -> Case:
    X = randn(3, 2)

    def by_hand(p):
        h = F.linear(X, p["inner.0.weight"], p["inner.0.bias"])
        return h * ((h + 3) / 6).clamp(0, 1)

    model = around(lambda m, x: (h := m[0](x)) * m[1](h), linear(2, 3), nn.Hardsigmoid)
    return fitted("hard sigmoid", model, X, outputs=by_hand)


# --- what a model does, not what it is --------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.first, self.reentrant = nn.Linear(2, 3), reentrant
        self.block, self.head = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), nn.Linear(3, 2)
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        h = checkpoint(self.block, h, use_reentrant=self.reentrant) if self.on else self.block(h)
        return self.head(h)


def checkpointed() -> Case:
    model, plain = seeded(Checkpointed), seeded(Checkpointed)
    plain.on = False
    X = randn(3, 2)
    return fitted("checkpointed", model, X, outputs=on(plain, X))


def functional_losses() -> Case:
    model, X, Y = around(lambda m, x: m[0](x).tanh(), linear(2, 2)), randn(3, 2), randn(3, 2, seed=9)

    def terms(f, y):
        return F.mse_loss(f, y, reduction="none").sum(1) + F.huber_loss(f, y, reduction="none", delta=0.5).sum(1)

    def total(f):
        r = f - Y
        return (r**2 + torch.where(r.abs() < 0.5, r**2 / 2, 0.5 * (r.abs() - 0.25))).sum()

    objective = Objective(model, custom(terms, convex=True), ragged(X, Y, sizes=(2, 1)))
    return Case("functional losses", objective, on(model, X), total, 3)


def dropped(name: str, f: Callable[..., Tensor], *makers: Callable[[], nn.Module], shape=(2,)) -> Case:
    model, X = around(f, *makers).train(), randn(3, *shape)
    return fitted(name, model, X, outputs=by_batch(model, X, seed=SEED), dropout_seed=SEED)


def seeded_dropout() -> Case:
    def f(m, x):
        return m[3](F.dropout(m[2](m[1](m[0](x)).tanh()), 0.3))

    return dropped("dropout", f, linear(2, 3), lambda: nn.Dropout(0.4), lambda: nn.AlphaDropout(0.2), linear(3, 2))


def seeded_dropout_of_attention() -> Case:
    def make():
        return nn.TransformerEncoderLayer(2, 1, 2, dropout=0.3, activation="gelu", batch_first=True)

    return dropped("dropout of attention", lambda m, x: m[0](x), make, shape=(3, 2))


def seeded_dropout_of_an_lstm() -> Case:
    def make():
        return nn.LSTM(2, 2, num_layers=2, dropout=0.4, batch_first=True)

    return dropped("dropout of an LSTM", lambda m, x: m[0](x)[0], make, shape=(3, 2))


def seeded_slopes() -> Case:
    return dropped("RReLU", lambda m, x: m[1](m[0](x)), linear(2, 4), nn.RReLU)


MODULES = (
    *(attention_with_masks, frozen_encoder_layer, padded_encoder, decoder_layer, functional_attention),
    *(layer_norm_over_two_axes, rms_norm, instance_norm, instance_norm_with_running_statistics),
    *(batch_norm_in_training, batch_norm_of_images_in_training, batch_norm_of_volumes_in_training),
    *(batch_norm_without_running_statistics, instance_norm_in_training),
    *(old_weight_norm, spectral_norm, old_spectral_norm, orthogonal, packed_lstm, elman_network, cells),
    *(padded_embedding, summed_bags, mean_bags, largest_of_bags, upsampling_net, pooling_net, gated_by_hard_sigmoid),
    gelu_and_silu,
    *(checkpointed, functional_losses, seeded_dropout, seeded_dropout_of_attention, seeded_dropout_of_an_lstm),
    *(seeded_slopes,),
)
