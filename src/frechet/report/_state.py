"""The file of an unfinished run: plain tensors and JSON, behind a checksum. Reading it runs no code.

    magic line | SHA-256 of the rest | length of the JSON | JSON | the tensors' bytes, one after the other

The JSON holds numbers, strings, lists, dicts, and the frozen records of `KINDS`, each as its name and its fields; a
tensor is its type, shape and place among the bytes. What is not of these kinds cannot be written, and a file cannot
name any other: nothing is imported, looked up or called on its behalf.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from frechet.analyze._noise_scale import CurvatureNoiseScale, NoiseScale
from frechet.analyze._slices import Slices
from frechet.analyze._stability import Interpolation, Range, SgdBounds, Stability
from frechet.linalg._density import Density, DensityState
from frechet.linalg._eigsh_run import EigshState
from frechet.linalg._result import Estimate, Spectrum, Status
from frechet.objective._check import Check, Proved
from frechet.report._schema import Cost, Eigenvalue, LeftOut
from frechet.report._sizes import Sizes
from frechet.space import Space

MAGIC = b"frechet unfinished report 2\n"
KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(
            Check,
            Proved,
            Cost,
            CurvatureNoiseScale,
            Density,
            DensityState,
            Eigenvalue,
            EigshState,
            Estimate,
            Interpolation,
        ),
        *(LeftOut, NoiseScale, Range, SgdBounds, Sizes, Slices, Spectrum, Stability),
    )
}
DTYPES = {
    str(t).removeprefix("torch."): t
    for t in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


class Damaged(ValueError):
    """Bytes that are not a whole file of this version."""


def packed(tree: Any, kinds: Mapping[str, type] = KINDS) -> bytes:
    """Return `tree` as the bytes of a file. Raises TypeError for what is neither plain nor one of `kinds`."""
    tensors: list[bytes] = []
    text = json.dumps(_encoded(tree, kinds, tensors, [0]), allow_nan=False).encode()
    body = len(text).to_bytes(8, "little") + text + b"".join(tensors)
    return MAGIC + hashlib.sha256(body).digest() + body


def unpacked(content: bytes, space: Space | None, device: torch.device, kinds: Mapping[str, type] = KINDS) -> Any:
    """Return the tree that `packed` wrote, its tensors on `device`; `space` stands wherever a space stood.

    Raises `Damaged` where a single bit differs, where the file is cut, and where it is of another kind or version.
    """
    if not content.startswith(MAGIC):
        raise Damaged("it was not written by this version")
    rest = content[len(MAGIC) :]
    if hashlib.sha256(rest[32:]).digest() != rest[:32]:
        raise Damaged("its checksum is wrong")
    size = int.from_bytes(rest[32:40], "little")
    try:
        return _decoded(json.loads(rest[40 : 40 + size]), kinds, memoryview(rest)[40 + size :], space, device)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise Damaged("its content is not that of this version") from error


def _encoded(x: Any, kinds: Mapping[str, type], tensors: list[bytes], place: list[int]) -> Any:
    if isinstance(x, float) and not math.isfinite(x):
        return {"$float": repr(x)}
    if isinstance(x, Enum):
        return {"$status": str(x.value)}
    if x is None or type(x) in (bool, int, float, str):
        return x
    if isinstance(x, Tensor):
        flat = x.detach().to("cpu").contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        tensors.append(data)
        start, place[0] = place[0], place[0] + len(data)
        kind, here = str(x.dtype).removeprefix("torch."), x.device.type == "cpu"
        return {"$tensor": [kind, list(x.shape), start, len(data), here]}
    if isinstance(x, Space):
        return {"$space": None}
    if isinstance(x, list | tuple):
        items = [_encoded(item, kinds, tensors, place) for item in x]
        return items if isinstance(x, list) else {"$tuple": items}
    if isinstance(x, dict) and all(isinstance(key, str) for key in x):
        return {"$dict": {key: _encoded(value, kinds, tensors, place) for key, value in x.items()}}
    if type(x) is kinds.get(type(x).__name__) and dataclasses.is_dataclass(x):
        fields = {f.name: _encoded(getattr(x, f.name), kinds, tensors, place) for f in dataclasses.fields(x)}
        return {"$record": [type(x).__name__, fields]}
    raise TypeError(f"packed: values must be plain, tensors or one of {', '.join(kinds)}, got {type(x).__name__}")


def _decoded(x: Any, kinds: Mapping[str, type], data: memoryview, space: Space | None, device: torch.device) -> Any:
    def inner(item: Any) -> Any:
        return _decoded(item, kinds, data, space, device)

    if isinstance(x, list):
        return [inner(item) for item in x]
    if not isinstance(x, dict):
        return x
    [(tag, value)] = x.items()
    match tag:
        case "$tuple":
            return tuple(inner(item) for item in value)
        case "$dict":
            return {key: inner(item) for key, item in value.items()}
        case "$record":
            name, fields = value
            return kinds[name](**{key: inner(item) for key, item in fields.items()})
        case "$tensor":
            return _tensor(value, data, device)
        case "$space":
            return space
    return {"$float": float, "$status": Status}[tag](value)


def _tensor(place: list[Any], data: memoryview, device: torch.device) -> Tensor:
    """The tensor of a type and shape at a place among the bytes."""
    kind, shape, start, length, here = place
    bare = torch.empty(0, dtype=DTYPES[kind])
    flat = torch.frombuffer(bytearray(data[start : start + length]), dtype=DTYPES[kind]) if length else bare
    return flat.reshape(shape).to("cpu" if here else device)
