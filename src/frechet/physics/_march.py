"""Time stepping y_{k+1} = S(y_k, u_k, p), k = 0 ... M - 1, with the exact derivatives of the numbers that come back.

    tangent    dy_{k+1} = S_y dy_k + S_u du_k + S_p dp                               forward, beside the states
    adjoint    w_k = S_y' w_{k+1} + (dJ/dy_k)',  dJ/du_k = S_u' w_{k+1},  dJ/dp = sum_k S_p' w_{k+1}      backward

The steps run in about sqrt(M) segments. A segment is one node of the graph: a function of plain tensors whose
derivatives, of any order and in both modes, are such functions again, that keep their inputs alone and run the steps
again. So gradients, tangents, Hessian products and their nestings all keep O(sqrt(M)) states.

Sums of cotangents must not depend on where segments end. So the parameters pass through the segments as states do,
where their gradient adds up step by step, and what one step or one output adds to a cotangent is summed apart.

**Source.** A. Griewank and A. Walther (2008), Evaluating derivatives, chapters 3 and 12.
**Differs from continuous adjoints:** no second equation is discretized, whose error is not that of the first.
**Cost.** Each order of differentiation runs the steps once more; memory of one segment's graph and of one state for
each segment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.solutions._equations import tensors_among
from frechet.calculus.solutions._plain_function import Nested
from frechet.errors import NonFinite, NotConverged
from frechet.objective._torch_internals import in_dispatch_mode, in_forward_mode, in_transform
from frechet.physics._closed_over import arguments_alone
from frechet.physics._repetition import Repetition
from frechet.space import Point, named

FEW = 64  # steps whose graphs are kept: products with second derivatives are then three to five times as fast


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Where a `march` went.

    Attributes:
        final: the state after the last step, in the form of the first.
        outputs: what `output` returned of the states 0 to M, stacked along axis 0; the states, without `output`.
        steps: M.
    """

    final: Any
    outputs: Any
    steps: int


def march(
    step: Callable[..., Point],
    state: Point,
    controls: Point | None = None,
    *,
    parameters: Any = None,
    steps: int | None = None,
    output: Callable[[Any], Point] | None = None,
    checkpoints: int | None = None,
) -> Trajectory:
    """Return the states of ``y_{k+1} = step(y_k, u_k)``, differentiable to any order in all that goes in.

    Derivatives are those of the discrete solution, by ``backward``, dual numbers and `torch.func`, nested at will. So
    `jacobian`, `hessian`, `least_squares` and `minimize` take a function of the controls that calls this.

    Args:
        step: ``step(y, u)``, or ``step(y, u, parameters)`` where there are parameters, or without u where there are no
            controls. It returns the next state, shaped like y. A step that solves an equation comes from
            `implicit_step`. Times, step lengths and other data of a step are controls, too.
        state: the first state, a tensor of any shape or a dict of tensors.
        controls: a tensor or a dict of tensors with the M steps along axis 0. Default: none.
        parameters: what all steps share, tensors in any nest of dicts, lists and tuples. Tensors that `step` closes
            over get no derivative where there are checkpoints, and are refused where they require one. Default: none.
        steps: M. Default: that of the controls.
        output: a function of a state whose values are kept, such as the term of a cost. Default: the state itself,
            which keeps M + 1 of them.
        checkpoints: how many states a backward pass starts from, 1 <= checkpoints <= M; 0 keeps the graphs of all
            steps, which costs memory in place of a second run of the steps. The result is the same to the last bit.
            Default: 0 for at most 64 steps, about sqrt(M) beyond.

    Raises:
        NonFinite: a step gave NaN or infinity; its index is in the message.
        NotConverged: the equation of a step was not solved; its index is in the message, and `result` is the state
            before it.

    Example:
        >>> import torch
        >>> from frechet.physics import march
        >>> def cost(u):  # y' = -y + u by Euler's method, 10 steps of 0.1, towards y = 1
        ...     y = march(lambda y, u: y + 0.1 * (u - y), torch.zeros((), dtype=torch.float64), u)
        ...     return (y.final - 1) ** 2
        >>> torch.func.grad(cost)(torch.zeros(10, dtype=torch.float64))[[0, 9]]
        tensor([-0.0775, -0.2000], dtype=torch.float64)
    """
    problem, tensors = _problem(step, state, controls, parameters, steps, output)
    count = problem.steps
    if checkpoints is not None and not (type(checkpoints) is int and 0 <= checkpoints <= max(count, 1)):
        raise ValueError(
            f"march: checkpoints must be an int from 0 to the number of steps {count}, got {checkpoints!r}"
        )
    if checkpoints is None:
        checkpoints = 0 if count <= FEW else math.ceil(math.sqrt(count))
    if checkpoints == 0 or not count:
        found = problem.run(tensors, 0, count)
    else:
        found = _in_segments(problem, tensors, checkpoints)
    ny, n_p = problem.states, problem.shared
    first = problem.observed(tensors[:ny])
    outputs = [torch.cat([a[None], b]) for a, b in zip(first, found[ny + n_p :], strict=True)]
    return Trajectory(problem.state_of(found[:ny]), problem.output_of(outputs), count)


