"""The arguments of an operation of ATen by name, and its axes counted from the last one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from frechet.calculus.taylor._series import Frame
from frechet.objective._torch_internals import OpOverload

Rule = Callable[[Frame, OpOverload, tuple[Any, ...], dict[str, Any]], Any]


def words(names: str) -> list[str]:
    """The names in a text."""
    return names.split()


_AXES = {"dim", "dimension", "dim0", "dim1", "dim2", "dims", "axis", "axes"}


def bound(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by their names, with those that were left out."""
    found = {}
    for i, a in enumerate(op._schema.arguments):
        if i < len(args):
            found[a.name] = args[i]
        elif a.name in kwargs:
            found[a.name] = kwargs[a.name]
        else:
            found[a.name] = a.default_value
    return found


def by_position(formula: Callable[..., Any]) -> Rule:
    """The rule of an operation with a formula that takes its arguments in order."""

    def rule(frame: Frame, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return formula(*bound(op, args, kwargs).values())

    return rule


def from_last(given: dict[str, Any], rank: int) -> dict[str, Any]:
    """The arguments with axes counted from the last one, so that axes may be added in front."""
    return {k: _negative(v, rank) if k in _AXES else v for k, v in given.items()}


def _negative(axes: Any, rank: int) -> Any:
    if isinstance(axes, int) and not isinstance(axes, bool):
        return axes if axes < 0 else axes - rank
    if isinstance(axes, list | tuple):
        return [_negative(a, rank) for a in axes]
    return axes
