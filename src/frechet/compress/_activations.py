"""What quantizing the input of each layer does to the loss: predicted from curvature, and measured beside.

At layer l and b bits the input a becomes a + t e with e = Q_b(a) - a held fixed, and t a number. The loss is then a
function of one number for each layer and number of bits, with

    dL/dt = g_a'e,    d2L/dt2 = e'H_a e    at t = 0        (H_a: the Hessian of the loss in the activation a)
    L(t = 1) - L(0)                                        the loss with this activation quantized

so that the block of curvature of all layers and numbers of bits is a small matrix whose diagonal is the table, exact
over all examples, with no vector of an activation's size. Layers are quantized one at a time.

The range of a quantizer is fixed by a first pass over the data: the least and the largest entry of the whole input, or
of each channel: the axis that a convolution or a linear layer sums over; of other modules axis 1 of images, else the
last one.

**Source.** Z. Dong et al. (2020), HAWQ-V2, arXiv 1911.03852, section 3.3, for the second order in activations.
**Differs from the source.** The quadratic form of the actual errors instead of a trace times their size.
**Cost.** One pass for the ranges; a product with one number for each layer and number of bits; for "taylor" a gradient;
measured, a pass for each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frechet.compress._sensitivity import Curvature, Sensitivity
from frechet.objective import Objective
from frechet.operators.derivatives import gauss_newton, hessian
from frechet.operators.derivatives._kfac_layers import is_transposed

Ranges = Literal["tensor", "channel"]
CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}  # the axes behind the channels
NUMBER = "_error"  # the parameter t of a layer


@dataclass(eq=False)
class _Site:
    """A layer whose input is moved by its rounding errors, and what is known of that input."""

    name: str
    bits: tuple[int, ...]
    ranges: Ranges
    module: nn.Module
    low: Tensor | None = None
    high: Tensor | None = None
    entries: int = 0  # in a pass over the data

    def look(self, a: Tensor) -> None:
        axes = self._others(a)
        low, high = (a.amin(axes, keepdim=True), a.amax(axes, keepdim=True)) if axes else (a, a)
        zero = torch.zeros((), dtype=a.dtype, device=a.device)  # 0 is always a level
        self.low = torch.minimum(low, zero if self.low is None else self.low)
        self.high = torch.maximum(high, zero if self.high is None else self.high)
        self.entries += a.numel()

    def _others(self, a: Tensor) -> list[int]:
        return [i for i in range(a.ndim) if self.ranges == "tensor" or i != self._channel(a.ndim)]

    def _channel(self, axes: int) -> int:
        behind = next((k for kind, k in CONVOLUTIONS.items() if isinstance(self.module, kind)), None)
        if behind is None:
            linear = isinstance(self.module, nn.Linear) or is_transposed(self.module)
            return axes - 1 if linear or axes < 4 else 1
        return axes - 1 - behind

    def errors(self, a: Tensor) -> list[Tensor]:
        assert self.low is not None
        assert self.high is not None
        return [_rounded(a, b, self.low, self.high) - a for b in self.bits]


def _rounded(a: Tensor, bits: int, low: Tensor, high: Tensor) -> Tensor:
    top = 2**bits - 1
    s = (high - low) / top
    s = torch.where(s > 0, s, torch.ones_like(s))
    z = (-low / s).round()
    return ((a / s).round() + z).clamp(0, top) * s - z * s


def activation_sensitivity(
    objective: Objective,
    bits: Sequence[int] = (4, 6, 8),
    *,
    ranges: Ranges = "tensor",
    method: Literal["quadratic", "taylor"] = "taylor",
    curvature: Curvature = "gauss_newton",
    measured: bool = False,
    modules: str | Iterable[str] | None = None,
) -> Sensitivity:
    """Estimate what quantizing the inputs of each layer does to the loss.

    Args:
        objective: the objective, with one data term, in evaluation. Its penalties are left out.
        bits: the numbers of bits that are tried, from 1 to 16.
        ranges: one range for the whole input of a layer, ``"tensor"``, or one for each ``"channel"``.
        method: ``"taylor"`` has the gradient's part, ``"quadratic"`` the curvature's alone.
        curvature: as in `sensitivity`.
        measured: whether the loss is evaluated with each input quantized, too.
        modules: glob patterns of modules that take one tensor. Default: all Linear and Conv layers that are called,
            and those of GPT-2 in transformers.

    Returns:
        A `Sensitivity` whose names are modules and whose sizes are the entries of their inputs for one example, of all
            calls together, the mean over the data rounded up, so that `allocate_bits` plans the bytes of activations.

    Raises:
        ValueError: no module matches or is called, a number of bits is out of range, or the objective has several
            terms or processes.

    Example:
        >>> import torch
        >>> from frechet import Objective, cross_entropy
        >>> from frechet.compress import activation_sensitivity
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> objective = Objective(model, cross_entropy(), [(torch.randn(64, 8), torch.randint(0, 3, (64,)))])
        >>> table = activation_sensitivity(objective, (2, 8), measured=True)
        >>> table.names, table.sizes, bool((table.predicted[:, 0].abs() > table.predicted[:, 1].abs()).all())
        (('0', '2'), (8, 16), True)
    """
    widths = _widths("activation_sensitivity", bits)
    if method not in ("quadratic", "taylor"):
        raise ValueError(f"activation_sensitivity: method must be 'quadratic' or 'taylor', got {method!r}")
    moved, sites = _moved(
        "activation_sensitivity", objective, dict.fromkeys(_named(objective, modules), widths), ranges
    )
    H = {"gauss_newton": gauss_newton, "hessian": hessian}[curvature](moved)
    n, space = H.domain.dim, moved.space
    value = H.dense().diagonal().double() / 2
    if method == "taylor":
        value = value + moved.gradient().double()
    loss = float(moved.value())
    found = None
    if measured:
        found = torch.tensor([float(moved.value(e)) - loss for e in space.units(range(n)).T], dtype=torch.float64)
    order, examples = [s.name for s in sites], sum(b.examples for b in objective.batches())
    at = torch.stack([torch.arange(n)[space.block(f"{name}.{NUMBER}".lstrip("."))] for name in order]).to(value.device)
    value = value[at]
    return Sensitivity(
        names=tuple(order),
        sizes=tuple(-(-s.entries // examples) for s in sites),
        bits=widths,
        predicted=value,
        lower=value,
        upper=value,
        measured=None if found is None else found[at.cpu()],
        loss=loss,
        method=f"{method} form of the {curvature.replace('_', '-')} in inputs of layers",
        products=n,
    )


def with_quantized_activations(
    objective: Objective, bits: Mapping[str, int], *, ranges: Ranges = "tensor"
) -> Objective:
    """Return the objective with the inputs of the named layers quantized: its value is the loss of such a plan.

    Its model is a copy with fixed ranges, and its parameters are those of the objective, so that
    ``value(quantized(objective, plan.bits))`` is the loss with weights quantized as well.

    Args:
        objective: the objective. Its penalties are left out.
        bits: the number of bits for each module, as in a `BitPlan` of `activation_sensitivity`.
        ranges: as in `activation_sensitivity`.

    Raises:
        ValueError: as `activation_sensitivity`.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.compress import with_quantized_activations
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> objective = Objective(model, squared_error(), [(torch.tensor([[0.4], [1.0]]), torch.zeros(2, 1))])
        >>> float(with_quantized_activations(objective, {"": 1}).value())  # 0.4 becomes 0
        0.5
    """
    widths = {n: _widths("with_quantized_activations", (b,)) for n, b in bits.items()}
    sites = _calibrated("with_quantized_activations", objective, widths, ranges)
    model = copy.deepcopy(objective.model)
    for site in sites:

        def quantize(module: nn.Module, given: tuple[Any, ...], site: _Site = site) -> tuple[Any, ...]:
            return (given[0] + site.errors(given[0])[0].detach(), *given[1:])

        model.get_submodule(site.name).register_forward_pre_hook(quantize)
    return _same(objective, model)


def _moved(
    what: str, objective: Objective, widths: Mapping[str, tuple[int, ...]], ranges: Ranges
) -> tuple[Objective, list[_Site]]:
    """The objective as a function of the numbers t of all sites, at 0."""
    sites = _calibrated(what, objective, widths, ranges)
    model = copy.deepcopy(objective.model).requires_grad_(False)
    for site in sites:
        module = model.get_submodule(site.name)
        t = torch.zeros(len(site.bits), dtype=objective.space.dtype, device=objective.space.device)
        module.register_parameter(NUMBER, nn.Parameter(t))

        def move(module: nn.Module, given: tuple[Any, ...], site: _Site = site) -> tuple[Any, ...]:
            a = given[0]
            for t, e in zip(getattr(module, NUMBER), site.errors(a.detach()), strict=True):
                a = a + t * e
            return (a, *given[1:])

        module.register_forward_pre_hook(move)
    return _same(objective, model), sites


def _same(objective: Objective, model: nn.Module) -> Objective:
    (part,) = objective.parts
    made = Objective(
        model, part.criterion, part.data, split=part.split, dtype=part.dtype, dropout_seed=objective.dropout_seed
    )
    return made if part.weight == 1.0 else part.weight * made


def _calibrated(what: str, objective: Objective, widths: Mapping[str, tuple[int, ...]], ranges: Ranges) -> list[_Site]:
    """The sites with the ranges of their inputs, from one pass; those that are not called are left out."""
    if len(objective.parts) != 1 or objective.group is not None or objective.parts[0].head is not None:
        raise ValueError(f"{what}: objective must have one data term, one process and no head=, got {objective!r}")
    if ranges not in ("tensor", "channel"):
        raise ValueError(f"{what}: ranges must be 'tensor' or 'channel', got {ranges!r}")
    modules = dict(objective.model.named_modules())
    for name in widths:
        if name not in modules:
            raise ValueError(f"{what}: modules must be those of the model, got {name!r}")
    sites = [_Site(name, own, ranges, modules[name]) for name, own in widths.items()]
    model = copy.deepcopy(objective.model)
    for site in sites:

        def look(module: nn.Module, given: tuple[Any, ...], site: _Site = site) -> None:
            if not given or not isinstance(given[0], Tensor) or not given[0].is_floating_point():
                raise ValueError(f"{what}: module '{site.name}' must take a floating tensor by position first")
            site.look(given[0].detach())

        model.get_submodule(site.name).register_forward_pre_hook(look)
    _same(objective, model).value()
    found = [s for s in sites if s.low is not None]
    if not found:
        raise ValueError(f"{what}: a module must be called by the model, got none of {list(widths)[:5]}")
    return found


def _named(objective: Objective, patterns: str | Iterable[str] | None) -> list[str]:
    modules = dict(objective.model.named_modules())
    if patterns is None:
        found = [n for n, m in modules.items() if isinstance(m, (nn.Linear, *CONVOLUTIONS)) or is_transposed(m)]
    else:
        globs = [patterns] if isinstance(patterns, str) else list(patterns)
        found = [n for n in modules if any(fnmatchcase(n, g) for g in globs)]
    if not found:
        raise ValueError(f"activation_sensitivity: modules must match a module, got {patterns!r}")
    return found


def _widths(what: str, bits: Sequence[int]) -> tuple[int, ...]:
    found = tuple(bits)
    if not found or not all(isinstance(b, int) and not isinstance(b, bool) and 1 <= b <= 16 for b in found):
        raise ValueError(f"{what}: bits must be numbers from 1 to 16, got {found}")
    return found
