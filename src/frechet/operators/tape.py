"""A linear map as the tensor operations that its vector goes through, recorded once and played back.

The operations that a product A v does on v, or on something made from v (`recorder.py`), are written out as straight
Python code; all others were done once, and what the code reads of their results it keeps: the tape is A with the primal
computation folded into constants. Operations whose results nobody reads are dropped, so a product pays neither for the
forward pass nor for unused halves of double backward formulas. Random draws are among the constants: the same map at
every application. Blocks of vectors go through a tape by `vmap`.

**Source.** Partial evaluation of the tangent program: Radul, Paszke, Frostig, Johnson and Maclaurin 2023, You only
linearize once, doi 10.1145/3571236.

**Differs from the source.** (1) Nothing is traced symbolically: the first product is computed and watched, which costs
a product and some microseconds per operation. (2) Code that computes outside of PyTorch is not seen; whoever records
compares with a product that was not recorded.

Cost: recording 2 to 6 gradients; memory: the constants, 2 to 3 times what a gradient keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from frechet.operators.recorder import Constant, Map, Recorder, Slot, Step, place_of, storage_of


@dataclass(frozen=True, eq=False)
class Tape:
    """A recorded linear map: its code, the constants it reads, and the objects that its code names."""

    code: str
    constants: list[Tensor]
    objects: list[Any]
    run: Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Any]], list[Tensor]]
    steps: int

    @torch.no_grad()
    def __call__(self, vector: Sequence[Tensor]) -> list[Tensor]:
        return self.run(vector, self.constants, self.objects)

    @torch.no_grad()
    def block(self, vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The map of k vectors at once, stacked along a leading axis of each block."""

        def run(*v: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.run(v, self.constants, self.objects))

        return torch.vmap(run)(*vectors)

    def compiled(self) -> Tape:
        """The same map through torch.compile."""
        return replace(self, run=torch.compile(self.run, fullgraph=True, dynamic=False))

    @property
    def storages(self) -> dict[int, int]:
        """The bytes behind the constants, by storage."""
        return {storage_of(t): t.untyped_storage().nbytes() for t in self.constants}

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())


def record(product: Map, vector: list[Tensor], most: float = math.inf) -> Tape:
    """The tape of `product`, by computing it for `vector` once. MemoryError where constants exceed `most` bytes."""
    recorder = Recorder(vector, most)
    with recorder:
        results = product(vector)
    results = [recorder.cell(t) for t in results]
    steps = _needed(recorder.steps, results)
    code, constants, objects = _written_out(steps, recorder.vector, results)
    return Tape(code, constants, objects, _compiled(code), len(steps))


def _needed(steps: list[Step], results: list[Slot | Constant]) -> list[Step]:
    """The steps on which the results depend: those that make a slot, or write into a storage, that is read later."""
    read = {r.index for r in results if isinstance(r, Slot)}
    storages = {r.storage for r in results if isinstance(r, Slot)}
    kept: list[Step] = []
    for step in reversed(steps):
        made = any(r is not None and r.index in read for r in step.results)
        if made or any(w.storage in storages for w in step.writes):
            kept.append(step)
            for a in step.reads:
                read.add(a.index)
                storages.add(a.storage)
    return kept[::-1]


def _written_out(
    steps: list[Step], vector: list[Slot], results: list[Slot | Constant]
) -> tuple[str, list[Tensor], list[Any]]:
    """Python code for the steps, with each tensor dropped after its last use."""
    constants: list[Tensor] = []
    objects: list[Any] = []
    known: dict[Any, str] = {}

    def listed(o: Any, key: Any, letter: str, where: list[Any]) -> str:
        if key not in known:
            known[key] = f"{letter}[{len(where)}]"
            where.append(o)
        return known[key]

    def text(o: Any) -> str:
        match o:
            case Slot():
                return f"s{o.index}"
            case Constant():
                return listed(o.tensor, ("constant", *place_of(o.tensor)), "c", constants)
            case None | bool() | int():
                return repr(o)
            case float() if math.isfinite(o):
                return repr(o)
            case list():
                return f"[{', '.join(map(text, o))}]"
            case tuple():
                return f"({''.join(text(x) + ', ' for x in o)})"
            case _:
                return listed(o, ("object", id(o)), "o", objects)

    last = {r.index: len(steps) for r in results if isinstance(r, Slot)}
    for i in range(len(steps) - 1, -1, -1):
        for a in steps[i].reads:
            last.setdefault(a.index, i)
    lines = ["def run(v, c, o):", *(f" s{slot.index} = v[{i}]" for i, slot in enumerate(vector))]
    for i, step in enumerate(steps):
        call = ", ".join([*map(text, step.args), *(f"{name}={text(a)}" for name, a in step.kwargs.items())])
        names = [f"s{r.index}" if r is not None and r.index in last else "_" for r in step.results]
        target = "_" if not names else names[0] if step.single else "".join(n + ", " for n in names)
        lines.append(f" {target} = {text(step.operation)}({call})")
        dead = {f"s{a.index}" for a in step.reads if last[a.index] == i}
        dead |= {"_"} & set(names) if len(names) > 1 else set()
        if dead:
            lines.append(f" {' = '.join(sorted(dead))} = None")
    lines.append(f" return [{', '.join(map(text, results))}]")
    return "\n".join(lines), constants, objects


@lru_cache(maxsize=64)
def _compiled(code: str) -> Callable[..., list[Tensor]]:
    # batches of one shape have one code; nothing in it comes from outside but numbers and the names made above
    names: dict[str, Any] = {}
    exec(compile(code, "<tape>", "exec"), names)
    return names["run"]
