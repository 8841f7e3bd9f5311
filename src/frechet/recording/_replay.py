"""A linear map as the tensor operations that its vector goes through, recorded once and played back.

The operations that a product A v does on v, or on something made from v (`_watch.py`), are written out as straight
Python code; what this reads of everything else are its constants. Operations whose results nobody reads are dropped.
Blocks of vectors go through the code by `vmap`.

The constants are kept: the recording is A with the primal computation folded, so a product pays neither for the forward
pass nor for unused halves of double backward formulas, and random draws are the same at every application. Or they are
computed by a recording `before` this one, from the parameters and the batch, at each product (`at`): then nothing is
held but the code. That, too, costs less than the product that was recorded: nothing is done for a later backward pass,
and of the gradient only what the product reads, which leaves out the gradients in the weights.

Constants that were there are copied: what a loader refills or a user changes afterwards changes no recording.

**Source.** Partial evaluation of the tangent program: Radul, Paszke, Frostig, Johnson and Maclaurin 2023, You only
linearize once, doi 10.1145/3571236.

**Differs from the source.** (1) Nothing is traced symbolically: the first product is computed and watched, which costs
a product and some microseconds per operation. (2) Code that computes outside of PyTorch is not seen; whoever records
proves the recording on each batch (`_proof.py`).

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

from frechet.objective._torch_internals import OpOverload, outside_of_function_modes
from frechet.recording._copies import copies, place_of, storage_of
from frechet.recording._program import Cell, Constant, Program, Slot, Step
from frechet.recording._simplify import simplified
from frechet.recording._watch import Map, Watch


@dataclass(frozen=True, eq=False)
class Replay:
    """A recorded linear map: its code, the constants it reads, and the objects that its code names.

    Where there is a replay `before` it, the constants are what that makes of a batch's tensors; `at` puts them in.
    """

    code: str
    constants: list[Tensor]
    objects: list[Any]
    calls: list[Any]  # the same, operations without their Python wrappers
    run: Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Any]], list[Tensor]]
    steps: int
    before: Replay | None = None

    @torch.no_grad()
    def at(self, batch: Sequence[Tensor]) -> Replay:
        """This replay with its constants."""
        return self if self.before is None else replace(self, constants=self.before(batch), before=None)

    def __call__(self, vector: Sequence[Tensor]) -> list[Tensor]:
        with outside_of_function_modes():  # modes saw the operations above those that are recorded
            return self.run(vector, self.constants, self.calls)

    def block(self, vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The map of k vectors at once, stacked along a leading axis of each block."""

        def run(*v: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.run(v, self.constants, self.calls))

        with outside_of_function_modes():
            return torch.vmap(run)(*vectors)

    def compiled(self) -> Replay:
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
) -> Replay:
    """The replay of `product`, by computing it for `vector` once.

    With the tensors of a `batch`, its constants are computed anew from these at each product. Raises Untraceable, and
    MemoryError where what it holds, but for the storages `apart`, exceeds `most` bytes.
    """
    watch = Watch(vector, most, apart, batch)
    with watch:
        results = product(vector)
    if watch.failure is not None:
        raise watch.failure
    return _replay(watch.program, [watch.program.result(t) for t in results])


def _replay(program: Program, results: Sequence[Cell]) -> Replay:
    steps, results = simplified(program, _needed(program.steps, results), results)
    steps = _needed(steps, results)
    program.steps.clear()
    program.captured.clear()
    _make_own([*_constants(steps), *(r for r in results if isinstance(r, Constant))], program.apart)
    text = _Text(steps, program.inputs, results)
    code, run = _compiled(text.code)
    calls = [o._op if isinstance(o, OpOverload) else o for o in text.objects]
    constants = [c for c in text.constants if isinstance(c, Tensor)]  # all or none of them
    made = [c for c in text.constants if not isinstance(c, Tensor)]
    before = None if program.before is None else _replay(program.before, made)
    return Replay(code, constants, text.objects, calls, run, len(steps), before)


