"""The JSON form of a report, ``frechet.report/2``, and the way back.

Tuples are arrays, an absent section is ``null``. JSON has no infinities: a float that is not finite is written as the
string ``"inf"``, ``"-inf"`` or ``"nan"``. `from_json` refuses other versions, missing keys, unknown keys and wrong
types, and names the place.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from frechet.report._schema import SCHEMA, Report


def to_json(report: Report) -> dict[str, Any]:
    """Return a report as a tree of dicts, lists, strings, numbers and None, which `json.dumps` takes without NaN."""
    return {"schema": SCHEMA, **_encoded(report)}


def dumps(report: Report) -> str:
    """Return the text of ``report.json``."""
    return json.dumps(to_json(report), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def from_json(tree: Mapping[str, Any]) -> Report:
    """Return the report that `to_json` wrote.

    Raises:
        ValueError: the tree has another version or another shape.
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"from_json: tree must be a JSON object, got {type(tree).__name__}")
    version = tree.get("schema")
    if version != SCHEMA:
        raise ValueError(
            f"from_json: schema must be '{SCHEMA}', got {version!r}; read it with the version of frechet that wrote it"
        )
    return _decoded(Report, {key: value for key, value in tree.items() if key != "schema"}, "report")


def _encoded(x: Any) -> Any:
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {f.name: _encoded(getattr(x, f.name)) for f in dataclasses.fields(x)}
    if isinstance(x, tuple):
        return [_encoded(item) for item in x]
    if isinstance(x, float) and not math.isfinite(x):
        return "nan" if math.isnan(x) else ("inf" if x > 0 else "-inf")
    if x is None or type(x) in (bool, int, float, str):
        return x
    raise TypeError(f"to_json: values must be plain bool, int, float, str, tuple or None, got {type(x).__name__} {x!r}")


def _decoded(kind: Any, x: Any, place: str) -> Any:
    origin = get_origin(kind)
    if origin is UnionType:
        (inner,) = (t for t in get_args(kind) if t is not NoneType)
        return None if x is None else _decoded(inner, x, place)
    if origin is tuple:
        if not isinstance(x, list):
            raise _wrong(place, "an array", x)
        return tuple(_decoded(get_args(kind)[0], item, f"{place}[{i}]") for i, item in enumerate(x))
    if origin is Literal:
        if x not in get_args(kind):
            raise _wrong(place, f"one of {', '.join(get_args(kind))}", x)
        return x
    if dataclasses.is_dataclass(kind):
        return _object(kind, x, place)
    return _plain(kind, x, place)


def _object(kind: Any, x: Any, place: str) -> Any:
    if not isinstance(x, Mapping):
        raise _wrong(place, "an object", x)
    hints = get_type_hints(kind)
    if x.keys() != hints.keys():
        missing, unknown = sorted(hints.keys() - x.keys()), sorted(x.keys() - hints.keys())
        raise ValueError(f"from_json: {place} must have the keys of {SCHEMA}, missing {missing}, unknown {unknown}")
    return kind(**{name: _decoded(hints[name], x[name], f"{place}.{name}") for name in hints})


def _plain(kind: type, x: Any, place: str) -> bool | int | float | str:
    if kind is float:
        if isinstance(x, str) and x in ("inf", "-inf", "nan"):
            return float(x)
        if isinstance(x, bool) or not isinstance(x, int | float):
            raise _wrong(place, "a number", x)
        return float(x)
    if type(x) is not kind:
        raise _wrong(place, f"of type {kind.__name__}", x)
    return x


def _wrong(place: str, expected: str, got: object) -> ValueError:
    return ValueError(f"from_json: {place} must be {expected}, got {got!r:.60}")
