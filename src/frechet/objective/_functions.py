"""The user's functions (a model, a criterion, a penalty, f of x) as they must run where their derivatives are taken.

A function mode sees every call of a torch function that they make. It does four things:

1. Kernels whose derivatives are missing or wrong are replaced by formulas (`_formulas.py`, `_activations.py`).
2. A function that takes derivatives itself (a force, a residual of a differential equation, an inner gradient step) is
   noticed. Its derivatives are one order higher than they look, so it runs again with normalizations by formula, and
   with gradients enabled even where only its value is asked for.
3. A parameter or buffer of the model that the function reads by another way than its module (a closure, a tied weight
   in `functools.partial`, a parameter in a loss) is replaced by what stands in its module.
4. Backward hooks that it registers are noticed: forward mode does not see them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from frechet.objective._activations import ACTIVATIONS
from frechet.objective._formulas import LAYERS, NORMS
from frechet.objective._torch_internals import backward_inside, make_dual

T = TypeVar("T")

Place = tuple[dict[str, Any], str]  # a dict in which a module keeps a parameter or buffer, and its key

_FORMULAS: dict[Any, Callable[..., Any]] = {**LAYERS, **ACTIVATIONS}
_BACKWARD = {torch.autograd.grad, torch.autograd.backward, Tensor.backward}
_DERIVATIVES = _BACKWARD | {make_dual}
_HOOKS = {Tensor.register_hook}
_NOTICED = _DERIVATIVES | _HOOKS
_SPECIAL = frozenset({*_FORMULAS, *NORMS, *_NOTICED})


class Functions(TorchFunctionMode):
    """A context in which the user's functions run, and what has been seen of them so far.

    `live` are the model's parameters and buffers as they were when the operator was made, each with a place at which
    the model keeps what is installed for it. With `nested` all derivatives are taken as of a function that takes
    derivatives itself.
    """

    def __init__(self, live: Mapping[str, tuple[Tensor, Place]] | None = None, *, nested: bool = False) -> None:
        super().__init__()
        self.nested = nested  # the function takes derivatives itself
        self.hooked = False  # it registers backward hooks
        self.custom = False  # it calls functions with a backward of their own
        self.proved = False  # and their backwards were seen to carry their derivatives
        self.symmetric = False  # and second derivatives were seen to be symmetric
        self.linear = False  # and backward passes were seen to be linear in what they are given
        self.adjoint = False  # and products in reverse mode to be their adjoints
        self.reads: set[str] = set()  # parameters and buffers that it reads by another way than their module
        self.names = {id(t): name for name, (t, _) in (live or {}).items()}
        self._live = {id(t): (t, *place) for t, place in (live or {}).values()}
        self._inside = 0

    def evaluate(self, run: Callable[[], T]) -> T:
        """Return what `run`, which calls the user's function, returns; from the beginning where it was nested."""
        if not self.nested:
            try:
                found = self._run(run)
            except RuntimeError:
                if not self.nested:
                    raise
            else:
                if not self.nested:
                    return found
        return self._run(run)

    def _run(self, run: Callable[[], T]) -> T:
        self._inside += 1
        try:
            if self.nested and not torch.is_grad_enabled():
                with torch.enable_grad():
                    return run()
            return run()
        finally:
            self._inside -= 1

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _SPECIAL and not self._live:
            return func(*args, **kwargs) if kwargs else func(*args)
        keywords = kwargs or {}
        if self._live:
            args = self._installed(args)
            if keywords:
                keywords = dict(zip(keywords, self._installed(tuple(keywords.values())), strict=True))
        formula = _FORMULAS.get(func)
        if formula is None and self.nested:
            formula = NORMS.get(func)
        if formula is not None:
            return formula(*args, **keywords)
        if func in _NOTICED:
            return self._notice(func, args, keywords)
        return func(*args, **keywords)

    def _notice(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if self._inside:
            self.nested = self.nested or func in _DERIVATIVES
            self.hooked = self.hooked or (func in _HOOKS and not _is_torchs(args[-1]))
        if func not in _BACKWARD:
            return func(*args, **keywords)
        inside, self._inside = self._inside, 0  # what a backward pass runs again is no new call
        try:
            with backward_inside(self):
                return func(*args, **keywords)
        finally:
            self._inside = inside

    def _installed(self, args: Any) -> Any:
        """The arguments, with what is installed in the place of the model's own parameters and buffers."""
        changed: list[Any] | None = None
        for i, a in enumerate(args):
            place = self._live.get(id(a))
            if place is not None:
                t, holder, key = place
                b = holder.get(key, t)
                if b is not t and self._inside:
                    self.reads.add(self.names[id(t)])
            elif type(a) in (list, tuple):
                b = self._installed(a)
            else:
                continue
            if b is not a:
                changed = list(args) if changed is None else changed
                changed[i] = b
        return args if changed is None else tuple(changed) if isinstance(args, tuple) else changed


def _is_torchs(hook: Any) -> bool:
    """Whether a hook is one by which torch's own tools count modules or operations; they change no gradient."""
    return str(getattr(hook, "__module__", "")).startswith("torch.")
