"""Proof that an objective's derivatives are those of the function that the user runs.

Every claim is compared with differences along one random direction d, scaled block by block as the parameters are:

    value       L(x) and the terms of the examples         the model as the user calls it, at the same parameters
    slope       g'd                                        (L(x + h d) - L(x - h d)) / 2h of that model
    Hessian     H d, and u'H d = d'H u                     (g(x + h d) - g(x - h d)) / 2h
    Gauss-Newton  d'G d                                    y'C y, with y the difference of the model's outputs
    second moment  d'F d                                   the mean square of the differences of the examples' terms

The model that the user calls has its parameters moved in place for as long as a call takes, so parameters that it reads
by other ways than its modules move too. All is done in float64 where the model can be run in it, since differences in
float32 tell two or three digits; the step is small enough that few kinks (ReLU, maxima) lie between its ends. A
difference proves, or it contradicts (two steps agree with each other and not with the derivative), or it says nothing.

**Cost:** about twelve gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from frechet.errors import LostRank, NotDifferentiable, UnusableObjective
from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective._attributes import Attributes, attributes_of, put_back
from frechet.objective._check import Check, Proved, passes
from frechet.objective._coupling import couplings_seen
from frechet.objective._data import fixed_draws
from frechet.objective._kernels import ordinary_mode
from frechet.objective._model import arguments_of, backward_hooks, outputs_of
from frechet.objective._remembered import Remembered
from frechet.objective._structure import Layout, fresh
from frechet.objective._torch_internals import autocast_left_out
from frechet.objective.criteria._custom import criterion_for
from frechet.operators._differences import CLOSE, SINGLE, STEPS, Noise, compare, linear, squared
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._gauss_newton import empirical_fisher, gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._products import differentiating
from frechet.space import generator

Pick = Callable[["_Measured"], float | None]


def check(objective: Objective) -> Check:
    """Raise where an objective is not one fixed, finite function with right derivatives; return what was seen."""
    attributes = attributes_of(tuple(objective.model.modules()))  # before any pass could leave something behind
    found = passes(objective.snapshot(pieces=True).gathered(), objective.value, objective.wrapper)
    coupled = found.coupled
    if not coupled and objective.group is None and objective.space.shard is None:
        coupled = couplings_seen(objective.snapshot())
    return replace(found, proved=prove(objective, found, attributes), coupled=coupled)


def prove(objective: Objective, found: Check, attributes: Attributes) -> tuple[Proved, ...]:
    """Compare an objective's derivatives with differences; raises `NotDifferentiable` where they contradict.

    Where passes have `found` operations that are not differentiable everywhere only small steps are taken, and rows
    that get no gradient by design (the padding of embeddings) do not move.
    """
    twin = _double(objective)
    if twin is not None:
        try:
            return _proved(twin, STEPS[1:] if found.kinks else STEPS, found, attributes)
        except (NotDifferentiable, LostRank):
            raise
        except Exception:  # whatever a model raises in float64 says that it cannot be run in it
            if objective.space.dtype == torch.float64:
                raise
    return _proved(objective, STEPS if objective.space.dtype == torch.float64 else SINGLE, found, attributes)


def _double(objective: Objective) -> Objective | None:
    """The objective in float64; None where it is or where the device has none."""
    if objective.space.dtype == torch.float64:
        return objective
    if objective.space.device.type == "mps" or objective.space.shard is not None:
        return None
    return objective._with(tuple(replace(p, dtype=torch.float64) for p in objective.parts), objective.penalties)


def _proved(objective: Objective, steps: tuple[float, ...], seen: Check, attributes: Attributes) -> tuple[Proved, ...]:
    x = objective.point
    d, u = (_direction(objective, x, j, seen.padding) for j in (0, 1))
    found = []
    ours = Remembered(objective.snapshot(x, pieces=True))
    with ours:
        gradient = objective.gradient(x)
    slope = float(objective.space.inner(gradient, d))
    told = _Told(False)
    if objective.group is None and objective.space.shard is None:
        snapshot = replace(objective.snapshot(x), attributes=attributes)
        live = _LiveModel(objective, snapshot, x, d, steps, told, ours, Remembered(snapshot))
        found += [live.value(), live.slope(slope), *live.products()]
    scale = _scale(objective, x)

    def curved(h: float) -> Tensor:
        with ours:
            ends = [objective.gradient(x + s * h * d) for s in (1.0, -1.0)]
        return scale * (ends[0] - ends[1]) / (2 * h)

    size = max(float(objective.space.norm(scale * gradient)), abs(seen.value))  # sums of the loss's size are rounded
    noise = linear(objective.space.eps * size)
    claim = "the Hessian is the derivative of the gradient"

    def of_hessian() -> Proved:
        with ours:
            image = hessian(objective, x) @ torch.stack([d, u], 1)
        pair = [float(objective.space.inner(a, b)) for a, b in ((u, image[:, 0]), (d, image[:, 1]))]
        size = max(float(objective.space.norm(scale * image[:, j])) for j in (0, 1))
        symmetric.append(_symmetric(pair, size * objective.space.dim**0.5, objective.space.eps))
        return compare(claim, curved, scale * image[:, 0], steps, noise)

    symmetric: list[Proved] = []
    found.append(told.of(claim, of_hessian))
    return (*found, *symmetric)


@dataclass
class _Told:
    """Whether gradients are changed on purpose: then contradictions are told, and do not end the check."""

    changed: bool

    def of(self, claim: str, run: Callable[[], Proved]) -> Proved:
        try:
            return run()
        except NotDifferentiable:
            if not self.changed:
                raise
        return self.left_open(claim)

    def left_open(self, claim: str) -> Proved:
        return Proved(
            f"{claim} (backward hooks or functions with a backward of their own change gradients)", False, 1.0
        )


def _scale(objective: Objective, x: Tensor) -> Tensor:
    """The size of each parameter's block, as a vector."""
    blocks = objective.space.split(x)
    sizes = [b.abs().mean() if b.numel() and bool((b != 0).any()) else b.new_ones(()) for b in blocks]
    return torch.cat([size.expand(b.numel()) for size, b in zip(sizes, blocks, strict=True)])


