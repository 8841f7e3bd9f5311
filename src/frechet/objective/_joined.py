"""Objectives on several modules that share parameters: two heads on one body, each in a wrapper of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from frechet.objective._parts import Part, Penalty

Weighted = tuple[tuple[float, Penalty], ...]


class Joined(nn.Module):
    """The modules of several objectives side by side, called "0", "1", ...; each part calls its own."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        for i, m in enumerate(models):
            self.add_module(str(i), m)

    def forward(self, *_inputs: Any) -> Any:
        raise NotImplementedError("Objective: the modules of a sum of objectives are called one by one")


def share_parameters(one: nn.Module, other: nn.Module) -> bool:
    return not {id(p) for p in one.parameters()}.isdisjoint(id(p) for p in other.parameters())


Summed = tuple[nn.Module, tuple[Part, ...], Weighted]


def joined(one: Summed, other: Summed) -> tuple[Joined, tuple[Part, ...], Weighted]:
    """One module, the data terms and the penalties of two sums whose modules share parameters."""
    models: list[nn.Module] = []
    for model, _, _ in (one, other):
        models += [m for m in (model.children() if isinstance(model, Joined) else [model]) if m not in models]
    whole = Joined(models)
    names = {id(p): n for n, p in whole.named_parameters()}
    parts: list[Part] = []
    penalties: list[tuple[float, Penalty]] = []
    for model, own, weighted in (one, other):
        if any(p.head is not None for p in own):
            raise ValueError(
                "Objective + other: head= must be left out where the models are not one and the same object"
            )
        parts += [p if p.model is not None else replace(p, model=model) for p in own]
        old = {n: names[id(p)] for n, p in model.named_parameters() if p.requires_grad}
        penalties += [(w, _renamed(p, old)) for w, p in weighted]
    return whole, tuple(parts), tuple(penalties)


def _renamed(penalty: Penalty, names: Mapping[str, str]) -> Penalty:
    """The penalty of a module, as a function of the parameters of the whole."""

    def function(blocks: Mapping[str, Tensor]) -> Tensor:
        return penalty.function({old: blocks[new] for old, new in names.items()})

    return Penalty(function, penalty.convex)