@dataclass(frozen=True, eq=False)
class _Problem:
    """The steps as a function of plain tensors: states, controls, parameters, in this order."""

    step: Callable[..., Point]
    output: Callable[[Any], Point]
    names: tuple[str, ...] | None  # of the state's blocks; None for a tensor
    shapes: tuple[torch.Size, ...]
    control_names: tuple[str, ...] | None
    controlled: bool
    parametrized: bool
    rebuilt: Callable[[Any], Any]  # the parameters of their tensors
    output_names: list[tuple[str, ...] | None]  # known after the first output
    output_form: list[tuple[tuple[str, torch.Size], ...]]  # and their shapes
    states: int
    shared: int
    steps: int
    followed: bool  # whether a transform or dual numbers are around

    def state_of(self, tensors: list[Tensor] | tuple[Tensor, ...]) -> Point:
        return tensors[0] if self.names is None else dict(zip(self.names, tensors, strict=True))

    def output_of(self, tensors: list[Tensor]) -> Point:
        names = self.output_names[0] if self.output_names else None
        return tensors[0] if names is None else dict(zip(names, tensors, strict=True))

    def observed(self, y: list[Tensor]) -> list[Tensor]:
        """The output of a state, as tensors."""
        found = self.output(self.state_of(_apart(y)))
        blocks = named(found) if isinstance(found, Tensor | dict) else None
        if blocks is None or not all(isinstance(b, Tensor) for b in blocks.values()):
            raise TypeError(f"march: output must return a tensor or a dict of tensors, got {type(found).__name__}")
        form = tuple((name, b.shape) for name, b in blocks.items())  # pyright: ignore[reportAttributeAccessIssue]
        if not self.output_names:
            self.output_names.append(None if isinstance(found, Tensor) else tuple(blocks))
            self.output_form.append(form)
        elif form != self.output_form[0]:
            told = [{name or "output": tuple(shape) for name, shape in f} for f in (self.output_form[0], form)]
            raise ValueError(f"march: output must return one form for all states, got {told[0]}, then {told[1]}")
        return list(blocks.values())

    def run(self, tensors: list[Tensor], a: int, b: int, *, alone: bool = False) -> list[Tensor]:
        """States after the steps a to b - 1, the parameters, and the outputs; controls count from the step a.

        With `alone` the steps must use nothing that a transform follows.
        """
        ny, n_p = self.states, self.shared
        nu = len(tensors) - ny - n_p
        y, controls, p = list(tensors[:ny]), tensors[ny : ny + nu], tensors[ny + nu :]
        rows: list[list[Tensor]] = []
        for k in range(a, b):
            u = [c[k - a] for c in controls]
            with arguments_alone() if alone else nullcontext():
                y = self._stepped(k, y, u, p)
                rows.append(self.observed(y))
        outputs = [torch.stack(column) for column in zip(*rows, strict=True)]
        if not outputs:
            outputs = [o.new_zeros(0, *o.shape) for o in self.observed(y)]
        return [*y, *(t.clone() for t in p), *outputs]

    def _arguments(self, y: list[Tensor], u: list[Tensor], p: list[Tensor]) -> list[Any]:
        """What `step` takes."""
        found: list[Any] = [self.state_of(y)]
        if self.controlled:
            found.append(u[0] if self.control_names is None else dict(zip(self.control_names, u, strict=True)))
        if self.parametrized:
            found.append(self.rebuilt(p))
        return found

    def _stepped(self, k: int, y: list[Tensor], u: list[Tensor], p: list[Tensor]) -> list[Tensor]:
        where = f"march: step {k} of 0 to {self.steps - 1}"
        before, p = _apart(y), _apart(p)
        versions = [t._version for t in (*before, *u, *p)]
        try:
            found = self.step(*self._arguments(before, u, p))
        except NotConverged as error:
            raise NotConverged(f"{where} was not solved: {error}", self.state_of(y)) from error
        except (ArithmeticError, RuntimeError, ValueError, TypeError) as error:
            error.add_note(where)
            raise
        blocks = dict(found) if isinstance(found, dict) else {"": found}
        names = ("",) if self.names is None else self.names
        if set(blocks) != set(names):
            got = sorted(blocks) if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"{where} must return a state like the first, {self._told()}, got {got}")
        if [t._version for t in (*before, *u, *p)] != versions:
            raise ValueError(f"{where} must not change its arguments in place; return new tensors")
        after: list[Any] = [blocks[name] for name in names]
        for name, t, shape, old in zip(names, after, self.shapes, y, strict=True):
            if not isinstance(t, Tensor) or t.shape != shape or t.dtype != old.dtype:
                got = f"{t.dtype} {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
                place = f" in {name!r}" if name else ""
                raise ValueError(f"{where} must return a state like the first, {self._told()}, got {got}{place}")
        if not in_transform() and not in_dispatch_mode() and not all(bool(t.isfinite().all()) for t in after):
            given = {"controls": u, "parameters": p, "the state": y}
            wrong = [name for name, ts in given.items() if not all(bool(t.isfinite().all()) for t in ts)]
            if wrong:
                raise NonFinite(f"{where} must be given finite numbers, got NaN or infinity in {' and '.join(wrong)}")
            size = max(float(t.detach().abs().max()) for t in y if t.numel())
            raise NonFinite(
                f"{where} gave NaN or infinity from a state whose largest entry is {size:.3g}; take shorter steps, or "
                "an implicit one"
            )
        return after

    def _told(self) -> str:
        shapes = ", ".join(str(tuple(s)) for s in self.shapes)
        return shapes if self.names is None else f"{list(self.names)} of shapes {shapes}"