def _direction(objective: Objective, x: Tensor, j: int, padding: tuple[tuple[str, int], ...]) -> Tensor:
    drawn = torch.randn(len(x), generator=generator(0, j), dtype=torch.float64).to(x.device, x.dtype)
    drawn *= _scale(objective, x)
    if objective.space.shard is None:
        for name, row in padding:
            objective.space.unflatten(drawn)[name][row] = 0.0
    return drawn


def _symmetric(pair: list[float], size: float, eps: float) -> Proved:
    off = abs(pair[0] - pair[1]) / max(abs(pair[0]), abs(pair[1]), size * eps**0.5, 1e-300)
    if off > max(CLOSE, eps**0.5):
        raise NotDifferentiable(
            f"check: the Hessian must be symmetric, got u'Hv = {pair[0]:.6g} and v'Hu = {pair[1]:.6g}: the gradients "
            "are those of no function, since a backward hook or a torch.autograd.Function changes them, or a "
            "derivative of the model is wrong"
        )
    return Proved("the Hessian is symmetric", True, off)


@dataclass(eq=False)
class _Sums:
    """What differences of a user's model over the data add up to."""

    losses: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # at x, x + h d, x - h d
    quadratic: float = 0.0  # y'C y
    squares: float = 0.0  # of the slopes of the examples' terms
    outputs: float = 0.0  # of the outputs themselves, in C
    terms: float = 0.0  # of the terms themselves
    examples: int = 0
    count: float = 0.0


