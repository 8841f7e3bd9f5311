"""Elementwise functions of one tensor: their Taylor coefficients at the value, composed with the series.

Functions with kinks take the branch of the value. At a kink they have the derivative that torch gives there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.taylor import _truncated as truncated
from frechet.calculus.taylor._arguments import Rule, bound, words
from frechet.calculus.taylor._bilinear import multiplied
from frechet.calculus.taylor._linear import wrapped
from frechet.calculus.taylor._series import Frame, composed
from frechet.calculus.taylor._tensor import SeriesTensor, series
from frechet.calculus.taylor._truncated import Truncated
from frechet.objective._torch_internals import OpOverload

Expansion = Callable[..., Truncated]  # of the value and the order, with the operation's other arguments


def elementary(frame: Frame, x: SeriesTensor, expansion: Expansion, *rest: Any) -> SeriesTensor:
    return wrapped(frame, composed(frame, expansion(x.value, frame.order, *rest), x.c))


def _analytic(f: Callable[[Truncated], Truncated]) -> Expansion:
    return lambda x, order: f(truncated.variable(x, order))


# --- with parameters --------------------------------------------------------------------------------------------------


def _piecewise(masks: list[tuple[Tensor | None, Truncated]], order: int) -> Truncated:
    """The series of the first branch whose mask holds; the last branch has none."""
    found = masks[-1][1]
    for mask, branch in reversed(masks[:-1]):
        assert mask is not None
        found = [_either(mask, a, b) for a, b in zip(branch, found, strict=True)]
    return found


def _either(mask: Tensor, a: Any, b: Any) -> Any:
    if a is None and b is None:
        return None
    return torch.where(mask, 0.0 if a is None else a, 0.0 if b is None else b)


def _line(x: Tensor, value: Any, slope: float, order: int) -> Truncated:
    """A branch value + slope h; `value` is a tensor or a number."""
    value = value if isinstance(value, Tensor) else torch.full_like(x, value)
    return [value, torch.full_like(x, slope), *[None] * (order - 1)][: order + 1]


def _gelu(x: Tensor, order: int, approximate: str = "none") -> Truncated:
    f = truncated.gelu_tanh if approximate == "tanh" else truncated.gelu
    found = f(truncated.variable(x, order))
    return [torch.nn.functional.gelu(x, approximate=approximate), *found[1:]]


def _softplus(x: Tensor, order: int, beta: float = 1, threshold: float = 20) -> Truncated:
    a = truncated.scale(beta, truncated.variable(x, order))
    smooth = truncated.scale(1 / beta, truncated.softplus(a))
    found = _piecewise([(x * beta > threshold, _line(x, x, 1.0, order)), (None, smooth)], order)
    return [torch.nn.functional.softplus(x, beta, threshold), *found[1:]]


def _elu(x: Tensor, order: int, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Truncated:
    a = truncated.scale(input_scale, truncated.variable(torch.where(x > 0, 0.0, x), order))
    bent = truncated.scale(alpha * scale, truncated.expm1(a))
    return _piecewise([(x > 0, _line(x, x * scale, scale, order)), (None, bent)], order)


def _celu(x: Tensor, order: int, alpha: float = 1) -> Truncated:
    return _elu(x, order, alpha, 1.0, 1 / alpha)


def _selu(x: Tensor, order: int) -> Truncated:
    return _elu(x, order, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0)


def _relu(x: Tensor, order: int) -> Truncated:
    return [torch.relu(x), (x > 0).to(x.dtype)]


def _leaky_relu(x: Tensor, order: int, slope: float = 0.01) -> Truncated:
    return [torch.nn.functional.leaky_relu(x, slope), torch.where(x > 0, torch.ones_like(x), slope)]


def _hardtanh(x: Tensor, order: int, low: float = -1, high: float = 1) -> Truncated:
    return [torch.nn.functional.hardtanh(x, low, high), ((x > low) & (x < high)).to(x.dtype)]


def _relu6(x: Tensor, order: int) -> Truncated:
    return _hardtanh(x, order, 0.0, 6.0)


def _threshold(x: Tensor, order: int, threshold: float, value: float) -> Truncated:
    return [torch.threshold(x, threshold, value), (x > threshold).to(x.dtype)]


def _hardsigmoid(x: Tensor, order: int) -> Truncated:
    return [torch.nn.functional.hardsigmoid(x), ((x > -3) & (x < 3)).to(x.dtype) / 6]


def _hardswish(x: Tensor, order: int) -> Truncated:
    inside = (x >= -3) & (x <= 3)
    slope = torch.where(inside, x / 3 + 0.5, (x > 3).to(x.dtype))
    return [torch.nn.functional.hardswish(x), slope, inside.to(x.dtype) / 6]


def _hardshrink(x: Tensor, order: int, width: float = 0.5) -> Truncated:
    return [torch.nn.functional.hardshrink(x, width), ((x < -width) | (x > width)).to(x.dtype)]


def _softshrink(x: Tensor, order: int, width: float = 0.5) -> Truncated:
    return [torch.nn.functional.softshrink(x, width), ((x < -width) | (x > width)).to(x.dtype)]


def _abs(x: Tensor, order: int) -> Truncated:
    return [torch.abs(x), torch.sign(x)]


def _frac(x: Tensor, order: int) -> Truncated:
    return [torch.frac(x), torch.ones_like(x)]


def _nan_to_num(x: Tensor, order: int, *replacements: Any) -> Truncated:
    return [torch.nan_to_num(x, *replacements), torch.isfinite(x).to(x.dtype)]


def _logit(x: Tensor, order: int, eps: float | None = None) -> Truncated:
    if eps is None:
        return truncated.logit(truncated.variable(x, order))
    inside = (x >= eps) & (x <= 1 - eps)
    smooth = truncated.logit(truncated.variable(torch.where(inside, x, 0.5), order))
    flat = _line(x, torch.logit(x, eps), 0.0, order)
    return [flat[0], *_piecewise([(inside, smooth), (None, flat)], order)[1:]]


def _polygamma(x: Tensor, order: int, n: int) -> Truncated:
    return truncated.polygamma(n, x, order)


def _sinc(x: Tensor, order: int) -> Truncated:
    """sin(pi x)/(pi x), near zero by its power series: sum of (-1)^n (pi x)^(2n) / (2n+1)!."""
    near = x.abs() < 0.5
    away = truncated.scale(math.pi, truncated.variable(torch.where(near, 1.0, x), order))
    far = truncated.div(truncated.sin(away), away)
    z = truncated.scale(math.pi, truncated.variable(torch.where(near, x, 0.0), order))
    square = truncated.mul(z, z)
    close: Truncated = [torch.zeros_like(x), *[None] * order]
    for n in range(12 + order, -1, -1):
        close = truncated.shift(truncated.mul(close, square), (-1) ** n / math.factorial(2 * n + 1))
    found = _piecewise([(near, close), (None, far)], order)
    return [torch.sinc(x), *found[1:]]


def _entr(x: Tensor, order: int) -> Truncated:
    return [torch.special.entr(x), *truncated.entr(truncated.variable(x, order))[1:]]


EXPANSIONS: dict[str, Expansion] = {
    **{
        name: _analytic(getattr(truncated, name))
        for name in words(
            "exp expm1 exp2 log log2 log10 log1p sqrt rsqrt reciprocal sin cos tan sinh cosh tanh sigmoid asin acos "
            "atan "
            "asinh acosh atanh erf erfc erfinv silu mish"
        )
    },
    "special_erfcx": _analytic(truncated.erfcx),
    "special_ndtri": _analytic(truncated.ndtri),
    "special_log_ndtr": _analytic(truncated.log_ndtr),
    "special_ndtr": _analytic(truncated.ndtr),
    "special_entr": _entr,
    "lgamma": truncated.log_gamma,
    "digamma": lambda x, order: truncated.polygamma(0, x, order),
    "gelu": _gelu,
    "softplus": _softplus,
    "elu": _elu,
    "celu": _celu,
    "selu": _selu,
    "relu": _relu,
    "relu6": _relu6,
    "leaky_relu": _leaky_relu,
    "hardtanh": _hardtanh,
    "threshold": _threshold,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "hardshrink": _hardshrink,
    "softshrink": _softshrink,
    "abs": _abs,
    "frac": _frac,
    "nan_to_num": _nan_to_num,
    "logit": _logit,
    "sinc": _sinc,
}


def _rule(expansion: Expansion) -> Rule:
    def rule(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
        given = bound(op, args, kwargs)
        x = given.pop("self")
        return elementary(frame, x, expansion, *given.values())

    return rule


# --- powers -----------------------------------------------------------------------------------------------------------


def power(frame: Frame, a: Any, b: Any) -> Any:
    """Return a^b."""
    if series(b, frame) is None:
        if not isinstance(b, Tensor):
            if b == 2:
                return multiplied(frame, a, a)
            return elementary(frame, a, _to_the, b)
        a, b = torch.broadcast_tensors(a, b)
        return elementary(frame, a, _to_the_each, b)
    value = a.value if series(a, frame) is not None else a
    base = torch.log(a) if isinstance(a, Tensor) else math.log(a) if a > 0 else -math.inf
    found: Any = torch.exp(b * base)
    found.c[0] = torch.pow(value, b.value)
    return found


def _to_the(x: Tensor, order: int, r: float) -> Truncated:
    return truncated.power_of_variable(x, r, order)


def _to_the_each(x: Tensor, order: int, r: Tensor) -> Truncated:
    y: Truncated = [x**r]
    binomial: Any = torch.ones_like(r)
    for m in range(1, order + 1):
        binomial = binomial * (r - m + 1) / m
        y.append(torch.where(binomial == 0, 0.0, binomial * x ** torch.where(binomial == 0, 0.0, r - m)))
    return y


def _polygamma_rule(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    n, x = (args[0], args[1]) if isinstance(args[0], int) else (args[1], args[0])
    return elementary(frame, x, _polygamma, n)


def _log_sigmoid(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    x = args[0]
    found = elementary(frame, x, _analytic(truncated.log_sigmoid))
    found.c[0] = torch.nn.functional.logsigmoid(x.value)
    return found, torch.empty(0, dtype=x.dtype, device=x.device)


ELEMENTARY: dict[str, Rule] = {
    **{name: _rule(expansion) for name, expansion in EXPANSIONS.items()},
    "pow": lambda frame, op, args, kwargs: power(frame, *args),
    "square": lambda frame, op, args, kwargs: multiplied(frame, args[0], args[0]),
    "polygamma": _polygamma_rule,
    "log_sigmoid_forward": _log_sigmoid,
}
