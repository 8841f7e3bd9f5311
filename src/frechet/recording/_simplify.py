"""Steps of a recording with less work in them: the same map, up to rounding.

    x + 0          ->  x                  tangents of what does not move
    x' + y'        ->  (x + y)'           the two halves of a weight's tangent
    (x')'          ->  x
    x + A B        ->  addmm(x, A, B)     tangents of layers: a pass over the outputs less for each, also where
                                          they have more than two axes

**Cost:** once for each recording, a microsecond or two for each of its steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from frechet.recording._program import Cell, Constant, Program, Slot, Step, aten, look_of


def simplified(program: Program, steps: list[Step], results: Sequence[Cell]) -> tuple[list[Step], list[Cell]]:
    """Return cheaper steps with the same results. Some steps may be left unread. Steps that write in place stay."""
    if any(step.writes for step in steps):
        return steps, list(results)
    run = _Rewriting(program, Counter(a.index for step in steps for a in step.reads))
    run.uses.update(r.index for r in results if isinstance(r, Slot))
    for step in steps:
        run.take(step)
    return run.steps, [run.now(r) for r in results]


class _Rewriting:
    def __init__(self, program: Program, uses: Counter[int]) -> None:
        self.program, self.uses = program, uses
        self.steps: list[Step] = []
        self.maker: dict[int, Step] = {}
        self.instead: dict[int, Cell] = {}  # what stands for a slot that is not made

    def now(self, nested: Any) -> Any:
        if isinstance(nested, Slot):
            return self.instead.get(nested.index, nested)
        return type(nested)([self.now(a) for a in nested]) if isinstance(nested, list | tuple) else nested

    def take(self, old: Step) -> None:
        step = replace(old, args=self.now(old.args), kwargs={name: self.now(a) for name, a in old.kwargs.items()})
        args = step.args
        if step.operation is aten.t.default and (inner := self._argument(aten.t.default, args[0])) is not None:
            self.instead[_only(step).index] = inner
        elif step.operation is aten.add.Tensor and not step.kwargs and all(isinstance(a, Cell) for a in args):
            self._add(args[0], args[1], _only(step))
        else:
            self._emit(step)

    def _emit(self, step: Step) -> None:
        self.steps.append(step)
        self.maker.update({slot.index: step for slot in step.results if slot is not None})

    def _argument(self, operation: object, cell: Cell) -> Cell | None:
        """What `cell` is the given operation of; None where it is not."""
        made = self.maker.get(cell.index) if isinstance(cell, Slot) else None
        return made.args[0] if made is not None and made.operation is operation else None

    def _add(self, x: Cell, y: Cell, total: Slot) -> None:
        for a, b in ((x, y), (y, x)):
            if isinstance(b, Constant) and b.zero and look_of(a)[1] == total.dtype:
                if look_of(a)[0] == total.shape:
                    self.instead[total.index] = a
                else:
                    self._emit(Step(aten.expand.default, (a, list(total.shape)), {}, [total]))
                return
        p, q = self._argument(aten.t.default, x), self._argument(aten.t.default, y)
        if p is not None and q is not None and look_of(p) == look_of(q) and self._once(x) and self._once(y):
            transposed = self.program.anonymous(*look_of(p))
            self._add(p, q, transposed)
            self._emit(Step(aten.t.default, (self.now(transposed),), {}, [total]))
            return
        for a, b in ((x, y), (y, x)):
            product = self.maker.get(b.index) if isinstance(b, Slot) else None
            same = look_of(b) == look_of(total) and look_of(a)[1] == total.dtype
            if product is not None and product.operation is aten.mm.default and same and self._once(b):
                self._emit(Step(aten.addmm.default, (self._row(a), *product.args), {}, [total]))
                return
        for a, b in ((x, y), (y, x)):
            product = self._viewed(b)
            of_two = isinstance(product, Slot) and self.maker[product.index].operation is aten.mm.default
            if product is None or not of_two or not look_of(a) == look_of(b) == look_of(total) or not self._once(b):
                continue
            rows, total_of_rows = self._viewed(a), self.program.anonymous(*look_of(product))
            if rows is None or look_of(rows) != look_of(product):
                rows = self.program.anonymous(*look_of(product))
                self._emit(Step(aten.reshape.default, (a, list(rows.shape)), {}, [rows]))
            self._add(rows, product, total_of_rows)
            self._emit(Step(aten.view.default, (self.now(total_of_rows), list(total.shape)), {}, [total]))
            return
        self._emit(Step(aten.add.Tensor, (x, y), {}, [total]))

    def _viewed(self, cell: Cell) -> Cell | None:
        """The sum or product of matrices of which `cell` is a view with more axes."""
        for operation in (aten.view.default, aten._unsafe_view.default):
            of = self._argument(operation, cell)
            made = self.maker.get(of.index) if isinstance(of, Slot) else None
            if made is not None and made.operation in (aten.mm.default, aten.addmm.default):
                return of if len(look_of(cell)[0]) > 2 else None
        return None

    def _once(self, cell: Cell) -> bool:
        return isinstance(cell, Slot) and self.uses[cell.index] == 1

    def _row(self, a: Cell) -> Cell:
        """The one row whose repetition `a` is, where it is that; addmm repeats it by itself."""
        row = self._argument(aten.expand.default, a)
        if row is None:
            return a
        vector = self._argument(aten.view.default, row)
        one = vector is not None and len(look_of(vector)[0]) == 1 and look_of(row)[0] == (1, *look_of(vector)[0])
        return vector if vector is not None and one else row


def _only(step: Step) -> Slot:
    [slot] = step.results
    assert slot is not None
    return slot