@dataclass(eq=False)
class _LiveModel:
    """The claims that the model proves that the user calls, at x and along d."""

    objective: Objective
    snapshot: Snapshot
    x: Tensor
    d: Tensor
    steps: tuple[float, ...]
    told: _Told
    ours: Remembered
    theirs: Remembered
    measured: dict[float, _Measured] = field(default_factory=dict)

    def at(self, h: float) -> _Measured:
        """What the model tells with its parameters at x + h d and x - h d."""
        if h not in self.measured:
            with self.theirs:
                self.measured[h] = _measured(self.snapshot, self.x, self.d, h)
        return self.measured[h]

    def value(self) -> Proved:
        """The loss at both ends of a step is the objective's value."""
        eps, h, off = self.objective.space.eps, self.steps[0], 0.0
        for place, loss in ((self.x, self.at(h).loss), (self.x + h * self.d, self.at(h).ahead)):
            with self.ours:
                value = float(self.objective.value(place))
            size = max(abs(loss), self.at(h).size, 1e-300)
            off = max(off, abs(loss - value) / size)
            if off > 1e4 * eps * max(1.0, abs(value) / size):
                raise UnusableObjective(
                    f"check: the model called as it is gives the loss {loss:.8g}, and {value:.8g} in a pass of "
                    "frechet: it reads something that is not its parameters, buffers, attributes or inputs, or it "
                    "computes another way without gradients"
                )
        return Proved("the loss is that of the model as you call it", True, off)

    def slope(self, slope: float) -> Proved:
        """`slope` is that of the loss; where it is not because gradients are changed on purpose, that is told."""
        claim = "the gradient is the slope of the loss"
        rounding = linear(self.objective.space.eps * self.at(self.steps[0]).size)
        compared = partial(self._compared, claim, lambda m: m.slope, slope, rounding)
        try:
            return compared()
        except NotDifferentiable:
            self.told.changed = _changes_gradients(self.objective, self.x)
            return self.told.of(claim, compared)

    def products(self) -> Iterator[Proved]:
        """Gauss-Newton and the second moment, where the model and the criterion have them."""
        at = self.at(self.steps[0])
        if at.quadratic is not None:
            claim = "Gauss-Newton products are those of the outputs' Jacobian"
            yield from self._form(
                claim, lambda m: m.quadratic, at.outputs, lambda: gauss_newton(self.objective, x=self.x)
            )
        if at.squares is not None:
            claim = "the second moment is that of the examples' slopes"
            yield from self._form(
                *(claim, lambda m: m.squares, at.terms),
                lambda: empirical_fisher(self.objective, per="example", x=self.x),
            )

    def _form(self, claim: str, pick: Pick, size: float, make: Callable[[], LinearOperator]) -> Iterator[Proved]:
        """d'A d of the operator that `make` gives is what `pick` takes of a difference."""
        space = self.objective.space
        try:
            with self.ours:
                value = float(space.inner(self.d, make() @ self.d))
        except (ValueError, UnusableObjective):  # of a question that has no answer for this model and criterion
            return
        except NotDifferentiable:
            if not self.told.changed:
                raise
            yield self.told.left_open(claim)
            return
        rounding = squared(space.eps, abs(value), size)
        yield self.told.of(claim, partial(self._compared, claim, pick, value, rounding))

    def _compared(self, claim: str, pick: Pick, value: float, rounding: Noise) -> Proved:
        def difference(h: float) -> Tensor:
            return torch.tensor([pick(self.at(h))], dtype=torch.float64)

        return compare(claim, difference, torch.tensor([value], dtype=torch.float64), self.steps, rounding)


def _changes_gradients(objective: Objective, x: Tensor) -> bool:
    """Whether the model has backward hooks, or functions with a backward of their own."""
    snapshot = objective.snapshot(x)
    if backward_hooks(objective.model) is not None:
        return True
    _, blocks = snapshot.leaves(snapshot.space)

    def visit(part: Part, batch: Batch) -> None:
        with torch.enable_grad():
            snapshot.forward(blocks, batch, part.head)

    with snapshot.installed(blocks):
        snapshot.sweep(visit)
    return snapshot.functions is not None and (snapshot.functions.hooked or snapshot.functions.custom)


@dataclass(frozen=True)
class _Measured:
    """What the user's model tells at x and a step beside it; None: there is no such question."""

    loss: float
    ahead: float  # at x + h d
    slope: float
    quadratic: float | None  # y'C y
    squares: float | None  # mean square of the examples' slopes
    size: float  # of the sums, whose rounding is subtracted
    outputs: float  # y'|C|y of the outputs themselves
    terms: float  # mean square of the terms themselves


