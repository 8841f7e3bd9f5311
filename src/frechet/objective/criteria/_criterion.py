"""What a model's outputs are measured by: a sum of terms per example, and its derivatives in the outputs.

An objective divides the sum of all terms by the number of all terms, so a criterion states both: `terms` are summed per
example, `count` is the number of terms (tokens, elements; ignored ones not counted; for class weights their sum, as
torch divides). The Hessian in the outputs is closed form, because Gauss-Newton products spend a pass over the outputs
on it; `fisher_product` is the covariance of the likelihood's score, `sample` draws labels from the likelihood.

**Source.** Martens, "New insights and perspectives on the natural gradient method", JMLR 21 (2020), sections 6-9.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import scipy
import torch
import torch.nn.functional as F
from torch import Tensor


class Criterion(ABC):
    """A loss that is a sum of terms. `convex` says whether each term is convex in the outputs."""

    convex: bool
    additive = True  # each term sees one example; `check` and whatever asks about single examples test it

    @abstractmethod
    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor: ...  # (examples,): sums over each example

    @abstractmethod
    def count(self, targets: Tensor) -> Tensor: ...  # number of terms, a scalar

    @abstractmethod
    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor: ...

    @abstractmethod
    def fisher_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor: ...

    @abstractmethod
    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor: ...

    @abstractmethod
    def project(self, score: Tensor, u: Tensor) -> Tensor: ...  # per term t: score_t (score_t . u_t)

    @abstractmethod
    def require_likelihood(self) -> None: ...  # raises where there is none, so that there is no Fisher

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gradient of the sum of all terms in the outputs, differentiable in outputs that are."""
        further = outputs.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = outputs if further else outputs.detach().requires_grad_()
            total = self.terms(leaf, targets).sum()
            if not total.requires_grad:
                return torch.zeros_like(leaf)
            found = torch.autograd.grad(total, leaf, create_graph=further, allow_unused=True, materialize_grads=True)
            return found[0]

    def rows(self, shape: tuple[int, ...], targets: Tensor) -> Rows:
        """The same terms for outputs of `shape` seen as rows of their last axis, each row on its own."""
        raise ValueError(
            f"Objective: head= needs a criterion that is a sum over the rows of the outputs, got {type(self).__name__} "
            "whose terms may mix them; use cross_entropy, squared_error or another of frechet's, or leave head= out"
        )


@dataclass(frozen=True, eq=False)
class Rows:
    """A criterion for outputs ``(rows, width)`` of which each row is an example, and the targets of the rows."""

    criterion: Criterion
    targets: Tensor
    kept: Tensor | None  # which rows have a term that counts, as their numbers; None: all


def per_example(values: Tensor) -> Tensor:
    """The sum over each example (axis 0)."""
    return values if values.ndim == 1 else values.flatten(1).sum(1)


