"""A linear map as the tensor operations that its vector goes through, recorded once and played back.

The operations that a product A v does on v, or on something made from v (`recorder.py`), are written out as straight
Python code; what this reads of everything else are its constants. Operations whose results nobody reads are dropped.
Blocks of vectors go through a tape by `vmap`.

The constants are kept: the tape is A with the primal computation folded, so a product pays neither for the forward pass
nor for unused halves of double backward formulas, and random draws are the same at every application. Or they are
computed by a tape `before` this one, from the parameters and the batch, at each product (`at`): then nothing is held
but the code. That, too, costs less than the product that was recorded: nothing is done for a later backward pass, and
of the gradient only what the product reads, which leaves out the gradients in the weights.

**Source.** Partial evaluation of the tangent program: Radul, Paszke, Frostig, Johnson and Maclaurin 2023, You only
linearize once, doi 10.1145/3571236.

**Differs from the source.** (1) Nothing is traced symbolically: the first product is computed and watched, which costs
a product and some microseconds per operation. (2) Code that computes outside of PyTorch is not seen; whoever records
compares with a product that was not recorded.

Cost: recording 3 to 9 gradients; memory: the constants, 2 to 3 times what a gradient keeps, always or during a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from frechet.operators.fusion import fused
from frechet.operators.recorder import Map, Reads, Recorder
from frechet.operators.script import Cell, Constant, Script, Slot, Step, place_of, storage_of


@dataclass(frozen=True, eq=False)
class Tape:
    """A recorded linear map: its code, the constants it reads, and the objects that its code names.

    Where there is a tape `before` it, the constants are what that makes of a batch's tensors; `at` puts them in.
    """

    code: str
    constants: list[Tensor]
    objects: list[Any]
    calls: list[Any]  # the same, operations without their Python wrappers
    run: Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Any]], list[Tensor]]
    steps: int
    before: Tape | None = None
    alone: bool = False  # other batches of these shapes might need other steps

    @torch.no_grad()
    def at(self, batch: Sequence[Tensor]) -> Tape:
        """This tape with its constants."""
        return self if self.before is None else replace(self, constants=self.before(batch), before=None)

    def __call__(self, vector: Sequence[Tensor]) -> list[Tensor]:
        return self.run(vector, self.constants, self.calls)

    def block(self, vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The map of k vectors at once, stacked along a leading axis of each block."""

        def run(*v: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.run(v, self.constants, self.calls))

        return torch.vmap(run)(*vectors)

    def compiled(self) -> Tape:
        """The same map through torch.compile."""
        before = None if self.before is None else self.before.compiled()
        return replace(
            self, calls=self.objects, run=torch.compile(self.run, fullgraph=True, dynamic=False), before=before
        )

    @property
    def storages(self) -> dict[int, int]:
        """The bytes behind the constants that are held, by storage."""
        held = self.constants if self.before is None else self.before.constants
        return {storage_of(t): t.untyped_storage().nbytes() for t in held}

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())


def record(
    product: Map,
    vector: list[Tensor],
    most: float = math.inf,
    apart: Iterable[int] = (),
    batch: Sequence[Tensor] | None = None,
) -> Tape:
    """The tape of `product`, by computing it for `vector` once.

    With the tensors of a `batch`, its constants are computed anew from these at each product. MemoryError where what it
    holds, but for the storages `apart`, exceeds `most` bytes.
    """
    recorder = Recorder(vector, most, apart, batch)
    with Reads() as reads, recorder:
        results = product(vector)
    cells = [recorder.script.cell(t) for t in results]
    return replace(_tape(recorder.script, cells), alone=recorder.alone or reads.seen)


def _tape(script: Script, results: Sequence[Cell]) -> Tape:
    steps, results = fused(script, _needed(script.steps, results), results)
    steps = _needed(steps, results)
    code, read, objects = _written_out(steps, script.inputs, results)
    code, run = _compiled(code)
    calls = [o._op if isinstance(o, OpOverload) else o for o in objects]
    constants = [c for c in read if isinstance(c, Tensor)]  # all or none of them
    before = None if script.before is None else _tape(script.before, [c for c in read if not isinstance(c, Tensor)])
    return Tape(code, constants, objects, calls, run, len(steps), before)


def _needed(steps: list[Step], results: Sequence[Cell]) -> list[Step]:
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
    steps: list[Step], inputs: list[Slot], results: Sequence[Cell]
) -> tuple[str, list[Tensor | Cell], list[Any]]:
    """Python code for the steps, with each tensor dropped after its last use."""
    constants: list[Tensor | Cell] = []
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
            case Constant(of=Tensor() as t):
                return listed(t, ("constant", *place_of(t)), "c", constants)
            case Constant(of=made):
                return listed(made, ("made", id(made)), "c", constants)
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
    lines = ["def run(v, c, o):", *(f" s{slot.index} = v[{i}]" for i, slot in enumerate(inputs))]
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
def _compiled(code: str) -> tuple[str, Callable[..., list[Tensor]]]:
    # batches of one shape have one code; nothing in it comes from outside but numbers and the names made above
    names: dict[str, Any] = {}
    exec(compile(code, "<tape>", "exec"), names)
    return code, names["run"]