def _measured(snapshot: Snapshot, x: Tensor, d: Tensor, h: float) -> _Measured:
    losses, quadratic, squares, size, outputs, terms = [0.0, 0.0, 0.0], 0.0, 0.0, 0.0, 0.0, 0.0
    asked = [True, True]
    for part in snapshot.parts:
        sums = _Sums()
        with snapshot.without_model().running():
            for batch in part.batches(snapshot.space.device):
                _add(snapshot, part, batch, x, d, h, sums, asked)
        if sums.count <= 0:
            continue
        for i in range(3):
            losses[i] += part.weight * sums.losses[i] / sums.count
        size += abs(part.weight * sums.losses[0] / sums.count)
        quadratic += part.weight * sums.quadratic / sums.count
        squares += part.weight**2 * sums.squares * sums.examples / sums.count**2
        outputs += abs(part.weight) * sums.outputs / sums.count
        terms += part.weight**2 * sums.terms * sums.examples / sums.count**2
    if snapshot.penalties:
        with _placed(snapshot, x):
            blocks = snapshot.space.unflatten(x)
            moved = [snapshot.space.unflatten(x + s * h * d) for s in (1.0, -1.0)]
        values = [float(snapshot.penalty(b).detach()) for b in (blocks, *moved)]
        losses = [loss + value for loss, value in zip(losses, values, strict=True)]
        asked[0] = asked[0] and not any(p.convex for _, p in snapshot.penalties)
    slope = (losses[1] - losses[2]) / (2 * h)
    return _Measured(
        *(losses[0], losses[1], slope, quadratic if asked[0] else None, squares if asked[1] else None, size),
        *(outputs, terms),
    )


def _add(
    snapshot: Snapshot, part: Part, batch: Batch, x: Tensor, d: Tensor, h: float, sums: _Sums, asked: list[bool]
) -> None:
    outputs, terms = [], []
    for s in (0.0, 1.0, -1.0):
        y, t, layout = _called(snapshot, part, batch, x + s * h * d)
        outputs.append(y)
        terms.append(t)
    for i, t in enumerate(terms):
        sums.losses[i] += float(t.sum())
    sums.count += float(snapshot.count(part, batch))
    sums.examples += batch.examples
    sums.terms += float(terms[0].square().sum())
    sums.squares += float((((terms[1] - terms[2]) / (2 * h)) ** 2).sum())
    asked[1] = asked[1] and part.criterion.additive and len(terms[0]) == batch.examples
    criterion = criterion_for(part.criterion, layout)
    moved = (outputs[1] - outputs[2]) / (2 * h)
    with _placed(snapshot, x), differentiating("check", snapshot.space.device):
        reads = criterion.terms(outputs[0].detach(), batch.targets).requires_grad
        asked[0] = asked[0] and not reads and part.head is None
        if asked[0]:
            image = criterion.hessian_product(outputs[0].detach(), batch.targets, moved)
            sums.quadratic += float((image.detach() * moved).sum(dtype=torch.float64))
            image = criterion.hessian_product(outputs[0].detach(), batch.targets, outputs[0].detach())
            sums.outputs += float((image.detach() * outputs[0]).abs().sum(dtype=torch.float64))


def _called(snapshot: Snapshot, part: Part, batch: Batch, x: Tensor) -> tuple[Tensor, Tensor, Layout]:
    """The outputs and terms of the user's model, called as it is with its parameters at x."""
    layout = Layout()
    with _placed(snapshot, x), put_back(snapshot.attributes, snapshot.modules, layout.left):
        args, keywords = arguments_of(batch.model or snapshot.model, fresh(batch.inputs))
        with ExitStack() as stack:
            if snapshot.dropout_seed is not None:
                stack.enter_context(fixed_draws(snapshot.dropout_seed, batch.index))
            returned = outputs_of((batch.model or snapshot.model)(*args, **keywords))
        y = layout.pack(returned).detach()
        terms = criterion_for(part.criterion, layout).terms(y, batch.targets)
    return y.detach(), terms.detach().double(), layout


@contextmanager
def _placed(snapshot: Snapshot, x: Tensor) -> Iterator[None]:
    """The user's model with its parameters moved to x in place, and its buffers as recorded, for a moment."""
    state = {**snapshot.constants, **snapshot.space.unflatten(x)}
    kept: list[tuple[Tensor, Tensor]] = []
    with ExitStack() as stack:
        stack.enter_context(ordinary_mode(snapshot.space.device))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(autocast_left_out())
        try:
            for name, value in state.items():
                holder, key = snapshot.places[name][0]
                kept.append((holder[key], holder[key].data))
                holder[key].data = value.detach().clone()
            yield
        finally:
            for t, data in kept:
                t.data = data