def uniform(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers in (0, 1), in float64 on the CPU: one stream, whatever the batches and the device."""
    return torch.rand(shape, generator=generator, dtype=torch.float64).clamp_(1e-12, 1 - 1e-12)


# --- elementwise losses -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Elementwise(Criterion):
    """One term loss(f, y) per element of the outputs; second(f, y) is its second derivative in f."""

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    second: Callable[[Tensor, Tensor], Tensor]
    convex: bool
    information: Callable[[Tensor], Tensor] | None  # Fisher information of f
    quantile: Callable[[Tensor, Tensor], Tensor] | None  # inverse distribution function of y at (f, uniform)

    def _targets(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not isinstance(targets, Tensor):
            raise TypeError(f"{self.name}: targets must be a tensor, got {type(targets).__name__}; use custom(...)")
        if outputs.shape != targets.shape:
            raise ValueError(
                f"{self.name}: targets must have the outputs' shape {tuple(outputs.shape)}, got "
                f"{tuple(targets.shape)}; reshape one of them (targets.view_as(outputs) or outputs.squeeze(-1))"
            )
        return targets.to(outputs.dtype)

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return per_example(self.loss(outputs, self._targets(outputs, targets)))

    def count(self, targets: Tensor) -> Tensor:
        return torch.tensor(targets.numel(), dtype=torch.float64)

    def rows(self, shape: tuple[int, ...], targets: Tensor) -> Rows:
        if tuple(targets.shape) != shape:
            raise ValueError(
                f"{self.name}: targets must have the outputs' shape {shape}, got {tuple(targets.shape)}; reshape them"
            )
        return Rows(self, targets.reshape(-1, shape[-1]), None)

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        return self.second(outputs, self._targets(outputs, targets)) * u

    def fisher_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        self.require_likelihood()
        assert self.information is not None
        return self.information(outputs) * u

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        self.require_likelihood()
        assert self.quantile is not None
        u = uniform(outputs.shape, generator)
        return self.quantile(outputs.detach().double().cpu(), u).to(outputs.device, outputs.dtype)

    def project(self, score: Tensor, u: Tensor) -> Tensor:
        return score * score * u

    def require_likelihood(self) -> None:
        if self.information is None or self.quantile is None:
            raise ValueError(
                f"fisher: {self.name} must be a likelihood, got a loss (or a weighting) without one; use gauss_newton"
            )


def squared_error() -> Criterion:
    """Return the criterion (f - y)^2 per element.

    Up to constants it is minus the log-likelihood of a normal distribution with variance 1/2.
    """
    return Elementwise(
        "squared_error",
        lambda f, y: (f - y) ** 2,  # torch's mse_loss breaks forward mode over its gradient
        lambda f, y: torch.full_like(f, 2.0),
        True,
        lambda f: torch.full_like(f, 2.0),
        lambda f, u: f + torch.special.ndtri(u) / math.sqrt(2),
    )


def binary_cross_entropy(*, pos_weight: Tensor | float | None = None) -> Criterion:
    """Return the criterion -y log s(f) - (1 - y) log(1 - s(f)) for each logit f, where s is the logistic function.

    Targets y lie in [0, 1].

    Args:
        pos_weight: multiplies the first part, as in `torch.nn.BCEWithLogitsLoss`. The count stays the number of
            elements.
    """
    weight = None if pos_weight is None else torch.as_tensor(pos_weight).detach().clone()
    if weight is not None and bool((weight < 0).any()):
        raise ValueError(f"binary_cross_entropy: pos_weight must be non-negative, got {weight.min().item()}")

    def second(f: Tensor, y: Tensor) -> Tensor:
        p = f.sigmoid()
        scale = 1.0 if weight is None else 1.0 + (weight.to(f.device, f.dtype) - 1.0) * y
        return scale * p * (1 - p)

    def loss(f: Tensor, y: Tensor) -> Tensor:
        w = None if weight is None else weight.to(f.device, f.dtype)
        return F.binary_cross_entropy_with_logits(f, y, reduction="none", pos_weight=w)

    likelihood = weight is None
    return Elementwise(
        "binary_cross_entropy",
        loss,
        second,
        True,
        (lambda f: f.sigmoid() * (1 - f.sigmoid())) if likelihood else None,
        (lambda f, u: (u > 1 - f.sigmoid()).double()) if likelihood else None,
    )


def poisson() -> Criterion:
    """Return the criterion exp(f) - y f per element, where f is the log rate.

    It is `torch.nn.PoissonNLLLoss(log_input=True, full=False)`.
    """
    return Elementwise(
        "poisson",
        lambda f, y: f.exp() - y * f,
        lambda f, y: f.exp(),
        True,
        lambda f: f.exp(),
        lambda f, u: torch.from_numpy(scipy.stats.poisson.ppf(u.numpy(), f.exp().numpy())),
    )


def huber(delta: float = 1.0) -> Criterion:
    """Return `torch.nn.HuberLoss` as a criterion.

    With d = f - y it is d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2).
    """
    if delta <= 0:
        raise ValueError(f"huber: delta must be positive, got {delta}")

    def loss(f: Tensor, y: Tensor) -> Tensor:
        d = f - y
        sign = d.detach().sign()  # with |d| its kink at 0, which is not used, would show in the graph
        return torch.where(sign * d <= delta, d * d / 2, delta * (sign * d - delta / 2))

    return Elementwise("huber", loss, lambda f, y: ((f - y).abs() <= delta).to(f.dtype), True, None, None)


# --- Gaussian with learnt variance ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gaussian(Criterion):
    """(log v + (y - m)^2 / v) / 2 with outputs (m, log v) side by side on the last axis."""

    convex = False

    def _parts(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = outputs.shape[-1] // 2
        m, log_v = outputs[..., :half], outputs[..., half:]
        if m.shape != log_v.shape or m.shape != targets.shape:
            raise ValueError(
                "gaussian: outputs must hold mean and log variance side by side on the last axis: expected last axis "
                f"{2 * targets.shape[-1] if targets.ndim else 2} for targets {tuple(targets.shape)}, got outputs "
                f"{tuple(outputs.shape)}"
            )
        return m, log_v, targets.to(outputs.dtype)

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        m, log_v, y = self._parts(outputs, targets)
        return per_example((log_v + (y - m) ** 2 * torch.exp(-log_v)) / 2)

    def count(self, targets: Tensor) -> Tensor:
        return torch.tensor(targets.numel(), dtype=torch.float64)

    def rows(self, shape: tuple[int, ...], targets: Tensor) -> Rows:
        if (*targets.shape[:-1], 2 * targets.shape[-1]) != shape:
            raise ValueError(
                f"gaussian: outputs must hold mean and log variance of the targets {tuple(targets.shape)} side by side "
                f"on the last axis, got outputs {shape}"
            )
        return Rows(self, targets.reshape(-1, targets.shape[-1]), None)

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        m, log_v, y = self._parts(outputs, targets)
        um, uv = u.chunk(2, -1)
        precision, d = torch.exp(-log_v), y - m
        cross = d * precision
        return torch.cat([precision * um + cross * uv, cross * um + d * d * precision / 2 * uv], -1)

    def fisher_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        _, log_v, _ = self._parts(outputs, targets)
        um, uv = u.chunk(2, -1)
        return torch.cat([torch.exp(-log_v) * um, uv / 2], -1)

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        m, log_v, _ = self._parts(outputs, targets)
        noise = torch.special.ndtri(uniform(m.shape, generator)).to(m.device, m.dtype)
        return m + torch.exp(log_v / 2) * noise

    def project(self, score: Tensor, u: Tensor) -> Tensor:
        sm, sv = score.chunk(2, -1)
        um, uv = u.chunk(2, -1)
        along = sm * um + sv * uv
        return torch.cat([sm * along, sv * along], -1)

    def require_likelihood(self) -> None:
        return


def gaussian() -> Criterion:
    """Return the criterion that is minus the normal log-likelihood, without its constant.

    Outputs are (mean, log variance) along the last axis. The criterion is not convex in the outputs, so its
    Gauss-Newton matrix is symmetric alone. Its Fisher is positive semidefinite.
    """
    return Gaussian()
