"""The variables of a function: one tensor of any shape, or a dict of tensors, as the flat vectors of a space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from frechet.space._space import Space

Point = Tensor | Mapping[str, Tensor]


def named(x: Point) -> dict[str, Tensor]:
    """Return the blocks of a point by name. A single tensor has the name ""."""
    return {"": x} if isinstance(x, Tensor) else dict(x)


def like(x: Point, blocks: Sequence[Tensor]) -> Tensor | dict[str, Tensor]:
    """Blocks in the form of the point `x`: a tensor, or a dict with the same names."""
    return blocks[0] if isinstance(x, Tensor) else dict(zip(x, blocks, strict=True))


@dataclass(frozen=True)
class Variables:
    """What a function takes: the blocks of `space` as a dict, or the one block as a tensor (`single`)."""

    space: Space
    single: bool

    @classmethod
    def of(cls, x: Point) -> Variables:
        """The variables of which `x` is a point."""
        return cls(Space.of(named(x)), isinstance(x, Tensor))

    def structured(self, blocks: Sequence[Tensor]) -> Tensor | dict[str, Tensor]:
        """The argument of the function, of blocks in the order of `space`."""
        return blocks[0] if self.single else dict(zip(self.space.names, blocks, strict=True))

    def unflatten(self, v: Tensor) -> Tensor | dict[str, Tensor]:
        """The argument of the function as views of a flat vector ``(n,)``."""
        return self.structured(self.space.split(v))

    def flatten(self, x: Point) -> Tensor:
        """The flat vector ``(n,)`` of an argument."""
        return self.space.flatten(named(x))

    def leaves(self, blocks: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | dict[str, Tensor]]:
        """The blocks as leaves of a new graph, and the argument that is made of them."""
        opened = [b.detach().requires_grad_() for b in blocks]
        return opened, self.structured(opened)