def _apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors behind nodes of their own, in which what one reader adds to a cotangent is summed."""
    return [t.view_as(t) for t in tensors]


@dataclass(frozen=True, eq=False)
class _Segment:
    """The steps a to b - 1 as one function of tensors."""

    problem: _Problem
    a: int
    b: int
    first: Repetition = field(default_factory=Repetition)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        opened = any(t.requires_grad for t in tensors)  # in a derivative of the segment
        with self.first.same_draws(tensors):
            found = self.problem.run(list(tensors), self.a, self.b, alone=self.problem.followed and not opened)
        self.first.compare(tensors, found, f"the steps {self.a} to {self.b - 1}")
        if not opened and any(t.requires_grad for t in found):
            raise ValueError(
                "march: step must use tensors that require grad only as its arguments, got one that is closed over and "
                "would get no derivative; pass it in parameters=, or detach it"
            )
        return found


def _in_segments(problem: _Problem, tensors: list[Tensor], segments: int) -> list[Tensor]:
    ny, n_p, count = problem.states, problem.shared, problem.steps
    y, controls, p = tensors[:ny], tensors[ny : len(tensors) - n_p], tensors[len(tensors) - n_p :]
    size = math.ceil(count / segments)
    rows: list[list[Tensor]] = []
    for a in range(0, count, size):
        b = min(a + size, count)
        found = Nested.apply(_Segment(problem, a, b), *y, *(c[a:b] for c in controls), *p)
        y, p = list(found[:ny]), list(found[ny : ny + n_p])
        rows.append(list(found[ny + n_p :]))
    return [*y, *p, *(torch.cat(column) for column in zip(*rows, strict=True))]


def _problem(
    step: Callable[..., Point],
    state: Point,
    controls: Point | None,
    parameters: Any,
    steps: int | None,
    output: Callable[[Any], Point] | None,
) -> tuple[_Problem, list[Tensor]]:
    """The checked arguments as a function of tensors, and these."""
    if not callable(step):
        raise TypeError(f"march: step must be a function of a state, got {type(step).__name__}")
    y, u = _blocks("state", state), {} if controls is None else _blocks("controls", controls)
    if isinstance(parameters, torch.nn.Module):
        raise TypeError(
            f"march: parameters must be tensors, got a module {type(parameters).__name__}; pass "
            "dict(module.named_parameters()), and call it by torch.func.functional_call"
        )
    p, rebuilt = tensors_among(parameters)
    counts = {name: len(b) if b.ndim else -1 for name, b in u.items()}
    if -1 in counts.values() or len(set(counts.values())) > 1 or (u and steps not in (None, *counts.values())):
        wanted = "" if steps is None else f" {steps}"
        raise ValueError(f"march: controls must have the{wanted} steps along axis 0 of each block, got "
                         f"{ {name or 'controls': tuple(b.shape) for name, b in u.items()} }")  # fmt: skip
    count = next(iter(counts.values())) if u else steps
    if count is None or isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"march: steps must be an int >= 0 where there are no controls, got {steps!r}")
    names = None if isinstance(state, Tensor) else tuple(y)
    control_names = None if controls is None or isinstance(controls, Tensor) else tuple(u)
    problem = _Problem(
        step=step,
        output=(lambda y: y) if output is None else output,
        names=names,
        shapes=tuple(b.shape for b in y.values()),
        control_names=control_names,
        controlled=controls is not None,
        parametrized=parameters is not None,
        rebuilt=rebuilt,
        output_names=[],
        output_form=[],
        states=len(y),
        shared=len(p),
        steps=count,
        followed=in_transform() or in_forward_mode(),
    )
    return problem, [*y.values(), *u.values(), *p]


def _blocks(name: str, given: object) -> dict[str, Tensor]:
    blocks = named(given) if isinstance(given, Tensor | dict) else {"": given}
    for block, t in blocks.items():
        if not isinstance(t, Tensor) or not (t.is_floating_point() or name == "controls"):
            got = str(t.dtype) if isinstance(t, Tensor) else type(t).__name__
            where = f" in block '{block}'" if block else ""
            raise TypeError(f"march: {name} must be a floating tensor or a dict of such, got {got}{where}")
    if not blocks:
        raise ValueError(f"march: {name} must have at least one block, got none")
    return blocks  # pyright: ignore[reportReturnType]
