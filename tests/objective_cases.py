"""Small objectives in float64, each with its outputs and its loss on all data at once, written without the library."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from frechet.objective import Objective, Penalty, causal_lm, l2
from frechet.objective.criteria import (
    binary_cross_entropy,
    cross_entropy,
    custom,
    gaussian,
    huber,
    poisson,
    squared_error,
)
from frechet.space import Space
from objective_models import (
    F64,
    Attention,
    CausalLM,
    Multihead,
    Recurrent,
    Residual,
    Tied,
    Unused,
    labels,
    randn,
    seeded,
)


@dataclass(frozen=True, eq=False)
class Case:
    """loss(params) = total(outputs(params)) / count + penalty(params), on all data at once."""

    name: str
    objective: Objective
    outputs: Callable[[Mapping[str, Tensor]], Tensor]
    total: Callable[[Tensor], Tensor]
    count: float
    penalty: Callable[[Mapping[str, Tensor]], Tensor] | None = None

    @property
    def space(self) -> Space:
        return self.objective.space

    def loss(self, x: Tensor) -> Tensor:
        params = self.space.unflatten(x)
        value = self.total(self.outputs(params)) / self.count
        return value if self.penalty is None else value + self.penalty(params)


# --- dense references, reverse over reverse only: forward over reverse is wrong for affine LayerNorm in torch 2.13 ---


def plain_attention(f):
    @functools.wraps(f)
    def wrapped(*args):
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                return f(*args)
        finally:
            torch.backends.mha.set_fastpath_enabled(before)

    return wrapped


@plain_attention
def dense_hessian(case: Case, x: Tensor) -> Tensor:
    return torch.autograd.functional.hessian(case.loss, x)


@plain_attention
def dense_jacobian(case: Case, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda x: case.outputs(case.space.unflatten(x)).flatten(), x)


@plain_attention
def dense_outputs(case: Case, x: Tensor) -> Tensor:
    with torch.no_grad():
        return case.outputs(case.space.unflatten(x))


@functools.cache
def prepared(make: Callable[[], Case]) -> tuple[Case, Tensor]:
    """A case and its point, made once; tests that change the model call `make()`."""
    case = make()
    return case, case.objective.point


@functools.cache
def hessian_of(make: Callable[[], Case]) -> Tensor:
    return dense_hessian(*prepared(make))


@functools.cache
def jacobian_of(make: Callable[[], Case]) -> Tensor:
    return dense_jacobian(*prepared(make))


@functools.cache
def gauss_newton_of(make: Callable[[], Case]) -> Tensor:
    """Without penalties."""
    case, x = prepared(make)
    y, J = dense_outputs(case, x), jacobian_of(make)
    H = torch.autograd.functional.hessian(lambda f: case.total(f.view(y.shape)), y.flatten())
    return J.T @ H @ J / case.count


# --- pieces -----------------------------------------------------------------------------------------------------------


def ragged(*tensors: Tensor, sizes: tuple[int, ...] = (2, 2, 1)) -> list[tuple[Tensor, ...]]:
    return list(zip(*(t.split(list(sizes)) for t in tensors), strict=True))


def on(model: nn.Module, *inputs: Any, **keywords: Any) -> Callable[[Mapping[str, Tensor]], Tensor]:
    def outputs(params: Mapping[str, Tensor]) -> Tensor:
        y = functional_call(model, dict(params), inputs, keywords)
        return y if isinstance(y, Tensor) else y.logits

    return outputs


def mlp(activation: nn.Module, out: int = 2) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, out)))


def regression(name: str, model: nn.Module, X: Tensor, out: int, **keywords: Any) -> Case:
    Y = randn(5, out, seed=9)
    objective = Objective(model, nn.MSELoss(), ragged(X, Y), **keywords)
    return Case(name, objective, on(model, X), lambda f: ((f - Y) ** 2).sum(), Y.numel())


# --- the cases --------------------------------------------------------------------------------------------------------


def linear_regression() -> Case:
    return regression("linear regression", seeded(lambda: nn.Linear(3, 2)), randn(5, 3), 2)


def tanh_mlp() -> Case:
    return regression("tanh MLP", mlp(nn.Tanh()), randn(5, 2), 2)


def relu_mlp_with_class_weights() -> Case:
    model, X, y, w = mlp(nn.ReLU(), 3), randn(5, 2), labels(3, 5), torch.tensor([0.5, 2.0, 1.0], dtype=F64)
    objective = Objective(model, nn.CrossEntropyLoss(weight=w), ragged(X, y))
    total = functools.partial(F.cross_entropy, target=y, weight=w, reduction="sum")
    return Case("ReLU MLP, class weights", objective, on(model, X), total, float(w[y].sum()))


def conv_net_with_batch_norm() -> Case:
    def make() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3))
        )

    model = seeded(make)
    model[1].running_mean += torch.tensor([0.3, -0.2])
    model[1].running_var *= torch.tensor([2.0, 0.5])
    X, y = randn(5, 1, 4, 4), labels(3, 5)
    objective = Objective(model, F.cross_entropy, ragged(X, y))
    return Case("conv net", objective, on(model, X), lambda f: F.cross_entropy(f, y, reduction="sum"), 5)


def residual_net_with_group_norm() -> Case:
    model, X, y = seeded(Residual), randn(5, 2, 2, 2), labels(3, 5)
    objective = Objective(model, nn.CrossEntropyLoss(label_smoothing=0.1), ragged(X, y))
    total = functools.partial(F.cross_entropy, target=y, label_smoothing=0.1, reduction="sum")
    return Case("residual net, smoothing", objective, on(model, X), total, 5)


def causal_attention_with_affine_layer_norm() -> Case:
    model, tokens, y = seeded(Attention), labels(5, 4, 3), labels(5, 4, 3, seed=1)
    y[1, 2], y[3, 1:] = -100, -100
    objective = Objective(model, cross_entropy(), ragged(tokens, y, sizes=(3, 1)))

    def total(f):
        return F.cross_entropy(f.flatten(0, 1), y.flatten(), reduction="sum")

    return Case("causal attention, ignored tokens", objective, on(model, tokens), total, 9)


def multihead_attention() -> Case:
    model, X, Y = seeded(Multihead), randn(3, 3, 4), randn(3, 3, 4, seed=1)
    objective = Objective(model, squared_error(), ragged(X, Y, sizes=(2, 1)))
    return Case("multihead attention", objective, on(model, X), lambda f: ((f - Y) ** 2).sum(), 36)


def encoder_layer() -> Case:
    def make():
        return nn.TransformerEncoderLayer(2, 1, 3, activation="gelu", batch_first=True)

    model, X, Y = seeded(make), randn(3, 3, 2), randn(3, 3, 2, seed=1)
    objective = Objective(model, huber(0.8), ragged(X, Y, sizes=(2, 1)))
    total = functools.partial(F.huber_loss, target=Y, delta=0.8, reduction="sum")
    return Case("encoder layer, huber", objective, on(model, X), total, 18)


def lstm_with_padding_index() -> Case:
    model, tokens, y = seeded(lambda: Recurrent(nn.LSTM, padding_idx=0)), labels(4, 3, 3), labels(4, 3, 3, seed=2)
    objective = Objective(model, cross_entropy(), ragged(tokens, y, sizes=(2, 1)))

    def total(f):
        return F.cross_entropy(f.flatten(0, 1), y.flatten(), reduction="sum")

    return Case("LSTM, padding index", objective, on(model, tokens), total, 9)


def gru_with_torch_class_axis() -> Case:
    class Transposed(Recurrent):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens).transpose(1, 2)

    model, tokens, y = seeded(lambda: Transposed(nn.GRU)), labels(4, 3, 3), labels(4, 3, 3, seed=2)
    y[0, 1] = 2
    objective = Objective(model, nn.CrossEntropyLoss(ignore_index=2), ragged(tokens, y, sizes=(2, 1)))
    total = functools.partial(F.cross_entropy, target=y, ignore_index=2, reduction="sum")
    return Case("GRU, class axis 1", objective, on(model, tokens), total, int((y != 2).sum()))


def tied_weights() -> Case:
    model, tokens, y = seeded(Tied), labels(4, 5), labels(4, 5, seed=1)
    objective = Objective(model, cross_entropy(), ragged(tokens, y))
    return Case("tied weights", objective, on(model, tokens), lambda f: F.cross_entropy(f, y, reduction="sum"), 5)


def weight_norm() -> Case:
    def make():
        return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Tanh(), nn.Linear(2, 1))

    model, X, Y = seeded(make), randn(5, 2), randn(5, 1)

    def outputs(p: Mapping[str, Tensor]) -> Tensor:  # by the formula: torch's kernel has a wrong second derivative
        g, v = p["0.parametrizations.weight.original0"], p["0.parametrizations.weight.original1"]
        h = torch.tanh(X @ (v * g / (v * v).sum(1, keepdim=True).sqrt()).T + p["0.bias"])
        return h @ p["2.weight"].T + p["2.bias"]

    objective = Objective(model, F.mse_loss, ragged(X, Y))
    return Case("weight norm", objective, outputs, lambda f: ((f - Y) ** 2).sum(), 5)


def one_parameter() -> Case:
    model = seeded(lambda: nn.Sequential(nn.Linear(1, 1, bias=False), nn.Softplus()))
    return regression("one parameter", model, randn(5, 1), 1)


def unused_parameter() -> Case:
    return regression("unused parameter", seeded(Unused), randn(5, 2), 1)


def causal_language_model() -> Case:
    model, tokens = seeded(CausalLM), labels(5, 4, 4)
    mask = torch.ones_like(tokens)
    mask[1, 2:], mask[3, 3:] = 0, 0
    y = tokens.masked_fill(mask == 0, -100)
    keys = ("input_ids", "attention_mask", "labels")
    data = [dict(zip(keys, b, strict=True)) for b in ragged(tokens, mask, y, sizes=(3, 1))]
    shifted = torch.cat([y[:, 1:], torch.full((4, 1), -100)], 1)
    objective = Objective(model, cross_entropy(), data, split=causal_lm)

    def total(f):
        return F.cross_entropy(f.flatten(0, 1), shifted.flatten(), reduction="sum")

    outputs = on(model, input_ids=tokens, attention_mask=mask)
    return Case("causal language model", objective, outputs, total, int((shifted != -100).sum()))


def soft_targets() -> Case:
    model, X, q = mlp(nn.Tanh(), 3), randn(5, 2), randn(5, 3, seed=1).softmax(1)
    objective = Objective(model, nn.CrossEntropyLoss(), ragged(X, q))
    return Case("soft targets", objective, on(model, X), lambda f: -(q * f.log_softmax(1)).sum(), 5)


def binary_with_positive_weight() -> Case:
    model, X, y, w = mlp(nn.Tanh()), randn(5, 2), labels(2, 5, 2).double(), torch.tensor([2.0, 0.5], dtype=F64)
    objective = Objective(model, nn.BCEWithLogitsLoss(pos_weight=w), ragged(X, y))

    def total(f):
        return -(w * y * F.logsigmoid(f) + (1 - y) * F.logsigmoid(-f)).sum()

    return Case("binary, positive weight", objective, on(model, X), total, 10)


def binary() -> Case:
    model, X, y = mlp(nn.Tanh(), 1), randn(5, 2), labels(2, 5, 1).double()
    objective = Objective(model, binary_cross_entropy(), ragged(X, y))
    return Case("binary", objective, on(model, X), lambda f: (F.softplus(f) - y * f).sum(), 5)


def poisson_counts() -> Case:
    model, X, y = mlp(nn.Tanh(), 1), randn(5, 2), labels(4, 5, 1).double()
    objective = Objective(model, poisson(), ragged(X, y))
    return Case("poisson", objective, on(model, X), lambda f: (f.exp() - y * f).sum(), 5)


def heteroscedastic_gaussian() -> Case:
    model, X, y = mlp(nn.Tanh(), 2), randn(5, 2), randn(5, 1, seed=1)
    objective = Objective(model, gaussian(), ragged(X, y))

    def total(f):
        return ((f[:, 1:] + (y - f[:, :1]) ** 2 / f[:, 1:].exp()) / 2).sum()

    return Case("gaussian", objective, on(model, X), total, 5)


def custom_loss() -> Case:
    model, X, y = mlp(nn.Tanh(), 2), randn(5, 2), randn(5, 2, seed=1)

    def terms(f, y):
        return (f - y).pow(4).sum(1) / 4 + f.prod(1)

    objective = Objective(model, custom(terms), ragged(X, y))
    return Case("custom", objective, on(model, X), lambda f: terms(f, y).sum(), 5)


def penalized_sum() -> Case:
    """1.0 times a squared error plus 0.5 times a cross entropy on other data, with two penalties."""
    model, X, Z, Y, y = mlp(nn.Tanh()), randn(5, 2), randn(3, 2, seed=4), randn(5, 2, seed=9), labels(2, 3)
    cubes = Penalty(lambda p: 0.1 * sum((b**3).sum() for b in p.values()))
    objective = Objective(model, squared_error(), ragged(X, Y), penalty=l2(0.3)) + 0.5 * Objective(
        model, nn.CrossEntropyLoss(), ragged(Z, y, sizes=(2, 1)), penalty=cubes
    )

    def outputs(p):
        return torch.cat([on(model, X)(p), on(model, Z)(p)])

    def total(f):
        return ((f[:5] - Y) ** 2).mean() + 0.5 * F.cross_entropy(f[5:], y)

    def penalty(p):
        return sum(0.15 * (b**2).sum() + 0.05 * (b**3).sum() for b in p.values())

    return Case("penalized sum", objective, outputs, total, 1, penalty)


def frozen_parameters() -> Case:
    model = mlp(nn.Tanh())
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return regression("frozen parameters", model, randn(5, 2), 2)


MAKERS = (
    *(linear_regression, tanh_mlp, relu_mlp_with_class_weights, conv_net_with_batch_norm, residual_net_with_group_norm),
    *(causal_attention_with_affine_layer_norm, multihead_attention, encoder_layer, lstm_with_padding_index),
    *(gru_with_torch_class_axis, tied_weights, weight_norm, one_parameter, unused_parameter, causal_language_model),
    *(soft_targets, binary_with_positive_weight, binary, poisson_counts, heteroscedastic_gaussian, custom_loss),
    *(penalized_sum, frozen_parameters),
)
