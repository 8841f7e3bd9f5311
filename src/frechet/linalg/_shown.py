"""How results show themselves: one line, a table in terminals and notebooks, a dict for JSON, a state for torch.save.

A result is a frozen dataclass that derives from `Result`. What it says of itself is in two places that it may override:
`_line` (the inside of its `repr`) and `_table` (a header and rows of text); all else follows from its fields.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Self, get_args, get_type_hints

import torch
from torch import Tensor

from frechet.space import Space

if TYPE_CHECKING:
    from rich.table import Table

INLINE = 4  # numbers of a tensor that a line or a cell shows
LINE = 200  # characters of a repr, at most
JSON_ENTRIES = 10_000  # of a tensor that `to_dict` writes out
Rows = tuple[Sequence[str], Sequence[Sequence[str]]]


class Result:
    """The base of results."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__repr__" not in cls.__dict__:  # else `dataclass` writes one that prints every number
            cls.__repr__ = Result.__repr__

    def __repr__(self) -> str:
        line = self._line()
        return f"{type(self).__name__}({line if len(line) <= LINE else line[: LINE - 3] + '...'})"

    def _line(self) -> str:
        told = ((f.name, getattr(self, f.name)) for f in _fields(self) if f.repr)
        return ", ".join(f"{name}={short(value)}" for name, value in told if value is not None and value != "")

    def _table(self) -> Rows:
        return ("", ""), [(f.name.replace("_", " "), short(getattr(self, f.name))) for f in _fields(self) if f.repr]

    def __rich__(self) -> Table:
        from rich.markup import escape
        from rich.table import Table

        header, rows = self._table()
        table = Table(*map(escape, header), title=type(self).__name__, show_header=any(header))
        for row in rows:
            table.add_row(*map(escape, row))
        return table

    def _repr_html_(self) -> str:
        header, rows = self._table()

        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        head = f"<thead>{line(header, 'th')}</thead>" if any(header) else ""
        body = "".join(line(row, "td") for row in rows)
        return f"<table><caption>{html.escape(type(self).__name__)}</caption>{head}<tbody>{body}</tbody></table>"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them: lists, numbers, strings. Numbers that are not finite are "inf", "-inf", "nan".

        A tensor of more than 10 000 entries is told by its shape and type alone; `state` keeps it.
        """
        return {f.name: _plain(getattr(self, f.name)) for f in _fields(self)}

    def state(self) -> dict[str, Any]:
        """The fields as tensors, numbers, strings, lists and dicts: torch.load(weights_only=True) takes them."""
        return {f.name: _stored(getattr(self, f.name)) for f in _fields(self)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The result whose `state` this is. A space is not kept: fields that hold one are None."""
        known = {f.name for f in fields(cls) if f.init}  # type: ignore[arg-type]
        if known != set(state):
            raise ValueError(
                f"{cls.__name__}.from_state: state must hold the fields of {cls.__name__}; missing "
                f"{sorted(known - set(state))[:3]}, unknown {sorted(set(state) - known)[:3]}"
            )
        hints = get_type_hints(cls)
        return cls(**{name: _restored(hints[name], value) for name, value in state.items()})


def _restored(hint: Any, value: Any) -> Any:
    """A field of this type from what `state` has made of it."""
    kinds = (*get_args(hint), hint)
    if isinstance(value, list):
        inner = next((k for k in kinds if k is not Ellipsis and not isinstance(k, type(None))), Any)
        return tuple(_restored(inner, v) for v in value)
    classes = [k for k in kinds if isinstance(k, type)]
    if isinstance(value, dict):
        kept = next((k for k in classes if issubclass(k, Result)), None)
        return value if kept is None else kept.from_state(value)
    for kind in classes:
        if issubclass(kind, Enum):
            return kind(value)
        if kind is Space:
            return None
    return value


def short(value: object) -> str:
    """A value in a few characters."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Tensor):
        return _short_tensor(value)
    if isinstance(value, tuple | list):
        if len(value) <= INLINE and all(isinstance(v, int | float | str) for v in value):
            return "(" + ", ".join(short(v) for v in value) + ")"
        kinds = {type(v).__name__ for v in value}
        return f"{len(value)} {kinds.pop()}" if len(kinds) == 1 else f"{len(value)} items"
    return str(value)


def _short_tensor(t: Tensor) -> str:
    if t.ndim == 0:
        return f"{t.item():.5g}" if t.is_floating_point() else str(t.item())
    if t.ndim == 1 and t.numel() <= INLINE:
        return "[" + ", ".join(_short_tensor(x) for x in t) + "]"
    return "x".join(map(str, t.shape)) + " " + str(t.dtype).removeprefix("torch.")


def _fields(result: Any) -> tuple[Any, ...]:
    return fields(result)


def _plain(value: Any) -> Any:
    """`value` for JSON."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Tensor):
        if value.numel() > JSON_ENTRIES:
            return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        return _plain(value.tolist())
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if is_dataclass(value) and isinstance(value, Result):
        return value.to_dict()
    return str(value)


def _stored(value: Any) -> Any:
    """`value` for torch.save."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.preserve_format)  # a view would save all that it is a view of
    if isinstance(value, tuple | list):
        return [_stored(v) for v in value]
    if isinstance(value, Result):
        return value.state()
    return str(value)