def _constants(steps: list[Step]) -> list[Constant]:
    found: list[Constant] = []

    def look(nested: Any) -> None:
        if isinstance(nested, Constant):
            found.append(nested)
        elif isinstance(nested, list | tuple):
            for a in nested:
                look(a)

    for step in steps:
        look((*step.args, *step.kwargs.values()))
    return found


def _make_own(constants: list[Constant], apart: frozenset[int]) -> None:
    """Put copies in the places of tensors that were there, storage by storage, so that each can be freed then."""
    by_storage: dict[int, list[Constant]] = {}
    for constant in {id(c): c for c in constants}.values():
        if isinstance(constant.of, Tensor) and storage_of(constant.of) not in apart:
            by_storage.setdefault(storage_of(constant.of), []).append(constant)
    while by_storage:
        _, some = by_storage.popitem()
        for constant, copy in zip(some, copies([c.of for c in some if isinstance(c.of, Tensor)]), strict=True):
            constant.of = copy


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


class _Text:
    """Python code for steps, with each tensor dropped after its last use, and what it names."""

    def __init__(self, steps: list[Step], inputs: list[Slot], results: Sequence[Cell]) -> None:
        self.constants: list[Tensor | Cell] = []
        self.objects: list[Any] = []
        self.names: dict[Any, str] = {}
        self.last = {r.index: len(steps) for r in results if isinstance(r, Slot)}  # the step that reads a slot last
        for i in range(len(steps) - 1, -1, -1):
            for a in steps[i].reads:
                self.last.setdefault(a.index, i)
        lines = ["def run(v, c, o):", *(f" s{slot.index} = v[{i}]" for i, slot in enumerate(inputs))]
        for i, step in enumerate(steps):
            lines += self._lines(i, step)
        lines.append(f" return [{', '.join(map(self._named, results))}]")
        self.code = "\n".join(lines)

    def _lines(self, i: int, step: Step) -> list[str]:
        keywords = (f"{name}={self._named(a)}" for name, a in step.kwargs.items())
        call = ", ".join([*map(self._named, step.args), *keywords])
        names = [f"s{r.index}" if r is not None and r.index in self.last else "_" for r in step.results]
        target = "_" if not names else names[0] if step.single else "".join(n + ", " for n in names)
        dead = {f"s{a.index}" for a in step.reads if self.last[a.index] == i}
        dead |= {"_"} & set(names) if len(names) > 1 else set()
        line = f" {target} = {self._named(step.operation)}({call})"
        return [line, f" {' = '.join(sorted(dead))} = None"] if dead else [line]

    def _named(self, o: Any) -> str:
        match o:
            case Slot():
                return f"s{o.index}"
            case Constant(of=Tensor() as t):
                return self._listed(t, ("constant", *place_of(t)), "c", self.constants)
            case Constant(of=made):
                return self._listed(made, ("made", id(made)), "c", self.constants)
            case list():
                return f"[{', '.join(map(self._named, o))}]"
            case tuple():
                return f"({''.join(self._named(x) + ', ' for x in o)})"
            case _:
                plain = o is None or isinstance(o, bool | int) or (isinstance(o, float) and math.isfinite(o))
                return repr(o) if plain else self._listed(o, ("object", id(o)), "o", self.objects)

    def _listed(self, o: Any, key: Any, letter: str, where: list[Any]) -> str:
        if key not in self.names:
            self.names[key] = f"{letter}[{len(where)}]"
            where.append(o)
        return self.names[key]


@lru_cache(maxsize=64)
def _compiled(code: str) -> tuple[str, Callable[..., list[Tensor]]]:
    # batches of one shape have one code; nothing in it comes from outside but numbers and the names made above
    names: dict[str, Any] = {}
    exec(compile(code, "<recording>", "exec"), names)
    return code, names["run"]
