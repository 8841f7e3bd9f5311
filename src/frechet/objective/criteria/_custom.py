"""Any loss given by its terms, and criteria for what is no real tensor: structures and complex outputs.

What a model returns lies in one real tensor (`structure.Layout`), on which derivatives act. A custom criterion takes
from it what the model returned.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from frechet.objective._attributes import Left
from frechet.objective._kernels import refuse_once_differentiable
from frechet.objective._structure import Layout, examples_of, fresh, is_distribution
from frechet.objective.criteria._criterion import Criterion, Elementwise, per_example

_NO_LIKELIHOOD = "fisher: a custom criterion has no likelihood to draw labels from; use gauss_newton"


@dataclass(frozen=True, eq=False)
class Custom(Criterion):
    """Any loss given by its terms; derivatives by autograd.

    With a `layout` outputs are the real tensor that it describes, and the function takes what the model returned.
    `examples` is their number in the batch, where that is known, and `left` what the model left in its attributes.
    """

    function: Callable[[Any, Any], Tensor]
    counter: Callable[[Any], Tensor | float] | None
    convex: bool
    additive: bool = True
    layout: Layout | None = None
    examples: int | None = None
    left: Left = field(default_factory=Left)

    def terms(self, outputs: Tensor, targets: Any) -> Tensor:
        # a copy, since the function may write into what it gets
        taken = outputs.clone() if self.layout is None else self.layout.unpack(outputs)
        with self.left.placed():
            values = self.function(taken, fresh(targets))
        if not isinstance(values, Tensor):
            raise TypeError(f"custom: terms must return a tensor, got {type(values).__name__}")
        rows = outputs.shape[0] if self.layout is None else examples_of(None, targets) if targets is not None else None
        wrong = rows is not None and values.ndim > 0 and values.shape[0] != rows and self.counter is None
        if values.ndim == 0 and (self.additive or self.counter is None):
            raise ValueError(
                f"custom: terms must return one value per example, shape ({outputs.shape[0]},) or "
                f"({outputs.shape[0]}, ...), got {tuple(values.shape)}; use reduction='none', or for a loss of the "
                "whole batch custom(..., additive=False, count=lambda targets: 1)"
            )
        if wrong or (self.layout is None and self.additive and values.shape[0] != outputs.shape[0]):
            raise ValueError(
                f"custom: terms must return one value per example, shape ({rows},) or ({rows}, ...), got "
                f"{tuple(values.shape)}; use reduction='none', or for a loss of the whole batch custom(..., "
                "additive=False, count=lambda targets: 1)"
            )
        if values.ndim and self.counter is None and self.examples not in (None, values.shape[0]):
            raise ValueError(
                f"custom: terms must return one value per example, got {values.shape[0]} for a batch of "
                f"{self.examples} examples, by which the mean would be taken; say how many terms a batch has: "
                "custom(..., additive=False, count=lambda targets: 1) for one loss of the whole batch"
            )
        return per_example(values) if values.ndim else values[None]

    def count(self, targets: Any) -> Tensor:
        number = examples_of(None, targets) if self.counter is None else self.counter(targets)
        return torch.as_tensor(number, dtype=torch.float64)

    def hessian_product(self, outputs: Tensor, targets: Any, u: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = outputs if outputs.requires_grad else outputs.detach().requires_grad_()
            total = self.terms(leaf, targets).sum()
            refuse_once_differentiable([total])
            if not total.requires_grad:
                return torch.zeros_like(u)
            (g,) = torch.autograd.grad(total, leaf, create_graph=True, allow_unused=True, materialize_grads=True)
            if not g.requires_grad:
                return torch.zeros_like(u)
            return torch.autograd.grad(g, leaf, u, create_graph=outputs.requires_grad, materialize_grads=True)[0]

    def fisher_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        raise ValueError(_NO_LIKELIHOOD)

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        raise ValueError(_NO_LIKELIHOOD)

    def require_likelihood(self) -> None:
        raise ValueError(_NO_LIKELIHOOD)

    def project(self, score: Tensor, u: Tensor) -> Tensor:
        if self.counter is not None:
            raise ValueError(
                "empirical_fisher: a custom criterion with count= does not say which outputs make a term; "
                "use per='example'"
            )
        inner = (score * u).flatten(1).sum(1)
        return score * inner.view(-1, *[1] * (score.ndim - 1))


def custom(
    terms: Callable[[Any, Any], Tensor],
    *,
    count: Callable[[Any], Tensor | float] | None = None,
    convex: bool = False,
    additive: bool = True,
) -> Criterion:
    """Return a criterion from ``terms(outputs, targets) -> (examples, ...)``, summed over each example.

    Args:
        terms: a function of what the model returned (a tensor, or a tuple, dict, dataclass or torch distribution of
            tensors; of an output of transformers the logits) and of the batch's targets (anything, or None).
        count: the number of terms of a batch, from its targets. Default: its examples.
        convex: your word that every term is convex in the outputs. The Gauss-Newton operator is then positive
            semidefinite.
        additive: whether each term sees one example alone. With False (contrastive and ranking losses) questions about
            single examples, and `in_pieces`, raise. `check` tests the word.

    Example:
        >>> import torch
        >>> from frechet.objective.criteria import custom
        >>> def terms(outputs, targets):
        ...     return (outputs["mean"] - targets).square().sum(1) + outputs["cost"]
        >>> custom(terms).count(torch.zeros(4, 2))
        tensor(4., dtype=torch.float64)
    """
    return Custom(terms, count, convex, additive)


@dataclass(frozen=True, eq=False)
class ComplexSquares(Criterion):
    """|f - y|^2 of complex outputs, which come as real tensors with a last axis of 2: `squared_error` of both parts."""

    inner: Elementwise
    convex = True

    def _real(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_complex():
            return torch.view_as_real(targets.resolve_conj())
        if targets.shape == outputs.shape:  # drawn labels are real pairs already
            return targets
        return torch.stack([targets, torch.zeros_like(targets)], -1)

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.inner.terms(outputs, self._real(outputs, targets))

    def count(self, targets: Tensor) -> Tensor:
        return self.inner.count(targets)

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        return self.inner.hessian_product(outputs, self._real(outputs, targets), u)

    def fisher_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        return self.inner.fisher_product(outputs, self._real(outputs, targets), u)

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        return self.inner.sample(outputs, targets, generator)

    def project(self, score: Tensor, u: Tensor) -> Tensor:
        return score * (score * u).sum(-1, keepdim=True)

    def require_likelihood(self) -> None:
        self.inner.require_likelihood()


def criterion_for(criterion: Criterion, layout: Layout, examples: int | None = None) -> Criterion:
    """The criterion as a function of the real tensor in which what the model returned for so many examples lies."""
    if isinstance(criterion, Custom):
        packed = None if layout.like is None else copy(layout)
        return replace(criterion, layout=packed, examples=examples, left=layout.left)
    if layout.like is None or (is_distribution(layout.like) and layout.of_logits):
        return criterion
    name = criterion.name if isinstance(criterion, Elementwise) else type(criterion).__name__
    if not isinstance(layout.like, Tensor):
        raise TypeError(
            f"Objective: the model must return a tensor or something with .logits for {name}, got "
            f"{type(layout.like).__name__}; use custom(lambda outputs, targets: per_example_losses), which takes any "
            "structure, or wrap the model in a module whose forward returns the one tensor that the criterion takes"
        )
    if isinstance(criterion, Elementwise) and criterion.name == "squared_error":
        return ComplexSquares(criterion)
    raise TypeError(
        f"Objective: {name} needs real outputs, got {layout.like.dtype}; use squared_error() for |f - y|^2, or "
        "custom(lambda outputs, targets: per_example_losses), which takes complex outputs"
    )
