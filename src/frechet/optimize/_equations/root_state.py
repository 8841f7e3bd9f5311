"""What `root` and `fixed_point` share: one moment of a run, and the value of the caller's function as a vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.space import Space, Variables


@dataclass(frozen=True, eq=False)
class RootState:
    """One moment of `root` or `fixed_point`. `x` is flat ``(n,)``; `residual` is norm(F(x))."""

    iteration: int
    x: Tensor
    residual: float
    products: int


def image(method: str, name: str, f: Callable[..., object], variables: Variables, x: Tensor) -> Tensor:
    """Return f(x) as a vector of the space and in its dtype; `method` and `name` are for the sentences of errors."""
    space = variables.space
    y = f(variables.unflatten(x))
    blocks = [y] if isinstance(y, Tensor) else list(y.values()) if isinstance(y, Mapping) else [y]
    for block in blocks:
        if not isinstance(block, Tensor):
            raise TypeError(
                f"{method}: {name} must return a tensor or a dict of tensors, got {type(block).__name__}"
                + (" in a dict" if isinstance(y, Mapping) else "")
            )
        if block.is_complex():
            raise TypeError(f"{method}: {name} must be real, got a complex tensor; return torch.view_as_real(y)")
    v = torch.cat([block.reshape(-1) for block in blocks if isinstance(block, Tensor)]) if blocks else x[:0]
    if len(v) != space.dim:
        raise ValueError(
            f"{method}: {name} must return as many numbers as x0 has, got {len(v)} for {space.dim}; for other counts "
            "use least_squares(F, x0)"
        )
    return v.detach().to(space.device, space.dtype)


def moved_by(method: str, name: str, f: Callable[..., object], variables: Variables, x: Tensor) -> Tensor:
    """Return f(x) for an f that returns what x is: the same shape, or a dict of the same names and shapes."""

    space, single = variables.space, variables.single

    def alike(p: Tensor | Mapping[str, Tensor]) -> object:
        y = f(p)
        if isinstance(y, Mapping) and not single and set(y) == set(space.names):
            y = {block: y[block] for block in space.names}  # in the order of x0
        blocks = {"": y} if isinstance(y, Tensor) else y
        if isinstance(blocks, Mapping) and all(isinstance(b, Tensor) for b in blocks.values()):
            shapes = {block: tuple(b.shape) for block, b in blocks.items()}
            wanted = dict(zip(space.names if not single else ("",), map(tuple, space.shapes), strict=True))
            if shapes != wanted:
                got, said = (shapes, wanted) if not single else (shapes.get("", shapes), wanted[""])
                raise ValueError(f"{method}: {name} must return what x0 is, of shape {said}, got {got}")
        return y

    return image(method, name, alike, variables, x)


def size_of(space: Space, v: Tensor) -> float:
    """Return norm(v), also where its squares are no numbers."""
    largest = float(v.abs().max()) if v.numel() else 0.0
    if not 0 < largest < math.inf:
        return largest
    unit = 2.0 ** math.frexp(largest)[1]
    return unit * float(space.norm(v / unit))
